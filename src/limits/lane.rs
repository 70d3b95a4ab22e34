//! One source as this process sees it: its share, who waits for it, and when the next call may start. No statement and
//! no clock is asked here; every time is one since boot and comes from the caller.
//!
//! | a call is | from | to | who writes it |
//! |---|---|---|---|
//! | waiting | `Lane::wait` | a slot, or gone | its caller, in the order of priority |
//! | in flight | `take_slot` | `free_slot` | its permit; at most `Terms::slots` at once |
//! | starting | `begin_starting` | `end_starting` | its permit, which writes one at a time |
//!
//! Terms come with each answer of `vm.share_source` and are good for a second after the question was sent: who edits
//! or pauses a source waits no longer than that, whatever became of the connection. A window to start calls in is
//! counted from the arrival of the answer and ends counted from the departure of the question, so it lies inside the
//! one the database gave out, however long either took.

use super::line::Line;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// Terms are good for so long.
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
const NOBODY_STARTS: Duration = Duration::from_millis(3);
/// The share of a source that nobody calls goes back after this time.
const IDLE: Duration = Duration::from_millis(300);
/// How late the first start of a window may be, at least.
const SLACK: Duration = Duration::from_millis(5);

/// The callers of one source in this process.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) source: Uuid,
    /// Whoever is first takes the next slot.
    pub(super) slots: Line,
    /// Whoever is first starts the next call, where there is a Delay.
    pub(super) starts: Line,
    /// Wakes whoever asks the database.
    pub(super) ask: Notify,
    /// Something that callers wait for may have changed.
    changed: watch::Sender<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kept: bool,
    waiting: u32,
    in_flight: u32,
    starting: u32,
    /// Calls in flight when the question was sent that is not answered yet. Its answer may leave no more slots than
    /// that, and the rest may be another runner's already.
    promised: Option<u32>,
    terms: Option<Terms>,
    refused: Option<Refusal>,
    window: Option<Window>,
    last_start: Option<Duration>,
    last_use: Duration,
    /// About how long a call takes.
    call_takes: Duration,
    /// Starts in the window before.
    pace: u32,
    /// Calls answered since the last question, none of them with 429.
    answered: bool,
    asked: Option<Asked>,
}

/// The last question.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Duration,
    /// Calls in flight then, and those that waited for a slot.
    need: u32,
    /// When to ask for a window again; before, there is none.
    window_at: Option<Duration>,
    round_trip: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Terms {
    runner: Uuid,
    slots: u32,
    concurrency: u32,
    delay: Duration,
    paused_until: Duration,
    fresh_until: Duration,
    contended: bool,
}

/// Where calls may start. `made` of them were, after `pace` of them in the one before.
#[derive(Debug, Clone, Copy)]
struct Window {
    from: Duration,
    until: Duration,
    made: u32,
    pace: u32,
}

/// Why a source grants nothing at all.
#[derive(Debug, Clone)]
pub(super) enum Refusal {
    Inactive(String),
    Unknown,
    RunnerGone,
    /// The database could not be asked since then.
    Trouble(Duration, Arc<sqlx::Error>),
}

/// Whether a caller can go on.
#[derive(Debug)]
pub(super) enum Ready {
    Now,
    /// When something changes.
    Later,
    Refused(Refusal),
}

/// When the next call may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextStart {
    /// Without a Delay.
    AtOnce,
    At(Duration),
    /// Not known: there is no window.
    Later,
}

/// What to ask the database.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Question {
    pub(super) in_flight: u32,
    pub(super) waiting: u32,
    /// `None`: nobody calls any more.
    pub(super) starts: Option<u32>,
    pub(super) slack: Duration,
    pub(super) released: bool,
    pub(super) last_start_age: Option<Duration>,
    pub(super) answered: bool,
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

