//! A child process with everything it starts: one process group, which never outlives its value.

use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process_group, pidfd_open, prlimit};
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use tokio::io::unix::AsyncFd;

/// A running group. Its leader is not reaped before the group is killed for good, so the group's number
/// cannot meanwhile become that of somebody else.
pub(crate) struct ProcessGroup {
    leader: Option<Child>,
    pid: Pid,
    exit: Option<AsyncFd<OwnedFd>>,
}

/// Those ends of a child that are pipes.
pub(crate) struct Pipes {
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
}

impl ProcessGroup {
    /// Starts a command that was given a process group of its own, with three pipes.
    pub(crate) fn spawn(command: &mut Command) -> io::Result<(Self, ChildStdin, ChildStdout, ChildStderr)> {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match Self::start(piped)? {
            (group, Pipes { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) }) => {
                Ok((group, stdin, stdout, stderr))
            }
            _ => Err(io::Error::other("the child has no pipes")),
        }
    }

    /// The same with whatever the command has for its input and outputs.
    pub(crate) fn start(command: &mut Command) -> io::Result<(Self, Pipes)> {
        let mut leader = command.spawn()?;
        let pipes =
            Pipes { stdin: leader.stdin.take(), stdout: leader.stdout.take(), stderr: leader.stderr.take() };
        let pid = Pid::from_child(&leader);
        let mut group = Self { leader: Some(leader), pid, exit: None };
        group.exit = Some(watch(pidfd_open(pid, PidfdFlags::empty())?)?);
        Ok((group, pipes))
    }

    /// From now on the leader, and what it starts, cannot write a file longer than this.
    pub(crate) fn limit_files(&self, bytes: u64) -> io::Result<()> {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        prlimit(Some(self.pid), Resource::Fsize, limit)?;
        Ok(())
    }

    /// Completes when the leader has ended.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        match &self.exit {
            Some(exit) => exit.readable().await.map(drop),
            None => Ok(()),
        }
    }

    /// Sends a signal to all of the group.
    pub(crate) fn signal(&self, signal: Signal) {
        // No such process: the group is empty already.
        let _ = kill_process_group(self.pid, signal);
    }

    /// Kills what is left of the group of an ended leader, and says how the leader ended.
    pub(crate) fn reap(mut self) -> io::Result<ExitStatus> {
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
