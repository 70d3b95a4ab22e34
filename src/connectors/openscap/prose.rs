//! Plain text of what stands in an element: XHTML without its tags, and values where the text refers to them.

pub(super) use crate::connectors::prose::{MAX_TEXT, one_line};

use super::xml::{Broken, Step, Tag, Xml};
use crate::connectors::prose::tidy;
use std::collections::HashMap;
use std::io::BufRead;

/// What the results say of each value, by its identifier.
pub(super) type Values = HashMap<String, String>;

/// The text of the element that just started, to its end.
pub(super) fn prose<R: BufRead>(xml: &mut Xml<R>, values: &Values) -> Result<String, Broken> {
    let inside = xml.depth();
    let mut text = String::new();
    while xml.depth() >= inside {
        match xml.next()? {
            Step::Text => add(&mut text, xml.text()),
            Step::Start(Tag::Sub) => {
                let value = xml.attribute("idref")?.unwrap_or_default();
                add(&mut text, values.get(&value).unwrap_or(&value));
            }
            Step::Start(Tag::LineBreak) => add(&mut text, "\n"),
            Step::Start(Tag::Block) | Step::End(Tag::Block) if !text.is_empty() && !text.ends_with('\n') => {
                add(&mut text, "\n");
            }
            Step::Start(_) | Step::End(_) | Step::Eof => {}
        }
    }
    Ok(tidy(&text))
}

/// The same on one line, of at most so many characters.
pub(super) fn line<R: BufRead>(xml: &mut Xml<R>, values: &Values, max: usize) -> Result<String, Broken> {
    Ok(one_line(&prose(xml, values)?, max))
}

fn add(text: &mut String, more: &str) {
    if text.len() > MAX_TEXT {
        return;
    }
    let room = MAX_TEXT - text.len();
    text.push_str(&more[..more.floor_char_boundary(room)]);
    if more.len() > room {
        text.push_str("...");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::sync::CancellationToken;

    fn text_of(inner: &str) -> String {
        let document = format!(
            "<d xmlns='http://checklists.nist.gov/xccdf/1.2' xmlns:h='http://www.w3.org/1999/xhtml'>{inner}</d>"
        );
        let mut xml = Xml::new(document.as_bytes(), CancellationToken::new());
        xml.next().unwrap();
        let values = Values::from([("v_known".to_owned(), "900".to_owned())]);
        let text = prose(&mut xml, &values).unwrap();
        assert_eq!(xml.next().unwrap(), Step::Eof);
        text
    }

    #[test]
    fn markup_is_stripped_and_lines_stay_apart() {
        assert_eq!(text_of("Set <h:code>a &lt; b</h:code>.<h:br/>Then<h:br/>go."), "Set a < b.\nThen\ngo.");
        assert_eq!(
            text_of("<h:p>One.</h:p><h:ul><h:li>a</h:li><h:li>b</h:li></h:ul> end"),
            "One.\na\nb\n end"
        );
        assert_eq!(text_of("\n  a  \n\n\n\n<![CDATA[<b>]]>\n"), "a\n\n<b>");
    }

    #[test]
    fn a_value_stands_where_the_text_refers_to_it_and_its_name_where_it_is_not_known() {
        assert_eq!(text_of("TMOUT=<sub idref='v_known'/> <sub idref='v_other'/>"), "TMOUT=900 v_other");
    }

    #[test]
    fn a_long_text_is_cut() {
        let text = text_of(&"\u{e9}<h:b>x</h:b>".repeat(40_000));
        assert!(text.len() <= MAX_TEXT + 3 && text.ends_with("..."), "{}", text.len());
    }
}
