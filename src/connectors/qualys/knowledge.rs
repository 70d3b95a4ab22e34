//! The knowledge base, range after range of its numbers.
//!
//! Qualys gives all of it at once if it is asked to, which is hundreds of megabytes. A range whose answer would be too
//! long is halved, and one with little in it doubled: the numbers have wide gaps.

use super::api::{Api, Form};
use super::portion::Portion;
use super::wire;
use super::xml::Document;
use crate::connectors::scanner::{ScannerError, Vulnerability};
use chrono::{DateTime, SecondsFormat, Utc};

const DOING: &str = "list its knowledge base";
/// A guess, to begin with: bytes that an entry takes.
const ENTRY_BYTES: u64 = 8 << 10;
/// Numbers of a range at most.
const MOST: u64 = 10_000_000;
/// Above it all are asked for at once. There were none when this was written.
const LAST_RANGE: u64 = 10_000_000;

/// The entries of the knowledge base.
pub(super) struct Entries<'a> {
    api: &'a Api,
    since: Option<DateTime<Utc>>,
    portion: Portion,
    /// Whether everything is tried at once first.
    at_once: bool,
    from: u64,
    page: Option<Document>,
    next: Option<u64>,
    is_over: bool,
}

impl<'a> Entries<'a> {
    /// All of them, or those that changed.
    pub(super) fn new(api: &'a Api, since: Option<DateTime<Utc>>) -> Self {
        let portion = Portion::new(api.answer_bytes(), ENTRY_BYTES, MOST);
        // What changed since is often little, and calls are counted.
        Self {
            api,
            since,
            portion,
            at_once: since.is_some(),
            from: 0,
            page: None,
            next: Some(1),
            is_over: false,
        }
    }

    /// The next entry. After an error about one of them others follow; any other is the last.
    pub(super) async fn next(&mut self) -> Option<Result<Vulnerability, ScannerError>> {
        let next = self.advance().await.transpose();
        if let Some(Err(error)) = &next {
            self.is_over = !matches!(error, ScannerError::Item { .. });
        }
        next
    }

    async fn advance(&mut self) -> Result<Option<Vulnerability>, ScannerError> {
        while !self.is_over {
            let Some(page) = &mut self.page else {
                match self.next.take() {
                    Some(from) => self.turn(from).await?,
                    None => self.is_over = true,
                }
                continue;
            };
            let Some(node) =
                page.next(&["VULN", "WARNING"]).map_err(|broken| self.api.odd(DOING, &broken))?
            else {
                self.page = None;
                continue;
            };
            if node.name() == "WARNING" {
                // Sooner than the end of the range.
                self.next = self.api.goes_on(&node, self.from, DOING)?.or(self.next);
                continue;
            }
            return wire::vulnerability(&node).map(Some).map_err(|problem| {
                self.api.item_problem(format!("QID {}", super::text::one_line(node.text("QID"), 50)), problem)
            });
        }
        Ok(None)
    }

    async fn turn(&mut self, from: u64) -> Result<(), ScannerError> {
        self.from = from;
        loop {
            let last = (!self.at_once)
                .then(|| from.saturating_add(self.portion.now() - 1))
                .filter(|last| *last < LAST_RANGE);
            let mut form: Form = vec![("details", "All".to_owned())];
            if let Some(since) = self.since {
                form.push(("last_modified_after", since.to_rfc3339_opts(SecondsFormat::Secs, true)));
            }
            if !self.at_once {
                form.push(("id_min", from.to_string()));
            }
            form.extend(last.map(|last| ("id_max", last.to_string())));
            let call = Api::list("knowledge_base/vuln/", &form);
            if let Some(page) = self.api.try_list(call, "KNOWLEDGE_BASE_VULN_LIST_OUTPUT", DOING).await? {
                self.portion.grow(page.bytes(), self.api.answer_bytes());
                self.next = last.map(|last| last + 1);
                self.page = Some(page);
                return Ok(());
            }
            let is_smaller = std::mem::take(&mut self.at_once) || from < LAST_RANGE && self.portion.shrink();
            if !is_smaller {
                return Err(self.api.too_long("list one entry of its knowledge base"));
            }
        }
    }
}
