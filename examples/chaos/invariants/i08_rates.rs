//! I8: the API is never hit harder than its source allows, by its own clock: `Delay` between two calls, `Concurrency` at once.

use super::Findings;
use crate::clock::{MILLI, Nanos, seconds};
use crate::history::History;
use crate::lanes::{CONCURRENCY, DELAY_MILLIS};
use crate::nemesis::Fault;
use std::collections::HashMap;

/// On its way from the daemon to the API a call may take longer than the one before it.
const JITTER: Nanos = 5 * MILLI;
/// Beyond this it is no jitter, even on a machine with more to do than it can.
const GROSS: Nanos = 120 * MILLI;
/// So many calls in a row, and jitter cannot explain that they came too fast.
const SERIES: usize = 10;

pub fn check(history: &History, found: &mut Findings) {
    let paced: Vec<Nanos> =
        history.arrivals.iter().filter(|call| call.source == "paced").map(|call| call.t).collect();
    for series in paced.windows(SERIES) {
        let (first, took) = (series[0], series[SERIES - 1] - series[0]);
        let least = DELAY_MILLIS * MILLI * (SERIES as Nanos - 1);
        if took + GROSS < least && !was(history, Fault::ClockStep, first, first + took) {
            let took = seconds(took);
            found.violate(
                "I8",
                format!(
                    "{SERIES} calls of paced came within {took:.3} s, {DELAY_MILLIS} ms apart is asked for"
                ),
            );
        }
    }
    let mut last: HashMap<&str, Nanos> = HashMap::new();
    for call in &history.arrivals {
        found.decide("I8");
        let frozen = call.row.is_some_and(|row| {
            history.trails.get(&row).into_iter().flatten().filter_map(|change| change.thread).any(|runner| {
                history.daemon_of_runner(runner).is_some_and(|(_, daemon)| {
                    history.was_frozen(daemon, call.t.saturating_sub(500 * MILLI), call.t)
                })
            })
        });
        if call.in_flight > CONCURRENCY {
            if frozen {
                found.slack("calls of a process frozen between its permit and the call");
            } else {
                found.violate(
                    "I8",
                    format!("{} calls of {} were in flight at once", call.in_flight, call.source),
                );
            }
        }
        let before = last.insert(&call.source, call.t);
        let Some(before) = before.filter(|_| call.source == "paced") else { continue };
        let gap = call.t - before;
        if gap + JITTER >= DELAY_MILLIS * MILLI {
            continue;
        }
        if gap + GROSS >= DELAY_MILLIS * MILLI {
            found.slack("calls less than 120 ms too early, on a busy machine");
        } else if frozen || was(history, Fault::CpuHog, before, call.t) {
            found.slack("calls of a process frozen between its permit and the call");
        } else if was(history, Fault::ClockStep, before, call.t) {
            // The newest start is remembered by the wall clock, which jumped over the Delay.
            found.slack("calls too early at the moment the server's clock was put forward");
        } else {
            found.violate(
                "I8",
                format!(
                    "two calls of paced came {:.3} s apart, {DELAY_MILLIS} ms are asked for",
                    seconds(gap)
                ),
            );
        }
    }
}

fn was(history: &History, kind: Fault, from: Nanos, to: Nanos) -> bool {
    history.troubles(None, from, to).any(|fault| fault.fault == kind)
}
