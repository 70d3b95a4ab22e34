//! `Rule`: what is checked, why, and what to do about it.

use super::prose::{Values, line, one_line, prose};
use super::results::{MAX_ID, severity};
use super::xml::{Broken, Step, Tag, Xml};
use crate::connectors::scanner::{Reference, ReferenceKind, Vulnerability};
use std::io::BufRead;

/// Of a title in characters.
const MAX_TITLE: usize = 1000;
/// Of a reference in characters.
const MAX_REFERENCE: usize = 2048;
/// Of one rule. Published rules have some dozens.
const MAX_REFERENCES: usize = 1000;
/// The system of a fix that a person can read and a shell can run.
const SHELL: &str = "urn:xccdf:fix:script:sh";

/// Reads a whole document, and gives the rules that are wanted to `emit`, each as often as it stands there.
pub(super) fn read<R: BufRead>(
    xml: &mut Xml<R>,
    values: &Values,
    mut wanted: impl FnMut(&str) -> bool,
    mut emit: impl FnMut(Vulnerability) -> Result<(), Broken>,
) -> Result<(), Broken> {
    // The groups that are open: their depths, and titles once they are known.
    let mut groups: Vec<(usize, String)> = Vec::new();
    loop {
        match xml.next()? {
            Step::Eof => return Ok(()),
            Step::Start(Tag::Group) => groups.push((xml.depth(), String::new())),
            Step::End(Tag::Group) => drop(groups.pop()),
            Step::Start(Tag::Title) => {
                let depth = xml.depth();
                let title = line(xml, values, MAX_TITLE)?;
                if let Some((_, of_group)) =
                    groups.last_mut().filter(|(group, title)| depth == group + 1 && title.is_empty())
                {
                    *of_group = title;
                }
            }
            Step::Start(Tag::Rule) => match xml.attribute("id")? {
                Some(id) if !id.is_empty() && id.chars().count() <= MAX_ID && wanted(&id) => {
                    let category = groups.last().map(|(_, title)| title.clone());
                    emit(rule(xml, id, category.filter(|title| !title.is_empty()), values)?)?;
                }
                _ => xml.skip()?,
            },
            Step::Start(Tag::TestResult) => xml.skip()?,
            Step::Start(_) | Step::End(_) | Step::Text => {}
        }
    }
}

/// What is known of a rule that only a result names.
pub(super) fn unknown_rule(id: &str) -> Vulnerability {
    Vulnerability::bare(id)
}

fn rule<R: BufRead>(
    xml: &mut Xml<R>,
    id: String,
    category: Option<String>,
    values: &Values,
) -> Result<Vulnerability, Broken> {
    let inside = xml.depth();
    let word = xml.attribute("severity")?.unwrap_or_default();
    let mut rule = Vulnerability { severity: severity(&word), category, ..unknown_rule(&id) };
    rule.title.clear();
    let (mut fixtext, mut script, mut fix) = (String::new(), String::new(), String::new());
    while xml.depth() >= inside {
        match xml.next()? {
            Step::Start(Tag::Title) => keep(&mut rule.title, line(xml, values, MAX_TITLE)?),
            Step::Start(Tag::Description) => keep(&mut rule.description, prose(xml, values)?),
            Step::Start(Tag::Rationale) => keep(&mut rule.threat, prose(xml, values)?),
            Step::Start(Tag::Fixtext) => keep(&mut fixtext, prose(xml, values)?),
            Step::Start(Tag::Fix) => {
                let is_script = xml.attribute("system")?.as_deref() == Some(SHELL);
                keep(if is_script { &mut script } else { &mut fix }, prose(xml, values)?);
            }
            Step::Start(tag @ (Tag::Ident | Tag::Reference)) => {
                let place = xml.attribute(if tag == Tag::Ident { "system" } else { "href" })?;
                let place = one_line(&place.unwrap_or_default(), MAX_REFERENCE);
                let text = line(xml, values, MAX_REFERENCE)?;
                for reference in references(tag, &place, text) {
                    if rule.references.len() < MAX_REFERENCES && !rule.references.contains(&reference) {
                        rule.references.push(reference);
                    }
                }
            }
            // Warnings and the like have texts of their own that are none of these.
            Step::Start(_) => xml.skip()?,
            Step::End(_) | Step::Text | Step::Eof => {}
        }
    }
    rule.solution = [fixtext, script, fix].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    if rule.title.is_empty() {
        rule.title = id;
    }
    Ok(rule)
}

