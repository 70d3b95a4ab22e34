//! Cases computed by hand. The costs are round numbers, not measured ones.

use crate::model::*;

fn costs() -> Costs {
    Costs {
        insert: PerBatch { statement_us: 100.0, row_us: 50.0 },
        claim: PerBatch { statement_us: 1000.0, row_us: 30.0 },
        report: PerBatch { statement_us: 1000.0, row_us: 28.0 },
        background_us: 0.0,
        archive_us: 0.0,
        runner_us: 20.0,
        idle_server_us: 1000.0,
        idle_runner_us: 700.0,
        flush_us: 0.0,
        insert_wal_bytes: 600.0,
        run_wal_bytes: 900.0,
        history_bytes: 1000.0,
        efficiency: 1.0,
    }
}

fn machine() -> Machine {
    Machine {
        database_cores: 16.0,
        runner_cores: 4.0,
        flush_us: 0.0,
        wal_bytes_per_second: 1e9,
        disk_bytes: 1e13,
        connections: 1000.0,
        utilization: 0.5,
    }
}

fn mix() -> Mix {
    Mix {
        jobs_per_day: 86_400_000.0,
        peak: 2.0,
        run_seconds: 0.1,
        insert_rows: 100.0,
        retention_days: 10.0,
        claim_batch: 500.0,
        workers: 1000.0,
        runner_connections: 20.0,
        payload_bytes: 0.0,
    }
}

#[track_caller]
fn near(found: f64, wanted: f64) {
    assert!((found - wanted).abs() <= 1e-6 * wanted.abs().max(1.0), "{found} instead of {wanted}");
}

#[test]
fn two_batch_sizes_give_the_cost_of_the_statement_and_of_a_row() {
    // 1000 + 30 a row: 80 a row in batches of 20, 32 in batches of 500.
    let line = PerBatch::through((20.0, 80.0), (500.0, 32.0));
    near(line.statement_us, 1000.0);
    near(line.row_us, 30.0);
    near(line.a_row(1.0), 1030.0);
}

#[test]
fn noise_makes_no_cost_negative() {
    let line = PerBatch::through((20.0, 31.0), (500.0, 32.0));
    near(line.statement_us, 0.0);
    near(line.row_us, 32.0);
}

#[test]
fn a_loop_finds_what_came_while_it_was_busy() {
    let claim = costs().claim;
    // In a second 10,000 come: 300 ms go into rows, the other 700 ms are 700 statements, of 14.3 rows each.
    near(claim.batch_at(10_000.0, 0.0, 1.0, 500.0), 10_000.0 / 700.0);
    near(claim.batch_at(10.0, 0.0, 1.0, 500.0), 1.0);
    near(claim.batch_at(1e6, 0.0, 1.0, 500.0), 500.0);
    near(claim.batch_at(10.0, 0.0, 100.0, 500.0), 100.0);
    near(claim.batch_at(10.0, 0.0, 1000.0, 500.0), 500.0);
    assert!(
        claim.batch_at(10_000.0, 500.0, 1.0, 500.0) > claim.batch_at(10_000.0, 0.0, 1.0, 500.0),
        "a slow disk gathers"
    );
}

#[test]
fn a_runner_is_as_fast_as_its_slowest_loop() {
    // 30 + 1000 / 500 = 32 us in the claiming session, 30 in the reporting one, 5 in four processors of the daemon.
    near(runner_rate(&costs(), 0.0, 4.0, 500.0), 31_250.0);
    // A commit of 1 ms is 2 us a job in a batch of 500.
    near(runner_rate(&costs(), 1000.0, 4.0, 500.0), 1e6 / 34.0);
    let heavy = Costs { runner_us: 400.0, ..costs() };
    near(runner_rate(&heavy, 0.0, 4.0, 500.0), 10_000.0);
}

#[test]
fn a_drain_ends_at_the_processors_or_at_the_loops() {
    // 32 + 30 + 20 = 82 us a job on two processors: 24,390 a second, less than the 31,250 of one runner.
    near(drain_rate(&costs(), 2.0, 1.0, 500.0), 2e6 / 82.0);
    near(drain_rate(&costs(), 2.0, 2.0, 500.0), 2e6 / 82.0);
    near(drain_rate(&costs(), 8.0, 1.0, 500.0), 31_250.0);
    near(drain_rate(&costs(), 8.0, 2.0, 500.0), 62_500.0);
    let lossy = Costs { efficiency: 0.8, ..costs() };
    near(drain_rate(&lossy, 8.0, 1.0, 500.0), 25_000.0);
}

