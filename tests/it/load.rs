//! Much at once: many daemons, many rows, many operators, and jobs that hold every connection they can get.

use crate::support::{COMPUTED, Daemon, SOON, Session, TestDb, meanwhile, own_jobs_binary};
use rosterd::postgres::connect::{Speaker, with_settings};
use sqlx::{Connection, PgConnection};
use std::process::Command;
use std::time::{Duration, Instant};

const QUIET: (&str, &str) = ("ROSTERD__LOG__LEVEL", "warn");

fn insert_many(db: &mut TestDb, config: &str, count: usize) {
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, {count})"
    ));
}

#[test]
#[allow(clippy::print_stdout, reason = "timings are for people")]
fn eight_daemons_that_start_before_ten_thousand_rows_stay_within_their_connections() {
    const DAEMONS: usize = 8;
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    insert_many(&mut db, &config, 10_000);
    let mut watcher = db.session(Speaker::Operator);
    let mut most = 0;
    let watch = || {
        let now = watcher.exec(
            "select count(*) from pg_stat_activity
             where datname = current_database() and application_name not in ('rosterd test', 'rosterd session')",
        );
        most = most.max(now.parse::<usize>().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    };
    let began = Instant::now();
    let daemons = meanwhile(watch, || {
        let start = || {
            let mut command = Command::new(own_jobs_binary());
            command.args(["run", "--listen", "off"]).env("DATABASE_URL", db.url()).envs([QUIET]);
            command.env("ROSTERD__DATABASE__MAX_CONNECTIONS", "2");
            Daemon::spawn(command)
        };
        let daemons: Vec<Daemon> = (0..DAEMONS).map(|_| start()).collect();
        db.wait_count(&config, 3, 10_000);
        for daemon in &daemons {
            daemon.wait_line("rosterd is ready");
        }
        daemons
    });
    println!(
        "8 daemons ended 10,000 rows {:.1?} after their start, with {most} connections at most",
        began.elapsed()
    );
    // docs/operating.md: seven, and the pool of the jobs.
    assert!(most <= DAEMONS * (7 + 2), "{most} connections");
    assert_eq!(db.text("select count(*) from JobHistory where Attempt = 1 and Crashes = 0"), "10000");
    for daemon in &daemons {
        let said = daemon.output();
        assert!(!said.contains("53300") && !said.contains("too many"), "{said}");
    }
}

/// An operator who may be refused, as [`Session`] is not.
async fn operator(db: &TestDb) -> PgConnection {
    let options = with_settings(db.options.clone(), "session", Speaker::Operator, Duration::from_mins(1));
    PgConnection::connect_with(&options).await.unwrap()
}

/// Cancels these rows one after the other in one transaction. True if it was committed.
async fn cancel_in_this_order(db: &mut PgConnection, rows: &[String], isolation: &str) -> bool {
    let mut statements = vec![format!("begin isolation level {isolation}")];
    statements.extend(rows.iter().map(|id| format!("update JobHistory set StatusID = -1 where ID = '{id}'")));
    statements.push("commit".to_owned());
    for statement in statements {
        if let Err(error) = sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut *db).await {
            let code = error
                .as_database_error()
                .and_then(sqlx::error::DatabaseError::code)
                .unwrap_or_default()
                .into_owned();
            assert!(["40P01", "40001"].contains(&code.as_str()), "{error}");
            sqlx::raw_sql("rollback").execute(&mut *db).await.unwrap();
            return false;
        }
    }
    true
}

