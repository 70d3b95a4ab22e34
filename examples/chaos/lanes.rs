//! The configurations operators use, one for each way a row can be treated.

use crate::operator::Operator;
use crate::recorder::Intent;
use std::fmt::Write;
use std::net::SocketAddr;
use uuid::Uuid;

/// Their IDs.
#[derive(Debug, Clone, Copy)]
pub struct Lanes {
    pub plain: Uuid,
    /// `MaxAttempts` 3.
    pub retry: Uuid,
    /// `OnRunnerLoss` = error.
    pub once: Uuid,
    /// `MaxInstances` 3, sometimes 2.
    pub limited: Uuid,
    /// `MaxInstances` 1.
    pub single: Uuid,
    pub continuous: Uuid,
    pub autostart: Uuid,
    pub scheduled: Uuid,
    pub ledger: Uuid,
    /// HTTP with a Delay.
    pub paced: Uuid,
    /// HTTP with a Concurrency.
    pub narrow: Uuid,
}

/// Delay of the paced source.
pub const DELAY_MILLIS: u64 = 150;
/// Concurrency of both.
pub const CONCURRENCY: u32 = 2;

impl Lanes {
    /// Makes them.
    pub async fn make(operator: &mut Operator, api: SocketAddr, rng: &mut fastrand::Rng) -> Self {
        let mut id = || uuid::Builder::from_random_bytes(rng.u128(..).to_be_bytes()).into_uuid();
        let lanes = Self {
            plain: id(),
            retry: id(),
            once: id(),
            limited: id(),
            single: id(),
            continuous: id(),
            autostart: id(),
            scheduled: id(),
            ledger: id(),
            paced: id(),
            narrow: id(),
        };
        let mut sql = String::from(
            "insert into Organization (Code) values ('CHAOS');
             insert into Job (Struct) values ('ChaosJob'), ('HttpJob') on conflict do nothing;",
        );
        let chaos = [
            (lanes.plain, "MaxInstances", "0"),
            (lanes.retry, "MaxInstances, MaxAttempts, RetryDelaySeconds", "0, 3, 1"),
            (lanes.once, "MaxInstances, OnRunnerLoss", "0, 'error'"),
            (lanes.limited, "MaxInstances", "3"),
            (lanes.single, "MaxInstances", "1"),
            (lanes.continuous, "MaxInstances, Continuous, WaitInSeconds", "0, true, 1"),
            (
                lanes.autostart,
                "MaxInstances, Continuous, WaitInSeconds, AutoStart, Payload",
                "0, true, 1, true, '{\"duration_milliseconds\": 300}'",
            ),
            (lanes.scheduled, "MaxInstances", "0"),
            (lanes.ledger, "MaxInstances, MaxAttempts", "0, 5"),
        ];
        for (id, columns, values) in chaos {
            let _ = write!(
                sql,
                "insert into JobConfig (ID, JobID, OrganizationID, {columns})
                 select '{id}', j.ID, o.ID, {values} from Job j, Organization o where j.Struct = 'ChaosJob';"
            );
        }
        for (id, auth) in [
            (
                lanes.paced,
                format!(r#"{{"Delay": {}, "Concurrency": {CONCURRENCY}}}"#, DELAY_MILLIS * 1_000_000),
            ),
            (lanes.narrow, format!(r#"{{"Concurrency": {CONCURRENCY}}}"#)),
        ] {
            let source = Uuid::from_u128(id.as_u128() ^ 1);
            let _ = write!(
                sql,
                "insert into SourceConfig (ID, Source, SourceID, OrganizationID, Address, Port, AuthInfo)
                 select '{source}', s.Source, s.ID, o.ID, 'http://{}', {}, '{auth}'
                 from Source s, Organization o where s.Source = 'HTTP';
                 insert into JobConfig (ID, JobID, OrganizationID, DataInSourceConfigID, MaxInstances, MaxAttempts, RetryDelaySeconds)
                 select '{id}', j.ID, o.ID, '{source}', 0, 3, 1 from Job j, Organization o where j.Struct = 'HttpJob';",
                api.ip(),
                api.port(),
            );
        }
        operator.insist(Intent::Config, &sql).await;
        lanes
    }
}
