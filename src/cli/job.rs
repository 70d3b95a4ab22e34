//! `rosterd job list` and `rosterd job schema`: what this binary can run. No database is asked.

use super::Failure;
use super::output::{say, say_json, table};
use crate::registry::{AnyJob, Registry};
use serde_json::{Value, json};

/// What to tell about jobs.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Job {
    /// List the jobs this program can run; fields of the payload with * are required.
    List {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of a job's payload.
    Schema {
        /// The job, in any spelling that finds it.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

pub(super) fn run(registry: &Registry, command: &Job) -> Result<(), Failure> {
    match command {
        Job::List { json: true } => {
            let jobs: Vec<Value> = registry
                .iter()
                .map(|job| {
                    json!({
                        "struct": job.name(),
                        "description": job.description(),
                        "priority": job.priority(),
                        "payload_schema": job.schema(),
                    })
                })
                .collect();
            say_json(&json!({ "jobs": jobs }))
        }
        Job::List { json: false } => {
            let rows = registry.iter().map(|job| {
                [
                    job.name().to_owned(),
                    job.priority().to_string(),
                    job.description().to_owned(),
                    fields(&**job).join(", "),
                ]
            });
            say(&table(["JOB", "PRIORITY", "DESCRIPTION", "PAYLOAD"], rows))
        }
        Job::Schema { name } => match registry.find(name) {
            Some(job) => say_json(job.schema()),
            None => Err(Failure::usage(unknown(name, registry.iter().map(|job| job.name())))),
        },
    }
}

/// The names of the payload's fields, the required ones with a star.
fn fields(job: &dyn AnyJob) -> Vec<String> {
    let schema = job.schema();
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|known| known == name));
    let properties = schema.get("properties").and_then(Value::as_object);
    properties
        .into_iter()
        .flat_map(|properties| properties.keys())
        .map(|name| if is_required(name) { format!("{name}*") } else { name.clone() })
        .collect()
}

/// "there is no job `x`", with the nearest of those that are.
pub(super) fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let wanted = crate::registry::job_key(name);
    let alike = |known: &str| strsim::jaro_winkler(&crate::registry::job_key(known), &wanted);
    let nearest = known.max_by(|one, other| alike(one).total_cmp(&alike(other)));
    match nearest {
        Some(nearest) => format!("there is no job `{name}`, the nearest is `{nearest}`"),
        None => format!("there is no job `{name}`, and no other"),
    }
}
