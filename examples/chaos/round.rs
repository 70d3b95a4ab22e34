//! One run from an empty folder to its report.

use crate::history::History;
use crate::invariants::{self, Violation};
use crate::load::Worker;
use crate::nemesis::{self, Fault};
use crate::options::Options;
use crate::report::Report;
use crate::world::World;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Operators at work.
const OPERATORS: usize = 3;
/// A daemon that uses more than this leaks.
const MOST_RSS_KIB: u64 = 300 * 1024;
const MOST_FILES: usize = 200;

/// Runs it.
pub async fn run(options: &Options) -> Report {
    let folder = folder();
    let mut rng = fastrand::Rng::with_seed(options.seed);
    let world = World::make(&folder, options.daemons, &mut rng, Vec::new()).await;
    for daemon in &world.daemons {
        daemon.start();
    }
    world.wait_registered().await;
    let watch = tokio::spawn(Arc::clone(&world).watch());
    let stop = CancellationToken::new();
    let mut operators = JoinSet::new();
    for _ in 0..OPERATORS {
        let worker = Worker::new(world.operator(), world.lanes, rng.fork(), Arc::clone(&world.recorder));
        operators.spawn(worker.work(stop.clone()));
    }
    let faults = if options.faults.is_empty() { Fault::possible(&world) } else { options.faults.clone() };
    let pace = Duration::from_secs_f64(options.pace);
    let nemesis = tokio::spawn(nemesis::rage(Arc::clone(&world), rng.fork(), pace, faults, stop.clone()));
    tokio::time::sleep(options.time()).await;
    stop.cancel();
    nemesis.await.expect("the nemesis does not panic");
    while let Some(ended) = operators.join_next().await {
        ended.expect("an operator does not panic");
    }
    let drained = world.drain().await;
    watch.abort();
    let history = History::read(&world, true).await.expect("the books can be read");
    let mut findings = invariants::check(&history);
    for sentence in world.complaints() {
        findings.violations.push(Violation { invariant: "I11", sentence });
    }
    let usage: Vec<_> = world.daemons.iter().map(|daemon| daemon.usage()).collect();
    for (number, usage) in usage.iter().enumerate() {
        if usage.max_rss_kib > MOST_RSS_KIB || usage.max_files > MOST_FILES {
            let sentence = format!("daemon {number} used too much: {usage:?}");
            findings.violations.push(Violation { invariant: "I12", sentence });
        }
    }
    let report = Report::new(options.seed, options.secs, &history, findings, drained.as_secs_f64(), usage);
    for daemon in &world.daemons {
        daemon.kill();
    }
    world.server.stop();
    drop(world);
    if options.keep || !report.violations.is_empty() {
        eprintln!("chaos: logs and effects are kept in {}", folder.display());
    } else {
        let _ = std::fs::remove_dir_all(&folder);
    }
    report
}

/// A folder the server's user can enter.
fn folder() -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let folder = std::env::temp_dir().join(format!("rosterd-chaos-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    folder
}
