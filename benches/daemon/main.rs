//! The figures of docs/BENCHMARKS.md, made by one command: `cargo bench --bench daemon`.
//!
//! A durable private PostgreSQL in a folder of its own, and real daemons as processes beside it. Arguments behind
//! `--` name the parts to measure; without any, all are but `peers`. Every figure is printed beside the last that was
//! committed. `--write` puts them into benches/results/daemon.json, docs/BENCHMARKS.md and docs/benchmarks/.

#![allow(clippy::print_stdout, reason = "it is what it is for")]

mod claims;
mod clock;
mod figures;
mod jobs;
#[path = "../../examples/scaling/model.rs"]
mod model;
mod parts;
mod plots;
mod process;
mod report;
#[path = "../../examples/scaling/tables.rs"]
mod tables;
mod world;

use anyhow::{Context, Result, ensure};
use figures::Results;
use parts::PARTS;
use process::Others;
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::time::Instant;
use world::World;

fn main() -> ExitCode {
    // The daemon is this program again, with the jobs to measure.
    if std::env::args().nth(1).as_deref() == Some("run") {
        return rosterd::run(jobs::registry());
    }
    let runtime = tokio::runtime::Runtime::new().context("failed to start a runtime");
    match runtime.and_then(|runtime| measure(&runtime)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(runtime: &tokio::runtime::Runtime) -> Result<()> {
    let (options, named): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    for option in &options {
        // Cargo adds the last one itself.
        let known = ["--write", "--100m", "--quick", "--bench"].contains(&option.as_str());
        ensure!(known || option.starts_with("--set="), "there is no option {option}");
    }
    for part in &named {
        ensure!(PARTS.contains(&part.as_str()), "there is no part {part}; there are {}", PARTS.join(", "));
    }
    let wanted: Vec<&str> = PARTS
        .iter()
        .copied()
        .filter(|part| if named.is_empty() { *part != "peers" } else { named.iter().any(|one| one == part) })
        .collect();
    let has = |name: &str| options.iter().any(|option| option == name);
    let setting = options.iter().find_map(|option| option.strip_prefix("--set=")).map(str::to_owned);
    ensure!(setting.is_none() || !has("--write"), "what was tried out with --set is not written");
    let before = Results::committed();
    let folder = tempfile::tempdir()?;
    // The server may run as another user.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    let world = World::start(folder.path(), has("--quick"), setting)?;
    let results = runtime.block_on(measure_parts(&world, &wanted))?;
    println!("\n{}", results.table(before.as_ref()));
    println!("{}", results.profile_table());
    if has("--write") {
        let all = results.write(PARTS)?;
        plots::draw(&all)?;
        report::write(&all)?;
        if results.scaling.is_some() {
            report::write_scaling(&all)?;
        }
    }
    Ok(())
}

/// A part that fails is said and leaves the figures of the others.
async fn measure_parts(world: &World, parts: &[&str]) -> Result<Results> {
    world.prepare().await?;
    let on = report::surroundings(world).await?;
    let mut results = Results::default();
    for part in parts {
        let (began, others) = (Instant::now(), Others::watch());
        println!("{part}");
        let outcome = parts::measure(part, world, &mut results).await;
        let load = others.load();
        println!(
            "  ({:.0} s; others kept {:.2} processors busy, {:.2} were stolen)",
            began.elapsed().as_secs_f64(),
            load.others,
            load.stolen
        );
        if let Err(error) = outcome {
            println!("  FAILED: {error:#}");
            results.forget(part);
            continue;
        }
        results.made(part, load, &on);
    }
    Ok(results)
}
