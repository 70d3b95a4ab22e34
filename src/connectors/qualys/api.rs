//! Calls of Qualys' API, version 2.0.

use super::refusal::Refusal;
use super::xml::{Broken, Document, Node};
use crate::connectors::scanner::ScannerError;
use crate::connectors::{Answer, Call, HeaderValue, Method, SourceClient, StatusCode, Url};
use http::header::CONTENT_TYPE;
use url::form_urlencoded;

/// Parameters of a call.
pub(super) type Form = Vec<(&'static str, String)>;

/// Qualys, as this source reaches it.
#[derive(Debug)]
pub(super) struct Api {
    client: SourceClient,
}

/// What Qualys answered.
pub(super) enum Said {
    /// A list.
    List(Document),
    /// The RESPONSE of a `SIMPLE_RETURN`.
    Simple(Node),
    /// More than `sources.response_max_bytes`.
    TooLong,
}

impl Api {
    pub(super) fn new(client: SourceClient) -> Self {
        Self { client }
    }

    /// An error about this source.
    pub(super) fn source_problem(&self, problem: impl Into<String>) -> ScannerError {
        let source = self.client.source();
        ScannerError::Source {
            name: format!("{} ({})", source.source, source.id),
            problem: self.client.mask(&problem.into()),
        }
    }

    /// An error about one thing of many.
    pub(super) fn item_problem(&self, item: impl Into<String>, problem: impl Into<String>) -> ScannerError {
        ScannerError::Item {
            item: self.client.mask(&item.into()),
            problem: self.client.mask(&problem.into()),
        }
    }

    /// An answer that does not make sense.
    pub(super) fn odd(&self, doing: &str, broken: &Broken) -> ScannerError {
        let problem = format!("Qualys was asked to {doing}, and the answer {}", broken.0);
        ScannerError::Answer(self.client.mask(&problem))
    }

    /// The most bytes of an answer that are read.
    pub(super) fn answer_bytes(&self) -> usize {
        self.client.response_max_bytes()
    }

    /// A call that asks, `path` behind `/api/2.0/fo/`. Lists of addresses are long, so parameters go into the body.
    pub(super) fn list(path: &str, form: &[(&'static str, String)]) -> Call {
        Self::act(path, "list", form).idempotent()
    }

    /// A call that does something.
    pub(super) fn act(path: &str, action: &str, form: &[(&'static str, String)]) -> Call {
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.append_pair("action", action).extend_pairs(form);
        let mut call = named(Call::new(Method::POST, format!("/api/2.0/fo/{path}")));
        call.body = Some(body.finish().into());
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        call.headers.insert(CONTENT_TYPE, form);
        call
    }

    /// A call that asks with GET.
    pub(super) fn get(path: &str, form: &[(&'static str, String)]) -> Call {
        let call = Call::get(format!("/api/2.0/fo/{path}")).query("action", "list");
        named(form.iter().fold(call, |call, (name, value)| call.query(*name, value)))
    }

    /// Calls, and tells a refusal from an answer. `doing` finishes "Qualys refused to ".
    pub(super) async fn try_call(
        &self,
        call: Call,
        doing: &'static str,
    ) -> Result<Result<Said, Refusal>, ScannerError> {
        let answer = self.client.call(call).await?;
        let (status, headers) = (answer.status, answer.headers.clone());
        let refusal = |code, text: &str| Refusal::new(status, &headers, code, text, doing);
        if status == StatusCode::OK && answer.truncated {
            return Ok(Ok(Said::TooLong));
        }
        match read(answer) {
            // Errors come with the status of success as well.
            Ok(Said::Simple(response)) => match response.text("CODE").parse().unwrap_or(0) {
                0 if status == StatusCode::OK => Ok(Ok(Said::Simple(response))),
                code => Ok(Err(refusal(code, response.text("TEXT")))),
            },
            Ok(said) if status == StatusCode::OK => Ok(Ok(said)),
            Err(broken) if status == StatusCode::OK => Err(self.odd(doing, &broken)),
            Ok(_) | Err(_) => Ok(Err(refusal(0, ""))),
        }
    }

    /// A list with this root element; `None` if it is too long to be read.
    pub(super) async fn try_list(
        &self,
        call: Call,
        root: &str,
        doing: &'static str,
    ) -> Result<Option<Document>, ScannerError> {
        match self.try_call(call, doing).await?.map_err(|refusal| self.refused(&refusal))? {
            Said::TooLong => Ok(None),
            Said::List(document) if document.root() == root => Ok(Some(document)),
            Said::List(document) => {
                let problem =
                    format!("is a {} instead of a {root}; does Address lead to Qualys?", document.root());
                Err(self.odd(doing, &Broken(problem)))
            }
            Said::Simple(_) => Err(self.odd(doing, &Broken(format!("has no {root}")))),
        }
    }

    /// The same; a list that is too long is an error.
    pub(super) async fn all(
        &self,
        call: Call,
        root: &str,
        doing: &'static str,
    ) -> Result<Document, ScannerError> {
        self.try_list(call, root, doing).await?.ok_or_else(|| self.too_long(doing))
    }

    /// What only whoever sets `sources.response_max_bytes` can help.
    pub(super) fn too_long(&self, doing: &str) -> ScannerError {
        self.source_problem(format!(
            "Qualys was asked to {doing}, and the answer is longer than `sources.response_max_bytes` ({}); raise it",
            self.answer_bytes()
        ))
    }

    /// The number from which a list goes on that was truncated after `from`, as its warning says.
    ///
    /// Nothing else is taken from the address in it: the question stays ours. An address elsewhere is an error, because
    /// its answers might be those of somebody else.
    pub(super) fn goes_on(
        &self,
        warning: &Node,
        from: u64,
        doing: &str,
    ) -> Result<Option<u64>, ScannerError> {
        let text = warning.text("URL");
        if text.is_empty() {
            return Ok(None);
        }
        let url = Url::parse(text)
            .map_err(|_| self.odd(doing, &Broken("names a next page that is no address".into())))?;
        if self.client.path_of(&url).is_none() {
            return Err(self.source_problem(format!(
                "Qualys was asked to {doing}, and says that the next page is at {}, which is not below Address; nothing \
                 is sent there. If that is Qualys, give it as Address",
                url.host_str().unwrap_or_default()
            )));
        }
        let next =
            url.query_pairs().find(|(name, _)| name == "id_min").and_then(|(_, value)| value.parse().ok());
        match next {
            Some(next) if next > from => Ok(Some(next)),
            _ => Err(self.odd(doing, &Broken("names a next page that is not behind this one".to_owned()))),
        }
    }

    /// The error that a refusal is.
    pub(super) fn refused(&self, refusal: &Refusal) -> ScannerError {
        if refusal.is_passing() {
            return ScannerError::Answer(self.client.mask(&refusal.sentence()));
        }
        self.source_problem(refusal.sentence())
    }
}

/// Qualys takes no call without this header: a page in a browser cannot send it.
fn named(mut call: Call) -> Call {
    call.headers.insert("x-requested-with", HeaderValue::from_static("rosterd"));
    call
}

fn read(answer: Answer) -> Result<Said, Broken> {
    let mut document = Document::open(answer.body)?;
    if document.root() != "SIMPLE_RETURN" {
        return Ok(Said::List(document));
    }
    let response = document.next(&["RESPONSE"])?.ok_or_else(|| Broken("holds no RESPONSE".to_owned()))?;
    Ok(Said::Simple(response))
}
