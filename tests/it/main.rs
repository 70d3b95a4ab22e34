//! The tests that go through the public door: SQL, and the real binary.
//!
//! One private PostgreSQL serves them all, and each test has a database of its own on it. Run as
//! `cargo test`; nothing has to be set up.

mod cli;
mod embedded;
mod engine;
mod generic_jobs;
mod schedule_oracle;
mod schedule_properties;
mod support;
