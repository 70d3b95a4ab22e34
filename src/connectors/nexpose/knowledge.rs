//! What the console knows of vulnerabilities, with their solutions and references.

use super::Nexpose;
use super::assessments::until_failure;
use super::asset::day;
use super::pages::Pages;
use super::prose;
use super::rest::{Failure, Rest, part};
use super::wire::{self, KnownVulnerability, Resources, VulnerabilityReference};
use crate::connectors::scanner::{Reference, ReferenceKind, ScannerError, Severity, Vulnerability};
use chrono::{DateTime, Days, NaiveDate, Utc};
use futures_util::future::{self, BoxFuture};
use futures_util::stream::{BoxStream, StreamExt};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Before the day that was asked for. `modified` is when the vendor changed an entry; the console learns of it with an
/// update of its content, days later.
const OVERLAP: Days = Days::new(7);
const VULNERABILITIES: usize = 256;
const REFERENCES: usize = 256;
/// Solutions kept; one upgrade is the solution of many vulnerabilities.
const KEPT: usize = 20_000;
/// A title, in characters.
const MAX_TITLE: usize = 255;
/// The scanner's identifier of a vulnerability, in characters.
const MAX_ID: usize = 255;
/// A category, and what is affected, in characters.
const MAX_LINE: usize = 255;

/// A solution, as it is told.
#[derive(Debug)]
struct Remedy {
    text: String,
    software: String,
    is_patch: bool,
}

/// The solutions that were asked for in this run.
#[derive(Debug, Default)]
pub(super) struct Remedies {
    kept: Mutex<HashMap<String, Arc<Remedy>>>,
}

/// See [`crate::connectors::scanner::Scanner::knowledge`].
pub(super) fn stream(
    nexpose: &Nexpose,
    since: Option<DateTime<Utc>>,
) -> BoxStream<'_, Result<Vulnerability, ScannerError>> {
    let rest = &nexpose.rest;
    let from = since.and_then(|since| since.date_naive().checked_sub_days(OVERLAP));
    let known = Pages::new(
        rest,
        "vulnerabilities".to_owned(),
        VULNERABILITIES,
        "list vulnerabilities",
        |known: &KnownVulnerability, _| known.id.clone(),
    )
    .query("sort", "id");
    let vulnerabilities = known
        .stream()
        .filter(move |known| future::ready(!matches!(known, Ok(Ok(known)) if is_older(known, from))))
        .map(move |known| -> BoxFuture<'_, Result<Vulnerability, ScannerError>> {
            Box::pin(async move {
                match known {
                    Ok(Ok(known)) => {
                        let item = format!("vulnerability {}", prose::one_line(&known.id, MAX_ID));
                        vulnerability(nexpose, known).await.map_err(|failure| failure.of_item(rest, item))
                    }
                    Ok(Err(problem)) => {
                        Err(ScannerError::Item { item: "a vulnerability of the console".to_owned(), problem })
                    }
                    Err(failure) => Err(failure.into_error(rest)),
                }
            })
        })
        .buffer_unordered(rest.concurrency());
    Box::pin(until_failure(vulnerabilities))
}

/// Whether it is known to have changed before that day. One without a day may have changed.
fn is_older(known: &KnownVulnerability, from: Option<NaiveDate>) -> bool {
    let days = [&known.modified, &known.added].into_iter().flatten();
    match (days.filter_map(|text| day(text)).max(), from) {
        (Some(changed), Some(from)) => changed < from,
        _ => false,
    }
}

