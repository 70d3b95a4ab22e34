//! Having `oscap` evaluate hosts, and its results put where the source is read.
//!
//! What runs is decided by the configuration file (`[openscap]`); what a row or `Payload` says only chooses among that.

mod draft;
mod programs;
mod reach;

pub use reach::Reach;

use super::collection::{Collection, Ending, Place};
use super::document::Reading;
use super::folder::{Folder, UNREACHABLE};
use super::payload::{OpenScapPayload, Over, RunPayload};
use super::unpack::{Limits, MAX_DOCUMENT_BYTES};
use super::{limits, unreachable};
use crate::config::{Config, OpenScapSection};
use crate::config_rows::SourceConfig;
use crate::connectors::AddressPolicy;
use crate::connectors::scanner::ScannerError;
use crate::process::{Capture, ProcessGroup, attend, how_it_ended};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use draft::Draft;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::process::{ChildStderr, ChildStdin};
use url::Url;

/// Evaluates hosts for a source whose Address is a folder and whose Payload has `run`.
#[derive(Debug)]
pub struct Evaluator {
    source: String,
    folder: Folder,
    run: RunPayload,
    /// Without symbolic links.
    content: PathBuf,
    programs: OpenScapSection,
    policy: AddressPolicy,
    connect_timeout: Duration,
    limits: Limits,
}

/// Whom to evaluate.
#[derive(Debug, Clone, Copy)]
pub enum Whom<'a> {
    /// This host. Its result must be about one of these names, or may be about any if there are none.
    ThisHost(&'a [String]),
    /// Another one, at the address it was reached at.
    Other(&'a str, IpAddr),
}

/// What became of the evaluation of a host.
#[derive(Debug)]
pub enum Evaluation<S> {
    /// Its result is in the folder.
    Done(Evaluated),
    /// It was stopped, and nothing has changed.
    Stopped(S),
}

/// A result that was put into the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluated {
    /// Whom it is about.
    pub asset: String,
    /// Rules that said something.
    pub rules: usize,
    /// Those of them that failed.
    pub failed: usize,
}

/// Lines of a program's errors that are told of each host.
const MAX_LINES: usize = 20;
/// What is kept of a program's errors.
const MAX_ERRORS: usize = 64 << 10;
/// The signal that ends a program which writes a file longer than it may.
const XFSZ: i32 = 25;

impl Evaluator {
    /// Refused where the configuration does not allow what the source wants, or the source does not make sense.
    pub fn new(source: &SourceConfig, settings: &Config) -> Result<Self, ScannerError> {
        let name = format!("{} ({})", source.source, source.id);
        let problem = |problem: String| ScannerError::Source { name: name.clone(), problem };
        let payload = OpenScapPayload::read(&source.payload).map_err(problem)?;
        let run = payload.run.ok_or_else(|| {
            problem("its Payload has no `run`, which says what to run and where".to_owned())
        })?;
        let address = Url::parse(source.address.trim()).ok().filter(|url| url.scheme() == "file");
        let address = address.ok_or_else(|| {
            problem("its Address is no folder, so there is no place for results; give file:/// and the whole path".to_owned())
        })?;
        let folder = Folder::new(&address, &settings.sources.folders).map_err(problem)?;
        let programs = settings.openscap.clone();
        is_allowed(&run, &programs).map_err(problem)?;
        let content = content(&run.content, &programs.content).map_err(problem)?;
        Ok(Self {
            source: name,
            folder,
            run,
            content,
            programs,
            policy: AddressPolicy::new(settings.sources.allow_private.clone()),
            connect_timeout: settings.sources.connect_timeout(),
            limits: limits(&settings.sources),
        })
    }

    /// Where `oscap` runs.
    pub fn over(&self) -> Over {
        self.run.over
    }

    /// Hosts that one row may evaluate at a time.
    pub fn parallel(&self) -> usize {
        self.run.parallel
    }

    /// How long one evaluation may take.
    pub fn time_limit(&self) -> Duration {
        Duration::from_secs(self.run.timeout_seconds)
    }

    /// Whether there is such a group.
    pub fn check(&self, group: &str) -> Result<(), ScannerError> {
        let group = self.folder.group(group);
        group.map(drop).map_err(|problem| ScannerError::Source { name: self.source.clone(), problem })
    }

    /// Whether the host answers where ssh is listened for. An error is a sentence that says why that cannot be told.
    pub async fn reach(&self, host: &str) -> Result<Reach, String> {
        reach::reach(&self.policy, host, self.run.port, self.connect_timeout).await
    }