impl Lane {
    pub(super) fn new(source: Uuid) -> Self {
        Self {
            source,
            slots: Line::default(),
            starts: Line::default(),
            ask: Notify::new(),
            changed: watch::Sender::new(()),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of every change that a caller may wait for.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A caller begins to wait. Returns whether somebody must be made to ask the database.
    pub(super) fn wait(&self, now: Duration) -> bool {
        let mut state = self.state();
        state.waiting += 1;
        state.last_use = now;
        // Whether that still holds is asked for each new caller.
        if state.refused.as_ref().is_some_and(|refusal| !matches!(refusal, Refusal::Trouble(..))) {
            state.refused = None;
            state.asked = None;
        }
        !std::mem::replace(&mut state.kept, true)
    }

    pub(super) fn wait_no_more(&self) {
        self.state().waiting -= 1;
    }

    /// A slot for the caller that is first in line.
    pub(super) fn take_slot(&self, runner: Uuid, now: Duration) -> Ready {
        let mut state = self.state();
        match &state.refused {
            Some(Refusal::Trouble(..)) | None => {}
            Some(refusal) => return Ready::Refused(refusal.clone()),
        }
        let most = state.terms.map_or(0, |terms| terms.slots).min(state.promised.unwrap_or(u32::MAX));
        let free = state.is_usable(runner, now) && state.in_flight < most;
        if free {
            state.in_flight += 1;
            state.last_use = now;
            return Ready::Now;
        }
        match &state.refused {
            Some(refusal) => Ready::Refused(refusal.clone()),
            None => Ready::Later,
        }
    }

    /// A call has ended, and took so long from its start.
    pub(super) fn free_slot(&self, took: Duration) {
        let has_more = {
            let mut state = self.state();
            state.in_flight -= 1;
            state.call_takes = (state.call_takes * 7 + took) / 8;
            // What this runner has beyond its part is what others wait for.
            state.terms.is_some_and(|terms| state.in_flight >= terms.slots)
        };
        if has_more {
            self.ask.notify_one();
        }
        self.changed.send_replace(());
    }

    /// `Concurrency` as it stood at the last answer.
    pub(super) fn concurrency(&self) -> u32 {
        self.state().terms.map_or(1, |terms| terms.concurrency)
    }

    /// One more caller has a slot and waits for its start.
    pub(super) fn begin_starting(&self) {
        self.state().starting += 1;
    }

    /// It has started, or gone away. Returns whether that was the last one, and others wait for the window.
    pub(super) fn end_starting(&self) -> bool {
        let mut state = self.state();
        state.starting -= 1;
        state.starting == 0 && state.is_contended()
    }

    /// When the caller that is first may start its call.
    pub(super) fn next_start(&self, runner: Uuid, now: Duration) -> NextStart {
        self.state().next_start(runner, now)
    }

    /// The last word, right before the first byte is written. `earliest` is what [`Lane::next_start`] said.
    pub(super) fn may_start(&self, runner: Uuid, earliest: Option<Duration>, now: Duration) -> bool {
        let mut state = self.state();
        if !state.is_usable(runner, now) {
            return false;
        }
        let Some(earliest) = earliest else { return true };
        let spaced = state.earliest().is_none_or(|at| now >= at);
        let Some(window) = &mut state.window else { return false };
        let may = spaced && now >= earliest && now >= window.from && now <= window.until;
        if may {
            // From here on the window is used, although nothing is written yet.
            window.made += 1;
            state.last_start = Some(now);
        }
        may
    }

    /// The first bytes of a call are written.
    pub(super) fn started(&self, now: Duration) {
        let mut state = self.state();
        state.last_start = Some(now);
        state.last_use = now;
    }

    /// The source answered a call, and did not refuse it.
    pub(super) fn answered(&self) {
        self.state().answered = true;
    }

    /// No call starts before this time, whatever the database has been told of it.
    pub(super) fn pause(&self, until: Duration) {
        if let Some(terms) = &mut self.state().terms {
            terms.paused_until = terms.paused_until.max(until);
        }
    }

    /// A hint: something about this source has changed.
    pub(super) fn hint(&self) {
        {
            let mut state = self.state();
            if !state.kept {
                return;
            }
            state.asked = None;
        }
        self.ask.notify_one();
    }

    /// What to ask now.
    pub(super) fn question(&self, now: Duration) -> Question {
        let mut state = self.state();
        let idle = state.is_idle(now);
        let over = state.window.is_some_and(|window| {
            idle || !window.has_room(state.earliest(), now)
                || state.gives_back_at().is_some_and(|at| at <= now)
        });
        // Before the question is on its way nothing may start in it any more.
        let last = if over { state.window.take() } else { None };
        let pace = last.or(state.window).map_or(0, |window| window.made.max(window.pace / 2));
        state.pace = pace;
        let round_trip = state.asked.map_or(Duration::ZERO, |asked| asked.round_trip);
        let wanted = match (state.wants_starts(now), state.starting + state.waiting > 1 || pace > 0) {
            (false, _) => 0,
            (true, false) => 1,
            // As many as a window takes: what is not used is given back.
            (true, true) => 1000,
        };
        if idle {
            // The database is about to be told that nobody uses them.
            state.terms = None;
        }
        state.promised = Some(state.in_flight);
        Question {
            in_flight: state.in_flight,
            waiting: state.waiting,
            starts: (!idle).then_some(wanted),
            slack: (SLACK + round_trip).min(Duration::from_millis(100)),
            released: state.window.is_none(),
            last_start_age: state.last_start.map(|at| now.saturating_sub(at)),
            answered: std::mem::take(&mut state.answered),
        }
    }

    /// The database answered a question that was sent at `sent`.
    pub(super) fn answer(
        &self,
        runner: Uuid,
        question: &Question,
        share: &Share,
        sent: Duration,
        now: Duration,
    ) {
        {
            let mut state = self.state();
            state.refused = None;
            state.promised = None;
            match (share.window, &mut state.window) {
                (Some((Some(from), until)), _) => {
                    let pace = state.pace;
                    state.window = Some(Window { from: now + from, until: sent + until, made: 0, pace });
                }
                (Some((None, until)), Some(window)) => window.until = window.until.max(sent + until),
                _ => {}
            }
            state.terms = Some(Terms {
                runner,
                slots: share.slots,
                concurrency: share.concurrency,
                delay: share.delay,
                paused_until: now + share.paused,
                fresh_until: sent + FRESH,
                contended: share.contended,
            });
            state.asked = Some(Asked {
                at: sent,
                need: question.in_flight + question.waiting,
                window_at: share.ask_in.map(|wait| now + wait),
                round_trip: now.saturating_sub(sent),
            });
        }
        self.changed.send_replace(());
    }

    /// There was no answer, or a refusal.
    pub(super) fn refuse(&self, refusal: Refusal, now: Duration) {
        {
            let mut state = self.state();
            let refusal = match (refusal, &state.refused) {
                (Refusal::Trouble(_, error), Some(Refusal::Trouble(since, _))) => {
                    Refusal::Trouble(*since, error)
                }
                (refusal, _) => refusal,
            };
            if !matches!(refusal, Refusal::Trouble(..)) {
                state.terms = None;
            }
            state.refused = Some(refusal);
            state.asked =
                Some(Asked { at: now, need: u32::MAX, window_at: None, round_trip: Duration::ZERO });
        }
        self.changed.send_replace(());
    }

    /// The other runner that asked at the same moment will have its answer in a few milliseconds.
    pub(super) fn busy(&self) {
        let mut state = self.state();
        state.asked = None;
        state.promised = None;
        drop(state);
        self.changed.send_replace(());
    }

    /// When to ask next.
    pub(super) fn next_question(&self, now: Duration) -> Duration {
        self.state().next_question(now)
    }

    /// Nobody asks for this lane any more, unless somebody has come meanwhile. Returns whether that is so.
    pub(super) fn leave(&self, now: Duration) -> bool {
        let mut state = self.state();
        let idle = state.is_idle(now);
        if idle {
            let (last_start, call_takes) = (state.last_start, state.call_takes);
            *state = State { last_start, call_takes, ..State::default() };
        }
        idle
    }
}

impl Window {
    fn has_room(&self, earliest: Option<Duration>, now: Duration) -> bool {
        now.max(self.from).max(earliest.unwrap_or_default()) <= self.until
    }
}

impl State {
    fn is_usable(&self, runner: Uuid, now: Duration) -> bool {
        self.terms.is_some_and(|terms| {
            terms.runner == runner && now < terms.fresh_until && now >= terms.paused_until
        })
    }

    fn is_idle(&self, now: Duration) -> bool {
        self.in_flight == 0 && self.waiting == 0 && self.starting == 0 && now >= self.last_use + IDLE
    }

    /// By the Delay alone. A little is added to it (2 %, at most a millisecond), because the source may be slower to
    /// notice one call than the next.
    fn earliest(&self) -> Option<Duration> {
        let delay = self.terms?.delay;
        Some(self.last_start? + delay + (delay / 50).min(Duration::from_millis(1)))
    }

    fn next_start(&self, runner: Uuid, now: Duration) -> NextStart {
        if !self.is_usable(runner, now) {
            return NextStart::Later;
        }
        if self.terms.is_some_and(|terms| terms.delay.is_zero()) {
            return NextStart::AtOnce;
        }
        match self.window {
            Some(window) if window.has_room(self.earliest(), now) => {
                NextStart::At(now.max(window.from).max(self.earliest().unwrap_or_default()))
            }
            _ => NextStart::Later,
        }
    }

    fn wants_starts(&self, now: Duration) -> bool {
        self.starting > 0
            || self.waiting > 0 && self.terms.is_none()
            || !self.is_contended() && self.last_start.is_some_and(|at| now < at + BUSY)
    }

    fn is_contended(&self) -> bool {
        self.terms.is_some_and(|terms| terms.contended)
    }

    /// A window without a slot to use it is for others; while they wait for one, so is a window in which a call could
    /// start and none does. It goes back at once if none will: all slots are in flight, for longer than the Delay.
    fn gives_back_at(&self) -> Option<Duration> {
        let (window, terms) = (self.window.filter(|_| self.starting == 0)?, self.terms?);
        if terms.slots == 0 && self.in_flight == 0 {
            return Some(Duration::ZERO);
        }
        if !terms.contended {
            return None;
        }
        let busy = self.in_flight >= terms.slots && self.call_takes > terms.delay + NOBODY_STARTS;
        if window.made > 0 && busy {
            return self.last_start;
        }
        Some(window.from.max(self.earliest().unwrap_or_default()) + NOBODY_STARTS)
    }

    fn next_question(&self, now: Duration) -> Duration {
        let (Some(asked), Some(terms)) = (self.asked, self.terms) else {
            // After a refusal there are no terms, and asking at once would be a storm.
            return match (&self.refused, self.asked) {
                (Some(_), Some(asked)) => asked.at + POLL,
                _ => now,
            };
        };
        let mut at = asked.at + RENEW;
        if self.waiting > 0 && self.in_flight >= terms.slots && terms.slots < terms.concurrency {
            let has_grown = self.in_flight + self.waiting > asked.need;
            at = at.min(asked.at + if has_grown { PAUSE_BETWEEN_QUESTIONS } else { POLL });
        }
        if !terms.delay.is_zero() && self.wants_starts(now) && (self.starting > 0 || terms.slots > 0) {
            let calm = asked.at + PAUSE_BETWEEN_QUESTIONS;
            match self.window {
                Some(window) if window.has_room(self.earliest(), now) => {
                    // With others in line it is not their turn to be overtaken by asking ahead.
                    let worth_it = !terms.contended && terms.delay < AHEAD;
                    if worth_it {
                        at = at.min(calm.max(window.until.saturating_sub(AHEAD)));
                    }
                }
                _ => at = at.min(asked.window_at.unwrap_or(calm).max(calm)),
            }
        }
        match self.gives_back_at() {
            Some(given_back) => at.min(given_back.max(asked.at + PAUSE_BETWEEN_QUESTIONS)),
            None => at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_a_question_is_under_way_no_slot_is_taken_beyond_what_it_said() {
        let (lane, runner, now) = (Lane::new(Uuid::nil()), Uuid::from_u128(1), Duration::from_secs(9));
        let takes = || matches!(lane.take_slot(runner, now), Ready::Now);
        let share = Share {
            slots: 10,
            concurrency: 10,
            delay: Duration::ZERO,
            paused: Duration::ZERO,
            window: None,
            ask_in: None,
            contended: false,
        };
        lane.wait(now);
        let question = lane.question(now);
        lane.answer(runner, &question, &share, now, now);
        assert!(takes() && takes());
        // The answer may leave no more than two, and the others may be another runner's already.
        let question = lane.question(now);
        assert_eq!(question.in_flight, 2);
        assert!(!takes());
        lane.free_slot(Duration::ZERO);
        assert!(takes() && !takes());
        lane.answer(runner, &question, &share, now, now);
        assert!(takes());
    }
}
