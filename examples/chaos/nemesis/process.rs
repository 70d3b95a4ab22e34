//! Faults of daemons.

use super::Fault;
use crate::daemons::LEASE;
use crate::recorder::Intent;
use crate::world::World;
use std::time::Duration;

/// What uses up a processor for the milliseconds in this variable.
pub const HOG: &str = "ROSTERD_CHAOS_HOG";

/// Does it to one daemon that no other fault works on, if there is one.
pub async fn inflict(world: &World, fault: Fault, mut rng: fastrand::Rng) {
    if fault == Fault::CpuHog {
        return hog(world, rng).await;
    }
    let start = rng.usize(0..world.daemons.len());
    let mut free = (0..world.daemons.len()).map(|n| &world.daemons[(start + n) % world.daemons.len()]);
    let Some((daemon, _busy)) = free.find_map(|daemon| Some((daemon, daemon.busy.try_lock().ok()?))) else {
        return;
    };
    let record = world.recorder.begin(fault, Some(daemon.number));
    match fault {
        Fault::KillDaemon => {
            daemon.kill();
            tokio::time::sleep(Duration::from_millis(rng.u64(100..2500))).await;
            daemon.start();
        }
        Fault::Terminate => {
            daemon.signal("TERM");
            if !daemon.wait_end(Duration::from_secs(25)).await {
                world.complain(format!("daemon {} did not end within 25 s of SIGTERM", daemon.number));
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(0..500))).await;
            daemon.start();
        }
        Fault::FreezeShort | Fault::FreezeLong => {
            let lease = LEASE * 1000.0;
            let time = if fault == Fault::FreezeLong { 1.3 + rng.f64() } else { 0.1 + rng.f64() * 0.5 };
            daemon.signal("STOP");
            tokio::time::sleep(Duration::from_secs_f64(lease * time / 1000.0)).await;
            daemon.signal("CONT");
        }
        _ => {
            let pid = daemon.pid().unwrap_or(0);
            let mut operator = world.operator();
            let drain = |on: bool| format!("update Runner set Draining = {on} where PID = {pid}");
            operator.run(Intent::Config, Vec::new(), drain(true)).await;
            tokio::time::sleep(Duration::from_millis(rng.u64(500..4000))).await;
            operator.insist(Intent::Config, &drain(false)).await;
        }
    }
    world.recorder.end(record);
}

async fn hog(world: &World, mut rng: fastrand::Rng) {
    let record = world.recorder.begin(Fault::CpuHog, None);
    let time = rng.u64(300..1500);
    let program = std::env::current_exe().expect("this program has a path");
    let hogs: Vec<_> = (0..4)
        .filter_map(|_| tokio::process::Command::new(&program).env(HOG, time.to_string()).spawn().ok())
        .collect();
    for mut hog in hogs {
        let _ = hog.wait().await;
    }
    world.recorder.end(record);
}

/// A hog's whole life.
pub fn be_a_hog(millis: u64) {
    let until = std::time::Instant::now() + Duration::from_millis(millis);
    while std::time::Instant::now() < until {
        std::hint::spin_loop();
    }
}
