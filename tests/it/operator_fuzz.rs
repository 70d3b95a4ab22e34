//! A hundred thousand statements of an operator who types whatever comes to mind, beside a runner at work: the
//! database and a model of it in plain Rust take and refuse the same ones, by the same names, and hold the same rows.

mod generate;
mod model;
mod runner;
mod statement;

use crate::support::TestDb;
use generate::Generator;
use model::{Config, Due, Model, Row, Verdict};
use rosterd::postgres::connect::{Speaker, with_settings};
use runner::Runner;
use sqlx::{Connection, PgConnection};
use statement::{Payload, Statement};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;
use uuid::Uuid;

/// Statements between two looks at every row.
const LOOK_EVERY: usize = 500;

/// Runs each statement as psql would with `ON_ERROR_ROLLBACK`, and says what became of it: the rows it touched, or
/// the name it was refused by. One round trip for many statements, which is what makes a hundred thousand affordable.
const HELPER: &str = r"
create function public.try_each(statements text[])
  returns table (refusal text, touched bigint, made uuid[]) language plpgsql as $f$
declare
  statement text;
  one uuid;
  code text;
begin
  foreach statement in array statements loop
    refusal := null;
    touched := 0;
    made := '{}';
    begin
      if statement like 'select %' or statement like '% returning ID' then
        for one in execute statement loop
          made := made || one;
        end loop;
        touched := cardinality(made);
      else
        execute statement;
        get diagnostics touched = row_count;
      end if;
    exception when others then
      get stacked diagnostics refusal = constraint_name, code = returned_sqlstate;
      refusal := coalesce(nullif(refusal, ''), code);
    end;
    return next;
  end loop;
end $f$";

/// Every column the model knows of, as one text, and NotBefore in two readings.
const ROWS: &str = "
select h.ID,
  concat_ws(' ', h.StatusID, h.Priority, h.Payload, h.Attempt, h.CurrentIteration, h.Crashes, h.Origin,
    coalesce(h.StopReason, '-'), coalesce(h.Identifier, '-'), coalesce(h.ParentJobID::text, '-'), h.ConfigID,
    h.StartedDate is not null, h.FinishedDate is not null, h.WaitingSince is not null,
    h.CancelDate is not null and h.CancelBy = session_user, h.UpdatedDate is not null and h.UpdatedBy = session_user,
    h.Error is not null, h.Ready) as said,
  extract(epoch from h.NotBefore)::bigint as due,
  h.NotBefore > now() + interval '30 minutes' as later
from JobHistory h";

/// What must hold beside the rows: open claims count what is in progress, and each cancel is on order.
const ACCOUNTS: &str = "
select (select coalesce(sum(Open), 0) from Claim) = (select count(*) from JobHistory where StatusID in (2, -1))
   and (select count(*) from CancelRequest) = (select count(*) from JobHistory where StatusID = -1)";

struct Fuzz {
    seed: u64,
    operator: PgConnection,
    runner: Runner,
    model: Model,
    generator: Generator,
    /// Statements not sent yet, each with the model's verdict.
    batch: Vec<(String, Verdict)>,
    log: Vec<String>,
    tally: BTreeMap<String, usize>,
}

/// Runs `count` statements from this seed on a database of its own, on which `sabotage` was run before. `Err` is the
/// first difference, with all that is needed to look into it.
fn fuzz(seed: u64, count: usize, sabotage: &str) -> Result<BTreeMap<String, usize>, String> {
    let mut db = TestDb::new();
    db.exec(HELPER);
    if !sabotage.is_empty() {
        db.exec(sabotage);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connect = async |speaker| {
            let options = with_settings(db.options.clone(), "test", speaker, Duration::from_mins(1));
            PgConnection::connect_with(&options).await.unwrap()
        };
        let mut operator = connect(Speaker::Operator).await;
        let configs = configurations(&mut operator, seed).await;
        let known = configs.iter().map(|(id, config)| (*id, config.job, config.organization)).collect();
        let mut generator = Generator::new(seed, known);
        let runner = Runner::new(connect(Speaker::Runner).await, &mut generator).await;
        let model = Model { configs, ..Model::default() };
        let (batch, log, tally) = Default::default();
        let mut fuzz = Fuzz { seed, operator, runner, model, generator, batch, log, tally };
        fuzz.run(count).await.map(|()| fuzz.tally)
    })
}

