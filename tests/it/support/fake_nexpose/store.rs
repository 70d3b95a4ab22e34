//! What the console keeps, and what it refuses.

use chrono::{DateTime, Duration, Utc};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub struct Asset {
    pub ip: String,
    /// Whether it answers a scan.
    pub is_up: bool,
    pub findings: Vec<Value>,
    pub history: Vec<Value>,
    pub more: Value,
}

struct Scan {
    site: i64,
    name: String,
    hosts: Vec<String>,
    template: Option<String>,
    status: &'static str,
}

pub struct Store {
    pub now: DateTime<Utc>,
    pub assets: BTreeMap<i64, Asset>,
    pub sites: BTreeMap<i64, Vec<i64>>,
    pub vulnerabilities: Vec<Value>,
    /// `v/solutions`, `v/checks`, `v/references`
    pub details: BTreeMap<String, Value>,
    pub solutions: BTreeMap<String, Value>,
    pub templates: BTreeMap<String, Value>,
    /// Whether lists of assets tell their history.
    pub list_history: bool,
    /// What was done, in its order.
    pub effects: Vec<String>,
    scans: BTreeMap<i64, Scan>,
    made: i64,
}

/// How a scan goes, a look at a time.
const COURSE: [&str; 4] = ["dispatched", "running", "integrating", "finished"];

impl Store {
    pub fn new() -> Self {
        let template = |id: &str| (id.to_owned(), json!({"id": id, "name": id, "checks": {"unsafe": false}}));
        Self {
            now: "2026-03-01T12:00:00Z".parse().unwrap(),
            assets: BTreeMap::new(),
            sites: BTreeMap::from([(7, Vec::new()), (8, Vec::new())]),
            vulnerabilities: Vec::new(),
            details: BTreeMap::new(),
            solutions: BTreeMap::new(),
            templates: BTreeMap::from([template("discovery"), template("full-audit")]),
            list_history: true,
            effects: Vec::new(),
            scans: BTreeMap::new(),
            made: 1000,
        }
    }

    /// An asset of a site, at 10.0.0.`id`, scanned once.
    pub fn seed(&mut self, site: i64, id: i64, findings: Vec<Value>) -> &mut Asset {
        self.sites.get_mut(&site).unwrap().push(id);
        let history = vec![
            json!({"type": "ASSET-IMPORT", "date": "2025-01-01T00:00:00Z", "version": 1}),
            json!({"type": "SCAN", "date": "2026-02-01T00:00:00Z", "scanId": 1, "version": 2}),
        ];
        let ip = format!("10.0.{}.{}", id / 250, id % 250 + 1);
        let asset = Asset { ip, is_up: true, findings, history, more: json!({}) };
        self.assets.insert(id, asset);
        self.assets.get_mut(&id).unwrap()
    }

    pub fn delete(&mut self, id: i64) {
        self.assets.remove(&id);
        self.sites.values_mut().for_each(|assets| assets.retain(|asset| *asset != id));
    }

    pub fn asset(&self, id: i64) -> Option<Value> {
        let asset = self.assets.get(&id)?;
        let mut shown = json!({
            "id": id, "ip": asset.ip, "hostName": format!("host-{id}"), "mac": "AB:12:CD:34:EF:56",
            "os": "Linux 5.4", "history": asset.history, "links": [],
        });
        shown.as_object_mut().unwrap().extend(asset.more.as_object().unwrap().clone());
        Some(shown)
    }

    pub fn assets_of(&self, site: i64) -> Option<Vec<Value>> {
        let mut all: Vec<Value> = self.sites.get(&site)?.iter().filter_map(|id| self.asset(*id)).collect();
        if !self.list_history {
            for asset in &mut all {
                asset.as_object_mut().unwrap().remove("history");
            }
        }
        Some(all)
    }

    pub fn findings_of(&self, id: i64) -> Option<Vec<Value>> {
        self.assets.get(&id).map(|asset| asset.findings.clone())
    }

    /// A vulnerability with a solution and a check of its own.
    pub fn know(&mut self, id: &str, more: &Value) {
        let mut known = json!({
            "id": id, "title": format!("Title of {id}"), "severity": "Severe", "modified": "2026-01-10",
            "added": "2025-12-01", "description": {"html": "<p>It is <b>old</b>.</p>", "text": "x"},
            "cvss": {"v2": {"score": 4.4}, "v3": {"score": 7.5}}, "categories": ["TLS", "Web"],
            "cves": ["CVE-2026-1"],
        });
        known.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.vulnerabilities.push(known);
        self.details.insert(format!("{id}/solutions"), json!(["upgrade"]));
        self.details.insert(format!("{id}/checks"), json!([format!("check-of-{id}")]));
        let references = json!([
            {"reference": "4041689", "source": "mskb", "links": []},
            {"reference": "CVE-2026-1", "source": "cve"},
            {"source": "url", "advisory": {"href": "https://example.com/a", "rel": "Advisory"}},
        ]);
        self.details.insert(format!("{id}/references"), references);
        let solution = json!({
            "id": "upgrade", "summary": {"html": "<p>Upgrade</p>", "text": "Upgrade"}, "type": "rollup-patch",
            "steps": {"html": "<p>Use <i>apt</i></p>", "text": "x"}, "appliesTo": "OpenSSL",
        });
        self.solutions.insert("upgrade".to_owned(), solution);
    }

