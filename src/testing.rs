//! Helpers for people who write jobs, used by our own tests: a run without a daemon around it.

use crate::config::Config;
use crate::config_rows::JobConfig;
use crate::history::{Fence, HistoryId};
use crate::job::{ContextParts, EffectGate, JobContext, JobRow, ProgressBoard};
use crate::limits::SourceLimiter;
use crate::postgres::database::Database;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What a run would get from the engine, for a first attempt of a row that is in no table. `cancel` stops it.
pub fn context(
    database: Database,
    limiter: SourceLimiter,
    config: JobConfig,
    settings: Config,
    cancel: CancellationToken,
) -> JobContext {
    let row = JobRow {
        id: HistoryId(Uuid::now_v7()),
        attempt: 1,
        iteration: 0,
        parent: None,
        due: None,
        started: chrono::Utc::now(),
        priority: 100,
    };
    let span = tracing::info_span!("job", id = %row.id, job = config.job_struct);
    JobContext::new(ContextParts {
        fence: Fence { id: row.id, claim: 0, attempt: row.attempt },
        row,
        runner: limiter.runner(),
        gate: EffectGate::open(limiter.runner()),
        config: Arc::new(config),
        settings: Arc::new(settings),
        database,
        limiter,
        cancel,
        progress: Arc::new(ProgressBoard::default()),
        span,
    })
}

/// A configuration that is in no table, without sources.
pub fn job_config(job_struct: &str, time_limit: Option<Duration>) -> JobConfig {
    JobConfig {
        id: Uuid::now_v7(),
        job: 0,
        job_struct: job_struct.to_owned(),
        organization: Uuid::nil(),
        organization_code: "TEST".to_owned(),
        organization_payload: serde_json::json!({}),
        continuous: false,
        limited: false,
        time_limit,
        max_attempts: 1,
        last_job_start: None,
        in_source: None,
        out_source: None,
        further_in_sources: Vec::new(),
        further_out_sources: Vec::new(),
    }
}
