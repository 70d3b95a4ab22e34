//! The share of one source: what is asked of the database and when, and what its answers mean.

use super::lane::{Refusal, State};
use std::time::Duration;
use uuid::Uuid;

/// Terms are good for so long after the question was sent.
const FRESH: Duration = Duration::from_secs(1);
/// While calls are made, the next question follows the last one after this time.
const RENEW: Duration = Duration::from_millis(400);
/// Who wants more than he has asks again after this time; hints make it faster.
const POLL: Duration = Duration::from_millis(150);
/// A window is asked to go on so long before it ends.
const AHEAD: Duration = Duration::from_millis(100);
/// And not more often than this.
const PAUSE_BETWEEN_QUESTIONS: Duration = Duration::from_millis(8);
/// A source that started calls so recently will start more.
const BUSY: Duration = Duration::from_millis(250);
/// Whoever starts calls one after the other needs so long from the end of one to the start of the next.
const NOBODY_STARTS: Duration = Duration::from_millis(5);
/// How late the first start of a window may be, at least.
const SLACK: Duration = Duration::from_millis(3);

/// The last question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    at: Duration,
    /// As in the question.
    need: u32,
    urgency: Option<i32>,
    /// When to ask for a window again; before, there is none.
    window_at: Option<Duration>,
    round_trip: Duration,
}

/// What holds since the last answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) runner: Uuid,
    pub(super) slots: u32,
    pub(super) concurrency: u32,
    pub(super) delay: Duration,
    pub(super) paused_until: Duration,
    pub(super) fresh_until: Duration,
    /// Other runners wait for a window of this source.
    pub(super) contended: bool,
}

/// Where calls may start. `made` of them were, after `pace` of them in the one before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) from: Duration,
    pub(super) until: Duration,
    pub(super) made: u32,
    pace: u32,
}

/// What to ask the database.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Question {
    /// Greater than those before, so that the database tells one that comes late.
    pub(super) number: i64,
    pub(super) in_flight: u32,
    /// Calls that wait for a slot.
    pub(super) waiting: u32,
    /// The lowest priority number of those, and how many have it.
    pub(super) most_urgent: Option<(i32, u32)>,
    /// Slots that would be used, in flight included.
    pub(super) need: u32,
    /// Slots that are used whatever the answer is.
    pub(super) keeps: u32,
    /// `None`: nobody calls any more.
    pub(super) starts: Option<u32>,
    pub(super) slack: Duration,
    pub(super) released: bool,
    pub(super) last_start_age: Option<Duration>,
    pub(super) answered: bool,
    /// What was promised by an earlier one whose answer is still missing.
    pub(super) promised_before: Option<u32>,
}

/// What it answered. Times count from its own clock's now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) slots: u32,
    pub(super) concurrency: u32,
    pub(super) delay: Duration,
    pub(super) paused: Duration,
    /// From (none: the one there is goes on), and until.
    pub(super) window: Option<(Option<Duration>, Duration)>,
    pub(super) ask_in: Option<Duration>,
    pub(super) contended: bool,
}

impl Window {
    /// After this time no call starts in it; zero if the Delay allows none before its end.
    pub(super) fn closes_at(&self, earliest: Option<Duration>) -> Duration {
        if self.from.max(earliest.unwrap_or_default()) > self.until { Duration::ZERO } else { self.until }
    }
}

impl Question {
    fn urgency(&self) -> Option<i32> {
        self.most_urgent.map(|(priority, _)| priority)
    }
}

impl Asked {
    /// After a refusal, or with no answer at all.
    pub(super) fn in_vain(at: Duration) -> Self {
        Self { at, need: u32::MAX, urgency: None, window_at: None, round_trip: Duration::ZERO }
    }
}

impl State {
    pub(super) fn question(&mut self, runner: Uuid, now: Duration) -> Question {
        let idle = self.is_idle(now);
        // Nor is it known yet when the last call in it starts, while that is being written.
        let over = self.window.filter(|_| self.writing == 0).is_some_and(|window| {
            idle || window.closes_at(self.earliest()) < now
                || self.gives_back_at().is_some_and(|at| at <= now)
        });
        // Before the question is on its way nothing may start in it any more.
        let last = if over { self.window.take() } else { None };
        self.pace = last.or(self.window).map_or(0, |window| window.made.max(window.pace / 2));
        let round_trip = self.asked.map_or(Duration::ZERO, |asked| asked.round_trip);
        let wanted = match (self.wants_starts(now), self.starting + self.waiting > 1 || self.pace > 0) {
            (false, _) => 0,
            (true, false) => 1,
            // As many as a window takes: what is not used is given back.
            (true, true) => 1000,
        };
        // While calls may start, an answer takes no slot away; it says itself how many may be used.
        let kept = self.terms.filter(|terms| self.window.is_some() && terms.runner == runner);
        let kept = kept.map_or(0, |terms| terms.slots.min(self.promised.unwrap_or(u32::MAX)));
        let keeps = self.in_flight.max(kept);
        let need = self.need();
        if idle {
            // The database is about to be told that nobody uses them.
            self.terms = None;
        }
        let promised_before = self.promised.replace(keeps);
        self.number += 1;
        self.hinted = false;
        Question {
            number: self.number,
            in_flight: self.in_flight,
            waiting: self.waiting + self.ready,
            most_urgent: self.most_urgent(),
            need,
            keeps,
            starts: (!idle).then_some(wanted),
            slack: (SLACK + round_trip).min(Duration::from_millis(100)),
            released: self.window.is_none(),
            last_start_age: self.last_start.map(|at| now.saturating_sub(at)),
            answered: std::mem::take(&mut self.answered),
            promised_before,
        }
    }