async fn vulnerability(nexpose: &Nexpose, known: KnownVulnerability) -> Result<Vulnerability, Failure> {
    let rest = &nexpose.rest;
    let length = known.id.chars().count();
    if length > MAX_ID {
        return Err(Failure::Odd(format!("its identifier has {length} characters, {MAX_ID} are allowed")));
    }
    let path = format!("vulnerabilities/{}", part(&known.id)?);
    let solutions: Resources<String> =
        rest.get_one(&format!("{path}/solutions"), "list the solutions of a vulnerability").await?;
    let mut remedies = Vec::new();
    for id in solutions.resources.iter().collect::<BTreeSet<_>>() {
        remedies.push(nexpose.remedies.get(rest, id).await?);
    }
    let references = Pages::new(
        rest,
        format!("{path}/references"),
        REFERENCES,
        "list the references of a vulnerability",
        |_: &VulnerabilityReference, text| text.to_owned(),
    )
    .all()
    .await?;

    let texts: Vec<&str> =
        remedies.iter().map(|remedy| remedy.text.as_str()).filter(|t| !t.is_empty()).collect();
    let software: BTreeSet<&str> =
        remedies.iter().map(|remedy| remedy.software.as_str()).filter(|s| !s.is_empty()).collect();
    let software = prose::one_line(&software.into_iter().collect::<Vec<_>>().join(", "), MAX_LINE);
    let category = prose::one_line(&known.categories.unwrap_or_default().join(", "), MAX_LINE);
    let score = |score: Option<&wire::Score>| score?.score.filter(|score| (0.0..=10.0).contains(score));
    let cvss = known.cvss.as_ref();
    let title = prose::one_line(&prose::plain(&known.title), MAX_TITLE);
    Ok(Vulnerability {
        title: if title.is_empty() { known.id.clone() } else { title },
        description: prose::of(known.description.as_ref()),
        // The console has no text of its own for it.
        threat: String::new(),
        solution: prose::cut(texts.join("\n\n")),
        severity: severity(known.severity.as_deref().unwrap_or_default()),
        cvss2: score(cvss.and_then(|cvss| cvss.v2.as_ref())),
        cvss3: score(cvss.and_then(|cvss| cvss.v3.as_ref())),
        category: (!category.is_empty()).then_some(category),
        patchable: (!remedies.is_empty()).then(|| remedies.iter().any(|remedy| remedy.is_patch)),
        software: (!software.is_empty()).then_some(software),
        updated: known.modified.as_deref().or(known.added.as_deref()).and_then(super::asset::instant),
        references: references_of(known.cves.unwrap_or_default(), references),
        id: known.id,
    })
}

impl Remedies {
    async fn get(&self, rest: &Rest, id: &str) -> Result<Arc<Remedy>, Failure> {
        if let Some(remedy) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Ok(Arc::clone(remedy));
        }
        let solution: wire::Solution =
            rest.get_one(&format!("solutions/{}", part(id)?), "show a solution").await?;
        let texts = [prose::of(solution.summary.as_ref()), prose::of(solution.steps.as_ref())];
        let texts: Vec<&str> = texts.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        let remedy = Arc::new(Remedy {
            text: texts.join("\n"),
            software: prose::one_line(solution.applies_to.as_deref().unwrap_or_default(), MAX_LINE),
            is_patch: solution.kind.is_some_and(|kind| kind.to_ascii_lowercase().contains("patch")),
        });
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            // Asking again costs a call; keeping everything could cost all the memory there is.
            kept.clear();
        }
        kept.insert(id.to_owned(), Arc::clone(&remedy));
        Ok(remedy)
    }
}

/// The console has three words.
fn severity(word: &str) -> Severity {
    match word.trim().to_ascii_lowercase().as_str() {
        "critical" => Severity::Critical,
        "severe" => Severity::High,
        "moderate" => Severity::Medium,
        _ => Severity::Unknown,
    }
}

/// Each once, in the console's order.
fn references_of(cves: Vec<String>, references: Vec<VulnerabilityReference>) -> Vec<Reference> {
    let cves = cves.into_iter().map(|text| ("cve".to_owned(), text));
    let others = references.into_iter().filter_map(|reference| {
        let text = reference.reference.or_else(|| reference.advisory?.href)?;
        Some((reference.source.unwrap_or_default().to_ascii_lowercase(), text))
    });
    let mut all: Vec<Reference> = Vec::new();
    for (source, text) in cves.chain(others) {
        let text = prose::one_line(&text, 2048);
        let reference = Reference { kind: kind(&source, &text), text };
        if !reference.text.is_empty() && !all.contains(&reference) {
            all.push(reference);
        }
    }
    all
}

fn kind(source: &str, text: &str) -> ReferenceKind {
    let begins =
        |prefix: &str| text.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix));
    let bulletin = begins("MS") && text[2..].starts_with(|c: char| c.is_ascii_digit());
    match source {
        "cve" => ReferenceKind::Cve,
        "cce" => ReferenceKind::Cce,
        "ms" | "mskb" => ReferenceKind::Microsoft,
        _ if begins("CVE-") => ReferenceKind::Cve,
        _ if begins("CCE-") => ReferenceKind::Cce,
        _ if bulletin => ReferenceKind::Microsoft,
        _ => ReferenceKind::Vendor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gave_an_identifier_is_told_by_the_source_or_by_how_it_begins() {
        for (source, text, expected) in [
            ("cve", "2026-1", ReferenceKind::Cve),
            ("nvd", "cve-2026-1", ReferenceKind::Cve),
            ("", "CCE-12-3", ReferenceKind::Cce),
            ("mskb", "4041689", ReferenceKind::Microsoft),
            ("x", "MS17-010", ReferenceKind::Microsoft),
            ("url", "msn", ReferenceKind::Vendor),
            ("redhat", "RHSA-1", ReferenceKind::Vendor),
            ("", "ü", ReferenceKind::Vendor),
        ] {
            assert_eq!(kind(source, text), expected, "{source} {text}");
        }
    }
}
