//! Signals, by pid and name.

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Sends it. A process that is gone already is no error: that is what faults are like.
pub fn send(pid: i32, name: &str) {
    let signal = match name {
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "KILL" => Signal::KILL,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        "TERM" => Signal::TERM,
        other => panic!("no signal {other}"),
    };
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether there is such a process, which may be a zombie.
pub fn is_alive(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}
