//! `ctx.database()` keeps its promises where sqlx's own pool breaks them: after calls that were dropped, on links that
//! froze, through storms of resets.

use crate::support::proxy::{FROZEN, Mode, Proxy, Upstream};
use crate::support::{TestDb, server};
use futures_util::TryStreamExt;
use rosterd::postgres::connect::Limits;
use rosterd::postgres::database::{Database, is_away};
use rosterd::postgres::lifeline::Lifeline;
use sqlx::Row;
use sqlx::postgres::PgConnectOptions;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::coop::consume_budget;
use tokio::time::timeout;

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    statement: Duration::from_secs(20),
    answer: Duration::from_secs(2),
};
const SOON: Duration = Duration::from_secs(20);

/// A database behind a proxy that can fail, and how to reach it there.
struct Bench {
    db: TestDb,
    proxy: Proxy,
    options: PgConnectOptions,
}

impl Bench {
    fn new() -> Self {
        let mut db = TestDb::new();
        db.exec("create table Mark (Name text primary key)");
        let proxy = Proxy::start(Upstream::Unix(server().socket_dir().join(".s.PGSQL.5432")));
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(proxy.port())
            .username(db.options.get_username())
            .database(&db.name)
            .ssl_mode(sqlx::postgres::PgSslMode::Disable);
        Self { db, proxy, options }
    }

    fn database(&self, connections: u32) -> Database {
        Database::new(&self.options, "pool", connections, LIMITS)
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

async fn number(database: &Database) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("select 7").fetch_one(database).await
}

#[test]
fn no_row_is_missing_however_much_the_task_did_before() {
    let bench = Bench::new();
    let database = bench.database(1);
    // Tokio lets a task do so much before it has to come again, and then nothing is ready for it any more.
    block_on(async {
        for spent in 0..128 {
            let query = sqlx::query_scalar::<_, i32>("select generate_series(1, 40)");
            let mut rows = pin!(query.fetch_all(&database));
            let rows = poll_fn(|cx| {
                for _ in 0..spent {
                    let _ = pin!(consume_budget()).poll(cx);
                }
                rows.as_mut().poll(cx)
            });
            assert_eq!(rows.await.unwrap().len(), 40, "after {spent} others");
        }
    });
}

#[test]
fn every_kind_of_call_works_on_it_as_on_a_pool_of_sqlx() {
    let bench = Bench::new();
    let database = bench.database(1);
    block_on(async {
        let db = &database;
        assert_eq!(number(db).await.unwrap(), 7);
        let done = sqlx::query("insert into Mark values ($1), ($2)").bind("a").bind("b").execute(db).await;
        assert_eq!(done.unwrap().rows_affected(), 2);
        let rows = sqlx::query("select Name from Mark order by 1").fetch_all(db).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>(), ["a", "b"]);
        assert!(sqlx::query("select 1 where false").fetch_optional(db).await.unwrap().is_none());
        assert!(matches!(
            sqlx::query("select 1 where false").fetch_one(db).await,
            Err(sqlx::Error::RowNotFound)
        ));
        let many: Vec<_> = sqlx::query_scalar::<_, i32>("select generate_series(1, 5000)")
            .fetch(db)
            .try_collect()
            .await
            .unwrap();
        assert_eq!((many.len(), many[4999]), (5000, 5000));
        let done = sqlx::raw_sql("select 1; insert into Mark values ('c')").execute(db).await.unwrap();
        assert_eq!(done.rows_affected(), 2);
        // A refusal leaves the connection good: it is the only one there is.
        let refused = sqlx::query("insert into Mark values ('a')").execute(db).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "23505");
        let late: Result<Vec<_>, _> =
            sqlx::query_scalar::<_, i32>("select 10 / (3 - n) from generate_series(1, 9) n")
                .fetch(db)
                .try_collect()
                .await;
        assert_eq!(late.unwrap_err().as_database_error().unwrap().code().unwrap(), "22012");
        assert_eq!(number(db).await.unwrap(), 7);
    });
    assert_eq!(bench.proxy.accepted(), 1, "one connection served it all");
}

#[test]
fn a_transaction_is_committed_undone_or_closed_and_leaves_no_trace_on_the_next_borrower() {
    let mut bench = Bench::new();
    let database = bench.database(1);
    block_on(async {
        let insert = |name: &'static str| sqlx::query("insert into Mark values ($1)").bind(name);
        let mut kept = database.begin().await.unwrap();
        insert("kept").execute(&mut *kept).await.unwrap();
        kept.commit().await.unwrap();
        let mut undone = database.begin().await.unwrap();
        insert("undone").execute(&mut *undone).await.unwrap();
        undone.rollback().await.unwrap();
        let mut dropped = database.begin().await.unwrap();
        insert("dropped").execute(&mut *dropped).await.unwrap();
        drop(dropped);
        let mut failed = database.begin().await.unwrap();
        insert("failed").execute(&mut *failed).await.unwrap();
        insert("kept").execute(&mut *failed).await.unwrap_err();
        let refused = failed.commit().await.unwrap_err();
        assert_eq!(
            refused.as_database_error().unwrap().code().unwrap(),
            "25P02",
            "a failed one cannot commit"
        );
        insert("after").execute(&database).await.unwrap();
    });
    assert_eq!(bench.db.text("select string_agg(Name, ' ' order by Name) from Mark"), "after kept");
}