impl Fuzz {
    async fn run(&mut self, count: usize) -> Result<(), String> {
        let mut next_look = LOOK_EVERY;
        while self.log.len() + self.batch.len() < count {
            match self.generator.rng.u32(0..100) {
                0..2 => self.transaction().await?,
                2..9 => {
                    self.send().await?;
                    let step = self.runner.step(&mut self.model, &mut self.generator).await;
                    step.map_err(|said| self.report("a runner's move", &said))?;
                }
                _ => {
                    let statement = self.generator.statement(true);
                    let verdict = self.model.apply(&statement);
                    self.count(&statement, &verdict);
                    self.batch.push((statement.to_string(), verdict));
                    if self.batch.len() >= 50 || !self.model.unnamed.is_empty() {
                        self.send().await?;
                    }
                }
            }
            if self.log.len() >= next_look {
                next_look += LOOK_EVERY;
                self.look().await?;
            }
        }
        self.send().await?;
        self.look().await
    }

    /// Puts the batch to the database and compares the verdicts.
    async fn send(&mut self) -> Result<(), String> {
        let (texts, verdicts): (Vec<String>, Vec<Verdict>) =
            std::mem::take(&mut self.batch).into_iter().unzip();
        let answers: Vec<(Option<String>, i64, Vec<Uuid>)> =
            sqlx::query_as("select refusal, touched, made from public.try_each($1)")
                .bind(&texts)
                .fetch_all(&mut self.operator)
                .await
                .map_err(|error| self.report(&texts.join(";\n"), &format!("the batch failed: {error}")))?;
        let mut newest = Vec::new();
        for ((text, verdict), (refusal, touched, made)) in texts.into_iter().zip(verdicts).zip(answers) {
            self.log.push(text.clone());
            let agreed = match (&verdict, &refusal) {
                (Verdict::Refused(names), Some(name)) => names.contains(name.as_str()),
                (Verdict::Taken(rows), None) => usize::try_from(touched) == Ok(*rows),
                _ => false,
            };
            if !agreed {
                let said = format!("the database: {refusal:?}, {touched} rows; the model: {verdict:?}");
                return Err(self.report(&text, &said));
            }
            newest = made;
        }
        // Only the last statement of a batch has rows without a name, among those it made.
        let mut strangers =
            newest.into_iter().filter(|id| !self.model.rows.contains_key(id)).collect::<Vec<_>>();
        for placeholder in std::mem::take(&mut self.model.unnamed).into_iter().rev() {
            let row = self.model.rows.remove(&placeholder);
            let (Some(id), Some(row)) = (strangers.pop(), row) else {
                return Err(self.report("the last statement", "the database made other rows than the model"));
            };
            self.model.rows.insert(id, row);
            self.generator.known.push(id);
        }
        let rows_in = |statuses: &[i32]| {
            let rows = self.model.rows.iter().filter(|(_, row)| statuses.contains(&row.status));
            rows.map(|(id, _)| *id).collect()
        };
        (self.generator.waiting, self.generator.running) = (rows_in(&[1]), rows_in(&[2, -1]));
        Ok(())
    }

