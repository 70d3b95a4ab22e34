//! A Qualys that keeps hosts, a knowledge base and scans, lets scans go on a step each time it is asked about them, and
//! can be told to fail.
//!
//! The shapes are those that the vendor's public pages of the VM API describe: parameters as a form, a document type in
//! each answer, `SIMPLE_RETURN` with CODE and TEXT for refusals (with statuses and codes of the appendix of error codes),
//! WARNING with the URL of the next page where a list was truncated, the headers of rate and concurrency limits on each
//! answer, and 409 for a call that one of them blocked. What it does not know it refuses, as Qualys does: a parameter
//! nobody has heard of, a call without X-Requested-With, a scan of an address that is not in the subscription.

pub use super::trouble::Trouble;

use super::api::{Asked, Reply, ScriptedApi};
use super::trouble::{Troubles, suffer};
use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use url::form_urlencoded;

/// It is answered with this status, code and text.
pub fn refused(status: u16, code: u32, text: &str) -> Trouble {
    Trouble::Said(reply(status, 0, simple(code, text)))
}

/// It is blocked: asked again after so many seconds it would not be.
pub fn blocked(seconds: u32) -> Trouble {
    let text = "The requested operation is blocked by one or more existing Business Objects";
    Trouble::Said(reply(409, seconds, simple(1965, text)))
}

/// It is answered with this body.
pub fn says(body: impl Into<String>) -> Trouble {
    Trouble::Said(reply(200, 0, body.into()))
}

#[derive(Clone, Default)]
pub struct Host {
    pub id: u64,
    pub ip: String,
    pub groups: Vec<&'static str>,
    pub tags: Vec<&'static str>,
    pub scanned: &'static str,
    /// Elements that stand after its address.
    pub more: String,
    /// The inside of each DETECTION.
    pub detections: Vec<String>,
}

pub struct Scan {
    pub reference: String,
    pub title: String,
    pub ips: Vec<String>,
    pub form: HashMap<String, String>,
    /// What it says the next times, the last one for ever: state, and whether it is processed.
    pub states: VecDeque<(&'static str, bool)>,
    /// Addresses that did not answer.
    pub dead: String,
}

pub struct Store {
    pub hosts: Vec<Host>,
    /// Number, time of change, and the rest of each VULN.
    pub knowledge: Vec<(u64, &'static str, String)>,
    pub scans: Vec<Scan>,
    /// Scans at once at most.
    pub most_scans: usize,
    /// Hosts of a page at most, whatever was asked for.
    pub page: usize,
    /// Where it says that the next page is; its own address if empty.
    pub elsewhere: String,
    /// What time it is.
    pub now: &'static str,
    /// Path and form of each request that was answered.
    pub asked: Vec<(String, HashMap<String, String>)>,
}

struct Inner {
    store: Store,
    address: String,
    troubles: Troubles,
}

#[derive(Clone)]
pub struct FakeQualys {
    pub address: String,
    inner: Arc<Mutex<Inner>>,
}

/// svc:canary-1
const LOGIN: &str = "Basic c3ZjOmNhbmFyeS0x";

impl FakeQualys {
    pub async fn start() -> Self {
        let store = Store {
            hosts: Vec::new(),
            knowledge: Vec::new(),
            scans: Vec::new(),
            most_scans: 10,
            page: 1000,
            elsewhere: String::new(),
            now: "2026-05-05T10:00:00Z",
            asked: Vec::new(),
        };
        let inner = Inner { store, address: String::new(), troubles: Troubles::default() };
        let inner = Arc::new(Mutex::new(inner));
        let serving = Arc::clone(&inner);
        let api = ScriptedApi::start(move |asked, _| serving.lock().unwrap().serve(asked)).await;
        inner.lock().unwrap().address.clone_from(&api.address);
        Self { address: api.address, inner }
    }

    /// Looks at what it keeps, or changes it.
    pub fn with<T>(&self, look: impl FnOnce(&mut Store) -> T) -> T {
        look(&mut self.inner.lock().unwrap().store)
    }

    /// The next request of this kind (`scan launch`) goes wrong. Troubles of one kind come one after the other.
    pub fn trouble(&self, kind: &str, trouble: Trouble) {
        self.trouble_after(0, kind, trouble);
    }

