//! What the fake keeps: issues, fields, a workflow with rules.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

pub struct Issue {
    pub number: usize,
    pub fields: Map<String, Value>,
    pub updated: DateTime<Utc>,
    pub comments: Vec<Value>,
    /// How many searches do not know of it yet.
    pub unknown_to: usize,
}

impl Issue {
    pub fn key(&self) -> String {
        format!("SEC-{}", self.number)
    }

    /// Whether a search knows of it.
    pub fn is_found(&self) -> bool {
        self.unknown_to == 0
    }

    pub fn status(&self) -> &str {
        self.fields["status"]["name"].as_str().unwrap()
    }
}

/// A step of the workflow.
pub struct Step {
    pub name: &'static str,
    pub from: &'static str,
    pub to: &'static str,
    /// Resolutions of which one must be given.
    pub resolutions: Vec<&'static str>,
    /// Another field that must be given.
    pub requires: Option<(&'static str, &'static str)>,
}

impl Step {
    pub fn new(name: &'static str, from: &'static str, to: &'static str) -> Self {
        Self { name, from, to, resolutions: Vec::new(), requires: None }
    }

    pub fn resolving(self, resolutions: &[&'static str]) -> Self {
        Self { resolutions: resolutions.to_vec(), ..self }
    }
}

pub struct Store {
    pub is_cloud: bool,
    /// Its clock, which goes on by a millisecond with each change.
    pub now: DateTime<Utc>,
    /// Of the user who asks.
    pub zone: String,
    pub issues: Vec<Issue>,
    pub steps: Vec<Step>,
    /// Statuses in which nothing can be edited.
    pub closed_to_edits: Vec<&'static str>,
    pub users: Vec<&'static str>,
    /// How many searches a new issue is missing from.
    pub lag: usize,
    /// Every effect there was: `create SEC-1`, `step SEC-1 Close`, `comment SEC-1`, `edit SEC-1 assignee`.
    pub effects: Vec<String>,
}

/// ID, name, type, type of items, plugin's type.
const FIELDS: [(&str, &str, &str, &str, &str); 20] = [
    ("summary", "Summary", "string", "", ""),
    ("description", "Description", "string", "", ""),
    ("project", "Project", "project", "", ""),
    ("issuetype", "Issue Type", "issuetype", "", ""),
    ("labels", "Labels", "array", "string", ""),
    ("duedate", "Due date", "date", "", ""),
    ("assignee", "Assignee", "user", "", ""),
    ("status", "Status", "status", "", ""),
    ("customfield_10001", "Org", "option", "", "select"),
    ("customfield_10002", "Host Name", "string", "", "textfield"),
    ("customfield_10003", "Solution", "string", "", "textarea"),
    ("customfield_10004", "CVSS", "number", "", "float"),
    ("customfield_10005", "Alert Date", "datetime", "", "datetime"),
    ("customfield_10006", "Systems", "array", "option", "multiselect"),
    ("customfield_10007", "Team", "group", "", "grouppicker"),
    ("customfield_10008", "Last Checked", "datetime", "", "datetime"),
    ("customfield_10009", "CERF", "string", "", "textfield"),
    ("customfield_10010", "Exception Ends", "date", "", "datepicker"),
    ("customfield_10011", "Device", "string", "", "textfield"),
    ("customfield_10012", "Organization", "string", "", "textfield"),
];

impl Store {
    pub fn new(is_cloud: bool) -> Self {
        Self {
            is_cloud,
            now: "2026-06-01T12:00:00Z".parse().unwrap(),
            zone: "Etc/UTC".to_owned(),
            issues: Vec::new(),
            steps: vec![
                Step::new("Start", "Open", "In Progress"),
                Step::new("Resolve", "In Progress", "Resolved"),
                Step::new("Close", "Resolved", "Closed").resolving(&["Fixed", "Won't Fix"]),
                Step::new("Reopen", "Resolved", "Reopened"),
            ],
            closed_to_edits: vec!["Closed"],
            users: vec!["ada", "grace"],
            lag: 0,
            effects: Vec::new(),
        }
    }

    pub fn issue(&mut self, key: &str) -> Option<&mut Issue> {
        self.issues.iter_mut().find(|issue| issue.key() == key)
    }

