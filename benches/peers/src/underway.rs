use crate::harness;
use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::ops::Range;
use underway::{Job, To};

pub(crate) struct Peer {
    job: Job<Noop, ()>,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct Noop {
    number: u32,
}

impl harness::Peer for Peer {
    const NAME: &'static str = "underway 0.2.0 (concurrency 16)";
    const JOBS: u32 = 1000;
    const DRAINED: &'static str = "select not exists (select from underway.task where state <> 'succeeded')";

    async fn prepare(url: String) -> Result<Self> {
        let pool = PgPool::connect(&url).await?;
        underway::run_migrations(&pool).await?;
        let job = Job::builder()
            .step(|_, Noop { number }| async move {
                harness::started(number);
                To::done()
            })
            .name("noop")
            .pool(pool)
            .build()
            .await?;
        Ok(Self { job })
    }

    async fn enqueue(&self, numbers: Range<u32>) -> Result<()> {
        for number in numbers {
            self.job.enqueue(&Noop { number }).await?;
        }
        Ok(())
    }

    async fn work(&self) -> Result<()> {
        let mut worker = self.job.worker();
        worker.set_concurrency_limit(16);
        worker.run().await.map_err(|error| anyhow!("{error}"))
    }
}
