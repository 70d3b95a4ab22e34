//! The checker: real daemons share a real PostgreSQL, operators work with plain SQL, everything goes wrong, and then the
//! books are checked. `cargo run --release --example chaos -- --seed 7 --secs 75`
//!
//! One program: started with `ROSTERD_CHAOS_DAEMON` it is a daemon with the checker's jobs, else it is the checker, which
//! starts daemons of itself. docs/RELIABILITY.md says what is checked and how.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a checker that cannot go on must stop, and says so"
)]

mod api;
mod bugs;
mod clock;
mod daemons;
mod effects;
mod history;
mod invariants;
mod jobs;
mod lanes;
mod load;
mod nemesis;
mod network;
mod operator;
mod options;
mod postgres;
mod proxy;
mod recorder;
mod report;
mod round;
mod signals;
mod world;

use clap::Parser;
use options::Options;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(millis) = world::hog_millis() {
        nemesis::process::be_a_hog(millis);
        return ExitCode::SUCCESS;
    }
    if std::env::var_os(daemons::IS_DAEMON).is_some() {
        return jobs::run_daemon();
    }
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::select! {
            code = Box::pin(carry_out(&options)) => code,
            // What was started is ended when it is dropped.
            () = interrupted() => refuse("interrupted"),
        }
    })
}

async fn interrupted() {
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a signal handler");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

async fn carry_out(options: &Options) -> ExitCode {
    if options.all_bugs {
        return match bugs::hunt_all(options).await {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(sentence) => refuse(&sentence),
        };
    }
    if let Some(name) = &options.bug {
        return match bugs::find(name) {
            Ok(bug) => match bugs::hunt(options, bug).await {
                Some((what, seconds)) => {
                    println!("{name}: caught after {seconds:.0} s by {what}");
                    ExitCode::SUCCESS
                }
                None => refuse(&format!("{name} was not caught")),
            },
            Err(sentence) => refuse(&sentence),
        };
    }
    let report = Box::pin(round::run(options, round::Plan::default())).await;
    print!("{}", report.print());
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&report).expect("a report is plain data");
        std::fs::write(file, text + "\n").expect("the report can be written");
    }
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn refuse(sentence: &str) -> ExitCode {
    eprintln!("chaos: {sentence}");
    ExitCode::FAILURE
}
