//! What a job returns when it did its work.

use serde_json::Value;

/// The work was done. What it carries ends up in `JobHistory.Result`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    pub(crate) result: Option<Value>,
}

impl Outcome {
    /// Done, with nothing to tell.
    pub fn done() -> Self {
        Self::default()
    }

    /// Done, with a JSON value for `JobHistory.Result`. Larger than `engine.result_max_bytes` it is replaced
    /// by an object that says so; the run still counts as completed.
    pub fn with_result(result: impl Into<Value>) -> Self {
        Self { result: Some(result.into()) }
    }

    /// What it carries.
    pub fn result(&self) -> Option<&Value> {
        self.result.as_ref()
    }
}
