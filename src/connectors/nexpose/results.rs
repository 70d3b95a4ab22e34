//! What a finished scan found.
//!
//! The console lists no assets of a scan. It notes in the history of each asset which scans reached it, and that is what
//! decides: a device whose history does not name the scan was not covered, whatever else is known of it.
//!
//! Of a discovery, silence is an answer, but only if nobody else answered in the device's place: the console may have
//! taken an answer for that of another asset. So a device counts as dead if the scan is finished and found as many assets
//! as there are devices of it whose history names it. If it found more, or does not say, nothing is said of the others.

use super::assessments::{assess, one, until_failure};
use super::asset::was_in;
use super::scans::{Covered, Detail, meaning, show};
use super::wire::Asset;
use super::{Nexpose, template};
use crate::connectors::scanner::{ScanHandle, ScanKind, ScanResult, ScanStatus, ScannerError};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};

type Item = Result<ScanResult, ScannerError>;

/// What became of one device.
enum Look {
    Reached(Item),
    /// Its history does not name the scan.
    Silent(String),
    Failed(ScannerError),
}

/// See [`crate::connectors::scanner::Scanner::results`].
pub(super) fn stream<'a>(nexpose: &'a Nexpose, handle: &'a ScanHandle) -> BoxStream<'a, Item> {
    let detail = match Detail::of(nexpose, handle) {
        Ok(detail) => detail,
        Err(error) => return Box::pin(stream::iter([Err(error)])),
    };
    let Detail { scan, kind, targets, template, .. } = detail;
    let looks = stream::iter(targets)
        .map(move |target| -> BoxFuture<'a, Look> { Box::pin(look(nexpose, scan, target)) })
        .buffer_unordered(nexpose.rest.concurrency());
    // Who was silent can be told when all were looked at.
    let tally = Tally { silent: Vec::new(), reached: 0, is_whole: true };
    let last = async move |tally: Tally| {
        let mut items = Vec::new();
        if kind == ScanKind::Discovery && tally.is_whole && !tally.silent.is_empty() {
            items.extend(tally.dead(nexpose, scan).await);
        }
        if let Some(copy) = template
            && let Err(failure) = template::delete(&nexpose.rest, &copy).await
        {
            let item = format!("scan template {copy}");
            let problem = format!("it is left at the console: {}", failure.into_error(&nexpose.rest));
            items.push(Err(ScannerError::Item { item, problem }));
        }
        items
    };
    let items = stream::unfold((looks, tally, Some(last)), |(mut looks, mut tally, mut last)| async move {
        if let Some(look) = looks.next().await {
            let items: Vec<Item> = tally.count(look).into_iter().collect();
            return Some((items, (looks, tally, last)));
        }
        let last = last.take()?;
        let items = Box::pin(last(std::mem::take(&mut tally))).await;
        Some((items, (looks, tally, None)))
    });
    Box::pin(until_failure(items.flat_map(stream::iter)))
}

async fn look(nexpose: &Nexpose, scan: i64, target: Covered) -> Look {
    let rest = &nexpose.rest;
    let item = || format!("asset {}", target.asset);
    let Ok(id) = target.asset.parse::<i64>() else {
        let problem = "this is not the ID of an asset of the console".to_owned();
        return Look::Failed(ScannerError::Item { item: item(), problem });
    };
    let asset: Asset = match one(rest, id).await {
        Ok(asset) => asset,
        Err(failure) => return Look::Failed(failure.of_item(rest, item())),
    };
    if !was_in(&asset, scan, target.assessed) {
        return Look::Silent(target.asset);
    }
    match assess(rest, asset).await {
        Ok(assessment) => Look::Reached(Ok(ScanResult::Assessed(assessment))),
        Err(error) => Look::Reached(Err(error)),
    }
}

/// What the scan did not reach, and how many it did.
#[derive(Default)]
struct Tally {
    silent: Vec<String>,
    reached: u64,
    /// Whether every device could be looked at.
    is_whole: bool,
}

impl Tally {
    fn count(&mut self, look: Look) -> Option<Item> {
        match look {
            Look::Reached(item) => {
                self.reached += 1;
                Some(item)
            }
            Look::Silent(asset) => {
                self.silent.push(asset);
                None
            }
            Look::Failed(error) => {
                self.is_whole = false;
                Some(Err(error))
            }
        }
    }

    async fn dead(self, nexpose: &Nexpose, scan: i64) -> Vec<Item> {
        let shown = match show(&nexpose.rest, scan).await {
            Ok(shown) => shown,
            Err(failure) => return vec![Err(failure.into_error(&nexpose.rest))],
        };
        if meaning(&shown.status) != ScanStatus::Finished || shown.assets != Some(self.reached) {
            return Vec::new();
        }
        let proof = format!("the finished scan {scan} has no answer of it");
        let dead = |asset| Ok(ScanResult::Dead { asset: Some(asset), ip: None, proof: proof.clone() });
        self.silent.into_iter().map(dead).collect()
    }
}
