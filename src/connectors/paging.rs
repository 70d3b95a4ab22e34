//! Page after page, as the source says where the next one is.
//!
//! An API that answers fewer items than were asked for skips nothing: an offset advances by what came. An API that
//! sends the same page again ends as an error, not as a job without an end.

use super::call::{Answer, Call};
use super::client::SourceClient;
use super::error::ClientError;
use http::header::LINK;
use http::{HeaderMap, Method};
use serde_json::Value;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use url::Url;

/// How a source tells where the next page is.
///
/// ```no_run
/// use rosterd::connectors::{Call, Paging};
/// use rosterd::job::{JobContext, JobError, Outcome};
///
/// async fn count_open_issues(ctx: JobContext) -> Result<Outcome, JobError> {
///     let client = ctx.client(ctx.in_source()?)?;
///     let search = Call::get("/rest/api/2/search").query("jql", "status = Open").query("maxResults", 100);
///     let mut pages = client.pages(search, Paging::offset("startAt", "/issues").total("/total"));
///     let mut open = 0;
///     while let Some(page) = pages.next().await? {
///         open += page.items.len();
///         ctx.progress(format!("{open} issues"));
///     }
///     Ok(Outcome::with_result(serde_json::json!({ "open": open })))
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Paging {
    way: Way,
    /// JSON pointer to the array of items; "" is the whole answer.
    items: String,
    max_pages: usize,
}

#[derive(Debug, Clone)]
enum Way {
    Offset { parameter: String, total: Option<String> },
    Cursor { parameter: String, next: String },
    Link,
}

/// One page.
#[derive(Debug)]
pub struct Page {
    /// Its items, in their order.
    pub items: Vec<Value>,
    /// The answer it came in.
    pub answer: Answer,
}

/// The pages of a call, see [`SourceClient::pages`].
#[derive(Debug)]
pub struct Pages {
    client: SourceClient,
    paging: Paging,
    /// Of the next page; `None` once there is none.
    next: Option<Call>,
    offset: u64,
    /// Asked for so far.
    count: usize,
    seen: HashSet<String>,
    last: Option<u64>,
}

impl Paging {
    /// Pages at most, unless [`Paging::max_pages`] says otherwise.
    pub const MAX_PAGES: usize = 10_000;

    fn new(way: Way, items: impl Into<String>) -> Self {
        Self { way, items: items.into(), max_pages: Self::MAX_PAGES }
    }

    /// The query parameter `parameter` counts the items before the page, from 0. Ends with an empty page. `items` is
    /// the JSON pointer of the array of items, such as `/issues`.
    pub fn offset(parameter: impl Into<String>, items: impl Into<String>) -> Self {
        Self::new(Way::Offset { parameter: parameter.into(), total: None }, items)
    }

    /// With the JSON pointer of the number of all items, such as `/total`: saves asking for the empty page.
    #[must_use]
    pub fn total(mut self, pointer: impl Into<String>) -> Self {
        if let Way::Offset { total, .. } = &mut self.way {
            *total = Some(pointer.into());
        }
        self
    }

    /// The query parameter `parameter` is what the answer held at the JSON pointer `next`, a text or a number. Ends
    /// where that is missing, null or empty; an empty page with a cursor goes on, because filters leave such pages.
    pub fn cursor(parameter: impl Into<String>, next: impl Into<String>, items: impl Into<String>) -> Self {
        Self::new(Way::Cursor { parameter: parameter.into(), next: next.into() }, items)
    }

    /// The header `Link` with `rel="next"` (RFC 8288) names the next page, on the same host and below the same Address:
    /// credentials go nowhere else. Ends where there is none.
    pub fn link(items: impl Into<String>) -> Self {
        Self::new(Way::Link, items)
    }

    /// With another bound on the number of pages; more are an error.
    #[must_use]
    pub fn max_pages(mut self, max_pages: usize) -> Self {
        self.max_pages = max_pages;
        self
    }
}

