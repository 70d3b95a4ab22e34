//! JIRA's JSON, as far as it is read here. None of it leaves this folder.

use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A page of a search. Server counts; Cloud hands out a token for the next page.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SearchPage {
    pub(super) issues: Vec<Value>,
    pub(super) total: Option<usize>,
    pub(super) next_page_token: Option<String>,
    pub(super) is_last: Option<bool>,
}

/// An issue with the fields that were asked for.
#[derive(Debug, Deserialize)]
pub(super) struct Issue {
    pub(super) key: String,
    #[serde(default)]
    pub(super) fields: Map<String, Value>,
    pub(super) editmeta: Option<EditMeta>,
}

/// The fields that can be edited now.
#[derive(Debug, Default, Deserialize)]
pub(super) struct EditMeta {
    #[serde(default)]
    pub(super) fields: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Created {
    pub(super) key: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Transitions {
    pub(super) transitions: Vec<Transition>,
}

/// A step that the workflow offers from where an issue is.
#[derive(Debug, Deserialize)]
pub(super) struct Transition {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) to: Named,
    #[serde(default)]
    pub(super) fields: BTreeMap<String, TransitionField>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TransitionField {
    #[serde(default)]
    pub(super) required: bool,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) has_default_value: bool,
    #[serde(default)]
    pub(super) allowed_values: Vec<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Named {
    pub(super) name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Comments {
    pub(super) comments: Vec<Comment>,
    pub(super) total: usize,
}

#[derive(Debug, Deserialize)]
pub(super) struct Comment {
    /// A text, or on Cloud a document.
    #[serde(default)]
    pub(super) body: Value,
}

/// A field that JIRA knows, whether of its own or made by its administrators.
#[derive(Debug, Deserialize)]
pub(super) struct FieldInfo {
    pub(super) id: String,
    pub(super) name: String,
    /// A few of JIRA's own columns have none.
    pub(super) schema: Option<Schema>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Schema {
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// The type of each, where `kind` is `array`.
    pub(super) items: Option<String>,
    /// The plugin's name of a custom field's type.
    pub(super) custom: Option<String>,
    /// The name of one of JIRA's own fields.
    pub(super) system: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Myself {
    pub(super) time_zone: String,
}

/// What JIRA says when it refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Errors {
    #[serde(default)]
    pub(super) error_messages: Vec<String>,
    #[serde(default)]
    pub(super) errors: Map<String, Value>,
}