    /// Evaluates a host and puts the result into the folder of the group, where it replaces the last one of that host. An
    /// error is a sentence, and then nothing has changed.
    pub async fn evaluate<S>(
        &self,
        group: &str,
        whom: Whom<'_>,
        stop: impl Future<Output = S>,
        grace: Duration,
        log: impl Fn(&str),
    ) -> Result<Evaluation<S>, String> {
        let folder = self.folder.group(group)?;
        let draft = aside(move || Draft::new(&folder)).await?;
        let mut errors = Capture::new(MAX_ERRORS);
        let (program, hosts) = match whom {
            Whom::ThisHost(names) => (&self.programs.oscap, names.to_vec()),
            Whom::Other(host, _) => (&self.programs.ssh, vec![host.to_owned()]),
        };
        let ended = self.execute(&draft, whom, stop, grace, &mut errors, log).await;
        let (status, stopped) =
            ended.map_err(|error| format!("{} did not run: {error}", program.display()))?;
        if let Some(why) = stopped {
            return Ok(Evaluation::Stopped(why));
        }
        if !matches!(status.code(), Some(0 | 2)) {
            return Err(self.why(status, matches!(whom, Whom::Other(..)), &errors));
        }
        let reading = Reading::new(self.limits);
        let _until_dropped = reading.stop.clone().drop_guard();
        aside(move || draft.deliver(&reading, &hosts)).await.map(Evaluation::Done)
    }

    async fn execute<S>(
        &self,
        draft: &Draft,
        whom: Whom<'_>,
        stop: impl Future<Output = S>,
        grace: Duration,
        errors: &mut Capture,
        log: impl Fn(&str),
    ) -> io::Result<(ExitStatus, Option<S>)> {
        let content = File::open(&self.content)?;
        let mut command = match whom {
            Whom::Other(host, address) => {
                let size = content.metadata()?.len();
                let mut ssh =
                    programs::ssh(&self.programs, &self.run, host, address, self.connect_timeout, size);
                ssh.stdin(Stdio::piped()).stdout(draft.file()?);
                ssh
            }
            Whom::ThisHost(_) => {
                let mut oscap = programs::oscap(&self.programs, &self.run, draft.path(), &self.content);
                oscap.stdin(Stdio::null()).stdout(Stdio::null());
                oscap
            }
        };
        command.stderr(Stdio::piped());
        let started = tokio::task::spawn_blocking(move || {
            let (group, pipes) = ProcessGroup::start(&mut command)?;
            group.limit_files(MAX_DOCUMENT_BYTES)?;
            Ok::<_, io::Error>((group, pipes))
        });
        let (group, pipes) = started.await.map_err(io::Error::other)??;
        let stdin = pipes.stdin.map(ChildStdin::from_std).transpose()?;
        let stderr =
            ChildStderr::from_std(pipes.stderr.ok_or_else(|| io::Error::other("it has no stderr"))?)?;
        let told = AtomicUsize::new(0);
        let log = |line: &str| match told.fetch_add(1, Ordering::Relaxed) {
            ..MAX_LINES => log(line),
            MAX_LINES => log("further lines are left out"),
            _ => {}
        };
        let feed = async {
            if let Some(stdin) = stdin {
                programs::feed(content, stdin).await;
            }
            std::future::pending::<()>().await;
        };
        let talk = async {
            // The script takes the end of its input for our end, so it stays open as long as anything is heard.
            tokio::select! {
                () = errors.read(stderr, &log) => {}
                () = feed => {}
            }
        };
        let ended = attend(group, talk, stop, grace).await?;
        errors.finish(log);
        Ok(ended)
    }

    /// Why there is no result.
    fn why(&self, status: ExitStatus, is_ssh: bool, errors: &Capture) -> String {
        if status.signal() == Some(XFSZ) {
            return format!("its result has more than {MAX_DOCUMENT_BYTES} bytes");
        }
        let cut = |text: &str| text.chars().take(500).collect::<String>();
        if is_ssh && status.code() == Some(255) {
            // Much may stand before it that is not about us, such as a banner.
            let said = cut(errors.last_line());
            if errors.text().contains("Host key verification failed") {
                return format!(
                    "its host key is not the one that {} has for it, so it may be another host; it was not evaluated, and \
                     does not count as unreachable: {said}",
                    self.programs.ssh_known_hosts_file.display()
                );
            }
            return format!("ssh as {} failed: {said}", self.run.user);
        }
        // The last line of oscap is often only an advice.
        let text = errors.text();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let said = cut(&lines.join("; "));
        let colon = if said.is_empty() { "" } else { ": " };
        format!("oscap {}{colon}{said}", how_it_ended(status))
    }

