//! rosterd: the job scheduler you run with SQL.
//!
//! An operator inserts a `JobHistory` row with `StatusID` 1 and a registered job runs; they set `StatusID` -1
//! and it stops. This is the library behind the program: jobs of your own are added with
//! `rosterd::run(rosterd::jobs::built_in().register(MyJob))`, see [`job::Job`].
//!
//! # One row through the house
//!
//! 1. The row is inserted: by hand, by a schedule ([`schedule::tick`]), at a daemon's start
//!    ([`schedule::autostart`]), or by another job ([`job::JobContext::enqueue`]). A trigger fills what the INSERT
//!    left out and refuses what makes no sense; the migrations hold both.
//! 2. A runner **claims** it ([`history::moves::claim`]), woken by a hint ([`postgres::listen`]) or the clock. It
//!    is a [`history::ClaimedJob`] now, fenced by runner, claim and attempt.
//! 3. It is **dispatched**: its job is found in the [`registry`] and its payload decoded.
//! 4. It is **executed** on a runtime of its own, with a [`job::JobContext`]: sources behind the
//!    [`limits`], a cancellation token, a log, progress. Meanwhile the heartbeat keeps the runner's lease and
//!    hears cancels.
//! 5. Its outcome is **reported** ([`history::moves::settle`]): completed, error, canceled, or pending again for a
//!    retry or the next iteration.
//!
//! `daemon` starts and stops all of this in order; `cli` is the command line around it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod cli;
pub mod config;
pub mod config_rows;
pub mod connectors;
mod daemon;
mod engine;
pub mod history;
pub mod job;
pub mod jobs;
mod lease;
pub mod limits;
pub mod log;
pub mod postgres;
mod process;
pub mod registry;
pub mod schedule;
pub mod secrets;
mod seeded_bugs;
mod systemd;
pub mod testing;
pub mod vitals;
pub mod web;

pub use cli::run;

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
