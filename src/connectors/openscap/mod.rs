//! OpenSCAP: the result documents of `oscap xccdf eval`, read from folders or fetched as one file.
//!
//! | part | does |
//! |---|---|
//! | `folder`, `unreachable` | where files are, and what lies beside them |
//! | `unpack`, `xml` | a document as steps, bounded in every direction |
//! | `results`, `rules`, `prose` | what a document says |
//! | `document` | both readings of it together |
//! | `group` | which result of a host is the newest |
//! | `collection` | all documents of a source, read on a thread that may wait |
//! | `scan` | waiting for newer results |
//! | `run` | having `oscap` make them, on this host or over ssh |

mod collection;
mod document;
mod folder;
mod group;
mod payload;
mod prose;
mod results;
mod rules;
mod run;
mod scan;
#[cfg(test)]
mod tests;
mod unpack;
mod unreachable;
mod xml;

pub use payload::{OpenScapPayload, Over, RunPayload};
pub use run::{Evaluated, Evaluation, Evaluator, Reach, Whom};

use super::scanner::{
    Assessment, ScanHandle, ScanRequest, ScanResult, ScanStatus, Scanner, ScannerError, Vulnerability,
};
use super::{Bytes, SourceClient, StatusCode};
use crate::config::SourcesSection;
use crate::config_rows::SourceConfig;
use chrono::{DateTime, Utc};
use collection::{Collection, Ending, Item, Place, Sink, read_aside};
use document::{Document, Reading};
use folder::{Folder, ITSELF};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use group::Newest;
use scan::Begun;
use serde_json::json;
use std::time::Duration;
use unpack::{Limits, MAX_DOCUMENT_BYTES};
use unreachable::Hosts;
use url::Url;

/// Results of OpenSCAP. A rule of a benchmark is a vulnerability, and one that failed is there.
///
/// It starts nothing: a scan waits for results that are newer than those there were. An [`Evaluator`] makes them.
#[derive(Debug, Clone)]
pub struct OpenScap {
    name: String,
    at: At,
    limits: Limits,
    result_wait: Duration,
    is_run_by_us: bool,
}

#[derive(Debug, Clone)]
enum At {
    Folder(Folder),
    Url(Box<SourceClient>),
}

impl OpenScap {
    /// Whether this Address is a folder. All others need a client.
    pub fn is_folder(address: &str) -> bool {
        Url::parse(address.trim()).is_ok_and(|url| url.scheme() == "file")
    }

    /// For a source whose Address is a folder below one of `settings.folders`, as `file:///srv/scap`, or the URL of one
    /// file, which `client` fetches.
    pub fn new(
        source: &SourceConfig,
        settings: &SourcesSection,
        client: Option<SourceClient>,
    ) -> Result<Self, ScannerError> {
        let name = format!("{} ({})", source.source, source.id);
        let problem = |problem: String| ScannerError::Source { name: name.clone(), problem };
        let payload = OpenScapPayload::read(&source.payload).map_err(problem)?;
        let address = Url::parse(source.address.trim()).ok().filter(|url| url.scheme() == "file");
        let at = match (address, client) {
            (Some(folder), _) => At::Folder(Folder::new(&folder, &settings.folders).map_err(problem)?),
            (None, Some(client)) => At::Url(Box::new(client)),
            (None, None) => {
                return Err(problem(
                    "its Address is no folder; give file:/// and the whole path, such as file:///srv/scap"
                        .to_owned(),
                ));
            }
        };
        let is_run_by_us = payload.run.is_some();
        let limits = limits(settings);
        Ok(Self { name, at, limits, result_wait: payload.result_wait(), is_run_by_us })
    }

    /// The documents there are now.
    async fn collection(&self) -> Result<Collection, ScannerError> {
        let place = match &self.at {
            At::Folder(folder) => Place::Folder(folder.clone()),
            At::Url(client) => Place::Fetched(self.fetch(client).await?),
        };
        Ok(Collection { source: self.name.clone(), place })
    }

    async fn fetch(&self, client: &SourceClient) -> Result<Document, ScannerError> {
        let answer = client.get_address().await?;
        let name = client.mask(&client.source().address);
        if answer.status != StatusCode::OK {
            return Err(ScannerError::Answer(format!(
                "{name} answered {}, expected 200",
                answer.status.as_u16()
            )));
        }
        if answer.truncated {
            return Err(self.problem(format!("{name} is longer than `sources.response_max_bytes`; raise it")));
        }
        Ok(Document::Fetched(Bytes::from(answer.body), name))
    }

    fn problem(&self, problem: String) -> ScannerError {
        ScannerError::Source { name: self.name.clone(), problem }
    }

