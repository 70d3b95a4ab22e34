//! `CommandJob`: a program from the allow-list.

use super::allow_list::AllowedCommand;
use super::cut;
use crate::job::{Job, JobContext, JobError, Outcome};
use crate::process::{Capture, ProcessGroup, attend, feed, grace, how_it_ended};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};

/// Runs a program that `commands.d/NAME.toml` allows. Never through a shell.
#[derive(Debug, Clone, Copy)]
pub struct CommandJob;

/// What a row of `CommandJob` says.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandPayload {
    /// Name of the entry in `commands.d`, without `.toml`.
    command: String,
    /// Arguments behind those of the entry, where it allows any; each reaches the program as it stands.
    #[serde(default)]
    args: Vec<String>,
    /// What the program reads from its standard input.
    #[serde(default)]
    stdin: String,
}

impl Job for CommandJob {
    const STRUCT: &'static str = "CommandJob";
    const DESCRIPTION: &'static str = "Runs a program from the allow-list commands.d";
    type Payload = CommandPayload;

    async fn run(&self, ctx: JobContext, payload: CommandPayload) -> Result<Outcome, JobError> {
        let name = payload.command.as_str();
        let settings = ctx.settings();
        let entry = AllowedCommand::read(&settings.commands_dir(), name).map_err(JobError::fatal_message)?;
        let mut command =
            entry.command(&payload.args, &settings.commands.env).map_err(JobError::fatal_message)?;
        let not_started = |e: &dyn std::fmt::Display| {
            JobError::retry_message(format_args!("command {name} did not start: {e}"))
        };
        tokio::select! {
            () = ctx.cancelled() => return Err(JobError::stopped()),
            passed = ctx.may_act() => passed?,
        }
        // Starting a program can wait for a disk. If this run is gone meanwhile, the group ends as it is dropped.
        let started = tokio::task::spawn_blocking(move || ProcessGroup::spawn(&mut command)).await;
        let (group, stdin, stdout, stderr) =
            started.map_err(|e| not_started(&e))?.map_err(|e| not_started(&e))?;
        let (stdin, stdout, stderr) =
            (ChildStdin::from_std(stdin)?, ChildStdout::from_std(stdout)?, ChildStderr::from_std(stderr)?);

        let max = settings.commands.output_max_bytes;
        let (mut out, mut err) = (Capture::new(max), Capture::new(max));
        let (info, warn) = (|line: &str| ctx.info(line), |line: &str| ctx.warn(line));
        let talk = async {
            tokio::join!(
                feed(stdin, payload.stdin.as_bytes()),
                out.read(stdout, info),
                err.read(stderr, warn),
            )
        };
        let (status, stopped) = attend(group, talk, ctx.cancelled(), grace(&settings.engine)).await?;
        out.finish(info);
        err.finish(warn);
        let stopped = stopped.is_some();

        let result = json!({
            "exit_code": status.code(),
            "stdout": out.text(),
            "stderr": err.text(),
            "truncated": out.truncated() || err.truncated(),
        });
        if status.success() && !stopped {
            return Ok(Outcome::with_result(result));
        }
        let how = if stopped { "was stopped".to_owned() } else { how_it_ended(status) };
        let last = cut(err.last_line(), 2000);
        let colon = if last.is_empty() { "" } else { ": " };
        let sentence = format!("command {name} {how}{colon}{last}");
        let error =
            if stopped { JobError::stopped_because(sentence) } else { JobError::retry_message(sentence) };
        Err(error.with_result(result))
    }
}
