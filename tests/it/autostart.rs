//! Every start of a daemon puts one row on the queue for each active AutoStart configuration without a live one.

use crate::support::{Daemon, QUICK_LEASE, SOON, TestDb};
use rosterd::postgres::connect::Speaker;

fn rows(db: &mut TestDb, config: &str) -> String {
    db.text(&format!("select count(*) from JobHistory where ConfigID = '{config}'"))
}

#[test]
fn a_start_puts_one_row_for_each_active_autostart_configuration() {
    let mut db = TestDb::new();
    let active = db.config("NoopJob", "AutoStart", "true");
    let inactive = db.config("NoopJob", "AutoStart, Active", "true, false");
    let other = db.config("NoopJob", "", "");
    let _daemon = Daemon::start(&db);
    db.wait_count(&active, 3, 1);
    assert_eq!((rows(&mut db, &inactive), rows(&mut db, &other)), ("0".to_owned(), "0".to_owned()));
    assert_eq!(db.text("select Origin from JobHistory"), "autostart");
}

#[test]
fn a_configuration_with_a_live_row_gets_none() {
    let mut db = TestDb::new();
    let pending = db.config("FoldLaundryJob", "AutoStart", "true");
    let running = db.config("SleepJob", "AutoStart", "true");
    let cancelling = db.config("StubbornJob", "AutoStart", "true");
    db.insert(&pending, "{}");
    let _first = Daemon::start(&db);
    db.wait_count(&running, 2, 1);
    db.wait_count(&cancelling, 2, 1);
    db.exec(&format!("update JobHistory set StatusID = -1 where ConfigID = '{cancelling}'"));
    let second = Daemon::start(&db);
    for config in [&pending, &running, &cancelling] {
        second.wait_line(&format!("AutoStart: configuration {config} has a live row already, none is added"));
        assert_eq!(rows(&mut db, config), "1");
    }
}

#[test]
fn several_daemons_that_start_at_once_put_one_row() {
    let mut db = TestDb::new();
    let configs: Vec<String> = (0..5).map(|_| db.config("SleepJob", "AutoStart", "true")).collect();
    std::thread::scope(|scope| {
        let db = &db;
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(move || Daemon::start(db))).collect();
        let daemons: Vec<Daemon> = starts.into_iter().map(|start| start.join().unwrap()).collect();
        for daemon in &daemons {
            daemon.wait_line("rosterd is ready");
        }
    });
    for config in &configs {
        assert_eq!(rows(&mut db, config), "1");
    }
}

#[test]
fn after_its_row_has_finished_a_new_start_puts_a_new_one() {
    let mut db = TestDb::new();
    let config = db.config("NoopJob", "AutoStart", "true");
    for starts in 1..=2 {
        let mut daemon = Daemon::start(&db);
        db.wait_count(&config, 3, starts);
        assert!(daemon.stop().success());
    }
}

#[test]
fn a_configuration_an_operator_holds_locked_delays_neither_the_start_nor_the_others() {
    let mut db = TestDb::new();
    let free = db.config("NoopJob", "AutoStart", "true");
    let held = db.config("NoopJob", "AutoStart", "true");
    let mut operator = db.session(Speaker::Operator);
    operator.exec(&format!("begin; update JobConfig set WaitInSeconds = 7 where ID = '{held}'"));
    let began = std::time::Instant::now();
    let _daemon = Daemon::start_with(&db, &QUICK_LEASE);
    db.wait_count(&free, 3, 1);
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(rows(&mut db, &held), "0");
    operator.exec("commit");
    db.wait_for(&format!("select StatusID from JobHistory where ConfigID = '{held}'"), "3", SOON);
}
