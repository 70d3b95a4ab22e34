//! What a program reads and says: all of it to the log, line by line, and a capped part kept.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// One of the outputs of a program.
pub(crate) struct Capture {
    kept: Vec<u8>,
    max: usize,
    truncated: bool,
    line: Vec<u8>,
    line_cut: bool,
    last_line: String,
}

impl Capture {
    /// Longer lines are cut in the log.
    const MAX_LINE: usize = 8192;

    /// Keeps at most so many bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            kept: Vec::new(),
            max,
            truncated: false,
            line: Vec::new(),
            line_cut: false,
            last_line: String::new(),
        }
    }

    /// Reads to the end; `log` gets each line. May be dropped at any time without losing what was read.
    pub(crate) async fn read(&mut self, mut pipe: impl AsyncRead + Unpin, log: impl Fn(&str)) {
        let mut buffer = vec![0; 16 * 1024];
        // An error of a pipe means as much as its end.
        while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
            self.take(&buffer[..n], &log);
        }
    }

    fn take(&mut self, bytes: &[u8], log: &impl Fn(&str)) {
        let room = self.max - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.truncated |= bytes.len() > room;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            let room = Self::MAX_LINE - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.line_cut |= text.len() > room;
            if ends {
                self.end_line(log);
            }
        }
    }

    /// Logs a last line that has no end.
    pub(crate) fn finish(&mut self, log: impl Fn(&str)) {
        self.end_line(&log);
    }

    fn end_line(&mut self, log: &impl Fn(&str)) {
        let mut text = as_text(&self.line);
        text.truncate(text.trim_end().len());
        if std::mem::take(&mut self.line_cut) {
            text.push_str(" ... (cut)");
        }
        self.line.clear();
        if !text.is_empty() {
            log(&text);
            self.last_line = text;
        }
    }

    /// The last line that said something.
    pub(crate) fn last_line(&self) -> &str {
        &self.last_line
    }

    /// What was kept.
    pub(crate) fn text(&self) -> String {
        as_text(&self.kept)
    }

    /// Whether there was more.
    pub(crate) fn truncated(&self) -> bool {
        self.truncated
    }
}

/// Text that a database takes: valid UTF-8 without NUL.
fn as_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', "")
}

/// Writes a program's input and ends it. A program that does not read it to the end is none of our business.
pub(crate) async fn feed(mut pipe: impl AsyncWrite + Unpin, input: &[u8]) {
    let _ = pipe.write_all(input).await;
    let _ = pipe.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn lines(max: usize, chunks: &[&[u8]]) -> (Vec<String>, Capture) {
        let lines = RefCell::new(Vec::new());
        let log = |line: &str| lines.borrow_mut().push(line.to_owned());
        let mut capture = Capture::new(max);
        for chunk in chunks {
            capture.take(chunk, &log);
        }
        capture.finish(log);
        (lines.into_inner(), capture)
    }

    #[test]
    fn lines_are_put_together_from_chunks_and_the_last_needs_no_end() {
        let (lines, capture) = lines(100, &[b"one\r\ntw", b"o\n\nthr", b"ee"]);
        assert_eq!(lines, ["one", "two", "three"]);
        assert_eq!((capture.text().as_str(), capture.last_line()), ("one\r\ntwo\n\nthree", "three"));
    }

    #[test]
    fn what_is_kept_is_capped_and_says_so() {
        let (lines, capture) = lines(4, &[b"abc\nde", b"f\n"]);
        assert_eq!(lines, ["abc", "def"]);
        assert_eq!((capture.text().as_str(), capture.truncated()), ("abc\n", true));
    }

    #[test]
    fn overlong_lines_invalid_text_and_nul_do_no_harm() {
        let (lines, capture) = lines(10, &[&b"x".repeat(20_000), b"\nbad \xff\0 end\n"]);
        assert_eq!(lines[0].len(), Capture::MAX_LINE + " ... (cut)".len());
        assert_eq!(lines[1], "bad \u{fffd} end");
        assert!(capture.truncated());
    }
}