#[test]
fn a_begin_given_as_a_statement_is_refused_and_its_transaction_reaches_nobody() {
    let mut bench = Bench::new();
    let database = bench.database(1);
    block_on(async {
        let db = &database;
        for text in ["begin", "BEGIN isolation level serializable", "/* first */ start transaction"] {
            let refused = sqlx::query(text).execute(db).await.unwrap_err();
            assert!(refused.to_string().contains("use Database::begin"), "{text}: {refused}");
        }
        let refused = sqlx::raw_sql("begin; insert into Mark values ('x')").execute(db).await.unwrap_err();
        assert!(refused.to_string().contains("use Database::begin"));
        sqlx::raw_sql("begin; select 1 / 0").execute(db).await.unwrap_err();
        sqlx::raw_sql("begin; insert into Mark values ('whole'); commit").execute(db).await.unwrap();
        sqlx::query("insert into Mark values ('begin')").execute(db).await.unwrap();
    });
    assert_eq!(bench.db.text("select string_agg(Name, ' ' order by Name) from Mark"), "begin whole");
}

#[test]
fn a_begin_cancelled_at_any_moment_poisons_no_connection_and_no_write_vanishes() {
    let mut bench = Bench::new();
    bench.proxy.set(Mode::Delay(Duration::from_millis(1)));
    let database = bench.database(2);
    block_on(async {
        for n in 0..200_u64 {
            let begun = database.clone();
            let task = tokio::spawn(async move { begun.begin().await.map(drop) });
            tokio::time::sleep(Duration::from_micros(n * 37 % 6000)).await;
            task.abort();
            if n % 4 == 0 {
                let mark = sqlx::query("insert into Mark values ($1)").bind(format!("{n}"));
                timeout(SOON, mark.execute(&database)).await.expect("a place is free").unwrap();
            }
        }
    });
    assert_eq!(bench.db.text("select count(*) from Mark"), "50");
}

#[test]
fn a_statement_dropped_half_way_neither_delays_nor_breaks_the_next_and_ends_on_the_server() {
    let mut bench = Bench::new();
    let database = bench.database(1);
    block_on(async {
        let slow = sqlx::raw_sql("select pg_sleep(15)").execute(&database);
        assert!(timeout(Duration::from_millis(200), slow).await.is_err());
        let began = Instant::now();
        assert_eq!(number(&database).await.unwrap(), 7);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    });
    // The server looks every two seconds whether somebody still waits.
    bench.db.wait_for(
        "select count(*) from pg_stat_activity where query like '%pg_sleep(15)%' and datname = current_database()
           and state = 'active' and pid <> pg_backend_pid()",
        "0",
        Duration::from_secs(8),
    );
}

#[test]
fn a_stream_left_in_the_middle_costs_its_connection_and_nobody_reads_its_rest() {
    let bench = Bench::new();
    let database = bench.database(1);
    block_on(async {
        let mut rows = sqlx::query_scalar::<_, i32>("select generate_series(1, 100000)").fetch(&database);
        assert_eq!(rows.try_next().await.unwrap(), Some(1));
        drop(rows);
        assert_eq!(number(&database).await.unwrap(), 7);
    });
    assert_eq!(bench.proxy.accepted(), 2);
}

