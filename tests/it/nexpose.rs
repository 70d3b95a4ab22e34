//! The Nexpose connector against a console that caps pages, deletes what is being read, and hangs up after the deed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures)]

use crate::generic_jobs::settings;
use crate::source_client::client_with;
use crate::support::SOON;
use crate::support::fake_nexpose::{FakeNexpose, Store, Trouble, refused, said};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use rosterd::config::SourcesSection;
use rosterd::connectors::nexpose::Nexpose;
use rosterd::connectors::scanner::{
    Assessment, FindingStatus, ReferenceKind, ScanHandle, ScanKind, ScanRequest, ScanResult, ScanStatus,
    Scanner, ScannerError, Severity, Target, Tracking, Vulnerability,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokio::time::timeout;

const MARKER: &str = "rosterd-0199-1";
const SITE: &str = "7";

/// Retries that do not keep a test waiting.
fn quick() -> SourcesSection {
    let mut sources = settings().sources;
    sources.retry_base_seconds = 0.002;
    sources
}

async fn with_settings(
    fake: &FakeNexpose,
    password: &str,
    payload: Value,
    sources: &SourcesSection,
) -> Nexpose {
    let auth = json!({"Username": "svc", "Password": password});
    Nexpose::new(client_with(&fake.address, auth, payload, sources).await.unwrap()).unwrap()
}

async fn nexpose(fake: &FakeNexpose, payload: Value) -> Nexpose {
    with_settings(fake, "canary-1", payload, &quick()).await
}

async fn assessments(nexpose: &Nexpose) -> Vec<Result<Assessment, ScannerError>> {
    timeout(SOON, nexpose.assessments(SITE).collect()).await.expect("it ends")
}

async fn knowledge(nexpose: &Nexpose, since: Option<&str>) -> Vec<Result<Vulnerability, ScannerError>> {
    timeout(SOON, nexpose.knowledge(since.map(at)).collect()).await.expect("it ends")
}

async fn results(nexpose: &Nexpose, scan: &ScanHandle) -> Vec<Result<ScanResult, ScannerError>> {
    timeout(SOON, nexpose.results(scan).collect()).await.expect("it ends")
}

/// Looks at the scan until it is over.
async fn wait(nexpose: &Nexpose, scan: &ScanHandle) -> ScanStatus {
    for _ in 0..10 {
        let status = nexpose.status(scan).await.unwrap();
        if status.is_over() {
            return status;
        }
    }
    panic!("the scan does not end");
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// The devices that were assessed, and those that were dead, and nothing else.
fn told(results: Vec<Result<ScanResult, ScannerError>>) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut there, mut dead) = (BTreeSet::new(), BTreeSet::new());
    for result in results {
        match result.unwrap() {
            ScanResult::Assessed(assessment) => assert!(there.insert(assessment.device.asset)),
            ScanResult::Dead { asset, proof, .. } => {
                assert!(proof.starts_with("the finished scan"), "{proof}");
                assert!(dead.insert(asset.unwrap()));
            }
        }
    }
    (there, dead)
}

fn texts(ids: &[i64]) -> BTreeSet<String> {
    ids.iter().map(i64::to_string).collect()
}

/// The assets that came, each once, and the errors.
fn split(all: Vec<Result<Assessment, ScannerError>>) -> (BTreeSet<String>, Vec<ScannerError>) {
    let (mut assets, mut errors) = (BTreeSet::new(), Vec::new());
    for item in all {
        match item {
            Ok(assessment) => {
                assert!(assets.insert(assessment.device.asset.clone()), "twice: {assessment:?}");
            }
            Err(error) => errors.push(error),
        }
    }
    (assets, errors)
}

fn seed(store: &mut Store, ids: std::ops::RangeInclusive<i64>) {
    for id in ids {
        store.seed(7, id, vec![finding("tls-old")]);
    }
}

fn finding(vulnerability: &str) -> Value {
    json!({
        "id": vulnerability, "status": "vulnerable", "since": "2026-01-05T00:00:00.5Z", "instances": 1, "results": [{
            "port": 443, "protocol": "tcp", "key": "", "status": "vulnerable-version", "checkId": "c",
            "proof": "<p><p>TLS&nbsp;1.0 &lt;old&gt;</p></p>", "since": "2026-01-06T00:00:00Z",
        }],
    })
}