    /// Several statements in one transaction, sent as an operator's script is, without the helper: the first refusal
    /// undoes them all, and so does a ROLLBACK.
    async fn transaction(&mut self) -> Result<(), String> {
        self.send().await?;
        let before = self.model.clone();
        let mut script = "begin".to_owned();
        let mut refusal = None;
        for _ in 0..self.generator.rng.usize(2..6) {
            let statement = self.generator.statement(false);
            let verdict = self.model.apply(&statement);
            let _ = write!(script, ";\n{statement}");
            self.count(&statement, &verdict);
            self.log.push(format!("(in a transaction) {statement}"));
            if let Verdict::Refused(names) = verdict {
                refusal = Some(names);
                break;
            }
        }
        let commits = refusal.is_none() && self.generator.percent(40);
        script += if commits { ";\ncommit" } else { ";\nrollback" };
        self.log.push(format!("({})", if commits { "commit" } else { "rollback" }));
        let answer = sqlx::raw_sql(sqlx::AssertSqlSafe(script.clone())).execute(&mut self.operator).await;
        let name = answer.as_ref().err().map(name_of);
        let agreed = match (&name, &refusal) {
            (None, None) => true,
            (Some(name), Some(names)) => names.contains(name.as_str()),
            _ => false,
        };
        if !agreed {
            return Err(self.report(&script, &format!("the database: {name:?}; the model: {refusal:?}")));
        }
        if !commits {
            self.model = before;
        }
        if answer.is_err() {
            sqlx::raw_sql("rollback").execute(&mut self.operator).await.unwrap();
        }
        Ok(())
    }

    /// Compares every row.
    async fn look(&mut self) -> Result<(), String> {
        self.send().await?;
        let rows: Vec<(Uuid, String, i64, bool)> =
            sqlx::query_as(ROWS).fetch_all(&mut self.operator).await.unwrap();
        for (id, said, due, later) in &rows {
            let wanted = self.model.rows.get(id);
            let same_due = wanted.is_some_and(|row| match row.due {
                Due::At(seconds) => seconds == *due,
                Due::Now => !later,
                Due::Later => *later,
            });
            if wanted.map(text_of).as_ref() != Some(said) || !same_due {
                let both = format!(
                    "the database has {said}, due {due}\n   the model has {}, due {:?}",
                    wanted.map_or_else(|| "no such row".to_owned(), text_of),
                    wanted.map(|row| row.due)
                );
                return Err(self.report(&format!("row {id}"), &both));
            }
            if let Some(row) = wanted {
                *self.tally.entry(format!("rows seen in status {}", row.status)).or_default() += 1;
            }
        }
        if rows.len() != self.model.rows.len() {
            let said = format!("the database has {} rows, the model {}", rows.len(), self.model.rows.len());
            return Err(self.report("all rows", &said));
        }
        let accounts: bool = sqlx::query_scalar(ACCOUNTS).fetch_one(&mut self.operator).await.unwrap();
        if accounts {
            Ok(())
        } else {
            Err(self.report("Claim and CancelRequest", "they do not fit the rows"))
        }
    }

    fn count(&mut self, statement: &Statement, verdict: &Verdict) {
        let kind = match statement {
            Statement::Insert(_) => "insert",
            Statement::Update(..) => "update",
            Statement::Delete(_) => "delete",
            Statement::Rerun(_) => "rerun",
            Statement::Configure(..) => "configure",
            Statement::Nonsense(..) => "nonsense",
        };
        let outcome = match verdict {
            Verdict::Taken(0) => "no row".to_owned(),
            Verdict::Taken(_) => "taken".to_owned(),
            Verdict::Refused(names) => names.iter().copied().collect::<Vec<_>>().join(" or "),
        };
        *self.tally.entry(format!("{kind}: {outcome}")).or_default() += 1;
    }

    /// The difference, and what led to it: whatever named the same rows before, and the last statements.
    fn report(&self, what: &str, said: &str) -> String {
        let named: Vec<&str> = what.split('\'').filter(|part| part.len() == 36).collect();
        let named =
            if named.is_empty() { what.split(' ').filter(|part| part.len() == 36).collect() } else { named };
        let mut text = format!("seed {}, statement {}: {what}\n   {said}\n", self.seed, self.log.len());
        let last = self.log.len().saturating_sub(10);
        text += "what named the same rows or configurations, and the last ten statements:\n";
        let of_the_rows = |line: &&String| {
            named.iter().any(|id| line.contains(id) && !line.starts_with("update JobConfig"))
        };
        let mut biography: Vec<(usize, &String)> =
            self.log[..last].iter().enumerate().filter(|(_, line)| of_the_rows(line)).collect();
        let skip = biography.len().saturating_sub(30);
        biography.drain(..skip);
        biography.extend(self.log.iter().enumerate().skip(last));
        for (n, line) in biography {
            let _ = writeln!(text, "{:>7}  {}", n + 1, line.chars().take(600).collect::<String>());
        }
        text
    }
}

