//! One source as this process sees it: its share, who waits for it, and when the next call may start. No statement and
//! no clock is asked here; every time is one since boot and comes from the caller.
//!
//! | a call is | from | to | who writes it |
//! |---|---|---|---|
//! | waiting | `Lane::wait` | ready, or gone | its caller, in the order of priority |
//! | ready | `admit`, or `take_back` from in flight | in flight, or `step_back` | its permit, which connects meanwhile |
//! | starting, too | `begin_starting` | `end_starting` | its permit, which writes one at a time where there is a Delay |
//! | in flight | `may_start`, right before its first byte | `free_slot`, or `take_back` if no byte went out | its permit; at most `Terms::slots` at once |
//!
//! A call takes its slot at the moment it starts and not before: what only connects or waits for its turn must not count
//! when Concurrency is lowered, nor be missing to the runner whose window it is.
//!
//! Terms come with each answer of `vm.share_source` and are good for a second after the question was sent: who edits
//! or pauses a source waits no longer than that, whatever became of the connection. A window to start calls in is
//! counted from the arrival of the answer and ends counted from the departure of the question, so it lies inside the
//! one the database gave out, however long either took.

use super::line::Line;
use super::share::{Asked, Question, Share, Terms, Window};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// The share of a source that nobody calls goes back after this time.
const IDLE: Duration = Duration::from_millis(300);
/// So many calls connect, or stand connected, while they wait for their starts.
const MOST_READY: u32 = 16;
/// A call that left so long after its window is worth telling. The end of a window is reckoned from the departure of the
/// question, so the one the database knows is later by about that.
const LATE: Duration = Duration::from_millis(1);

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
    /// How many of those that wait or are ready have which priority.
    callers: BTreeMap<i32, u32>,
    pub(super) starting: u32,
    /// Calls that had their last word and have not written yet, where there is a Delay.
    pub(super) writing: u32,
    /// Calls that may be in flight while a question is not answered yet. Its answer may leave no more slots than that,
    /// and the rest may be another runner's already.
    pub(super) promised: Option<u32>,
    /// Of the newest question.
    pub(super) number: i64,
    /// Somebody said that there may be more, or less, than at the last question.
    pub(super) hinted: bool,
    pub(super) terms: Option<Terms>,
    pub(super) pause: Option<Pause>,
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

/// A pause the source asked this process for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    pub(super) until: Duration,
    /// When the database knew of it. Answers to later questions count in its place.
    pub(super) told: Option<Duration>,
}

/// What was heard of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceNews {
    /// It was edited or paused, or something was missed.
    Changed,
    /// Another runner waits for a share of it.
    Wanted,
    /// Another runner gave something back.
    Freed,
}

/// Whether a caller can go on.
#[derive(Debug)]
pub(super) enum Admission {
    /// It may connect, and ask for its start.
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
    pub(super) fn wait(&self, priority: i32, now: Duration) -> bool {
        let mut state = self.state();
        state.waiting += 1;
        state.join(priority);
        state.last_use = now;
        // Whether that still holds is asked for each new caller.
        if state.refused.as_ref().is_some_and(|refusal| !matches!(refusal, Refusal::Trouble(..))) {
            state.refused = None;
            state.asked = None;
        }
        !std::mem::replace(&mut state.kept, true)
    }

    pub(super) fn wait_no_more(&self, priority: i32) {
        let mut state = self.state();
        state.waiting -= 1;
        state.part(priority);
    }

