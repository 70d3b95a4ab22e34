//! Plain text of the HTML that Qualys writes into its texts.

pub(super) use crate::connectors::prose::one_line;

use crate::connectors::prose::{MAX_TEXT, cut, entity, tidy};

/// `html` without its tags. Where lines began they begin; the address of a link stays where its text does not say it,
/// because that is where a patch is.
pub(super) fn plain(html: &str) -> String {
    let mut text = String::with_capacity(html.len().min(MAX_TEXT));
    let mut link: Option<(String, usize)> = None;
    let mut rest = html;
    while let Some(at) = rest.find(['<', '&']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some((c, after)) = entity(rest) {
            text.push(c);
            rest = after;
            continue;
        }
        let Some((tag, after)) = tag(rest) else {
            let (sign, after) = rest.split_at(1);
            text.push_str(sign);
            rest = after;
            continue;
        };
        rest = after;
        match tag_name(tag).as_str() {
            tag if begins_line(tag) && !text.is_empty() && !text.ends_with('\n') => text.push('\n'),
            "td" | "th" if !text.ends_with(char::is_whitespace) => text.push(' '),
            "a" => link = href(tag).map(|href| (href, text.len())),
            "/a" => {
                if let Some((href, from)) = link.take()
                    && text.get(from..).is_some_and(|said| !said.contains(href.as_str()))
                {
                    text.extend([" (", &href, ")"]);
                }
            }
            _ => {}
        }
    }
    text.push_str(rest);
    proof(&text)
}

/// A text that is plain already.
pub(super) fn proof(text: &str) -> String {
    cut(tidy(text))
}

/// A tag at the beginning of `text`, without its brackets, and what follows it.
fn tag(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('<')?;
    let is_tag = inner.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '!');
    is_tag.then(|| inner.split_once('>')).flatten()
}

/// Whether what stands behind the tag is on a line of its own.
fn begins_line(tag: &str) -> bool {
    matches!(
        tag.strip_prefix('/').unwrap_or(tag),
        "br" | "p" | "li" | "ul" | "ol" | "div" | "tr" | "table" | "pre" | "h1" | "h2" | "h3" | "dt" | "dd"
    )
}

fn tag_name(tag: &str) -> String {
    let end =
        tag.char_indices().skip(1).find(|(_, c)| !c.is_ascii_alphanumeric()).map_or(tag.len(), |(at, _)| at);
    tag[..end].to_ascii_lowercase()
}

fn href(tag: &str) -> Option<String> {
    let at = tag.to_ascii_lowercase().find("href=")?;
    let value = tag.get(at + 5..)?;
    let value = match value.chars().next()? {
        quote @ ('"' | '\'') => value[1..].split(quote).next()?,
        _ => value.split_whitespace().next()?,
    };
    let value = value.replace("&amp;", "&");
    value.starts_with("http").then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_go_and_lines_stay() {
        assert_eq!(
            plain("One.<P>Two &lt;3&gt; &amp; &#65;&nbsp;b<BR>\n<UL><LI>x</LI><li>y</UL>"),
            "One.\nTwo <3> & A b\n\nx\ny"
        );
        assert_eq!(plain("a < b && c <> d &unknown; 5>4"), "a < b && c <> d &unknown; 5>4");
        assert_eq!(plain("<b>unclosed <i"), "unclosed <i");
    }

    #[test]
    fn the_address_of_a_link_stays() {
        assert_eq!(plain("<A HREF=\"https://h/p?a=1&amp;b\" TARGET=x>KB1</A>."), "KB1 (https://h/p?a=1&b).");
        assert_eq!(plain("<a href='https://h/'>https://h/</a>"), "https://h/");
        assert_eq!(plain("<a href=\"javascript:x\">x</a>"), "x");
    }

    #[test]
    fn a_long_text_is_cut() {
        let long = plain(&"é<b>x</b>".repeat(40_000));
        assert!(long.len() <= MAX_TEXT && long.ends_with("..."), "{}", long.len());
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "[<>&;/=\"'#xaé hrefAHREF\n0-9]{0,60}") {
            let _ = plain(&text);
        }
    }
}
