//! What puts rows on the queue: when a `JobSchedule` is due.
//!
//! All but `tick.rs` and `autostart.rs` is pure: no database, no clock of its own. A schedule's text becomes a
//! [`Recurrence`], its zone a [`Zone`], and [`next_after`] turns the two into instants.
//!
//! ```
//! use rosterd::schedule::{Recurrence, Zone, next_after};
//!
//! let nightly = Recurrence::cron("30 2 * * *")?;
//! let berlin = Zone::parse("Europe/Berlin")?;
//! // The night of 29 March 2026 has no 02:30 in Berlin: the job runs at 03:00 summer time.
//! let after = "2026-03-28T12:00:00Z".parse()?;
//! assert_eq!(next_after(&nightly, &berlin, after), Some("2026-03-29T01:00:00Z".parse()?));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `expression.rs` | cron text, or `DaysOfWeek` with `TimeOfDay`, becomes a [`Recurrence`] |
//! | `fields.rs` | one cron field: its numbers, names, ranges, steps and error sentences |
//! | `days.rs` | which days of a month a schedule means, with `L`, `W` and `#` |
//! | `zone.rs` | IANA zone names, read from the system's up-to-date files |
//! | `calendar.rs` | local time becomes instants: **the DST rule, as a table** |
//! | `missed.rs` | what to do about due times that passed unserved, and jitter |
//! | `tick.rs` | a due schedule becomes one row, exactly once whichever runner ticks |
//! | `autostart.rs` | active AutoStart configurations get one row at each start |

pub mod autostart;
mod calendar;
mod days;
mod expression;
mod fields;
mod missed;
pub mod tick;
mod zone;

use std::fmt;
use std::str::FromStr;

pub use calendar::next_after;
pub use expression::{ExpressionError, Recurrence, Rhythm};
pub use missed::{CatchUp, MAX_COUNTED, MissedPlan, jitter, missed};
pub use zone::{Zone, ZoneError};

/// What happens to due times that passed while no runner was alive (`JobSchedule.MissedRun`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MissedRun {
    /// `skip`: forget them and wait for the next due time.
    Skip,
    /// `once`, the default: one run stands for all of them.
    #[default]
    Once,
    /// `all`: one run for each of them, up to a limit.
    All,
}

/// What happens when a due time comes while the previous run is still going (`JobSchedule.Overlap`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Overlap {
    /// `queue`, the default: the new run waits behind the old one.
    #[default]
    Queue,
    /// `skip`: the new run is left out.
    Skip,
    /// `cancel_old`: the old run is cancelled and the new one takes its place.
    CancelOld,
}

/// A column holds a word that its enum does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{column} '{value}' is not known; give {known}")]
pub struct UnknownWord {
    column: &'static str,
    value: String,
    known: &'static str,
}

impl FromStr for MissedRun {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "skip" => Ok(Self::Skip),
            "once" => Ok(Self::Once),
            "all" => Ok(Self::All),
            _ => Err(UnknownWord {
                column: "MissedRun",
                value: word.to_owned(),
                known: "'skip', 'once' or 'all'",
            }),
        }
    }
}

impl fmt::Display for MissedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skip => "skip",
            Self::Once => "once",
            Self::All => "all",
        })
    }
}

impl FromStr for Overlap {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "queue" => Ok(Self::Queue),
            "skip" => Ok(Self::Skip),
            "cancel_old" => Ok(Self::CancelOld),
            _ => Err(UnknownWord {
                column: "Overlap",
                value: word.to_owned(),
                known: "'queue', 'skip' or 'cancel_old'",
            }),
        }
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queue => "queue",
            Self::Skip => "skip",
            Self::CancelOld => "cancel_old",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_read_and_write_the_words_of_their_columns() {
        for word in ["skip", "once", "all"] {
            assert_eq!(word.parse::<MissedRun>().unwrap().to_string(), word);
        }
        for word in ["queue", "skip", "cancel_old"] {
            assert_eq!(word.parse::<Overlap>().unwrap().to_string(), word);
        }
        assert_eq!(MissedRun::default(), MissedRun::Once);
        assert_eq!(Overlap::default(), Overlap::Queue);
        assert_eq!(
            "replace".parse::<Overlap>().unwrap_err().to_string(),
            "Overlap 'replace' is not known; give 'queue', 'skip' or 'cancel_old'"
        );
    }
}
