//! Waiting to within a fraction of a millisecond. Tokio's own timer counts in milliseconds, which at a Delay of one
//! would halve the rate; so the last stretch of such a wait is slept by a thread.

use crate::lease::boottime;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The thread wakes within this time; what is left is waited for in a loop.
pub(super) const LEAD: Duration = Duration::from_micros(150);

/// Longer waits are cheaper in tokio's wheel.
const COARSE: Duration = Duration::from_millis(30);

/// Returns at this time since boot, seldom later than a tenth of a millisecond after it.
pub(super) async fn sleep_until(at: Duration) {
    let left = at.saturating_sub(boottime());
    if left > COARSE {
        tokio::time::sleep(left.saturating_sub(COARSE / 2)).await;
    }
    let left = at.saturating_sub(boottime());
    if !left.is_zero() {
        // Without the thread (none could be started) the wheel does, a millisecond less exact.
        match Sleeper::get() {
            Some(sleeper) => sleeper.sleep(Instant::now() + left).await,
            None => tokio::time::sleep(left).await,
        }
    }
}

/// The thread, and those it shall wake.
#[derive(Default)]
struct Sleeper {
    waiting: Mutex<BTreeMap<(Instant, u64), oneshot::Sender<()>>>,
    more: Condvar,
}

impl Sleeper {
    /// Started at the first use, one for the process.
    fn get() -> Option<&'static Self> {
        static SLEEPER: OnceLock<Sleeper> = OnceLock::new();
        static STARTED: OnceLock<bool> = OnceLock::new();
        let sleeper = SLEEPER.get_or_init(Self::default);
        let thread = || std::thread::Builder::new().name("rosterd-clock".to_owned()).spawn(|| sleeper.run());
        STARTED.get_or_init(|| thread().is_ok()).then_some(sleeper)
    }

    async fn sleep(&self, until: Instant) {
        let (sender, woken) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let mut number = 0;
            while waiting.contains_key(&(until, number)) {
                number += 1;
            }
            waiting.insert((until, number), sender);
        }
        self.more.notify_one();
        // The thread lives as long as the process.
        let _ = woken.await;
    }

    fn run(&self) {
        // Or the kernel wakes it with whatever else is due within 50 microseconds. Where it cannot be set, it does that.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            while let Some(first) = waiting.first_entry()
                && first.key().0 <= now
            {
                // Who does not wait any more need not be woken.
                let _ = first.remove().send(());
            }
            waiting = match waiting.first_key_value() {
                Some(((until, _), _)) => {
                    let left = until.saturating_duration_since(now);
                    self.more.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_is_woken_early_and_those_who_went_away_hold_up_nobody() {
        let began = boottime();
        let gone = sleep_until(began + Duration::from_millis(2));
        let mut gone = Box::pin(gone);
        assert!(futures_util::poll!(&mut gone).is_pending());
        drop(gone);
        let times = [5, 3, 3, 40];
        let waits = times.map(|millis| async move {
            sleep_until(began + Duration::from_millis(millis)).await;
            boottime().saturating_sub(began)
        });
        for (millis, woken) in times.into_iter().zip(futures_util::future::join_all(waits).await) {
            assert!(woken >= Duration::from_millis(millis), "{woken:?} for {millis} ms");
        }
    }
}
