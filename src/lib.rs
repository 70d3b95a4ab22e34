//! rosterd library (tour to be written at the end).
pub mod config;
pub mod config_rows;
pub mod connectors;
pub mod history;
pub mod job;
pub mod jobs;
pub mod limits;
pub mod registry;
pub mod testing;