    pub(super) fn answer(
        &mut self,
        runner: Uuid,
        question: &Question,
        share: &Share,
        sent: Duration,
        now: Duration,
    ) {
        self.refused = None;
        self.promised = None;
        if self.pause.is_some_and(|pause| pause.told.is_some_and(|told| told <= sent)) {
            self.pause = None;
        }
        match (share.window, &mut self.window) {
            (Some((Some(from), until)), _) => {
                let pace = self.pace;
                self.window = Some(Window { from: now + from, until: sent + until, made: 0, pace });
            }
            (Some((None, until)), Some(window)) => window.until = window.until.max(sent + until),
            _ => {}
        }
        self.terms = Some(Terms {
            runner,
            slots: share.slots,
            concurrency: share.concurrency,
            delay: share.delay,
            paused_until: now + share.paused,
            fresh_until: sent + FRESH,
            contended: share.contended,
        });
        self.asked = Some(Asked {
            at: sent,
            need: question.need,
            urgency: question.urgency(),
            window_at: share.ask_in.map(|wait| now + wait),
            round_trip: now.saturating_sub(sent),
        });
    }

    /// Slots that would be used. With a Delay that is no more than calls overlap at that pace, and one: what is left
    /// lets the next runner begin while calls of this one's window are still in flight.
    fn need(&self) -> u32 {
        let callers = self.waiting + self.ready;
        let more = match self.terms.filter(|terms| !terms.delay.is_zero()) {
            Some(terms) => {
                let overlap = self.call_takes.as_nanos().div_ceil(terms.delay.as_nanos());
                let enough = u32::try_from(overlap).unwrap_or(u32::MAX).saturating_add(1);
                callers.min(enough.saturating_sub(self.in_flight).max(1))
            }
            None => callers,
        };
        self.in_flight + more
    }

    fn wants_starts(&self, now: Duration) -> bool {
        self.starting > 0
            || self.waiting > 0 && self.terms.is_none()
            || !self.is_contended() && self.last_start.is_some_and(|at| now < at + BUSY)
    }

    /// A window in which a call could start and none does is for the others that wait for one. It goes back at once if
    /// none will: all slots are in flight, for longer than the Delay.
    fn gives_back_at(&self) -> Option<Duration> {
        let window = self.window.filter(|_| self.starting == 0)?;
        let terms = self.terms.filter(|terms| terms.contended)?;
        let busy = self.in_flight >= terms.slots && self.call_takes > terms.delay + NOBODY_STARTS;
        if window.made > 0 && busy {
            return self.last_start;
        }
        Some(window.from.max(self.earliest().unwrap_or_default()) + NOBODY_STARTS)
    }

    /// When to ask next.
    pub(super) fn next_question(&self, now: Duration) -> Duration {
        let (Some(asked), Some(terms)) = (self.asked, self.terms) else {
            // After a refusal there are no terms, and asking at once would be a storm.
            return match (&self.refused, self.asked) {
                (Some(_), Some(asked)) => asked.at + POLL,
                _ => now,
            };
        };
        let calm = asked.at + PAUSE_BETWEEN_QUESTIONS;
        // Others let a more urgent call go first when they know of it.
        let is_more_urgent =
            self.most_urgent().is_some_and(|(priority, _)| asked.urgency.is_none_or(|u| priority < u));
        let mut at = if self.hinted || terms.contended && is_more_urgent { calm } else { asked.at + RENEW };
        let closes_at = self.window.map(|window| window.closes_at(self.earliest()));
        let open = closes_at.is_some_and(|closes_at| closes_at >= now);
        // Whose turn it is not can use no slot but those in flight.
        let is_out = terms.contended && !terms.delay.is_zero() && !open;
        if is_out {
            if terms.slots > self.in_flight || self.window.is_some() {
                at = at.min(calm);
            }
        } else if self.waiting + self.ready > 0
            && self.in_flight >= terms.slots
            && terms.slots < terms.concurrency
        {
            at = at.min(if self.need() > asked.need { calm } else { asked.at + POLL });
        }
        if !terms.delay.is_zero() && self.wants_starts(now) {
            at = at.min(match closes_at.filter(|_| open) {
                // With others in line it is not their turn to be overtaken by asking ahead.
                Some(closes_at) if !terms.contended && terms.delay < AHEAD => {
                    calm.max(closes_at.saturating_sub(AHEAD))
                }
                Some(closes_at) => calm.max(closes_at + Duration::from_micros(1)),
                None => asked.window_at.unwrap_or(calm).max(calm),
            });
        }
        if let Some(closes_at) = closes_at
            && terms.contended
        {
            at = at.min(calm.max(closes_at + Duration::from_micros(1)));
        }
        match self.gives_back_at() {
            Some(given_back) => at.min(given_back.max(calm)),
            None => at,
        }
    }

    /// Why nothing is granted. Of trouble that goes on, its begin counts.
    pub(super) fn refuse(&mut self, refusal: Refusal, now: Duration) {
        let refusal = match (refusal, &self.refused) {
            (Refusal::Trouble(_, error), Some(Refusal::Trouble(since, _))) => Refusal::Trouble(*since, error),
            (refusal, _) => refusal,
        };
        if !matches!(refusal, Refusal::Trouble(..)) {
            self.terms = None;
        }
        self.refused = Some(refusal);
        self.asked = Some(Asked::in_vain(now));
    }
}
