//! What `Payload` of a source of OpenSCAP may say.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// `SourceConfig.Payload` of OpenSCAP.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // The client of the source reads `tls_ca_pem` and `tls_ca_file`; here they are only no mistakes.
pub struct OpenScapPayload {
    /// How long after its start a scan waits for results at most, in seconds; 86400 if nothing is said.
    #[serde(default)]
    result_wait_seconds: Option<u64>,
    /// CAs of an Address with `https://`, which the client of the source reads.
    #[serde(default)]
    tls_ca_pem: Option<Value>,
    /// The same in a file.
    #[serde(default)]
    tls_ca_file: Option<Value>,
}

/// A year.
const MAX_WAIT: u64 = 31_536_000;

impl OpenScapPayload {
    /// From the column. An error finishes "this source: ".
    pub(super) fn read(payload: &Value) -> Result<Self, String> {
        if payload.is_null() {
            return Ok(Self::default());
        }
        if !payload.is_object() {
            return Err("its Payload is no JSON object".to_owned());
        }
        let read: Self = serde_path_to_error::deserialize(payload).map_err(|error| {
            let field = error.path().to_string();
            let inner = error.into_inner();
            if field == "." {
                format!("its Payload: {inner}")
            } else {
                format!("Payload field `{field}`: {inner}")
            }
        })?;
        match read.result_wait_seconds {
            Some(seconds) if !(1..=MAX_WAIT).contains(&seconds) => {
                Err(format!("Payload field `result_wait_seconds` is {seconds}, give 1 to {MAX_WAIT}"))
            }
            _ => Ok(read),
        }
    }

    /// How long a scan waits for results.
    pub(super) fn result_wait(&self) -> Duration {
        Duration::from_secs(self.result_wait_seconds.unwrap_or(86_400))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_field_that_makes_no_sense_is_named() {
        let problem = |payload: Value| OpenScapPayload::read(&payload).unwrap_err();
        assert!(problem(json!({"result_wait": 5})).contains("`result_wait`"));
        assert!(
            problem(json!({"result_wait_seconds": "5"})).starts_with("Payload field `result_wait_seconds`")
        );
        assert!(problem(json!({"result_wait_seconds": 0})).contains("give 1 to 31536000"));
        assert!(problem(json!([])).starts_with("its Payload"), "{}", problem(json!([])));
    }

    #[test]
    fn what_the_client_reads_is_no_mistake_and_nothing_at_all_is_enough() {
        let read = OpenScapPayload::read(&json!({"tls_ca_file": "corp.pem", "tls_ca_pem": null})).unwrap();
        assert_eq!(read.result_wait(), Duration::from_secs(86_400));
        assert!(OpenScapPayload::read(&Value::Null).is_ok());
    }
}
