//! Whose calls go first when runners want the same source: the most urgent ones, and nobody starves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::limits::{LOOPBACK, least_gap, most_in_flight, source, wait_calls};
use crate::support::stamping_api::{Arrival, StampingApi};
use crate::support::{Daemon, SOON, TestDb};
use std::time::Duration;

const ONE_ROW: (&str, &str) = ("ROSTERD__ENGINE__WORKERS", "1");

/// Two runners with a row each, which calls as much as it may: `/later` with Priority 9 on one, and then `/sooner` with
/// Priority 1 on the other.
fn two_runners(db: &mut TestDb, config: &str, api: &StampingApi, millis: u32) -> [Daemon; 2] {
    let mut start = |name: &str, priority: u32, calls: usize| {
        db.exec(&format!(
            r#"insert into JobHistory (ConfigID, StatusID, Priority, Payload)
               values ('{config}', 1, {priority}, '{{"path": "/{name}?millis={millis}", "repeat": 100000}}')"#
        ));
        let daemon = Daemon::start_with(db, &[LOOPBACK, ONE_ROW]);
        wait_calls(api, name, calls);
        daemon
    };
    [start("later", 9, 20), start("sooner", 1, 1)]
}

/// Calls of `/later` among the first `count` of `/sooner`.
fn later_among(api: &StampingApi, count: usize) -> usize {
    wait_calls(api, "sooner", count);
    let sooner: Vec<Arrival> = api.arrivals("sooner").into_iter().take(count).collect();
    let (from, until) = (sooner[0].at, sooner[count - 1].at);
    api.arrivals("later").iter().filter(|call| call.at > from && call.at < until).count()
}

#[test]
fn where_there_is_a_delay_the_runner_with_the_more_urgent_calls_goes_first_and_the_other_does_not_starve() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 10, 4);
    let _daemons = two_runners(&mut db, &config, &api, 5);
    // The other has a turn of half a second after it has waited for two.
    let later = later_among(&api, 500);
    assert!(later > 0 && later < 300, "{later} beside 500");
    let mut all = [api.arrivals("later"), api.arrivals("sooner")].concat();
    all.sort_unstable_by_key(|arrival| arrival.at);
    assert!(least_gap(&all) >= Duration::from_millis(10), "{:?}", least_gap(&all));
    assert!(most_in_flight(&all) <= 4);
}

#[test]
fn of_concurrency_the_runner_with_the_more_urgent_calls_gets_all_but_a_slot_for_the_other() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 0, 6);
    let _daemons = two_runners(&mut db, &config, &api, 30);
    let slots = "select string_agg(format('%s of Priority %s', Slots, Urgency), ', ' order by Urgency) from SourceShare";
    db.wait_for(slots, "5 of Priority 1, 1 of Priority 9", SOON);
}

#[test]
fn where_there_is_but_one_slot_the_more_urgent_calls_have_it_most_of_the_time_and_the_others_do_not_starve() {
    let mut db = TestDb::new();
    let api = StampingApi::start().unwrap();
    let (_, config) = source(&mut db, &api, 0, 1);
    let _daemons = two_runners(&mut db, &config, &api, 20);
    let later = later_among(&api, 200);
    assert!(later > 0 && later < 120, "{later} beside 200");
}
