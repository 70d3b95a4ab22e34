//! Every SQL statement of the FAQ of the system rosterd replaces, typed into psql as it stands there: only
//! without `MySQL`'s backticks, and with `where` and `set` of its cancel example put in order.

use crate::support::{Daemon, SOON, TestDb, psql};
use std::time::Duration;

const INSERT_BY_JOB: &str = "
INSERT INTO VM.JobHistory (JobId, ConfigID, StatusId, Priority, Payload)
                VALUES
(
                (select ID from Job where Struct = 'TicketingJob'),
                (select ID from JobConfig where JobID = (select ID from Job where Struct = 'TicketingJob' LIMIT 1) LIMIT 1),
                '1',
                '0',
                (select Payload from JobConfig where JobID = (select ID from Job where Struct = 'TicketingJob') LIMIT 1)
);";
const INSERT_BY_CONFIG: &str = "INSERT INTO VM.JobHistory (JobId, ConfigID, StatusId, Priority, Payload) select JobID, ID, 1, 0, Payload from JobConfig where ID = 'YOUR JobConfig ID HERE';";
const AUTH_INFO: &str = "select AuthInfo from SourceConfig where Source = 'JIRA';";
const WAIT: &str = "UPDATE JobConfig Set WaitInSeconds = 120 where ID = (select ConfigID from JobHistory where ID = 'PUT JOB ID HERE');";
const CANCEL: &str = "Update JobHistory set StatusID = -1 where ID = 'PUT JOB ID HERE';";

/// The statement as written, without its schema prefix, in lower case and in upper case; what stands in
/// quotes stays.
fn spellings(sql: &str) -> Vec<String> {
    let case = |change: fn(&str) -> String| {
        let parts = sql.split('\'').enumerate();
        parts
            .map(|(n, part)| if n % 2 == 0 { change(part) } else { part.to_owned() })
            .collect::<Vec<_>>()
            .join("'")
    };
    vec![sql.to_owned(), sql.replace("VM.", ""), case(str::to_lowercase), case(str::to_uppercase)]
}

/// A live row of this configuration, as its statuses.
const ROW: &str = "select concat_ws(' ', StatusID, Priority, Payload, JobID = (select ID from Job where Struct = 'TicketingJob'),
    OrganizationID = (select ID from Organization)) from JobHistory";

