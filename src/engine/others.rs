//! Who else is alive: stopwatches on the other runners.

use crate::seeded_bugs::{self, Bug};
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

/// Another runner, as a pulse found it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seen {
    pub(super) id: Uuid,
    pub(super) seq: i64,
    /// `Runner.LeaseSeconds`: its own, which it counts on.
    pub(super) lease: Duration,
}

/// One look at the others, by the time since boot. What it saw was so at some moment between the two.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Round {
    pub(super) sent: Duration,
    pub(super) answered: Duration,
}

/// How long a `Seq` has stood still: at least from the answer that first told of it until the question that last did.
/// However slow the database, that is no longer than it did stand still.
#[derive(Debug, Clone, Copy)]
struct Stopwatch {
    seq: i64,
    since: Duration,
    rounds: u32,
}

/// Stopwatches on the other runners.
///
/// A runner is dead when its `Seq` stood still for its lease by our clock. After a gap in our own rounds (we
/// were frozen, or the database was away) every stopwatch starts anew: the others could not pulse either. One
/// interval is never enough, because a runner whose lease is shorter than our interval may just be coming back.
#[derive(Debug)]
pub(super) struct Watch {
    /// Longest time between two rounds that is no gap. With the pulse that was seen just before an outage and the
    /// one that is sent just after it, an outage of this length does not make up a lease.
    longest_gap: Duration,
    last_round: Option<Round>,
    seen: HashMap<Uuid, Stopwatch>,
    /// When the first of them has stood still for its lease, if it goes on to.
    first_end: Option<Duration>,
}

impl Watch {
    pub(super) fn new(lease: Duration) -> Self {
        Self { longest_gap: lease / 2, last_round: None, seen: HashMap::new(), first_end: None }
    }

    /// A round that the database answered; false if there was a gap before it.
    pub(super) fn begin(&mut self, round: Round) -> bool {
        let gapless =
            self.last_round.is_some_and(|last| round.sent.saturating_sub(last.sent) <= self.longest_gap);
        self.last_round = Some(round);
        if !gapless && !seeded_bugs::is(Bug::ReapAfterOwnGap) {
            self.seen.clear();
        }
        gapless
    }

    /// When to look again: at `usual`, or as soon as one of them may be dead, so that its rows need not wait for our
    /// own rhythm.
    pub(super) fn next_round(&self, usual: Duration) -> Duration {
        /// A lease is over when more than its time has passed.
        const JUST_AFTER: Duration = Duration::from_millis(20);
        self.first_end.map_or(usual, |end| (end + JUST_AFTER).min(usual))
    }

    /// Those that stood still for their lease.
    pub(super) fn silent(&mut self, others: impl Iterator<Item = Seen>) -> Vec<Seen> {
        let Round { sent, answered } = self.last_round.unwrap_or_default();
        let mut seen = HashMap::new();
        let mut silent = Vec::new();
        self.first_end = None;
        for other in others {
            let watch = match self.seen.get(&other.id) {
                Some(watch) if watch.seq == other.seq => Stopwatch { rounds: watch.rounds + 1, ..*watch },
                _ => Stopwatch { seq: other.seq, since: answered, rounds: 0 },
            };
            let early = seeded_bugs::is(Bug::ReapEarly) && fastrand::f64() < 0.02;
            let again = watch.rounds >= 2 || seeded_bugs::is(Bug::ReapAfterOwnGap);
            if sent.saturating_sub(watch.since) > other.lease && again || early {
                silent.push(other);
            } else if let end = watch.since.saturating_add(other.lease)
                && watch.rounds > 0
                && end > sent
            {
                self.first_end = Some(self.first_end.map_or(end, |first| first.min(end)));
            }
            seen.insert(other.id, watch);
        }
        self.seen = seen;
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn round(seconds: u64) -> Round {
        Round { sent: at(seconds), answered: at(seconds) }
    }

    fn seen(id: u128, seq: i64) -> Seen {
        Seen { id: Uuid::from_u128(id), seq, lease: at(20) }
    }

    #[test]
    fn a_runner_that_stands_still_for_its_own_lease_is_dead_and_one_that_pulses_is_not() {
        let mut watch = Watch::new(at(20));
        let mut reaped = Vec::new();
        let patient = Seen { lease: at(60), ..seen(3, 7) };
        for n in 0..6_u64 {
            watch.begin(round(100 + 5 * n));
            let alive = seen(2, i64::try_from(n).unwrap());
            reaped.extend(watch.silent([seen(1, 7), alive, patient].into_iter()));
        }
        assert_eq!(reaped, [seen(1, 7)]);
    }

    #[test]
    fn the_next_round_is_earlier_than_usual_only_for_one_that_stands_still() {
        let mut watch = Watch::new(at(20));
        watch.begin(round(100));
        watch.silent([seen(1, 7), seen(2, 1)].into_iter());
        assert_eq!(watch.next_round(at(105)), at(105));
        watch.begin(round(109));
        watch.silent([seen(1, 7), seen(2, 2)].into_iter());
        watch.begin(round(118));
        watch.silent([seen(1, 7), seen(2, 3)].into_iter());
        assert_eq!(watch.next_round(at(123)), at(120) + Duration::from_millis(20));
    }

    #[test]
    fn a_lease_shorter_than_our_interval_is_over_after_two_of_them() {
        let mut watch = Watch::new(at(60));
        let brief = Seen { lease: at(3), ..seen(1, 7) };
        watch.begin(round(100));
        assert!(watch.silent([brief].into_iter()).is_empty());
        watch.begin(round(115));
        assert!(watch.silent([brief].into_iter()).is_empty(), "it may have been away with the database");
        watch.begin(round(130));
        assert_eq!(watch.silent([brief].into_iter()), [brief]);
    }

    #[test]
    fn time_that_the_database_took_to_answer_is_not_held_against_the_others() {
        let mut watch = Watch::new(at(20));
        for seconds in [100, 105, 110, 115, 121] {
            watch.begin(Round { sent: at(seconds), answered: at(seconds + 2) });
            assert!(watch.silent([seen(1, 7)].into_iter()).is_empty(), "19 s at {seconds}");
        }
        watch.begin(Round { sent: at(123), answered: at(123) });
        assert_eq!(watch.silent([seen(1, 7)].into_iter()), [seen(1, 7)]);
    }

    #[test]
    fn after_a_gap_of_our_own_every_stopwatch_starts_anew() {
        let mut watch = Watch::new(at(20));
        watch.begin(round(100));
        watch.silent([seen(1, 7)].into_iter());
        assert!(!watch.begin(round(160)), "sixty seconds without a round are a gap");
        assert!(watch.silent([seen(1, 7)].into_iter()).is_empty());
        assert!(watch.begin(round(165)));
        assert!(watch.silent([seen(1, 7)].into_iter()).is_empty());
    }
}
