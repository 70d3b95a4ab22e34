//! One source as this process sees it: its share, who waits for it, and when the next call may start. No statement and
//! no clock is asked here; every time is one since boot and comes from the caller.
//!
//! | a call is | from | to | who writes it |
//! |---|---|---|---|
//! | waiting | `Lane::wait` | admitted, or gone | its caller, in the order of priority |
//! | ready, where there is a Delay | `admit` | `may_start`, or `step_back` | its permit, which connects meanwhile |
//! | starting | `begin_starting` | `end_starting` | its permit, which writes one at a time |
//! | in flight | `admit` without a Delay, `may_start` with one | `free_slot` | its permit; at most `Terms::slots` at once |
//!
//! With a Delay a call takes its slot at the moment it starts and not before, because between its windows a runner
//! starts nothing: slots it held for calls that only wait would be missing to the runner whose window it is.
//!
//! Terms come with each answer of `vm.share_source` and are good for a second after the question was sent: who edits
//! or pauses a source waits no longer than that, whatever became of the connection. A window to start calls in is
//! counted from the arrival of the answer and ends counted from the departure of the question, so it lies inside the
//! one the database gave out, however long either took.

use super::line::Line;
use super::share::{Asked, Question, Share, Terms, Window};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// The share of a source that nobody calls goes back after this time.
const IDLE: Duration = Duration::from_millis(300);
/// So many calls connect, or stand connected, while they wait for their starts.
const MOST_READY: u32 = 16;

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
pub(super) struct State {
    kept: bool,
    pub(super) waiting: u32,
    pub(super) ready: u32,
    pub(super) in_flight: u32,
    pub(super) starting: u32,
    /// Calls that had their last word and have not written yet, where there is a Delay.
    pub(super) writing: u32,
    /// Calls that may be in flight while a question is not answered yet. Its answer may leave no more slots than that,
    /// and the rest may be another runner's already.
    pub(super) promised: Option<u32>,
    pub(super) terms: Option<Terms>,
    pub(super) refused: Option<Refusal>,
    pub(super) window: Option<Window>,
    pub(super) last_start: Option<Duration>,
    pub(super) last_use: Duration,
    /// About how long a call takes.
    pub(super) call_takes: Duration,
    /// Starts in the window before.
    pub(super) pace: u32,
    /// Calls answered since the last question, none of them with 429.
    pub(super) answered: bool,
    pub(super) asked: Option<Asked>,
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
pub(super) enum Admission {
    /// It has a slot.
    Slot,
    /// It gets its slot when it starts, which it may make ready for.
    Ready,
    /// Not yet: when something changes.
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

    /// Lets the caller that is first in line go on.
    pub(super) fn admit(&self, runner: Uuid, now: Duration) -> Admission {
        let mut state = self.state();
        match &state.refused {
            Some(Refusal::Trouble(..)) | None => {}
            Some(refusal) => return Admission::Refused(refusal.clone()),
        }
        if let Some(terms) = state.usable(runner, now) {
            if terms.delay.is_zero() {
                if state.take_slot() {
                    state.last_use = now;
                    return Admission::Slot;
                }
            } else if state.ready < terms.concurrency.min(MOST_READY) {
                state.ready += 1;
                state.last_use = now;
                return Admission::Ready;
            }
        }
        match &state.refused {
            Some(refusal) => Admission::Refused(refusal.clone()),
            None => Admission::Later,
        }
    }

    /// A call that was ready does not start.
    pub(super) fn step_back(&self) {
        self.state().ready -= 1;
        self.changed.send_replace(());
    }