/// A scan of these assets of the fake.
fn request(fake: &FakeNexpose, kind: ScanKind, assets: &[i64]) -> ScanRequest {
    let target = |id: &i64| Target {
        asset: id.to_string(),
        ip: Some(fake.with(|store| store.assets[id].ip.parse().unwrap())),
        host_name: format!("host-{id}"),
        instance: None,
        region: None,
        assessed: Some(at("2026-02-01T00:00:00Z")),
        vulnerabilities: vec!["tls-old".to_owned()],
    };
    let targets = assets.iter().map(target).collect();
    ScanRequest { marker: MARKER.to_owned(), kind, group: SITE.to_owned(), targets, known: Value::Null }
}

async fn three_assets() -> FakeNexpose {
    let fake = FakeNexpose::start().await;
    fake.with(|store| {
        seed(store, 1..=3);
        store.know("tls-old", &json!({}));
    });
    fake
}

// ---- lists ----

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_caps_pages_loses_no_asset() {
    let fake = FakeNexpose::start().await;
    fake.cap(7);
    fake.with(|store| {
        seed(store, 1..=30);
        store.assets.get_mut(&5).unwrap().findings = (0..20).map(|n| finding(&format!("v-{n}"))).collect();
    });
    let all = assessments(&nexpose(&fake, json!({})).await).await;
    let fifth = all.iter().flatten().find(|assessment| assessment.device.asset == "5").unwrap();
    assert_eq!(fifth.findings.len(), 20);
    let (assets, errors) = split(all);
    assert_eq!((assets.len(), errors.len()), (30, 0));
    assert_eq!(fake.count("GET sites/#/assets"), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asset_that_is_deleted_while_pages_are_turned_hides_no_other() {
    let fake = FakeNexpose::start().await;
    fake.cap(4);
    fake.with(|store| seed(store, 1..=18));
    let mut pages = 0;
    fake.meanwhile(move |store, kind| {
        if kind == "GET sites/#/assets" {
            pages += 1;
            if pages == 2 {
                (1..=6).for_each(|id| store.delete(id));
            }
        }
    });
    let (assets, errors) = split(assessments(&nexpose(&fake, json!({})).await).await);
    assert!(errors.iter().all(|error| matches!(error, ScannerError::Item { .. })), "{errors:?}");
    let left: Vec<i64> = (7..=18).collect();
    assert!(assets.is_superset(&texts(&left)), "{assets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_too_long_is_asked_for_in_smaller_ones() {
    let fake = FakeNexpose::start().await;
    fake.with(|store| {
        seed(store, 1..=9);
        let long = "x".repeat(20_000);
        store.assets.values_mut().for_each(|asset| asset.more = json!({"software": [long]}));
    });
    let sources = SourcesSection { response_max_bytes: 50_000, ..quick() };
    let nexpose = with_settings(&fake, "canary-1", json!({}), &sources).await;
    let (assets, errors) = split(assessments(&nexpose).await);
    assert_eq!((assets.len(), errors.len()), (9, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_with_a_gap_or_without_an_end_is_an_error_and_not_an_answer() {
    let page = |number: usize, items: &[i64]| {
        let items: Vec<Value> = items.iter().map(|id| json!({"id": id, "history": []})).collect();
        json!({"resources": items, "page": {"number": number, "size": 2, "totalPages": 3, "totalResources": 6}})
    };
    for (pages, words) in [
        (vec![page(0, &[1, 2]), page(0, &[1, 2])], "was asked for page 1 and answered page 0"),
        (vec![page(0, &[1, 2]), page(1, &[1, 2])], "is the page before it once more"),
        (vec![page(0, &[1, 2]), page(1, &[3])], "has 1 items and should have 2"),
        (vec![json!({"links": []})], "missing field `page`"),
    ] {
        let fake = FakeNexpose::start().await;
        fake.with(|store| seed(store, 1..=6));
        for page in pages {
            fake.trouble("GET sites/#/assets", said(&page));
        }
        let (_, errors) = split(assessments(&nexpose(&fake, json!({})).await).await);
        let last = errors.last().unwrap();
        assert!(matches!(last, ScannerError::Answer(_)) && last.to_string().contains(words), "{last}");
    }
}

// ---- what was found ----

#[tokio::test(flavor = "multi_thread")]
async fn a_device_comes_with_its_findings_and_a_date_for_each() {
    let fake = FakeNexpose::start().await;
    fake.with(|store| {
        let invulnerable =
            json!({"id": "ssh-old", "status": "invulnerable", "since": "2026-01-01T00:00:00Z"});
        store.seed(7, 1, vec![finding("tls-old"), invulnerable]);
        store.list_history = false;
    });
    let all = assessments(&nexpose(&fake, json!({})).await).await;
    let [Ok(one)] = &all[..] else { panic!("{all:?}") };
    let device = &one.device;
    assert_eq!(
        (device.asset.as_str(), device.host_name.as_str(), device.os.as_str()),
        ("1", "host-1", "Linux 5.4")
    );
    assert_eq!((device.ip, device.tracking), (Some("10.0.0.2".parse().unwrap()), Tracking::Ip));
    assert_eq!(device.mac.as_deref(), Some("AB:12:CD:34:EF:56"));
    assert_eq!(one.assessed, Some(at("2026-02-01T00:00:00Z")), "the list has no history, the asset has");
    let [ssh, tls] = &one.findings[..] else { panic!("{:?}", one.findings) };
    assert_eq!((ssh.vulnerability.as_str(), ssh.status, ssh.port), ("ssh-old", FindingStatus::Fixed, 0));
    assert_eq!((tls.vulnerability.as_str(), tls.port, tls.protocol.as_str()), ("tls-old", 443, "tcp"));
    assert_eq!((tls.status, tls.proof.as_str()), (FindingStatus::Vulnerable, "TLS 1.0 <old>"));
    assert_eq!(tls.first_found, Some(at("2026-01-05T00:00:00.5Z")));
    assert_eq!(tls.last_found, one.assessed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_reports_has_a_date_although_there_was_no_scan() {
    let fake = FakeNexpose::start().await;
    fake.with(|store| {
        let asset = store.seed(7, 1, vec![finding("tls-old")]);
        asset.history = vec![json!({"type": "AGENT-IMPORT", "date": "2026-02-03T00:00:00Z"})];
        asset.more = json!({"ids": [{"id": "x", "source": "R7 Agent"}]});
    });
    let all = assessments(&nexpose(&fake, json!({})).await).await;
    let one = all[0].as_ref().unwrap();
    assert_eq!(one.device.tracking, Tracking::Agent);
    assert_eq!(one.findings[0].last_found, Some(at("2026-02-03T00:00:00Z")));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_asset_that_vanished_does_not_stop_the_others() {
    let fake = FakeNexpose::start().await;
    fake.with(|store| seed(store, 1..=5));
    fake.meanwhile(|store, kind| {
        if kind == "GET sites/#/assets" {
            store.assets.remove(&3);
        }
    });
    fake.trouble("GET assets/#/vulnerabilities", said(&json!({"page": 5})));
    let (assets, errors) = split(assessments(&nexpose(&fake, json!({})).await).await);
    assert_eq!((assets.len(), errors.len()), (3, 2), "{errors:?}");
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(errors.iter().all(|error| matches!(error, ScannerError::Item { .. })), "{texts:?}");
    assert!(texts.iter().any(|text| text.starts_with("asset 3: ") && text.contains("404")), "{texts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finding_that_makes_no_sense_does_not_count_as_mended() {
    let fake = FakeNexpose::start().await;
    fake.with(|store| {
        store.seed(7, 1, vec![finding("tls-old"), json!({"id": 5})]);
    });
    let all = assessments(&nexpose(&fake, json!({})).await).await;
    assert!(matches!(&all[..], [Err(ScannerError::Item { item, .. })] if item == "asset 1"), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_that_does_not_take_us_ends_the_list_and_no_error_holds_the_password() {
    let fake = FakeNexpose::start().await;
    fake.with(|store| seed(store, 1..=30));
    let wrong = with_settings(&fake, "canary-2", json!({}), &quick()).await;
    let all = assessments(&wrong).await;
    let [Err(error)] = &all[..] else { panic!("{all:?}") };
    assert!(!error.is_passing() && error.to_string().contains("does not accept the credentials"), "{error}");
    assert!(!error.to_string().contains("canary") && fake.asked().len() == 1);
    // Where each asset would be refused, the first is enough.
    for (status, passing) in [(403, false), (503, true)] {
        let fake = FakeNexpose::start().await;
        fake.with(|store| seed(store, 1..=100));
        (0..1000).for_each(|_| fake.trouble("GET assets/#/vulnerabilities", refused(status)));
        let sources = SourcesSection { retries: 0, ..quick() };
        let (assets, errors) =
            split(assessments(&with_settings(&fake, "canary-1", json!({}), &sources).await).await);
        assert_eq!((assets.len(), errors.len()), (0, 1));
        assert_eq!(errors[0].is_passing(), passing, "{}", errors[0]);
        assert!(fake.asked().len() < 30, "{}", fake.asked().len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_waited_for() {
    let fake = three_assets().await;
    for trouble in [refused(429), refused(503), Trouble::Lost, Trouble::Half] {
        fake.trouble("GET assets/#/vulnerabilities", trouble);
    }
    let (assets, errors) = split(assessments(&nexpose(&fake, json!({})).await).await);
    assert_eq!((assets.len(), errors.len()), (3, 0), "{errors:?}");
    let fake = three_assets().await;
    fake.trouble("GET sites/#/assets", Trouble::Silent);
    let sources = SourcesSection { request_timeout_seconds: 0.2, ..quick() };
    let (_, errors) = split(assessments(&with_settings(&fake, "canary-1", json!({}), &sources).await).await);
    assert!(errors.len() == 1 && errors[0].is_passing(), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_no_site_is_said_so() {
    let fake = FakeNexpose::start().await;
    let nexpose = nexpose(&fake, json!({})).await;
    for group in ["", "web", "7.0", "7;", "../1", "-1"] {
        let all: Vec<_> = nexpose.assessments(group).collect().await;
        assert!(matches!(&all[..], [Err(ScannerError::Source { .. })]), "{group}: {all:?}");
    }
    assert!(fake.asked().is_empty());
    let all: Vec<_> = nexpose.assessments("99").collect().await;
    assert!(all[0].as_ref().unwrap_err().to_string().contains("list the assets of a site (404"), "{all:?}");
}

// ---- the knowledge base ----

#[tokio::test(flavor = "multi_thread")]
async fn a_vulnerability_comes_with_its_solution_which_is_asked_for_once() {
    let fake = FakeNexpose::start().await;
    fake.with(|store| (0..5).for_each(|n| store.know(&format!("v.{n}"), &json!({}))));
    let one_at_a_time = json!({"Username": "svc", "Password": "canary-1", "Concurrency": 1});
    let client = client_with(&fake.address, one_at_a_time, json!({}), &quick()).await.unwrap();
    let all = knowledge(&Nexpose::new(client).unwrap(), None).await;
    assert_eq!((all.len(), fake.count("GET solutions/upgrade")), (5, 1));
    let one = all[0].as_ref().unwrap();
    assert_eq!((one.id.as_str(), one.title.as_str(), one.severity), ("v.0", "Title of v.0", Severity::High));
    assert_eq!((one.description.as_str(), one.solution.as_str()), ("It is old.", "Upgrade\nUse apt"));
    assert_eq!((one.cvss2, one.cvss3, one.patchable), (Some(4.4), Some(7.5), Some(true)));
    assert_eq!((one.category.as_deref(), one.software.as_deref()), (Some("TLS, Web"), Some("OpenSSL")));
    assert_eq!(one.updated, Some(at("2026-01-10T00:00:00Z")));
    let references: Vec<_> = one.references.iter().map(|r| (r.kind, r.text.as_str())).collect();
    let expected = [
        (ReferenceKind::Cve, "CVE-2026-1"),
        (ReferenceKind::Microsoft, "4041689"),
        (ReferenceKind::Vendor, "https://example.com/a"),
    ];
    assert_eq!(references, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_change_is_not_asked_for() {
    let fake = FakeNexpose::start().await;
    fake.with(|store| {
        store.know("old", &json!({"modified": "2026-01-01"}));
        store.know("late", &json!({"modified": "2026-01-28"}));
        store.know("new", &json!({"modified": "2026-02-02"}));
        store.know("undated", &json!({"modified": null, "added": null}));
    });
    let nexpose = nexpose(&fake, json!({})).await;
    let all = knowledge(&nexpose, Some("2026-02-01T10:00:00Z")).await;
    let ids: BTreeSet<_> = all.into_iter().map(|one| one.unwrap().id).collect();
    assert_eq!(ids, BTreeSet::from(["late".to_owned(), "new".to_owned(), "undated".to_owned()]));
    assert_eq!(fake.count("GET vulnerabilities/old/solutions"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vulnerability_that_fails_does_not_stop_the_others() {
    let fake = FakeNexpose::start().await;
    fake.with(|store| {
        for id in ["a", "b", "c", &"x".repeat(256)] {
            store.know(id, &json!({}));
        }
        store.details.remove("b/solutions");
        store.vulnerabilities.push(json!({"title": "without an ID"}));
    });
    fake.trouble("GET vulnerabilities/c/references", refused(500));
    let all = knowledge(&nexpose(&fake, json!({})).await, None).await;
    let (good, bad): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (1, 4));
    assert!(bad.iter().all(|error| matches!(error, Err(ScannerError::Item { .. }))), "{bad:?}");
}

// ---- scans ----

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_covers_the_targets_of_its_request_and_no_others() {
    let fake = three_assets().await;
    let nexpose = nexpose(&fake, json!({"scan_template": "full-audit"})).await;
    let mut request = request(&fake, ScanKind::Vulnerabilities, &[1, 2]);
    // One without an address is left out.
    request.targets.push(Target { asset: "3".to_owned(), ip: None, ..request.targets[0].clone() });
    let scan = nexpose.launch(&request).await.unwrap();
    assert_eq!(fake.with(|store| store.hosts(scan.key.parse().unwrap())), ["10.0.0.2", "10.0.0.3"]);
    assert_eq!(fake.body("POST sites/#/scans")["templateId"], "full-audit");
    assert_eq!(nexpose.status(&scan).await.unwrap(), ScanStatus::Processing);
    assert_eq!(wait(&nexpose, &scan).await, ScanStatus::Finished);
    assert_eq!(told(results(&nexpose, &scan).await), (texts(&[1, 2]), texts(&[])));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_stay_whole_numbers() {
    let fake = three_assets().await;
    let nexpose = nexpose(&fake, json!({"engine_id": 9_007_199_254_740_993_i64})).await;
    let scan = nexpose.launch(&request(&fake, ScanKind::Vulnerabilities, &[1])).await.unwrap();
    assert!(scan.key.parse::<i64>().is_ok(), "{}", scan.key);
    assert_eq!(scan.detail["scan"].as_i64(), scan.key.parse().ok());
    let body = fake.body("POST sites/#/scans");
    assert_eq!(body["engineId"].as_i64(), Some(9_007_199_254_740_993));
    assert!(body.get("templateId").is_none(), "that of the site: {body}");
    // As the database keeps it.
    let kept =
        ScanHandle { key: scan.key.clone(), detail: serde_json::from_str(&scan.detail.to_string()).unwrap() };
    assert_eq!(nexpose.status(&kept).await.unwrap(), ScanStatus::Processing);
    assert!(fake.asked().iter().all(|kind| !kind.contains('.')), "{:?}", fake.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_whose_answer_was_cut_is_found_by_its_name() {
    for trouble in [Trouble::Cut, Trouble::Half] {
        for narrow in [false, true] {
            let fake = three_assets().await;
            let payload = json!({"scan_template": "full-audit", "narrow_template": narrow});
            let nexpose = nexpose(&fake, payload).await;
            let request = request(&fake, ScanKind::Vulnerabilities, &[1, 3]);
            assert_eq!(nexpose.find(&request).await.unwrap(), None);
            fake.trouble("POST sites/#/scans", trouble.clone());
            let error = nexpose.launch(&request).await.unwrap_err();
            assert!(error.is_passing(), "{error}");
            assert_eq!(fake.count("POST sites/#/scans"), 1, "sent once");
            let scan = nexpose.find(&request).await.unwrap().unwrap();
            assert_eq!(wait(&nexpose, &scan).await, ScanStatus::Finished);
            // Also when it is over.
            assert_eq!(nexpose.find(&request).await.unwrap().unwrap().key, scan.key);
            assert_eq!(told(results(&nexpose, &scan).await), (texts(&[1, 3]), texts(&[])));
            assert_eq!(fake.with(|store| store.templates.len()), 2, "no copy is left");
            let other = ScanRequest { marker: "rosterd-0199".to_owned(), ..request };
            assert_eq!(nexpose.find(&other).await.unwrap(), None, "a name is not the beginning of another");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_run_in_the_site_for_them_if_there_is_one() {
    let fake = three_assets().await;
    fake.with(|store| store.sites.insert(8, vec![1, 2, 3]));
    let nexpose = nexpose(&fake, json!({"rescan_site": 8})).await;
    let mut request = request(&fake, ScanKind::Discovery, &[1]);
    request.group = "tag-5".to_owned();
    let scan = nexpose.launch(&request).await.unwrap();
    assert_eq!(nexpose.find(&request).await.unwrap().unwrap().key, scan.key);
    assert_eq!(fake.body("POST sites/#/scans")["templateId"], "discovery");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_was_made_for_a_scan_is_gone_after_it() {
    let fake = three_assets().await;
    let nexpose = nexpose(&fake, json!({"scan_template": "full-audit", "narrow_template": true})).await;
    let request = request(&fake, ScanKind::Vulnerabilities, &[1]);
    let copies = || fake.with(|store| store.templates.len() - 2);
    // Finished.
    let scan = nexpose.launch(&request).await.unwrap();
    let copy = fake.body("POST scan_templates");
    assert_eq!(copy["checks"]["individual"]["enabled"], json!(["check-of-tls-old"]));
    assert_eq!((copies(), fake.count("DELETE scan_templates/x")), (1, 0));
    assert_eq!(wait(&nexpose, &scan).await, ScanStatus::Finished);
    assert_eq!(copies(), 0);
    assert_eq!(told(results(&nexpose, &scan).await), (texts(&[1]), texts(&[])));
    // Stopped by somebody: nobody asks for its results.
    let scan = nexpose.launch(&request).await.unwrap();
    fake.with(|store| store.set_scan(scan.key.parse().unwrap(), "stopped"));
    assert_eq!((wait(&nexpose, &scan).await, copies()), (ScanStatus::Stopped, 0));
    // Deleted by somebody.
    let scan = nexpose.launch(&request).await.unwrap();
    fake.with(|store| store.forget_scan(scan.key.parse().unwrap()));
    assert_eq!((wait(&nexpose, &scan).await, copies()), (ScanStatus::Error, 0));
    // Refused: no scan needs it.
    fake.trouble("POST sites/#/scans", refused(400));
    let error = nexpose.launch(&request).await.unwrap_err();
    assert!(!error.is_passing() && copies() == 0, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_a_dead_attempt_left_is_gone_after_the_next() {
    let fake = three_assets().await;
    let nexpose = nexpose(&fake, json!({"scan_template": "full-audit", "narrow_template": true})).await;
    let request = request(&fake, ScanKind::Vulnerabilities, &[1]);
    // It was made, and nobody learned of it.
    fake.trouble("POST scan_templates", Trouble::Cut);
    nexpose.launch(&request).await.unwrap_err();
    // It was made, and the scan was not begun.
    fake.trouble("POST sites/#/scans", Trouble::Lost);
    nexpose.launch(&request).await.unwrap_err();
    assert_eq!(nexpose.find(&request).await.unwrap(), None);
    let scan = nexpose.launch(&request).await.unwrap();
    assert_eq!(fake.with(|store| store.templates.len()), 3);
    fake.with(|store| store.set_scan(scan.key.parse().unwrap(), "finished"));
    let _ = results(&nexpose, &scan).await;
    assert_eq!(fake.with(|store| store.templates.len()), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_cannot_look_for_one_thing_alone_looks_for_everything() {
    let fake = three_assets().await;
    let nexpose = nexpose(&fake, json!({"scan_template": "full-audit", "narrow_template": true})).await;
    let mut request = request(&fake, ScanKind::Vulnerabilities, &[1, 2]);
    for vulnerabilities in [vec!["tls-old".to_owned(), "unknown".to_owned()], vec![]] {
        request.targets[1].vulnerabilities = vulnerabilities;
        nexpose.launch(&request).await.unwrap();
        assert_eq!(fake.body("POST sites/#/scans")["templateId"], "full-audit");
    }
    assert_eq!(fake.count("POST scan_templates"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asset_the_scan_did_not_reach_is_not_taken_for_mended() {
    let fake = three_assets().await;
    let nexpose = nexpose(&fake, json!({})).await;
    fake.with(|store| {
        store.assets.get_mut(&2).unwrap().is_up = false;
        // Another scan looks at it meanwhile, and finds nothing any more.
        let later = json!({"type": "SCAN", "date": "2026-03-02T00:00:00Z", "scanId": 77});
        let asset = store.assets.get_mut(&2).unwrap();
        asset.history.push(later);
        asset.findings.clear();
    });
    let scan = nexpose.launch(&request(&fake, ScanKind::Vulnerabilities, &[1, 2])).await.unwrap();
    assert_eq!(wait(&nexpose, &scan).await, ScanStatus::Finished);
    assert_eq!(told(results(&nexpose, &scan).await), (texts(&[1]), texts(&[])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_a_discovery_did_not_find_is_dead() {
    let fake = three_assets().await;
    let nexpose = nexpose(&fake, json!({})).await;
    fake.with(|store| store.assets.get_mut(&2).unwrap().is_up = false);
    let scan = nexpose.launch(&request(&fake, ScanKind::Discovery, &[1, 2, 3])).await.unwrap();
    assert_eq!(told(results(&nexpose, &scan).await).1, texts(&[]), "it is not over");
    assert_eq!(wait(&nexpose, &scan).await, ScanStatus::Finished);
    assert_eq!(told(results(&nexpose, &scan).await), (texts(&[1, 3]), texts(&[2])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_in_whose_place_another_answered_is_not_dead() {
    let fake = three_assets().await;
    let nexpose = nexpose(&fake, json!({})).await;
    fake.with(|store| {
        store.assets.get_mut(&2).unwrap().is_up = false;
        let ip = store.assets[&2].ip.clone();
        store.seed(7, 4, Vec::new()).ip = ip;
    });
    let scan = nexpose.launch(&request(&fake, ScanKind::Discovery, &[1, 2])).await.unwrap();
    assert_eq!(wait(&nexpose, &scan).await, ScanStatus::Finished);
    assert_eq!(told(results(&nexpose, &scan).await), (texts(&[1]), texts(&[])));
    // Nor is anybody dead because one could not be looked at.
    fake.with(|store| store.delete(4));
    fake.trouble("GET assets/#", refused(500));
    let all = results(&nexpose, &scan).await;
    assert!(!all.iter().any(|result| matches!(result, Ok(ScanResult::Dead { .. }))), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_cannot_be_begun_says_why() {
    let fake = three_assets().await;
    let nexpose = nexpose(&fake, json!({"scan_template": "none-such"})).await;
    let mut request = request(&fake, ScanKind::Vulnerabilities, &[1]);
    let error = nexpose.launch(&request).await.unwrap_err();
    assert!(
        error.to_string().contains("refused to start a scan (400 Bad Request): no such template"),
        "{error}"
    );
    request.targets[0].ip = None;
    let error = nexpose.launch(&request).await.unwrap_err();
    assert!(
        matches!(error, ScannerError::Source { .. })
            && error.to_string().contains("no target with an address")
    );
    assert_eq!(fake.count("POST sites/#/scans"), 1);
    fake.trouble("GET scans/#", refused(409));
    let handle = ScanHandle { key: "5".to_owned(), detail: json!({"scan": 5.5}) };
    assert!(matches!(nexpose.status(&handle).await.unwrap_err(), ScannerError::Source { .. }));
}
