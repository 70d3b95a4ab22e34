//! One file for each group of figures; the order is that of a full run.

use crate::figures::Results;
use crate::world::World;
use anyhow::{Result, bail};

mod backlog;
mod beside;
mod cancel;
mod drain;
mod hint;
mod history;
mod idle;
mod inserts;
mod latency;
mod parked;
mod peers;
mod retention;
mod scaling;
mod snapshot;
mod vulnerability;

/// What `--` takes as arguments; without any, all but `peers`, which wants a program that is built apart.
pub(crate) const PARTS: &[&str] = &[
    "latency",
    "idle",
    "drain",
    "inserts",
    "hint",
    "parked",
    "backlog",
    "cancel",
    "snapshot",
    "history",
    "retention",
    "scaling",
    "vulnerability",
    "peers",
];

pub(crate) async fn measure(part: &str, world: &World, results: &mut Results) -> Result<()> {
    match part {
        "latency" => latency::measure(world, results).await,
        "idle" => idle::measure(world, results).await,
        "drain" => drain::measure(world, results).await,
        "inserts" => inserts::measure(world, results).await,
        "hint" => hint::measure(world, results).await,
        "parked" => parked::measure(world, results).await,
        "backlog" => backlog::measure(world, results).await,
        "cancel" => cancel::measure(world, results).await,
        "snapshot" => snapshot::measure(world, results).await,
        "history" => history::measure(world, results).await,
        "retention" => retention::measure(world, results).await,
        "scaling" => scaling::measure(world, results).await,
        "vulnerability" => vulnerability::measure(world, results).await,
        "peers" => peers::measure(world, results).await,
        _ => bail!("there is no part {part}; there are {}", PARTS.join(", ")),
    }
}
