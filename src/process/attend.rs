//! From the start of a group to its end.

use super::ProcessGroup;
use crate::config::EngineSection;
use rustix::process::Signal;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// How long a background process may hold the pipes open when the program itself has ended.
const LINGER: Duration = Duration::from_secs(2);

/// Waits for the end of a group. `talk` is whatever feeds and reads it. When `stop` completes, the group gets TERM, and
/// KILL after `grace`. Says how the program ended and, if it was told to, what `stop` said.
pub(crate) async fn attend<S>(
    group: ProcessGroup,
    talk: impl Future,
    stop: impl Future<Output = S>,
    grace: Duration,
) -> io::Result<(ExitStatus, Option<S>)> {
    tokio::pin!(talk, stop);
    let (mut talking, mut stopped, mut kill_at) = (true, None, None);
    loop {
        tokio::select! {
            ended = group.ended() => { ended?; break }
            _ = &mut talk, if talking => talking = false,
            why = &mut stop, if stopped.is_none() => {
                stopped = Some(why);
                kill_at = Some(Instant::now() + grace);
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
    Ok((group.reap()?, stopped))
}

/// Between TERM and KILL: a few seconds less than the engine waits for the job.
pub(crate) fn grace(engine: &EngineSection) -> Duration {
    let engine = engine.cancel_grace_seconds;
    Duration::try_from_secs_f64((engine - 3.0).max(engine / 2.0)).unwrap_or_default()
}

/// Finishes the sentence "the program ".
pub(crate) fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}{}", signal_name(signal)),
        (None, None) => format!("ended: {status}"),
    }
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
