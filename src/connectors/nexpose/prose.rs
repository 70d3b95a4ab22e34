//! Plain text of what the console writes with markup: proofs, descriptions, steps of solutions.

pub(super) use crate::connectors::prose::{cut, one_line};

use super::wire::Text;
use crate::connectors::prose::{MAX_TEXT, entity};

/// Whichever of the two there is, as plain text: consoles have markup in either.
pub(super) fn of(text: Option<&Text>) -> String {
    let Some(text) = text else { return String::new() };
    let filled = |text: &Option<String>| text.as_deref().filter(|text| !text.trim().is_empty()).map(plain);
    filled(&text.html).or_else(|| filled(&text.text)).unwrap_or_default()
}

/// `html` without its tags: a block begins a line, everything else is one word after the other. A text without tags
/// keeps its lines. Characters that no database takes are left out.
pub(super) fn plain(html: &str) -> String {
    let has_tags = html.contains('<');
    let mut text = String::new();
    let mut rest = html;
    while let Some(first) = rest.chars().next() {
        if text.len() > 2 * MAX_TEXT {
            break;
        }
        if let Some((tag, after)) = tag(rest) {
            if is_block(tag) {
                text.push('\n');
            }
            rest = after;
        } else if let Some((character, after)) = entity(rest) {
            text.push(if character == '\u{a0}' { ' ' } else { character });
            rest = after;
        } else {
            let is_blank = first.is_whitespace() && (has_tags || first != '\n');
            text.push(if is_blank { ' ' } else { first });
            rest = &rest[first.len_utf8()..];
        }
    }
    tidy(&text)
}

/// What stands in the tag that `rest` begins with, and what follows it.
fn tag(rest: &str) -> Option<(&str, &str)> {
    let inside = rest.strip_prefix('<')?;
    if let Some(comment) = inside.strip_prefix("!--") {
        return comment.split_once("-->").map(|(_, after)| ("", after));
    }
    // `a < b` is no tag.
    inside.starts_with(|c: char| c.is_ascii_alphabetic() || "/!?".contains(c)).then_some(())?;
    inside.split_once('>')
}

fn is_block(tag: &str) -> bool {
    const BLOCKS: [&str; 21] = [
        "p",
        "div",
        "br",
        "li",
        "ul",
        "ol",
        "table",
        "tr",
        "pre",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "dl",
        "dt",
        "dd",
        "blockquote",
        "hr",
        "paragraph",
    ];
    let name =
        tag.trim_start_matches('/').split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    BLOCKS.iter().any(|block| block.eq_ignore_ascii_case(name))
}

/// Without blanks in a row, empty lines in a row, and control characters.
fn tidy(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len().min(MAX_TEXT));
    let mut was_empty = true;
    for line in text.lines() {
        let line = one_line(line, usize::MAX);
        if line.is_empty() && was_empty {
            continue;
        }
        was_empty = line.is_empty();
        tidy.push_str(&line);
        tidy.push('\n');
    }
    tidy.truncate(tidy.trim_end().len());
    cut(tidy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_go_and_what_they_hold_stays() {
        assert_eq!(plain("<p><p>OpenBSD OpenSSH 4.3 on Linux</p></p>"), "OpenBSD OpenSSH 4.3 on Linux");
        assert_eq!(
            plain("<ul><li>a <b>b</b>\n c</li><li>d&nbsp;&amp;&#x41;&lt;i&gt;</li></ul>"),
            "a b c\n\nd &A<i>"
        );
        assert_eq!(plain("1 < 2 &unknown; <!-- x > y --> &#0;z"), "1 < 2 &unknown; z");
        assert_eq!(plain("one\ntwo\n\n\n\nthree"), "one\ntwo\n\nthree");
        assert_eq!(plain("<unclosed"), "<unclosed");
    }

    #[test]
    fn a_text_has_an_end() {
        let text = plain(&"ü".repeat(1 << 20));
        assert!(text.len() <= MAX_TEXT && text.ends_with("..."));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "[<>&;#xü/!\\- a-z0-9\\n\\u{0}]{0,80}") {
            prop_assert!(!plain(&text).contains('\0'));
        }
    }
}
