//! `CommandJob`: a program from the allow-list.

use super::allow_list::AllowedCommand;
use super::cut;
use super::pipes::{Capture, feed};
use super::process::ProcessGroup;
use crate::job::{Job, JobContext, JobError, Outcome};
use rustix::process::Signal;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::time::{Instant, sleep_until, timeout};

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
        let pipes = Pipes {
            stdin: ChildStdin::from_std(stdin)?,
            stdout: ChildStdout::from_std(stdout)?,
            stderr: ChildStderr::from_std(stderr)?,
        };

        let max = settings.commands.output_max_bytes;
        let mut said = Said { stdout: Capture::new(max), stderr: Capture::new(max) };
        let (status, stopped) = attend(&ctx, group, pipes, payload.stdin.as_bytes(), &mut said).await?;

        let result = json!({
            "exit_code": status.code(),
            "stdout": said.stdout.text(),
            "stderr": said.stderr.text(),
            "truncated": said.stdout.truncated() || said.stderr.truncated(),
        });
        if status.success() && !stopped {
            return Ok(Outcome::with_result(result));
        }
        let how = match (stopped, status.code(), status.signal()) {
            (true, ..) => "was stopped".to_owned(),
            (false, Some(code), _) => format!("exited with code {code}"),
            (false, None, Some(signal)) => format!("was killed by signal {signal}{}", signal_name(signal)),
            (false, None, None) => format!("ended: {status}"),
        };
        let last = cut(said.stderr.last_line(), 2000);
        let colon = if last.is_empty() { "" } else { ": " };
        let sentence = format!("command {name} {how}{colon}{last}");
        let error =
            if stopped { JobError::stopped_because(sentence) } else { JobError::retry_message(sentence) };
        Err(error.with_result(result))
    }
}

struct Pipes {
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

struct Said {
    stdout: Capture,
    stderr: Capture,
}

/// How long a background process may hold the pipes open when the program itself has ended.
const LINGER: Duration = Duration::from_secs(2);

/// From the start to the end of a group: feeds it, reads it, stops it when the run shall stop. Says how the
/// program ended and whether it was told to.
async fn attend(
    ctx: &JobContext,
    group: ProcessGroup,
    pipes: Pipes,
    input: &[u8],
    said: &mut Said,
) -> io::Result<(ExitStatus, bool)> {
    let (info, warn) = (|line: &str| ctx.info(line), |line: &str| ctx.warn(line));
    let mut stopped = false;
    {
        let talk = async {
            tokio::join!(
                feed(pipes.stdin, input),
                said.stdout.read(pipes.stdout, info),
                said.stderr.read(pipes.stderr, warn),
            )
        };
        tokio::pin!(talk);
        let mut talking = true;
        let mut kill_at = None;
        loop {
            tokio::select! {
                ended = group.ended() => { ended?; break }
                _ = &mut talk, if talking => talking = false,
                () = ctx.cancelled(), if !stopped => {
                    stopped = true;
                    kill_at = Some(Instant::now() + grace(ctx));
                    group.signal(Signal::TERM);
                }
                () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                    kill_at = None;
                    group.signal(Signal::KILL);
                }
            }
        }
        if talking && timeout(LINGER, &mut talk).await.is_err() {
            group.signal(Signal::KILL);
            // A process that left the group can hold the pipes still; it is not waited for any longer.
            let _ = timeout(Duration::from_millis(500), &mut talk).await;
        }
    }
    said.stdout.finish(info);
    said.stderr.finish(warn);
    Ok((group.reap()?, stopped))
}

/// Between TERM and KILL: a few seconds less than the engine waits for the job.
fn grace(ctx: &JobContext) -> Duration {
    let engine = ctx.settings().engine.cancel_grace_seconds;
    Duration::try_from_secs_f64((engine - 3.0).max(engine / 2.0)).unwrap_or_default()
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (HUP)",
        2 => " (INT)",
        3 => " (QUIT)",
        4 => " (ILL)",
        6 => " (ABRT)",
        7 => " (BUS)",
        8 => " (FPE)",
        9 => " (KILL)",
        11 => " (SEGV)",
        13 => " (PIPE)",
        14 => " (ALRM)",
        15 => " (TERM)",
        24 => " (XCPU)",
        25 => " (XFSZ)",
        31 => " (SYS)",
        _ => "",
    }
}
