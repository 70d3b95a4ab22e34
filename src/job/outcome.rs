//! What a job returns when it did its work.

use crate::history::Fence;
use crate::history::moves::Settled;
use serde_json::Value;

/// The work was done. What it carries ends up in `JobHistory.Result`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    pub(crate) result: Option<Value>,
    /// What the row became, if the job's own transaction has settled it.
    pub(crate) settled: Option<(Fence, Settled)>,
}

impl Outcome {
    /// Done, with nothing to tell.
    pub fn done() -> Self {
        Self::default()
    }

    /// Done, with a JSON value for `JobHistory.Result`. Larger than `engine.result_max_bytes` it is replaced
    /// by an object that says so; the run still counts as completed.
    pub fn with_result(result: impl Into<Value>) -> Self {
        Self { result: Some(result.into()), settled: None }
    }

    /// What it carries.
    pub fn result(&self) -> Option<&Value> {
        self.result.as_ref()
    }
}

/// A result as the row can take it. One too large or too deep is replaced by an object that says so; NUL cannot
/// be stored in a jsonb.
pub(crate) fn storable_result(result: Value, max_bytes: usize) -> Option<Value> {
    if is_deeper_than(&result, MAX_DEPTH) {
        let reason = format!("nested more than {MAX_DEPTH} levels deep");
        return Some(serde_json::json!({ "truncated": true, "reason": reason }));
    }
    let printed = result.to_string();
    if printed.len() > max_bytes {
        Some(serde_json::json!({
            "truncated": true,
            "bytes": printed.len(),
            "reason": format!("larger than engine.result_max_bytes ({max_bytes})"),
        }))
    } else if printed.contains("\\u0000") {
        serde_json::from_str(&printed.replace("\\u0000", "\\ufffd")).ok()
    } else {
        Some(result)
    }
}

/// Levels of lists and objects in a result, as in a payload. PostgreSQL refuses a jsonb of some thousands.
const MAX_DEPTH: usize = 100;

fn is_deeper_than(value: &Value, levels: usize) -> bool {
    let below = |inner: &Value| levels == 0 || is_deeper_than(inner, levels - 1);
    match value {
        Value::Array(items) => items.iter().any(below),
        Value::Object(fields) => fields.values().any(below),
        _ => false,
    }
}