    /// The one that comes after so many that go well.
    pub fn trouble_after(&self, spared: usize, kind: &str, trouble: Trouble) {
        self.inner.lock().unwrap().troubles.expect(kind, spared, trouble);
    }

    /// The forms of the requests that were answered at this path, in their order.
    pub fn asked(&self, path: &str) -> Vec<HashMap<String, String>> {
        self.with(|store| {
            store.asked.iter().filter(|(asked, _)| asked == path).map(|(_, form)| form.clone()).collect()
        })
    }
}

impl Inner {
    fn serve(&mut self, asked: &Asked) -> Reply {
        let (path, query) = asked.target.split_once('?').unwrap_or((&asked.target, ""));
        let path = path.strip_prefix("/api/2.0/fo/").unwrap_or(path).trim_end_matches('/').to_owned();
        let text = if asked.method == "POST" { asked.body.as_slice() } else { query.as_bytes() };
        let form: HashMap<String, String> = form_urlencoded::parse(text).into_owned().collect();
        let action = form.get("action").map_or("", String::as_str);
        let kind = format!("{} {action}", path.rsplit('/').next().unwrap_or_default());
        suffer(self.troubles.meet(&kind), || {
            let (status, body) = if asked.headers.get("authorization").is_none_or(|login| login != LOGIN) {
                (401, simple(2000, "Bad Login/Password"))
            } else if asked.headers.get("x-requested-with").is_none_or(String::is_empty) {
                (400, simple(1903, "Missing required header: X-Requested-With"))
            } else {
                self.answer(&path, &form)
            };
            reply(status, 0, body)
        })
    }

    fn answer(&mut self, path: &str, form: &HashMap<String, String>) -> (u16, String) {
        self.store.asked.push((path.to_owned(), form.clone()));
        let action = form.get("action").map_or("", String::as_str);
        let known: &[&str] = match (path, action) {
            ("asset/host/vm/detection", "list") => &[
                "truncation_limit",
                "id_min",
                "show_reopened_info",
                "show_results",
                "status",
                "arf_kernel_filter",
                "ag_ids",
                "use_tags",
                "tag_set_by",
                "tag_include_selector",
                "tag_set_include",
                "ips",
                "network_ids",
            ],
            ("knowledge_base/vuln", "list") => &["details", "last_modified_after", "id_min", "id_max"],
            ("scan", "launch") => {
                &["scan_title", "option_id", "ip", "iscanner_id", "iscanner_name", "ip_network_id"]
            }
            ("scan", "list") => &["scan_ref", "show_status", "launched_after_datetime"],
            ("scan/summary", "list") => &[
                "scan_date_since",
                "include_dead",
                "include_excluded",
                "include_unresolved",
                "include_cancelled",
            ],
            _ => return (404, String::new()),
        };
        if let Some(odd) = form.keys().find(|name| *name != "action" && !known.contains(&name.as_str())) {
            return (400, simple(1901, &format!("Unrecognized parameter(s): {odd}")));
        }
        match (path, action) {
            ("asset/host/vm/detection", _) => (200, self.detections(form)),
            ("knowledge_base/vuln", _) => (200, self.knowledge(form)),
            ("scan", "launch") => self.launch(form),
            ("scan", _) => (200, self.scans(form)),
            _ => self.summary(form),
        }
    }