#[test]
fn a_row_inserted_by_the_name_of_its_job_is_pending_with_the_payload_of_its_configuration() {
    for sql in spellings(INSERT_BY_JOB) {
        let mut db = TestDb::new();
        db.config("TicketingJob", "Payload", r#"'{"minimum": 7}'"#);
        let said = psql(&db, &sql);
        assert_eq!((said.out.as_str(), said.err.as_str()), ("INSERT 0 1\n", ""), "{sql}");
        assert_eq!(db.text(ROW), r#"1 0 {"minimum": 7} t t"#);
    }
}

#[test]
fn a_row_inserted_from_a_configuration_is_pending_with_its_payload() {
    for sql in spellings(INSERT_BY_CONFIG) {
        let mut db = TestDb::new();
        db.config("TicketingJob", "Payload", r#"'{"minimum": 1}'"#);
        let config = db.config("TicketingJob", "Payload", r#"'{"minimum": 7}'"#);
        let said = psql(&db, &sql.replace("YOUR JobConfig ID HERE", &config));
        assert_eq!((said.out.as_str(), said.err.as_str()), ("INSERT 0 1\n", ""), "{sql}");
        assert_eq!(db.text(ROW), r#"1 0 {"minimum": 7} t t"#);
        assert_eq!(db.text("select ConfigID from JobHistory"), config);
    }
}

#[test]
fn a_row_inserted_by_hand_runs() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let _daemon = Daemon::start(&db);
    psql(&db, &INSERT_BY_JOB.replace("TicketingJob", "NoopJob"));
    psql(&db, &INSERT_BY_CONFIG.replace("YOUR JobConfig ID HERE", &config));
    db.wait_for("select count(*) from JobHistory where StatusID = 3", "2", SOON);
}

#[test]
fn an_autostart_configuration_gets_one_row_at_every_start() {
    let mut db = TestDb::new();
    db.config("NoopJob", "AutoStart", "'1'");
    db.config("FailJob", "AutoStart, Active", "'1', '0'");
    db.config("PanicJob", "AutoStart", "'0'");
    for start in 1..=2 {
        let mut daemon = Daemon::start(&db);
        db.wait_for("select count(*) from JobHistory where StatusID = 3", &start.to_string(), SOON);
        assert_eq!(db.text("select count(*) from JobHistory"), start.to_string());
        daemon.stop();
    }
}

#[test]
fn a_schedule_puts_its_configuration_on_the_queue_when_its_time_arrives() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let _daemon = Daemon::start(&db);
    db.exec(&format!(
        "insert into JobSchedule (ConfigID, DaysOfWeek, TimeOfDay, TimeZone)
         values ('{config}', '1234567', (date_trunc('second', now() at time zone 'UTC') + interval '2 seconds')::time, 'UTC')"
    ));
    db.wait_for("select count(*) from JobHistory where StatusID = 3", "1", SOON);
    let on_time = "select StartedDate - DueDate between interval '0' and interval '1 second' from JobHistory";
    assert_eq!(db.text(on_time), "t");
}

#[test]
fn authinfo_shows_delay_and_concurrency() {
    let mut db = TestDb::new();
    db.config("NoopJob", "", "");
    db.exec(
        r#"insert into SourceConfig (Source, OrganizationID, AuthInfo)
           select 'jira', ID, '{"Delay": 1000000000, "Concurrency": 4}' from Organization"#,
    );
    for sql in spellings(AUTH_INFO) {
        let said = psql(&db, &sql);
        assert_eq!(said.out, "{\"Delay\": 1000000000, \"Concurrency\": 4}\n", "{sql}");
    }
}

#[test]
fn the_runner_reports_its_alive_tasks_each_loop() {
    let db = TestDb::new();
    let daemon = Daemon::start(&db);
    let line = daemon.wait_line("Job Runner: Sleeping for ");
    let (_, tasks) = line.split_once(" seconds - [").unwrap();
    let tasks: u32 = tasks.strip_suffix(" tasks]").unwrap().parse().unwrap();
    assert!(tasks > 0);
}

#[test]
fn a_continuous_job_restarts_after_waitinseconds_in_the_same_row() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "Continuous, WaitInSeconds", "'1', 1");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_for("select CurrentIteration >= 2 from JobHistory", "t", SOON);
    assert_eq!(db.text("select string_agg(ID::text, ' ') from JobHistory"), id);
}

#[test]
fn an_update_of_waitinseconds_by_a_jobs_id_moves_the_waiting_row_at_once() {
    for sql in spellings(WAIT) {
        let mut db = TestDb::new();
        let config = db.config("NoopJob", "Continuous, WaitInSeconds", "true, 3600");
        let _daemon = Daemon::start(&db);
        let id = db.insert(&config, "{}");
        db.wait_for("select WaitingSince is not null from JobHistory", "t", SOON);
        let said = psql(&db, &sql.replace("PUT JOB ID HERE", &id));
        assert_eq!((said.out.as_str(), said.err.as_str()), ("UPDATE 1\n", ""), "{sql}");
        assert_eq!(db.column(&id, "NotBefore - WaitingSince"), "00:02:00");
    }
}

#[test]
fn a_job_is_cancelled_by_the_id_in_its_log_line() {
    let mut db = TestDb::new();
    let config = db.config("SleepJob", "MaxInstances", "0");
    let daemon = Daemon::start(&db);
    for sql in spellings(CANCEL) {
        let row = db.insert(&config, r#"{"seconds": 59}"#);
        let line = daemon.wait_line(&row);
        let (date, line) = line.split_once(" | [INFO] [SleepJob:ACME:").unwrap();
        let (id, message) = line.split_once("] - ").unwrap();
        assert_eq!(
            (date.len(), id, message),
            ("2020-04-21 17:18:30".len(), row.as_str(), "sleeping for 59 seconds")
        );
        let said = psql(&db, &sql.replace("PUT JOB ID HERE", id));
        assert_eq!((said.out.as_str(), said.err.as_str()), ("UPDATE 1\n", ""), "{sql}");
        db.wait_for(
            &format!("select StatusID from JobHistory where ID = '{id}'"),
            "5",
            Duration::from_secs(1),
        );
    }
}
