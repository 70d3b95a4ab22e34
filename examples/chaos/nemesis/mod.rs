//! What goes wrong: one fault after the other, several at a time.

mod database;
mod link;
pub mod process;

use crate::world::World;
use clap::ValueEnum;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// kill -9 of a daemon, which comes back after a moment.
    KillDaemon,
    /// SIGSTOP for less than a lease.
    FreezeShort,
    /// SIGSTOP for more than a lease.
    FreezeLong,
    /// SIGTERM, and a new process.
    Terminate,
    /// `Runner.Draining` on and off.
    Drain,
    /// `pg_terminate_backend` of half the daemons' sessions.
    EndSessions,
    /// A fast restart.
    PostgresFast,
    /// An immediate stop, and recovery.
    PostgresImmediate,
    /// kill -9 of the postmaster.
    PostgresKill,
    /// Away for longer than a lease.
    PostgresOutage,
    /// The proxy of a daemon passes nothing on.
    ProxyFreeze,
    /// It is slow.
    ProxyDelay,
    /// It half-closes every connection.
    ProxyHalfClose,
    /// It resets every connection.
    ProxyReset,
    /// It loses the answer to a commit.
    ProxyLoseAnswer,
    /// The link of a daemon's network namespace goes down.
    LinkDown,
    /// A long REPEATABLE READ transaction.
    OldSnapshot,
    /// LOCK TABLE JobHistory.
    LockTable,
    /// The disk of the tables is full.
    DiskFull,
    /// All processors are busy.
    CpuHog,
    /// The wall clock steps by an hour, and back.
    ClockStep,
    /// Not ours: this machine did not run for a while.
    #[value(skip)]
    Stall,
}

impl Fault {
    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(|| "stall".to_owned(), |value| value.get_name().to_owned())
    }

    /// Every fault that can be inflicted in this world.
    pub fn possible(world: &World) -> Vec<Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|fault| match fault {
            Self::LinkDown => world.namespace.is_some(),
            Self::DiskFull => world.server.small_disk.is_some(),
            Self::ProxyFreeze
            | Self::ProxyDelay
            | Self::ProxyHalfClose
            | Self::ProxyReset
            | Self::ProxyLoseAnswer => world.daemons.iter().any(|daemon| daemon.path.proxy.is_some()),
            Self::Stall => false,
            _ => true,
        })
        .collect()
    }

    /// How often, against the others. What stops everything for seconds comes less often.
    fn weight(self) -> u32 {
        match self {
            Self::KillDaemon | Self::FreezeLong => 4,
            Self::Terminate | Self::FreezeShort | Self::EndSessions | Self::ProxyLoseAnswer => 3,
            Self::PostgresOutage | Self::OldSnapshot | Self::ClockStep => 1,
            _ => 2,
        }
    }
}

/// Inflicts faults until `stop`; returns when all are over.
pub async fn rage(
    world: Arc<World>,
    mut rng: fastrand::Rng,
    pace: Duration,
    faults: Vec<Fault>,
    stop: CancellationToken,
) {
    let total: u32 = faults.iter().map(|fault| fault.weight()).sum();
    let mut under_way = JoinSet::new();
    while !stop.is_cancelled() && total > 0 {
        let wait = pace.mul_f64(0.5 + rng.f64());
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
        let mut at = rng.u32(0..total);
        let fault = *faults
            .iter()
            .find(|fault| {
                let here = at < fault.weight();
                at = at.saturating_sub(fault.weight());
                here
            })
            .expect("the weights add up");
        under_way.spawn(inflict(Arc::clone(&world), fault, rng.fork()));
        while under_way.try_join_next().is_some() {}
    }
    while let Some(ended) = under_way.join_next().await {
        ended.expect("a fault does not panic");
    }
}

async fn inflict(world: Arc<World>, fault: Fault, rng: fastrand::Rng) {
    match fault {
        Fault::KillDaemon
        | Fault::FreezeShort
        | Fault::FreezeLong
        | Fault::Terminate
        | Fault::Drain
        | Fault::CpuHog => process::inflict(&world, fault, rng).await,
        Fault::ProxyFreeze
        | Fault::ProxyDelay
        | Fault::ProxyHalfClose
        | Fault::ProxyReset
        | Fault::ProxyLoseAnswer
        | Fault::LinkDown => link::inflict(&world, fault, rng).await,
        _ => database::inflict(&world, fault, rng).await,
    }
}
