//! Qualys' XML: one record at a time, however long the list is.
//!
//! Each answer names a document type at Qualys. It is accepted and never fetched; one that defines something is refused,
//! because what it defines can swell without end. There are the entities of XML itself, and no others.

use quick_xml::XmlVersion;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::reader::Reader;
use std::io::Cursor;

/// Deeper than anything Qualys writes.
const MAX_DEPTH: usize = 100;

/// Why a document cannot be read: a sentence that finishes "the answer ".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken(pub(super) String);

/// An answer that is being read.
pub(super) struct Document {
    reader: Reader<Cursor<Vec<u8>>>,
    buffer: Vec<u8>,
    root: String,
    bytes: usize,
    depth: usize,
}

/// An element with everything in it.
#[derive(Debug, Default)]
pub(super) struct Node {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
    children: Vec<Node>,
}

/// What comes next.
enum Step {
    Start(Node),
    Text(String),
    End,
}

impl Document {
    /// Reads as far as its root element. A byte that is no UTF-8 is replaced, because one in the results of one host must
    /// not hide all others.
    pub(super) fn open(body: Vec<u8>) -> Result<Self, Broken> {
        let bytes = body.len();
        let body = match String::from_utf8(body) {
            Ok(text) => text.into_bytes(),
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned().into_bytes(),
        };
        let mut reader = Reader::from_reader(Cursor::new(body));
        reader.config_mut().expand_empty_elements = true;
        let mut document = Self { reader, buffer: Vec::new(), root: String::new(), bytes, depth: 0 };
        match document.step()? {
            Some(Step::Start(root)) => document.root = root.name,
            _ => return Err(Broken("is no XML".to_owned())),
        }
        Ok(document)
    }

    /// The name of its root element.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// Its size.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The next element with one of these names, wherever it is; `None` after the last. A document that ends in the
    /// middle is broken, not over.
    pub(super) fn next(&mut self, names: &[&str]) -> Result<Option<Node>, Broken> {
        while let Some(step) = self.step()? {
            if let Step::Start(node) = step
                && names.contains(&node.name.as_str())
            {
                return self.finish(node).map(Some);
            }
        }
        Ok(None)
    }

    /// The rest of an element that has just started.
    fn finish(&mut self, node: Node) -> Result<Node, Broken> {
        let mut open = vec![node];
        loop {
            let step = self.step()?;
            match (step, open.last_mut()) {
                (Some(Step::Start(node)), _) => open.push(node),
                (Some(Step::Text(text)), Some(inner)) => inner.text.push_str(&text),
                (Some(Step::End), Some(_)) => match (open.pop(), open.last_mut()) {
                    (Some(node), Some(outer)) => outer.children.push(node),
                    (Some(node), None) => return Ok(node),
                    (None, _) => return Err(truncated()),
                },
                (None, _) | (_, None) => return Err(truncated()),
            }
        }
    }

    /// `None` when the root has ended.
    fn step(&mut self) -> Result<Option<Step>, Broken> {
        loop {
            self.buffer.clear();
            let event = self
                .reader
                .read_event_into(&mut self.buffer)
                .map_err(|error| Broken(format!("is not well-formed: {error}")))?;
            match event {
                Event::Start(start) => {
                    if self.depth == 0 && !self.root.is_empty() {
                        return Err(Broken("goes on after its root element has ended".to_owned()));
                    }
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(Broken(format!("has elements nested more than {MAX_DEPTH} deep")));
                    }
                    return node(&start).map(|node| Some(Step::Start(node)));
                }
                Event::End(_) => {
                    self.depth = self.depth.saturating_sub(1);
                    return Ok(Some(Step::End));
                }
                Event::Text(text) if self.depth > 0 => {
                    return Ok(Some(Step::Text(text.xml10_content().into_owned())));
                }
                Event::Text(text) if text.trim_matches(['\u{feff}', ' ', '\t', '\r', '\n']).is_empty() => {}
                Event::Text(_) => return Err(Broken("is no XML".to_owned())),
                Event::CData(text) => return Ok(Some(Step::Text(text.xml10_content().into_owned()))),
                Event::GeneralRef(reference) => {
                    return character(&reference).map(|c| Some(Step::Text(c.into())));
                }
                Event::DocType(text) if text.contains('[') => {
                    return Err(Broken(
                        "has a document type that defines something of its own, which no answer of Qualys has; it is \
                         refused because that can swell without end"
                            .to_owned(),
                    ));
                }
                Event::Eof if self.depth > 0 || self.root.is_empty() => return Err(truncated()),
                Event::Eof => return Ok(None),
                Event::DocType(_) | Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            }
        }
    }
}

impl Node {
    /// What stands in it, without blanks at its ends.
    pub(super) fn own_text(&self) -> &str {
        self.text.trim()
    }

    /// What stands in its first child of this name, or nothing.
    pub(super) fn text(&self, name: &str) -> &str {
        self.child(name).map_or("", Self::own_text)
    }

