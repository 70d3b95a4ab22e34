//! One run from an empty folder to its report.

use crate::history::History;
use crate::invariants::{self, Findings, Violation};
use crate::load::Worker;
use crate::nemesis::{self, Fault};
use crate::options::Options;
use crate::recorder::Intent;
use crate::report::Report;
use crate::world::World;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Operators at work.
const OPERATORS: usize = 3;
/// A daemon that uses more than this leaks.
const MOST_RSS_KIB: u64 = 300 * 1024;
const MOST_FILES: usize = 200;
/// While a bug is hunted the books are looked at this often, and everything is drained after this time: some bugs show
/// only in what is left behind.
const LOOK_EVERY: Duration = Duration::from_secs(4);
const HUNTING_PHASE: Duration = Duration::from_secs(24);

/// What makes a run special.
#[derive(Debug, Default)]
pub struct Plan {
    /// Done to the database before the daemons start.
    pub sql: &'static str,
    /// For the daemons.
    pub daemon_env: Vec<(String, String)>,
    /// Instead of those of the options.
    pub faults: Option<Vec<Fault>>,
    /// Stops at the first violation, or after this time.
    pub hunt: Option<Duration>,
}

/// Runs it.
pub async fn run(options: &Options, plan: Plan) -> Report {
    let folder = folder();
    let began = Instant::now();
    let mut rng = fastrand::Rng::with_seed(options.seed);
    let world = World::make(&folder, options.daemons, &mut rng, plan.daemon_env).await;
    if !plan.sql.is_empty() {
        world.operator().insist(Intent::Config, plan.sql).await;
    }
    for daemon in &world.daemons {
        daemon.start();
    }
    world.wait_registered().await;
    let watch = tokio::spawn(Arc::clone(&world).watch());
    let faults = plan.faults.unwrap_or_else(|| {
        if options.faults.is_empty() { Fault::possible(&world) } else { options.faults.clone() }
    });
    let (mut history, mut findings, mut drained);
    loop {
        let time = plan
            .hunt
            .map_or(options.time(), |limit| limit.saturating_sub(began.elapsed()).min(HUNTING_PHASE));
        if let Some((seen, found)) =
            phase(&world, options, &mut rng, &faults, time, plan.hunt.is_some()).await
        {
            (history, findings, drained) = (seen, found, Duration::ZERO);
            break;
        }
        drained = world.drain().await;
        history = History::read(&world, true).await.expect("the books can be read");
        findings = invariants::check(&history);
        add_complaints(&world, &mut findings);
        if !findings.violations.is_empty() || plan.hunt.is_none_or(|limit| began.elapsed() >= limit) {
            break;
        }
    }
    watch.abort();
    let report =
        Report::new(options.seed, options.secs, &history, findings, drained.as_secs_f64(), usage(&world));
    for daemon in &world.daemons {
        daemon.kill();
    }
    world.server.stop();
    drop(world);
    if options.keep || !report.violations.is_empty() && plan.hunt.is_none() {
        eprintln!("chaos: logs and effects are kept in {}", folder.display());
    } else if let Err(error) = std::fs::remove_dir_all(&folder) {
        eprintln!("chaos: {} could not be removed: {error}", folder.display());
    }
    report
}

/// Load and faults for some time. With `looking`, what was found on the way, at once.
async fn phase(
    world: &Arc<World>,
    options: &Options,
    rng: &mut fastrand::Rng,
    faults: &[Fault],
    time: Duration,
    looking: bool,
) -> Option<(History, Findings)> {
    let stop = CancellationToken::new();
    let mut workers = JoinSet::new();
    for _ in 0..OPERATORS {
        let worker = Worker::new(world.operator(), world.lanes, rng.fork(), Arc::clone(&world.recorder));
        workers.spawn(worker.work(stop.clone()));
    }
    let pace = Duration::from_secs_f64(options.pace);
    workers.spawn(nemesis::rage(Arc::clone(world), rng.fork(), pace, faults.to_vec(), stop.clone()));
    let until = tokio::time::Instant::now() + time;
    let mut caught = None;
    while looking && caught.is_none() && tokio::time::Instant::now() + LOOK_EVERY < until {
        tokio::time::sleep(LOOK_EVERY).await;
        // The database may be away just now.
        let Ok(history) = History::read(world, false).await else { continue };
        let mut findings = invariants::check(&history);
        add_complaints(world, &mut findings);
        caught = (!findings.violations.is_empty()).then_some((history, findings));
    }
    if caught.is_some() {
        workers.abort_all();
        world.heal();
        return caught;
    }
    tokio::time::sleep_until(until).await;
    stop.cancel();
    while let Some(ended) = workers.join_next().await {
        ended.expect("neither operators nor the nemesis panic");
    }
    None
}

/// I11 and I12: what the world itself saw.
fn add_complaints(world: &World, findings: &mut Findings) {
    for sentence in world.complaints() {
        findings.violations.push(Violation { invariant: "I11", sentence });
    }
    for (number, usage) in usage(world).iter().enumerate() {
        if usage.max_rss_kib > MOST_RSS_KIB || usage.max_files > MOST_FILES {
            let sentence = format!("daemon {number} used too much: {usage:?}");
            findings.violations.push(Violation { invariant: "I12", sentence });
        }
    }
}

fn usage(world: &World) -> Vec<crate::daemons::Usage> {
    world.daemons.iter().map(|daemon| daemon.usage()).collect()
}

/// A folder the server's user can enter.
fn folder() -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("rosterd-chaos-{}-{count}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    folder
}