    fn stream<T: Item>(
        &self,
        work: impl FnOnce(&Collection, &Sink<T>) -> Result<(), Ending> + Send + 'static,
    ) -> BoxStream<'_, Result<T, ScannerError>> {
        let read = async move {
            let collection = self.collection().await?;
            Ok::<_, ScannerError>(read_aside(Reading::new(self.limits), move |sink| work(&collection, sink)))
        };
        stream::once(read).try_flatten().boxed()
    }

    /// The times of what there is in a group.
    async fn state(&self, group: &str) -> Result<(Newest, Hosts), ScannerError> {
        let group = group.to_owned();
        self.ask(move |collection, reading| collection.state(&group, reading)).await
    }

    async fn status_after(&self, scan: &ScanHandle, wait: Duration) -> Result<ScanStatus, ScannerError> {
        let begun = Begun::of(scan)?;
        let (newest, unreachable) = self.state(&begun.request.group).await?;
        Ok(begun.status(&newest, &unreachable, Utc::now(), wait))
    }

    /// The one thing `work` says.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Collection, &Reading) -> Result<T, Ending> + Send + 'static,
    ) -> Result<T, ScannerError> {
        let collection = self.collection().await?;
        let reading = Reading::new(self.limits);
        let _until_dropped = reading.stop.clone().drop_guard();
        let span = tracing::Span::current();
        let asked = tokio::task::spawn_blocking(move || span.in_scope(|| work(&collection, &reading))).await;
        match asked.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(Ok(said)) => Ok(said),
            Ok(Err(Ending::Failed(error))) => Err(error),
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Ok(Err(Ending::Unwanted)) | Err(Err(_)) => {
                Err(ScannerError::Answer("the reading was ended with its runtime".to_owned()))
            }
        }
    }
}

fn limits(settings: &SourcesSection) -> Limits {
    let max_ratio = u64::try_from(settings.decompression_max_ratio).unwrap_or(u64::MAX);
    Limits { max_bytes: MAX_DOCUMENT_BYTES, max_ratio }
}

/// A source that is one file has one group.
fn only_itself(group: &str) -> String {
    format!("its Address is one file, whose group is {ITSELF:?}; {group:?} is none")
}

impl Scanner for OpenScap {
    /// The rules of all results there are. Results do not say what changed, so `since` changes nothing.
    fn knowledge(&self, _since: Option<DateTime<Utc>>) -> BoxStream<'_, Result<Vulnerability, ScannerError>> {
        self.stream(Collection::rules)
    }

    /// The newest result of each host. A file that ends in the middle and was changed less than a minute ago is left for
    /// the next time.
    fn assessments<'a>(&'a self, group: &'a str) -> BoxStream<'a, Result<Assessment, ScannerError>> {
        let group = group.to_owned();
        self.stream(move |collection, sink| collection.assessments(&group, sink))
    }

    /// Remembers the request; nothing happens outside. Fails where there is no such group.
    fn launch<'a>(&'a self, request: &'a ScanRequest) -> BoxFuture<'a, Result<ScanHandle, ScannerError>> {
        async move {
            match self.at {
                At::Folder(_) => {
                    let group = request.group.clone();
                    self.ask(move |collection, _| collection.check(&group)).await?;
                }
                At::Url(_) if request.group == ITSELF => {}
                At::Url(_) => return Err(self.problem(only_itself(&request.group))),
            }
            Ok(Begun::handle(request, Utc::now()))
        }
        .boxed()
    }

    /// Always a handle: a launch does nothing outside, so beginning it again is as good as finding it.
    fn find<'a>(
        &'a self,
        request: &'a ScanRequest,
    ) -> BoxFuture<'a, Result<Option<ScanHandle>, ScannerError>> {
        async move { Ok(Some(Begun::handle(request, Utc::now()))) }.boxed()
    }

    /// Finished when there is something new of every target, or of some after `result_wait_seconds`.
    fn status<'a>(&'a self, scan: &'a ScanHandle) -> BoxFuture<'a, Result<ScanStatus, ScannerError>> {
        self.status_after(scan, self.result_wait).boxed()
    }

    /// Where Payload has `run`.
    fn is_run_by_us(&self) -> bool {
        self.is_run_by_us
    }

    fn prepare<'a>(&'a self, request: &'a mut ScanRequest) -> BoxFuture<'a, Result<(), ScannerError>> {
        async move {
            let (newest, unreachable) = self.state(&request.group).await?;
            request.known = json!(scan::known(&request.targets, &newest, &unreachable));
            Ok(())
        }
        .boxed()
    }

    /// Finished when there is something new of any target.
    fn outcome<'a>(&'a self, scan: &'a ScanHandle) -> BoxFuture<'a, Result<ScanStatus, ScannerError>> {
        self.status_after(scan, Duration::ZERO).boxed()
    }

    fn results<'a>(&'a self, scan: &'a ScanHandle) -> BoxStream<'a, Result<ScanResult, ScannerError>> {
        match Begun::of(scan) {
            Ok(begun) => self.stream(move |collection, sink| collection.results(&begun, sink)),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    /// A profile selects rules: one that is not mentioned was not looked at.
    fn silence_means_fixed(&self) -> bool {
        false
    }
}
