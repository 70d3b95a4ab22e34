//! The documents of a source at this moment, and reading them, off the threads that must not wait.

use super::document::{Complaint, Document, Reading};
use super::folder::{Folder, ITSELF, UNREACHABLE};
use super::group::{self, Newest};
use super::only_itself;
use super::results::Budget;
use super::scan::{Begun, Fate};
use super::unreachable::{self, Hosts};
use super::xml::Broken;
use crate::connectors::scanner::{Assessment, ScanResult, ScannerError, Vulnerability};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Where the documents are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Folder(Folder),
    Fetched(Document),
}

/// The documents of a source.
#[derive(Debug, Clone)]
pub(super) struct Collection {
    /// Name and ID of the source.
    pub(super) source: String,
    pub(super) place: Place,
}

/// Why reading ended before its end.
pub(super) enum Ending {
    Unwanted,
    Failed(ScannerError),
}

/// Only that nobody waits any more gets here: what is wrong with a document is told as an item.
impl From<Broken> for Ending {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Unwanted => Self::Unwanted,
            Broken::Truncated => Self::Failed(ScannerError::Answer("it ends in the middle".to_owned())),
            Broken::Bad(problem) => Self::Failed(ScannerError::Answer(format!("it {problem}"))),
        }
    }
}

/// So many items are read while others are worked on,
const ITEMS_AHEAD: usize = 32;
/// or items with so many bytes of text: one may be as large as a thousand others.
const BYTES_AHEAD: usize = 4 << 20;

/// What is read of a document.
pub(super) trait Item: Send + 'static {
    /// Bytes of its long texts.
    fn text_bytes(&self) -> usize;
}

impl Item for Assessment {
    fn text_bytes(&self) -> usize {
        self.text_bytes()
    }
}

impl Item for Vulnerability {
    fn text_bytes(&self) -> usize {
        self.text_bytes()
    }
}

impl Item for ScanResult {
    fn text_bytes(&self) -> usize {
        match self {
            Self::Assessed(assessment) => assessment.text_bytes(),
            Self::Dead { .. } => 0,
        }
    }
}

/// Takes what was read.
pub(super) struct Sink<T> {
    sender: mpsc::Sender<(Result<T, ScannerError>, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    runtime: Handle,
    reading: Reading,
}

impl<T: Item> Sink<T> {
    fn put(&self, item: T) -> Result<(), Broken> {
        let bytes = item.text_bytes();
        self.send(Ok(item), bytes)
    }

    fn complain(&self, item: impl Into<String>, problem: impl Into<String>) -> Result<(), Broken> {
        self.send(Err(ScannerError::Item { item: item.into(), problem: problem.into() }), 0)
    }

    fn send(&self, item: Result<T, ScannerError>, bytes: usize) -> Result<(), Broken> {
        // As much as there is at most, or it would wait for ever.
        let bytes = u32::try_from(bytes.min(BYTES_AHEAD)).unwrap_or(0);
        // Whoever stops waiting drops what was sent, and there is room again.
        let room = self.runtime.block_on(Arc::clone(&self.room).acquire_many_owned(bytes));
        let room = room.map_err(|_| Broken::Unwanted)?;
        self.sender.blocking_send((item, room)).map_err(|_| Broken::Unwanted)
    }

