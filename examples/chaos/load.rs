//! What operators do all day: put rows on the queue, cancel them whatever their state, edit them, edit configurations,
//! make schedules, and try what is not allowed.

use crate::clock::{self, Nanos, SECOND};
use crate::lanes::Lanes;
use crate::operator::Operator;
use crate::recorder::{Answer, Intent, Recorder, ScheduleRecord};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// One operator at work.
pub struct Worker {
    pub operator: Operator,
    pub lanes: Lanes,
    pub rng: fastrand::Rng,
    pub recorder: Arc<Recorder>,
    /// Mean time between two statements.
    pub pause: Duration,
    recent: VecDeque<Uuid>,
    continuous: Vec<(Nanos, Uuid)>,
    schedules: Vec<(Nanos, Uuid)>,
}

impl Worker {
    pub fn new(operator: Operator, lanes: Lanes, rng: fastrand::Rng, recorder: Arc<Recorder>) -> Self {
        Self {
            operator,
            lanes,
            rng,
            recorder,
            pause: Duration::from_millis(140),
            recent: VecDeque::new(),
            continuous: Vec::new(),
            schedules: Vec::new(),
        }
    }

    /// Works until `stop`, and leaves nothing that goes on for ever.
    pub async fn work(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let pause = self.pause.mul_f64(self.rng.f64() * 2.0);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
            self.one_thing().await;
            self.end_what_is_old(clock::now()).await;
        }
        self.end_what_is_old(Nanos::MAX).await;
    }

    async fn one_thing(&mut self) {
        match self.rng.u32(0..100) {
            0..53 => self.insert().await,
            53..58 => self.call().await,
            58..74 => self.cancel(1).await,
            74..77 => {
                let many = self.rng.usize(3..15);
                self.cancel(many).await;
            }
            77..83 => self.edit().await,
            83..90 => self.illegal().await,
            90..94 => self.configure().await,
            _ => self.schedule().await,
        }
    }

    fn id(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(self.rng.u128(..).to_be_bytes()).into_uuid()
    }

    fn duration(&mut self) -> u64 {
        match self.rng.u32(0..20) {
            0..2 => self.rng.u64(5000..8000),
            2..7 => self.rng.u64(1000..3000),
            _ => self.rng.u64(50..600),
        }
    }

    async fn insert(&mut self) {
        let lanes = self.lanes;
        let ms = self.duration();
        let (config, payload) = match self.rng.u32(0..22) {
            0..4 => (lanes.plain, format!(r#"{{"duration_milliseconds": {ms}, "steps": 3}}"#)),
            4..7 => {
                let fails = self.rng.u32(0..4);
                let panics = self.rng.u32(0..4) == 0;
                (
                    lanes.retry,
                    format!(
                        r#"{{"duration_milliseconds": {}, "fail_attempts": {fails}, "panic": {panics}}}"#,
                        ms / 3
                    ),
                )
            }
            7..10 => (lanes.once, format!(r#"{{"duration_milliseconds": {ms}, "steps": 2}}"#)),
            10..14 => (lanes.limited, format!(r#"{{"duration_milliseconds": {}}}"#, ms.min(600))),
            14 => (lanes.single, format!(r#"{{"duration_milliseconds": {}}}"#, ms.min(200))),
            15 => (lanes.plain, "{}".to_owned()),
            16 => (
                lanes.plain,
                format!(r#"{{"duration_milliseconds": {}, "stubborn": true, "steps": 2}}"#, ms.min(2500)),
            ),
            17..19 => {
                // Deaf to cancels for less than the grace time: they meet the commit.
                let (ms, stubborn) = (ms.min(900), self.rng.bool());
                let payload = r#"{"duration_milliseconds": MS, "ledger": true, "stubborn": DEAF}"#;
                (lanes.ledger, payload.replace("MS", &ms.to_string()).replace("DEAF", &stubborn.to_string()))
            }
            19 if self.continuous.len() < 2 => {
                (lanes.continuous, r#"{"duration_milliseconds": 300}"#.to_owned())
            }
            _ => (
                lanes.plain,
                format!(
                    r#"{{"duration_milliseconds": {}, "children": {}, "child_config": "{}"}}"#,
                    ms / 2,
                    self.rng.u32(1..4),
                    lanes.plain
                ),
            ),
        };
        let rows: Vec<Uuid> = (0..self.rng.u32(1..4)).map(|_| self.id()).collect();
        let rows = if config == lanes.continuous { vec![rows[0]] } else { rows };
        let values: Vec<String> =
            rows.iter().map(|id| format!("('{id}', '{config}', 1, '{payload}')")).collect();
        let sql =
            format!("insert into JobHistory (ID, ConfigID, StatusID, Payload) values {}", values.join(", "));
        let answer = self.operator.run(Intent::Insert, rows.clone(), sql).await;
        if config == lanes.continuous {
            let until = clock::now() + self.rng.u64(5..15) * SECOND;
            self.continuous.push((until, rows[0]));
        } else if matches!(answer, Answer::Done(_)) {
            self.recent.extend(rows);
            while self.recent.len() > 60 {
                self.recent.pop_front();
            }
        }
    }

    async fn call(&mut self) {
        let (config, name) =
            if self.rng.bool() { (self.lanes.paced, "paced") } else { (self.lanes.narrow, "narrow") };
        let id = self.id();
        let repeat = self.rng.u32(1..5);
        let sql = format!(
            r#"insert into JobHistory (ID, ConfigID, StatusID, Payload)
               values ('{id}', '{config}', 1, '{{"path": "/{name}/{id}", "repeat": {repeat}}}')"#
        );
        self.operator.run(Intent::Insert, vec![id], sql).await;
    }

    async fn cancel(&mut self, many: usize) {
        let mut rows: Vec<Uuid> = Vec::new();
        for _ in 0..many {
            // The newest are pending or running, the older ones mostly finished.
            let far = if self.rng.bool() { 6 } else { 60 };
            let back = self.rng.usize(0..far).min(self.recent.len());
            if let Some(id) = self.recent.len().checked_sub(back + 1).and_then(|at| self.recent.get(at))
                && !rows.contains(id)
            {
                rows.push(*id);
            }
        }
        self.cancel_rows(rows).await;
    }

    async fn cancel_rows(&mut self, rows: Vec<Uuid>) -> Answer {
        if rows.is_empty() {
            return Answer::Done(Vec::new());
        }
        let list: Vec<String> = rows.iter().map(|id| format!("'{id}'")).collect();
        let sql = format!(
            "update JobHistory set StatusID = -1 where ID in ({}) returning ID, StatusID",
            list.join(", ")
        );
        self.operator.run(Intent::Cancel, rows, sql).await
    }

    fn recent_row(&mut self) -> Option<Uuid> {
        (!self.recent.is_empty()).then(|| self.recent[self.rng.usize(0..self.recent.len())])
    }

    async fn edit(&mut self) {
        let Some(id) = self.recent_row() else { return };
        let priority = self.rng.i32(1..9);
        let later = self.rng.u32(0..1500);
        let sql = format!(
            "update JobHistory set Priority = {priority}, NotBefore = now() + interval '{later} milliseconds'
             where ID = '{id}' and StatusID = 1 returning ID, StatusID"
        );
        self.operator.run(Intent::Edit, vec![id], sql).await;
    }

    async fn illegal(&mut self) {
        let Some(id) = self.recent_row() else { return };
        let config = self.lanes.plain;
        let sql = match self.rng.u32(0..7) {
            0 => format!("update JobHistory set StatusID = 3 where ID = '{id}' returning ID, StatusID"),
            1 => format!("update JobHistory set StatusID = 2 where ID = '{id}' returning ID, StatusID"),
            2 => format!("update JobHistory set Attempt = 7 where ID = '{id}' returning ID, StatusID"),
            3 => format!(
                "insert into JobHistory (ConfigID, StatusID) values ('{config}', 2) returning ID, StatusID"
            ),
            4 => format!("update JobHistory set StatusID = 7 where ID = '{id}' returning ID, StatusID"),
            5 => format!("update JobHistory set StatusID = 5 where ID = '{id}' returning ID, StatusID"),
            _ => format!("update JobConfig set WaitInSeconds = -1 where ID = '{config}' returning ID, 0"),
        };
        self.operator.run(Intent::Illegal, vec![id], sql).await;
    }

    async fn configure(&mut self) {
        let lanes = self.lanes;
        let sql = match self.rng.u32(0..5) {
            0 => format!(
                "update JobConfig set WaitInSeconds = {} where ID = '{}'",
                self.rng.u32(1..3),
                lanes.continuous
            ),
            1 | 2 => format!(
                "update JobConfig set MaxInstances = {} where ID = '{}'",
                self.rng.u32(2..4),
                lanes.limited
            ),
            _ => {
                let off = format!("update JobConfig set Active = false where ID = '{}'", lanes.plain);
                self.operator.run(Intent::Config, Vec::new(), off).await;
                let pause = Duration::from_millis(self.rng.u64(100..700));
                tokio::time::sleep(pause).await;
                let on = format!("update JobConfig set Active = true where ID = '{}'", lanes.plain);
                self.operator.insist(Intent::Config, &on).await;
                return;
            }
        };
        self.operator.run(Intent::Config, Vec::new(), sql).await;
    }

    async fn schedule(&mut self) {
        if self.schedules.len() >= 2 {
            return;
        }
        let id = self.id();
        let every = [1, 2, 3][self.rng.usize(0..3)];
        let missed_run = ["all", "all", "once", "skip"][self.rng.usize(0..4)];
        let sql = format!(
            "insert into JobSchedule (ID, ConfigID, Cron, MissedRun) values ('{id}', '{}', '*/{every} * * * * *', '{missed_run}')",
            self.lanes.scheduled
        );
        let created = clock::now();
        self.recorder.add_schedule(ScheduleRecord { id, every, missed_run, created, stopping: None });
        self.operator.run(Intent::Schedule, Vec::new(), sql).await;
        let until = clock::now() + self.rng.u64(6..16) * SECOND;
        self.schedules.push((until, id));
    }

    /// Continuous rows are cancelled and schedules are switched off when their time has come.
    async fn end_what_is_old(&mut self, now: Nanos) {
        for (until, id) in std::mem::take(&mut self.continuous) {
            // Cancelled until the answer is known; nobody else does it.
            let ended = until <= now && matches!(self.cancel_rows(vec![id]).await, Answer::Done(_));
            if !ended {
                self.continuous.push((until, id));
            }
            if !ended && now == Nanos::MAX {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        for (until, id) in std::mem::take(&mut self.schedules) {
            if until > now {
                self.schedules.push((until, id));
                continue;
            }
            self.recorder.stop_schedule(id);
            let sql = format!("update JobSchedule set Active = false where ID = '{id}'");
            self.operator.insist(Intent::Schedule, &sql).await;
        }
        if now == Nanos::MAX && !self.continuous.is_empty() {
            Box::pin(self.end_what_is_old(now)).await;
        }
    }
}
