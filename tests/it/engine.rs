//! The loop: a row in, a job run, a row out.

use crate::support::{Daemon, TestDb};

#[test]
fn an_inserted_row_with_status_1_runs_and_ends_as_completed() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "", "");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 3);
    assert_eq!(db.column(&id, "Attempt"), "1");
}

#[test]
fn a_panic_ends_the_row_as_error_with_its_message() {
    let mut db = TestDb::new();
    let config = db.config("PanicJob", "", "");
    let _daemon = Daemon::start(&db);
    let id = db.insert(&config, "{}");
    db.wait_status(&id, 4);
    assert_eq!(db.column(&id, "Error"), format!("the job panicked: row {id} found the cupboard bare"));
}
