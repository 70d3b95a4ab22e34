//! A JIRA that keeps issues, has a workflow with rules and a search that may lag, and can be told to fail.
//!
//! The shapes are those that Atlassian's public pages of the REST API describe: v2 of Server and Data Center (search by
//! place, texts that are texts, users with names), and v3 of Cloud (search by token, documents, account IDs). What it
//! does not know it refuses, as JIRA does: a field of the wrong shape, a step that is not offered from where an issue
//! is, JQL whose values are not quoted.

mod jql;
mod store;

pub use super::trouble::Trouble;
pub use store::{Step, Store};

use super::api::{Asked, Reply, ScriptedApi};
use super::trouble::{Troubles, suffer};
use serde_json::{Map, Value, json};
use std::sync::{Arc, Mutex};

/// It is answered with this status and these headers.
pub fn refused(status: u16, headers: Vec<(&'static str, String)>) -> Trouble {
    Trouble::Said(Reply::Answer(status, headers, b"{\"errorMessages\": [\"no\"]}".to_vec()))
}

/// It is answered as to anybody: with 200, and with no issue. A header says that logging in failed.
pub fn anonymous() -> Trouble {
    let body = json!({"issues": [], "total": 0, "isLast": true}).to_string().into_bytes();
    let why = vec![("x-seraph-loginreason", "AUTHENTICATED_FAILED".to_owned())];
    Trouble::Said(Reply::Answer(200, why, body))
}

type Meanwhile = Box<dyn FnMut(&mut Store, usize) + Send>;

struct Inner {
    store: Store,
    /// A search answers so many issues at most, whatever was asked for.
    page: usize,
    accepted: Vec<String>,
    troubles: Troubles,
    searches: Vec<String>,
    meanwhile: Option<Meanwhile>,
}

#[derive(Clone)]
pub struct FakeJira {
    pub address: String,
    inner: Arc<Mutex<Inner>>,
}

impl FakeJira {
    pub async fn start(is_cloud: bool) -> Self {
        let inner = Arc::new(Mutex::new(Inner {
            store: Store::new(is_cloud),
            page: 50,
            // svc:canary-1 and a personal access token
            accepted: vec!["Basic c3ZjOmNhbmFyeS0x".to_owned(), "Bearer canary-2".to_owned()],
            troubles: Troubles::default(),
            searches: Vec::new(),
            meanwhile: None,
        }));
        let serving = Arc::clone(&inner);
        let api = ScriptedApi::start(move |asked, _| serving.lock().unwrap().serve(asked)).await;
        Self { address: api.address, inner }
    }

    /// Looks at what it keeps, or changes it.
    pub fn with<T>(&self, look: impl FnOnce(&mut Store) -> T) -> T {
        look(&mut self.inner.lock().unwrap().store)
    }

    /// The next request of this kind (`POST issue`) goes wrong. Troubles of one kind come one after the other.
    pub fn trouble(&self, kind: &str, trouble: Trouble) {
        self.trouble_after(0, kind, trouble);
    }

    /// The one that comes after so many that go well.
    pub fn trouble_after(&self, spared: usize, kind: &str, trouble: Trouble) {
        self.inner.lock().unwrap().troubles.expect(kind, spared, trouble);
    }

    pub fn page(&self, page: usize) {
        self.inner.lock().unwrap().page = page;
    }

    /// After each search, which it gets the number of.
    pub fn meanwhile(&self, meanwhile: impl FnMut(&mut Store, usize) + Send + 'static) {
        self.inner.lock().unwrap().meanwhile = Some(Box::new(meanwhile));
    }

    /// The questions so far.
    pub fn searches(&self) -> Vec<String> {
        self.inner.lock().unwrap().searches.clone()
    }

    pub fn effects(&self) -> Vec<String> {
        self.with(|store| store.effects.clone())
    }
}

impl Inner {
    fn serve(&mut self, asked: &Asked) -> Reply {
        let (path, _) = asked.target.split_once('?').unwrap_or((&asked.target, ""));
        let version = if self.store.is_cloud { "/rest/api/3/" } else { "/rest/api/2/" };
        let Some(path) = path.strip_prefix(version) else {
            return refuse(404, &["null for uri"], json!({}));
        };
        // `GET issue/SEC-1/comment` is of the kind `GET comment`.
        let kind = format!("{} {}", asked.method, path.rsplit('/').next().unwrap_or_default());
        let kind = if path.starts_with("search") { "search".to_owned() } else { kind };
        suffer(self.troubles.meet(&kind), || self.reply(asked, path))
    }

    fn reply(&mut self, asked: &Asked, path: &str) -> Reply {
        let login = asked.headers.get("authorization").is_some_and(|login| self.accepted.contains(login));
        let (status, body) = if login { self.answer(asked, path) } else { (401, json!({})) };
        let mut headers = vec![("content-type", "application/json".to_owned())];
        headers.push(("date", self.store.now.format("%a, %d %b %Y %H:%M:%S GMT").to_string()));
        let body = if status == 204 { Vec::new() } else { body.to_string().into_bytes() };
        Reply::Answer(status, headers, body)
    }

    fn answer(&mut self, asked: &Asked, path: &str) -> (u16, Value) {
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        let done = |result: Result<(), Value>, status: u16| match result {
            Ok(()) => (status, json!({})),
            Err(errors) => (400, json!({"errorMessages": [], "errors": errors})),
        };
        if let ["issue", key, ..] = parts[..]
            && self.store.issue(key).is_none()
        {
            return (404, json!({"errorMessages": ["Issue Does Not Exist"], "errors": {}}));
        }
        match (asked.method.as_str(), &parts[..]) {
            ("GET", ["field"]) => (200, Store::fields()),
            ("GET", ["status"]) => {
                let names =
                    ["Open", "In Progress", "Resolved", "Reopened", "Closed", "Closed-Error", "In Review"];
                (200, names.iter().map(|name| json!({"name": name})).collect())
            }
            ("GET", ["myself"]) => (200, json!({"name": "svc", "timeZone": self.store.zone})),
            ("POST", ["search"]) if !self.store.is_cloud => self.search(&body),
            ("POST", ["search", "jql"]) if self.store.is_cloud => self.search(&body),
            ("POST", ["issue"]) => match self.store.create(&body["fields"]) {
                Ok(key) => (201, json!({"id": "1", "key": key, "self": "x"})),
                Err(errors) => (400, json!({"errorMessages": [], "errors": errors})),
            },
            ("GET", ["issue", key]) => {
                let wanted = asked.parameter("fields").unwrap_or_default().replace("%2C", ",");
                let mut issue = self.show(key, &wanted.split(',').collect::<Vec<_>>());
                if asked.parameter("expand") == Some("editmeta") {
                    issue["editmeta"] = json!({"fields": self.store.editable(key)});
                }
                (200, issue)
            }
            ("PUT", ["issue", key]) => {
                done(self.store.edit(key, body["fields"].as_object().unwrap_or(&Map::new())), 204)
            }
            ("PUT", ["issue", key, "assignee"]) => {
                let word = if self.store.is_cloud { "accountId" } else { "name" };
                let whom = if body[word].is_null() { Value::Null } else { body };
                done(self.store.edit(key, &Map::from_iter([("assignee".to_owned(), whom)])), 204)
            }
            ("GET", ["issue", key, "transitions"]) => (200, self.store.offered(key)),
            ("POST", ["issue", key, "transitions"]) => done(self.store.take_step(key, &body), 204),
            ("GET", ["issue", key, "comment"]) => {
                let start = asked.parameter("startAt").and_then(|start| start.parse().ok()).unwrap_or(0);
                let page = self.page;
                let mut all = self.store.issue(key).unwrap().comments.clone();
                if asked.parameter("orderBy") == Some("-created") {
                    all.reverse();
                }
                let total = all.len();
                let some: Vec<Value> =
                    all.into_iter().skip(start).take(page).map(|body| json!({"body": body})).collect();
                (200, json!({"comments": some, "startAt": start, "maxResults": page, "total": total}))
            }
            ("POST", ["issue", key, "comment"]) => done(self.store.comment(key, &body["body"]), 201),
            _ => (404, json!({"errorMessages": ["null for uri"]})),
        }
    }

    fn show(&mut self, key: &str, fields: &[&str]) -> Value {
        let issue = self.store.issue(key).unwrap();
        let mut all = issue.fields.clone();
        // In a time zone of its own, as JIRA writes times.
        let zone = chrono::FixedOffset::east_opt(7200).unwrap();
        let updated = issue.updated.with_timezone(&zone).format("%Y-%m-%dT%H:%M:%S%.3f%z");
        all.insert("updated".to_owned(), json!(updated.to_string()));
        all.retain(|id, _| fields.contains(&id.as_str()));
        json!({"id": issue.number.to_string(), "key": key, "fields": all})
    }

    fn search(&mut self, body: &Value) -> (u16, Value) {
        let question = body["jql"].as_str().unwrap_or_default().to_owned();
        self.searches.push(question.clone());
        let found = jql::parse(&question)
            .map_err(|why| format!("Error in the JQL Query: {why}"))
            .and_then(|question| question.answer(&self.store));
        let found = match found {
            Ok(found) => found,
            Err(why) => return (400, json!({"errorMessages": [why], "errors": {}})),
        };
        let start = match body["nextPageToken"].as_str() {
            Some(token) => token.trim_start_matches("page-").parse().unwrap(),
            None => usize::try_from(body["startAt"].as_u64().unwrap_or(0)).unwrap(),
        };
        let wanted: Vec<&str> =
            body["fields"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let most = usize::try_from(body["maxResults"].as_u64().unwrap_or(50)).unwrap().min(self.page);
        let total = found.len();
        let issues: Vec<Value> =
            found.into_iter().skip(start).take(most).map(|key| self.show(&key, &wanted)).collect();
        let end = start + issues.len();
        let answer = if self.store.is_cloud {
            let mut answer = json!({"issues": issues, "isLast": end >= total});
            if end < total {
                answer["nextPageToken"] = json!(format!("page-{end}"));
            }
            answer
        } else {
            json!({"issues": issues, "startAt": start, "maxResults": most, "total": total})
        };
        self.store.searched();
        if let Some(mut meanwhile) = self.meanwhile.take() {
            meanwhile(&mut self.store, self.searches.len());
            self.meanwhile = Some(meanwhile);
        }
        (200, answer)
    }
}

fn refuse(status: u16, messages: &[&str], errors: Value) -> Reply {
    let body = json!({"errorMessages": messages, "errors": errors}).to_string().into_bytes();
    Reply::Answer(status, vec![("content-type", "application/json".to_owned())], body)
}
