//! Jobs that act outside, each in one of the ways the library offers, and write down what they did in a file.

use rosterd::job::{Before, Job, JobContext, JobError, Outcome};
use schemars::JsonSchema;
use serde::Deserialize;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One line, in one write, so that several processes can share the file.
fn note(file: &Path, line: String) -> Result<(), JobError> {
    let mut file = OpenOptions::new().append(true).create(true).open(file)?;
    Ok(file.write_all(format!("{line}\n").as_bytes())?)
}

/// How long a job acts, and where it writes that down.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Acting {
    file: PathBuf,
    seconds: f64,
}

/// Acts every few milliseconds behind the gate, deaf to every cancel.
pub(crate) struct ActJob;

impl Job for ActJob {
    const STRUCT: &'static str = "ActJob";
    const DESCRIPTION: &'static str = "Acts outside again and again, each time after asking the effect gate";
    type Payload = Acting;

    async fn run(&self, ctx: JobContext, payload: Acting) -> Result<Outcome, JobError> {
        let pause = Duration::from_millis(10);
        let times = Duration::try_from_secs_f64(payload.seconds)?.as_millis() / pause.as_millis();
        for _ in 0..times {
            ctx.may_act().await?;
            note(&payload.file, ctx.runner_id().to_string())?;
            tokio::time::sleep(pause).await;
        }
        Ok(Outcome::done())
    }
}

/// What happens between a step and the word that it is done.
#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mishap {
    /// Nothing.
    None,
    /// The attempt fails after the word, once.
    FailAfter,
    /// The attempt waits there, deaf, to be killed.
    Hang,
}

/// One step, and what happens in it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    file: PathBuf,
    mishap: Mishap,
}

/// Does one step that must not be repeated unawares.
pub(crate) struct StepJob;

impl Job for StepJob {
    const STRUCT: &'static str = "StepJob";
    const DESCRIPTION: &'static str = "Creates one ticket outside, which is a line in a file";
    type Payload = Step;

    async fn run(&self, ctx: JobContext, payload: Step) -> Result<Outcome, JobError> {
        let step = ctx.effect("create ticket").await?;
        let key = step.key().to_owned();
        match step.before().clone() {
            Before::Done(reference) => {
                note(&payload.file, format!("done {key} {}", reference.unwrap_or_default()))?;
            }
            Before::Unknown => {
                note(&payload.file, format!("unknown {key}"))?;
                step.done(Some("T-2")).await?;
            }
            Before::Never => {
                note(&payload.file, format!("create {key}"))?;
                if payload.mishap == Mishap::Hang {
                    std::future::pending::<()>().await;
                }
                step.done(Some("T-1")).await?;
                if payload.mishap == Mishap::FailAfter {
                    return Err(JobError::retry_message("the step was done, and then the lights went out"));
                }
            }
        }
        Ok(Outcome::done())
    }
}

/// What is entered, and how long it waits before it completes.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    seconds: f64,
}

/// Writes into a table `Ledger` (ID uuid) of the test's, in one transaction with its own completion.
pub(crate) struct LedgerJob;

impl Job for LedgerJob {
    const STRUCT: &'static str = "LedgerJob";
    const DESCRIPTION: &'static str = "Makes an entry in a ledger, together with its own completion";
    type Payload = Entry;

    async fn run(&self, ctx: JobContext, payload: Entry) -> Result<Outcome, JobError> {
        let mut entry = ctx.database().begin().await?;
        sqlx::query("insert into public.Ledger (ID) values ($1)")
            .bind(ctx.row().id.0)
            .execute(&mut *entry)
            .await?;
        ctx.progress("entered");
        // Deaf, so that whatever happens meanwhile is for the completion to find.
        tokio::time::sleep(Duration::try_from_secs_f64(payload.seconds)?).await;
        ctx.complete(entry, Outcome::with_result(serde_json::json!({ "entered": true }))).await
    }
}