    fn detections(&self, form: &HashMap<String, String>) -> String {
        let list =
            |name: &str| form.get(name).map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>());
        let (groups, ips, tags) = (list("ag_ids"), list("ips"), list("tag_set_include"));
        let from = number(form, "id_min").unwrap_or(0);
        let mut hosts: Vec<&Host> = self.store.hosts.iter().filter(|host| host.id >= from).collect();
        hosts.retain(|host| {
            groups
                .as_ref()
                .is_none_or(|groups| groups.iter().any(|group| host.groups.contains(&group.as_str())))
                && tags.as_ref().is_none_or(|tags| tags.iter().all(|tag| host.tags.contains(&tag.as_str())))
                && ips.as_ref().is_none_or(|ips| ips.contains(&host.ip))
        });
        hosts.sort_by_key(|host| host.id);
        let limit = number(form, "truncation_limit").map_or(1000, |n| usize::try_from(n).unwrap());
        let limit = limit.min(self.store.page);
        let next = hosts.get(limit).map(|host| host.id);
        let mut body = String::from("<HOST_LIST>");
        for host in hosts.into_iter().take(limit) {
            let Host { id, ip, scanned, more, .. } = host;
            let id = if *id == 0 { String::new() } else { id.to_string() };
            write!(body, "<HOST><ID>{id}</ID><IP>{ip}</IP>{more}").unwrap();
            if !scanned.is_empty() {
                write!(body, "<LAST_VM_SCANNED_DATE>{scanned}</LAST_VM_SCANNED_DATE>").unwrap();
            }
            body.push_str("<DETECTION_LIST>");
            for detection in &host.detections {
                write!(body, "<DETECTION>{detection}</DETECTION>").unwrap();
            }
            body.push_str("</DETECTION_LIST></HOST>");
        }
        body.push_str("</HOST_LIST>");
        if let Some(next) = next {
            let place = if self.store.elsewhere.is_empty() { &self.address } else { &self.store.elsewhere };
            write!(
                body,
                "<WARNING><CODE>1980</CODE><TEXT>{limit} record limit exceeded. Use URL to get next batch of \
                 results.</TEXT><URL><![CDATA[{place}/api/2.0/fo/asset/host/vm/detection/?action=list&truncation_limit={limit}&id_min={next}]]></URL></WARNING>"
            )
            .unwrap();
        }
        document("HOST_LIST_VM_DETECTION_OUTPUT", &body)
    }

    fn knowledge(&self, form: &HashMap<String, String>) -> String {
        let (from, to) = (number(form, "id_min").unwrap_or(0), number(form, "id_max").unwrap_or(u64::MAX));
        let after = form.get("last_modified_after").map_or("", String::as_str);
        let mut body = String::new();
        for (id, changed, rest) in &self.store.knowledge {
            if (from..=to).contains(id) && *changed > after {
                write!(
                    body,
                    "<VULN><QID>{id}</QID><LAST_SERVICE_MODIFICATION_DATETIME>{changed}</LAST_SERVICE_MODIFICATION_DATETIME>{rest}</VULN>"
                )
                .unwrap();
            }
        }
        // An empty list is not there at all.
        let body = if body.is_empty() { body } else { format!("<VULN_LIST>{body}</VULN_LIST>") };
        document("KNOWLEDGE_BASE_VULN_LIST_OUTPUT", &body)
    }

    fn launch(&mut self, form: &HashMap<String, String>) -> (u16, String) {
        let store = &mut self.store;
        for name in ["scan_title", "option_id", "ip"] {
            if !form.contains_key(name) {
                return (400, simple(1903, &format!("Missing required parameter(s): {name}")));
            }
        }
        if form.contains_key("iscanner_id") == form.contains_key("iscanner_name") {
            return (
                400,
                simple(1904, "Please specify only one of these parameters: iscanner_id, iscanner_name"),
            );
        }
        let ips: Vec<String> = form["ip"].split(',').map(str::to_owned).collect();
        if let Some(ip) = ips.iter().find(|ip| ip.parse::<Ipv4Addr>().is_err() || ip.starts_with("192.0.2."))
        {
            return (
                400,
                simple(1905, &format!("parameter ip has invalid value: {ip} (not in your subscription)")),
            );
        }
        let running = store.scans.iter().filter(|scan| scan.states.len() > 1).count();
        if running >= store.most_scans {
            let text = format!(
                "You are allowed to run {} concurrent scans. This limit has already been reached.",
                store.most_scans
            );
            return (409, simple(1904, &text));
        }
        let reference = format!("scan/1700000000.{}", store.scans.len() + 1);
        store.scans.push(Scan {
            reference: reference.clone(),
            title: form["scan_title"].clone(),
            ips,
            form: form.clone(),
            states: [("Queued", false), ("Running", false), ("Finished", false), ("Finished", true)].into(),
            dead: String::new(),
        });
        let now = store.now;
        let body = format!(
            "{}<SIMPLE_RETURN><RESPONSE><DATETIME>{now}</DATETIME><TEXT>New vm scan launched</TEXT><ITEM_LIST>\
             <ITEM><KEY>ID</KEY><VALUE>1</VALUE></ITEM><ITEM><KEY>REFERENCE</KEY><VALUE>{reference}</VALUE></ITEM>\
             </ITEM_LIST></RESPONSE></SIMPLE_RETURN>",
            doctype("SIMPLE_RETURN")
        );
        (200, body)
    }

