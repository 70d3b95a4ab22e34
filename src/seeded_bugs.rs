//! Guards taken away one at a time, so that the checker (`examples/chaos`) can prove that it would notice.
//!
//! Only with the cargo feature `seeded-bugs`, which nothing ships with: without it [`is`] is the constant false,
//! and the rest of this file does not exist. The bug is named by `ROSTERD_SEEDED_BUG`.

/// One guard that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "most are known by their name only")]
pub(crate) enum Bug {
    /// A runner is now and then held for dead although its lease is not over.
    ReapEarly,
    /// The stopwatches on the others run on while we are away ourselves.
    ReapAfterOwnGap,
    /// A runner that lost its lease goes on as if it had not.
    LeaseLossUnnoticed,
    /// The gate lets effects pass while the lease has lapsed.
    GateIgnoresLapse,
    /// The gate asks whether this process has a lease, not whether it is the one of this run.
    GateIgnoresRunner,
    /// A run that lost its row is reported all the same, and outcomes are written by the row's ID alone.
    SettleById,
    /// Claims whose answer was lost are not given back.
    UnheardClaimsKept,
    /// Outcomes that could not be written at once are dropped.
    OutcomesDropped,
    /// Daemons that start at once do not wait for each other.
    AutostartUnlocked,
    /// A due schedule is fired without comparing `NextRun`, and nothing makes its rows unique.
    SchedulesUnguarded,
    /// `NextRun` is moved on in one transaction and the rows are inserted in the next.
    DueTimeForgotten,
    /// Nobody looks for cancel requests.
    CancelsUnheard,
    /// A job's own transaction is committed although its row was cancelled meanwhile.
    CommitsAlthoughCancelled,
}

#[cfg(not(feature = "seeded-bugs"))]
#[inline]
pub(crate) const fn is(_: Bug) -> bool {
    false
}

#[cfg(feature = "seeded-bugs")]
pub(crate) use seeded::{changed, insert_scheduled, is, settled};

#[cfg(feature = "seeded-bugs")]
mod seeded {
    use super::Bug;
    use crate::history::moves::Settled;
    use crate::history::{HistoryId, Status};
    use chrono::{DateTime, Utc};
    use sqlx::postgres::PgRow;
    use sqlx::{AssertSqlSafe, PgExecutor, Row};
    use std::sync::LazyLock;

    static ACTIVE: LazyLock<String> =
        LazyLock::new(|| std::env::var("ROSTERD_SEEDED_BUG").unwrap_or_default());

    /// Whether this guard is missing.
    pub(crate) fn is(bug: Bug) -> bool {
        let name = match bug {
            Bug::ReapEarly => "reap-early",
            Bug::ReapAfterOwnGap => "reap-after-own-gap",
            Bug::LeaseLossUnnoticed => "lease-loss-unnoticed",
            Bug::GateIgnoresLapse => "gate-ignores-lapse",
            Bug::GateIgnoresRunner => "gate-ignores-runner",
            Bug::SettleById => "settle-by-id",
            Bug::UnheardClaimsKept => "unheard-claims-kept",
            Bug::OutcomesDropped => "outcomes-dropped",
            Bug::AutostartUnlocked => "autostart-unlocked",
            Bug::SchedulesUnguarded => "schedules-unguarded",
            Bug::DueTimeForgotten => "due-time-forgotten",
            Bug::CancelsUnheard => "cancels-unheard",
            Bug::CommitsAlthoughCancelled => "commits-although-cancelled",
        };
        *ACTIVE == name
    }

    /// Guards in SQL: the bug, the text that is the guard, and what stands there instead.
    const IN_SQL: &[(&str, &[(&str, &str)])] = &[
        (
            "settle-by-id",
            &[(
                "h.ThreadID = $1 and h.ClaimID = f.ClaimID and h.Attempt = f.Attempt and ",
                "$1::uuid is not null and ",
            )],
        ),
        (
            "naive-write",
            &[(
                "h.ThreadID = $1 and h.ClaimID = f.ClaimID and h.Attempt = f.Attempt and h.StatusID in (2, -1)",
                "$1::uuid is not null",
            )],
        ),
        (
            "cancel-ignored-at-settle",
            &[("when o.StatusID = -1 then 5", "when false then 5"), ("o.StatusID = -1 or ", "")],
        ),
        (
            "stop-burns-attempt",
            &[("when n.Verdict in (4, 5) then h.Attempt - 1", "when n.Verdict in (4, 5) then h.Attempt")],
        ),
        (
            "iteration-counted-twice",
            &[("h.CurrentIteration + n.IterationEnds::int", "h.CurrentIteration + 2 * n.IterationEnds::int")],
        ),
        (
            "rescue-of-the-living",
            &[("not exists (select from Runner r where r.ID = k.RunnerID)", "random() < 0.2")],
        ),
        ("rescue-revives-cancelled", &[("when h.StatusID = -1 then 5", "")]),
        ("crash-not-counted", &[("Crashes = h.Crashes + 1,", "Crashes = h.Crashes,")]),
        ("lanes-not-locked", &[("for no key update skip locked", "")]),
    ];

    /// `sql` without the guard that is missing, if it is in there.
    pub(crate) fn changed(sql: &str) -> Option<AssertSqlSafe<String>> {
        let (_, guards) = IN_SQL.iter().find(|(name, _)| *ACTIVE == *name)?;
        let first = guards.first()?;
        sql.contains(first.0).then(|| {
            let text =
                guards.iter().fold(sql.to_owned(), |sql, (guard, instead)| sql.replace(guard, instead));
            AssertSqlSafe(text)
        })
    }

    /// Rows of due times, whoever else makes them too.
    pub(crate) async fn insert_scheduled(
        db: impl PgExecutor<'_>,
        config: uuid::Uuid,
        schedule: uuid::Uuid,
        due_dates: &[DateTime<Utc>],
        not_before: &[DateTime<Utc>],
    ) -> Result<u64, sqlx::Error> {
        let insert = "insert into JobHistory (ConfigID, StatusID, Origin, ScheduleID, DueDate, NotBefore)
             select $1, 1, 'schedule', $2, d.DueDate, d.NotBefore
             from unnest($3::timestamptz[], $4::timestamptz[]) as d (DueDate, NotBefore)";
        let insert = sqlx::query(insert).bind(config).bind(schedule).bind(due_dates).bind(not_before);
        Ok(insert.execute(db).await?.rows_affected())
    }

    /// A row of settle.sql.
    pub(crate) fn settled(row: &PgRow) -> Result<Settled, sqlx::Error> {
        let status: i32 = row.try_get(1)?;
        Ok(Settled {
            id: HistoryId(row.try_get(0)?),
            status: Status::from_id(status).unwrap_or(Status::Error),
            due_seconds: row.try_get(2)?,
            waits: row.try_get(3)?,
        })
    }
}
