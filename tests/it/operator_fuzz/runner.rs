//! A runner without jobs: it brings rows into every state by the engine's own statements, and the model after it.

use super::generate::Generator;
use super::model::{Due, Model};
use rosterd::history::{Fence, HistoryId, Settlement, StopReason, Verdict, moves};
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// As with `engine.alone_processes = 0`: rows that runners died under are claimed like all others.
const NEVER_ALONE: i32 = i32::MAX;

pub struct Runner {
    pub db: PgConnection,
    id: Uuid,
    jobs: Vec<i32>,
    /// What it has in progress, and of which configuration.
    held: Vec<(Fence, Uuid)>,
    /// What it had once.
    stale: Vec<(Uuid, Fence, Uuid)>,
}

impl Runner {
    pub async fn new(db: PgConnection, generator: &mut Generator) -> Self {
        let jobs = generator.configs.iter().map(|config| config.1).collect();
        let mut runner = Self { db, id: Uuid::nil(), jobs, held: Vec::new(), stale: Vec::new() };
        runner.register(generator).await;
        runner
    }

    async fn register(&mut self, generator: &mut Generator) {
        self.id = generator.uuid();
        sqlx::query("insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers) values ($1, 'fuzz', 1, '0', 20, 10)")
            .bind(self.id)
            .execute(&mut self.db)
            .await
            .unwrap();
    }

    /// One thing a runner does. `Err` says how the database and the model differ.
    pub async fn step(&mut self, model: &mut Model, generator: &mut Generator) -> Result<(), String> {
        match generator.rng.u32(0..100) {
            0..50 => self.claim(model, generator).await,
            50..90 => self.settle(model, generator).await,
            90..95 => self.settle_what_is_not_ours(generator).await,
            _ => self.crash(model, generator).await,
        }
    }

    async fn claim(&mut self, model: &mut Model, generator: &mut Generator) -> Result<(), String> {
        let limit = generator.rng.usize(1..12);
        let mut wanted = 0;
        for (id, config) in model.configs.iter().filter(|(_, config)| config.active) {
            let of_it = || model.rows.values().filter(|row| row.config == *id);
            let due = of_it().filter(|row| row.status == 1 && is_due(row.due)).count();
            let running = of_it().filter(|row| [2, -1].contains(&row.status)).count();
            let room =
                if config.max_instances == 0 { due } else { config.max_instances.saturating_sub(running) };
            wanted += due.min(room);
        }
        let tick = moves::tick(&mut self.db, &self.jobs, NEVER_ALONE).await.unwrap();
        let bounds = moves::Bounds {
            limit: i64::try_from(limit).unwrap(),
            after: moves::Place::START,
            around: false,
            suspect_from: NEVER_ALONE,
        };
        let claimed = moves::claim(&mut self.db, self.id, &tick, bounds).await.unwrap().jobs;
        if claimed.len() != wanted.min(limit) {
            return Err(format!("a claim of {limit} took {} rows, the model has {wanted}", claimed.len()));
        }
        for job in claimed {
            let id = job.fence.id.0;
            let Some(row) = model.rows.get_mut(&id).filter(|row| row.status == 1 && is_due(row.due)) else {
                return Err(format!("{id} was claimed, for the model it is {:?}", model.rows.get(&id)));
            };
            row.status = 2;
            row.attempt += 1;
            (row.started, row.waiting, row.stop_reason) = (true, false, None);
            self.held.push((job.fence, job.config));
        }
        Ok(())
    }

    async fn settle(&mut self, model: &mut Model, generator: &mut Generator) -> Result<(), String> {
        let verdicts =
            [Verdict::Done, Verdict::Failed, Verdict::FailedForGood, Verdict::Unrunnable, Verdict::PutBack];
        let reasons = [None, Some(StopReason::Stopped), Some(StopReason::FinishedBeforeStop)];
        generator.rng.shuffle(&mut self.held);
        let ended = self.held.split_off(self.held.len().saturating_sub(generator.rng.usize(1..8)));
        let mut settlements = Vec::new();
        let mut wanted = BTreeMap::new();
        for (fence, config) in ended {
            let verdict = verdicts[generator.rng.usize(..verdicts.len())];
            let stop_reason = reasons[generator.rng.usize(..reasons.len())];
            let error = [Verdict::Failed, Verdict::FailedForGood, Verdict::Unrunnable].contains(&verdict);
            let error = error.then(|| "it failed".to_owned());
            wanted.insert(fence.id, settle_in(model, fence.id, verdict, error.is_some(), stop_reason));
            settlements.push(Settlement {
                fence,
                config,
                verdict,
                error,
                result: None,
                stop_reason,
                progress: None,
            });
            self.stale.push((self.id, fence, config));
        }
        let settled = moves::settle(&mut self.db, self.id, &settlements, 3600.0).await.unwrap();
        let got: BTreeMap<HistoryId, i32> = settled.iter().map(|row| (row.id, row.status.id())).collect();
        if got == wanted {
            Ok(())
        } else {
            Err(format!("{settlements:?} became {got:?}, the model has {wanted:?}"))
        }
    }