#[test]
fn every_place_is_free_again_after_a_link_that_froze_under_all_of_them_healed() {
    let mut bench = Bench::new();
    let lifeline = Arc::new(Lifeline::default());
    let database = Database::following(Arc::clone(&lifeline), &bench.options, "pool", 2, LIMITS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for _ in 0..3 {
        let hung: Vec<_> = (0..2)
            .map(|_| {
                let database = database.clone();
                runtime.spawn(async move { sqlx::raw_sql("select pg_sleep(2)").execute(&database).await })
            })
            .collect();
        bench.db.wait_for(
            "select count(*) from pg_stat_activity where datname = current_database() and state = 'active'
               and query = 'select pg_sleep(2)'",
            "2",
            SOON,
        );
        bench.proxy.set(FROZEN);
        runtime.block_on(async {
            // As a control loop does that missed an answer.
            lifeline.cut();
            for hung in hung {
                let error = timeout(SOON / 2, hung).await.expect("at once").unwrap().unwrap_err();
                assert!(is_away(&error), "{error}");
            }
            let waiting = database.clone();
            let mut waiting = tokio::spawn(async move { number(&waiting).await });
            assert!(timeout(Duration::from_millis(300), &mut waiting).await.is_err(), "it waits");
            bench.proxy.set(Mode::Pass);
            lifeline.set_up(true);
            assert_eq!(timeout(SOON, waiting).await.unwrap().unwrap().unwrap(), 7);
            let (first, second) = (database.begin().await.unwrap(), timeout(SOON, database.begin()).await);
            first.rollback().await.unwrap();
            second.expect("two places").unwrap().rollback().await.unwrap();
        });
        // Their sessions end when the server looks for them, two seconds after at most; no two rounds are mixed up.
        bench.db.wait_for(
            "select count(*) from pg_stat_activity where datname = current_database() and state = 'active'
               and query = 'select pg_sleep(2)'",
            "0",
            SOON,
        );
    }
}

#[test]
fn a_call_on_a_frozen_link_ends_at_its_deadline_also_in_a_transaction() {
    let bench = Bench::new();
    let limits = Limits { statement: Duration::from_secs(1), answer: Duration::from_millis(500), ..LIMITS };
    let database = Database::new(&bench.options, "pool", 2, limits);
    block_on(async {
        let mut transaction = database.begin().await.unwrap();
        sqlx::query("insert into Mark values ('x')").execute(&mut *transaction).await.unwrap();
        number(&database).await.unwrap();
        bench.proxy.set(FROZEN);
        let began = Instant::now();
        let (bare, inside) = tokio::join!(number(&database), async {
            sqlx::query("insert into Mark values ('y')").execute(&mut *transaction).await
        });
        assert!(is_away(&bare.unwrap_err()) && is_away(&inside.unwrap_err()));
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        assert!(is_away(&transaction.commit().await.unwrap_err()), "nothing of it can be committed");
        bench.proxy.set(Mode::Pass);
        assert_eq!(timeout(SOON, number(&database)).await.unwrap().unwrap(), 7);
    });
}

#[test]
fn a_connection_that_died_at_rest_is_not_lent() {
    let bench = Bench::new();
    let database = bench.database(1);
    block_on(async {
        number(&database).await.unwrap();
        bench.proxy.reset_all();
        tokio::time::sleep(Duration::from_millis(1100)).await; // trusted for a second
        assert_eq!(number(&database).await.unwrap(), 7);
        bench.proxy.half_close_all();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(number(&database).await.unwrap(), 7);
    });
}

#[test]
fn storms_of_resets_cost_calls_and_never_places() {
    let bench = Bench::new();
    let database = bench.database(4);
    block_on(async {
        let stop = tokio_util::sync::CancellationToken::new();
        let workers: Vec<_> = (0..8)
            .map(|_| {
                let (database, stop) = (database.clone(), stop.clone());
                tokio::spawn(async move {
                    let (mut good, mut cut) = (0, 0);
                    while !stop.is_cancelled() {
                        match number(&database).await {
                            Ok(_) => good += 1,
                            Err(error) if is_away(&error) => cut += 1,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    (good, cut)
                })
            })
            .collect();
        let mut resets = 0;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            resets += bench.proxy.reset_all();
        }
        stop.cancel();
        let mut total = (0, 0);
        for worker in workers {
            let (good, cut) = timeout(SOON, worker).await.unwrap().unwrap();
            total = (total.0 + good, total.1 + cut);
        }
        assert!(resets > 20 && total.0 > 20 && total.1 > 0, "{resets} resets, {total:?} calls");
        let mut all = Vec::new();
        let mut dead = 0;
        while all.len() < 4 {
            match timeout(SOON, database.begin()).await.expect("a place each") {
                Ok(transaction) => all.push(transaction),
                // Reset at rest a moment ago, while it was still trusted.
                Err(error) if is_away(&error) => dead += 1,
                Err(error) => panic!("{error}"),
            }
            assert!(dead <= 4, "a dead connection is lent once");
        }
    });
}

#[test]
fn a_commit_whose_answer_was_cut_is_known_as_an_outage_and_stands_once() {
    let mut bench = Bench::new();
    let database = bench.database(1);
    block_on(async {
        let mut transaction = database.begin().await.unwrap();
        sqlx::query("insert into Mark values ('once')").execute(&mut *transaction).await.unwrap();
        bench.proxy.cut_after("commit");
        assert!(is_away(&transaction.commit().await.unwrap_err()));
        assert_eq!(number(&database).await.unwrap(), 7);
    });
    assert_eq!((bench.proxy.cuts(), bench.db.text("select count(*) from Mark")), (1, "1".to_owned()));
}

#[test]
fn a_stalled_answer_and_one_cut_in_two_are_survived() {
    let bench = Bench::new();
    let limits = Limits { statement: Duration::from_secs(1), answer: Duration::from_millis(500), ..LIMITS };
    let database = Database::new(&bench.options, "pool", 1, limits);
    block_on(async {
        number(&database).await.unwrap();
        bench.proxy.set(Mode::StallAfter(2000));
        let long = sqlx::query("select repeat('x', 100000)").fetch_one(&database).await;
        assert!(is_away(&long.unwrap_err()));
        bench.proxy.set(Mode::Pass);
        assert_eq!(number(&database).await.unwrap(), 7);
    });
}

#[test]
fn a_refused_log_in_is_an_error_and_not_waited_out() {
    let bench = Bench::new();
    let options = bench.options.clone().username("nobody_of_this_name");
    let database = Database::new(&options, "pool", 1, LIMITS);
    let error = block_on(async { timeout(SOON, number(&database)).await.unwrap().unwrap_err() });
    assert!(error.as_database_error().is_some() && !is_away(&error), "{error}");
}