    /// Lets the caller that is first in line go on.
    pub(super) fn admit(&self, runner: Uuid, priority: i32, now: Duration) -> Admission {
        let mut state = self.state();
        match &state.refused {
            Some(Refusal::Trouble(..)) | None => {}
            Some(refusal) => return Admission::Refused(refusal.clone()),
        }
        if let Some(terms) = state.usable(runner, now) {
            // Without a Delay whoever is ready starts at once.
            let room = if terms.delay.is_zero() {
                state.most_in_flight().saturating_sub(state.in_flight)
            } else {
                terms.concurrency.min(MOST_READY)
            };
            if state.ready < room {
                state.ready += 1;
                state.join(priority);
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
    pub(super) fn step_back(&self, priority: i32) {
        let mut state = self.state();
        state.ready -= 1;
        state.part(priority);
        drop(state);
        self.changed.send_replace(());
    }

    /// A call that had started, as it seemed, but of which no byte went out, is ready again.
    pub(super) fn take_back(&self, priority: i32) {
        let mut state = self.state();
        state.in_flight -= 1;
        state.ready += 1;
        state.join(priority);
        drop(state);
        self.changed.send_replace(());
    }

    /// Why nothing is granted at all, if that is so.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.state().refused.clone()
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
    pub(super) fn next_start(&self, runner: Uuid, now: Duration) -> NextStart {
        self.state().next_start(runner, now)
    }

    /// The last word, right before the first byte is written. `earliest` is what [`Lane::next_start`] said. A call that
    /// may start is in flight from here on.
    pub(super) fn may_start(
        &self,
        runner: Uuid,
        priority: i32,
        earliest: Option<Duration>,
        now: Duration,
    ) -> bool {
        let mut state = self.state();
        let Some(terms) = state.usable(runner, now) else { return false };
        // A Delay came or went meanwhile.
        if terms.delay.is_zero() != earliest.is_none() || state.in_flight >= state.most_in_flight() {
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
        state.in_flight += 1;
        state.ready -= 1;
        state.part(priority);
        true
    }

    /// The first bytes of a call are written. `counted` says that it had its last word where there is a Delay. Returns
    /// how long after the end of its window that was, if it was clearly after it.
    pub(super) fn wrote(&self, counted: bool, now: Duration) -> Option<Duration> {
        let mut state = self.state();
        state.writing -= u32::from(counted);
        state.last_start = Some(now);
        state.last_use = now;
        let ended = state.window.filter(|_| counted)?.until;
        now.checked_sub(ended).filter(|late| *late >= LATE)
    }

    /// Of a call that had its last word where there is a Delay no byte is written.
    pub(super) fn wrote_nothing(&self) {
        self.state().writing -= 1;
    }

    /// The source answered a call, and did not refuse it.
    pub(super) fn answered(&self) {
        self.state().answered = true;
    }

    /// No call starts before this time, whatever the database has been told of it.
    pub(super) fn pause(&self, until: Duration) {
        let mut state = self.state();
        let until = state.pause.map_or(until, |pause| pause.until.max(until));
        state.pause = Some(Pause { until, told: None });
    }

    /// The database knows of the pause until this time, and may be told by an operator that it is over.
    pub(super) fn pause_is_known(&self, until: Duration, now: Duration) {
        if let Some(pause) = &mut self.state().pause
            && pause.until <= until
        {
            pause.told = Some(now);
        }
    }

    /// Something about this source has changed.
    pub(super) fn hint(&self, news: SourceNews) {
        {
            let mut state = self.state();
            let concerned = match news {
                SourceNews::Changed => {
                    state.asked = None;
                    true
                }
                SourceNews::Wanted => state.in_flight > 0 || state.terms.is_some_and(|terms| terms.slots > 0),
                SourceNews::Freed => state.waiting > 0 || state.ready > 0,
            };
            if !state.kept || !concerned {
                return;
            }
            state.hinted = true;
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
    pub(super) fn busy(&self, question: &Question) {
        let mut state = self.state();
        state.asked = None;
        // The answer to an earlier one may still be missing.
        state.promised = question.promised_before;
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
            let State { number, pause, last_start, call_takes, .. } = std::mem::take(&mut *state);
            *state = State { number, pause, last_start, call_takes, ..State::default() };
        }
        idle
    }
}

impl State {
    /// The terms, while they hold for this runner and no pause was asked for.
    pub(super) fn usable(&self, runner: Uuid, now: Duration) -> Option<Terms> {
        self.terms.filter(|terms| {
            terms.runner == runner
                && now < terms.fresh_until
                && now >= terms.paused_until
                && self.pause.is_none_or(|pause| now >= pause.until)
        })
    }

    pub(super) fn is_idle(&self, now: Duration) -> bool {
        self.in_flight == 0
            && self.ready == 0
            && self.waiting == 0
            && self.starting == 0
            && now >= self.last_use + IDLE
    }

    fn join(&mut self, priority: i32) {
        *self.callers.entry(priority).or_default() += 1;
    }

    fn part(&mut self, priority: i32) {
        if let Some(callers) = self.callers.get_mut(&priority) {
            *callers -= 1;
            if *callers == 0 {
                self.callers.remove(&priority);
            }
        }
    }

    /// The lowest priority number of those that wait or are ready, and how many have it.
    pub(super) fn most_urgent(&self) -> Option<(i32, u32)> {
        self.callers.first_key_value().map(|(priority, callers)| (*priority, *callers))
    }

    fn most_in_flight(&self) -> u32 {
        self.terms.map_or(0, |terms| terms.slots).min(self.promised.unwrap_or(u32::MAX))
    }

    /// By the Delay alone. A little is added to it (half a percent, at most a millisecond), because the source may be slower to
    /// notice one call than the next.
    pub(super) fn earliest(&self) -> Option<Duration> {
        let delay = self.terms?.delay;
        Some(self.last_start? + delay + (delay / 200).min(Duration::from_millis(1)))
    }

    fn next_start(&self, runner: Uuid, now: Duration) -> NextStart {
        let Some(terms) = self.usable(runner, now) else { return NextStart::Later };
        if self.in_flight >= self.most_in_flight() {
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
    fn while_a_question_is_under_way_no_call_starts_beyond_what_it_said() {
        let lane = Lane::new(Uuid::nil());
        let starts =
            || matches!(lane.admit(RUNNER, 5, NOW), Admission::Ready) && lane.may_start(RUNNER, 5, None, NOW);
        lane.wait(5, NOW);
        let question = lane.question(RUNNER, NOW);
        lane.answer(RUNNER, &question, &SHARE, NOW, NOW);
        assert!(starts() && starts());
        // The answer may leave no more than two, and the others may be another runner's already.
        let question = lane.question(RUNNER, NOW);
        assert_eq!(question.keeps, 2);
        assert!(!starts());
        lane.free_slot(Duration::ZERO);
        assert!(starts() && !starts());
        // That another runner asks at the same moment takes nothing back of an answer that was lost.
        let again = lane.question(RUNNER, NOW);
        lane.busy(&again);
        assert!(!starts());
        lane.answer(RUNNER, &question, &SHARE, NOW, NOW);
        assert!(starts());
    }

    #[test]
    fn calls_that_were_ready_when_concurrency_was_lowered_wait_for_the_slots_that_are_left() {
        let lane = Lane::new(Uuid::nil());
        lane.wait(5, NOW);
        let question = lane.question(RUNNER, NOW);
        lane.answer(RUNNER, &question, &SHARE, NOW, NOW);
        for _ in 0..3 {
            assert!(matches!(lane.admit(RUNNER, 5, NOW), Admission::Ready));
        }
        let question = lane.question(RUNNER, NOW);
        let share = Share { slots: 1, concurrency: 1, ..SHARE };
        lane.answer(RUNNER, &question, &share, NOW, NOW);
        assert!(lane.may_start(RUNNER, 5, None, NOW));
        assert_eq!(lane.next_start(RUNNER, NOW), NextStart::Later);
        assert!(!lane.may_start(RUNNER, 5, None, NOW));
        // One that no byte went out of holds up nobody.
        lane.take_back(5);
        assert_eq!(lane.next_start(RUNNER, NOW), NextStart::AtOnce);
    }

    #[test]
    fn a_pause_the_source_asked_for_outlives_answers_that_do_not_know_of_it() {
        let lane = Lane::new(Uuid::nil());
        let (ms, until) = (Duration::from_millis, NOW + Duration::from_millis(300));
        lane.wait(5, NOW);
        let question = lane.question(RUNNER, NOW);
        lane.pause(until);
        lane.answer(RUNNER, &question, &SHARE, NOW, NOW + ms(1));
        assert!(matches!(lane.admit(RUNNER, 5, NOW + ms(2)), Admission::Later));
        lane.pause_is_known(until, NOW + ms(3));
        // An operator has ended it since.
        let question = lane.question(RUNNER, NOW + ms(4));
        lane.answer(RUNNER, &question, &SHARE, NOW + ms(4), NOW + ms(5));
        assert!(matches!(lane.admit(RUNNER, 5, NOW + ms(6)), Admission::Ready));
    }

    #[test]
    fn with_a_delay_calls_that_only_wait_hold_no_slot_and_none_starts_without_one() {
        let lane = Lane::new(Uuid::nil());
        let ms = Duration::from_millis;
        lane.wait(5, NOW);
        let question = lane.question(RUNNER, NOW);
        let window = Some((Some(Duration::ZERO), ms(400)));
        let share = Share { slots: 1, delay: ms(10), window, contended: true, ..SHARE };
        lane.answer(RUNNER, &question, &share, NOW, NOW);
        for _ in 0..3 {
            assert!(matches!(lane.admit(RUNNER, 5, NOW), Admission::Ready));
        }
        let NextStart::At(at) = lane.next_start(RUNNER, NOW) else { panic!("it may start") };
        assert!(lane.may_start(RUNNER, 5, Some(at), at));
        assert_eq!(lane.wrote(true, at), None);
        // The only slot is in flight.
        let later = at + ms(20);
        assert_eq!(lane.next_start(RUNNER, later), NextStart::Later);
        assert!(!lane.may_start(RUNNER, 5, Some(at), later));
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
        let (delay, then) = (Duration::from_millis(250), NOW + Duration::from_millis(90));
        let window = Some((Some(Duration::ZERO), Duration::from_millis(5)));
        let share = Share { delay, window, contended: true, ..SHARE };
        lane.wait(5, NOW);
        let question = lane.question(RUNNER, NOW);
        lane.answer(RUNNER, &question, &share, NOW, NOW);
        assert!(matches!(lane.admit(RUNNER, 5, NOW), Admission::Ready));
        assert!(lane.may_start(RUNNER, 5, Some(NOW), NOW));
        // Its thread has to wait for a processor before it writes.
        assert!(!lane.question(RUNNER, then).released);
        // By then the window it was given is over, and another runner's may have begun.
        assert_eq!(lane.wrote(true, then), Some(Duration::from_millis(85)));
        let question = lane.question(RUNNER, then);
        assert_eq!((question.released, question.last_start_age), (true, Some(Duration::ZERO)));
    }

    #[test]
    fn a_runner_with_a_new_identity_keeps_nothing_of_what_the_old_one_was_given() {
        let lane = Lane::new(Uuid::nil());
        let window = Some((Some(Duration::ZERO), Duration::from_millis(200)));
        let share = Share { delay: Duration::from_millis(10), window, ..SHARE };
        lane.wait(5, NOW);
        let question = lane.question(RUNNER, NOW);
        lane.answer(RUNNER, &question, &share, NOW, NOW);
        assert_eq!(lane.question(RUNNER, NOW).keeps, 10);
        assert_eq!(lane.question(Uuid::from_u128(2), NOW).keeps, 0);
    }
}
