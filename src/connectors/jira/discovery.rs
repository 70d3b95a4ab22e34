//! What this JIRA knows by which name: read once, and checked against the maps of Payload.

use super::fields::Kind;
use super::jql::Column;
use super::rest::Rest;
use super::settings::{Settings, TicketField, nearest, same};
use super::wire::{FieldInfo, Named};
use crate::connectors::ticket_engine::TicketError;
use std::collections::{BTreeMap, HashMap};

/// The fields that are mapped.
#[derive(Debug)]
pub(super) struct Discovery {
    mapped: BTreeMap<TicketField, Known>,
    /// Of all fields, by ID.
    names: HashMap<String, String>,
}

/// A field of JIRA's.
#[derive(Debug)]
pub(super) struct Known {
    /// `customfield_10001`, `priority`
    pub(super) id: String,
    /// `None`: of a type that is only read here.
    pub(super) kind: Option<Kind>,
}

impl Discovery {
    /// Asks for fields and statuses; a name in Payload that JIRA does not have is an error that says which was meant.
    pub(super) async fn read(rest: &Rest, settings: &Settings) -> Result<Self, TicketError> {
        let fields: Vec<FieldInfo> = rest.read(rest.get("field"), "list its fields").await?;
        let statuses: Vec<Named> = rest.read(rest.get("status"), "list its statuses").await?;
        for (ours, theirs) in &settings.status_map {
            if !statuses.iter().any(|status| same(&status.name, theirs)) {
                let names = statuses.iter().map(|status| status.name.as_str());
                let problem =
                    unknown("status", theirs, &format!("status_map.{ours}"), nearest(theirs, names));
                return Err(rest.source_problem(problem));
            }
        }
        let mut mapped = BTreeMap::new();
        for (ours, theirs) in &settings.field_map {
            let known = find(&fields, *ours, theirs).map_err(|problem| rest.source_problem(problem))?;
            mapped.insert(*ours, known);
        }
        let names = fields.into_iter().map(|field| (field.id, field.name)).collect();
        Ok(Self { mapped, names })
    }

    /// The field for one of ours, if one is mapped.
    pub(super) fn field(&self, field: TicketField) -> Option<&Known> {
        self.mapped.get(&field)
    }

    /// The IDs of all that are mapped.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.mapped.values().map(|known| known.id.as_str())
    }

    /// The name of a field.
    pub(super) fn name(&self, id: &str) -> Option<String> {
        self.names.get(id).cloned()
    }
}

impl Known {
    /// How JQL names it.
    pub(super) fn column(&self) -> Column {
        match self.id.strip_prefix("customfield_").and_then(|number| number.parse().ok()) {
            Some(number) => Column::Custom(number),
            None => Column::Named(self.id.clone()),
        }
    }

    /// Whether JQL knows no equality for it.
    pub(super) fn is_text(&self) -> bool {
        matches!(self.kind, Some(Kind::Line | Kind::Text))
    }
}

fn find(fields: &[FieldInfo], ours: TicketField, theirs: &str) -> Result<Known, String> {
    let place = format!("field_map.{}", name_of(ours));
    let field = match fields.iter().find(|field| field.id == theirs) {
        Some(field) => field,
        None => match fields.iter().filter(|field| same(&field.name, theirs)).collect::<Vec<_>>()[..] {
            [field] => field,
            [] => {
                let names = fields.iter().map(|field| field.name.as_str());
                return Err(unknown("field", theirs, &place, nearest(theirs, names)));
            }
            [one, other, ..] => {
                return Err(format!(
                    "`{place}` in its Payload is {theirs:?}, and JIRA has two fields of this name; give {} or {}",
                    one.id, other.id
                ));
            }
        },
    };
    let kind = field.schema.as_ref().and_then(Kind::of);
    if kind.is_none() && ours.is_written() {
        let kind = field.schema.as_ref().map_or("no type", |schema| schema.kind.as_str());
        return Err(format!(
            "`{place}` in its Payload is {theirs:?}, a field of the type {kind}, which rosterd cannot set; map another \
             field"
        ));
    }
    Ok(Known { id: field.id.clone(), kind })
}

fn unknown(what: &str, theirs: &str, place: &str, meant: Option<&str>) -> String {
    let hint = meant.map_or_else(String::new, |meant| format!("; is {meant:?} meant?"));
    format!("`{place}` in its Payload is {theirs:?}, and JIRA has no {what} of this name{hint}")
}

/// As Payload spells it.
fn name_of(field: TicketField) -> String {
    let mut name = String::new();
    for c in format!("{field:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn known(ours: TicketField, theirs: &str) -> Result<Known, String> {
        let fields: Vec<FieldInfo> = serde_json::from_value(json!([
            {"id": "priority", "name": "Priority", "schema": {"type": "priority", "system": "priority"}},
            {"id": "customfield_1", "name": "Host Name", "schema": {"type": "string", "custom": "x:textfield"}},
            {"id": "customfield_2", "name": "Group", "schema": {"type": "group"}},
            {"id": "customfield_3", "name": "group", "schema": {"type": "string"}},
            {"id": "customfield_4", "name": "Sprint", "schema": {"type": "any"}},
            {"id": "thumbnail", "name": "Images"},
        ]))
        .unwrap();
        find(&fields, ours, theirs)
    }

    #[test]
    fn a_field_is_found_by_name_or_id_and_a_wrong_one_with_the_name_that_was_meant() {
        assert_eq!(known(TicketField::HostName, "host name").unwrap().id, "customfield_1");
        assert_eq!(known(TicketField::HostName, "customfield_1").unwrap().column(), Column::Custom(1));
        assert_eq!(
            known(TicketField::Priority, "Priority").unwrap().column(),
            Column::Named("priority".to_owned())
        );
        for (ours, theirs, words) in [
            (TicketField::HostName, "Hostname", "`field_map.host_name` in its Payload is \"Hostname\""),
            (TicketField::HostName, "Hostname", "is \"Host Name\" meant?"),
            (TicketField::Group, "Group", "give customfield_2 or customfield_3"),
            (TicketField::VendorReferences, "Sprint", "`field_map.vendor_references`"),
            (TicketField::VendorReferences, "Sprint", "the type any"),
        ] {
            let problem = known(ours, theirs).unwrap_err();
            assert!(problem.contains(words), "{problem}");
        }
        assert_eq!(known(TicketField::Exception, "Sprint").unwrap().kind, None, "it is only read");
    }
}
