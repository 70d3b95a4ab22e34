//! Other job queues on PostgreSQL, on the same server and in the same run: `benches/peers`, a package of its own.

use super::drain::drain;
use crate::figures::{Aim, Results};
use crate::world::World;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const PROGRAM: &str = "benches/peers/target/release/rosterd-peers";
const PEERS: &[&str] = &["graphile_worker", "apalis", "underway"];
const ROUNDS: usize = 3;

/// A line that the program prints.
#[derive(Debug, Deserialize)]
struct Line {
    figure: String,
    unit: String,
    value: f64,
}

pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(PROGRAM);
    if !program.exists() {
        bail!("{PROGRAM} is not built: cargo build --release --manifest-path benches/peers/Cargo.toml");
    }
    let mut rates = Vec::new();
    let mut lines: Vec<(String, String, Vec<f64>)> = Vec::new();
    for _ in 0..ROUNDS {
        rates.push(drain(world, 1, &[]).await?.rate);
        for peer in PEERS {
            for line in run(world, &program, peer, "drain").await? {
                match lines.iter_mut().find(|(figure, ..)| *figure == line.figure) {
                    Some((.., values)) => values.push(line.value),
                    None => lines.push((line.figure, line.unit, vec![line.value])),
                }
            }
        }
    }
    for peer in PEERS {
        for line in run(world, &program, peer, "idle").await? {
            lines.push((line.figure, line.unit, vec![line.value]));
        }
    }
    results.add("peers", "rosterd, default settings: drained", "/s", &rates, Aim::More);
    for (figure, unit, values) in lines {
        let aim = if unit == "/s" && figure.contains("drained") { Aim::More } else { Aim::Less };
        results.add("peers", &figure, &unit, &values, aim);
    }
    Ok(())
}

/// Each in a database of its own that nobody has used. A peer that fails is said and left out.
async fn run(world: &World, program: &PathBuf, peer: &str, what: &str) -> Result<Vec<Line>> {
    let database = format!("peer_{peer}");
    let mut admin = world.connect("postgres").await?;
    let create = format!("create database {database}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&mut admin).await?;
    let output = Command::new(program)
        .args([peer, what])
        .env("DATABASE_URL", world.url(&database))
        .env("ADMIN_URL", world.url("postgres"))
        .stderr(Stdio::inherit())
        .output()
        .context("failed to start the peers")?;
    world.drop_database(&database).await?;
    if !output.status.success() {
        println!("  {peer}: {what} failed");
        return Ok(Vec::new());
    }
    let text = String::from_utf8(output.stdout)?;
    text.lines().filter(|line| line.starts_with('{')).map(|line| Ok(serde_json::from_str(line)?)).collect()
}
