//! What was found at the assets of a site, several at once and none of them twice.

use super::asset::{assessed, device};
use super::findings::findings;
use super::pages::Pages;
use super::rest::{Failure, Rest};
use super::wire::{Asset, AssetVulnerability};
use crate::connectors::scanner::{Assessment, ScannerError};
use futures_util::future::{self, BoxFuture};
use futures_util::stream::{BoxStream, Stream, StreamExt};

/// Assets asked for at once: each may come with all its software, services and users.
const ASSETS: usize = 64;
const VULNERABILITIES: usize = 256;

/// See [`crate::connectors::scanner::Scanner::assessments`].
pub(super) fn of_site(rest: &Rest, site: i64) -> BoxStream<'_, Result<Assessment, ScannerError>> {
    // By ID, so that what is new comes last and moves nothing.
    let assets = Pages::new(
        rest,
        format!("sites/{site}/assets"),
        ASSETS,
        "list the assets of a site",
        |asset: &Asset, _| asset.id.to_string(),
    )
    .query("sort", "id");
    let assessed = assets
        .stream()
        .map(move |asset| -> BoxFuture<'_, Result<Assessment, ScannerError>> {
            Box::pin(async move {
                match asset {
                    Ok(Ok(asset)) => assess(rest, asset).await,
                    Ok(Err(problem)) => {
                        Err(ScannerError::Item { item: format!("an asset of site {site}"), problem })
                    }
                    Err(failure) => Err(failure.into_error(rest)),
                }
            })
        })
        .buffer_unordered(rest.concurrency());
    Box::pin(until_failure(assessed))
}

/// The asset with what was found at it. One that is gone, or of which the console makes no sense, is an error about it
/// alone.
pub(super) async fn assess(rest: &Rest, asset: Asset) -> Result<Assessment, ScannerError> {
    let item = || format!("asset {}", asset.id);
    let id = asset.id;
    // A list may leave it out.
    let whole = if asset.history.is_none() {
        Some(one(rest, id).await.map_err(|failure| failure.of_item(rest, item()))?)
    } else {
        None
    };
    let asset = whole.as_ref().unwrap_or(&asset);
    let assessed = assessed(asset);
    // All or none: what is missing here counts as mended.
    let vulnerabilities = Pages::new(
        rest,
        format!("assets/{id}/vulnerabilities"),
        VULNERABILITIES,
        "list the vulnerabilities of an asset",
        |_: &AssetVulnerability, text| text.to_owned(),
    )
    .all()
    .await
    .map_err(|failure| failure.of_item(rest, item()))?;
    Ok(Assessment {
        device: device(asset),
        assessed,
        findings: findings(vulnerabilities, assessed),
        vulnerabilities: Vec::new(),
    })
}

/// One asset.
pub(super) async fn one(rest: &Rest, id: i64) -> Result<Asset, Failure> {
    rest.get_one(&format!("assets/{id}"), "show an asset").await
}

/// Up to the first error that is not about one item alone.
pub(super) fn until_failure<T: Send>(
    items: impl Stream<Item = Result<T, ScannerError>> + Send,
) -> impl Stream<Item = Result<T, ScannerError>> + Send {
    items.scan(false, |is_over, item| {
        let next = (!*is_over).then_some(item);
        *is_over = matches!(next, Some(Err(ref error)) if !matches!(error, ScannerError::Item { .. }));
        future::ready(next)
    })
}
