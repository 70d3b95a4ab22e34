//! rosterd library (tour to be written at the end).
mod cli;
pub mod config;
pub mod config_rows;
pub mod connectors;
mod daemon;
mod engine;
pub mod history;
pub mod job;
pub mod jobs;
pub mod limits;
pub mod log;
pub mod postgres;
pub mod registry;
pub mod schedule;
mod systemd;
pub mod testing;
pub mod vitals;
pub mod web;

pub use cli::run;
