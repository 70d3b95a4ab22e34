//! The statements of the engine stay on their indexes, whatever stands in the table.

use super::restart::{embedded_daemon, psql, state_folder, wait_psql};
use crate::support::{FROM_THE_START, Session, TestDb};
use rosterd::postgres::connect::Speaker;

const CLAIM: &str = include_str!("../../src/history/claim.sql");
const CLAIM_AROUND: &str = include_str!("../../src/history/claim_around.sql");
const TICK: &str = include_str!("../../src/history/tick.sql");
const SETTLE: &str = include_str!("../../src/history/settle.sql");
const SUSPECTS: &str = include_str!("../../src/history/suspects.sql");
const CLAIM_ALONE: &str = include_str!("../../src/history/claim_alone.sql");
const RESCUE: &str = include_str!("../../src/history/rescue.sql");

const NIL: &str = "00000000-0000-0000-0000-000000000000";

/// So many finished rows, 3,000 parked behind a full configuration, 100 due ones; analyzed.
fn filled(finished: u32) -> (TestDb, String, String) {
    let mut db = TestDb::new();
    let free = db.config("NoopJob", "MaxInstances", "0");
    let parked = db.config("SleepJob", "MaxInstances", "1");
    db.session(Speaker::Runner).exec(&format!(
        "set session_replication_role = replica;
         insert into JobHistory (JobID, ConfigID, OrganizationID, StatusID, Priority, Payload, NotBefore, Attempt, ThreadID,
           ClaimID, StartedDate, FinishedDate, CreatedDate, CreatedBy)
           select c.JobID, c.ID, c.OrganizationID, 3, 5, '{{}}', now(), 1, '{NIL}', 0, now(), now(), now(), 'x'
           from JobConfig c, generate_series(1, {finished}) where c.ID = '{free}';
         set session_replication_role = origin;
         insert into JobHistory (ConfigID, StatusID) select '{parked}', 1 from generate_series(1, 3000);
         insert into JobHistory (ConfigID, StatusID) select '{free}', 1 from generate_series(1, 100);
         insert into Claim (RunnerID, ConfigID, HistoryIDs, Open) values ('{NIL}', '{parked}', '{{}}', 1);
         insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers) values ('{NIL}', 'x', 1, '1', 1000, 1)"
    ));
    db.exec("vacuum analyze JobHistory");
    db.exec("analyze");
    (db, free, parked)
}

fn explain(session: &mut Session, statement: &str, arguments: &str) -> String {
    session.exec("set plan_cache_mode = force_generic_plan");
    session.exec("deallocate all");
    session.exec(&format!("prepare s as {statement}"));
    let arguments = if arguments.is_empty() { String::new() } else { format!("({arguments})") };
    session.exec(&format!("explain (format json) execute s{arguments}"))
}

