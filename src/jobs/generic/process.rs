//! A child process with everything it starts: one process group, which never outlives its value.

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use tokio::io::unix::AsyncFd;

/// A running group. Its leader is not reaped before the group is killed for good, so the group's number
/// cannot meanwhile become that of somebody else.
pub(super) struct ProcessGroup {
    leader: Option<Child>,
    pid: Pid,
    exit: Option<AsyncFd<OwnedFd>>,
}

impl ProcessGroup {
    /// Starts a command that was given a process group of its own, with three pipes.
    pub(super) fn spawn(command: &mut Command) -> io::Result<(Self, ChildStdin, ChildStdout, ChildStderr)> {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut leader = pipes.spawn()?;
        let pipes = (leader.stdin.take(), leader.stdout.take(), leader.stderr.take());
        let pid = Pid::from_child(&leader);
        let mut group = Self { leader: Some(leader), pid, exit: None };
        group.exit = Some(watch(pidfd_open(pid, PidfdFlags::empty())?)?);
        match pipes {
            (Some(stdin), Some(stdout), Some(stderr)) => Ok((group, stdin, stdout, stderr)),
            _ => Err(io::Error::other("the child has no pipes")),
        }
    }

    /// Completes when the leader has ended.
    pub(super) async fn ended(&self) -> io::Result<()> {
        match &self.exit {
            Some(exit) => exit.readable().await.map(drop),
            None => Ok(()),
        }
    }

    /// Sends a signal to all of the group.
    pub(super) fn signal(&self, signal: Signal) {
        // No such process: the group is empty already.
        let _ = kill_process_group(self.pid, signal);
    }

    /// Kills what is left of the group of an ended leader, and says how the leader ended.
    pub(super) fn reap(mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        match self.leader.take() {
            Some(mut leader) => leader.wait(),
            None => Err(io::Error::other("the child was reaped twice")),
        }
    }
}

// Deprecated for types that lie about their descriptor; an OwnedFd does not, and the replacement is unsafe.
#[allow(deprecated)]
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(pidfd)
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(mut leader) = self.leader.take() {
            self.signal(Signal::KILL);
            if !matches!(leader.try_wait(), Ok(Some(_))) {
                // It ends at any moment, unless the kernel holds it; no task waits for that.
                let reaper = std::thread::Builder::new().name("reaper".to_owned());
                drop(reaper.spawn(move || drop(leader.wait())));
            }
        }
    }
}
