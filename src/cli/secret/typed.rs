//! A secret as it comes in: by a pipe, or typed in without being shown. Never as an argument, which others can see.

use crate::cli::Failure;
use crate::cli::output::remark;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use std::io::{IsTerminal, Read, Stdin, Write};

/// A larger secret is no secret but a mistake, such as a wrong file.
const MAX_BYTES: u64 = 65_536;

/// Reads a secret from standard input. From a terminal: one line, asked for with `prompt` and not shown. From a pipe
/// or file: all of it, without the line end that `echo` and editors put behind it.
pub(super) fn read(prompt: &str) -> Result<SecretString, Failure> {
    let stdin = std::io::stdin();
    let fail =
        |e: std::io::Error| Failure::usage(format!("failed to read the secret from standard input: {e}"));
    let mut bytes = Zeroizing::new(Vec::with_capacity(1024));
    if stdin.is_terminal() {
        let _ = write!(std::io::stderr(), "{prompt}: ");
        let _silence = Silence::of(&stdin).map_err(|e| fail(e.into()))?;
        let mut byte = [0];
        let mut input = stdin.lock();
        while bytes.len() as u64 <= MAX_BYTES && input.read(&mut byte).map_err(fail)? > 0 && byte != *b"\n" {
            bytes.push(byte[0]);
        }
        remark("");
    } else {
        stdin.lock().take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    }
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Failure::usage(format!("a secret has at most {MAX_BYTES} bytes, this one is longer")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| Failure::usage("the secret is not UTF-8 text"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(Failure::usage("the secret is empty; give it by standard input"));
    }
    Ok(SecretString::from(text))
}

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Silence<'a> {
    terminal: &'a Stdin,
    before: Termios,
}

impl<'a> Silence<'a> {
    fn of(terminal: &'a Stdin) -> rustix::io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing any more.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}
