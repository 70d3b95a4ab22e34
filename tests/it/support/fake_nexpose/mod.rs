//! A Nexpose console that keeps sites, assets, scans and templates, moves its scans along, and can be told to fail.
//!
//! The shapes are those of the vendor's public description of the console's API, version 3: pages counted from 0 with a
//! `page` object beside `resources`, assets whose history names the scans that reached them, findings with results,
//! and refusals with a `message`. What it does not know it refuses, as the console does: a host that is not of the
//! site, a template or an engine there is none of, a number that is a text. Where the public description is silent (may
//! a template go while a scan uses it?) it takes the stricter way.

mod store;

pub use super::trouble::Trouble;
pub use store::Store;

use super::api::{Asked, Reply, ScriptedApi};
use super::trouble::{Troubles, suffer};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// It is answered with this status.
pub fn refused(status: u16) -> Trouble {
    let body = json!({"status": status.to_string(), "message": "An error has occurred."});
    Trouble::Said(reply(status, &body))
}

/// It is answered with this.
pub fn said(body: &Value) -> Trouble {
    Trouble::Said(reply(200, body))
}

type Meanwhile = Box<dyn FnMut(&mut Store, &str) + Send>;

struct Inner {
    store: Store,
    /// A page holds so many items at most, whatever was asked for.
    cap: usize,
    troubles: Troubles,
    meanwhile: Option<Meanwhile>,
}

#[derive(Clone)]
pub struct FakeNexpose {
    pub address: String,
    api: ScriptedApi,
    inner: Arc<Mutex<Inner>>,
}

impl FakeNexpose {
    pub async fn start() -> Self {
        let inner = Inner { store: Store::new(), cap: 500, troubles: Troubles::default(), meanwhile: None };
        let inner = Arc::new(Mutex::new(inner));
        let serving = Arc::clone(&inner);
        let api = ScriptedApi::start(move |asked, _| serving.lock().unwrap().serve(asked)).await;
        Self { address: api.address.clone(), api, inner }
    }

    /// Looks at what it keeps, or changes it.
    pub fn with<T>(&self, look: impl FnOnce(&mut Store) -> T) -> T {
        look(&mut self.inner.lock().unwrap().store)
    }

    /// The next request of this kind (`GET assets/#`: a number is any number) goes wrong. Troubles of one kind come one
    /// after the other.
    pub fn trouble(&self, kind: &str, trouble: Trouble) {
        self.trouble_after(0, kind, trouble);
    }

    /// The one that comes after so many that go well.
    pub fn trouble_after(&self, spared: usize, kind: &str, trouble: Trouble) {
        self.inner.lock().unwrap().troubles.expect(kind, spared, trouble);
    }

    pub fn cap(&self, cap: usize) {
        self.inner.lock().unwrap().cap = cap;
    }

    /// After each request, which it gets the kind of.
    pub fn meanwhile(&self, meanwhile: impl FnMut(&mut Store, &str) + Send + 'static) {
        self.inner.lock().unwrap().meanwhile = Some(Box::new(meanwhile));
    }

    /// The kinds of the requests so far.
    pub fn asked(&self) -> Vec<String> {
        self.api.asked().iter().map(kind).collect()
    }

    /// How many requests were of this kind.
    pub fn count(&self, of: &str) -> usize {
        self.asked().iter().filter(|kind| *kind == of).count()
    }

    /// The last body that was sent with this kind of request.
    pub fn body(&self, of: &str) -> Value {
        let asked = self.api.asked();
        let last = asked.iter().rev().find(|asked| kind(asked) == of).expect("there was one");
        serde_json::from_slice(&last.body).unwrap()
    }
}

/// `GET /api/3/sites/7/assets?page=0` is of the kind `GET sites/#/assets`.
fn kind(asked: &Asked) -> String {
    let path = asked.target.split('?').next().unwrap_or_default().trim_start_matches("/api/3/");
    let part = |part: &str| if part.parse::<i64>().is_ok() { "#".to_owned() } else { part.to_owned() };
    format!("{} {}", asked.method, path.split('/').map(part).collect::<Vec<_>>().join("/"))
}

