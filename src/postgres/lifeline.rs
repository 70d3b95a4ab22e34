//! Whether this process reaches its database, as its control loops see it.
//!
//! sqlx hears nothing from a link that went silent, so each loop sends small statements that are answered within
//! milliseconds and gives them a short deadline. When one is missed, the link is taken for cut: every call of the
//! process ends at once, also those that could have waited longer, and new ones wait until a loop is answered again.

use super::connect::DatabaseError;
use std::future::Future;
use std::time::Duration;
use tokio::sync::watch;

/// Shared by everything in this process that talks to its database.
#[derive(Debug)]
pub struct Lifeline {
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    cuts: u64,
    up: bool,
}

impl Default for Lifeline {
    /// Taken for up until somebody says otherwise.
    fn default() -> Self {
        Self { state: watch::Sender::new(State { cuts: 0, up: true }) }
    }
}

impl Lifeline {
    /// The link is dead: every call under way ends now.
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            state.cuts += 1;
            state.up = false;
        });
    }

    /// How often it was cut. What was opened before the last cut is of no use any more.
    pub fn cuts(&self) -> u64 {
        self.state.borrow().cuts
    }

    /// The database answered, or refused to. Calls under way go on; the next ones wait while it is away.
    pub fn set_up(&self, up: bool) {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.up, up) != up);
    }

    /// Whether the database answered when a loop last asked.
    pub fn is_up(&self) -> bool {
        self.state.borrow().up
    }

    /// Completes while the database is away.
    pub async fn until_down(&self) {
        let _ = self.state.subscribe().wait_for(|state| !state.up).await;
    }

    /// Completes while the database is up.
    pub async fn until_up(&self) {
        // The sender is ours, so it cannot be gone.
        let _ = self.state.subscribe().wait_for(|state| state.up).await;
    }

    /// A call with a deadline (`None`: only the server's), ended also when the link is found dead meanwhile.
    pub async fn within<T>(
        &self,
        limit: Option<Duration>,
        call: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, DatabaseError> {
        let mut states = self.state.subscribe();
        let cuts = states.borrow_and_update().cuts;
        tokio::select! {
            biased;
            answer = call => Ok(answer?),
            _ = states.wait_for(|state| state.cuts != cuts) => Err(DatabaseError::Cut),
            limit = over(limit) => Err(DatabaseError::Deadline(limit)),
        }
    }

    /// A call so small that a missing answer means a dead link.
    pub async fn promptly<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, DatabaseError> {
        let answer = self.within(Some(limit), call).await;
        if matches!(answer, Err(DatabaseError::Deadline(_))) {
            self.cut();
        }
        answer
    }
}

async fn over(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::sync::Arc;

    type Never = Result<(), sqlx::Error>;

    #[tokio::test]
    async fn one_missed_answer_ends_every_call_under_way_and_those_that_come_are_not_touched_by_it() {
        let line = Arc::new(Lifeline::default());
        let others = Arc::clone(&line);
        let long =
            tokio::spawn(
                async move { others.within(Some(Duration::from_hours(1)), pending::<Never>()).await },
            );
        tokio::task::yield_now().await;
        let began = tokio::time::Instant::now();
        let missed = line.promptly(Duration::from_millis(50), pending::<Never>()).await;
        assert!(matches!(missed, Err(DatabaseError::Deadline(_))));
        assert!(matches!(long.await.unwrap(), Err(DatabaseError::Cut)));
        assert!(began.elapsed() < Duration::from_secs(30), "not after its hour");
        assert!(!line.is_up());
        let after = line.within(Some(Duration::from_secs(1)), async { Ok(7) }).await;
        assert_eq!(after.unwrap(), 7);
    }

    #[tokio::test]
    async fn who_waits_for_the_database_goes_on_when_a_loop_was_answered() {
        let line = Arc::new(Lifeline::default());
        line.set_up(false);
        let waiting = Arc::clone(&line);
        let mut waiter = tokio::spawn(async move { waiting.until_up().await });
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiter).await.is_err());
        line.set_up(true);
        waiter.await.unwrap();
    }
}
