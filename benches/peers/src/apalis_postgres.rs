use crate::harness;
use anyhow::{Result, anyhow};
use apalis::prelude::*;
use apalis_postgres::{Config, PgPool, PostgresStorage, queries::push_tasks};
use std::ops::Range;

const QUEUE: &str = "noop";

pub(crate) struct Peer {
    pool: PgPool,
}

async fn noop(number: u32) -> Result<(), BoxDynError> {
    harness::started(number);
    Ok(())
}

impl harness::Peer for Peer {
    const NAME: &'static str = "apalis-postgres 1.0.0 (pubsub, batch 1000, no lock event, tokio::spawn)";
    const JOBS: u32 = 30_000;
    const DRAINED: &'static str = "select not exists (select from apalis.jobs where status <> 'Done')";

    async fn prepare(url: String) -> Result<Self> {
        let pool = PgPool::connect(&url).await?;
        PostgresStorage::setup(&pool).await.map_err(|error| anyhow!("{error}"))?;
        Ok(Self { pool })
    }

    async fn enqueue(&self, numbers: Range<u32>) -> Result<()> {
        let numbers: Vec<u32> = numbers.collect();
        let mut connection = self.pool.acquire().await?;
        for some in numbers.chunks(5000) {
            let mut tasks = Vec::new();
            for number in some {
                tasks.push(TaskBuilder::new(serde_json::to_vec(number)?).build());
            }
            push_tasks(&mut *connection, QUEUE, tasks).await.map_err(|error| anyhow!("{error}"))?;
        }
        Ok(())
    }

    async fn work(&self) -> Result<()> {
        let config = Config::default().queue(QUEUE).batch_size(1000).lock_tasks(false);
        let backend = PostgresStorage::new(&self.pool).with_config(config).with_pubsub();
        let worker = WorkerBuilder::new("peer").backend(backend).parallelize(tokio::spawn).build(noop);
        worker.run().await.map_err(|error| anyhow!("{error}"))
    }
}
