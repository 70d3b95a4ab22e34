//! A step of a job that acts outside, written down before and after.

use super::JobError;
use super::context::ContextParts;
use crate::history::effects::{self, Before};
use crate::postgres::connect::{Backoff, is_outage};
use std::sync::Arc;
use std::time::Duration;

/// A step that this run may do now. The intention is written; say [`Effect::done`] when it is done.
///
/// ```no_run
/// # use rosterd::job::{Before, JobContext, JobError};
/// # async fn create(_: &str) -> Result<String, JobError> { unimplemented!() }
/// # async fn find(_: &str) -> Result<Option<String>, JobError> { unimplemented!() }
/// # async fn example(ctx: JobContext) -> Result<(), JobError> {
/// let step = ctx.effect("create ticket").await?;
/// match step.before() {
///     Before::Done(_) => {}
///     Before::Never => {
///         let ticket = create(step.key()).await?;
///         step.done(Some(&ticket)).await?;
///     }
///     // An earlier attempt died between the call and its answer: ask the other side by the key.
///     Before::Unknown => {
///         let ticket = match find(step.key()).await? {
///             Some(ticket) => ticket,
///             None => create(step.key()).await?,
///         };
///         step.done(Some(&ticket)).await?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "a step that is never said to be done counts as unknown in the next attempt"]
pub struct Effect {
    parts: Arc<ContextParts>,
    step: String,
    key: String,
    before: Before,
}

impl Effect {
    pub(super) async fn begin(parts: &Arc<ContextParts>, step: &str) -> Result<Self, JobError> {
        if parts.cancel.is_cancelled() {
            return Err(JobError::stopped());
        }
        parts.gate.pass().await?;
        let row = &parts.row;
        let before = effects::intend(&parts.database, parts.runner, parts.fence, row.iteration, step).await?;
        let before = before.ok_or(super::NotOursAnyMore)?;
        // The statement may have waited for a lock or for the database.
        parts.gate.pass().await?;
        let key = format!("{}/{}/{step}", row.id, row.iteration);
        Ok(Self { parts: Arc::clone(parts), step: step.to_owned(), key, before })
    }

    /// The idempotency key: `JobHistory.ID/CurrentIteration/step`. The same in every attempt, never in another row,
    /// iteration or step. Give it to the other side where it takes one (a header, a label, a unique field).
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What is known of this step from earlier attempts.
    pub fn before(&self) -> &Before {
        &self.before
    }

    /// The step was done. `reference` is what the other side calls it; a later attempt gets it with
    /// [`Before::Done`]. While the database is away this waits, because what is not written down is done twice.
    pub async fn done(self, reference: Option<&str>) -> Result<(), JobError> {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        loop {
            let row = &self.parts.row;
            match effects::done(&self.parts.database, row.id, row.iteration, &self.step, reference).await {
                Err(error) if is_outage(&error) => tokio::time::sleep(backoff.next_wait()).await,
                written => return Ok(written?),
            }
        }
    }
}
