//! What commands print: tables for people, one JSON document for machines, and no panic on a closed pipe.

use super::Failure;
use chrono::{DateTime, Utc};
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;
use std::io::{ErrorKind, Write};
use std::time::Duration;

/// A line on stdout, sent at once. Whoever closed the pipe has read enough, which is no failure.
pub(super) fn say(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::usage(format!("failed to write the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// A line on stderr, for what is no part of the answer. If nobody listens it is lost.
pub(super) fn remark(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// One JSON document on stdout.
pub(super) fn say_json(document: &Value) -> Result<(), Failure> {
    say(&format!("{document:#}"))
}

/// A table without borders. In a terminal it is as wide as that; in a pipe no line is broken.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| one_line(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A titled part of a longer answer.
pub(super) fn section(title: &str, body: &str) -> Result<(), Failure> {
    say(&format!("{title}\n{body}\n"))
}

/// Texts from the database on one line, and without the control characters that would steer a terminal.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// An instant in UTC, to the second; "-" where there is none.
pub(super) fn time(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%S").to_string())
}

/// A length of time in its two largest units: "3 d 4 h", "2 min", "0 s".
fn length(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        return "0 s".to_owned();
    }
    let mut left = time.as_secs();
    let mut parts = Vec::new();
    for (unit, name) in [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")] {
        if left >= unit && parts.len() < 2 {
            parts.push(format!("{} {name}", left / unit));
            left %= unit;
        }
    }
    parts.join(" ")
}

/// The same from seconds as the database gives them; nothing below zero.
pub(super) fn seconds(seconds: f64) -> String {
    length(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default())
}

/// "1 row", "2 rows".
pub(super) fn count(n: impl Into<i64>, one: &str) -> String {
    let n = n.into();
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// An address without the password that it may hold: `postgres://user:***@host/db`.
pub(super) fn without_password(address: &str) -> String {
    let Some(scheme) = address.find("://").map(|at| at + 3) else { return address.to_owned() };
    let authority = address[scheme..].find(['/', '?', '#']).map_or(address.len(), |at| scheme + at);
    match address[scheme..authority].rfind('@').map(|at| scheme + at) {
        Some(at) => match address[scheme..at].find(':') {
            Some(colon) => format!("{}:***{}", &address[..scheme + colon], &address[at..]),
            None => address.to_owned(),
        },
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_told_in_their_two_largest_units() {
        for (time, told) in [
            (Duration::ZERO, "0 s"),
            (Duration::from_millis(999), "0 s"),
            (Duration::from_secs(1), "1 s"),
            (Duration::from_secs(61), "1 min 1 s"),
            (Duration::from_secs(3 * 86_400 + 4 * 3_600 + 59), "3 d 4 h"),
        ] {
            assert_eq!(length(time), told);
        }
    }

    #[test]
    fn passwords_in_addresses_are_masked_and_addresses_without_stay() {
        assert_eq!(without_password("postgres://u:p@ss@h:1/d?x=@"), "postgres://u:***@h:1/d?x=@");
        for plain in ["https://api.example.com:8443/x@y", "postgres://u@h/d", "10.0.0.1", ""] {
            assert_eq!(without_password(plain), plain);
        }
    }

    #[test]
    fn control_characters_of_the_database_do_not_reach_the_terminal() {
        assert_eq!(one_line("a\u{1b}[31m\nb\r"), "a [31m b");
    }
}
