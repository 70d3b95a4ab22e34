//! The jobs of the checker, as its daemons run them: everything a job can do to a scheduler, and a line for each thing.

use crate::clock::Nanos;
use crate::effects::{self, EffectsLog, FOLDER, Line, What};
use rosterd::job::{Child, Job, JobContext, JobError, Outcome};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;
use uuid::Uuid;

/// A daemon: the rosterd that ships, and this job.
pub fn run_daemon() -> ExitCode {
    rosterd::run(rosterd::jobs::built_in().register(ChaosJob))
}

static LOG: LazyLock<EffectsLog> = LazyLock::new(|| {
    let folder = std::env::var(FOLDER).expect("the checker names the folder of the effects");
    EffectsLog::open(Path::new(&folder)).expect("the folder of the effects can be written")
});

/// What one row does.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Duty {
    /// How long it takes.
    #[serde(default)]
    duration_milliseconds: u64,
    /// Effects, spread over that time.
    #[serde(default = "one")]
    steps: u32,
    /// Attempts that fail before one succeeds.
    #[serde(default)]
    fail_attempts: i32,
    /// Whether it panics instead of failing.
    #[serde(default)]
    panic: bool,
    /// Whether it does not hear a cancel.
    #[serde(default)]
    stubborn: bool,
    /// Children, and their configuration.
    #[serde(default)]
    children: u32,
    #[serde(default)]
    child_config: Option<Uuid>,
    /// Whether it writes to the ledger in the transaction that completes it.
    #[serde(default)]
    ledger: bool,
}

fn one() -> u32 {
    1
}

struct ChaosJob;

/// One run, and its lines.
struct Run {
    template: Line,
    ended: bool,
}

impl Run {
    fn begin(ctx: &JobContext) -> Self {
        let row = ctx.row();
        let template = Line {
            t: 0,
            what: What::Start,
            row: row.id.0,
            attempt: row.attempt,
            iteration: row.iteration,
            runner: ctx.runner_id(),
            pid: std::process::id(),
            run: fastrand::u64(..),
            step: 0,
            gate: 0,
        };
        let run = Self { template, ended: false };
        run.say(What::Start, 0, 0);
        run
    }

    fn say(&self, what: What, step: u32, gate: Nanos) {
        LOG.write(&Line { t: effects::now(), what, step, gate, ..self.template.clone() });
    }

    fn end(&mut self, what: What) {
        self.ended = true;
        self.say(what, 0, 0);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.ended {
            self.say(What::Dropped, 0, 0);
        }
    }
}

impl Job for ChaosJob {
    const STRUCT: &'static str = "ChaosJob";
    const DESCRIPTION: &'static str = "Does what the checker asks and writes down what it did";
    type Payload = Duty;

    async fn run(&self, ctx: JobContext, duty: Duty) -> Result<Outcome, JobError> {
        let mut run = Run::begin(&ctx);
        let parts = duty.steps.max(1);
        let pause = Duration::from_millis(duty.duration_milliseconds) / parts;
        for step in 0..duty.steps {
            let stopped = if duty.stubborn {
                tokio::time::sleep(pause).await;
                false
            } else {
                tokio::select! {
                    () = ctx.cancelled() => true,
                    () = tokio::time::sleep(pause) => false,
                }
            };
            if stopped {
                run.end(What::Stopped);
                return Err(JobError::stopped());
            }
            if let Err(refused) = ctx.may_act().await {
                run.end(What::Stopped);
                return Err(refused.into());
            }
            run.say(What::Effect, step, effects::now());
        }
        if let Some(config) = duty.child_config {
            for _ in 0..duty.children {
                let payload = serde_json::json!({ "duration_milliseconds": 200 });
                if let Err(error) = ctx.enqueue(Child::of(config).payload(payload)).await {
                    run.end(What::Failed);
                    return Err(error);
                }
            }
        }
        if ctx.row().attempt <= duty.fail_attempts {
            run.end(What::Failed);
            assert!(!duty.panic, "as the checker asked");
            return Err(JobError::retry_message("as the checker asked"));
        }
        if duty.ledger {
            return post(&ctx, run).await;
        }
        run.end(What::Ok);
        Ok(Outcome::done())
    }
}

/// An effect in rosterd's own database, committed with the completion.
async fn post(ctx: &JobContext, mut run: Run) -> Result<Outcome, JobError> {
    let mut transaction = ctx.database().begin().await?;
    sqlx::query("insert into chaos.ledger (id, runner) values ($1, $2)")
        .bind(ctx.row().id.0)
        .bind(ctx.runner_id())
        .execute(&mut *transaction)
        .await?;
    // Written down before the commit, because it may be the last thing this process does.
    run.end(What::Ok);
    ctx.complete(transaction, Outcome::done()).await
}
