//! A source of OpenSCAP that is one file behind a URL.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::generic_jobs::settings;
use crate::source_client::client_with;
use crate::support::SOON;
use crate::support::api::{Reply, ScriptedApi};
use futures_util::StreamExt;
use rosterd::connectors::openscap::OpenScap;
use rosterd::connectors::scanner::{Assessment, Scanner, ScannerError};
use serde_json::json;
use tokio::time::timeout;

const FILE: &[u8] = include_bytes!("../data/openscap/web-01-standard.xml.gz");

async fn assessments(api: &ScriptedApi, max_bytes: usize) -> Vec<Result<Assessment, ScannerError>> {
    let mut settings = settings().sources;
    settings.response_max_bytes = max_bytes;
    settings.retries = 0;
    let address = format!("{}/results/web-01.xml.gz", api.address);
    let client = client_with(&address, json!({}), json!({}), &settings).await.unwrap();
    let scanner = OpenScap::new(&client.source().clone(), &settings, Some(client)).unwrap();
    timeout(SOON, scanner.assessments(".").collect()).await.expect("the reading ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_is_fetched_from_exactly_its_address() {
    let api = ScriptedApi::start(|_, _| Reply::Answer(200, vec![], FILE.to_vec())).await;
    let found = assessments(&api, 1 << 20).await;
    let [Ok(found)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((found.device.asset.as_str(), found.findings.len()), ("web-01.example.org", 44));
    assert_eq!(api.asked()[0].target, "/results/web-01.xml.gz");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_too_long_or_not_there_says_what_to_do() {
    let api = ScriptedApi::start(|_, nth| Reply::Answer([200, 404][nth], vec![], FILE.to_vec())).await;
    let found = assessments(&api, 1000).await;
    let [Err(ScannerError::Source { problem, .. })] = &found[..] else { panic!("{found:?}") };
    assert!(problem.ends_with("is longer than `sources.response_max_bytes`; raise it"), "{problem}");
    let found = assessments(&api, 1 << 20).await;
    let [Err(error @ ScannerError::Answer(_))] = &found[..] else { panic!("{found:?}") };
    assert!(error.to_string().ends_with("answered 404, expected 200") && error.is_passing(), "{error}");
}
