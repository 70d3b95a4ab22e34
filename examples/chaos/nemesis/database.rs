//! Faults of PostgreSQL.

use super::Fault;
use crate::postgres::End;
use crate::recorder::Intent;
use crate::world::World;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::time::Duration;

/// Does it, unless another fault works on the server just now.
pub async fn inflict(world: &World, fault: Fault, mut rng: fastrand::Rng) {
    let mut millis = |range: std::ops::Range<u64>| Duration::from_millis(rng.u64(range));
    match fault {
        Fault::PostgresFast | Fault::PostgresImmediate | Fault::PostgresKill | Fault::PostgresOutage => {
            let Ok(_busy) = world.server_busy.try_lock() else { return };
            let (end, away) = match fault {
                Fault::PostgresFast => (End::Fast, millis(0..500)),
                Fault::PostgresImmediate => (End::Immediate, millis(0..500)),
                Fault::PostgresKill => (End::Killed, millis(0..500)),
                _ => (End::Fast, millis(4000..6000)),
            };
            let record = world.recorder.begin(fault, None);
            world.server.restart(end, away).await;
            world.recorder.end(record);
        }
        Fault::EndSessions => {
            let record = world.recorder.begin(fault, None);
            let odd = millis(0..2).as_millis();
            let sql = format!(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where application_name like 'rosterd %' and pid % 2 = {odd}"
            );
            world.operator().run(Intent::Config, Vec::new(), sql).await;
            world.recorder.end(record);
        }
        Fault::OldSnapshot => {
            hold_open(
                world,
                fault,
                "begin isolation level repeatable read; select count(*) from vm.Job",
                millis(3000..12_000),
            )
            .await;
        }
        Fault::LockTable => {
            hold_open(
                world,
                fault,
                "set lock_timeout = '1s'; begin; lock table vm.JobHistory",
                millis(200..2000),
            )
            .await;
        }
        Fault::DiskFull => {
            let (Some(disk), Ok(_busy)) = (&world.server.small_disk, world.disk_busy.try_lock()) else {
                return;
            };
            let record = world.recorder.begin(fault, None);
            fill(disk);
            tokio::time::sleep(millis(500..5000)).await;
            std::fs::remove_file(disk.join("fill")).expect("it is ours");
            world.recorder.end(record);
        }
        _ => {
            let Ok(_busy) = world.clock_busy.try_lock() else { return };
            let record = world.recorder.begin(fault, None);
            let mut operator = world.operator();
            let sign = if millis(0..2).is_zero() { "-" } else { "" };
            let step = format!("update chaos.clock set step = '{sign}1 hour'");
            operator.run(Intent::Config, Vec::new(), step).await;
            tokio::time::sleep(millis(300..2500)).await;
            world.set_clock_right(&mut operator).await;
            world.recorder.end(record);
        }
    }
}

/// A transaction that stays open for `time`. What it asks for may be refused: then the fault is smaller.
async fn hold_open(world: &World, fault: Fault, sql: &'static str, time: Duration) {
    use sqlx::Connection;
    let Ok(mut db) = sqlx::PgConnection::connect_with(&world.server.operator()).await else { return };
    let record = world.recorder.begin(fault, None);
    if sqlx::raw_sql(sql).execute(&mut db).await.is_ok() {
        tokio::time::sleep(time).await;
    }
    // Closing it rolls back.
    drop(db);
    world.recorder.end(record);
}

/// Not a page is left.
fn fill(disk: &std::path::Path) {
    let file = std::fs::File::create(disk.join("fill")).expect("the disk is ours");
    let stat = statvfs(disk).expect("the disk is there");
    let mut size = stat.f_bavail * stat.f_frsize;
    let mut at = 0;
    // In ever smaller pieces, because the server writes meanwhile.
    while size >= 4096 {
        if fallocate(&file, FallocateFlags::empty(), at, size).is_ok() {
            at += size;
        } else {
            size /= 2;
        }
    }
}