    /// A call has ended, and took so long from its start.
    pub(super) fn free_slot(&self, took: Duration) {
        let others_want_it = {
            let mut state = self.state();
            state.in_flight -= 1;
            state.call_takes =
                if state.call_takes.is_zero() { took } else { (state.call_takes * 7 + took) / 8 };
            // What this runner has beyond its part is what others wait for.
            state.terms.is_some_and(|terms| terms.contended || state.in_flight >= terms.slots)
        };
        if others_want_it {
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
    pub(super) fn next_start(&self, runner: Uuid, has_slot: bool, now: Duration) -> NextStart {
        self.state().next_start(runner, has_slot, now)
    }

    /// The last word, right before the first byte is written. `earliest` is what [`Lane::next_start`] said. A call that
    /// may start has a slot from here on.
    pub(super) fn may_start(
        &self,
        runner: Uuid,
        has_slot: bool,
        earliest: Option<Duration>,
        now: Duration,
    ) -> bool {
        let mut state = self.state();
        if state.usable(runner, now).is_none() || !has_slot && !state.has_slot_free() {
            return false;
        }
        if let Some(earliest) = earliest {
            let spaced = state.earliest().is_none_or(|at| now >= at);
            let Some(window) = &mut state.window else { return false };
            if !spaced || now < earliest || now < window.from || now > window.until {
                return false;
            }
            // From here on the window is used, although nothing is written yet.
            window.made += 1;
            state.last_start = Some(now);
            state.writing += 1;
        }
        if !has_slot {
            state.take_slot();
            state.ready -= 1;
        }
        true
    }

    /// The first bytes of a call are written, or if `now` is none will not be. `counted` says that it had its last word
    /// where there is a Delay.
    pub(super) fn wrote(&self, counted: bool, now: Option<Duration>) {
        let mut state = self.state();
        state.writing -= u32::from(counted);
        if let Some(now) = now {
            state.last_start = Some(now);
            state.last_use = now;
        }
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

    /// What to ask now, in the name of this runner.
    pub(super) fn question(&self, runner: Uuid, now: Duration) -> Question {
        self.state().question(runner, now)
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
        self.state().answer(runner, question, share, sent, now);
        self.changed.send_replace(());
    }

    /// There was no answer, or a refusal.
    pub(super) fn refuse(&self, refusal: Refusal, now: Duration) {
        self.state().refuse(refusal, now);
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

impl State {
    /// The terms, while they hold for this runner and no pause was asked for.
    pub(super) fn usable(&self, runner: Uuid, now: Duration) -> Option<Terms> {
        self.terms
            .filter(|terms| terms.runner == runner && now < terms.fresh_until && now >= terms.paused_until)
    }

    pub(super) fn is_idle(&self, now: Duration) -> bool {
        self.in_flight == 0
            && self.ready == 0
            && self.waiting == 0
            && self.starting == 0
            && now >= self.last_use + IDLE
    }

    fn has_slot_free(&self) -> bool {
        let most = self.terms.map_or(0, |terms| terms.slots).min(self.promised.unwrap_or(u32::MAX));
        self.in_flight < most
    }

    fn take_slot(&mut self) -> bool {
        let free = self.has_slot_free();
        self.in_flight += u32::from(free);
        free
    }

    /// By the Delay alone. A little is added to it (1 %, at most a millisecond), because the source may be slower to
    /// notice one call than the next.
    pub(super) fn earliest(&self) -> Option<Duration> {
        let delay = self.terms?.delay;
        Some(self.last_start? + delay + (delay / 100).min(Duration::from_millis(1)))
    }

    fn next_start(&self, runner: Uuid, has_slot: bool, now: Duration) -> NextStart {
        let Some(terms) = self.usable(runner, now) else { return NextStart::Later };
        if !has_slot && !self.has_slot_free() {
            return NextStart::Later;
        }
        if terms.delay.is_zero() {
            return NextStart::AtOnce;
        }
        match self.window {
            Some(window) if window.closes_at(self.earliest()) >= now => {
                NextStart::At(now.max(window.from).max(self.earliest().unwrap_or_default()))
            }
            _ => NextStart::Later,
        }
    }

    pub(super) fn is_contended(&self) -> bool {
        self.terms.is_some_and(|terms| terms.contended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(9);
    const RUNNER: Uuid = Uuid::from_u128(1);
    const SHARE: Share = Share {
        slots: 10,
        concurrency: 10,
        delay: Duration::ZERO,
        paused: Duration::ZERO,
        window: None,
        ask_in: None,
        contended: false,
    };

    #[test]
    fn while_a_question_is_under_way_no_slot_is_taken_beyond_what_it_said() {
        let lane = Lane::new(Uuid::nil());
        let takes = || matches!(lane.admit(RUNNER, NOW), Admission::Slot);
        lane.wait(NOW);
        let question = lane.question(RUNNER, NOW);
        lane.answer(RUNNER, &question, &SHARE, NOW, NOW);
        assert!(takes() && takes());
        // The answer may leave no more than two, and the others may be another runner's already.
        let question = lane.question(RUNNER, NOW);
        assert_eq!(question.keeps, 2);
        assert!(!takes());
        lane.free_slot(Duration::ZERO);
        assert!(takes() && !takes());
        lane.answer(RUNNER, &question, &SHARE, NOW, NOW);
        assert!(takes());
    }

    #[test]
    fn with_a_delay_calls_that_only_wait_hold_no_slot_and_none_starts_without_one() {
        let lane = Lane::new(Uuid::nil());
        let ms = Duration::from_millis;
        lane.wait(NOW);
        let question = lane.question(RUNNER, NOW);
        let window = Some((Some(Duration::ZERO), ms(400)));
        let share = Share { slots: 1, delay: ms(10), window, contended: true, ..SHARE };
        lane.answer(RUNNER, &question, &share, NOW, NOW);
        for _ in 0..3 {
            assert!(matches!(lane.admit(RUNNER, NOW), Admission::Ready));
        }
        let NextStart::At(at) = lane.next_start(RUNNER, false, NOW) else { panic!("it may start") };
        assert!(lane.may_start(RUNNER, false, Some(at), at));
        lane.wrote(true, Some(at));
        // The only slot is in flight.
        let later = at + ms(20);
        assert_eq!(lane.next_start(RUNNER, false, later), NextStart::Later);
        assert!(!lane.may_start(RUNNER, false, Some(at), later));
        let question = lane.question(RUNNER, later);
        assert_eq!((question.in_flight, question.keeps, question.waiting), (1, 1, 3));
        // Its window is over: what it holds beyond its calls in flight goes back.
        let over = NOW + ms(500);
        lane.answer(RUNNER, &question, &Share { slots: 3, window: None, ..share }, later, later);
        assert!(lane.next_question(over) <= over);
        assert_eq!(lane.question(RUNNER, over).keeps, 1);
    }

    #[test]
    fn a_window_in_which_a_call_is_about_to_be_written_is_not_given_back() {
        let lane = Lane::new(Uuid::nil());
        let (delay, late) = (Duration::from_millis(250), NOW + Duration::from_millis(90));
        let window = Some((Some(Duration::ZERO), Duration::from_millis(5)));
        let share = Share { delay, window, contended: true, ..SHARE };
        lane.wait(NOW);
        let question = lane.question(RUNNER, NOW);
        lane.answer(RUNNER, &question, &share, NOW, NOW);
        assert!(matches!(lane.admit(RUNNER, NOW), Admission::Ready));
        assert!(lane.may_start(RUNNER, false, Some(NOW), NOW));
        // Its thread has to wait for a processor before it writes.
        assert!(!lane.question(RUNNER, late).released);
        lane.wrote(true, Some(late));
        let question = lane.question(RUNNER, late);
        assert_eq!((question.released, question.last_start_age), (true, Some(Duration::ZERO)));
    }

    #[test]
    fn a_runner_with_a_new_identity_keeps_nothing_of_what_the_old_one_was_given() {
        let lane = Lane::new(Uuid::nil());
        let window = Some((Some(Duration::ZERO), Duration::from_millis(200)));
        let share = Share { delay: Duration::from_millis(10), window, ..SHARE };
        lane.wait(NOW);
        let question = lane.question(RUNNER, NOW);
        lane.answer(RUNNER, &question, &share, NOW, NOW);
        assert_eq!(lane.question(RUNNER, NOW).keeps, 10);
        assert_eq!(lane.question(Uuid::from_u128(2), NOW).keeps, 0);
    }
}
