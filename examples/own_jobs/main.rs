//! A job author's own binary: the rosterd that ships, and these jobs.
//!
//! The same command line, the same daemon: `cargo run --example own_jobs -- run`. The project's tests run it
//! too, because its jobs misbehave in every way a job can.

mod effects;

use effects::{ActJob, LedgerJob, StepJob};
use rosterd::job::{Child, Job, JobContext, JobError, NoPayload, Outcome};
use schemars::JsonSchema;
use serde::Deserialize;
use std::future::Future;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    rosterd::run(
        rosterd::jobs::built_in()
            .register(NoopJob)
            .register(SleepJob)
            .register(StubbornJob)
            .register(SpinJob)
            .register(FailJob)
            .register(PanicJob)
            .register(AbortJob)
            .register(ParentJob)
            .register(TalkJob)
            .register(AnswerJob)
            .register(ActJob)
            .register(StepJob)
            .register(LedgerJob)
            .register(QueryJob)
            .register(WriteJob)
            .register(HoldJob),
    )
}

/// Does nothing: what is left is the scheduler's own cost.
struct NoopJob;

impl Job for NoopJob {
    const STRUCT: &'static str = "NoopJob";
    const DESCRIPTION: &'static str = "Does nothing";
    type Payload = NoPayload;

    async fn run(&self, _: JobContext, _: NoPayload) -> Result<Outcome, JobError> {
        Ok(Outcome::done())
    }
}

/// How long a job takes.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Duty {
    #[serde(default = "one_minute")]
    seconds: f64,
}

fn one_minute() -> f64 {
    60.0
}

impl Duty {
    fn time(&self) -> Result<Duration, JobError> {
        Duration::try_from_secs_f64(self.seconds).map_err(JobError::fatal)
    }
}

/// Waits as a good job does: it hears the cancel.
struct SleepJob;

impl Job for SleepJob {
    const STRUCT: &'static str = "SleepJob";
    const DESCRIPTION: &'static str = "Waits for some seconds, and stops when told to";
    type Payload = Duty;

    async fn run(&self, ctx: JobContext, duty: Duty) -> Result<Outcome, JobError> {
        ctx.info(format!("sleeping for {} seconds", duty.seconds));
        ctx.progress("asleep");
        tokio::select! {
            () = ctx.cancelled() => Err(JobError::stopped()),
            () = tokio::time::sleep(duty.time()?) => Ok(Outcome::with_result(serde_json::json!({ "slept_seconds": duty.seconds }))),
        }
    }
}

/// Waits without hearing the cancel; it can only be aborted.
struct StubbornJob;

impl Job for StubbornJob {
    const STRUCT: &'static str = "StubbornJob";
    const DESCRIPTION: &'static str = "Waits for some seconds and does not hear a cancel";
    type Payload = Duty;

    async fn run(&self, _: JobContext, duty: Duty) -> Result<Outcome, JobError> {
        tokio::time::sleep(duty.time()?).await;
        Ok(Outcome::done())
    }
}

/// Blocks its thread; it cannot even be aborted.
struct SpinJob;

impl Job for SpinJob {
    const STRUCT: &'static str = "SpinJob";
    const DESCRIPTION: &'static str = "Keeps a thread busy for some seconds, hearing nothing";
    type Payload = Duty;

    async fn run(&self, _: JobContext, duty: Duty) -> Result<Outcome, JobError> {
        let until = Instant::now() + duty.time()?;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        Ok(Outcome::done())
    }
}

/// How a job fails.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Failing {
    /// Attempts that fail before one succeeds.
    #[serde(default = "always")]
    times: i32,
    /// Iterations of a Continuous row that fail before one succeeds.
    #[serde(default = "forever")]
    iterations: i64,
    /// Whether trying again is useless.
    #[serde(default)]
    fatal: bool,
}

fn always() -> i32 {
    i32::MAX
}

fn forever() -> i64 {
    i64::MAX
}

/// Fails, with something to show for it.
struct FailJob;

