//! The jobs of the daemon that is measured.

use crate::clock::now_micros;
use rosterd::job::{Job, JobContext, JobError, NoPayload, Outcome};
use rosterd::registry::Registry;

/// Everything a figure needs, registered.
pub(crate) fn registry() -> Registry {
    rosterd::jobs::built_in().register(NoopJob).register(StampJob).register(SleepJob)
}

struct NoopJob;

impl Job for NoopJob {
    const STRUCT: &'static str = "NoopJob";
    const DESCRIPTION: &'static str = "Does nothing";
    type Payload = NoPayload;

    async fn run(&self, _: JobContext, _: NoPayload) -> Result<Outcome, JobError> {
        Ok(Outcome::done())
    }
}

/// Says when it started, by the clock of the machine it shares with whoever measures.
struct StampJob;

impl Job for StampJob {
    const STRUCT: &'static str = "StampJob";
    const DESCRIPTION: &'static str = "Says when it started";
    type Payload = NoPayload;

    async fn run(&self, _: JobContext, _: NoPayload) -> Result<Outcome, JobError> {
        Ok(Outcome::with_result(now_micros()))
    }
}

struct SleepJob;

impl Job for SleepJob {
    const STRUCT: &'static str = "SleepJob";
    const DESCRIPTION: &'static str = "Waits to be cancelled";
    type Payload = NoPayload;

    async fn run(&self, ctx: JobContext, _: NoPayload) -> Result<Outcome, JobError> {
        ctx.cancelled().await;
        Err(JobError::stopped())
    }
}