    /// Makes an issue without asking.
    pub fn seed(&mut self, fields: Value) -> String {
        let mut all = json!({
            "status": {"name": "Open"}, "resolution": null, "resolutiondate": null, "assignee": null, "labels": [],
            "duedate": null,
        });
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let number = self.issues.len() + 1;
        let fields = all.as_object().unwrap().clone();
        let issue = Issue { number, fields, updated: self.now, comments: Vec::new(), unknown_to: self.lag };
        self.issues.push(issue);
        let key = format!("SEC-{number}");
        self.touch(&key);
        key
    }

    /// It changed.
    pub fn touch(&mut self, key: &str) {
        self.now += chrono::Duration::milliseconds(1);
        let now = self.now;
        self.issue(key).unwrap().updated = now;
    }

    /// A search took place.
    pub fn searched(&mut self) {
        for issue in &mut self.issues {
            issue.unknown_to = issue.unknown_to.saturating_sub(1);
        }
    }

    pub fn kind(id: &str) -> Option<&'static str> {
        FIELDS.iter().find(|field| field.0 == id).map(|field| field.2)
    }

    pub fn fields() -> Value {
        let field = |(id, name, kind, items, custom): &(&str, &str, &str, &str, &str)| {
            let mut schema = json!({"type": kind});
            if !items.is_empty() {
                schema["items"] = json!(items);
            }
            let place = if custom.is_empty() { "system" } else { "custom" };
            let plugin = format!("com.atlassian.jira.plugin.system.customfieldtypes:{custom}");
            schema[place] = json!(if custom.is_empty() { *id } else { plugin.as_str() });
            json!({"id": id, "name": name, "custom": !custom.is_empty(), "schema": schema})
        };
        FIELDS.iter().map(field).collect()
    }

    /// Fields of which the shape is wrong, and why.
    fn complaints(&self, fields: &Map<String, Value>) -> Map<String, Value> {
        let mut wrong = Map::new();
        for (id, value) in fields {
            let Some((_, _, kind, items, custom)) = FIELDS.iter().find(|field| field.0 == id) else {
                let why = "Field cannot be set. It is not on the appropriate screen, or unknown.";
                wrong.insert(id.clone(), json!(why));
                continue;
            };
            let is_document = value["type"] == "doc" && value["version"] == 1;
            let is_long = *custom == "textarea" || id == "description";
            let each =
                |fits: &dyn Fn(&Value) -> bool| value.as_array().is_some_and(|all| all.iter().all(fits));
            let fits = match (*kind, *items) {
                ("string", _) if self.is_cloud && is_long => is_document,
                ("string", _) => value.as_str().is_some_and(|text| is_long || !text.contains('\n')),
                ("number", _) => value.is_number(),
                ("option", _) => value["value"].is_string(),
                ("array", "option") => each(&|one| one["value"].is_string()),
                ("array", _) => each(&|one| one.as_str().is_some_and(|label| !label.contains(' '))),
                ("group" | "issuetype", _) => value["name"].is_string(),
                ("project", _) => value["key"] == "SEC",
                ("date", _) => value.as_str().is_some_and(|text| text.len() == 10),
                ("datetime", _) => value
                    .as_str()
                    .is_some_and(|text| DateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.3f%z").is_ok()),
                ("user", _) => value.is_null() || self.user(value).is_ok(),
                _ => false,
            };
            if !fits {
                let why = if *kind == "user" {
                    format!("User '{}' does not exist.", value[self.user_word()].as_str().unwrap_or_default())
                } else {
                    format!("data was not a {kind} {items}")
                };
                wrong.insert(id.clone(), json!(why));
            }
        }
        let summary = fields.get("summary").and_then(Value::as_str);
        if summary.is_some_and(|text| text.encode_utf16().count() > 255) {
            wrong.insert("summary".to_owned(), json!("Summary must be less than 255 characters."));
        }
        wrong
    }

    fn user_word(&self) -> &'static str {
        if self.is_cloud { "accountId" } else { "name" }
    }

    fn user(&self, value: &Value) -> Result<(), Value> {
        let name = value[self.user_word()].as_str().unwrap_or_default();
        if self.users.contains(&name) { Ok(()) } else { Err(json!({"assignee": "unknown"})) }
    }