impl Inner {
    fn serve(&mut self, asked: &Asked) -> Reply {
        let kind = kind(asked);
        suffer(self.troubles.meet(&kind), || self.reply(asked, &kind))
    }

    fn reply(&mut self, asked: &Asked, kind: &str) -> Reply {
        // svc:canary-1
        let login = asked.headers.get("authorization").is_some_and(|login| login == "Basic c3ZjOmNhbmFyeS0x");
        let (status, body) =
            if login { self.answer(asked) } else { (401, json!({"message": "Unauthorized"})) };
        if let Some(mut meanwhile) = self.meanwhile.take() {
            meanwhile(&mut self.store, kind);
            self.meanwhile = Some(meanwhile);
        }
        reply(status, &body)
    }

    fn answer(&mut self, asked: &Asked) -> (u16, Value) {
        let path = asked.target.split('?').next().unwrap_or_default();
        let Some(path) = path.strip_prefix("/api/3/") else { return none() };
        let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        let number = |text: &str| text.parse::<i64>().unwrap_or(-1);
        let store = &mut self.store;
        let found = match (asked.method.as_str(), &parts[..]) {
            ("GET", ["sites", site, "assets"]) => {
                store.assets_of(number(site)).map(|all| self.page(asked, all))
            }
            ("GET", ["assets", id]) => store.asset(number(id)),
            ("GET", ["assets", id, "vulnerabilities"]) => {
                store.findings_of(number(id)).map(|all| self.page(asked, all))
            }
            ("GET", ["vulnerabilities"]) => {
                Some(store.vulnerabilities.clone()).map(|all| self.page(asked, all))
            }
            ("GET", ["vulnerabilities", id, what @ ("solutions" | "checks")]) => {
                store.details.get(&format!("{id}/{what}")).map(|all| json!({"resources": all}))
            }
            ("GET", ["vulnerabilities", id, "references"]) => {
                let all = store.details.get(&format!("{id}/references")).cloned();
                all.map(|all| self.page(asked, all.as_array().unwrap().clone()))
            }
            ("GET", ["solutions", id]) => store.solutions.get(*id).cloned(),
            ("GET", ["scan_templates"]) => {
                Some(json!({"resources": store.templates.values().collect::<Vec<_>>()}))
            }
            ("GET", ["scan_templates", id]) => store.templates.get(*id).cloned(),
            ("POST", ["scan_templates"]) => return store.make_template(&body),
            ("DELETE", ["scan_templates", id]) => return store.delete_template(id),
            ("GET", ["sites", site, "scans"]) => {
                let active = asked.parameter("active") == Some("true");
                store.scans_of(number(site), active).map(|all| self.page(asked, all))
            }
            ("POST", ["sites", site, "scans"]) => return store.start_scan(number(site), &body),
            ("GET", ["scans", id]) => store.look_at_scan(number(id)),
            _ => None,
        };
        found.map_or_else(none, |found| (200, found))
    }

    fn page(&self, asked: &Asked, all: Vec<Value>) -> Value {
        let parameter = |name: &str| asked.parameter(name).and_then(|text| text.parse::<usize>().ok());
        let number = parameter("page").unwrap_or(0);
        let size = parameter("size").unwrap_or(10).min(self.cap);
        let total = all.len();
        let some: Vec<Value> = all.into_iter().skip(number * size).take(size).collect();
        let page = json!({
            "number": number, "size": size, "totalPages": total.div_ceil(size), "totalResources": total,
        });
        json!({"resources": some, "page": page, "links": []})
    }
}

fn reply(status: u16, body: &Value) -> Reply {
    let headers = vec![("content-type", "application/json".to_owned()), ("retry-after", "0".to_owned())];
    Reply::Answer(status, headers, body.to_string().into_bytes())
}

fn none() -> (u16, Value) {
    (404, json!({"status": "404", "message": "The resource does not exist or access is prohibited."}))
}
