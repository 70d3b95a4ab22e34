//! One call, from its slot to its end.

use super::LimitError;
use super::clock::{self, LEAD};
use super::lane::{Lane, NextStart};
use super::line::Turn;
use crate::job::EffectGate;
use crate::lease::boottime;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// How long the slot of an abandoned call stays taken: time for the source to notice that nobody listens.
const DOUBT: Duration = Duration::from_millis(500);

/// A call that may be made. Dropping it lets the next one start; keep it until the answer was read.
#[derive(Debug)]
pub struct CallPermit {
    lane: Arc<Lane>,
    place: Arc<Mutex<Place>>,
    runner: Uuid,
    priority: i32,
    gate: Option<EffectGate>,
    doubt: Option<Duration>,
    /// Since boot, when its newest start was had; before that, its slot.
    began: Mutex<Duration>,
}

/// What a call has of its lane. The socket that starts it and the caller that gives it up may be at it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready,
    InFlight,
    Left,
}

/// The moment a call may start, or a little before it. Only one call of a source with a Delay has one at a time.
#[derive(Debug)]
pub(crate) struct Start {
    lane: Arc<Lane>,
    place: Arc<Mutex<Place>>,
    runner: Uuid,
    priority: i32,
    gate: Option<EffectGate>,
    /// Where there is a Delay.
    at: Option<Duration>,
    /// It had its last word and there is a Delay.
    counted: AtomicBool,
    _starting: Starting,
    _turn: Option<Turn>,
}

/// The call may not start now after all: the window is over, the source was paused or edited, or the run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the start of the call was missed")]
pub(crate) struct Missed;

impl CallPermit {
    /// Of a call that the lane let be ready.
    pub(super) fn new(lane: Arc<Lane>, runner: Uuid, priority: i32, gate: Option<EffectGate>) -> Self {
        let place = Arc::new(Mutex::new(Place::Ready));
        Self { lane, place, runner, priority, gate, doubt: None, began: Mutex::new(boottime()) }
    }

    /// `Concurrency` of the source as it stands now.
    pub fn concurrency(&self) -> u32 {
        self.lane.concurrency()
    }

    /// Says whether the source may still be busy with the call if this permit is dropped now. Such a slot
    /// comes back half a second later, when the source has had time to notice that nobody listens any more.
    pub fn in_doubt(&mut self, in_doubt: bool) {
        self.doubt = in_doubt.then_some(DOUBT);
    }

    /// The source answered, and did not refuse the call because there were too many.
    pub(crate) fn answered(&self) {
        self.lane.answered();
    }

    /// Waits until the call may start, and for whether its run may still act. Be ready to write when asking.
    pub(crate) async fn start(&self) -> Result<Start, LimitError> {
        // What was written of it before did not reach the source.
        take_back(&self.lane, &mut locked(&self.place), self.priority);
        let starting = Starting::begin(&self.lane);
        let mut changes = self.lane.changes();
        let mut turn = None;
        loop {
            if let Some(gate) = &self.gate {
                gate.pass().await?;
            }
            let at = match self.lane.next_start(self.runner, boottime()) {
                NextStart::AtOnce => None,
                NextStart::At(_) if turn.is_none() => {
                    turn = Some(self.lane.starts.enter(self.priority).await);
                    continue;
                }
                NextStart::At(at) => {
                    let woken = at.saturating_sub(LEAD);
                    if boottime() < woken {
                        tokio::select! {
                            () = clock::sleep_until(woken) => {}
                            _ = changes.changed() => continue,
                        }
                    }
                    Some(at)
                }
                NextStart::Later => {
                    if let Some(refusal) = self.lane.refusal() {
                        refusal.into_error(self.lane.source, boottime())?;
                    }
                    self.lane.ask.notify_one();
                    // The lane is ours, so its sender cannot be gone.
                    let _ = changes.changed().await;
                    continue;
                }
            };
            *locked(&self.began) = boottime();
            return Ok(Start {
                lane: Arc::clone(&self.lane),
                place: Arc::clone(&self.place),
                runner: self.runner,
                priority: self.priority,
                gate: self.gate.clone(),
                at,
                counted: AtomicBool::new(false),
                _starting: starting,
                _turn: turn,
            });
        }
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        let lane = Arc::clone(&self.lane);
        if std::mem::replace(&mut *locked(&self.place), Place::Left) == Place::Ready {
            lane.step_back(self.priority);
            return;
        }
        let began = *locked(&self.began);
        let took = boottime().saturating_sub(began);
        match (self.doubt, tokio::runtime::Handle::try_current()) {
            (Some(doubt), Ok(runtime)) => {
                runtime.spawn(async move {
                    tokio::time::sleep(doubt).await;
                    lane.free_slot(took);
                });
            }
            _ => lane.free_slot(took),
        }
    }
}

impl Start {
    /// The last question before the first byte is written; it waits, at most a fraction of a millisecond, in a loop.
    pub(crate) fn fire(&self) -> Result<(), Missed> {
        const LONGEST: Duration = LEAD.saturating_mul(2);
        let now = boottime();
        if let Some(at) = self.at
            && now < at
        {
            if at.saturating_sub(now) > LONGEST {
                return Err(Missed);
            }
            while boottime() < at {
                std::hint::spin_loop();
            }
        }
        let open = self.gate.as_ref().is_none_or(|gate| gate.is_open().unwrap_or(false));
        // A socket that took no byte asks again.
        if self.counted.swap(false, Ordering::AcqRel) {
            self.lane.wrote_nothing();
        }
        let mut place = locked(&self.place);
        take_back(&self.lane, &mut place, self.priority);
        let may = open && *place == Place::Ready;
        if !may || !self.lane.may_start(self.runner, self.priority, self.at, boottime()) {
            return Err(Missed);
        }
        *place = Place::InFlight;
        self.counted.store(self.at.is_some(), Ordering::Release);
        Ok(())
    }

    /// The first bytes were written.
    pub(crate) fn written(self) {
        let counted = self.counted.swap(false, Ordering::AcqRel);
        if let Some(late) = self.lane.wrote(counted, boottime()) {
            tracing::warn!(
                source = %self.lane.source,
                runner = %self.runner,
                ?late,
                "a call left after the end of its window, because this process stood still right before it wrote; the \
                 next call of another runner may have come sooner than its Delay"
            );
        }
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        if self.counted.load(Ordering::Acquire) {
            self.lane.wrote_nothing();
        }
    }
}

/// A call of which nothing reached the source is ready again.
fn take_back(lane: &Lane, place: &mut Place, priority: i32) {
    if *place == Place::InFlight {
        *place = Place::Ready;
        lane.take_back(priority);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A caller that is ready and has not written yet, until dropped.
#[derive(Debug)]
struct Starting {
    lane: Arc<Lane>,
}

impl Starting {
    fn begin(lane: &Arc<Lane>) -> Self {
        lane.begin_starting();
        lane.ask.notify_one();
        Self { lane: Arc::clone(lane) }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.lane.end_starting() {
            self.lane.ask.notify_one();
        }
    }
}
