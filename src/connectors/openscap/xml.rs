//! XML, a step at a time, with a bound on everything that would have to be kept: the size of one step, the depth, and
//! entities, of which there are those of XML itself and no others.

use quick_xml::XmlVersion;
use quick_xml::encoding::EncodingError;
use quick_xml::errors::Error;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{Namespace, QName, ResolveResult};
use quick_xml::reader::NsReader;
use std::io::{self, BufRead, Read};
use tokio_util::sync::CancellationToken;

/// XCCDF 1.2, the only version OpenSCAP writes.
const XCCDF: &str = "http://checklists.nist.gov/xccdf/1.2";
const XHTML: &str = "http://www.w3.org/1999/xhtml";
/// One tag or one text. The longest text of a published benchmark has some tens of kilobytes.
const MAX_STEP: usize = 1 << 20;
/// Deeper than any document that somebody wrote.
const MAX_DEPTH: usize = 200;

/// Why a document cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Broken {
    /// It ends in the middle, like one that is still being written.
    Truncated,
    /// A sentence that finishes "it ".
    Bad(String),
    /// Nobody waits for it any more.
    Unwanted,
}

impl Broken {
    pub(super) fn bad(problem: impl Into<String>) -> Self {
        Self::Bad(problem.into())
    }

    /// What was met while it was opened or read.
    pub(super) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            // A sentence of ours.
            io::ErrorKind::Other => Self::Bad(error.to_string()),
            _ => Self::Bad(format!("cannot be read: {error}")),
        }
    }
}

/// What comes next. What is of no interest to us (comments, instructions) never comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// [`Xml::attribute`] has its attributes. An empty element starts and ends like any other.
    Start(Tag),
    /// [`Xml::text`] has it; a text may come in several steps.
    Text,
    /// Of the element that started last and had not ended.
    End(Tag),
    /// The whole document was well-formed.
    Eof,
}

/// The elements we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    Benchmark,
    BenchmarkRef,
    CheckContentRef,
    Description,
    Fact,
    Fix,
    Fixtext,
    Group,
    Ident,
    Instance,
    Message,
    Platform,
    Rationale,
    Reference,
    Result,
    Rule,
    RuleResult,
    SetValue,
    Sub,
    Target,
    TargetAddress,
    TestResult,
    Title,
    /// `<br/>` of XHTML.
    LineBreak,
    /// What begins on a line of its own in XHTML.
    Block,
    Other,
}

impl Tag {
    fn of(space: &str, name: &str) -> Self {
        match (space, name) {
            (XHTML, "br") => Self::LineBreak,
            (
                XHTML,
                "p" | "pre" | "div" | "ul" | "ol" | "li" | "dl" | "dt" | "dd" | "table" | "tr" | "h1" | "h2"
                | "h3",
            ) => Self::Block,
            (XCCDF, "Benchmark") => Self::Benchmark,
            (XCCDF, "benchmark") => Self::BenchmarkRef,
            (XCCDF, "check-content-ref") => Self::CheckContentRef,
            (XCCDF, "description") => Self::Description,
            (XCCDF, "fact") => Self::Fact,
            (XCCDF, "fix") => Self::Fix,
            (XCCDF, "fixtext") => Self::Fixtext,
            (XCCDF, "Group") => Self::Group,
            (XCCDF, "ident") => Self::Ident,
            (XCCDF, "instance") => Self::Instance,
            (XCCDF, "message") => Self::Message,
            (XCCDF, "platform") => Self::Platform,
            (XCCDF, "rationale") => Self::Rationale,
            (XCCDF, "reference") => Self::Reference,
            (XCCDF, "result") => Self::Result,
            (XCCDF, "Rule") => Self::Rule,
            (XCCDF, "rule-result") => Self::RuleResult,
            (XCCDF, "set-value") => Self::SetValue,
            (XCCDF, "sub") => Self::Sub,
            (XCCDF, "target") => Self::Target,
            (XCCDF, "target-address") => Self::TargetAddress,
            (XCCDF, "TestResult") => Self::TestResult,
            (XCCDF, "title") => Self::Title,
            _ => Self::Other,
        }
    }
}

/// A document that is being read.
pub(super) struct Xml<R> {
    reader: NsReader<Measured<R>>,
    buffer: Vec<u8>,
    start: Option<BytesStart<'static>>,
    text: String,
    depth: usize,
    has_root: bool,
    other_xccdf: Option<String>,
}

impl<R: BufRead> Xml<R> {
    /// Ends as [`Broken::Unwanted`] soon after `stop` is cancelled.
    pub(super) fn new(document: R, stop: CancellationToken) -> Self {
        let mut reader = NsReader::from_reader(Measured { document, stop, pieces: 0, step: 0, ended: false });
        reader.config_mut().expand_empty_elements = true;
        Self {
            reader,
            buffer: Vec::new(),
            start: None,
            text: String::new(),
            depth: 0,
            has_root: false,
            other_xccdf: None,
        }
    }

