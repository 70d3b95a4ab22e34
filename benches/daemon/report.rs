//! docs/BENCHMARKS.md: what stands between its marks, and what it was made on.

use crate::figures::Results;
use crate::plots;
use crate::tables;
use crate::world::World;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Date, server and machine in a sentence.
pub(crate) async fn surroundings(world: &World) -> Result<String> {
    let mut db = world.connect("postgres").await?;
    let settings: String = sqlx::query_scalar(
        "select string_agg(name || ' = ' || current_setting(name), ', ' order by name) from pg_settings
         where name in ('fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'autovacuum', 'wal_level')",
    )
    .fetch_one(&mut db)
    .await?;
    let (major, minor) = world.version();
    let date = chrono::Utc::now().format("%Y-%m-%d");
    Ok(format!(
        "{date}, PostgreSQL {major}.{minor} ({settings}), Unix socket, on the same machine: {}",
        machine()
    ))
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let gib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
        .map_or(0.0, |kib| kib / 1024.0 / 1024.0);
    format!(
        "{cores} cores ({}), {gib:.0} GiB, shared with the daemon and this bench",
        model.trim_matches([' ', '\t', ':'])
    )
}

/// The tables of docs/scaling.md.
pub(crate) fn write_scaling(results: &Results) -> Result<()> {
    let scaling = results.scaling.as_ref().context("nothing was measured for docs/scaling.md")?;
    let section = tables::section(scaling, &tables::MACHINE, &tables::MIX);
    println!("written to {}", tables::write(&section)?.display());
    Ok(())
}

pub(crate) fn write(results: &Results) -> Result<()> {
    let mut by_surroundings: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (part, on) in &results.made {
        by_surroundings.entry(on).or_default().push(part);
    }
    let mut text = String::new();
    for (on, parts) in by_surroundings {
        let _ = writeln!(text, "{}: {on}.", parts.join(", "));
    }
    let _ = writeln!(text, "\n{}", results.table(None));
    if !results.profile.is_empty() {
        let _ =
            writeln!(text, "Where the time of a drain by one runner goes:\n\n{}", results.profile_table());
    }
    text += &plots::shown(results);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/BENCHMARKS.md");
    let old = std::fs::read_to_string(&path)?;
    let (begin, end) = ("<!-- bench: begin -->\n", "<!-- bench: end -->");
    let (head, rest) = old.split_once(begin).context("the begin mark is missing in docs/BENCHMARKS.md")?;
    let (_, tail) = rest.split_once(end).context("the end mark is missing in docs/BENCHMARKS.md")?;
    std::fs::write(&path, format!("{head}{begin}{}\n{end}{tail}", text.trim_end()))?;
    println!("written to {}", path.display());
    Ok(())
}
