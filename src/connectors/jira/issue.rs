//! A ticket of ours as an issue, and an issue as a ticket of ours.

use super::discovery::Discovery;
use super::fields::{self, Given, Kind, LINE};
use super::settings::{Flavour, Settings, TicketField};
use super::wire::Issue;
use crate::connectors::ticket_engine::{RemoteTicket, TicketDraft};
use serde_json::{Map, Value, json};

/// What every marker begins with, so that it is found among other labels.
const MARKER: &str = "rosterd-";
/// JIRA's own fields that are read of every issue.
const READ: [&str; 7] =
    ["status", "resolution", "resolutiondate", "assignee", "duedate", "labels", "updated"];

/// The fields of a new issue: those of JIRA itself, and those that are mapped and have a value. An error names the field.
pub(super) fn encode(
    draft: &TicketDraft,
    settings: &Settings,
    discovery: &Discovery,
) -> Result<Map<String, Value>, String> {
    let flavour = settings.flavour;
    let mut issue = Map::new();
    issue.insert("project".to_owned(), json!({"key": settings.project}));
    issue.insert("issuetype".to_owned(), json!({"name": settings.issue_type}));
    issue.insert("summary".to_owned(), json!(fields::one_line(&draft.summary, LINE)));
    if !draft.description.is_empty() {
        issue.insert("description".to_owned(), fields::long_text(&draft.description, flavour));
    }
    if let Some(due) = draft.due {
        issue.insert("duedate".to_owned(), json!(due.to_string()));
    }
    if !draft.assignee.is_empty() {
        issue.insert("assignee".to_owned(), fields::user(&draft.assignee, flavour));
    }
    for (field, given) in values(draft) {
        let Some(known) = discovery.field(field) else { continue };
        let Some(kind) = &known.kind else { continue };
        let value = kind.encode(&given, flavour).map_err(|problem| {
            let name = discovery.name(&known.id).unwrap_or_default();
            format!("the field {name:?} ({}) {problem}", known.id)
        })?;
        issue.insert(known.id.clone(), value);
    }
    // Last, because whatever else is kept in the labels, the marker must be among them.
    let mut labels = match issue.remove("labels") {
        Some(Value::Array(labels)) => labels,
        _ => Vec::new(),
    };
    labels.push(json!(draft.marker));
    issue.insert("labels".to_owned(), Value::Array(labels));
    Ok(issue)
}

/// What a draft says of each field; empty texts say nothing.
fn values(draft: &TicketDraft) -> impl Iterator<Item = (TicketField, Given)> {
    let texts = [
        (TicketField::Organization, &draft.organization),
        (TicketField::Solution, &draft.solution),
        (TicketField::Priority, &draft.priority),
        (TicketField::DiscoveredBy, &draft.discovered_by),
        (TicketField::Group, &draft.group),
        (TicketField::Asset, &draft.asset),
        (TicketField::HostName, &draft.host_name),
        (TicketField::Ip, &draft.ip),
        (TicketField::Mac, &draft.mac),
        (TicketField::Os, &draft.os),
        (TicketField::OsType, &draft.os_type),
        (TicketField::ServicePort, &draft.service_port),
        (TicketField::Vulnerability, &draft.vulnerability),
        (TicketField::VulnerabilityTitle, &draft.vulnerability_title),
        (TicketField::Cve, &draft.cve),
        (TicketField::VendorReferences, &draft.vendor_references),
        (TicketField::Category, &draft.category),
        (TicketField::AssignmentGroup, &draft.assignment_group),
        (TicketField::Application, &draft.application),
    ];
    let texts = texts.into_iter().filter(|(_, text)| !text.trim().is_empty());
    let texts = texts.map(|(field, text)| (field, Given::Text(text.clone())));
    let score = draft.cvss.map(|score| (TicketField::Cvss, Given::Number(score)));
    let seen = draft.alert_date.map(|at| (TicketField::AlertDate, Given::Instant(at)));
    texts.chain(score).chain(seen)
}

/// The fields to ask for.
pub(super) fn read_fields(discovery: &Discovery) -> Vec<&str> {
    READ.into_iter().chain(discovery.ids()).collect()
}

/// An issue as rosterd sees it. An error says what it lacks.
pub(super) fn decode(
    issue: &Issue,
    settings: &Settings,
    discovery: &Discovery,
) -> Result<RemoteTicket, String> {
    let value = |id: &str| issue.fields.get(id).filter(|value| !value.is_null());
    let mapped = |field| value(&discovery.field(field)?.id);
    let text = |field| mapped(field).and_then(fields::text);
    let status = status(issue).ok_or("it has no status")?;
    let updated = value("updated").and_then(fields::instant).ok_or("it does not say when it changed last")?;
    let labels = value("labels").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    Ok(RemoteTicket {
        key: issue.key.clone(),
        marker: labels.into_iter().find(|label| label.starts_with(MARKER)).map(str::to_owned),
        status: settings.to_rosterd(status, resolution(issue)),
        assignee: assignee(issue, settings.flavour).map(str::to_owned),
        assignment_group: text(TicketField::AssignmentGroup),
        due: value("duedate").and_then(fields::date),
        resolved: value("resolutiondate").and_then(fields::instant),
        exception: text(TicketField::Exception),
        exception_expires: mapped(TicketField::ExceptionExpires).and_then(fields::instant),
        updated,
        asset: text(TicketField::Asset),
        vulnerability: text(TicketField::Vulnerability),
        service_port: text(TicketField::ServicePort),
    })
}

/// JIRA's word for where an issue is.
pub(super) fn status(issue: &Issue) -> Option<&str> {
    issue.fields.get("status")?.get("name")?.as_str()
}

/// JIRA's word for how it was resolved.
pub(super) fn resolution(issue: &Issue) -> Option<&str> {
    issue.fields.get("resolution")?.get("name")?.as_str()
}

/// Who it is assigned to, by the word that assigns somebody.
pub(super) fn assignee(issue: &Issue, flavour: Flavour) -> Option<&str> {
    let word = if flavour == Flavour::Cloud { "accountId" } else { "name" };
    issue.fields.get("assignee")?.get(word)?.as_str()
}

/// Whether an issue belongs to an organization, where a search could only ask for words of its name.
pub(super) fn belongs_to(issue: &Issue, organization: &str, discovery: &Discovery) -> bool {
    match discovery.field(TicketField::Organization) {
        Some(known) if matches!(known.kind, Some(Kind::Line | Kind::Text)) => {
            issue.fields.get(&known.id).and_then(fields::text).is_some_and(|said| said == organization)
        }
        _ => true,
    }
}