#[test]
#[allow(clippy::print_stdout, reason = "figures are for people")]
fn operators_who_cancel_in_random_order_deadlock_at_most_with_each_other() {
    let mut db = TestDb::new();
    // The clients' deadlocks are found at once, so that the test has many of them.
    db.exec(&format!("alter database {} set deadlock_timeout = '20ms'", db.name));
    let free = db.config("SleepJob", "MaxInstances, Payload", r#"0, '{"seconds": 0.3}'"#);
    let limited = db.config("SleepJob", "MaxInstances, Payload", r#"30, '{"seconds": 0.02}'"#);
    let daemons: Vec<Daemon> = (0..2).map(|_| Daemon::start_with(&db, &[QUIET])).collect();
    let mut wanted: Vec<String> = Vec::new();
    for config in [&free, &limited] {
        let ids = db.rows(&format!(
            "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 400) returning ID"
        ));
        wanted.extend(ids.unwrap().into_iter().flatten().step_by(2));
    }
    let (retries, acknowledged) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8_usize)
            .map(|client| {
                let (db, wanted) = (&db, &wanted);
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let mut session = operator(db).await;
                        let (mut retries, mut done) = (0, Vec::new());
                        let isolation = if client % 4 == 3 { "serializable" } else { "read committed" };
                        for round in 0..12 {
                            // Another set and another order for each, overlapping the others'.
                            let step = [7, 11, 13, 17, 19, 23, 29, 31][(client + round) % 8];
                            let some: Vec<String> = (0..25)
                                .map(|n| wanted[(round * 33 + n * step) % wanted.len()].clone())
                                .collect();
                            while !cancel_in_this_order(&mut session, &some, isolation).await {
                                retries += 1;
                            }
                            done.extend(some);
                        }
                        (retries, done)
                    })
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).fold((0, Vec::new()), |mut all, one| {
            all.0 += one.0;
            all.1.extend(one.1);
            all
        })
    });
    db.wait_for("select count(*) from JobHistory where StatusID in (1, 2, -1)", "0", SOON);
    let cancelled: i32 = db.text("select count(*) from JobHistory where StatusID = 5").parse().unwrap();
    println!("{retries} transactions of operators were tried again, {cancelled} rows were cancelled");
    assert!(retries > 0 && cancelled > 50, "{retries} retries, {cancelled} cancelled: no trial at all");
    // Whoever was not cancelled ran once; nobody was cancelled without having been asked to.
    assert_eq!(
        db.text("select count(*) from JobHistory where StatusID not in (3, 5) or Attempt > 1 or Crashes > 0"),
        "0"
    );
    assert_eq!(
        db.text(&format!(
            "select count(*) from JobHistory where StatusID = 5 and ID <> all('{{{}}}')",
            acknowledged.join(",")
        )),
        "0"
    );
    assert_eq!(db.text("select coalesce(sum(Open), 0) from Claim"), "0");
    for daemon in &daemons {
        let said = daemon.output();
        assert!(!said.contains("deadlock") && !said.contains("is away"), "{said}");
    }
}

#[test]
fn jobs_that_hold_every_connection_of_their_pool_hold_up_neither_pulse_nor_cancel_nor_claims() {
    let mut db = TestDb::new();
    let hold = db.config("HoldJob", "MaxInstances", "0");
    let sleep = db.config("SleepJob", "MaxInstances", "0");
    let _daemon = Daemon::start_with(
        &db,
        &[("ROSTERD__DATABASE__MAX_CONNECTIONS", "5"), ("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.2"), QUIET],
    );
    insert_many(&mut db, &hold, 50);
    db.wait_for("select count(*) from JobHistory where Progress = 'holds a connection'", "5", SOON);
    assert_eq!(
        db.text(&format!("select count(*) from JobHistory where ConfigID = '{hold}' and StatusID = 2")),
        "50"
    );
    let began = Instant::now();
    let mut beats: Vec<Instant> = vec![began];
    let mut seq = db.text("select Seq from Runner");
    while began.elapsed() < Duration::from_secs(2) {
        let id = db.insert(&sleep, "{}");
        let inserted = Instant::now();
        db.wait_status(&id, 2);
        assert!(inserted.elapsed() < Duration::from_secs(1), "a claim took {:?}", inserted.elapsed());
        db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
        let cancelled = Instant::now();
        db.wait_status(&id, 5);
        assert!(cancelled.elapsed() < Duration::from_secs(1), "a cancel took {:?}", cancelled.elapsed());
        let now = db.text("select Seq from Runner");
        if now != seq {
            seq = now;
            beats.push(Instant::now());
        }
    }
    let late = beats.windows(2).map(|two| two[1] - two[0]).max().unwrap_or(SOON);
    assert!(late < Duration::from_millis(1200), "a beat was {late:?} after the one before");
    // Those that hold one stop when told to, and so do those that wait for one.
    db.exec("update JobHistory set StatusID = -1 where StatusID = 2");
    db.wait_count(&hold, 5, 50);
}

/// Milliseconds from INSERT to start of one row after the other, sorted.
fn latencies(db: &mut TestDb, config: &str, count: usize) -> Vec<f64> {
    let mut waits: Vec<f64> = (0..count)
        .map(|_| {
            let id = db.insert(config, "{}");
            db.wait_status(&id, 3);
            db.column(&id, "extract(epoch from StartedDate - CreatedDate) * 1000").parse().unwrap()
        })
        .collect();
    waits.sort_by(f64::total_cmp);
    waits
}