    /// An error is what is wrong, by field.
    pub fn create(&mut self, fields: &Value) -> Result<String, Value> {
        let fields = fields.as_object().ok_or(json!({"fields": "missing"}))?;
        let mut wrong = self.complaints(fields);
        for id in ["project", "issuetype", "summary"] {
            if !fields.contains_key(id) {
                wrong.insert(id.to_owned(), json!("is required"));
            }
        }
        if !wrong.is_empty() {
            return Err(wrong.into());
        }
        let key = self.seed(json!(fields));
        self.effects.push(format!("create {key}"));
        Ok(key)
    }

    pub fn editable(&mut self, key: &str) -> Value {
        let status = self.issue(key).unwrap().status().to_owned();
        let none = self.closed_to_edits.iter().any(|closed| *closed == status);
        let ids =
            FIELDS.iter().filter(|_| !none).map(|field| (field.0.to_owned(), json!({"required": false})));
        Value::Object(ids.collect())
    }

    pub fn edit(&mut self, key: &str, fields: &Map<String, Value>) -> Result<(), Value> {
        let wrong = self.complaints(fields);
        if !wrong.is_empty() {
            return Err(wrong.into());
        }
        let editable = self.editable(key);
        for (id, value) in fields {
            if editable.get(id).is_none() {
                return Err(
                    json!({id: "Field cannot be set. It is not on the appropriate screen, or unknown."}),
                );
            }
            self.effects.push(format!("edit {key} {id}"));
            self.issue(key).unwrap().fields.insert(id.clone(), value.clone());
            self.touch(key);
        }
        Ok(())
    }

    pub fn offered(&mut self, key: &str) -> Value {
        let status = self.issue(key).unwrap().status().to_owned();
        let step = |(nth, step): (usize, &Step)| {
            let mut fields = Map::new();
            if !step.resolutions.is_empty() {
                let names: Vec<Value> = step.resolutions.iter().map(|name| json!({"name": name})).collect();
                let field = json!({"required": true, "name": "Resolution", "allowedValues": names});
                fields.insert("resolution".to_owned(), field);
            }
            if let Some((id, name)) = step.requires {
                fields.insert(id.to_owned(), json!({"required": true, "name": name}));
            }
            json!({"id": nth.to_string(), "name": step.name, "to": {"name": step.to}, "fields": fields})
        };
        let steps = self.steps.iter().enumerate().filter(|(_, step)| step.from == status);
        json!({"transitions": steps.map(step).collect::<Vec<_>>()})
    }

    pub fn take_step(&mut self, key: &str, body: &Value) -> Result<(), Value> {
        let status = self.issue(key).unwrap().status().to_owned();
        let id: usize =
            body["transition"]["id"].as_str().and_then(|id| id.parse().ok()).unwrap_or(usize::MAX);
        let refused = json!({"transition": "this operation is not valid for the current state of the issue"});
        let step = self.steps.get(id).filter(|step| step.from == status).ok_or(refused)?;
        let resolution = body["fields"]["resolution"]["name"].as_str().map(str::to_owned);
        let fits = resolution.as_deref().is_some_and(|name| step.resolutions.contains(&name));
        if !step.resolutions.is_empty() && !fits {
            return Err(json!({"resolution": "Resolution is required."}));
        }
        if let Some((id, name)) = step.requires
            && body["fields"][id].is_null()
        {
            return Err(json!({id: format!("{name} is required.")}));
        }
        let (name, to, now) = (step.name, step.to, self.now);
        self.effects.push(format!("step {key} {name}"));
        let issue = self.issue(key).unwrap();
        issue.fields.insert("status".to_owned(), json!({"name": to}));
        if let Some(resolution) = resolution {
            issue.fields.insert("resolution".to_owned(), json!({"name": resolution}));
            let at = now.format("%Y-%m-%dT%H:%M:%S%.3f%z").to_string();
            issue.fields.insert("resolutiondate".to_owned(), json!(at));
        }
        self.touch(key);
        Ok(())
    }

    pub fn comment(&mut self, key: &str, body: &Value) -> Result<(), Value> {
        let fits = if self.is_cloud { body["type"] == "doc" } else { body.is_string() };
        if !fits {
            return Err(json!({"comment": "Comment body is not valid!"}));
        }
        self.effects.push(format!("comment {key}"));
        self.issue(key).unwrap().comments.push(body.clone());
        self.touch(key);
        Ok(())
    }
}
