//! The same claims in databases that differ in what stands beside the rows that are claimed.
//!
//! A daemon runs idle in each database all the time, and rows are inserted in turns, so that whatever else the
//! machine does falls on all of them alike.

use super::latency::starts;
use crate::claims::{Claims, Times, log_statements};
use crate::figures::{Aim, Results, percentile_of};
use crate::world::{Daemon, World, config_of, insert_rows};
use anyhow::{Result, ensure};
use sqlx::PgConnection;
use std::time::{Duration, Instant};
use uuid::Uuid;

const ROUNDS: usize = 6;
const SAMPLES: usize = 150;

/// One of the databases.
pub(super) struct Place {
    pub(super) title: &'static str,
    db: PgConnection,
    stamp: Uuid,
    noop: Uuid,
    claims: Claims,
    _daemon: Daemon,
    rounds: Vec<Round>,
}

/// Milliseconds.
#[derive(Debug, Default, Clone)]
struct Round {
    single: Times,
    batches: Times,
    starts: Vec<f64>,
}

impl Place {
    /// The scenery is there already; the daemon comes now.
    pub(super) async fn open(
        world: &World,
        database: &str,
        title: &'static str,
        mut db: PgConnection,
    ) -> Result<Self> {
        log_statements(world, database).await?;
        let (stamp, noop) = (config_of(&mut db, "StampJob").await?, config_of(&mut db, "NoopJob").await?);
        let daemon = world.idle_daemon(&mut db, database, &[]).await?;
        starts(&mut db, stamp, 50).await?;
        let claims = Claims::follow(world, database)?;
        Ok(Self { title, db, stamp, noop, claims, _daemon: daemon, rounds: Vec::new() })
    }

    pub(super) fn session(&mut self) -> &mut PgConnection {
        &mut self.db
    }

    /// `burst` rows in one INSERT are claimed 500 at a time.
    async fn round(&mut self, world: &World, burst: i64) -> Result<()> {
        let mut round = Round::default();
        self.claims.since(world).await?;
        round.starts = starts(&mut self.db, self.stamp, SAMPLES).await?;
        round.single = self.claims.since(world).await?;
        if burst > 0 {
            insert_rows(&mut self.db, self.noop, burst).await?;
            let began = Instant::now();
            let left = "select exists (select from JobHistory where Ready and ConfigID = $1)
                          or exists (select from Claim where ConfigID = $1 and Open > 0)";
            while sqlx::query_scalar::<_, bool>(left).bind(self.noop).fetch_one(&mut self.db).await? {
                ensure!(began.elapsed() < Duration::from_secs(60), "the burst is not drained");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            round.batches = self.claims.since(world).await?;
        }
        ensure!(!round.single.claims.is_empty(), "the server's log says nothing of claims");
        self.rounds.push(round);
        Ok(())
    }

    fn pooled(&self, take: impl Fn(&Round) -> &[f64]) -> Vec<f64> {
        self.rounds.iter().flat_map(|round| take(round).to_vec()).collect()
    }

    pub(super) fn single_p99(&self) -> f64 {
        percentile_of(&self.pooled(|round| &round.single.claims), 99)
    }

    pub(super) fn single_p50(&self) -> f64 {
        percentile_of(&self.pooled(|round| &round.single.claims), 50)
    }

    pub(super) fn batch_p50(&self) -> f64 {
        percentile_of(&self.pooled(|round| &round.batches.claims), 50)
    }
}

/// Measures all in turns. The first is what the others are held against.
pub(super) async fn compare(
    part: &str,
    world: &World,
    places: &mut [Place],
    burst: i64,
    results: &mut Results,
) -> Result<()> {
    for _ in 0..if world.quick { 2 } else { ROUNDS } {
        for place in places.iter_mut() {
            place.round(world, burst).await?;
        }
    }
    let Some((base, others)) = places.split_first() else { return Ok(()) };
    let flat = Aim::AtMost(1.3);
    said(part, base, results);
    for place in others {
        said(part, place, results);
        let against =
            |what: &str, percent: usize, take: fn(&Round) -> &[f64], aim: Aim, results: &mut Results| {
                let of = |samples: &[f64]| percentile_of(samples, percent);
                let pairs: Vec<f64> = place
                    .rounds
                    .iter()
                    .zip(&base.rounds)
                    .map(|(here, there)| of(take(here)) / of(take(there)))
                    .collect();
                // The percentile of all samples, because the second largest of 150 is chance.
                let ratio = of(&place.pooled(take)) / of(&base.pooled(take));
                let name = format!("{}: {what} p{percent} against {}", place.title, base.title);
                results.add_value(part, &name, "", ratio, &pairs, aim);
            };
        against("claim", 99, |round| &round.single.claims, flat, results);
        against("claim", 50, |round| &round.single.claims, flat, results);
        against("look", 50, |round| &round.single.ticks, Aim::Less, results);
        against("INSERT to start", 99, |round| &round.starts, Aim::Less, results);
        if burst > 0 {
            against("claim of 500", 50, |round| &round.batches.claims, flat, results);
        }
    }
    Ok(())
}

fn said(part: &str, place: &Place, results: &mut Results) {
    let name = |what: &str| format!("{}: {what}", place.title);
    results.add(part, &name("claim of a row, p99"), "ms", &[place.single_p99()], Aim::Less);
    results.add(part, &name("claim of a row, p50"), "ms", &[place.single_p50()], Aim::Less);
    if place.rounds.iter().any(|round| !round.batches.claims.is_empty()) {
        results.add(part, &name("claim of 500 rows, p50"), "ms", &[place.batch_p50()], Aim::Less);
    }
}
