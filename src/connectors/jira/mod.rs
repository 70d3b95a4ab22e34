//! JIRA as a ticket system: Server and Data Center by REST v2, Cloud by REST v3.
//!
//! A ticket is found again by its label, a comment by its last line, and a step of the workflow by where the issue is.
//! So whatever became of an attempt that got no answer, the next one does what is left, and nothing twice.

mod changes;
mod clock;
mod comments;
mod discovery;
mod document;
mod fields;
mod issue;
mod jql;
mod rest;
mod settings;
mod wire;
mod workflow;

use super::SourceClient;
use super::ticket_engine::{RemoteTicket, TicketDraft, TicketEngine, TicketError, TicketUpdate};
use super::{Call, StatusCode};
use chrono::{DateTime, Utc};
use clock::Zone;
use discovery::Discovery;
use fields::Given;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use jql::{Column, Is, Jql};
use rest::{Refusal, Rest, issue_path};
use serde_json::{Map, Value, json};
use settings::{Flavour, Settings, TicketField};
use tokio::sync::OnceCell;
use wire::{Created, Issue};

/// A project of a JIRA. Its fields, statuses and time zone are read once, when they are needed first; a value of this
/// type lasts for one run, so the next run sees what was changed.
#[derive(Debug)]
pub struct Jira {
    rest: Rest,
    settings: Settings,
    discovery: OnceCell<Discovery>,
    zone: OnceCell<Zone>,
}

/// Something to set of an issue besides its status.
enum Edit {
    NoAssignee,
    Field(String, Value),
}

impl Jira {
    /// For a source whose Payload says which project it is and what things are called there (`docs/sources.md`). Asks
    /// nothing yet.
    pub fn new(client: SourceClient) -> Result<Self, TicketError> {
        let url = client.url(&Call::get("/"))?;
        let settings = Settings::new(&client.source().payload, url.host_str().unwrap_or_default());
        match settings {
            Ok(settings) => {
                let rest = Rest::new(client, settings.flavour);
                Ok(Self { rest, settings, discovery: OnceCell::new(), zone: OnceCell::new() })
            }
            Err(problem) => Err(Rest::new(client, Flavour::Server).source_problem(problem)),
        }
    }

    async fn discovery(&self) -> Result<&Discovery, TicketError> {
        self.discovery.get_or_try_init(|| Discovery::read(&self.rest, &self.settings)).await
    }

    async fn zone(&self) -> Result<&Zone, TicketError> {
        self.zone.get_or_try_init(|| Zone::read(&self.rest)).await
    }

    /// The error that a refusal is, with the names of the fields if they are known.
    async fn refused(&self, refusal: Refusal) -> TicketError {
        let discovery = self.discovery().await.ok();
        self.rest.refused(refusal, |id| discovery.and_then(|discovery| discovery.name(id)))
    }

    /// One issue as it is in JIRA's database, which unlike its search is never behind.
    async fn issue(
        &self,
        key: &str,
        fields: &[&str],
        expand: Option<&str>,
    ) -> Result<Option<Issue>, TicketError> {
        const DOING: &str = "show an issue";
        let mut call = self.rest.get(&issue_path(key)?).query("fields", fields.join(","));
        if let Some(expand) = expand {
            call = call.query("expand", expand);
        }
        match self.rest.try_call(call, DOING).await? {
            Ok(answer) => self.rest.decode(&answer, DOING).map(Some),
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(None),
            Err(refusal) => Err(self.refused(refusal).await),
        }
    }

    async fn create_issue(&self, draft: &TicketDraft) -> Result<String, TicketError> {
        const DOING: &str = "create an issue";
        let discovery = self.discovery().await?;
        let fields = issue::encode(draft, &self.settings, discovery)
            .map_err(|problem| TicketError::Item { key: draft.marker.clone(), problem })?;
        // Sent once: after a call without an answer the issue may be there, and only a search for its marker can tell.
        let call = self.rest.post("issue", &json!({ "fields": fields }));
        let answer = match self.rest.try_call(call, DOING).await? {
            Ok(answer) => answer,
            Err(refusal) => return Err(self.refused(refusal).await),
        };
        let created: Result<Created, TicketError> = self.rest.decode(&answer, DOING);
        created.map(|created| created.key).map_err(|error| match error {
            // It is there, and the next attempt finds it.
            TicketError::Answer { problem, .. } => TicketError::Answer { problem, passing: true },
            other => other,
        })
    }

    async fn find_issue(&self, marker: &str) -> Result<Option<String>, TicketError> {
        let jql = Jql::project(&self.settings.project)
            .and(&Column::Word("labels"), Is::Equal, marker)
            .order_by("key DESC");
        let found = self.rest.search(&jql, &["labels"]).await?;
        let carries = |issue: &Issue| {
            let labels = issue.fields.get("labels").and_then(Value::as_array);
            labels.is_some_and(|labels| labels.iter().any(|label| label == marker))
        };
        let issues = found.issues.into_iter().filter_map(|issue| serde_json::from_value::<Issue>(issue).ok());
        Ok(issues.filter(carries).map(|issue| issue.key).next())
    }

