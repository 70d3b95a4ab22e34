//! The lease of this runner as the runner itself sees it: until when nobody else may take its rows.
//!
//! The Runner row is the lease, and its `Seq` is what others watch. They take a runner for dead when its `Seq`
//! stood still for `LeaseSeconds` of *their* time after they saw it, which is never before we sent it. So the
//! lease holds here until `LeaseSeconds` after a pulse was *sent*, less a margin for what lies between asking
//! this clock and acting on its answer.
//!
//! | from | to | who writes it |
//! |---|---|---|
//! | none | held | the heartbeat, after it inserted the Runner row |
//! | held | held, for longer | the heartbeat, after a pulse was answered |
//! | held | lapsed | time alone: the database is away. Effects wait; jobs go on |
//! | lapsed | held | the heartbeat, if the row is still there: nobody took anything meanwhile |
//! | held, lapsed | none | the heartbeat or a new connection: the row is gone, or this is another cluster |
//!
//! No wall clock is asked. The clock is the time since boot, which goes on while a machine is suspended.

use crate::seeded_bugs::{self, Bug};
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

/// Who we are, and until when that is sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    runner: Uuid,
    until: Duration,
}

/// This runner's lease. Written by the loops that speak to the database, read by whatever acts outside.
#[derive(Debug)]
pub(crate) struct Lease {
    length: Duration,
    identity: watch::Sender<Option<Uuid>>,
    held: watch::Sender<Option<Held>>,
}

/// How a claimant stands at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody else may run its rows now.
    Valid,
    /// Others may have taken it for dead by now; whether they did will be known when the database answers.
    Lapsed,
    /// It is no runner any more. Final.
    Lost,
}

impl Lease {
    /// Not held yet. `length` is what `Runner.LeaseSeconds` says.
    pub(crate) fn new(length: Duration) -> Self {
        Self { length, identity: watch::Sender::new(None), held: watch::Sender::new(None) }
    }

    /// A lease that never lapses, for runs without a daemon around them.
    pub(crate) fn endless(runner: Uuid) -> Self {
        let lease = Self::new(Duration::MAX);
        lease.identity.send_replace(Some(runner));
        lease.held.send_replace(Some(Held { runner, until: Duration::MAX }));
        lease
    }

    /// `Runner.ID`, while registered. A new one after each registration, so that what was claimed under an old
    /// one is never mistaken for ours.
    pub(crate) fn runner(&self) -> Option<Uuid> {
        *self.identity.borrow()
    }

    /// Tells of every change of [`Lease::runner`].
    pub(crate) fn identity(&self) -> watch::Receiver<Option<Uuid>> {
        self.identity.subscribe()
    }

    /// The row was inserted by a statement sent at `sent` (time since boot).
    pub(crate) fn registered(&self, runner: Uuid, sent: Duration) {
        self.held.send_replace(Some(Held { runner, until: self.until(sent) }));
        self.identity.send_replace(Some(runner));
    }

    /// A pulse sent at `sent` was answered: the row was there.
    pub(crate) fn renewed(&self, runner: Uuid, sent: Duration) {
        self.held.send_if_modified(|held| match held {
            Some(held) if held.runner == runner => {
                held.until = held.until.max(self.until(sent));
                true
            }
            // A connection found another cluster while this pulse was under way.
            _ => false,
        });
    }

    /// The row is gone, or was never in the cluster we speak to now. Returns who we were.
    pub(crate) fn lost(&self) -> Option<Uuid> {
        if !seeded_bugs::is(Bug::GateIgnoresRunner) {
            self.held.send_replace(None);
        }
        self.identity.send_replace(None)
    }

    /// How what was claimed under `runner` stands now.
    pub(crate) fn standing(&self, runner: Uuid) -> Standing {
        self.standing_at(runner, boottime())
    }

    fn standing_at(&self, runner: Uuid, now: Duration) -> Standing {
        match *self.held.borrow() {
            Some(held) if held.runner == runner && now < held.until => Standing::Valid,
            Some(held) if seeded_bugs::is(Bug::GateIgnoresRunner) && now < held.until => Standing::Valid,
            Some(held) if held.runner == runner => Standing::Lapsed,
            _ => Standing::Lost,
        }
    }