    fn scans(&mut self, form: &HashMap<String, String>) -> String {
        let wanted = form.get("scan_ref");
        let now = self.store.now;
        let mut body = String::from("<SCAN_LIST>");
        for scan in
            self.store.scans.iter_mut().filter(|scan| wanted.is_none_or(|wanted| *wanted == scan.reference))
        {
            let (state, processed) = scan.states[0];
            if wanted.is_some() && scan.states.len() > 1 {
                scan.states.pop_front();
            }
            write!(
                body,
                "<SCAN><REF>{}</REF><TYPE>API</TYPE><TITLE><![CDATA[{}]]></TITLE><LAUNCH_DATETIME>{now}</LAUNCH_DATETIME>\
                 <PROCESSED>{}</PROCESSED><STATUS><STATE>{state}</STATE></STATUS><TARGET><![CDATA[{}]]></TARGET></SCAN>",
                scan.reference,
                scan.title,
                u8::from(processed),
                scan.ips.join(", ")
            )
            .unwrap();
        }
        body.push_str("</SCAN_LIST>");
        document("SCAN_LIST_OUTPUT", &body)
    }

    fn summary(&self, form: &HashMap<String, String>) -> (u16, String) {
        let Some(since) = form.get("scan_date_since") else {
            return (400, simple(1903, "Missing required parameter(s): scan_date_since"));
        };
        let mut body = String::from("<SCAN_SUMMARY_LIST>");
        let scans = self.store.scans.iter().filter(|_| since.as_str() <= &self.store.now[..10]);
        for scan in scans {
            write!(
                body,
                "<SCAN_SUMMARY><SCAN_REF>{}</SCAN_REF><SCAN_DATE>{}</SCAN_DATE>",
                scan.reference, self.store.now
            )
            .unwrap();
            if !scan.dead.is_empty() {
                write!(body, "<HOST_SUMMARY category=\"dead\" tracking=\"IP\">{}</HOST_SUMMARY>", scan.dead)
                    .unwrap();
            }
            // Another reason why a host was not scanned is no proof that it is dead.
            body.push_str(
                "<HOST_SUMMARY category=\"blocked\" tracking=\"IP\">10.0.0.0-10.0.0.255</HOST_SUMMARY>",
            );
            body.push_str("</SCAN_SUMMARY>");
        }
        body.push_str("</SCAN_SUMMARY_LIST>");
        (200, document("SCAN_SUMMARY_OUTPUT", &body))
    }
}

fn number(form: &HashMap<String, String>, name: &str) -> Option<u64> {
    form.get(name).map(|text| text.parse().unwrap())
}

fn doctype(root: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n<!DOCTYPE {root} SYSTEM \
         \"https://qualysapi.example.com/api/2.0/{}.dtd\">\n",
        root.to_lowercase()
    )
}

fn document(root: &str, inside: &str) -> String {
    let head = doctype(root);
    format!("{head}<{root}><RESPONSE><DATETIME>2026-05-05T10:00:00Z</DATETIME>{inside}</RESPONSE></{root}>")
}

fn simple(code: u32, text: &str) -> String {
    format!(
        "{}<SIMPLE_RETURN><RESPONSE><DATETIME>2026-05-05T10:00:00Z</DATETIME><CODE>{code}</CODE><TEXT>{text}</TEXT>\
         </RESPONSE></SIMPLE_RETURN>",
        doctype("SIMPLE_RETURN")
    )
}

fn reply(status: u16, wait: u32, body: String) -> Reply {
    let headers = vec![
        ("content-type", "application/xml".to_owned()),
        ("x-ratelimit-limit", "300".to_owned()),
        ("x-ratelimit-window-sec", "3600".to_owned()),
        ("x-ratelimit-remaining", if wait > 0 { "0" } else { "299" }.to_owned()),
        ("x-ratelimit-towait-sec", wait.to_string()),
        ("x-concurrency-limit-limit", "2".to_owned()),
        ("x-concurrency-limit-running", "1".to_owned()),
    ];
    Reply::Answer(status, headers, body.into_bytes())
}
