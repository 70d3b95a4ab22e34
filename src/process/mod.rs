//! Programs that jobs start: a group of processes that never outlives its value, what it says, and how it is stopped.

mod attend;
mod group;
mod pipes;

pub(crate) use attend::{attend, grace, how_it_ended};
pub(crate) use group::ProcessGroup;
pub(crate) use pipes::{Capture, feed};