impl Job for FailJob {
    const STRUCT: &'static str = "FailJob";
    const DESCRIPTION: &'static str = "Fails a number of times";
    type Payload = Failing;

    async fn run(&self, ctx: JobContext, payload: Failing) -> Result<Outcome, JobError> {
        let attempt = ctx.row().attempt;
        if attempt > payload.times || ctx.row().iteration >= payload.iterations {
            return Ok(Outcome::with_result(serde_json::json!({ "attempt": attempt })));
        }
        let error = anyhow::anyhow!("the disk is full").context(format!("attempt {attempt} failed"));
        let error = if payload.fatal { JobError::fatal(error) } else { JobError::from(error) };
        Err(error.with_result(serde_json::json!({ "attempt": attempt })))
    }
}

/// Where and with what a job panics.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Panicking {
    #[serde(default)]
    how: How,
}

#[derive(Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
enum How {
    /// With a formatted text, a `String`.
    #[default]
    Formatted,
    /// With a plain text, a `&str`.
    Plain,
    /// With a value that is no text.
    Mute,
    /// Before there is a future to wait for.
    Early,
}

/// Panics.
struct PanicJob;

impl Job for PanicJob {
    const STRUCT: &'static str = "PanicJob";
    const DESCRIPTION: &'static str = "Panics";
    type Payload = Panicking;

    fn run(
        &self,
        ctx: JobContext,
        payload: Panicking,
    ) -> impl Future<Output = Result<Outcome, JobError>> + Send {
        if matches!(payload.how, How::Early) {
            panic!("gone before it began");
        }
        async move {
            match payload.how {
                How::Plain => panic!("a plain text"),
                How::Mute => std::panic::panic_any(42),
                How::Formatted | How::Early => panic!("row {} found the cupboard bare", ctx.row().id),
            }
        }
    }
}

/// Kills its process, and with it whatever else runs there.
struct AbortJob;

impl Job for AbortJob {
    const STRUCT: &'static str = "AbortJob";
    const DESCRIPTION: &'static str = "Kills its process after some seconds";
    type Payload = Duty;

    async fn run(&self, _: JobContext, duty: Duty) -> Result<Outcome, JobError> {
        tokio::time::sleep(duty.time()?).await;
        std::process::abort();
    }
}

/// What a parent's children are.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Family {
    /// `JobConfig.ID` of the children.
    child_config: uuid::Uuid,
    children: u32,
}

/// Puts children on the queue and waits to be stopped.
struct ParentJob;

impl Job for ParentJob {
    const STRUCT: &'static str = "ParentJob";
    const DESCRIPTION: &'static str = "Puts child rows on the queue and waits to be stopped";
    type Payload = Family;

    async fn run(&self, ctx: JobContext, payload: Family) -> Result<Outcome, JobError> {
        for n in 0..payload.children {
            ctx.enqueue(Child::of(payload.child_config).identifier(format!("child {n}"))).await?;
        }
        ctx.progress(format!("{} children", payload.children));
        ctx.cancelled().await;
        Err(JobError::stopped())
    }
}

/// How much a job says.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Speech {
    lines: u32,
    /// Whether it then says one line at each level.
    #[serde(default)]
    each_level: bool,
}

/// Writes log lines.
struct TalkJob;

impl Job for TalkJob {
    const STRUCT: &'static str = "TalkJob";
    const DESCRIPTION: &'static str = "Writes a number of log lines";
    type Payload = Speech;

    async fn run(&self, ctx: JobContext, payload: Speech) -> Result<Outcome, JobError> {
        for n in 1..=payload.lines {
            ctx.info(format!("line {n}"));
        }
        if payload.each_level {
            ctx.info("it is well");
            ctx.warn("it is odd");
            ctx.error("it is wrong");
        }
        Ok(Outcome::done())
    }
}

/// What a job answers.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Answer {
    /// Letters in the text of its result.
    #[serde(default)]
    bytes: usize,
    /// Lists in lists in its result.
    #[serde(default)]
    depth: usize,
    /// Whether a NUL is in its result, or in its error.
    #[serde(default)]
    nul: bool,
    /// Whether it fails.
    #[serde(default)]
    fails: bool,
}