    /// The next step. Never [`Step::Eof`] inside of an element.
    pub(super) fn next(&mut self) -> Result<Step, Broken> {
        loop {
            match event(&mut self.reader, &mut self.buffer)? {
                Event::Start(start) => {
                    let tag = tag_of(&self.reader, start.name(), &mut self.other_xccdf);
                    if self.depth == 0 && std::mem::replace(&mut self.has_root, true) {
                        return Err(Broken::bad("goes on after its root element has ended"));
                    }
                    self.depth = deeper(self.depth)?;
                    self.start = (tag != Tag::Other).then(|| start.into_owned());
                    return Ok(Step::Start(tag));
                }
                Event::End(end) => {
                    let tag = tag_of(&self.reader, end.name(), &mut self.other_xccdf);
                    self.depth = self.depth.saturating_sub(1);
                    return Ok(Step::End(tag));
                }
                Event::Text(text) => {
                    self.text.clear();
                    self.text.push_str(&text.xml10_content());
                    if self.depth > 0 {
                        return Ok(Step::Text);
                    }
                    if !self.text.trim().is_empty() {
                        return Err(Broken::bad("is no XML"));
                    }
                }
                Event::CData(text) => {
                    self.text.clear();
                    self.text.push_str(&text.xml10_content());
                    return Ok(Step::Text);
                }
                Event::GeneralRef(reference) => {
                    let name: &str = &reference;
                    let known = match reference.resolve_char_ref() {
                        Ok(Some(character)) => Some(character),
                        Ok(None) => match name {
                            "lt" => Some('<'),
                            "gt" => Some('>'),
                            "amp" => Some('&'),
                            "apos" => Some('\''),
                            "quot" => Some('"'),
                            _ => None,
                        },
                        Err(_) => None,
                    };
                    let Some(character) = known else {
                        let name: String = name.chars().take(50).collect();
                        return Err(Broken::bad(format!("holds &{name};, which XML alone does not know")));
                    };
                    self.text.clear();
                    self.text.push(character);
                    return Ok(Step::Text);
                }
                Event::DocType(_) => {
                    return Err(Broken::bad(
                        "has a DOCTYPE, which no result of OpenSCAP has; it is refused because what it defines can swell \
                         without end",
                    ));
                }
                Event::Eof if self.depth > 0 || !self.has_root => return Err(Broken::Truncated),
                Event::Eof => return Ok(Step::Eof),
                Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            }
        }
    }

    /// To the end of the element that just started. What stands in it is not looked at, and most of a document is skipped.
    pub(super) fn skip(&mut self) -> Result<(), Broken> {
        let inside = self.depth;
        while self.depth >= inside {
            match event(&mut self.reader, &mut self.buffer)? {
                Event::Start(_) => self.depth = deeper(self.depth)?,
                Event::End(_) => self.depth = self.depth.saturating_sub(1),
                Event::Eof => return Err(Broken::Truncated),
                _ => {}
            }
        }
        Ok(())
    }

    /// An attribute of the element that just started, if it is one we know.
    pub(super) fn attribute(&self, name: &str) -> Result<Option<String>, Broken> {
        let Some(start) = &self.start else { return Ok(None) };
        let no = |error: &dyn std::fmt::Display| {
            Broken::bad(format!("has an attribute {name} that cannot be read: {error}"))
        };
        let Some(attribute) = start.try_get_attribute(name).map_err(|error| no(&error))? else {
            return Ok(None);
        };
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|error| no(&error))?;
        Ok(Some(value.into_owned()))
    }

    /// Of the last step.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// How many elements are open.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// The namespace of a Benchmark or `TestResult` that is not of XCCDF 1.2, if there was one.
    pub(super) fn other_xccdf(&self) -> Option<&str> {
        self.other_xccdf.as_deref()
    }
}

fn event<'b, R: BufRead>(
    reader: &mut NsReader<Measured<R>>,
    buffer: &'b mut Vec<u8>,
) -> Result<Event<'b>, Broken> {
    buffer.clear();
    reader.get_mut().step = 0;
    match reader.read_event_into(buffer) {
        Ok(event) => Ok(event),
        Err(error) => Err(explain(&error, reader.get_ref())),
    }
}

fn deeper(depth: usize) -> Result<usize, Broken> {
    if depth == MAX_DEPTH {
        return Err(Broken::bad(format!("has elements nested more than {MAX_DEPTH} deep")));
    }
    Ok(depth + 1)
}

