//! `unreachable.csv`: hosts that did not answer whoever collects results, a line each: `asset,time,reason`. It is appended
//! to by scripts and by `OpenScapRunJob`, so it is read tolerantly: what makes no sense is told, and the other lines count.

use super::document::{Complaint, is_fresh, open_file};
use super::prose::one_line;
use super::results::{MAX_ASSET, time};
use chrono::{DateTime, Utc};
use rustix::fs::{Mode, OFlags};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// When a host did not answer, and what was seen of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreachable {
    pub(super) time: DateTime<Utc>,
    pub(super) reason: String,
}

/// Of the file.
const MAX_BYTES: u64 = 4 << 20;
/// Of a reason, in characters.
const MAX_REASON: usize = 1000;
/// Lines that are complained about.
const MAX_COMPLAINTS: usize = 20;

/// By asset.
pub(super) type Hosts = HashMap<String, Unreachable>;

/// The last time of each host, and what makes no sense in the file, which is called by `name`. No file is an empty one.
pub(super) fn read(file: &Path, name: &str) -> (Hosts, Vec<Complaint>) {
    let (mut hosts, mut complaints) = (Hosts::new(), Vec::new());
    let unreadable = |error: io::Error| Complaint {
        about: name.to_owned(),
        problem: format!("it cannot be read: {error}"),
    };
    let opened = match open_file(file) {
        Ok(opened) => opened,
        Err(error) => {
            complaints.extend((error.kind() != io::ErrorKind::NotFound).then(|| unreadable(error)));
            return (hosts, complaints);
        }
    };
    let fresh = is_fresh(opened.metadata().and_then(|file| file.modified()));
    let mut lines = BufReader::new(opened.take(MAX_BYTES + 1));
    let (mut line, mut number) = (Vec::new(), 0);
    loop {
        line.clear();
        if let Err(error) = lines.read_until(b'\n', &mut line) {
            complaints.push(unreadable(error));
            break;
        }
        number += 1;
        if !line.ends_with(b"\n") {
            if lines.get_ref().limit() == 0 {
                let problem = format!("it has more than {MAX_BYTES} bytes, and is not read further");
                complaints.push(Complaint { about: name.to_owned(), problem });
                break;
            }
            // The end, or a line that somebody writes at this moment.
            if fresh || line.is_empty() {
                break;
            }
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() || text.starts_with('#') || (number == 1 && text.starts_with("asset,")) {
            continue;
        }
        match host(text) {
            Ok((asset, new)) => {
                let newest = hosts.entry(asset).or_insert_with(|| new.clone());
                if new.time > newest.time {
                    *newest = new;
                }
            }
            Err(problem) if complaints.len() < MAX_COMPLAINTS => {
                let about = format!("{name} line {number}");
                complaints.push(Complaint { about, problem: problem.to_owned() });
            }
            Err(_) => {}
        }
    }
    (hosts, complaints)
}

/// Adds a line with one write, so that others may add theirs at the same time.
pub(super) fn append(file: &Path, asset: &str, time: DateTime<Utc>, reason: &str) -> io::Result<()> {
    let flags = OFlags::RDWR
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK;
    let mut file = File::from(rustix::fs::open(file, flags, Mode::from_raw_mode(0o644))?);
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    let (mut last, reason) = ([b'\n'], one_line(reason, MAX_REASON));
    if about.len() > 0 {
        file.read_exact_at(&mut last, about.len() - 1)?;
    }
    // Whoever left a line without its end must not swallow ours.
    let begin = if last == [b'\n'] { "" } else { "\n" };
    let line = format!("{begin}{asset},{},{reason}\n", time.format("%Y-%m-%dT%H:%M:%SZ"));
    let written = file.write(line.as_bytes())?;
    if written < line.len() {
        return Err(io::Error::other(format!("took {written} of {} bytes of a line", line.len())));
    }
    file.sync_all()
}

fn host(line: &str) -> Result<(String, Unreachable), &'static str> {
    let mut fields = line.splitn(3, ',').map(|field| field.trim().trim_matches('"'));
    let (asset, at) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
    if asset.is_empty() || asset.chars().count() > MAX_ASSET {
        return Err("it names no asset of 1 to 360 characters; give asset,time,reason");
    }
    let at =
        time(at).ok_or("its second field is no time such as 2026-11-22T01:51:12Z; give asset,time,reason")?;
    let reason = one_line(fields.next().unwrap_or_default(), MAX_REASON);
    Ok((asset.to_owned(), Unreachable { time: at, reason }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &[u8]) -> (Hosts, Vec<Complaint>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("unreachable.csv");
        std::fs::write(&file, text).unwrap();
        read(&file, "unreachable.csv")
    }

    #[test]
    fn a_line_that_makes_no_sense_is_told_and_the_others_count() {
        let (hosts, complaints) = read_text(
            b"asset,time,reason\r\na,2026-11-22T01:00:00Z,\"timed out, twice\"\r\n\n# note\na,2026-11-21T01:00:00Z,older
b,yesterday,x\n,2026-11-22T01:00:00Z\n\xff\nc,2026-11-22T03:00:00+02:00\n",
        );
        let at = "2026-11-22T01:00:00Z".parse().unwrap();
        assert_eq!(hosts["a"], Unreachable { time: at, reason: "timed out, twice".to_owned() });
        assert_eq!(hosts["c"], Unreachable { time: at, reason: String::new() });
        let places: Vec<&str> = complaints.iter().map(|one| one.about.as_str()).collect();
        assert_eq!(places, ["unreachable.csv line 6", "unreachable.csv line 7", "unreachable.csv line 8"]);
    }

    #[test]
    fn a_last_line_that_is_being_written_is_left_for_the_next_time() {
        let (hosts, complaints) = read_text(b"a,2026-11-22T01:00:00Z,x\nb,2026-11-");
        assert_eq!((hosts.len(), complaints.len()), (1, 0));
    }

    #[test]
    fn a_line_that_is_added_stands_alone_whatever_was_there_and_whoever_adds_others() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("unreachable.csv");
        let at: DateTime<Utc> = "2026-11-22T01:00:00Z".parse().unwrap();
        append(&file, "a", at, "one,\ntwo").unwrap();
        let text = "a,2026-11-22T01:00:00Z,one, two\n";
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        std::fs::write(&file, "half a li").unwrap();
        append(&file, "a", at, "").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "half a li\na,2026-11-22T01:00:00Z,\n");
        std::fs::remove_file(&file).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| append(&file, "b", at, "timed out").unwrap()));
            }
        });
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.matches("b,2026-11-22T01:00:00Z,timed out\n").count(), 400);
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/nowhere/else", &file).unwrap();
        assert!(append(&file, "a", at, "").is_err());
    }

    #[test]
    fn a_file_without_end_is_given_up() {
        let line = b"a,2026-11-22T01:00:00Z,x\n";
        let (hosts, complaints) =
            read_text(&line.repeat(usize::try_from(MAX_BYTES).unwrap() / line.len() + 1));
        assert_eq!((hosts.len(), complaints.len()), (1, 1));
        assert!(complaints[0].problem.starts_with("it has more than"), "{complaints:?}");
    }

    #[test]
    fn no_file_is_an_empty_one() {
        let (hosts, complaints) = read(Path::new("/nowhere/unreachable.csv"), "unreachable.csv");
        assert!(hosts.is_empty() && complaints.is_empty());
    }
}