fn assert_on_indexes(plan: &str, indexes: &[&str]) {
    for index in indexes {
        assert!(plan.contains(&format!(r#""Index Name": "{index}""#)), "no {index} in {plan}");
    }
    let compact: String = plan.split_whitespace().collect();
    for node in compact.split("\"NodeType\":\"SeqScan\"").skip(1) {
        let relation = node.split("\"RelationName\":\"").nth(1).and_then(|rest| rest.split('"').next());
        assert_ne!(relation, Some("jobhistory"), "a sequential scan of JobHistory in {plan}");
    }
    // With a whole batch beside the one ID of a row, each row of the batch costs as much as the batch is long.
    for condition in plan.lines().filter(|line| line.contains("\"Index Cond\"")) {
        let both = condition.contains("= ANY (") && condition.matches("(id = ").count() > 1;
        assert!(!both, "each row is looked for in the whole batch: {condition}");
    }
}

#[test]
fn the_engines_statements_use_the_indexes_made_for_them_beside_a_million_finished_rows() {
    let (db, free, parked) = filled(1_000_000);
    let mut session = db.session(Speaker::Runner);
    let claim = format!("'{NIL}', array['{free}', '{parked}']::uuid[], 100, array['{parked}']::uuid[], 2");
    let from_start = format!("{claim}, {FROM_THE_START}");
    let plan = explain(&mut session, CLAIM, &from_start);
    assert_on_indexes(&plan, &["jobhistory_lane", "jobhistory_pkey"]);
    // A claim that goes on behind the last one begins there in the index.
    let mut conditions = plan.lines().filter(|line| line.contains("\"Index Cond\""));
    assert!(conditions.any(|line| line.contains("ROW(priority, notbefore, id) > ROW(")), "{plan}");
    assert_on_indexes(&explain(&mut session, CLAIM_AROUND, &claim), &["jobhistory_lane", "jobhistory_pkey"]);
    let tick = "(select array_agg(ID) from Job)".to_owned();
    let tick = session.exec(&format!("select quote_literal({tick}::text)"));
    let indexes = ["jobhistory_lane", "jobhistory_due", "jobhistory_suspect"];
    assert_on_indexes(&explain(&mut session, TICK, &format!("{tick}, 2")), &indexes);
    let suspects = explain(&mut session, SUSPECTS, &format!("{tick}, '{{}}', 4"));
    assert_on_indexes(&suspects, &["jobhistory_suspect"]);
    let alone = explain(&mut session, CLAIM_ALONE, &format!("'{NIL}', '{NIL}', true"));
    assert_on_indexes(&alone, &["jobhistory_pkey"]);
    let settle = format!(
        "'{NIL}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', 60"
    );
    assert_on_indexes(&explain(&mut session, SETTLE, &settle), &["jobhistory_pkey"]);
    assert_on_indexes(&explain(&mut session, RESCUE, ""), &["jobhistory_pkey"]);
    // Cancels are polled for in a table of their own, which holds no more than what runs.
    let cancels =
        explain(&mut session, "select HistoryID from CancelRequest where RunnerID = $1", &format!("'{NIL}'"));
    assert!(!cancels.contains("jobhistory"), "{cancels}");
}

#[test]
fn finishing_a_row_is_a_heap_only_update() {
    // A server of its own: a transaction that is open anywhere on a server keeps old versions of rows on their
    // pages, and other tests hold such transactions. The jobs say no progress, which is written too, and run long
    // enough that no snapshot from before their claim is left.
    let folder = state_folder();
    let mut daemon = embedded_daemon(folder.path());
    daemon.wait_line("rosterd is ready");
    psql(
        &daemon,
        r#"insert into Organization (Code) values ('ACME');
           insert into JobConfig (JobID, OrganizationID, MaxInstances, Payload)
           select j.ID, o.ID, 0, '{"seconds": 1}' from Job j, Organization o where Struct = 'StubbornJob';
           insert into JobHistory (ConfigID, StatusID) select ID, 1 from JobConfig, generate_series(1, 1000)"#,
    );
    wait_psql(&daemon, "select count(*) from JobHistory where StatusID = 3", "1000");
    // Claiming leaves the lane's index, so only the second of the two updates of a row can be heap-only. Sessions
    // publish their counters when they have been idle for a moment, at the latest when they end.
    psql(
        &daemon,
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'rosterd%'",
    );
    let counters = "from pg_stat_user_tables where relname = 'jobhistory'";
    wait_psql(&daemon, &format!("select n_tup_upd >= 2000 {counters}"), "t");
    let hot: u32 = psql(&daemon, &format!("select n_tup_hot_upd {counters}")).parse().unwrap();
    assert!(hot >= 900, "{hot} of 1,000 rows finished by a heap-only update");
    assert!(daemon.stop().success());
}

#[test]
#[allow(clippy::print_stdout, reason = "timings are for people")]
fn rows_parked_behind_a_full_configuration_do_not_slow_the_claims_of_others() {
    let (mut db, free, parked) = filled(50_000);
    let mut session = db.session(Speaker::Runner);
    let jobs = session.exec("select quote_literal(array_agg(ID)::text) || ', 2' from Job");
    session.exec("set plan_cache_mode = force_generic_plan");
    session.exec(&format!("prepare tick as {TICK}"));
    session.exec(&format!("prepare claim as {CLAIM}"));
    // Pages touched by a tick and a claim of one row, rolled back.
    let pages = |session: &mut Session| -> i64 {
        let mut read = |statement: &str| -> i64 {
            session.exec("begin");
            let plan: serde_json::Value = serde_json::from_str(
                &session.exec(&format!("explain (analyze, buffers, format json) {statement}")),
            )
            .unwrap();
            session.exec("rollback");
            ["Shared Hit Blocks", "Shared Read Blocks"]
                .iter()
                .map(|key| plan[0]["Plan"][key].as_i64().unwrap())
                .sum()
        };
        read(&format!("execute tick({jobs})"))
            + read(&format!(
                "execute claim('{NIL}', array['{free}']::uuid[], 1, '{{}}', 2, {FROM_THE_START})"
            ))
    };
    pages(&mut session);
    let before = pages(&mut session);
    db.session(Speaker::Runner).exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) select '{parked}', 1 from generate_series(1, 97000)"
    ));
    db.exec("vacuum analyze JobHistory");
    pages(&mut session);
    let after = pages(&mut session);
    println!("a tick and a claim touch {before} pages beside 3,000 parked rows and {after} beside 100,000");
    assert!(after <= 2 * before, "{before} pages, then {after}");
}

