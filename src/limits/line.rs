//! A lock that is handed to whoever waits with the lowest priority number, and among equals to the one that has waited
//! longest. A waiter that goes away loses its place and nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The line. Clones are the same line.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    taken: bool,
    entered: u64,
    waiting: BTreeMap<(i32, u64), oneshot::Sender<Turn>>,
}

/// Being first. Dropped, the next one is.
#[derive(Debug)]
pub(super) struct Turn {
    line: Line,
    held: bool,
}

impl Line {
    /// Returns when it is this caller's turn.
    pub(super) async fn enter(&self, priority: i32) -> Turn {
        let turn = {
            let mut inner = self.lock();
            if !inner.taken {
                inner.taken = true;
                return Turn { line: self.clone(), held: true };
            }
            let (sender, turn) = oneshot::channel();
            inner.entered += 1;
            let place = (priority, inner.entered);
            inner.waiting.insert(place, sender);
            turn
        };
        match turn.await {
            Ok(turn) => turn,
            Err(_) => unreachable!("a place is given up only by handing over the turn"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        while self.held {
            let next = {
                let mut inner = self.line.lock();
                let next = inner.waiting.pop_first();
                inner.taken = next.is_some();
                next
            };
            let Some((_, next)) = next else { return };
            // Who is gone meanwhile never had the turn: it is this loop that hands it on.
            match next.send(Self { line: self.line.clone(), held: true }) {
                Ok(()) => return,
                Err(mut turn) => turn.held = false,
            }
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
