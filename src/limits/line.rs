//! A lock that is handed to whoever waits with the lowest priority number, and among equals to the one that has waited
//! longest. A waiter that goes away loses its place and nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot};

/// The line. Clones are the same line.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    inner: Arc<Mutex<Inner>>,
    overtaken: Arc<Notify>,
}

/// Priority, and who came first.
type Place = (i32, u64);

#[derive(Debug, Default)]
struct Inner {
    first: Option<Place>,
    entered: u64,
    waiting: BTreeMap<Place, oneshot::Sender<Turn>>,
}

/// Being first. Dropped, the next one is.
#[derive(Debug)]
pub(super) struct Turn {
    line: Line,
    place: Place,
    held: bool,
}

impl Line {
    /// Returns when it is this caller's turn.
    pub(super) async fn enter(&self, priority: i32) -> Turn {
        let turn = {
            let mut inner = self.lock();
            inner.entered += 1;
            let place = (priority, inner.entered);
            let Some(first) = inner.first else {
                inner.first = Some(place);
                return Turn { line: self.clone(), place, held: true };
            };
            let (sender, turn) = oneshot::channel();
            inner.waiting.insert(place, sender);
            if place < first {
                self.overtaken.notify_one();
            }
            turn
        };
        handed_over(turn).await
    }

    /// Completes when somebody with a lower priority number has come since this turn was had.
    pub(super) async fn overtaken(&self) {
        self.overtaken.notified().await;
    }

    /// Lets those go first who have a lower priority number, and comes back in its old place.
    pub(super) async fn let_others_go_first(&self, mut turn: Turn) -> Turn {
        let again = {
            let mut inner = self.lock();
            let Some((first, _)) = inner.waiting.first_key_value() else { return turn };
            if turn.place < *first {
                return turn;
            }
            let (sender, again) = oneshot::channel();
            inner.waiting.insert(turn.place, sender);
            again
        };
        turn.hand_over();
        drop(turn);
        handed_over(again).await
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn handed_over(turn: oneshot::Receiver<Turn>) -> Turn {
    match turn.await {
        Ok(turn) => turn,
        Err(_) => unreachable!("a place is given up only by handing over the turn"),
    }
}

impl Turn {
    fn hand_over(&mut self) {
        self.held = false;
        loop {
            let next = {
                let mut inner = self.line.lock();
                let next = inner.waiting.pop_first();
                inner.first = next.as_ref().map(|(place, _)| *place);
                next
            };
            let Some((place, next)) = next else { return };
            // Who is gone meanwhile never had the turn: it is this loop that hands it on.
            match next.send(Self { line: self.line.clone(), place, held: true }) {
                Ok(()) => return,
                Err(mut turn) => turn.held = false,
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.held {
            self.hand_over();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn the_lowest_priority_number_goes_first_and_among_equals_the_longest_waiter() {
        let line = Line::default();
        let first = line.enter(9).await;
        let mut waiters: Vec<_> =
            [(5, "b"), (7, "d"), (5, "c"), (1, "a")].map(|(p, name)| (Box::pin(line.enter(p)), name)).into();
        for (waiter, _) in &mut waiters {
            assert!(waiter.now_or_never().is_none());
        }
        let mut turn = Some(first);
        let mut order = Vec::new();
        while turn.take().is_some() {
            for (waiter, name) in &mut waiters {
                if !order.contains(name)
                    && let Some(next) = waiter.now_or_never()
                {
                    order.push(*name);
                    turn = Some(next);
                    break;
                }
            }
        }
        assert_eq!(order, ["a", "b", "c", "d"]);
    }

    #[tokio::test]
    async fn who_is_first_and_cannot_go_yet_lets_a_lower_priority_number_pass_and_keeps_its_place() {
        let line = Line::default();
        let slow = line.enter(5).await;
        let mut equal = Box::pin(line.enter(5));
        assert!((&mut equal).now_or_never().is_none());
        let mut urgent = Box::pin(line.enter(1));
        assert!((&mut urgent).now_or_never().is_none());
        line.overtaken().await;
        let mut slow = Box::pin(line.let_others_go_first(slow));
        assert!((&mut slow).now_or_never().is_none());
        drop(urgent.now_or_never().expect("its turn"));
        assert!((&mut equal).now_or_never().is_none());
        let slow = slow.now_or_never().expect("its turn again");
        // With nobody more urgent it stays.
        drop(line.let_others_go_first(slow).now_or_never().expect("still its turn"));
        assert!(equal.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_waiter_that_went_away_holds_up_nobody() {
        let line = Line::default();
        let first = line.enter(1).await;
        let mut gone = Box::pin(line.enter(0));
        let mut told_and_gone = Box::pin(line.enter(1));
        let mut last = Box::pin(line.enter(2));
        assert!((&mut gone).now_or_never().is_none());
        assert!((&mut told_and_gone).now_or_never().is_none());
        assert!((&mut last).now_or_never().is_none());
        drop(gone);
        drop(first);
        drop(told_and_gone);
        drop(last.now_or_never().expect("its turn"));
        assert!(line.enter(0).now_or_never().is_some());
    }
}