    /// Returns when `runner` stands otherwise than valid.
    pub(crate) async fn while_valid(&self, runner: Uuid) {
        /// Timers do not count the time a machine was suspended, the lease does.
        const LOOK: Duration = Duration::from_secs(1);
        let mut held = self.held.subscribe();
        while self.standing(runner) == Standing::Valid {
            let until = held.borrow_and_update().map_or(Duration::ZERO, |held| held.until);
            tokio::select! {
                // The sender is ours: it cannot be gone.
                _ = held.changed() => {}
                () = tokio::time::sleep(until.saturating_sub(boottime()).min(LOOK)) => {}
            }
        }
    }

    /// Returns when `runner` stands otherwise than lapsed.
    pub(crate) async fn while_lapsed(&self, runner: Uuid) {
        let mut held = self.held.subscribe();
        while self.standing(runner) == Standing::Lapsed {
            // The sender is ours: it cannot be gone.
            let _ = held.changed().await;
        }
    }

    /// A sixth of the lease is the margin.
    fn until(&self, sent: Duration) -> Duration {
        sent.saturating_add(self.length / 6 * 5)
    }
}

/// Time since boot, counting the time a virtual machine was suspended, which `Instant` does not.
pub(crate) fn boottime() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Uuid = Uuid::from_u128(1);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn held() -> Lease {
        let lease = Lease::new(at(18));
        lease.registered(US, at(100));
        lease
    }

    #[test]
    fn it_holds_from_the_moment_a_pulse_was_sent_for_the_lease_less_its_margin() {
        let lease = held();
        assert_eq!(lease.standing_at(US, at(114)), Standing::Valid);
        assert_eq!(lease.standing_at(US, at(115)), Standing::Lapsed);
        lease.renewed(US, at(120));
        assert_eq!(lease.standing_at(US, at(134)), Standing::Valid);
    }

    #[test]
    fn an_answer_that_was_overtaken_shortens_nothing() {
        let lease = held();
        lease.renewed(US, at(120));
        lease.renewed(US, at(110));
        assert_eq!(lease.standing_at(US, at(134)), Standing::Valid);
    }

    #[test]
    fn what_was_claimed_under_an_older_registration_stays_lost_after_a_new_one() {
        let lease = held();
        assert_eq!(lease.lost(), Some(US));
        let again = Uuid::from_u128(2);
        lease.registered(again, at(101));
        assert_eq!(lease.standing_at(US, at(102)), Standing::Lost);
        assert_eq!(lease.standing_at(again, at(102)), Standing::Valid);
        lease.renewed(US, at(102));
        assert_eq!(lease.standing_at(US, at(102)), Standing::Lost);
    }

    /// Runs itself once more where the time since boot is a day ahead and every other clock is as it was: to such a
    /// process it looks as if its machine had been suspended for that day.
    #[test]
    #[cfg(target_os = "linux")]
    #[allow(clippy::print_stderr, clippy::print_stdout, reason = "a test that did not run must say so")]
    fn the_clock_of_leases_counts_the_time_a_machine_was_suspended() {
        const INSIDE: &str = "ROSTERD_TEST_BOOTTIME";
        if std::env::var_os(INSIDE).is_some() {
            println!("boottime {}", boottime().as_secs());
            return;
        }
        let this = "lease::tests::the_clock_of_leases_counts_the_time_a_machine_was_suspended";
        let said = std::process::Command::new("unshare")
            .args(["--time", "--boottime", "86400"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", this, "--nocapture"])
            .env(INSIDE, "1")
            .output();
        let text =
            said.as_ref().map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
        let Some(inside) = text.lines().find_map(|line| line.split("boottime ").nth(1)) else {
            eprintln!(
                "SKIPPED: a suspended machine was NOT tried, because no clock can be moved here: {said:?}"
            );
            return;
        };
        let ahead = inside.trim().parse::<u64>().unwrap() - boottime().as_secs();
        assert!((86_390..=86_400).contains(&ahead), "{ahead} s ahead");
    }
}