    /// An outcome that comes too late, from a run that ended long ago.
    async fn settle_what_is_not_ours(&mut self, generator: &mut Generator) -> Result<(), String> {
        let Some(&(runner, fence, config)) = generator.rng.choice(&self.stale) else { return Ok(()) };
        let late = Settlement {
            fence,
            config,
            verdict: Verdict::Done,
            error: None,
            result: None,
            stop_reason: None,
            progress: None,
        };
        let settled = moves::settle(&mut self.db, runner, &[late], 3600.0).await.unwrap();
        if settled.is_empty() { Ok(()) } else { Err(format!("{fence:?} of {runner} ended twice")) }
    }

    /// It dies, is rescued from, and another takes its place.
    async fn crash(&mut self, model: &mut Model, generator: &mut Generator) -> Result<(), String> {
        sqlx::query("delete from Runner where ID = $1").bind(self.id).execute(&mut self.db).await.unwrap();
        let mut got = BTreeSet::new();
        loop {
            let rescued = moves::rescue(&mut self.db).await.unwrap();
            if rescued.is_empty() {
                break;
            }
            got.extend(rescued.iter().map(|(id, status)| (*id, status.id())));
        }
        let mut wanted = BTreeSet::new();
        for (fence, config) in std::mem::take(&mut self.held) {
            wanted.insert((fence.id, rescue_in(model, fence.id)));
            self.stale.push((self.id, fence, config));
        }
        // The back-off after a crash is in seconds of the database's clock; here it is over at once.
        let ids: Vec<Uuid> = got.iter().map(|(id, _)| id.0).collect();
        sqlx::query("update JobHistory set NotBefore = now() where ID = any($1) and Ready")
            .bind(ids)
            .execute(&mut self.db)
            .await
            .unwrap();
        self.register(generator).await;
        if got == wanted { Ok(()) } else { Err(format!("rescued were {got:?}, the model has {wanted:?}")) }
    }
}

fn is_due(due: Due) -> bool {
    matches!(due, Due::Now | Due::At(..2_000_000_000))
}

fn settle_in(
    model: &mut Model,
    id: HistoryId,
    verdict: Verdict,
    failed: bool,
    reason: Option<StopReason>,
) -> i32 {
    let row = model.rows.get_mut(&id.0).unwrap();
    let config = &model.configs[&row.config];
    let tries_again = verdict == Verdict::Failed && row.attempt < config.max_attempts;
    (row.failed, row.stop_reason) = (failed, reason.map(StopReason::as_str));
    row.status = match verdict {
        _ if row.status == -1 => 5,
        // Interrupted is never drawn: its back-off of a second is one of the database's clock.
        Verdict::PutBack | Verdict::Interrupted => {
            row.attempt -= 1;
            row.due = Due::Now;
            1
        }
        Verdict::Unrunnable => 4,
        _ if tries_again => {
            row.due = Due::Now;
            1
        }
        _ if config.continuous => {
            (row.attempt, row.crashes, row.waiting, row.due) = (0, 0, true, Due::Later);
            row.iteration += 1;
            1
        }
        Verdict::Done => 3,
        Verdict::Failed | Verdict::FailedForGood => 4,
    };
    row.status
}

fn rescue_in(model: &mut Model, id: HistoryId) -> i32 {
    let row = model.rows.get_mut(&id.0).unwrap();
    let error_on_loss = model.configs[&row.config].error_on_loss;
    row.crashes += 1;
    row.stop_reason = Some("runner_lost");
    row.status = match row.status {
        -1 => 5,
        _ if error_on_loss => 4,
        _ if row.crashes >= 3 => {
            row.stop_reason = Some("poison");
            4
        }
        _ => {
            row.due = Due::Now;
            1
        }
    };
    row.failed |= row.status == 4;
    row.status
}
