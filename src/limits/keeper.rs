//! Asks the database for the share of one source, for as long as this process calls it. One task a source, so that a
//! source whose statement is slow holds up no other.

use super::lane::{Lane, Refusal};
use super::share::{Question, Share};
use crate::lease::boottime;
use crate::postgres::database::{Database, is_away};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Before the same question is asked again, when another runner asks at this very moment.
const BUSY_WAIT: Duration = Duration::from_millis(1);
/// It grows to this while that happens again and again.
const BUSY_WAIT_MAX: Duration = Duration::from_millis(32);
/// After a question that failed.
const TROUBLE_WAIT: Duration = Duration::from_millis(500);

/// Ends when nobody has called this source for a while and the database was told so.
pub(super) async fn keep(lane: Arc<Lane>, database: Database, runner: impl Fn() -> Uuid + Send) {
    let mut wait = Duration::ZERO;
    let mut busy_wait = BUSY_WAIT;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = lane.ask.notified() => {}
        }
        let now = boottime();
        let due = lane.next_question(now);
        if due > now {
            wait = due.saturating_sub(now);
            continue;
        }
        let runner = runner();
        let question = lane.question(runner, now);
        let leaving = question.starts.is_none();
        let sent = boottime();
        let answer = ask(&database, lane.source, runner, &question).await;
        let now = boottime();
        if !matches!(answer, Err(Asked::Busy)) {
            busy_wait = BUSY_WAIT;
        }
        wait = match answer {
            Ok(_) | Err(Asked::Refused(_)) if leaving => {
                if lane.leave(now) {
                    return;
                }
                Duration::ZERO
            }
            Ok(share) => {
                lane.answer(runner, &question, &share, sent, now);
                Duration::ZERO
            }
            Err(Asked::Busy) => {
                lane.busy(&question);
                tokio::time::sleep(busy_wait.mul_f64(1.0 + 2.0 * fastrand::f64())).await;
                busy_wait = (busy_wait * 2).min(BUSY_WAIT_MAX);
                Duration::ZERO
            }
            Err(Asked::Refused(refusal)) => {
                lane.refuse(refusal, now);
                Duration::ZERO
            }
            Err(Asked::Failed(error)) => {
                tracing::debug!(source = %lane.source, %error, "the share of a source could not be asked for");
                // While the database is away calls wait for it, however long that takes.
                if !is_away(&error) {
                    lane.refuse(Refusal::Trouble(now, Arc::new(error)), now);
                }
                tokio::time::sleep(TROUBLE_WAIT).await;
                Duration::ZERO
            }
        };
    }
}

enum Asked {
    Busy,
    Refused(Refusal),
    Failed(sqlx::Error),
}

async fn ask(database: &Database, source: Uuid, runner: Uuid, question: &Question) -> Result<Share, Asked> {
    let row = sqlx::query!(
        r#"select Verdict as "verdict!", Slots as slots, Concurrency as concurrency, DelaySeconds as delay,
             PausedSeconds as paused, WindowIn as window_in, WindowUntil as window_until, AskIn as ask_in,
             Contended as contended, SourceName as name
           from vm.share_source($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"#,
        source,
        runner,
        question.number,
        int(question.in_flight),
        int(question.waiting),
        question.most_urgent.map(|(priority, _)| priority),
        question.most_urgent.map_or(0, |(_, callers)| int(callers)),
        int(question.need),
        int(question.keeps),
        question.starts.map(int),
        question.slack.as_secs_f64(),
        question.released,
        question.last_start_age.map(|age| age.as_secs_f64()),
        question.answered,
    )
    .fetch_one(database)
    .await
    .map_err(Asked::Failed)?;
    match row.verdict.as_str() {
        "ok" => Ok(Share {
            slots: row.slots.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            concurrency: row.concurrency.and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
            delay: seconds(row.delay),
            paused: seconds(row.paused),
            window: row
                .window_until
                .map(|until| (row.window_in.map(|from| seconds(Some(from))), seconds(Some(until)))),
            ask_in: row.ask_in.map(|wait| seconds(Some(wait))),
            contended: row.contended == Some(true),
        }),
        // `late` cannot come: a question is asked when the one before was answered or its connection is closed.
        "busy" | "late" => Err(Asked::Busy),
        "inactive" => Err(Asked::Refused(Refusal::Inactive(row.name.unwrap_or_default()))),
        "runner_gone" => Err(Asked::Refused(Refusal::RunnerGone)),
        _ => Err(Asked::Refused(Refusal::Unknown)),
    }
}

fn int(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn seconds(seconds: Option<f64>) -> Duration {
    Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default()
}