/// As `ROWS` has it.
fn text_of(row: &Row) -> String {
    let flag = |yes: bool| if yes { "t" } else { "f" };
    let payload = match &row.payload {
        Payload::Good(0) => "{}".to_owned(),
        Payload::Good(n) => format!("{{\"n\": {n}}}"),
        Payload::Bad(text) => (*text).to_owned(),
    };
    format!(
        "{} {} {payload} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}",
        row.status,
        row.priority,
        row.attempt,
        row.iteration,
        row.crashes,
        row.origin,
        row.stop_reason.unwrap_or("-"),
        row.identifier.as_deref().unwrap_or("-"),
        row.parent.map_or_else(|| "-".to_owned(), |id| id.to_string()),
        row.config,
        flag(row.started),
        flag(row.status >= 3),
        flag(row.waiting),
        flag(row.cancelled),
        flag(row.edited),
        flag(row.failed),
        flag(row.status == 1),
    )
}

/// The constraint an error names, or else its SQLSTATE.
fn name_of(error: &sqlx::Error) -> String {
    let Some(error) = error.as_database_error() else { return error.to_string() };
    error.constraint().map_or_else(|| error.code().unwrap_or_default().into_owned(), ToOwned::to_owned)
}

/// Four configurations of three jobs in two organizations.
async fn configurations(db: &mut PgConnection, seed: u64) -> BTreeMap<Uuid, Config> {
    let named = |n: u128| Uuid::from_u128((u128::from(seed) << 16) + n);
    let plain = Config {
        job: 1,
        organization: named(1),
        priority: 5,
        max_instances: 0,
        max_attempts: 1,
        error_on_loss: false,
        continuous: false,
        wait: 3600,
        active: true,
    };
    let configs = BTreeMap::from([
        (named(11), Config { max_attempts: 3, ..plain.clone() }),
        (named(12), Config { job: 2, priority: 2, error_on_loss: true, ..plain.clone() }),
        (
            named(13),
            Config { job: 2, organization: named(2), priority: 9, max_instances: 3, ..plain.clone() },
        ),
        (named(14), Config { job: 3, continuous: true, max_attempts: 2, ..plain }),
    ]);
    for n in 1..=2 {
        sqlx::query("insert into Organization (ID, Code) values ($1, $2)")
            .bind(named(n))
            .bind(n.to_string())
            .execute(&mut *db)
            .await
            .unwrap();
    }
    for n in 1..=3 {
        sqlx::query("insert into Job (ID, Struct) overriding system value values ($1, $2)")
            .bind(n)
            .bind(format!("Fuzzed{n}Job"))
            .execute(&mut *db)
            .await
            .unwrap();
    }
    for (id, config) in &configs {
        let insert = sqlx::query(
            "insert into JobConfig (ID, JobID, OrganizationID, PriorityOverride, MaxInstances, MaxAttempts,
               RetryDelaySeconds, OnRunnerLoss, Continuous, WaitInSeconds)
             values ($1, $2, $3, $4, $5, $6, 0, $7, $8, $9)",
        );
        insert
            .bind(id)
            .bind(config.job)
            .bind(config.organization)
            .bind(config.priority)
            .bind(i32::try_from(config.max_instances).unwrap())
            .bind(config.max_attempts)
            .bind(if config.error_on_loss { "error" } else { "retry" })
            .bind(config.continuous)
            .bind(config.wait)
            .execute(&mut *db)
            .await
            .unwrap();
    }
    configs
}

