//! The states of a row and the one table of allowed moves.

use std::fmt;

/// `JobHistory.StatusID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    /// An operator wants it stopped; its runner has yet to say that it did.
    Cancel = -1,
    /// On the queue: ready, or waiting for its time.
    Pending = 1,
    /// A runner has it.
    InProgress = 2,
    /// Did its work. Final.
    Completed = 3,
    /// Failed. Final.
    Error = 4,
    /// Was cancelled. Final.
    Canceled = 5,
}

impl Status {
    /// Every status there is. 0 (UNKNOWN) has a name in `JobStatus` for old data, but no row ever has it.
    pub const ALL: [Self; 6] =
        [Self::Cancel, Self::Pending, Self::InProgress, Self::Completed, Self::Error, Self::Canceled];

    /// From `StatusID`.
    pub fn from_id(id: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.id() == id)
    }

    /// As `StatusID`.
    pub fn id(self) -> i32 {
        self as i32
    }

    /// As in `JobStatus`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cancel => "CANCEL",
            Self::Pending => "PENDING",
            Self::InProgress => "IN PROGRESS",
            Self::Completed => "COMPLETED",
            Self::Error => "ERROR",
            Self::Canceled => "CANCELED",
        }
    }

    /// Whether nothing can change it any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Error | Self::Canceled)
    }

    /// What a runner may do with a row by its own statements; the guard in the database holds the same
    /// table. (A waiting Continuous row also ends as COMPLETED or ERROR when its configuration stops being
    /// Continuous; that is the database's own move.)
    pub fn runner_may_move_to(self, next: Self) -> bool {
        use Status::{Cancel, Canceled, Completed, Error, InProgress, Pending};
        matches!(
            (self, next),
            (Pending, InProgress) | (InProgress, Completed | Error | Pending) | (Cancel, Canceled)
        )
    }

    /// What anybody may do by hand.
    pub fn operator_may_move_to(self, next: Self) -> bool {
        matches!((self, next), (Self::Pending | Self::InProgress, Self::Cancel))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_comes_back_from_its_id() {
        for status in Status::ALL {
            assert_eq!(Status::from_id(status.id()), Some(status));
        }
        assert_eq!(Status::from_id(0), None);
        assert_eq!(Status::from_id(6), None);
    }

    #[test]
    fn nothing_leaves_a_final_status() {
        for from in Status::ALL.into_iter().filter(|s| s.is_final()) {
            for to in Status::ALL {
                assert!(!from.runner_may_move_to(to) && !from.operator_may_move_to(to), "{from} to {to}");
            }
        }
    }

    #[test]
    fn a_row_under_cancel_can_only_end_as_canceled() {
        for to in Status::ALL {
            assert_eq!(Status::Cancel.runner_may_move_to(to), to == Status::Canceled, "{to}");
        }
    }
}
