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
use std::sync::Arc;
use std::time::{Duration, Instant};
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