    /// Its first child of this name.
    pub(super) fn child(&self, name: &str) -> Option<&Node> {
        self.children.iter().find(|child| child.name == name)
    }

    /// Its children of this name.
    pub(super) fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Node> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The items of a list: `DETECTION_LIST`, `DETECTION`.
    pub(super) fn items<'a>(&'a self, list: &'a str, item: &'a str) -> impl Iterator<Item = &'a Node> {
        self.children(list).flat_map(move |list| list.children(item))
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// An attribute of it, or nothing.
    pub(super) fn attribute(&self, name: &str) -> &str {
        self.attributes.iter().find(|(is, _)| is == name).map_or("", |(_, value)| value)
    }
}

fn truncated() -> Broken {
    Broken("ends in the middle".to_owned())
}

fn node(start: &BytesStart<'_>) -> Result<Node, Broken> {
    let no = |error: &dyn std::fmt::Display| Broken(format!("has an attribute that cannot be read: {error}"));
    let mut attributes = Vec::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| no(&error))?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|error| no(&error))?;
        attributes.push((attribute.key.into_inner().to_owned(), value.into_owned()));
    }
    Ok(Node { name: start.name().into_inner().to_owned(), attributes, ..Node::default() })
}

fn character(reference: &BytesRef<'_>) -> Result<char, Broken> {
    let name: &str = reference;
    let known = match reference.resolve_char_ref() {
        Ok(None) => match name {
            "lt" => Some('<'),
            "gt" => Some('>'),
            "amp" => Some('&'),
            "apos" => Some('\''),
            "quot" => Some('"'),
            _ => None,
        },
        known => known.ok().flatten(),
    };
    known.ok_or_else(|| {
        let name: String = name.chars().take(50).collect();
        Broken(format!("holds &{name};, which XML alone does not know"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIST: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n\
        <!DOCTYPE HOST_LIST_OUTPUT SYSTEM \"https://qualysapi.example.com/host_list.dtd\">\n\
        <HOST_LIST_OUTPUT><RESPONSE><HOST_LIST><HOST><ID>1</ID><DNS><![CDATA[a<b]]></DNS></HOST>\
        <HOST id='x &amp; y'><ID> 2 </ID><LIST><I>a&#65;</I><I/></LIST></HOST></HOST_LIST></RESPONSE></HOST_LIST_OUTPUT>";

    fn read(body: &[u8]) -> Result<Vec<Node>, Broken> {
        let mut document = Document::open(body.to_vec())?;
        let mut all = Vec::new();
        while let Some(node) = document.next(&["HOST"])? {
            all.push(node);
        }
        Ok(all)
    }

    #[test]
    fn a_record_has_its_texts_lists_and_attributes() {
        let hosts = read(LIST.as_bytes()).unwrap();
        assert_eq!(hosts.len(), 2);
        assert_eq!((hosts[0].text("ID"), hosts[0].text("DNS"), hosts[0].text("OS")), ("1", "a<b", ""));
        assert_eq!((hosts[1].text("ID"), hosts[1].attribute("id")), ("2", "x & y"));
        let items: Vec<_> = hosts[1].items("LIST", "I").map(Node::own_text).collect();
        assert_eq!(items, ["aA", ""]);
    }

    #[test]
    fn a_document_that_ends_anywhere_is_no_document() {
        for end in 0..LIST.len() {
            assert!(read(&LIST.as_bytes()[..end]).is_err(), "{}", &LIST[..end]);
        }
    }

    #[test]
    fn a_document_type_with_entities_is_refused_and_so_are_entities_nobody_knows() {
        let bomb = "<!DOCTYPE A [<!ENTITY b 'ha'><!ENTITY c '&b;&b;&b;'>]><A>&c;</A>";
        assert!(read(bomb.as_bytes()).unwrap_err().0.contains("document type"));
        assert!(read(b"<A><HOST>&c;</HOST></A>").unwrap_err().0.contains("&c;"));
        let deep = format!("{}{}", "<A>".repeat(200), "</A>".repeat(200));
        assert!(read(deep.as_bytes()).unwrap_err().0.contains("nested"));
        assert_eq!(read(b"Please log in").unwrap_err().0, "is no XML");
    }

    #[test]
    fn a_byte_that_is_no_utf8_hides_nothing_else() {
        let hosts = read(b"<A><HOST><ID>1\xff</ID></HOST><HOST><ID>2</ID></HOST></A>").unwrap();
        assert_eq!((hosts[0].text("ID"), hosts[1].text("ID")), ("1\u{fffd}", "2"));
    }

    proptest! {
        #[test]
        fn no_byte_breaks_the_reader(changes in prop::collection::vec((0..LIST.len(), any::<u8>()), 0..8)) {
            let mut body = LIST.as_bytes().to_vec();
            for (at, byte) in changes {
                body[at] = byte;
            }
            let _ = read(&body);
        }
    }
}