    async fn change_issue(&self, key: &str, change: &TicketUpdate) -> Result<(), TicketError> {
        let discovery = self.discovery().await?;
        let last_checked = discovery.field(TicketField::LastChecked).zip(change.last_checked);
        let mut wanted = Map::new();
        if let Some((field, at)) = last_checked
            && let Some(kind) = &field.kind
        {
            let value = kind.encode(&Given::Instant(at), self.settings.flavour).map_err(|problem| {
                self.rest
                    .source_problem(format!("`field_map.last_checked` in its Payload: the field {problem}"))
            })?;
            wanted.insert(field.id.clone(), value);
        }
        let ids = workflow::issue_fields().into_iter().chain(["assignee"]);
        let ids: Vec<&str> = ids.chain(wanted.keys().map(String::as_str)).collect();
        let issue = self.issue(key, &ids, Some("editmeta")).await?.ok_or_else(|| gone(key))?;
        // Somebody may have moved the issue on since an attempt that did all of it and got no answer.
        if comments::is_left(&self.rest, key, &change.marker, &change.comment).await? {
            return Ok(());
        }

        // An issue may be closed to edits where it is, or where it goes. What cannot be set before is set after.
        let editable = issue.editmeta.as_ref().map(|meta| &meta.fields);
        let (now, later): (Vec<Edit>, Vec<Edit>) = self
            .edits(&issue, change, &wanted)
            .into_iter()
            .partition(|edit| editable.is_some_and(|fields| fields.contains_key(edit.field())));
        self.edit(key, now).await?;
        if let Some(status) = &change.status {
            let wish = workflow::Wish { status, fields: &wanted };
            Box::pin(workflow::bring(self, issue, wish)).await?;
        }
        self.edit(key, later).await?;
        // Last, because it says what has been done.
        comments::leave(&self.rest, key, &change.marker, &change.comment).await
    }

    /// What differs, and nothing else.
    fn edits(&self, issue: &Issue, change: &TicketUpdate, wanted: &Map<String, Value>) -> Vec<Edit> {
        let is_assigned = issue::assignee(issue, self.settings.flavour).is_some();
        let assignee = (change.clear_assignee && is_assigned).then_some(Edit::NoAssignee);
        let differs = |id: &str, value: &Value| {
            let is = issue.fields.get(id).unwrap_or(&Value::Null);
            match (fields::instant(is), fields::instant(value)) {
                (Some(is), Some(wanted)) => is != wanted,
                _ => fields::text(is) != fields::text(value),
            }
        };
        let fields = wanted.iter().filter(|(id, value)| differs(id, value));
        let fields = fields.map(|(id, value)| Edit::Field(id.clone(), value.clone()));
        assignee.into_iter().chain(fields).collect()
    }

    async fn edit(&self, key: &str, edits: Vec<Edit>) -> Result<(), TicketError> {
        let path = issue_path(key)?;
        for edit in edits {
            let (call, doing) = match edit {
                Edit::NoAssignee => {
                    let nobody = match self.settings.flavour {
                        Flavour::Server => json!({"name": null}),
                        Flavour::Cloud => json!({"accountId": null}),
                    };
                    (self.rest.put(&format!("{path}/assignee"), &nobody), "clear an assignee")
                }
                Edit::Field(id, value) => {
                    (self.rest.put(&path, &json!({"fields": {id: value}})), "set a field of an issue")
                }
            };
            if let Err(refusal) = self.rest.try_call(call, doing).await? {
                return Err(self.refused(refusal).await);
            }
        }
        Ok(())
    }
}

impl Edit {
    fn field(&self) -> &str {
        match self {
            Self::NoAssignee => "assignee",
            Self::Field(id, _) => id,
        }
    }
}

fn gone(key: &str) -> TicketError {
    TicketError::Item {
        key: key.to_owned(),
        problem: "JIRA has no such issue, or the account may not see it".to_owned(),
    }
}

impl TicketEngine for Jira {
    /// A call without an answer may have made the issue: look for the marker before another attempt. An assignee that
    /// JIRA does not know is an error that names them; nothing is created then.
    fn create<'a>(&'a self, draft: &'a TicketDraft) -> BoxFuture<'a, Result<String, TicketError>> {
        Box::pin(self.create_issue(draft))
    }

    /// The newest issue with this label. JIRA's search lags some seconds behind, on Cloud as on a busy Data Center, so
    /// `None` shortly after an attempt proves nothing: ask again later.
    fn find<'a>(&'a self, marker: &'a str) -> BoxFuture<'a, Result<Option<String>, TicketError>> {
        Box::pin(self.find_issue(marker))
    }

    fn change<'a>(
        &'a self,
        key: &'a str,
        change: &'a TicketUpdate,
    ) -> BoxFuture<'a, Result<(), TicketError>> {
        Box::pin(self.change_issue(key, change))
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<RemoteTicket>, TicketError>> {
        Box::pin(async move {
            let discovery = self.discovery().await?;
            let Some(issue) = self.issue(key, &issue::read_fields(discovery), None).await? else {
                return Ok(None);
            };
            issue::decode(&issue, &self.settings, discovery)
                .map(Some)
                .map_err(|problem| TicketError::Item { key: issue.key.clone(), problem })
        })
    }

    /// Changes of the last two minutes before `since` come again, because the search may have learned of them late.
    fn updated_since<'a>(
        &'a self,
        organization: &'a str,
        since: Option<DateTime<Utc>>,
    ) -> BoxStream<'a, Result<RemoteTicket, TicketError>> {
        changes::stream(self, organization, since)
    }
}
