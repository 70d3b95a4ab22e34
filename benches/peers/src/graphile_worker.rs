use crate::harness;
use anyhow::{Result, anyhow};
use graphile_worker::{
    IntoTaskHandlerResult, LocalQueueConfig, RefetchDelayConfig, TaskHandler, Worker, WorkerContext,
    WorkerOptions,
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::ops::Range;
use std::time::Duration;

pub(crate) struct Peer {
    worker: Worker,
    db: PgPool,
}

#[derive(Deserialize, Serialize)]
struct Noop {
    number: u32,
}

impl TaskHandler for Noop {
    const IDENTIFIER: &'static str = "noop";

    async fn run(self, _: WorkerContext) -> impl IntoTaskHandlerResult {
        harness::started(self.number);
        Ok::<(), String>(())
    }
}

impl harness::Peer for Peer {
    const NAME: &'static str =
        "graphile_worker 0.14.1 (concurrency 64, local queue 1000 with refetch delay, completion batch 5 ms)";
    const JOBS: u32 = 100_000;
    const DRAINED: &'static str = "select not exists (select from graphile_worker._private_jobs)";

    async fn prepare(url: String) -> Result<Self> {
        let worker = WorkerOptions::default()
            .concurrency(64)
            .complete_job_batch_delay(Duration::from_millis(5))
            .local_queue(
                LocalQueueConfig::default().with_size(1000).with_refetch_delay(RefetchDelayConfig::default()),
            )
            .define_job::<Noop>()
            .database_url(&url)
            .max_pg_conn(10)
            .init()
            .await
            .map_err(|error| anyhow!("{error}"))?;
        Ok(Self { worker, db: PgPool::connect(&url).await? })
    }

    /// In pieces, because 100,000 in one transaction take minutes.
    async fn enqueue(&self, numbers: Range<u32>) -> Result<()> {
        for from in numbers.clone().step_by(5000) {
            sqlx::query(
                "select count(*) from graphile_worker.add_jobs(array(
                   select row('noop', json_build_object('number', n), null, null, null, null, null, null)::graphile_worker.job_spec
                   from generate_series($1::int, $2::int) n))",
            )
            .bind(i32::try_from(from)?)
            .bind(i32::try_from(numbers.end.min(from + 5000))? - 1)
            .execute(&self.db)
            .await?;
        }
        Ok(())
    }

    async fn work(&self) -> Result<()> {
        self.worker.run().await.map_err(|error| anyhow!("{error}"))
    }
}