#[test]
fn a_hundred_thousand_statements_are_taken_and_refused_as_the_model_has_it() {
    let workers: Vec<_> = (1..=4).map(|seed| std::thread::spawn(move || fuzz(seed, 25_000, ""))).collect();
    let mut tally: BTreeMap<String, usize> = BTreeMap::new();
    for worker in workers {
        for (what, times) in worker.join().unwrap().unwrap_or_else(|difference| panic!("{difference}")) {
            *tally.entry(what).or_default() += times;
        }
    }
    let all = tally.iter().fold(String::new(), |all, (what, times)| format!("{all}{times:>8}  {what}\n"));
    eprintln!("{all}");
    // Agreement about what never happens would be worth nothing.
    for status in [-1, 1, 2, 3, 4, 5] {
        assert!(
            tally.get(&format!("rows seen in status {status}")).is_some_and(|seen| *seen > 200),
            "{status}: {all}"
        );
    }
    for rule in [
        "insert: taken",
        "insert: jobhistory_config_exists",
        "insert: jobhistory_new_row_is_pending",
        "insert: jobhistory_notbefore_is_a_date",
        "insert: jobhistory_parent_exists",
        "insert: jobhistory_parent_is_not_cancelled",
        "insert: jobhistory_payload_is_acceptable",
        "insert: jobhistory_pkey",
        "update: taken",
        "update: no row",
        "update: jobhistory_finished_rows_never_change",
        "update: jobhistory_moves_are_legal",
        "update: jobhistory_notbefore_is_a_date",
        "update: jobhistory_payload_is_acceptable",
        "delete: taken",
        "delete: jobhistory_live_rows_are_not_deleted",
        "delete: jobhistory_parent_exists",
        "rerun: taken",
        "rerun: jobhistory_rerun_takes_a_finished_row",
        "configure: taken",
        "configure: jobconfig_waitinseconds_is_0_to_31536000",
    ] {
        assert!(tally.get(rule).is_some_and(|times| *times > 50), "{rule}: {all}");
    }
}

/// A guard with one branch altered: the function, and what is put in place of what.
const SABOTAGES: [(&str, &str, &str); 10] = [
    ("guard_job_history", "if old.StatusID in (3, 4, 5) then", "if old.StatusID in (3, 4) then"),
    ("guard_job_history", "if old.StatusID in (1, 2, -1) then", "if old.StatusID in (2, -1) then"),
    ("guard_job_history", "if new is distinct from old then", "if false then"),
    ("guard_job_history", "case when old.StartedDate is null", "case when true"),
    ("guard_job_history", "'{priority,payload,", "'{priority,stopreason,payload,"),
    ("follow_cancel", "StatusID in (1, 2)", "StatusID = 1"),
    ("fill_job_history", "if parent_status in (-1, 5) then", "if parent_status = 5 then"),
    ("fill_job_history", "new.Crashes := 0;", ""),
    ("apply_job_config", "case when Error is null then 3 else 4 end", "3"),
    ("rerun", "was.StatusID in (1, 2, -1)", "was.StatusID in (2, -1)"),
];

#[test]
fn a_guard_with_one_branch_altered_is_found_out() {
    let hunts: Vec<_> = SABOTAGES
        .into_iter()
        .map(|(function, from, to)| {
            // The replacement must be one: a sabotage that alters nothing would be a test that proves nothing.
            let sabotage = format!(
                "do $do$
                 declare whole text := pg_get_functiondef('vm.{function}'::regproc);
                 begin
                   if strpos(whole, $from${from}$from$) = 0 then raise 'there is no such branch'; end if;
                   execute replace(whole, $from${from}$from$, $to${to}$to$);
                 end $do$"
            );
            (function, from, std::thread::spawn(move || fuzz(7, 5_000, &sabotage)))
        })
        .collect();
    for (function, from, hunt) in hunts {
        let Err(difference) = hunt.join().unwrap() else {
            panic!("{function} without {from:?} went unnoticed")
        };
        let place = difference.lines().next().unwrap_or_default();
        assert!(place.starts_with("seed 7, statement "), "{difference}");
        eprintln!("{function} without {from:?}: {place}");
    }
}