impl Pages {
    pub(super) fn new(client: SourceClient, mut call: Call, paging: Paging) -> Self {
        if let Way::Offset { parameter, .. } = &paging.way {
            put(&mut call, parameter, "0");
        }
        Self { client, paging, next: Some(call), offset: 0, count: 0, seen: HashSet::new(), last: None }
    }

    /// The next page, or `None` after the last. Any status but 2xx is an error, as is a page that was cut, holds no
    /// items where they should be, or came before.
    pub async fn next(&mut self) -> Result<Option<Page>, ClientError> {
        let Some(call) = self.next.take() else { return Ok(None) };
        let url = self.client.url(&call)?;
        if self.count >= self.paging.max_pages {
            let problem = format!("there are more than {} pages", self.paging.max_pages);
            return Err(self.wrong(&call.method, &url, problem));
        }
        self.count += 1;
        let answer = self.client.call(call.clone()).await?;
        let page =
            self.read(&call, &url, answer).map_err(|problem| self.wrong(&call.method, &url, problem))?;
        Ok(page)
    }

    /// All items of all pages that are left.
    pub async fn all_items(mut self) -> Result<Vec<Value>, ClientError> {
        let mut all = Vec::new();
        while let Some(page) = self.next().await? {
            all.extend(page.items);
        }
        Ok(all)
    }

    fn wrong(&self, method: &Method, url: &Url, problem: String) -> ClientError {
        ClientError::Answer { call: self.client.name(method, url), problem: self.client.mask(&problem) }
    }

    fn read(&mut self, call: &Call, url: &Url, answer: Answer) -> Result<Option<Page>, String> {
        if !answer.status.is_success() {
            return Err(format!("page {} has status {}", self.count, answer.status));
        }
        if answer.truncated {
            return Err(format!(
                "page {} is longer than `sources.response_max_bytes`; ask for smaller pages",
                self.count
            ));
        }
        let mut body: Value = serde_json::from_slice(&answer.body)
            .map_err(|error| format!("page {} is no JSON: {error}", self.count))?;
        let cursor = match &self.paging.way {
            Way::Cursor { next, .. } => cursor_in(&body, next)?,
            _ => None,
        };
        let total = match &self.paging.way {
            Way::Offset { total: Some(pointer), .. } => {
                Some(body.pointer(pointer).and_then(Value::as_u64).ok_or_else(|| {
                    format!("page {} has no number of all items at {pointer:?}", self.count)
                })?)
            }
            _ => None,
        };
        let Some(Value::Array(items)) = body.pointer_mut(&self.paging.items).map(Value::take) else {
            return Err(format!("page {} has no array at {:?}", self.count, self.paging.items));
        };
        self.is_new(&items)?;
        self.next = match &self.paging.way {
            Way::Offset { parameter, .. } => {
                self.offset += items.len() as u64;
                if items.is_empty() {
                    // Nothing came, and nothing is handed on.
                    return match total {
                        Some(total) if total > self.offset => Err(format!(
                            "it says that there are {total} items, and gives no more than {}",
                            self.offset
                        )),
                        _ => Ok(None),
                    };
                }
                let is_last = total.is_some_and(|total| self.offset >= total);
                (!is_last).then(|| with(call, parameter, &self.offset.to_string()))
            }
            Way::Cursor { parameter, .. } => match cursor {
                None => None,
                Some(cursor) if self.seen.insert(cursor.clone()) => Some(with(call, parameter, &cursor)),
                Some(_) => return Err(format!("page {} names a page that was read already", self.count)),
            },
            Way::Link => match next_link(&answer.headers) {
                None => None,
                Some(link) => {
                    let next = url.join(&link).map_err(|error| format!("its Link is no URL: {error}"))?;
                    self.seen.insert(url.to_string());
                    if self.seen.contains(next.as_str()) {
                        return Err(format!("page {} names a page that was read already", self.count));
                    }
                    let path = self.client.path_of(&next).ok_or_else(|| {
                        let host = next.host_str().unwrap_or_default();
                        format!("its Link leads out of the source's Address, to {}://{host}", next.scheme())
                    })?;
                    Some(Call { path, query: Vec::new(), ..call.clone() })
                }
            },
        };
        Ok(Some(Page { items, answer }))
    }

