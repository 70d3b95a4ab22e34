//! `rosterd source limits`: how hard each source may be hit, and what it is doing now.

use super::output::{say, say_json, table, time, without_password};
use super::{Database, Failure, block_on};
use crate::config::Config;
use serde_json::json;
use std::time::Duration;

/// What to tell about sources.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Source {
    /// List the limits of every SourceConfig, its calls in flight, and who waits for it.
    Limits {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(settings: &Config, command: &Source) -> Result<(), Failure> {
    let Source::Limits { json: as_json } = command;
    let database = Database::open(settings)?;
    block_on(async {
        let mut db = database.session().await?;
        // Credentials stay where they are: Delay and Concurrency stand beside AuthInfo, for those who cannot read that.
        // Shares of runners that are gone count for nothing, as for the limiter.
        let sources = sqlx::query!(
            r#"select s.ID as id, s.Source as source, o.Code as organization, s.Address as address, s.Port as port,
                 s.Active and o.Active as "active!",
                 s.Delay as delay, s.Concurrency as concurrency,
                 coalesce(x.InFlight, 0) as "in_flight!", coalesce(x.Waiting, 0) as "waiting!",
                 coalesce(g.Throttle, 1) as "throttle!",
                 case when g.PausedUntil > clock_timestamp() then g.PausedUntil end as paused_until,
                 nullif(greatest(statement_timestamp(), g.PausedUntil,
                   g.WindowEnd + s.Delay / 1000 * interval '1 microsecond'),
                   statement_timestamp()) as next_start
               from SourceConfig s
               join Organization o on o.ID = s.OrganizationID
               left join SourceGate g on g.SourceConfigID = s.ID
               left join lateral (
                 select sum(x.InFlight) as InFlight, sum(x.Waiting) as Waiting
                 from SourceShare x join Runner r on r.ID = x.RunnerID
                 where x.SourceConfigID = s.ID) x on true
               order by o.Code, s.Source, s.ID"#
        )
        .fetch_all(&mut db)
        .await?;
        if *as_json {
            let sources: Vec<_> = sources
                .into_iter()
                .map(|s| {
                    json!({
                        "id": s.id, "source": s.source, "organization": s.organization,
                        "address": without_password(&s.address), "port": s.port, "active": s.active,
                        "delay_ns": s.delay, "concurrency": s.concurrency, "in_flight": s.in_flight,
                        "waiting": s.waiting, "throttle": s.throttle, "next_start": s.next_start, "paused_until": s.paused_until,
                    })
                })
                .collect();
            return say_json(&json!({ "sources": sources }));
        }
        if sources.is_empty() {
            return say("There are no sources: the table SourceConfig is empty.");
        }
        let rows = sources.into_iter().map(|s| {
            let delay = u64::try_from(s.delay).unwrap_or(0);
            let port = s.port.map(|port| format!(" :{port}")).unwrap_or_default();
            [
                format!("{} {}", s.organization, s.source),
                format!("{}{port}", without_password(&s.address)),
                if s.active { "yes" } else { "no" }.to_owned(),
                if delay == 0 {
                    "0".to_owned()
                } else {
                    format!("{:?} ({delay} ns)", Duration::from_nanos(delay))
                },
                format!("{}/{}", s.in_flight, s.concurrency),
                s.waiting.to_string(),
                format!("{:.0} %", s.throttle * 100.0),
                time(s.next_start),
                time(s.paused_until),
            ]
        });
        let header = [
            "SOURCE",
            "ADDRESS",
            "ACTIVE",
            "DELAY",
            "IN FLIGHT",
            "WAITING",
            "RATE",
            "NEXT START (UTC)",
            "PAUSED UNTIL",
        ];
        say(&table(header, rows))
    })
}
