//! What `Payload` of a source of OpenSCAP may say.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// `SourceConfig.Payload` of OpenSCAP.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // The client of the source reads `tls_ca_pem` and `tls_ca_file`; here they are only no mistakes.
pub struct OpenScapPayload {
    /// How long after its start a scan waits for results at most, in seconds; 86400 if nothing is said.
    #[serde(default)]
    result_wait_seconds: Option<u64>,
    /// Has `OpenScapRunJob` run `oscap`. Without it rosterd starts nothing and reads what others bring.
    #[serde(default)]
    pub(super) run: Option<RunPayload>,
    /// CAs of an Address with `https://`, which the client of the source reads.
    #[serde(default)]
    tls_ca_pem: Option<Value>,
    /// The same in a file.
    #[serde(default)]
    tls_ca_file: Option<Value>,
}

/// `run` in [`OpenScapPayload`]. Whoever may write rows writes it, so nothing of it is trusted.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunPayload {
    /// Where `oscap` runs.
    pub(super) over: Over,
    /// The profile of the content, by its whole ID or its last part.
    pub(super) profile: String,
    /// File with the data stream, in one of the folders of `openscap.content`.
    pub(super) content: PathBuf,
    /// How long the evaluation of one host may take.
    #[serde(default = "an_hour")]
    #[schemars(range(min = 1, max = 604_800))]
    pub(super) timeout_seconds: u64,
    /// Who logs in over ssh.
    #[serde(default)]
    pub(super) user: String,
    /// Where ssh is listened for.
    #[serde(default = "ssh_port")]
    pub(super) port: u16,
    /// Hosts that one row evaluates at a time.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub(super) parallel: usize,
}

/// Where `oscap` runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Over {
    /// On each host, which is reached over ssh.
    #[serde(rename = "ssh")]
    Ssh,
    /// On the host of the daemon, about that host.
    #[serde(rename = "this host")]
    ThisHost,
}

fn an_hour() -> u64 {
    3600
}

fn ssh_port() -> u16 {
    22
}

fn one() -> usize {
    1
}

impl RunPayload {
    fn check(&self) -> Result<(), String> {
        let wrong = |field: &str, value: &dyn std::fmt::Debug, wish: &str| {
            Err(format!("Payload field `run.{field}` is {value:?}, give {wish}"))
        };
        if !is_word(&self.profile) {
            return wrong(
                "profile",
                &self.profile,
                "the ID of a profile: letters, digits, _, . and -, no - first",
            );
        }
        if self.over == Over::Ssh && !is_word(&self.user) {
            return wrong(
                "user",
                &self.user,
                "who logs in over ssh: letters, digits, _, . and -, no - first",
            );
        }
        if !self.content.is_absolute() {
            return wrong("content", &self.content, "the whole path of a file");
        }
        if !(1..=604_800).contains(&self.timeout_seconds) {
            return wrong("timeout_seconds", &self.timeout_seconds, "1 to 604800");
        }
        if !(1..=1000).contains(&self.parallel) {
            return wrong("parallel", &self.parallel, "1 to 1000");
        }
        if self.port == 0 {
            return wrong("port", &self.port, "1 to 65535");
        }
        Ok(())
    }
}

/// What no program takes for an option, and no shell for anything but a word.
fn is_word(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
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
            _ => read.run.as_ref().map_or(Ok(()), RunPayload::check).map(|()| read),
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
    fn what_shall_be_run_is_checked_before_anything_else_looks_at_it() {
        let run = |changed: Value| {
            let mut run =
                json!({"over": "ssh", "profile": "xccdf_a-1", "content": "/c/ds.xml", "user": "scan"});
            run.as_object_mut().unwrap().extend(changed.as_object().unwrap().clone());
            OpenScapPayload::read(&json!({ "run": run }))
        };
        let read = run(json!({})).unwrap().run.unwrap();
        assert_eq!((read.timeout_seconds, read.port, read.parallel), (3600, 22, 1));
        for profile in ["", "-o", "--remediate", "a b", "a;b", "a'b", "a$b", "../a/", "\u{e9}", "a\n", "a\0"]
        {
            let problem = run(json!({ "profile": profile })).unwrap_err();
            assert!(problem.starts_with("Payload field `run.profile` is"), "{profile:?}: {problem}");
        }
        for user in ["", "-oProxyCommand=x", "a@b", "a b"] {
            let problem = run(json!({ "user": user })).unwrap_err();
            assert!(problem.starts_with("Payload field `run.user` is"), "{user:?}: {problem}");
        }
        assert!(run(json!({"over": "this host", "user": ""})).is_ok());
        assert!(run(json!({"over": "telnet"})).unwrap_err().contains("`run.over`"));
        assert!(run(json!({"content": "ds.xml"})).unwrap_err().contains("`run.content`"));
        assert!(run(json!({"timeout_seconds": 0})).unwrap_err().contains("give 1 to 604800"));
        assert!(run(json!({"parallel": 0})).unwrap_err().contains("give 1 to 1000"));
        assert!(run(json!({"port": 0})).unwrap_err().contains("give 1 to 65535"));
        assert!(run(json!({"sudo": true})).unwrap_err().contains("sudo"));
    }

    #[test]
    fn what_the_client_reads_is_no_mistake_and_nothing_at_all_is_enough() {
        let read = OpenScapPayload::read(&json!({"tls_ca_file": "corp.pem", "tls_ca_pem": null})).unwrap();
        assert_eq!(read.result_wait(), Duration::from_secs(86_400));
        assert!(OpenScapPayload::read(&Value::Null).is_ok());
    }
}
