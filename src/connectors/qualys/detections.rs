//! The list of hosts and what was found at each, page after page.
//!
//! Hosts come in the order of their numbers, and a page that is full says with which number the next one begins. A host
//! that comes or goes meanwhile moves no other.

use super::api::{Api, Form};
use super::portion::Portion;
use super::wire;
use super::xml::Document;
use crate::connectors::scanner::{Assessment, ScannerError};

const DOING: &str = "list detections";
/// A guess, to begin with: bytes that a host takes. One that was never repaired has hundreds of findings with what was
/// seen of each.
const HOST_BYTES: u64 = 64 << 10;
/// Hosts of a page at most. More are slow to come, and an answer has to come in time.
const MOST: u64 = 1000;

/// The hosts that a question finds.
pub(super) struct Hosts<'a> {
    api: &'a Api,
    form: Form,
    portion: Portion,
    /// Of the page that is read, or is asked for next.
    from: u64,
    page: Option<Document>,
    next: Option<u64>,
    is_over: bool,
}

impl<'a> Hosts<'a> {
    /// `form` chooses hosts and findings.
    pub(super) fn new(api: &'a Api, form: Form) -> Self {
        let portion = Portion::new(api.answer_bytes(), HOST_BYTES, MOST);
        Self { api, form, portion, from: 0, page: None, next: Some(0), is_over: false }
    }

    /// The next host. After an error about one of them others follow; any other is the last.
    pub(super) async fn next(&mut self) -> Option<Result<Assessment, ScannerError>> {
        let next = self.advance().await.transpose();
        if let Some(Err(error)) = &next {
            self.is_over = !matches!(error, ScannerError::Item { .. });
        }
        next
    }

    async fn advance(&mut self) -> Result<Option<Assessment>, ScannerError> {
        while !self.is_over {
            let Some(page) = &mut self.page else {
                match self.next.take() {
                    Some(from) => self.turn(from).await?,
                    None => self.is_over = true,
                }
                continue;
            };
            let Some(node) =
                page.next(&["HOST", "WARNING"]).map_err(|broken| self.api.odd(DOING, &broken))?
            else {
                self.page = None;
                continue;
            };
            if node.name() == "WARNING" {
                self.next = self.api.goes_on(&node, self.from, DOING)?.or(self.next);
                continue;
            }
            return wire::assessment(&node).map(Some).map_err(|problem| {
                self.api.item_problem(format!("host {}", super::text::one_line(node.text("ID"), 50)), problem)
            });
        }
        Ok(None)
    }

    async fn turn(&mut self, from: u64) -> Result<(), ScannerError> {
        self.from = from;
        loop {
            let mut form = self.form.clone();
            form.push(("truncation_limit", self.portion.now().to_string()));
            if from > 0 {
                form.push(("id_min", from.to_string()));
            }
            let call = Api::list("asset/host/vm/detection/", &form);
            if let Some(page) = self.api.try_list(call, "HOST_LIST_VM_DETECTION_OUTPUT", DOING).await? {
                self.portion.grow(page.bytes(), self.api.answer_bytes());
                self.page = Some(page);
                return Ok(());
            }
            if !self.portion.shrink() {
                return Err(self.api.too_long("list the detections of one host"));
            }
        }
    }
}
