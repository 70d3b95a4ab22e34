//! The rosterd that ships: the library with its built-in jobs.

use std::process::ExitCode;

fn main() -> ExitCode {
    rosterd::run(rosterd::jobs::built_in())
}