/// The longest time between two pulses of the one runner while `during` lasts.
fn slowest_beat<T>(watcher: &mut Session, during: impl FnOnce() -> T) -> (Duration, T) {
    let (mut seq, mut since, mut slowest) = (String::new(), Instant::now(), Duration::ZERO);
    let watch = || {
        let now = watcher.exec("select Seq from Runner");
        slowest = slowest.max(since.elapsed());
        if now != seq {
            (seq, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let answer = meanwhile(watch, during);
    (slowest, answer)
}

#[test]
#[allow(clippy::print_stdout, reason = "timings are for people")]
fn a_hundred_thousand_parked_rows_slow_no_other_configuration_and_go_in_one_cancel_while_beats_go_on() {
    let mut db = TestDb::new();
    let other = db.config("NoopJob", "", "");
    let parked = db.config("SleepJob", "", "");
    let _daemon = Daemon::start_with(&db, &[("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.2"), QUIET]);
    let running = db.insert(&parked, "{}");
    db.wait_status(&running, 2);
    let alone = latencies(&mut db, &other, 80);
    insert_many(&mut db, &parked, 100_000);
    let beside = latencies(&mut db, &other, 80);
    println!(
        "INSERT to start: p50 {:.1} ms and p99 {:.1} ms alone, {:.1} ms and {:.1} ms beside 100,000 parked rows",
        alone[40], alone[78], beside[40], beside[78]
    );
    assert_eq!(db.status(&running), "2", "they were parked all the time");
    assert!(beside[40] < 3.0 * alone[40] + 10.0, "p50 {} ms, then {} ms", alone[40], beside[40]);
    assert!(beside[78] < 3.0 * alone[78] + 100.0, "p99 {} ms, then {} ms", alone[78], beside[78]);

    let mut watcher = db.session(Speaker::Operator);
    let computed = |db: &mut TestDb| db.text(COMPUTED).parse::<f64>().unwrap();
    let before = computed(&mut db);
    let (slowest, ()) = slowest_beat(&mut watcher, || {
        db.exec("update JobHistory set StatusID = -1 where StatusID in (1, 2)");
    });
    let took = computed(&mut db) - before;
    println!(
        "100,001 rows were cancelled in {took:.1} s of a processor, the slowest beat of 0.2 s meanwhile took {slowest:.1?}"
    );
    assert!(took < 10.0, "{took} s");
    assert!(slowest < Duration::from_millis(1200), "{slowest:?}");
    db.wait_count(&parked, 5, 100_001);
    let next = db.insert(&other, "{}");
    db.wait_status(&next, 3);
}

#[test]
#[allow(clippy::print_stdout, reason = "timings are for people")]
fn a_transaction_left_open_for_seconds_costs_less_than_five_sixths_of_the_throughput() {
    const ROWS: usize = 1000;
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let _daemon = Daemon::start_with(&db, &[QUIET]);
    let per_second = |db: &mut TestDb, time: Duration| {
        let (began, mut done) = (Instant::now(), 0_u32);
        while began.elapsed() < time {
            insert_many(db, &config, ROWS);
            db.wait_for("select count(*) from JobHistory where Ready or StatusID = 2", "0", SOON);
            done += 1;
        }
        f64::from(done) * 1000.0 / began.elapsed().as_secs_f64()
    };
    per_second(&mut db, Duration::from_millis(500));
    let before = per_second(&mut db, Duration::from_secs(1));
    let mut reader = db.session(Speaker::Operator);
    reader.exec("begin isolation level repeatable read; select count(*) from JobHistory");
    per_second(&mut db, Duration::from_secs(4));
    let behind = per_second(&mut db, Duration::from_secs(1));
    reader.exec("commit");
    println!("{before:.0} rows a second, {behind:.0} after 4 s of an open transaction");
    assert!(behind > before / 6.0, "{before:.0} rows a second, then {behind:.0}");
    assert_eq!(db.text("select count(*) from JobHistory where StatusID <> 3 or Attempt <> 1"), "0");
}

/// What the kernel says of a process, in KiB.
fn memory(daemon: &Daemon, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[allow(clippy::print_stdout, reason = "figures are for people")]
fn sixty_four_payloads_of_a_mebibyte_at_once_take_less_than_three_times_their_size() {
    const ROWS: u64 = 64;
    let mut db = TestDb::new();
    let config = db.config("WriteJob", "MaxInstances", "0");
    let daemon = Daemon::start_with(&db, &[QUIET]);
    let small = db.insert(&config, r#"{"file": "/dev/null"}"#);
    db.wait_status(&small, 3);
    let before = memory(&daemon, "VmRSS");
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID, Payload)
         select '{config}', 1, jsonb_build_object('seconds', 2, 'file', repeat('/', 1048576 - 30) || 'x')
         from generate_series(1, {ROWS})"
    ));
    // A name of that length is no file's, which each says.
    db.wait_for(
        "select count(*) from JobHistory where StatusID = 4 and Error like '%File name too long%'",
        &ROWS.to_string(),
        SOON,
    );
    let most = memory(&daemon, "VmHWM") - before;
    println!("{ROWS} payloads of 1 MiB took {} MiB at most", most / 1024);
    assert!(most < 3 * ROWS * 1024, "{most} KiB for {ROWS} MiB of payloads");
}
