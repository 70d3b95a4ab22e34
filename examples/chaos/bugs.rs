//! The proof of the checker: guards taken away one at a time, each with the faults that show it.

use crate::nemesis::Fault;
use crate::options::Options;
use crate::round::{self, Plan};
use std::time::{Duration, Instant};

/// Each bug must be noticed within this time.
const LIMIT: Duration = Duration::from_secs(120);

/// One fault after the other: most bugs show when two things meet.
const PACE: f64 = 0.5;

/// What it takes to make a server and daemons, and to end them.
const WAY: Duration = Duration::from_secs(10);

/// A seeded bug.
pub struct SeededBug {
    /// As `ROSTERD_SEEDED_BUG` has it, where the guard is in the daemon.
    pub name: &'static str,
    /// What makes the guard in the database go away, where it is there.
    pub sql: &'static str,
    /// What it takes to show it.
    pub faults: &'static [Fault],
    /// Mean seconds between two faults, at most.
    pub pace: f64,
    /// Whether the daemons must be built with `--features seeded-bugs`.
    pub in_daemon: bool,
}

/// Text of a function of the database with one part replaced.
macro_rules! replaced {
    ($function:literal, $guard:literal, $instead:literal) => {
        concat!(
            "do $do$ declare was text := pg_get_functiondef('vm.",
            $function,
            "'::regproc);
             changed text := replace(was, $guard$",
            $guard,
            "$guard$, $guard$",
            $instead,
            "$guard$);
             begin assert changed <> was; execute changed; end $do$"
        )
    };
}

const UNGUARDED: &str = "drop trigger jobhistory_guard on vm.JobHistory;
    create trigger jobhistory_guard before update on vm.JobHistory for each row
      when (coalesce(current_setting('rosterd.actor', true), '') <> 'runner') execute function vm.guard_job_history()";

const fn daemon(name: &'static str, faults: &'static [Fault]) -> SeededBug {
    SeededBug { name, sql: "", faults, pace: PACE, in_daemon: true }
}

const fn database(name: &'static str, sql: &'static str, faults: &'static [Fault]) -> SeededBug {
    SeededBug { name, sql, faults, pace: PACE, in_daemon: false }
}

/// All of them.
pub const BUGS: &[SeededBug] = &[
    daemon("settle-by-id", &[Fault::FreezeLong, Fault::ProxyFreeze, Fault::LinkDown]),
    SeededBug {
        name: "naive-write",
        sql: UNGUARDED,
        faults: &[Fault::FreezeLong, Fault::ProxyFreeze],
        pace: PACE,
        in_daemon: true,
    },
    daemon("cancel-ignored-at-settle", &[Fault::FreezeShort]),
    daemon("stop-burns-attempt", &[Fault::Terminate]),
    daemon("iteration-counted-twice", &[]),
    daemon("rescue-of-the-living", &[]),
    daemon("rescue-revives-cancelled", &[Fault::KillDaemon]),
    daemon("crash-not-counted", &[Fault::KillDaemon]),
    daemon("lanes-not-locked", &[]),
    daemon("reap-early", &[]),
    daemon("reap-after-own-gap", &[Fault::PostgresOutage]),
    daemon("lease-loss-unnoticed", &[Fault::FreezeLong]),
    daemon("gate-ignores-lapse", &[Fault::FreezeLong]),
    daemon("gate-ignores-runner", &[Fault::FreezeLong]),
    daemon("unheard-claims-kept", &[Fault::ProxyLoseAnswer, Fault::EndSessions]),
    daemon("outcomes-dropped", &[Fault::ProxyLoseAnswer, Fault::EndSessions]),
    daemon("autostart-unlocked", &[Fault::KillDaemon, Fault::Terminate]),
    SeededBug {
        name: "schedules-unguarded",
        sql: "drop index vm.jobhistory_one_row_per_due_date",
        faults: &[],
        pace: PACE,
        in_daemon: true,
    },
    SeededBug {
        name: "due-time-forgotten",
        sql: "",
        faults: &[Fault::LockTable],
        // A locked table keeps schedules from being made at all, so most of the time it must not be.
        pace: 2.0,
        in_daemon: true,
    },
    daemon("cancels-unheard", &[]),
    daemon("commits-although-cancelled", &[]),
    database(
        "cancel-not-told",
        replaced!(
            "guard_job_history",
            "insert into CancelRequest (HistoryID, RunnerID) values (old.ID, old.ThreadID) on conflict do nothing;",
            ""
        ),
        &[],
    ),
    database(
        "pending-cancel-waits",
        replaced!("guard_job_history", "if old.StatusID = 1 then", "if false then"),
        &[],
    ),
    database("guard-off", "drop trigger jobhistory_guard on vm.JobHistory", &[]),
    database(
        "delay-ignored",
        replaced!("share_source", "delay := ceil(config.Delay / 1000.0) / 1e6", "delay := 0"),
        &[],
    ),
    database(
        "concurrency-ignored",
        replaced!("share_source", "most := config.Concurrency", "most := 1000"),
        &[],
    ),
];

/// By its name, or a sentence.
pub fn find(name: &str) -> Result<&'static SeededBug, String> {
    let bug = BUGS.iter().find(|bug| bug.name == name).ok_or_else(|| {
        let names: Vec<_> = BUGS.iter().map(|bug| bug.name).collect();
        format!("there is no seeded bug {name}; there are {}", names.join(", "))
    })?;
    if bug.in_daemon && !cfg!(feature = "seeded-bugs") {
        return Err(format!("{name} needs daemons with that bug: run with --features seeded-bugs"));
    }
    Ok(bug)
}

/// Runs one bug until it is caught or the time is over. Returns what caught it, and the seconds it took.
pub async fn hunt(options: &Options, bug: &SeededBug) -> Option<(String, f64)> {
    let began = Instant::now();
    let plan = Plan {
        sql: bug.sql,
        daemon_env: vec![("ROSTERD_SEEDED_BUG".to_owned(), bug.name.to_owned())],
        faults: Some(bug.faults.to_vec()),
        hunt: Some(LIMIT),
    };
    let options = Options { pace: options.pace.min(bug.pace), ..options.clone() };
    let report = Box::pin(round::run(&options, plan)).await;
    let first = report.violations.first().filter(|_| began.elapsed() <= LIMIT + WAY)?;
    Some((format!("{}: {}", first.invariant, first.sentence), began.elapsed().as_secs_f64()))
}

/// Runs them all and prints which were caught. Returns whether all were.
pub async fn hunt_all(options: &Options) -> Result<bool, String> {
    let mut all = true;
    println!("| seeded bug | caught by | after |\n|---|---|---|");
    for bug in BUGS {
        let bug = find(bug.name)?;
        let line = if let Some((what, seconds)) = hunt(options, bug).await {
            let short: String = what.chars().take(110).collect();
            format!("| {} | {short} | {seconds:.0} s |", bug.name)
        } else {
            all = false;
            format!("| {} | **not caught** | {} s |", bug.name, LIMIT.as_secs())
        };
        println!("{line}");
    }
    Ok(all)
}