/// The first that says something: others are the same in other languages.
fn keep(place: &mut String, text: String) {
    if place.is_empty() {
        *place = text;
    }
}

/// What an `ident` or `reference` refers to. All CVEs in its text, or the text as a whole.
fn references(tag: Tag, place: &str, text: String) -> Vec<Reference> {
    let cves = cves(&text);
    if !cves.is_empty() {
        return cves.into_iter().map(|text| Reference { kind: ReferenceKind::Cve, text }).collect();
    }
    let is_cce = tag == Tag::Ident && place.to_ascii_lowercase().contains("cce");
    let text = match (text.is_empty(), tag == Tag::Ident || place.is_empty()) {
        (true, true) => return Vec::new(),
        (true, false) => place.to_owned(),
        (false, true) => text,
        (false, false) => format!("{text} ({place})").chars().take(MAX_REFERENCE).collect(),
    };
    vec![Reference { kind: if is_cce { ReferenceKind::Cce } else { ReferenceKind::Vendor }, text }]
}

/// Every `CVE-YYYY-NNNN`, with as many digits as it has.
fn cves(text: &str) -> Vec<String> {
    let text = text.to_ascii_uppercase();
    text.match_indices("CVE-")
        .filter_map(|(at, _)| {
            let (year, rest) = text[at + 4..].split_once('-')?;
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let is_year = year.len() == 4 && year.bytes().all(|b| b.is_ascii_digit());
            (is_year && (4..=19).contains(&digits)).then(|| format!("CVE-{year}-{}", &rest[..digits]))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connectors::scanner::Severity;
    use tokio_util::sync::CancellationToken;

    fn rules(inner: &str) -> Vec<Vulnerability> {
        let document = format!("<Benchmark xmlns='http://checklists.nist.gov/xccdf/1.2'>{inner}</Benchmark>");
        let mut xml = Xml::new(document.as_bytes(), CancellationToken::new());
        let mut rules = Vec::new();
        read(
            &mut xml,
            &Values::new(),
            |_| true,
            |rule| {
                rules.push(rule);
                Ok(())
            },
        )
        .unwrap();
        rules
    }

    #[test]
    fn a_rule_has_the_title_of_its_nearest_group_as_category() {
        let rules = rules(
            "<Group><title>A</title><Group><title>B</title><Rule id='r1'><title>One
             line</title></Rule></Group><Rule id='r2'/></Group><Rule id='r3' severity='spicy'/>",
        );
        let seen: Vec<_> = rules.iter().map(|r| (r.title.as_str(), r.category.as_deref())).collect();
        assert_eq!(seen, [("One line", Some("B")), ("r2", Some("A")), ("r3", None)]);
        assert_eq!(rules[2].severity, Severity::Unknown);
    }

    #[test]
    fn a_solution_is_words_before_a_script_before_anything_else() {
        let fixes = "<fix system='urn:xccdf:fix:script:ansible'>yaml</fix><fix system='urn:xccdf:fix:script:sh'>sh</fix>";
        let solution = |inner: &str| rules(&format!("<Rule id='r'>{inner}</Rule>"))[0].solution.clone();
        assert_eq!(solution(&format!("{fixes}<fixtext>words</fixtext>")), "words");
        assert_eq!(solution(fixes), "sh");
        assert_eq!(solution("<fix system='urn:xccdf:fix:script:ansible'>yaml</fix>"), "yaml");
    }

    #[test]
    fn references_are_told_apart_and_named_once() {
        let rules = rules(
            "<Rule id='r'><ident system='https://ncp.nist.gov/cce'>CCE-80844-4</ident><ident
             system='http://cve.mitre.org'>CVE-2024-12345</ident><reference href='https://x'>see cve-2024-12345 and
             CVE-2023-0001, not CVE-20-1</reference><reference href='https://x/'>12</reference><reference
             href='https://x/'>12</reference><reference>alone</reference><reference href='https://y/'/></Rule>",
        );
        let seen: Vec<_> = rules[0].references.iter().map(|r| (r.kind, r.text.as_str())).collect();
        assert_eq!(
            seen,
            [
                (ReferenceKind::Cce, "CCE-80844-4"),
                (ReferenceKind::Cve, "CVE-2024-12345"),
                (ReferenceKind::Cve, "CVE-2023-0001"),
                (ReferenceKind::Vendor, "12 (https://x/)"),
                (ReferenceKind::Vendor, "alone"),
                (ReferenceKind::Vendor, "https://y/"),
            ]
        );
    }
}