    /// Writes down that a host did not answer, newer than all there is of it by whatever clock.
    pub async fn note_unreachable(&self, group: &str, host: &str, reason: &str) -> Result<(), String> {
        let file = self.folder.group(group)?.join(UNREACHABLE);
        let collection =
            Collection { source: self.source.clone(), place: Place::Folder(self.folder.clone()) };
        let reading = Reading::new(self.limits);
        let _until_dropped = reading.stop.clone().drop_guard();
        let (group, host, reason) = (group.to_owned(), host.to_owned(), reason.to_owned());
        aside(move || {
            let (newest, hosts) = collection.state(&group, &reading).map_err(|ending| match ending {
                Ending::Failed(error) => error.to_string(),
                Ending::Unwanted => "the reading was ended".to_owned(),
            })?;
            let last = newest.time(&host).max(hosts.get(&host).map(|line| line.time));
            let time = after(Utc::now(), last);
            unreachable::append(&file, &host, time, &reason).map_err(|error| not_writable(&file, &error))
        })
        .await
    }
}

/// In whole seconds, and later than `last`.
fn after(now: DateTime<Utc>, last: Option<DateTime<Utc>>) -> DateTime<Utc> {
    let now = now.trunc_subsecs(0);
    last.map_or(now, |last| now.max(last.trunc_subsecs(0) + TimeDelta::seconds(1)))
}

/// On a thread that may wait.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .map_err(tokio::task::JoinError::try_into_panic)
    {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => Err("it was ended with its runtime".to_owned()),
    }
}

fn not_writable(path: &Path, error: &io::Error) -> String {
    let show = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!(
                "{show}: {error}; the daemon must be allowed to write there (under systemd: ReadWritePaths=)"
            )
        }
        _ => format!("{show}: {error}"),
    }
}

/// Whether the configuration allows to run it there. An error finishes "this source: ".
fn is_allowed(run: &RunPayload, programs: &OpenScapSection) -> Result<(), String> {
    let keys = match run.over {
        Over::ThisHost => &[("oscap", &programs.oscap)][..],
        Over::Ssh => &[
            ("ssh", &programs.ssh),
            ("ssh_identity_file", &programs.ssh_identity_file),
            ("ssh_known_hosts_file", &programs.ssh_known_hosts_file),
        ],
    };
    if programs.content.is_empty() {
        return Err("its Payload has `run`, but the configuration allows nothing to be run; list the folder of the content \
                    in `openscap.content`"
            .to_owned());
    }
    match keys.iter().find(|(_, path)| path.as_os_str().is_empty()) {
        Some((key, _)) => {
            Err(format!("its Payload has `run`, but `openscap.{key}` of the configuration is empty"))
        }
        None => Ok(()),
    }
}

/// The file without symbolic links, if it lies in one of these folders.
fn content(path: &Path, allowed: &[PathBuf]) -> Result<PathBuf, String> {
    let show = path.display();
    let content =
        path.canonicalize().map_err(|error| format!("Payload field `run.content`: {show}: {error}"))?;
    let mut allowed = allowed.iter().filter_map(|allowed| allowed.canonicalize().ok());
    if !allowed.any(|allowed| content.starts_with(allowed)) {
        return Err(format!(
            "Payload field `run.content`: {show} lies in none of the folders of `openscap.content`"
        ));
    }
    if !content.is_file() {
        return Err(format!("Payload field `run.content`: {show} is not a file"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn content_is_run_only_from_the_folders_of_the_configuration() {
        let outside = tempfile::tempdir().unwrap();
        let inside = outside.path().join("content");
        std::fs::create_dir_all(inside.join("sub")).unwrap();
        std::fs::write(inside.join("sub/ds.xml"), "").unwrap();
        std::fs::write(outside.path().join("evil.xml"), "").unwrap();
        symlink(outside.path().join("evil.xml"), inside.join("link.xml")).unwrap();
        let allowed = [inside.clone()];
        assert!(content(&inside.join("sub/ds.xml"), &allowed).is_ok());
        for path in [outside.path().join("evil.xml"), inside.join("link.xml"), inside.join("../evil.xml")] {
            let problem = content(&path, &allowed).unwrap_err();
            assert!(problem.contains("none of the folders of `openscap.content`"), "{problem}");
        }
        assert!(content(&inside.join("sub"), &allowed).unwrap_err().ends_with("is not a file"));
    }

    #[test]
    fn a_line_is_newer_than_all_there_is_of_the_host_whatever_its_clock_says() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let now = at("2026-11-22T01:00:00.9Z");
        assert_eq!(after(now, None), at("2026-11-22T01:00:00Z"));
        assert_eq!(after(now, Some(at("2026-11-21T01:00:00Z"))), at("2026-11-22T01:00:00Z"));
        assert_eq!(after(now, Some(at("2026-11-22T01:00:00.2Z"))), at("2026-11-22T01:00:01Z"));
        assert_eq!(after(now, Some(at("2026-11-22T07:00:00Z"))), at("2026-11-22T07:00:01Z"));
    }
}
