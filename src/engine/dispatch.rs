//! `Struct` -> registered job, payload decoded: [`ClaimedJob`] -> [`RunnableJob`], or its end as an error.

use super::execute::FinishedJob;
use super::running::Run;
use crate::config_rows::JobConfig;
use crate::history::{ClaimedJob, Settlement, Verdict};
use crate::job::JobRow;
use crate::log::job_span;
use crate::registry::{AnyJob, PreparedRun};
use std::sync::Arc;
use tokio::time::Instant;
use uuid::Uuid;

/// A row whose job was found and whose payload was decoded.
pub(crate) struct RunnableJob {
    pub(crate) run: Arc<Run>,
    pub(crate) row: JobRow,
    pub(crate) config: Arc<JobConfig>,
    pub(crate) prepared: PreparedRun,
}

#[allow(
    clippy::result_large_err,
    reason = "both ends are on their way to a channel, neither is an exception"
)]
/// Prepares a claimed row. The `Err` is a finished run: it could not even start, and says why.
pub(crate) fn dispatch(
    claimed: ClaimedJob,
    config: Arc<JobConfig>,
    job: Option<&Arc<dyn AnyJob>>,
    runner: Uuid,
) -> Result<RunnableJob, FinishedJob> {
    let span = job_span(&config.job_struct, &config.organization_code, claimed.fence.id.0);
    let run = Arc::new(Run::new(claimed.fence, config.id, runner, config.time_limit, span));
    let prepared = job
        .ok_or_else(|| format!("the runner has no job named {}", config.job_struct))
        .and_then(|job| job.prepare(&claimed.payload))
        .and_then(|prepared| match config.credentials_problem() {
            None => Ok(prepared),
            Some(problem) => Err(problem.to_owned()),
        });
    match prepared {
        Ok(prepared) => Ok(RunnableJob {
            row: JobRow {
                id: claimed.fence.id,
                attempt: claimed.fence.attempt,
                iteration: claimed.iteration,
                parent: claimed.parent,
                due: claimed.due,
                started: claimed.started,
                priority: claimed.priority,
            },
            run,
            config,
            prepared,
        }),
        Err(sentence) => Err(FinishedJob {
            settlement: Settlement {
                fence: claimed.fence,
                config: config.id,
                verdict: Verdict::Unrunnable,
                error: Some(sentence),
                result: None,
                stop_reason: None,
                progress: None,
            },
            settled: None,
            started: claimed.started,
            began: Instant::now(),
            limited: config.limited,
            run,
        }),
    }
}
