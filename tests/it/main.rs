//! The tests that go through the public door: SQL, and the real binary.
//!
//! One private PostgreSQL serves them all, and each test has a database of its own on it. Run as
//! `cargo test`; nothing has to be set up.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub, reason = "helpers of tests are tests")]

mod attempts;
mod audit;
mod autostart;
mod bad_input;
mod cancel;
mod claiming;
mod cli;
mod clocks;
mod continuous;
mod control_plane;
mod database_pool;
mod disk_full;
mod effects;
mod embedded;
mod engine;
mod failover;
mod failures_page;
mod faq;
mod generic_jobs;
mod guard;
mod jira;
mod limit_edges;
mod limit_priorities;
mod limits;
mod load;
mod locked_tables;
mod logs;
mod many_runners;
mod nexpose;
mod odd_servers;
mod openscap;
mod openscap_run;
mod operator_fuzz;
mod outages;
mod plans;
mod poison;
mod qualys;
mod rescue_races;
mod restart;
mod retention;
mod roles;
mod roles_commands;
mod roles_matrix;
mod roles_operators;
mod roles_sql_job;
mod rolling_restart;
mod schedule_oracle;
mod schedule_properties;
mod schedules;
mod schema;
mod secret_commands;
mod secrets;
mod service;
mod source_client;
mod source_tls;
mod support;
mod vulnerability_faults;
mod vulnerability_jira;
mod vulnerability_loop;
mod vulnerability_nexpose;
mod vulnerability_page;
mod waiting;