    /// What was read of a document, if it could be. A document that ends in the middle and was changed a moment ago is
    /// being written: nothing is said of it, because the next time it will be whole.
    fn heard<R>(&self, document: &Document, read: Result<R, Broken>) -> Result<Option<R>, Broken> {
        match read {
            Ok(read) => return Ok(Some(read)),
            Err(Broken::Unwanted) => return Err(Broken::Unwanted),
            Err(Broken::Truncated) if document.is_fresh() => {
                tracing::debug!(file = document.name(), "left for the next time: it is still being written");
            }
            Err(Broken::Truncated) => self.complain(document.name(), "it ends in the middle")?,
            Err(Broken::Bad(problem)) => self.complain(document.name(), format!("it {problem}"))?,
        }
        Ok(None)
    }
}

/// Items as `work` makes them, on a thread that may wait. Ends soon after the stream is dropped.
pub(super) fn read_aside<T: Item>(
    reading: Reading,
    work: impl FnOnce(&Sink<T>) -> Result<(), Ending> + Send + 'static,
) -> BoxStream<'static, Result<T, ScannerError>> {
    let until_dropped = reading.stop.clone().drop_guard();
    let (sender, receiver) = mpsc::channel(ITEMS_AHEAD);
    let runtime = Handle::current();
    let span = tracing::Span::current();
    let reader = tokio::task::spawn_blocking(move || {
        let _in_span = span.entered();
        let sink = Sink { sender, room: Arc::new(Semaphore::new(BYTES_AHEAD)), runtime, reading };
        if let Err(Ending::Failed(error)) = work(&sink) {
            // Nobody is there to hear it: nobody misses it.
            drop(sink.send(Err(error), 0));
        }
    });
    stream::unfold((receiver, Some(reader), until_dropped), |(mut receiver, mut reader, guard)| async move {
        if let Some((item, _room)) = receiver.recv().await {
            return Some((item, (receiver, reader, guard)));
        }
        // An end that came of a panic must not look like that of all items.
        match reader.take()?.await.map_err(tokio::task::JoinError::try_into_panic) {
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Err(Err(_)) => {
                let gone = ScannerError::Answer("the reading was ended with its runtime".to_owned());
                Some((Err(gone), (receiver, None, guard)))
            }
            Ok(()) => None,
        }
    })
    .boxed()
}

/// Documents that can be read, and the newest result of each host in them.
type Surveyed = (Vec<Document>, Newest);

impl Collection {
    /// The newest result of each host of a group.
    pub(super) fn assessments(&self, group: &str, sink: &Sink<Assessment>) -> Result<(), Ending> {
        let surveyed = self.survey(group, sink)?;
        give(surveyed, sink, |assessment| assessment)
    }

    /// What there is of the targets of a scan.
    pub(super) fn results(&self, scan: &Begun, sink: &Sink<ScanResult>) -> Result<(), Ending> {
        let (documents, mut newest) = self.survey(&scan.request.group, sink)?;
        let (unreachable, complaints) = self.unreachable(&scan.request.group)?;
        for Complaint { about, problem } in complaints {
            sink.complain(about, problem)?;
        }
        let mut assessed = HashSet::new();
        for target in &scan.request.targets {
            match scan.fate(target, &newest, &unreachable) {
                Fate::Assessed => drop(assessed.insert(target.asset.as_str())),
                Fate::Unreachable(host) => sink.put(ScanResult::Dead {
                    asset: Some(target.asset.clone()),
                    ip: target.ip,
                    proof: format!("{} ({})", host.reason, host.time.format("%Y-%m-%dT%H:%M:%SZ"))
                        .trim()
                        .to_owned(),
                })?,
                Fate::Silent => {}
            }
        }
        newest.retain(|asset| assessed.contains(asset));
        give((documents, newest), sink, ScanResult::Assessed)
    }

    /// The times of the results and of the lines about hosts that did not answer. What makes no sense is told by those who read the results.
    pub(super) fn state(&self, group: &str, reading: &Reading) -> Result<(Newest, Hosts), Ending> {
        let mut newest = Newest::default();
        for (place, document) in self.documents(group)?.into_iter().flatten().enumerate() {
            match group::heads(&document, reading) {
                Ok(heads) => newest.note(place, &heads),
                Err(Broken::Unwanted) => return Err(Ending::Unwanted),
                Err(broken) => {
                    tracing::debug!(file = document.name(), ?broken, "a document is not looked at");
                }
            }
        }
        Ok((newest, self.unreachable(group)?.0))
    }

