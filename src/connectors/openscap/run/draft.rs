//! A result in the making, under a name that no reader looks at.

use super::super::document::{Document, Reading};
use super::super::results::{Budget, Detail};
use super::super::xml::Broken;
use super::reach::is_host;
use super::{Evaluated, not_writable};
use crate::connectors::scanner::FindingStatus;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// What such files begin and end with.
const BEGIN: &str = ".rosterd-";
const END: &str = ".part";
/// Those of runs that were killed are removed when no evaluation can have them any more.
const LEFT_BEHIND: Duration = Duration::from_hours(8 * 24);

/// A file that is gone with its value, unless it was delivered.
#[derive(Debug)]
pub(super) struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    /// A new one in the folder of a group.
    pub(super) fn new(folder: &Path) -> Result<Self, String> {
        remove_what_was_left_behind(folder);
        let path = folder.join(format!("{BEGIN}{}{END}", Uuid::now_v7()));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o644));
        let file = file.map_err(|error| not_writable(&path, &io::Error::from(error)))?;
        Ok(Self { path, file: file.into() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// For the program that writes it.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Under its name and on the disk, if it is a whole result about one of these hosts (about any, if there are none). It is
    /// read as it will be read from now on, so nothing replaces a good result that would not be taken for one.
    pub(super) fn deliver(self, reading: &Reading, hosts: &[String]) -> Result<Evaluated, String> {
        let document = Document::File(self.path.clone(), "its result".to_owned());
        let results = document.results(reading, Detail::All, &mut Budget::default());
        let results = results.map_err(|broken| match broken {
            Broken::Truncated => "its result ends in the middle".to_owned(),
            Broken::Bad(problem) => format!("its result {problem}"),
            Broken::Unwanted => "the reading was ended".to_owned(),
        })?;
        let [report] = &results.reports[..] else {
            return Err(format!("its result is about {} hosts, not one", results.reports.len()));
        };
        let asset = &report.device.asset;
        if !is_host(asset) {
            return Err(format!("its result is about {asset:?}, which is no name of a host"));
        }
        if !hosts.is_empty() && !hosts.contains(asset) {
            return Err(format!(
                "its result is about {asset:?}, and was asked for about {:?}",
                hosts.join(", ")
            ));
        }
        if report.assessed.is_none() {
            return Err("its result does not say when it was made".to_owned());
        }
        let evaluated = Evaluated {
            asset: asset.clone(),
            rules: report.said.len(),
            failed: report.said.iter().filter(|said| said.status == FindingStatus::Vulnerable).count(),
        };
        let target = self.path.with_file_name(format!("{asset}.xml"));
        self.settle(&target).map_err(|error| not_writable(&target, &error))?;
        Ok(evaluated)
    }

    fn settle(&self, target: &Path) -> io::Result<()> {
        // oscap may have made another file of this name.
        File::open(&self.path)?.sync_all()?;
        std::fs::rename(&self.path, target)?;
        target.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.path.display(), %error, "a temporary file stays");
            }
            _ => {}
        }
    }
}

fn remove_what_was_left_behind(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let modified = entry.metadata().and_then(|file| file.modified());
        let is_old =
            modified.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > LEFT_BEHIND));
        if name.starts_with(BEGIN) && name.ends_with(END) && is_old {
            // Somebody else may have removed it just now.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