/// Answers with results and errors that are hard to store.
struct AnswerJob;

impl Job for AnswerJob {
    const STRUCT: &'static str = "AnswerJob";
    const DESCRIPTION: &'static str = "Answers with results and errors that are hard to store";
    type Payload = Answer;

    async fn run(&self, ctx: JobContext, payload: Answer) -> Result<Outcome, JobError> {
        let nul = if payload.nul { "a\0b" } else { "" };
        ctx.progress(format!("answering {nul}"));
        if payload.fails {
            return Err(JobError::retry_message(format_args!("no answer {nul}")));
        }
        let mut deep = serde_json::Value::from("bottom");
        for _ in 0..payload.depth {
            deep = serde_json::Value::Array(vec![deep]);
        }
        let mut result = serde_json::json!({ "text": format!("{nul}{}", "x".repeat(payload.bytes)) });
        result["deep"] = deep;
        Ok(Outcome::with_result(result))
    }
}

/// What a job does to rosterd's own database.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Question {
    statement: String,
    /// Whether it is a transaction of its own rather than a bare statement.
    #[serde(default)]
    transaction: bool,
    #[serde(default = "once")]
    times: u32,
}

fn once() -> u32 {
    1
}

/// Works on rosterd's own database.
struct QueryJob;

impl Job for QueryJob {
    const STRUCT: &'static str = "QueryJob";
    const DESCRIPTION: &'static str = "Runs a statement on rosterd's own database some times";
    type Payload = Question;

    async fn run(&self, ctx: JobContext, question: Question) -> Result<Outcome, JobError> {
        for n in 1..=question.times {
            let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(question.statement.clone()));
            if question.transaction {
                let mut transaction = ctx.database().begin().await?;
                statement.execute(&mut *transaction).await?;
                transaction.commit().await?;
            } else {
                statement.execute(ctx.database()).await?;
            }
            ctx.progress(format!("{n} of {}", question.times));
        }
        Ok(Outcome::done())
    }
}

/// What a job writes down, and where.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Line {
    /// The file its line is added to.
    file: std::path::PathBuf,
    /// How long it takes before it writes.
    #[serde(default)]
    seconds: f64,
}

/// Has an effect outside the database: the last it does is to add the ID of its row to a file.
struct WriteJob;

impl Job for WriteJob {
    const STRUCT: &'static str = "WriteJob";
    const DESCRIPTION: &'static str = "Waits for some seconds and adds its row's ID to a file";
    type Payload = Line;

    async fn run(&self, ctx: JobContext, what: Line) -> Result<Outcome, JobError> {
        let time = Duration::try_from_secs_f64(what.seconds).map_err(JobError::fatal)?;
        tokio::select! {
            () = ctx.cancelled() => return Err(JobError::stopped()),
            () = tokio::time::sleep(time) => {}
        }
        let line = format!("{}\n", ctx.row().id);
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&what.file)?;
        std::io::Write::write_all(&mut file, line.as_bytes())?;
        Ok(Outcome::done())
    }
}

/// Keeps one of the connections that all jobs share.
struct HoldJob;

impl Job for HoldJob {
    const STRUCT: &'static str = "HoldJob";
    const DESCRIPTION: &'static str = "Holds a connection of the jobs' pool for some seconds";
    type Payload = Duty;

    async fn run(&self, ctx: JobContext, duty: Duty) -> Result<Outcome, JobError> {
        let held = tokio::select! {
            () = ctx.cancelled() => return Err(JobError::stopped()),
            held = ctx.database().begin() => held?,
        };
        ctx.progress("holds a connection");
        tokio::select! {
            () = ctx.cancelled() => return Err(JobError::stopped()),
            () = tokio::time::sleep(duty.time()?) => {}
        }
        held.rollback().await?;
        Ok(Outcome::done())
    }
}