    /// Every rule of every benchmark in all groups, each once.
    pub(super) fn rules(&self, sink: &Sink<Vulnerability>) -> Result<(), Ending> {
        let groups = match &self.place {
            Place::Folder(folder) => folder.groups().map_err(|problem| self.problem(problem))?,
            Place::Fetched(_) => vec![ITSELF.to_owned()],
        };
        let (mut benchmarks, mut rules) = (HashSet::new(), HashSet::<String>::new());
        let mut budget = Budget::default();
        for group in groups {
            for document in self.readable(&group, sink)? {
                let Some(heads) = sink.heard(&document, group::heads(&document, &sink.reading))? else {
                    continue;
                };
                // Most files are about the same benchmark, with the same rules.
                let about: Option<Vec<_>> = heads.heads.iter().map(|head| head.benchmark.clone()).collect();
                if about.as_ref().is_some_and(|about| about.iter().all(|one| benchmarks.contains(one))) {
                    continue;
                }
                let read = document.rules(
                    &sink.reading,
                    |id| !rules.contains(id) && rules.insert(id.to_owned()),
                    |rule| budget.take(rule.id.len()).and_then(|()| sink.put(rule)),
                );
                if sink.heard(&document, read)?.is_some() {
                    benchmarks.extend(about.into_iter().flatten());
                }
            }
        }
        Ok(())
    }

    /// Whether there is such a group.
    pub(super) fn check(&self, group: &str) -> Result<(), Ending> {
        self.documents(group).map(drop)
    }

    /// The documents whose heads can be read; of the others it is said why not.
    fn survey<T: Item>(&self, group: &str, sink: &Sink<T>) -> Result<Surveyed, Ending> {
        let documents = self.readable(group, sink)?;
        let mut newest = Newest::default();
        for (place, document) in documents.iter().enumerate() {
            if let Some(heads) = sink.heard(document, group::heads(document, &sink.reading))? {
                newest.note(place, &heads);
                for problem in &heads.complaints {
                    sink.complain(document.name(), format!("it {problem}"))?;
                }
            }
        }
        Ok((documents, newest))
    }

    fn readable<T: Item>(&self, group: &str, sink: &Sink<T>) -> Result<Vec<Document>, Ending> {
        let mut readable = Vec::new();
        for document in self.documents(group)? {
            match document {
                Ok(document) => readable.push(document),
                Err(Complaint { about, problem }) => sink.complain(about, problem)?,
            }
        }
        Ok(readable)
    }

    fn documents(&self, group: &str) -> Result<Vec<Result<Document, Complaint>>, Ending> {
        match &self.place {
            Place::Folder(folder) => folder.documents(group).map_err(|problem| self.problem(problem)),
            Place::Fetched(document) if group == ITSELF => Ok(vec![Ok(document.clone())]),
            Place::Fetched(_) => Err(self.problem(only_itself(group))),
        }
    }

    fn unreachable(&self, group: &str) -> Result<(Hosts, Vec<Complaint>), Ending> {
        let Place::Folder(folder) = &self.place else { return Ok((Hosts::new(), Vec::new())) };
        let path = folder.group(group).map_err(|problem| self.problem(problem))?.join(UNREACHABLE);
        let name = if group == ITSELF { UNREACHABLE.to_owned() } else { format!("{group}/{UNREACHABLE}") };
        Ok(unreachable::read(&path, &name))
    }

    fn problem(&self, problem: String) -> Ending {
        Ending::Failed(ScannerError::Source { name: self.source.clone(), problem })
    }
}

/// The newest results, one after the other.
fn give<T: Item>(
    (documents, mut newest): Surveyed,
    sink: &Sink<T>,
    wrap: impl Fn(Assessment) -> T,
) -> Result<(), Ending> {
    let places = newest.places();
    for (place, document) in documents.iter().enumerate().filter(|(place, _)| places.contains(place)) {
        let read = document.assessments(
            &sink.reading,
            |report| newest.take(place, report),
            |assessment| sink.put(wrap(assessment)),
        );
        for problem in sink.heard(document, read)?.into_iter().flatten() {
            sink.complain(document.name(), format!("it {problem}"))?;
        }
    }
    Ok(())
}

impl Reading {
    /// With a token of its own.
    pub(super) fn new(limits: super::unpack::Limits) -> Self {
        Self { limits, stop: CancellationToken::new() }
    }
}
