//! The one clock of a run: time since boot, which no step of the wall clock moves and which counts a machine's sleep.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds since boot.
pub type Nanos = u64;

/// One second.
pub const SECOND: Nanos = 1_000_000_000;
/// One millisecond.
pub const MILLI: Nanos = 1_000_000;

/// Now.
pub fn now() -> Nanos {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.unsigned_abs() * SECOND + now.tv_nsec.unsigned_abs()
}

/// What is added to microseconds since 1970 to have this clock, as measured now.
#[derive(Debug, Clone, Copy)]
pub struct WallOffset(i128);

impl WallOffset {
    /// Reads both clocks.
    pub fn measure() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i128::from(now()) - i128::try_from(wall.as_nanos()).unwrap_or(0))
    }

    /// A time of PostgreSQL's real clock on ours.
    pub fn to_boot(self, wall_micros: i64) -> Nanos {
        u64::try_from(i128::from(wall_micros) * 1000 + self.0).unwrap_or(0)
    }
}

/// For reports.
pub fn seconds(nanos: Nanos) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64()
}
