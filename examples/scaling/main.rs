//! How many databases and runners so many jobs a day need: `cargo run --example scaling`.
//!
//! Reads what `cargo bench --bench daemon -- scaling --write` has measured and prints the tables of docs/scaling.md. Every
//! value of the machine and of the jobs can be given another way: `cargo run --example scaling -- database_cores=32
//! run_seconds=5`. `--write` puts the tables of the usual values into the document.

#![allow(clippy::print_stdout, reason = "it is what it is for")]

#[allow(dead_code, reason = "the bench, which shares it, uses the rest")]
mod model;
#[cfg(test)]
mod model_tests;
mod tables;
#[cfg(test)]
mod tables_tests;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;
use tables::{MACHINE, MIX, Scaling};

const RESULTS: &str = "benches/results/daemon.json";
const MEASURE: &str = "cargo bench --bench daemon -- scaling --write";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("scaling: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<String>) -> Result<String, String> {
    let (options, changes): (Vec<String>, Vec<String>) =
        arguments.into_iter().partition(|argument| argument.starts_with("--"));
    if let Some(option) = options.iter().find(|option| *option != "--write") {
        return Err(format!("there is no option {option}"));
    }
    let write = !options.is_empty();
    if write && !changes.is_empty() {
        return Err("only the tables of the usual values are written".to_owned());
    }
    let (machine, mix) = changed(&changes)?;
    let section = tables::section(&measured()?, &machine, &mix);
    if write {
        tables::write(&section).map_err(|error| format!("failed to write docs/scaling.md: {error}"))?;
    }
    Ok(section)
}

fn measured() -> Result<Scaling, String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(RESULTS);
    let text = std::fs::read_to_string(path).map_err(|error| format!("failed to read {RESULTS}: {error}"))?;
    let mut results: Value =
        serde_json::from_str(&text).map_err(|error| format!("failed to read {RESULTS}: {error}"))?;
    match results.get_mut("scaling").map(Value::take) {
        None | Some(Value::Null) => Err(format!("nothing was measured yet: {MEASURE}")),
        Some(scaling) => serde_json::from_value(scaling)
            .map_err(|error| format!("{RESULTS} is of another version ({error}): {MEASURE}")),
    }
}

/// The usual machine and jobs, with what `name=value` says of either.
fn changed(changes: &[String]) -> Result<(model::Machine, model::Mix), String> {
    let (mut machine, mut mix) = (to_json(MACHINE)?, to_json(MIX)?);
    for change in changes {
        let problem = || format!("{change} is not name=value with a positive number");
        let (name, value) = change.split_once('=').ok_or_else(problem)?;
        let value: f64 = value.parse().map_err(|_| problem())?;
        if !(value > 0.0 && value.is_finite()) {
            return Err(problem());
        }
        match (machine.get_mut(name), mix.get_mut(name)) {
            (Some(place), _) | (None, Some(place)) => *place = value.into(),
            (None, None) => {
                let names = |of: &Value| {
                    of.as_object()
                        .map_or(String::new(), |of| of.keys().cloned().collect::<Vec<_>>().join(", "))
                };
                return Err(format!("there is no {name}; there are {}, {}", names(&machine), names(&mix)));
            }
        }
    }
    Ok((from_json(machine)?, from_json(mix)?))
}

fn to_json(of: impl Serialize) -> Result<Value, String> {
    serde_json::to_value(of).map_err(|error| error.to_string())
}

fn from_json<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: &str) -> Result<(model::Machine, model::Mix), String> {
        changed(&[change.to_owned()])
    }

    #[test]
    fn a_value_of_machine_or_jobs_can_be_changed_by_its_name() {
        let changed = with("database_cores=32");
        assert!(
            changed.is_ok_and(|(machine, mix)| (machine.database_cores - 32.0).abs() < 1e-9 && mix == MIX)
        );
        assert!(with("run_seconds=5").is_ok_and(|(machine, mix)| machine == MACHINE && mix != MIX));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert!(with("cores=32").is_err_and(|problem| problem.contains("database_cores")));
        assert!(with("peak=0").is_err());
        assert!(with("peak").is_err());
        assert!(run(vec!["--rite".to_owned()]).is_err());
        assert!(run(vec!["--write".to_owned(), "peak=2".to_owned()]).is_err());
    }
}
