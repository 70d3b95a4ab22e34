//! Plain text of what others write: what connectors do alike with texts, whichever markup these come in.

/// Of one text, in bytes. What is longer is cut and ends in `...`.
pub(super) const MAX_TEXT: usize = 64 << 10;

/// `text` on one line, of at most so many characters, without characters that are none.
pub(super) fn one_line(text: &str, max: usize) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(max).collect()
}

/// Without blanks at the ends of lines, without more than one empty line, and without NUL and its like, which no
/// database takes.
pub(super) fn tidy(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len().min(MAX_TEXT));
    let mut empty = 0;
    for line in text.trim().lines() {
        let line = line.trim_end();
        empty = if line.is_empty() { empty + 1 } else { 0 };
        if empty > 1 {
            continue;
        }
        if !tidy.is_empty() {
            tidy.push('\n');
        }
        // Nearly every line is taken as it stands.
        if line.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\t') {
            tidy.push_str(line);
        } else {
            tidy.extend(line.chars().filter(|c| !c.is_control() || *c == '\t'));
        }
    }
    tidy
}

/// At most [`MAX_TEXT`] of it.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT - 3));
        text.push_str("...");
    }
    text
}

/// The character that the reference at the beginning of `text` means, such as `&lt;`, and what follows it.
pub(super) fn entity(text: &str) -> Option<(char, &str)> {
    const LONGEST: usize = 12;
    let inside = text.strip_prefix('&')?;
    let end = inside.bytes().take(LONGEST).position(|byte| byte == b';')?;
    let (name, after) = (&inside[..end], &inside[end + 1..]);
    let character = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => ' ',
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)?
        }
    };
    Some((character, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_tidied_and_a_title_has_one_line() {
        assert_eq!(tidy(" a\u{0}b \n\n\n\nc\t1\n"), "ab\n\nc\t1");
        assert_eq!(one_line(" a\n b\u{0} c ", 3), "a b");
    }

    #[test]
    fn a_text_has_an_end() {
        let text = cut("ü".repeat(MAX_TEXT));
        assert!(text.len() <= MAX_TEXT && text.ends_with("ü..."), "{}", text.len());
        assert_eq!(cut("short".to_owned()), "short");
    }

    #[test]
    fn a_reference_is_the_character_it_means() {
        for (text, expected) in [
            ("&lt;x", Some(('<', "x"))),
            ("&#x41;", Some(('A', ""))),
            ("&#252;", Some(('ü', ""))),
            ("&#0;", Some(('\0', ""))),
            ("&#xD800;", None),
            ("&unknown;", None),
            ("& b;", None),
            ("amp;", None),
        ] {
            assert_eq!(entity(text), expected, "{text}");
        }
    }
}
