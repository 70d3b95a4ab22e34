//! I6: what ran twice did so for a reason. A row is taken from a runner only if that runner was dead, frozen or cut off,
//! and a started run goes back on the queue only where a daemon stopped. PostgreSQL's absence is no reason.

use super::Findings;
use super::i04_own_outcome::is_put_back;
use crate::clock::{Nanos, SECOND, seconds};
use crate::effects::What;
use crate::history::{History, Run};
use crate::nemesis::Fault;
use crate::recorder::FaultRecord;
use uuid::Uuid;

pub fn check(history: &History, found: &mut Findings) {
    for (row, trail) in &history.trails {
        let mut claimed = None;
        for (at, change) in trail.iter().enumerate() {
            if change.is_claim() {
                claimed = Some(at);
            }
            let Some(runner) = change.old_thread.filter(|_| change.ends_run()) else { continue };
            if change.is_rescue() {
                found.decide("I6");
                if let Some(why) = no_reason(history, runner, change.at) {
                    found.violate("I6", format!("{row} was taken from a runner that {why}: {change:?}"));
                }
            } else if is_put_back(change) {
                found.decide("I6");
                let runs = history.runs.get(row).map_or(&[][..], Vec::as_slice);
                let Some(run) = runs.iter().find(|run| run.claim == claimed && run.started < change.at)
                else {
                    continue; // its runner never heard that it had it
                };
                if !may_put_back(history, run, runner, change.at) {
                    found.violate("I6", format!("{row} ran and was put back for no reason: {change:?}"));
                }
            }
        }
    }
}

/// `None` if there was a reason to hold the runner for dead.
fn no_reason(history: &History, runner: Uuid, at: Nanos) -> Option<String> {
    const EARLIER: Nanos = 12 * SECOND;
    let Some((pid, daemon)) = history.daemon_of_runner(runner) else {
        // A process that a daemon started for one suspect row ends with that daemon.
        let known = history.runners.contains_key(&runner);
        let trouble = history.troubles(None, at.saturating_sub(EARLIER), at).next().is_some();
        return (!known || !trouble).then(|| "was never registered".to_owned());
    };
    let (_, life) = history.lives.iter().find(|(_, life)| life.pid == pid)?;
    if life.to.is_some_and(|end| end <= at) {
        return None;
    }
    let cause = history.faults.iter().any(|fault| {
        let kind = matches!(
            fault.fault,
            Fault::FreezeLong
                | Fault::FreezeShort
                | Fault::Terminate
                | Fault::ProxyFreeze
                | Fault::ProxyDelay
                | Fault::LinkDown
                | Fault::Stall
        );
        kind && fault.daemon.is_none_or(|number| number == daemon)
            && fault.from <= at
            && fault.to.is_none_or(|end| end + EARLIER >= at)
    });
    // Connections that are broken again and again leave none for a pulse.
    let broken = history.troubles(Some(daemon), at.saturating_sub(SECOND), at).filter(|fault| {
        matches!(
            fault.fault,
            Fault::ProxyLoseAnswer | Fault::ProxyHalfClose | Fault::ProxyReset | Fault::EndSessions
        )
    });
    let cause = cause || broken.count() >= 2;
    let age = seconds(at.saturating_sub(history.runners.get(&runner).map_or(at, |known| known.1)));
    (!cause).then(|| format!("lived (process {pid} of daemon {daemon}, registered {age:.1} s before)"))
}

/// A daemon that stops puts back what it runs, and a run that the database went away under is not counted.
fn may_put_back(history: &History, run: &Run, runner: Uuid, at: Nanos) -> bool {
    // Whoever is none of the daemons runs one suspect row, and stops with its daemon.
    let Some((_, daemon)) = history.daemon_of_runner(runner) else { return true };
    let stopping = |fault: &FaultRecord| fault.fault == Fault::Terminate && fault.daemon == Some(daemon);
    let failed = run.end.is_none_or(|(what, ended)| what != What::Stopped && ended <= at);
    history.troubles(Some(daemon), run.started, at).any(|fault| stopping(fault) || failed)
}