    /// The same items as on the page before: the source does not look at what it was asked for.
    fn is_new(&mut self, items: &[Value]) -> Result<(), String> {
        if items.is_empty() {
            return Ok(());
        }
        let mut hasher = DefaultHasher::new();
        for item in items {
            item.to_string().hash(&mut hasher);
        }
        let hash = Some(hasher.finish());
        if self.last == hash {
            return Err(format!("page {} is the page before it once more", self.count));
        }
        self.last = hash;
        Ok(())
    }
}

/// `None` where there is no next page.
fn cursor_in(body: &Value, pointer: &str) -> Result<Option<String>, String> {
    match body.pointer(pointer) {
        None | Some(Value::Null | Value::Bool(false)) => Ok(None),
        Some(Value::String(cursor)) => Ok(Some(cursor.clone()).filter(|cursor| !cursor.is_empty())),
        Some(Value::Number(cursor)) => Ok(Some(cursor.to_string())),
        Some(_) => Err(format!("what stands at {pointer:?} is no cursor")),
    }
}

/// The call with this parameter instead of any of that name.
fn with(call: &Call, parameter: &str, value: &str) -> Call {
    let mut call = call.clone();
    put(&mut call, parameter, value);
    call
}

fn put(call: &mut Call, parameter: &str, value: &str) {
    call.query.retain(|(name, _)| name != parameter);
    call.query.push((parameter.to_owned(), value.to_owned()));
}

/// The target of the first link whose relations hold `next`.
fn next_link(headers: &HeaderMap) -> Option<String> {
    headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()).find_map(next_in)
}

fn next_in(mut text: &str) -> Option<String> {
    loop {
        let (target, rest) = text.split_once('<')?.1.split_once('>')?;
        let end = end_of_parameters(rest);
        let is_next = rest[..end].split(';').any(|parameter| {
            let Some((name, value)) = parameter.split_once('=') else { return false };
            name.trim().eq_ignore_ascii_case("rel")
                && value
                    .trim()
                    .trim_matches('"')
                    .split_whitespace()
                    .any(|rel| rel.eq_ignore_ascii_case("next"))
        });
        if is_next {
            return Some(target.trim().to_owned());
        }
        text = &rest[end..];
    }
}

/// The comma before the next link, which is not one within quotes.
fn end_of_parameters(text: &str) -> usize {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_next_link_is_found_among_others() {
        let next = |text: &str| next_in(text);
        assert_eq!(next(r#"<https://h/x?page=2>; rel="next""#).unwrap(), "https://h/x?page=2");
        assert_eq!(
            next(r#"</a,b>; rel="prev", </c;d>; title="x, <y>; rel=next"; rel="last next""#).unwrap(),
            "/c;d"
        );
        assert_eq!(next("<2>; REL=next").unwrap(), "2");
        assert_eq!(next(r#"<x>; rel="nextish", <y>; rel=prev"#), None);
        for odd in ["", "<", "<>", "x; rel=next", "<x", "<x>; rel", ",,,", "<x>; rel=\"next"] {
            let _ = next(odd);
        }
    }

    #[test]
    fn a_cursor_is_a_text_or_a_number() {
        let at = |body: Value| cursor_in(&body, "/next");
        assert_eq!(at(json!({"next": "abc"})), Ok(Some("abc".to_owned())));
        assert_eq!(at(json!({"next": 7})), Ok(Some("7".to_owned())));
        for end in [json!({}), json!({"next": null}), json!({"next": ""}), json!({"next": false})] {
            assert_eq!(at(end), Ok(None));
        }
        assert!(at(json!({"next": ["a"]})).is_err());
    }

    proptest! {
        #[test]
        fn no_link_header_breaks_the_reader(text in "[<>;,=\" a-z]{0,60}") {
            let _ = next_in(&text);
        }
    }
}