fn tag_of<R>(reader: &NsReader<R>, name: QName<'_>, other_xccdf: &mut Option<String>) -> Tag {
    let (space, name) = reader.resolver().resolve_element(name);
    let space = match space {
        ResolveResult::Bound(Namespace(space)) => space,
        _ => "",
    };
    let name = name.into_inner();
    if space != XCCDF && ["Benchmark", "TestResult"].contains(&name) && other_xccdf.is_none() {
        *other_xccdf = Some(space.chars().take(200).collect());
    }
    Tag::of(space, name)
}

/// What went wrong: with us, with the file, or with what stands in it.
fn explain<R>(error: &Error, document: &Measured<R>) -> Broken {
    if document.stop.is_cancelled() {
        return Broken::Unwanted;
    }
    match error {
        Error::Io(error) => Broken::of(error),
        // A character that begins and does not end is where it was cut off.
        Error::Encoding(EncodingError::Utf8(error)) if error.error_len().is_none() && document.ended => {
            Broken::Truncated
        }
        Error::Encoding(_) => Broken::bad("is not in UTF-8"),
        _ if document.ended => Broken::Truncated,
        error => Broken::Bad(format!("is not well-formed: {error}")),
    }
}

/// Looks between so many pieces, as the parser takes them, cost nothing beside the parsing; a look at the token locks it.
const PIECES_PER_LOOK: u32 = 256;

/// Measures each step.
struct Measured<R> {
    document: R,
    stop: CancellationToken,
    pieces: u32,
    step: usize,
    ended: bool,
}

impl<R: BufRead> BufRead for Measured<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.pieces.is_multiple_of(PIECES_PER_LOOK) && self.stop.is_cancelled() {
            return Err(io::Error::other("is not wanted any more"));
        }
        self.pieces = self.pieces.wrapping_add(1);
        if self.step > MAX_STEP {
            return Err(io::Error::other(format!("holds one text or tag of more than {MAX_STEP} bytes")));
        }
        let bytes = self.document.fill_buf()?;
        self.ended |= bytes.is_empty();
        Ok(bytes)
    }

    fn consume(&mut self, bytes: usize) {
        self.step += bytes;
        self.document.consume(bytes);
    }
}

impl<R: BufRead> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn walk(document: impl Read) -> Result<(), Broken> {
        let mut xml = Xml::new(BufReader::new(document), CancellationToken::new());
        while xml.next()? != Step::Eof {}
        Ok(())
    }

    fn problem(document: impl Read) -> String {
        match walk(document) {
            Err(Broken::Bad(problem)) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_document_cut_off_anywhere_is_truncated() {
        let whole = "<?xml version=\"1.0\"?>\n<a b='c'><!-- d --><![CDATA[e]]>\u{e9}&amp;f<g/></a>";
        assert_eq!(walk(whole.as_bytes()), Ok(()));
        for end in 0..whole.len() {
            assert_eq!(
                walk(&whole.as_bytes()[..end]),
                Err(Broken::Truncated),
                "{:?}",
                &whole.as_bytes()[..end]
            );
        }
    }

    #[test]
    fn a_doctype_and_an_entity_of_its_own_are_refused() {
        let bomb = "<!DOCTYPE a [<!ENTITY b 'ha'><!ENTITY c '&b;&b;&b;'>]><a>&c;</a>";
        assert!(problem(bomb.as_bytes()).starts_with("has a DOCTYPE"));
        assert!(problem(&b"<a>&c;</a>"[..]).contains("&c;"));
    }

    #[test]
    fn a_text_or_a_tag_without_end_is_given_up_after_a_mebibyte() {
        let endless = |begin: &'static str| begin.as_bytes().chain(io::repeat(b'x').take(1 << 30));
        for begin in ["<a>", "<a b='", "<!--", "<a><![CDATA[", "<!DOCTYPE a [", "<?p "] {
            assert!(problem(endless(begin)).contains("more than 1048576 bytes"), "{begin}");
        }
    }

    #[test]
    fn nesting_without_end_is_given_up() {
        assert!(problem("<a>".repeat(1000).as_bytes()).contains("nested more than 200 deep"));
    }

    #[test]
    fn what_is_no_xml_is_told_so() {
        assert_eq!(problem(&b"%PDF-1.4 and so on"[..]), "is no XML");
        assert_eq!(problem(&b"<a>\xff\xfe</a>"[..]), "is not in UTF-8");
        assert!(problem(&b"<a></b>"[..]).starts_with("is not well-formed"));
        assert!(problem(&b"<a/><a/>"[..]).contains("after its root"));
    }

    #[test]
    fn whoever_is_not_waited_for_any_more_ends_soon() {
        let stop = CancellationToken::new();
        let mut xml = Xml::new(BufReader::new("<a>".as_bytes().chain(io::repeat(b'\n'))), stop.clone());
        xml.next().unwrap();
        stop.cancel();
        assert_eq!(xml.next(), Err(Broken::Unwanted));
    }
}
