//! The tests that go through the public door: SQL, and the real binary.
//!
//! One private PostgreSQL serves them all, and each test has a database of its own on it. Run as
//! `cargo test`; nothing has to be set up.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::float_cmp,
    unreachable_pub,
    reason = "helpers of tests are tests, and compare whole numbers that the database printed as text"
)]

mod attempts;
mod autostart;
mod claiming;
mod continuous;
mod control_plane;
mod embedded;
mod engine;
mod generic_jobs;
mod logs;
mod plans;
mod restart;
mod schedule_oracle;
mod schedule_properties;
mod schedules;
mod service;
mod support;