#[test]
fn statements_that_were_planned_on_an_empty_table_do_not_walk_over_a_full_one() {
    plan_and_fill("");
}

#[test]
fn statements_that_were_planned_on_a_table_of_ten_analyzed_rows_do_not_walk_over_a_full_one() {
    plan_and_fill("vacuum analyze");
}

/// Has the statements planned, on ten rows behind `prepared`, and then fills the table.
#[allow(clippy::print_stdout, reason = "figures are for people")]
fn plan_and_fill(prepared: &str) {
    let mut db = TestDb::new();
    db.exec("alter table JobHistory set (autovacuum_enabled = false)");
    let free = db.config("NoopJob", "MaxInstances", "0");
    let parked = db.config("SleepJob", "MaxInstances", "1");
    let runner = NIL;
    let register = format!(
        "insert into Runner (ID, Host, PID, Version, LeaseSeconds, Workers) values ('{runner}', 'x', 1, '1', 1000, 1)"
    );
    db.exec(&register);
    let mut session = db.session(Speaker::Runner);
    session.exec("set plan_cache_mode = force_generic_plan");
    let jobs = session.exec("select quote_literal(array_agg(ID)::text) || ', 2' from Job");
    let claim = format!("'{runner}', array['{free}', '{parked}']::uuid[], 2, array['{parked}']::uuid[], 2");
    let statements =
        [("tick", TICK), ("claim", CLAIM), ("around", CLAIM_AROUND), ("settle", SETTLE), ("rescue", RESCUE)];
    for (name, sql) in statements {
        session.exec(&format!("prepare {name} as {sql}"));
    }
    let settle = |session: &mut Session, claim: &str| {
        let of = |column: &str| {
            format!("(select array_agg({column} order by ID) from JobHistory where ClaimID = {claim})")
        };
        let sql = format!(
            "select format($f$%L, %L, %L, %L, '{{0,0}}', '{{null,null}}', '{{null,null}}', '{{null,null}}', '{{null,null}}',
               '{{0.5,0.5}}', '{{%s}}', 60$f$, '{runner}', {}, {}, {}, '{free}')",
            of("ID"), of("ClaimID"), of("Attempt")
        );
        session.exec(&sql)
    };
    let round = |session: &mut Session| -> Vec<(String, i64)> {
        let mut pages = Vec::new();
        let mut run = |session: &mut Session, name: &str, arguments: &str| {
            let arguments = if arguments.is_empty() { String::new() } else { format!("({arguments})") };
            let plan =
                session.exec(&format!("explain (analyze, buffers, format json) execute {name}{arguments}"));
            let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
            let touched = ["Shared Hit Blocks", "Shared Read Blocks"];
            let touched = touched.iter().map(|key| plan[0]["Plan"][key].as_i64().unwrap()).sum();
            pages.push((format!("{name}: {plan}"), touched));
        };
        run(session, "tick", &jobs);
        run(session, "claim", &format!("{claim}, {FROM_THE_START}"));
        let arguments = settle(session, "(select max(ID) from Claim)");
        run(session, "settle", &arguments);
        run(session, "around", &claim);
        session.exec("delete from Runner");
        run(session, "rescue", "");
        session.exec(&register);
        pages
    };
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) select '{free}', 1 from generate_series(1, 10)"
    ));
    db.exec(prepared);
    round(&mut session);
    db.session(Speaker::Runner).exec(&format!(
        "insert into Claim (RunnerID, ConfigID, HistoryIDs, Open) values ('{runner}', '{parked}', '{{}}', 1);
         insert into JobHistory (ConfigID, StatusID) select '{parked}', 1 from generate_series(1, 30000)"
    ));
    let pages = round(&mut session);
    for (plan, touched) in pages {
        println!("{touched} pages were touched by {}", plan.split(':').next().unwrap());
        assert!(touched < 200, "{touched} pages were touched by {plan}");
    }
}
