//! rosterd library (tour to be written at the end).
pub mod config_rows;
pub mod history;
pub mod limits;