#[test]
fn a_cell_has_as_many_runners_as_its_slowest_need() {
    // 6,000 a second of 0.1 s are 600 at once: two runners with 1000 workers of which half may be busy.
    near(cell(&costs(), &machine(), &mix(), 6000.0).runners, 2.0);
    // 10 s each are 60,000 at once.
    let long = Mix { run_seconds: 10.0, ..mix() };
    near(cell(&costs(), &machine(), &long, 6000.0).runners, 120.0);
    // 31,250 by one, half of it to be used.
    near(cell(&costs(), &machine(), &Mix { run_seconds: 0.0, ..mix() }, 46_875.0).runners, 3.0);
    near(cell(&costs(), &machine(), &mix(), 0.0).runners, 2.0);
}

#[test]
fn the_server_works_for_inserts_claims_reports_and_idle_runners() {
    // One row a second for each of two runners, so every statement is for one row: 150 + 1030 + 1028 a job, and two
    // idle runners of 1000 us a second.
    let slow = cell(&costs(), &machine(), &Mix { insert_rows: 1.0, ..mix() }, 2.0);
    near(slow.batch, 1.0);
    near(slow.cores, (2.0 * (150.0 + 1030.0 + 1028.0) + 2000.0) / 1e6);
    near(slow.server_us, 150.0 + 1030.0 + 1028.0 + 1000.0);
    near(slow.wal_bytes_per_second, 3000.0);
    near(slow.connections, 40.0);
}

#[test]
fn jobs_are_cheaper_when_more_of_them_come() {
    let at = |rate: f64| cell(&costs(), &machine(), &Mix { run_seconds: 0.0, ..mix() }, rate).server_us;
    assert!(at(10.0) > at(1000.0) && at(1000.0) > at(10_000.0) && at(10_000.0) > at(25_000.0));
}

#[test]
fn more_of_anything_that_helps_never_carries_less() {
    let rate = |machine: Machine, mix: Mix| sustained(&costs(), &machine, &mix).0;
    let usual = rate(machine(), mix());
    assert!(usual > 0.0);
    for more in [
        Machine { database_cores: 32.0, ..machine() },
        Machine { utilization: 0.8, ..machine() },
        Machine { wal_bytes_per_second: 2e9, ..machine() },
        Machine { connections: 2000.0, ..machine() },
    ] {
        assert!(rate(more, mix()) >= usual * 0.999, "{more:?}");
    }
    for worse in [
        Mix { run_seconds: 10.0, ..mix() },
        Mix { insert_rows: 1.0, ..mix() },
        Mix { payload_bytes: 1e5, ..mix() },
        Mix { runner_connections: 200.0, ..mix() },
    ] {
        assert!(rate(machine(), worse) <= usual * 1.001, "{worse:?}");
    }
}

#[test]
fn what_ends_a_database_is_named() {
    let bound = |machine: Machine, mix: Mix| sustained(&costs(), &machine, &mix).1;
    assert_eq!(bound(machine(), mix()), Bound::Processors);
    assert_eq!(bound(Machine { wal_bytes_per_second: 1e6, ..machine() }, mix()), Bound::Wal);
    assert_eq!(
        bound(Machine { connections: 60.0, ..machine() }, Mix { run_seconds: 60.0, ..mix() }),
        Bound::Connections
    );
    let hoard = Mix { retention_days: 10_000.0, ..mix() };
    assert_eq!(plan(&costs(), &machine(), &hoard).bound, Bound::Disk);
}

#[test]
fn wal_ends_a_database_where_the_bandwidth_does() {
    // 1500 bytes a job and half of 3 MB/s.
    let narrow = Machine { wal_bytes_per_second: 3e6, ..machine() };
    near(sustained(&costs(), &narrow, &mix()).0, 1000.0);
}

#[test]
fn a_day_becomes_a_peak_bytes_and_databases() {
    let plan = plan(&costs(), &machine(), &mix());
    near(plan.peak_rate, 2000.0);
    near(plan.databases, 1.0);
    near(plan.wal_bytes_per_day, 86_400_000.0 * 1500.0);
    near(plan.history_bytes, 864_000_000.0 * 1000.0);
    // Half of 10^13 bytes holds 5 * 10^9 rows of 1000; 6 * 10^10 are kept.
    let many = Mix { jobs_per_day: 6e9, ..mix() };
    assert!(crate::model::plan(&costs(), &machine(), &many).databases >= 12.0);
}

#[test]
fn more_jobs_never_need_fewer_databases_runners_or_bytes() {
    let mut before = plan(&costs(), &machine(), &Mix { jobs_per_day: 1e5, ..mix() });
    for exponent in 11..=20 {
        let jobs_per_day = 10_f64.powf(f64::from(exponent) / 2.0);
        let now = plan(&costs(), &machine(), &Mix { jobs_per_day, ..mix() });
        assert!(now.databases >= before.databases && now.runners >= before.runners, "{jobs_per_day}");
        assert!(now.wal_bytes_per_day > before.wal_bytes_per_day && now.history_bytes > before.history_bytes);
        assert!(exceeds(&now.cell, &machine()).is_none(), "a cell of the plan fits its machine: {now:?}");
        before = now;
    }
}