    pub fn make_template(&mut self, body: &Value) -> (u16, Value) {
        let Some(name) = body["name"].as_str() else { return refuse("name is missing") };
        self.made += 1;
        let id = format!("{name}.{}", self.made);
        let mut template = body.clone();
        template["id"] = json!(id);
        self.templates.insert(id.clone(), template);
        self.effects.push(format!("make template {id}"));
        (201, json!({"id": id, "links": []}))
    }

    pub fn delete_template(&mut self, id: &str) -> (u16, Value) {
        let in_use =
            self.scans.values().any(|scan| scan.template.as_deref() == Some(id) && !is_over(scan.status));
        if in_use {
            return (409, json!({"message": "a scan uses this template"}));
        }
        if self.templates.remove(id).is_none() {
            return (404, json!({"message": "no such template"}));
        }
        self.effects.push(format!("delete template {id}"));
        (200, json!({"links": []}))
    }

    pub fn start_scan(&mut self, site: i64, body: &Value) -> (u16, Value) {
        let Some(assets) = self.sites.get(&site) else { return (404, json!({"message": "no such site"})) };
        let known = ["name", "hosts", "templateId", "engineId", "assetGroupIds"];
        if let Some(other) = body.as_object().unwrap().keys().find(|key| !known.contains(&key.as_str())) {
            return refuse(&format!("unknown property {other}"));
        }
        if !body["engineId"].is_null() && !body["engineId"].is_i64() {
            return refuse("engineId is no integer");
        }
        let template = body["templateId"].as_str().map(str::to_owned);
        if template.as_ref().is_some_and(|template| !self.templates.contains_key(template)) {
            return refuse("no such template");
        }
        let hosts: Vec<String> =
            body["hosts"].as_array().unwrap().iter().map(|host| host.as_str().unwrap().to_owned()).collect();
        let of_site: Vec<&str> =
            assets.iter().filter_map(|id| Some(self.assets.get(id)?.ip.as_str())).collect();
        if let Some(other) = hosts.iter().find(|host| !of_site.contains(&host.as_str())) {
            return refuse(&format!("{other} is not in the site"));
        }
        self.made += 1;
        let name = body["name"].as_str().unwrap().to_owned();
        self.effects.push(format!("start scan {} {name}", self.made));
        self.scans.insert(self.made, Scan { site, name, hosts, template, status: COURSE[0] });
        (201, json!({"id": self.made, "links": []}))
    }

    pub fn scans_of(&self, site: i64, active: bool) -> Option<Vec<Value>> {
        self.sites.get(&site)?;
        let scans = self.scans.iter().filter(|(_, scan)| scan.site == site && is_over(scan.status) != active);
        Some(
            scans.map(|(id, scan)| json!({"id": id, "scanName": scan.name, "status": scan.status})).collect(),
        )
    }

    /// Moves it along.
    pub fn look_at_scan(&mut self, id: i64) -> Option<Value> {
        let scan = self.scans.get(&id)?;
        if let Some(at) = COURSE.iter().position(|status| *status == scan.status)
            && at + 1 < COURSE.len()
        {
            self.set_scan(id, COURSE[at + 1]);
        }
        let scan = self.scans.get(&id)?;
        let in_it = |asset: &&Asset| asset.history.iter().any(|event| event["scanId"] == id);
        let found = self.assets.values().filter(in_it).count();
        Some(json!({"id": id, "scanName": scan.name, "status": scan.status, "assets": found, "engineId": 3}))
    }

    /// Brings it there; at the end of it the assets that answered have it in their history.
    pub fn set_scan(&mut self, id: i64, status: &'static str) {
        self.scans.get_mut(&id).unwrap().status = status;
        if status == "finished" {
            self.now += Duration::hours(1);
            let hosts = self.scans[&id].hosts.clone();
            for asset in self.assets.values_mut().filter(|asset| asset.is_up && hosts.contains(&asset.ip)) {
                let event = json!({"type": "SCAN", "date": self.now.to_rfc3339(), "scanId": id});
                asset.history.push(event);
            }
        }
    }

    pub fn forget_scan(&mut self, id: i64) {
        self.scans.remove(&id);
    }

    /// Its hosts.
    pub fn hosts(&self, id: i64) -> Vec<String> {
        self.scans[&id].hosts.clone()
    }
}

fn is_over(status: &str) -> bool {
    ["finished", "stopped", "error", "aborted"].contains(&status)
}

fn refuse(message: &str) -> (u16, Value) {
    (400, json!({"status": "400", "message": message}))
}
