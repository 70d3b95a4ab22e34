//! Which jobs this node can run: `Struct` name -> job.
//!
//! The look-up ignores case, punctuation and a final "job" (contract section 6), as `vm.job_key` does in the
//! database. Two jobs that would be found by the same name are refused at start.

use crate::job::{Job, JobContext, JobError, Outcome};
use futures_util::future::BoxFuture;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The jobs of one binary. Built by [`crate::jobs::built_in`] and [`Registry::register`].
#[derive(Default)]
pub struct Registry {
    jobs: BTreeMap<String, Arc<dyn AnyJob>>,
    problems: Vec<RegistryError>,
}

/// Why the jobs of a binary cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Two jobs would be found by the same name.
    #[error(
        "failed to register job `{new}`: it is found by the same name as `{existing}` \
         (case, punctuation and a final \"job\" do not count); rename one"
    )]
    Collision {
        /// The job that came second.
        new: String,
        /// The job that has the name.
        existing: String,
    },
    /// The name has no letter or digit, or is too long for `Job.Struct`.
    #[error("failed to register job `{0}`: a name has letters or digits and at most 100 characters")]
    Name(String),
    /// The payload type takes fields it does not know, or is no object.
    #[error(
        "failed to register job `{0}`: its payload must be an object that refuses unknown fields; \
         add #[serde(deny_unknown_fields)] to the payload type"
    )]
    OpenPayload(String),
}

impl Registry {
    /// No jobs at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a job. A job that cannot be registered is reported by [`Registry::check`], which every start of
    /// the daemon calls, so that chains stay readable.
    #[must_use]
    pub fn register<J: Job>(mut self, job: J) -> Self {
        let schema = schemars::schema_for!(J::Payload).to_value();
        if J::STRUCT.len() > 100 || !J::STRUCT.contains(|c: char| c.is_ascii_alphanumeric()) {
            self.problems.push(RegistryError::Name(J::STRUCT.to_owned()));
        } else if schema.get("type") != Some(&Value::from("object"))
            || schema.get("additionalProperties") != Some(&Value::Bool(false))
        {
            self.problems.push(RegistryError::OpenPayload(J::STRUCT.to_owned()));
        } else {
            let job: Arc<dyn AnyJob> = Arc::new(Registered { job: Arc::new(job), schema });
            let existing = self.jobs.entry(job_key(J::STRUCT)).or_insert_with(|| Arc::clone(&job));
            if !Arc::ptr_eq(existing, &job) {
                self.problems.push(RegistryError::Collision {
                    new: J::STRUCT.to_owned(),
                    existing: existing.name().to_owned(),
                });
            }
        }
        self
    }

    /// The first thing that is wrong with what was registered.
    pub fn check(&self) -> Result<(), RegistryError> {
        self.problems.first().map_or(Ok(()), |problem| Err(problem.clone()))
    }

    /// The job an operator's name finds.
    pub fn find(&self, name: &str) -> Option<Arc<dyn AnyJob>> {
        self.jobs.get(&job_key(name)).map(Arc::clone)
    }

    /// Every job, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn AnyJob>> {
        self.jobs.values()
    }
}

/// The name by which a job is looked up; the same rule as `vm.job_key`.
pub fn job_key(name: &str) -> String {
    let letters: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    match letters.strip_suffix("job") {
        Some(stem) if !stem.is_empty() => stem.to_owned(),
        _ => letters,
    }
}

/// A run that only waits for its context: the payload has been decoded.
pub type PreparedRun = Box<dyn FnOnce(JobContext) -> BoxFuture<'static, Result<Outcome, JobError>> + Send>;

/// A job whose payload type is no longer known to the compiler. The engine knows jobs only as this.
pub trait AnyJob: Send + Sync {
    /// `Job.Struct`.
    fn name(&self) -> &'static str;
    /// `Job.Description`.
    fn description(&self) -> &'static str;
    /// `Job.Priority`, for a new row in `Job`.
    fn priority(&self) -> i32;
    /// `Job.PayloadSchema`.
    fn schema(&self) -> &Value;
    /// Decodes the payload, or says in one sentence which field is wrong and what was expected.
    fn prepare(&self, payload: &RawValue) -> Result<PreparedRun, String>;
}

struct Registered<J> {
    job: Arc<J>,
    schema: Value,
}

