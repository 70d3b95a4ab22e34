//! What the daemon says, and where it ends up.

use crate::support::{Daemon, SOON, TestDb};

#[test]
fn the_lines_of_a_job_are_in_logs_in_their_order_and_with_their_level() {
    let mut db = TestDb::new();
    let config = db.config("TalkJob", "", "");
    let daemon = Daemon::start(&db);
    let id = db.insert(&config, r#"{"lines": 3, "each_level": true}"#);
    let lines = format!(
        "select string_agg(t.Type || ' ' || l.Log, ', ' order by l.ID)
         from Logs l join LogType t on t.ID = l.TypeID where l.JobHistoryID = '{id}' and l.Log not like 'Job %'"
    );
    db.wait_for(
        &lines,
        "INFO line 1, INFO line 2, INFO line 3, INFO it is well, WARN it is odd, ERR it is wrong",
        SOON,
    );
    let order = format!(
        "select bool_and(CreateDate >= before) from (select CreateDate, lag(CreateDate) over (order by ID) as before from Logs where JobHistoryID = '{id}') x"
    );
    assert_eq!(db.text(&order), "t");
    // The form of the seed, to the letter.
    let line = daemon.wait_line("it is odd");
    let (time, rest) = line.split_at(19);
    assert!(chrono::NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S").is_ok(), "{line}");
    assert_eq!(rest, format!(" | [WARN] [TalkJob:ACME:{id}] - it is odd"));
}

#[test]
fn a_hundred_thousand_lines_block_no_job_and_what_is_dropped_is_counted() {
    let mut db = TestDb::new();
    let config = db.config("TalkJob", "", "");
    let _daemon =
        Daemon::start_with(&db, &[("ROSTERD__LOG__LEVEL", "warn"), ("ROSTERD__LOG__DATABASE_QUEUE", "2000")]);
    let id = db.insert(&config, r#"{"lines": 100000}"#);
    db.wait_for(&format!("select StatusID from JobHistory where ID = '{id}'"), "3", SOON);
    // Every line is there, or is in the count of a notice.
    db.wait_for(
        &format!(
            r"select sum(case when Log ~ '^\d+ log lines? (was|were) dropped$' then split_part(Log, ' ', 1)::int
                              when Log like 'line %' then 1 else 0 end)
              from Logs where JobHistoryID = '{id}'"
        ),
        "100000",
        SOON,
    );
}

#[test]
fn the_json_form_is_one_object_a_line() {
    let mut db = TestDb::new();
    let config = db.config("TalkJob", "", "");
    let mut daemon = Daemon::start_with(&db, &[("ROSTERD__LOG__FORMAT", "json")]);
    let id = db.insert(&config, r#"{"lines": 1}"#);
    let line = daemon.wait_line("line 1");
    let object: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((object["level"].as_str(), object["message"].as_str()), (Some("INFO"), Some("line 1")));
    assert_eq!(object["job"], serde_json::json!({ "struct": "TalkJob", "org": "ACME", "id": id }));
    assert!(daemon.stop().success());
    for line in daemon.output().lines().filter(|line| *line != "rosterd is ready") {
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(object["timestamp"].is_string() && object["message"].is_string(), "{line}");
    }
}

/// The number of tasks in the newest `Sleeping` line.
fn tasks(daemon: &Daemon) -> u32 {
    let output = daemon.output();
    let line =
        output.lines().rev().find(|line| line.contains("Job Runner: Sleeping for")).unwrap().to_owned();
    line.split('[').next_back().unwrap().trim_end_matches(" tasks]").parse().unwrap()
}

#[test]
fn the_runner_says_how_long_it_sleeps_and_its_tasks_return_to_what_they_were() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "MaxInstances", "0");
    let daemon = Daemon::start_with(
        &db,
        &[
            ("ROSTERD__LOG__LEVEL", "info,rosterd::engine::claim=debug"),
            ("ROSTERD__ENGINE__HEARTBEAT_SECONDS", "0.3"),
        ],
    );
    let line = daemon.wait_line("Job Runner: Sleeping for 1 seconds - [");
    assert!(line.ends_with(" tasks]"), "{line}");
    // Each pool and connection is there after the first row.
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 3);
    db.wait_for("select Running from Runner", "0", SOON);
    let before = tasks(&daemon);
    db.exec(&format!(
        "insert into JobHistory (ConfigID, StatusID) select '{config}', 1 from generate_series(1, 500)"
    ));
    db.wait_count(&config, 3, 501);
    db.wait_for(&format!("select Tasks <= {before} + 1 from Runner"), "t", SOON);
    let until = std::time::Instant::now() + SOON;
    while tasks(&daemon) > before + 1 {
        assert!(std::time::Instant::now() < until, "{before} tasks before, {} after", tasks(&daemon));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
