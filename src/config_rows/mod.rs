//! What operators configured: `JobConfig` with its organization and its sources, as one run sees them.

mod mask;
mod source;

pub use mask::Masker;
pub use source::{AuthInfo, SourceConfig};

use crate::secrets::{Holder, Keyring};
use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgExecutor;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// A runnable configuration, as it stood when a run started.
#[derive(Debug, Clone)]
pub struct JobConfig {
    /// `JobConfig.ID`.
    pub id: Uuid,
    /// `JobConfig.JobID`.
    pub job: i32,
    /// `Job.Struct`.
    pub job_struct: String,
    /// `JobConfig.OrganizationID`.
    pub organization: Uuid,
    /// `Organization.Code`.
    pub organization_code: String,
    /// `Organization.Payload`: settings shared by the organization's jobs.
    pub organization_payload: Value,
    /// Whether its rows start over after each run.
    pub continuous: bool,
    /// Whether `MaxInstances` limits it.
    pub limited: bool,
    /// How long a run may take; `None` = no limit.
    pub time_limit: Option<Duration>,
    /// Times a failing row is tried.
    pub max_attempts: i32,
    /// When its last successful run started, by the database's clock: the watermark of incremental jobs.
    pub last_job_start: Option<DateTime<Utc>>,
    /// `DataInSourceConfigID`.
    pub in_source: Option<SourceConfig>,
    /// `DataOutSourceConfigID`.
    pub out_source: Option<SourceConfig>,
    /// Further in-sources, in order (`JobConfigSource`).
    pub further_in_sources: Vec<SourceConfig>,
    /// Further out-sources, in order.
    pub further_out_sources: Vec<SourceConfig>,
}

impl JobConfig {
    /// Why no run of it may start: the first problem of the credentials of its sources.
    pub fn credentials_problem(&self) -> Option<&str> {
        let main = self.in_source.iter().chain(&self.out_source);
        main.chain(&self.further_in_sources)
            .chain(&self.further_out_sources)
            .find_map(|source| source.auth.problem())
    }
}

/// Reads configurations with their sources; two statements, however many. Sealed credentials are opened with `keys`.
pub async fn load(
    db: &mut sqlx::PgConnection,
    ids: &[Uuid],
    keys: &Keyring,
) -> Result<HashMap<Uuid, Arc<JobConfig>>, sqlx::Error> {
    let configs = sqlx::query!(
        r#"select c.ID as id, c.JobID as job, j.Struct as job_struct, c.OrganizationID as organization,
             o.Code as organization_code, o.Payload as organization_payload, c.Continuous as continuous,
             c.TimeoutInSeconds as timeout, c.MaxAttempts as max_attempts, c.MaxInstances > 0 as "limited!", c.LastJobStart as last_job_start,
             c.DataInSourceConfigID as in_source, c.DataOutSourceConfigID as out_source,
             exists (select from JobConfigSource x where x.ConfigID = c.ID) as "further!"
           from JobConfig c
           join Job j on j.ID = c.JobID
           join Organization o on o.ID = c.OrganizationID
           where c.ID = any($1)"#,
        ids,
    )
    .fetch_all(&mut *db)
    .await?;

    let with_sources: Vec<Uuid> = configs
        .iter()
        .filter(|c| c.in_source.is_some() || c.out_source.is_some() || c.further)
        .map(|c| c.id)
        .collect();
    let mut sources = if with_sources.is_empty() {
        HashMap::new()
    } else {
        load_sources(&mut *db, &with_sources, keys).await?
    };

    Ok(configs
        .into_iter()
        .map(|c| {
            let SourcesOf { in_source, out_source, further_in, further_out } =
                sources.remove(&c.id).unwrap_or_default();
            let config = JobConfig {
                id: c.id,
                job: c.job,
                job_struct: c.job_struct,
                organization: c.organization,
                organization_code: c.organization_code,
                organization_payload: c.organization_payload,
                continuous: c.continuous,
                limited: c.limited,
                time_limit: c
                    .timeout
                    .and_then(|seconds| u64::try_from(seconds).ok())
                    .map(Duration::from_secs),
                max_attempts: c.max_attempts,
                last_job_start: c.last_job_start,
                in_source,
                out_source,
                further_in_sources: further_in,
                further_out_sources: further_out,
            };
            (config.id, Arc::new(config))
        })
        .collect())
}

#[derive(Default)]
struct SourcesOf {
    in_source: Option<SourceConfig>,
    out_source: Option<SourceConfig>,
    further_in: Vec<SourceConfig>,
    further_out: Vec<SourceConfig>,
}

async fn load_sources(
    db: impl PgExecutor<'_>,
    configs: &[Uuid],
    keys: &Keyring,
) -> Result<HashMap<Uuid, SourcesOf>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select u.config as "config!", u.direction as "direction!", u.position as "position!",
             s.ID as id, s.Source as source, s.OrganizationID as organization, s.Address as address, s.Port as port,
             s.AuthInfo as auth_info, s.Payload as payload
           from (
             select c.ID as config, 'in' as direction, 0 as position, c.DataInSourceConfigID as source
             from JobConfig c where c.ID = any($1)
             union all
             select c.ID, 'out', 0, c.DataOutSourceConfigID from JobConfig c where c.ID = any($1)
             union all
             -- The first two take position 0; the others keep the order the operator gave them.
             select x.ConfigID, x.Direction,
               row_number() over (partition by x.ConfigID, x.Direction order by x.Position)::int, x.SourceConfigID
             from JobConfigSource x where x.ConfigID = any($1)) u
           join SourceConfig s on s.ID = u.source
           order by u.config, u.direction, u.position"#,
        configs,
    )
    .fetch_all(db)
    .await?;
    let mut by_config: HashMap<Uuid, SourcesOf> = HashMap::new();
    // A source that many configurations share is opened once.
    let mut opened: HashMap<Uuid, AuthInfo> = HashMap::new();
    for row in rows {
        let auth = opened.entry(row.id).or_insert_with(|| {
            let holder = Holder {
                id: row.id,
                source: &row.source,
                organization: row.organization,
                address: &row.address,
                token_url: row.auth_info.get("TokenUrl"),
            };
            AuthInfo::open(&row.auth_info, &holder, keys)
        });
        let auth = auth.clone();
        let source = SourceConfig {
            id: row.id,
            source: row.source,
            organization: row.organization,
            address: row.address,
            port: row.port.and_then(|port| u16::try_from(port).ok()),
            auth,
            payload: row.payload,
        };
        let of = by_config.entry(row.config).or_default();
        match (row.direction.as_str(), row.position) {
            ("in", 0) => of.in_source = Some(source),
            ("out", 0) => of.out_source = Some(source),
            ("in", _) => of.further_in.push(source),
            _ => of.further_out.push(source),
        }
    }
    Ok(by_config)
}