impl<J: Job> AnyJob for Registered<J> {
    fn name(&self) -> &'static str {
        J::STRUCT
    }

    fn description(&self) -> &'static str {
        J::DESCRIPTION
    }

    fn priority(&self) -> i32 {
        J::PRIORITY
    }

    fn schema(&self) -> &Value {
        &self.schema
    }

    fn prepare(&self, payload: &RawValue) -> Result<PreparedRun, String> {
        let mut json = serde_json::Deserializer::from_str(payload.get());
        let payload: J::Payload = serde_path_to_error::deserialize(&mut json).map_err(|e| {
            let path = e.path().to_string();
            let what = without_place(&e.inner().to_string());
            if path == "." { format!("Payload: {what}") } else { format!("Payload field `{path}`: {what}") }
        })?;
        let job = Arc::clone(&self.job);
        Ok(Box::new(move |ctx| Box::pin(async move { job.run(ctx, payload).await })))
    }
}

/// `serde_json` ends its messages with a line and column of our own rendering, which mean nothing to the operator.
fn without_place(message: &str) -> String {
    message.rfind(" at line ").map_or(message, |at| &message[..at]).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::NoPayload;
    use serde::Deserialize;

    #[derive(Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Mail {
        to: String,
        #[serde(default)]
        retry_seconds: u32,
    }

    #[derive(Deserialize, schemars::JsonSchema)]
    #[allow(dead_code)]
    struct Open {
        to: String,
    }

    macro_rules! job {
        ($type:ident, $name:literal, $payload:ty) => {
            struct $type;
            impl Job for $type {
                const STRUCT: &'static str = $name;
                const DESCRIPTION: &'static str = "";
                type Payload = $payload;
                async fn run(&self, _: JobContext, _: $payload) -> Result<Outcome, JobError> {
                    Ok(Outcome::done())
                }
            }
        };
    }
    job!(Change, "SAPM_PasswordChangeJob", NoPayload);
    job!(Twin, "SapmPasswordChange", NoPayload);
    job!(Mailer, "MailSenderJob", Mail);
    job!(Careless, "CarelessJob", Open);
    job!(Nameless, "--", NoPayload);

    fn refusal(job: &dyn AnyJob, payload: &str) -> String {
        match job.prepare(&RawValue::from_string(payload.to_owned()).unwrap()) {
            Ok(_) => panic!("accepted {payload}"),
            Err(sentence) => sentence,
        }
    }

    #[test]
    fn a_job_is_found_whatever_the_case_and_punctuation_and_with_or_without_job() {
        let registry = Registry::new().register(Change);
        for name in [
            "SAPM_PasswordChangeJob",
            "sapm passwordchangejob",
            "SapmPasswordChange",
            "sapm-password-change JOB",
        ] {
            assert!(registry.find(name).is_some(), "{name}");
        }
        assert!(registry.find("sapm").is_none());
    }

    #[test]
    fn two_jobs_found_by_the_same_name_are_refused() {
        let problem = Registry::new().register(Change).register(Twin).check().unwrap_err();
        assert!(problem.to_string().contains("`SapmPasswordChange`"), "{problem}");
        assert!(problem.to_string().contains("`SAPM_PasswordChangeJob`"), "{problem}");
    }

    #[test]
    fn a_payload_type_that_takes_unknown_fields_is_refused() {
        assert_eq!(
            Registry::new().register(Careless).check(),
            Err(RegistryError::OpenPayload("CarelessJob".to_owned()))
        );
    }

    #[test]
    fn a_name_without_letters_is_refused() {
        assert_eq!(Registry::new().register(Nameless).check(), Err(RegistryError::Name("--".to_owned())));
    }

    #[test]
    fn a_payload_that_does_not_decode_names_the_field_and_what_was_expected() {
        let registry = Registry::new().register(Mailer);
        let job = registry.find("mailsender").unwrap();
        assert_eq!(
            refusal(&*job, r#"{"to": 5}"#),
            "Payload field `to`: invalid type: integer `5`, expected a string"
        );
        assert_eq!(refusal(&*job, r#"{"retry_seconds": 5}"#), "Payload: missing field `to`");
        let unknown = refusal(&*job, r#"{"to": "a", "too": "b"}"#);
        assert!(unknown.contains("unknown field `too`, expected `to` or `retry_seconds`"), "{unknown}");
        let huge = refusal(&*job, r#"{"to": "a", "retry_seconds": 99999999999}"#);
        assert!(huge.contains("retry_seconds") && huge.contains("expected u32"), "{huge}");
    }
}
