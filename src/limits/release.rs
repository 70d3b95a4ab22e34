//! Gives slots back, in batches, behind the callers' backs: a permit can be dropped anywhere.

use super::Inner;
use crate::postgres::database::Database;
use std::sync::Weak;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

/// Something to give back.
#[derive(Debug, Clone, Copy)]
pub(super) enum Release {
    /// A slot, not before this time.
    Slot { id: Uuid, source: Uuid, at: Instant },
    /// This runner's place among the waiting.
    Waiter { source: Uuid },
}

/// Where releases are sent. The task behind it ends when the last sender is gone.
#[derive(Debug, Clone)]
pub(super) struct Releases {
    queue: mpsc::UnboundedSender<Release>,
}

impl Releases {
    /// How long the slot of an abandoned call stays taken: time for the source to notice.
    pub(super) const DOUBT: Duration = Duration::from_millis(500);
    /// After this time no statement of ours can still be under way on the server.
    pub(super) const SURE: Duration = Duration::from_mins(1);

    pub(super) fn start(database: Database, runner: Uuid, inner: Weak<Inner>) -> Self {
        let (queue, releases) = mpsc::unbounded_channel();
        tokio::spawn(give_back(database, runner, inner, releases));
        Self { queue }
    }

    pub(super) fn send(&self, release: Release) {
        // Nobody listens only when the runtime is shutting down; the slots then end with the runner.
        let _ = self.queue.send(release);
    }
}

async fn give_back(
    database: Database,
    runner: Uuid,
    inner: Weak<Inner>,
    mut releases: mpsc::UnboundedReceiver<Release>,
) {
    let mut slots: Vec<(Uuid, Uuid, Instant)> = Vec::new();
    let mut waiters: Vec<Uuid> = Vec::new();
    let mut open = true;
    let mut batch = Vec::new();
    while open || !slots.is_empty() || !waiters.is_empty() {
        let next = slots.iter().map(|(.., at)| *at).min();
        tokio::select! {
            n = releases.recv_many(&mut batch, 1000), if open => open = n > 0,
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            else => {}
        }
        for release in batch.drain(..) {
            match release {
                Release::Slot { id, source, at } => slots.push((id, source, at)),
                Release::Waiter { source } => waiters.push(source),
            }
        }
        let now = Instant::now();
        let due: Vec<Uuid> = slots.iter().filter(|(.., at)| *at <= now).map(|(id, ..)| *id).collect();
        if due.is_empty() && waiters.is_empty() {
            continue;
        }
        let done = sqlx::query!(
            "with waiters as (delete from SourceWaiter where RunnerID = $1 and SourceConfigID = any($3))
             delete from SourceSlot where ID = any($2)",
            runner,
            &due,
            &waiters,
        )
        .execute(&database)
        .await;
        if let Err(error) = done {
            // Nothing is lost: the same again, until the database is back or this runner is reaped.
            tracing::debug!(%error, "slots of sources wait to be given back");
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        }
        waiters.clear();
        let mut sources: Vec<Uuid> =
            slots.extract_if(.., |(.., at)| *at <= now).map(|(_, source, _)| source).collect();
        sources.sort_unstable();
        sources.dedup();
        if let Some(inner) = inner.upgrade() {
            for source in sources {
                inner.lane(source).freed.notify_one();
            }
        }
    }
}
