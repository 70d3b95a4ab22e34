//! I8: the API is never hit harder than its source allows, by its own clock: `Delay` between two calls, `Concurrency` at once.

use super::Findings;
use crate::clock::{MILLI, Nanos, seconds};
use crate::history::History;
use crate::lanes::{CONCURRENCY, DELAY_MILLIS};
use crate::nemesis::Fault;

/// On its way from the daemon to the API one call may take longer than the next; that alone makes two of them come
/// too close together, and is counted apart.
const JITTER: Nanos = 5 * MILLI;
/// So many calls in a row, and it cannot explain that they came too fast by more than this.
const SERIES: usize = 6;
const GROSS: Nanos = 200 * MILLI;

pub fn check(history: &History, found: &mut Findings) {
    pace(history, found);
    for call in &history.arrivals {
        found.decide("I8");
        if call.in_flight <= CONCURRENCY {
            continue;
        }
        let since = call.t.saturating_sub(500 * MILLI);
        if delayed(history, since, call.t) {
            found.slack("calls of a process that stood still between its permit and the call");
        } else {
            found
                .violate("I8", format!("{} calls of {} were in flight at once", call.in_flight, call.source));
        }
    }
}

fn pace(history: &History, found: &mut Findings) {
    let delay = DELAY_MILLIS * MILLI;
    let paced: Vec<Nanos> =
        history.arrivals.iter().filter(|call| call.source == "paced").map(|call| call.t).collect();
    for pair in paced.windows(2) {
        if pair[1] - pair[0] + JITTER < delay {
            found.slack("calls that came too soon after one that was slow on its way");
        }
    }
    for series in paced.windows(SERIES) {
        let (first, last) = (series[0], series[SERIES - 1]);
        let took = last - first;
        if took + GROSS >= delay * (SERIES as Nanos - 1) {
            continue;
        }
        if delayed(history, first, last) {
            found.slack("series of calls while a process stood still or the clock was put forward");
        } else {
            let took = seconds(took);
            found.violate(
                "I8",
                format!(
                    "{SERIES} calls of paced came within {took:.3} s, {DELAY_MILLIS} ms apart is asked for"
                ),
            );
        }
    }
}

/// Whether calls could be held up between their permit and the API. (The newest start is remembered by the server's
/// wall clock, so a step forward jumps over one Delay.)
fn delayed(history: &History, from: Nanos, to: Nanos) -> bool {
    history.troubles(None, from, to).any(|fault| {
        matches!(
            fault.fault,
            Fault::FreezeShort | Fault::FreezeLong | Fault::Stall | Fault::CpuHog | Fault::ClockStep
        )
    })
}
