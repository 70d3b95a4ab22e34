//! Effects in rosterd's own database, committed together with the completion of the row: exactly once.
//!
//! The settlement is written inside the job's transaction, with the same fence as any other. Either both stand
//! or neither: a run whose row was cancelled or taken over cannot commit, and one whose process dies before the
//! commit has done nothing.

use super::context::ContextParts;
use super::{JobError, NotOursAnyMore, Outcome, storable_result};
use crate::history::moves::{self, Settled};
use crate::history::{Settlement, Status, Verdict, lookup};
use crate::postgres::connect::PLANS_OF_THE_ENGINE;
use crate::postgres::database::Transaction;
use crate::seeded_bugs::{self, Bug};
use std::time::Duration;
use tokio::time::Instant;

/// Whoever holds the row locked may be waiting for what this transaction holds; neither PostgreSQL nor we would ever
/// know.
const LOCKED_FOR: Duration = Duration::from_secs(10);
/// How soon a row that an operator holds locked is tried again.
const LOCKED_RETRY: Duration = Duration::from_millis(50);

pub(super) async fn complete(
    parts: &ContextParts,
    mut transaction: Transaction,
    outcome: Outcome,
) -> Result<Outcome, JobError> {
    parts.gate.pass().await?;
    let settled = settle(parts, &mut transaction, &outcome).await?;
    match settled.status {
        // Pending: a Continuous row, which waits for its next iteration.
        Status::Completed | Status::Pending => {}
        Status::Canceled if seeded_bugs::is(Bug::CommitsAlthoughCancelled) => {}
        // The cancel committed first. The row is not written by us now, and neither is what the job did.
        _ => {
            transaction.rollback().await?;
            return Err(JobError::stopped());
        }
    }
    transaction.commit().await?;
    Ok(Outcome { settled: Some((parts.fence, settled)), ..outcome })
}

/// Writes the settlement in the name of the runner. To the guard, what the job itself writes is an operator's.
async fn settle(
    parts: &ContextParts,
    transaction: &mut Transaction,
    outcome: &Outcome,
) -> Result<Settled, JobError> {
    let settlement = [Settlement {
        fence: parts.fence,
        config: parts.config.id,
        verdict: Verdict::Done,
        error: None,
        result: (outcome.result.clone())
            .and_then(|result| storable_result(result, parts.settings.engine.result_max_bytes)),
        stop_reason: None,
        progress: parts.progress.take_one(parts.row.id),
    }];
    let retry_max = parts.settings.engine.retry_max_seconds;
    // As on the engine's own connections.
    sqlx::query(
        "select set_config('rosterd.actor', 'runner', true),
           (select count(set_config(Setting, Value, true)) from unnest($1::text[], $2::text[]) as s (Setting, Value))",
    )
    .bind(PLANS_OF_THE_ENGINE.map(|(setting, _)| setting))
    .bind(PLANS_OF_THE_ENGINE.map(|(_, value)| value))
    .execute(&mut **transaction)
    .await?;
    let began = Instant::now();
    loop {
        if let [settled] = moves::settle(&mut **transaction, parts.runner, &settlement, retry_max).await?[..]
        {
            return Ok(settled);
        }
        // Not written: somebody holds the row locked, or it is another run's.
        let owned = lookup::still_owned(&mut **transaction, parts.runner, &[parts.fence]).await?;
        if !owned.contains(&parts.fence.id) {
            return Err(NotOursAnyMore.into());
        }
        if began.elapsed() > LOCKED_FOR {
            return Err(JobError::retry_message(format_args!(
                "row {} was held locked for {LOCKED_FOR:?} while the job wanted to complete it",
                parts.row.id
            )));
        }
        tokio::select! {
            () = parts.cancel.cancelled() => return Err(JobError::stopped()),
            () = tokio::time::sleep(LOCKED_RETRY) => {}
        }
    }
}
