//! The Qualys connector against a Qualys that truncates lists, limits scans and calls, and hangs up after the deed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures)]

use crate::generic_jobs::{pool, settings, source};
use crate::source_client::client_with;
use crate::support::SOON;
use crate::support::fake_qualys::{FakeQualys, Host, Trouble, blocked, refused, says};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use rosterd::config::SourcesSection;
use rosterd::connectors::qualys::Qualys;
use rosterd::connectors::scanner::{
    Assessment, FindingStatus, ReferenceKind, ScanHandle, ScanKind, ScanRequest, ScanResult, ScanStatus,
    Scanner, ScannerError, Severity, Target, Tracking, Vulnerability,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio::time::timeout;

const DETECTIONS: &str = "asset/host/vm/detection";
const KNOWLEDGE: &str = "knowledge_base/vuln";
const BEFORE: &str = "2026-05-01T00:00:00Z";
const AFTER: &str = "2026-05-05T11:00:00Z";

/// Retries that do not keep a test waiting.
fn quick() -> SourcesSection {
    let mut sources = settings().sources;
    sources.retry_base_seconds = 0.002;
    sources
}

async fn with_settings(fake: &FakeQualys, password: &str, settings: &SourcesSection) -> Qualys {
    let payload =
        json!({"option_profile_id": 7, "discovery_option_profile_id": 8, "scanner_appliances": [41, 42]});
    let auth = json!({"Username": "svc", "Password": password});
    Qualys::new(client_with(&fake.address, auth, payload, settings).await.unwrap()).unwrap()
}

async fn qualys(fake: &FakeQualys) -> Qualys {
    with_settings(fake, "canary-1", &quick()).await
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// A host of group 12, found with one vulnerability.
fn host(id: u64, ip: &str) -> Host {
    let detection = "<QID>38170</QID><TYPE>Confirmed</TYPE><STATUS>Active</STATUS>".to_owned();
    Host {
        id,
        ip: ip.to_owned(),
        groups: vec!["12"],
        scanned: AFTER,
        detections: vec![detection],
        ..Host::default()
    }
}

fn target(asset: &str, ip: &str, assessed: Option<&str>) -> Target {
    Target {
        asset: asset.to_owned(),
        ip: ip.parse().ok(),
        host_name: String::new(),
        instance: None,
        region: None,
        assessed: assessed.map(at),
        vulnerabilities: vec!["38170".to_owned()],
    }
}

fn request(targets: Vec<Target>) -> ScanRequest {
    ScanRequest {
        marker: "rosterd-0199-1".to_owned(),
        kind: ScanKind::Vulnerabilities,
        group: "12".to_owned(),
        targets,
        known: Value::Null,
    }
}

async fn all(qualys: &Qualys, group: &str) -> Vec<Result<Assessment, ScannerError>> {
    timeout(SOON, qualys.assessments(group).collect()).await.expect("it ends")
}

async fn assets(qualys: &Qualys, group: &str) -> Vec<String> {
    all(qualys, group).await.into_iter().map(|host| host.unwrap().device.asset).collect()
}

/// The error that is the last item.
async fn problem(qualys: &Qualys, group: &str) -> ScannerError {
    all(qualys, group).await.pop().expect("an item").expect_err("an error")
}

async fn knowledge(
    qualys: &Qualys,
    since: Option<DateTime<Utc>>,
) -> Vec<Result<Vulnerability, ScannerError>> {
    timeout(SOON, qualys.knowledge(since).collect()).await.expect("it ends")
}

async fn results(qualys: &Qualys, scan: &ScanHandle) -> Vec<Result<ScanResult, ScannerError>> {
    timeout(SOON, qualys.results(scan).collect()).await.expect("it ends")
}

/// The assets that were assessed, the dead ones, and what is wrong with items.
fn sorted(results: Vec<Result<ScanResult, ScannerError>>) -> (Vec<String>, Vec<String>, Vec<String>) {
    let mut all = (Vec::new(), Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(ScanResult::Assessed(assessment)) => all.0.push(assessment.device.asset),
            Ok(ScanResult::Dead { asset, .. }) => all.1.push(asset.unwrap()),
            Err(error @ ScannerError::Item { .. }) => all.2.push(error.to_string()),
            Err(error) => panic!("{error}"),
        }
    }
    all
}

// ---- detections ----

#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_at_a_host_is_told_in_our_words() {
    let fake = FakeQualys::start().await;
    fake.with(|store| {
        store.hosts = vec![Host {
            more: "<TRACKING_METHOD>AGENT</TRACKING_METHOD><OS><![CDATA[Linux 6]]></OS><DNS><![CDATA[web-1]]></DNS>\
                   <EC2_INSTANCE_ID>i-0abc</EC2_INSTANCE_ID><LAST_SCAN_DATETIME>2027-01-01T00:00:00Z</LAST_SCAN_DATETIME>"
                .to_owned(),
            detections: vec![
                "<QID>1</QID><TYPE>Confirmed</TYPE><PORT>443</PORT><PROTOCOL>tcp</PROTOCOL><STATUS>Re-Opened</STATUS>\
                 <RESULTS><![CDATA[a <b>\u{8}]]></RESULTS><FIRST_FOUND_DATETIME>2026-01-01T00:00:00Z</FIRST_FOUND_DATETIME>\
                 <LAST_FOUND_DATETIME>2026-05-01T00:00:00Z</LAST_FOUND_DATETIME><TIMES_FOUND>9</TIMES_FOUND>\
                 <LAST_UPDATE_DATETIME>2026-05-02T00:00:00Z</LAST_UPDATE_DATETIME><AFFECT_RUNNING_KERNEL>0</AFFECT_RUNNING_KERNEL>"
                    .to_owned(),
                // The same, by another name of the host.
                "<QID>1</QID><TYPE>Confirmed</TYPE><PORT>443</PORT><PROTOCOL>tcp</PROTOCOL><STATUS>Fixed</STATUS>".to_owned(),
                "<QID>2</QID><TYPE>Potential</TYPE><STATUS>New</STATUS>".to_owned(),
                "<QID>3</QID><TYPE>Info</TYPE>".to_owned(),
                "<QID>4</QID><TYPE>Confirmed</TYPE><STATUS>Fixed</STATUS>".to_owned(),
                "<QID>5</QID><TYPE>Confirmed</TYPE><STATUS>Odd</STATUS>".to_owned(),
            ],
            ..host(77, "10.0.0.1")
        }];
    });
    let qualys = qualys(&fake).await;
    let found = all(&qualys, "12").await.pop().unwrap().unwrap();
    let device = &found.device;
    assert_eq!((device.asset.as_str(), device.ip), ("77", "10.0.0.1".parse().ok()));
    assert_eq!((device.host_name.as_str(), device.os.as_str()), ("web-1", "Linux 6"));
    assert_eq!((device.instance.as_deref(), device.tracking), (Some("i-0abc"), Tracking::Agent));
    assert_eq!(found.assessed, Some(at(AFTER)), "the other date may be of another kind of scan");
    let statuses: Vec<_> = found.findings.iter().map(|f| (f.vulnerability.as_str(), f.status)).collect();
    let expected = [
        ("1", FindingStatus::Vulnerable),
        ("2", FindingStatus::Potential),
        ("3", FindingStatus::Informational),
        ("4", FindingStatus::Fixed),
        ("5", FindingStatus::Unknown),
    ];
    assert_eq!(statuses, expected);
    let first = &found.findings[0];
    assert_eq!((first.port, first.protocol.as_str(), first.proof.as_str()), (443, "tcp", "a <b>"));
    assert_eq!((first.times_seen, first.active_kernel), (Some(9), Some(false)));
    assert_eq!(first.last_updated, Some(at("2026-05-02T00:00:00Z")));
    assert!(!qualys.silence_means_fixed());
    let form = &fake.asked(DETECTIONS)[0];
    assert_eq!((form["ag_ids"].as_str(), form["status"].as_str()), ("12", "New,Active,Re-Opened,Fixed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_truncated_is_read_to_its_end() {
    let fake = FakeQualys::start().await;
    fake.with(|store| {
        store.hosts = (1..=7).map(|n| host(n * 10, &format!("10.0.0.{n}"))).collect();
        store.page = 3;
    });
    assert_eq!(assets(&qualys(&fake).await, "12").await, ["10", "20", "30", "40", "50", "60", "70"]);
    let pages = fake.asked(DETECTIONS);
    assert_eq!(
        pages.iter().map(|form| form.get("id_min").cloned()).collect::<Vec<_>>(),
        [None, Some("40".to_owned()), Some("70".to_owned())]
    );
    assert!(pages.iter().all(|form| form["ag_ids"] == "12"), "the question stays ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_on_another_host_is_not_followed() {
    let (fake, other) = (FakeQualys::start().await, FakeQualys::start().await);
    fake.with(|store| {
        store.hosts = vec![host(1, "10.0.0.1"), host(2, "10.0.0.2")];
        store.page = 1;
        store.elsewhere.clone_from(&other.address);
    });
    let mut items = all(&qualys(&fake).await, "12").await;
    let error = items.pop().unwrap().unwrap_err();
    assert!(error.to_string().contains("not below Address") && !error.is_passing(), "{error}");
    assert_eq!(items.len(), 1, "the first page was good");
    assert!(other.asked(DETECTIONS).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_names_the_same_page_again_ends() {
    let fake = FakeQualys::start().await;
    let page = format!(
        "<HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE><WARNING><CODE>1980</CODE><URL>{}/api/2.0/fo/x/?id_min=5</URL></WARNING>\
         </RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>",
        fake.address
    );
    fake.trouble("detection list", says(page.clone()));
    fake.trouble("detection list", says(page));
    let error = problem(&qualys(&fake).await, "12").await;
    assert!(error.to_string().contains("not behind this one"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_too_long_is_asked_for_in_smaller_ones() {
    let fake = FakeQualys::start().await;
    fake.with(|store| {
        store.hosts = (1..=20).map(|n| host(n, &format!("10.0.0.{n}"))).collect();
        for host in &mut store.hosts {
            host.detections[0].extend(["<RESULTS>", &"x".repeat(3000), "</RESULTS>"]);
        }
    });
    let mut settings = quick();
    settings.response_max_bytes = 16 << 10;
    let small = with_settings(&fake, "canary-1", &settings).await;
    assert_eq!(assets(&small, "12").await.len(), 20);
    settings.response_max_bytes = 2 << 10;
    let error = problem(&with_settings(&fake, "canary-1", &settings).await, "12").await;
    assert!(
        error.to_string().contains("`sources.response_max_bytes` (2048)") && !error.is_passing(),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_makes_no_sense_holds_up_no_other() {
    let fake = FakeQualys::start().await;
    let odd = |id, ip, detection: &str| Host { detections: vec![detection.to_owned()], ..host(id, ip) };
    fake.with(|store| {
        store.hosts = vec![
            host(0, "10.0.0.1"),
            odd(2, "10.0.0.2", "<QID>9</QID><PORT>70000</PORT>"),
            odd(3, "10.0.0.3", "<TYPE>Info</TYPE>"),
            Host { scanned: "yesterday", ..host(4, "10.0.0.4") },
            host(5, "10.0.0.1000"),
            host(6, "10.0.0.6"),
        ];
    });
    let mut items = all(&qualys(&fake).await, "12").await;
    assert_eq!(items.pop().unwrap().unwrap().device.asset, "6");
    for (item, word) in items.into_iter().zip([
        "its ID",
        "host 2: QID 9: its PORT is `70000`",
        "its QID",
        "yesterday",
        "its IP",
    ]) {
        let error = item.unwrap_err();
        assert!(matches!(error, ScannerError::Item { .. }) && error.to_string().contains(word), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_tags_is_asked_for_by_tags() {
    let fake = FakeQualys::start().await;
    fake.with(|store| {
        store.hosts = vec![
            Host { tags: vec!["5", "7"], ..host(1, "10.0.0.1") },
            Host { tags: vec!["5"], ..host(2, "10.0.0.2") },
        ];
    });
    let qualys = qualys(&fake).await;
    assert_eq!(assets(&qualys, "tag-5,tag-7").await, ["1"]);
    assert_eq!(fake.asked(DETECTIONS)[0]["tag_set_by"], "id");
    let error = problem(&qualys, "web-3").await;
    assert!(error.to_string().contains("`web-3`") && !error.is_passing(), "{error}");
}

// ---- what goes wrong with any call ----

#[tokio::test(flavor = "multi_thread")]
async fn an_error_inside_a_200_is_an_error() {
    let fake = FakeQualys::start().await;
    let qualys = qualys(&fake).await;
    for (code, text, passes) in
        [(999, "Internal error", true), (1905, "parameter ag_ids has invalid value", false)]
    {
        fake.trouble("detection list", refused(200, code, text));
        let error = problem(&qualys, "12").await;
        assert!(error.to_string().contains(&format!("{code} {text}")), "{error}");
        assert_eq!(error.is_passing(), passes, "{error}");
    }
    fake.trouble("detection list", says("<HTML><BODY>Log in</BODY></HTML>".to_owned()));
    let error = problem(&qualys, "12").await;
    assert!(error.to_string().contains("does Address lead to Qualys?"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_type_with_entities_is_refused() {
    let fake = FakeQualys::start().await;
    let bomb = "<!DOCTYPE HOST_LIST_VM_DETECTION_OUTPUT [<!ENTITY a 'ha'>]>\
                <HOST_LIST_VM_DETECTION_OUTPUT><RESPONSE>&a;</RESPONSE></HOST_LIST_VM_DETECTION_OUTPUT>";
    fake.trouble("detection list", says(bomb.to_owned()));
    let error = problem(&qualys(&fake).await, "12").await;
    assert!(error.to_string().contains("document type"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_without_it() {
    let fake = FakeQualys::start().await;
    let qualys = with_settings(&fake, "canary-2", &quick()).await;
    let error = problem(&qualys, "12").await;
    assert!(error.to_string().contains("does not accept the credentials") && !error.is_passing(), "{error}");
    assert!(!error.to_string().contains("canary"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_qualys_wants_to_be_left_alone_is_told_and_not_waited_for_beyond_the_total() {
    let fake = FakeQualys::start().await;
    fake.trouble("detection list", blocked(3600));
    let error = problem(&qualys(&fake).await, "12").await;
    assert!(error.to_string().contains("for 3600 seconds") && error.is_passing(), "{error}");
    assert!(fake.asked(DETECTIONS).is_empty(), "it was not asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_answer_breaks_is_asked_for_again() {
    let fake = FakeQualys::start().await;
    fake.with(|store| store.hosts = vec![host(1, "10.0.0.1")]);
    let qualys = qualys(&fake).await;
    for trouble in [Trouble::Lost, Trouble::Cut, Trouble::Half, refused(503, 0, "busy")] {
        fake.trouble("detection list", trouble);
        assert_eq!(assets(&qualys, "12").await, ["1"]);
    }
    fake.trouble("detection list", refused(500, 999, "Internal error"));
    assert!(problem(&qualys, "12").await.is_passing());
    let mut settings = quick();
    settings.request_timeout_seconds = 0.2;
    fake.trouble("detection list", Trouble::Silent);
    assert!(problem(&with_settings(&fake, "canary-1", &settings).await, "12").await.is_passing());
}

// ---- the knowledge base ----

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_the_knowledge_base_is_told_in_our_words() {
    let fake = FakeQualys::start().await;
    let entry = "<VULN_TYPE>Vulnerability</VULN_TYPE><SEVERITY_LEVEL>5</SEVERITY_LEVEL><TITLE><![CDATA[Old &amp; weak]]></TITLE>\
        <CATEGORY>Web server</CATEGORY><PATCHABLE>1</PATCHABLE>\
        <SOFTWARE_LIST><SOFTWARE><PRODUCT><![CDATA[nginx]]></PRODUCT><VENDOR><![CDATA[f5]]></VENDOR></SOFTWARE></SOFTWARE_LIST>\
        <VENDOR_REFERENCE_LIST><VENDOR_REFERENCE><ID>MS17-010</ID><URL>x</URL></VENDOR_REFERENCE>\
        <VENDOR_REFERENCE><ID>RHSA-1</ID></VENDOR_REFERENCE></VENDOR_REFERENCE_LIST>\
        <CVE_LIST><CVE><ID>CVE-2026-1</ID></CVE><CVE><ID>CVE-2026-1</ID></CVE></CVE_LIST>\
        <DIAGNOSIS><![CDATA[It is <B>old</B>.<P>Very.]]></DIAGNOSIS><CONSEQUENCE><![CDATA[All is lost.]]></CONSEQUENCE>\
        <SOLUTION><![CDATA[<A HREF=\"https://h/p\">Patch</A>]]></SOLUTION>\
        <CVSS><BASE source=\"service\">7.5</BASE></CVSS><CVSS_V3><BASE>-</BASE></CVSS_V3>";
    fake.with(|store| {
        store.knowledge = vec![
            (38170, "2026-05-02T00:00:00Z", entry.to_owned()),
            (38171, "2026-05-02T00:00:00Z", "<CVSS><BASE>11</BASE></CVSS>".to_owned()),
            (38172, "2026-05-02T00:00:00Z", "<SEVERITY_LEVEL>1</SEVERITY_LEVEL>".to_owned()),
        ];
    });
    let mut entries = knowledge(&qualys(&fake).await, Some(at(BEFORE))).await;
    assert_eq!(entries.pop().unwrap().unwrap().severity, Severity::Info);
    let error = entries.pop().unwrap().unwrap_err();
    assert!(error.to_string().contains("QID 38171") && matches!(error, ScannerError::Item { .. }), "{error}");
    let entry = entries.pop().unwrap().unwrap();
    assert_eq!(
        (entry.id.as_str(), entry.title.as_str(), entry.severity),
        ("38170", "Old & weak", Severity::Critical)
    );
    assert_eq!((entry.description.as_str(), entry.threat.as_str()), ("It is old.\nVery.", "All is lost."));
    assert_eq!(entry.solution, "Patch (https://h/p)");
    assert_eq!((entry.cvss2, entry.cvss3, entry.patchable), (Some(7.5), None, Some(true)));
    assert_eq!(
        (entry.software.as_deref(), entry.category.as_deref()),
        (Some("f5 nginx"), Some("Web server"))
    );
    let references: Vec<_> = entry.references.iter().map(|r| (r.kind, r.text.as_str())).collect();
    let expected = [
        (ReferenceKind::Cve, "CVE-2026-1"),
        (ReferenceKind::Microsoft, "MS17-010"),
        (ReferenceKind::Vendor, "RHSA-1"),
    ];
    assert_eq!(references, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_in_the_knowledge_base_takes_one_call() {
    let fake = FakeQualys::start().await;
    fake.with(|store| {
        store.knowledge =
            vec![(1, "2026-04-01T00:00:00Z", String::new()), (2, "2026-05-02T00:00:00Z", String::new())];
    });
    let entries = knowledge(&qualys(&fake).await, Some(at(BEFORE))).await;
    assert_eq!(entries.into_iter().map(|entry| entry.unwrap().id).collect::<Vec<_>>(), ["2"]);
    let asked = fake.asked(KNOWLEDGE);
    assert_eq!((asked.len(), asked[0]["last_modified_after"].as_str()), (1, BEFORE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_knowledge_base_that_is_too_long_is_read_in_ranges_each_entry_once() {
    let fake = FakeQualys::start().await;
    let ids: Vec<u64> = (1..=60).chain([99, 38_170, 9_999_999, 10_000_000, 77_000_000]).collect();
    fake.with(|store| {
        store.knowledge = ids
            .iter()
            .map(|id| (*id, AFTER, format!("<DIAGNOSIS>{}</DIAGNOSIS>", "x".repeat(2000))))
            .collect();
    });
    let mut settings = quick();
    settings.response_max_bytes = 40 << 10;
    let qualys = with_settings(&fake, "canary-1", &settings).await;
    for since in [None, Some(at(BEFORE))] {
        let read: Vec<String> =
            knowledge(&qualys, since).await.into_iter().map(|entry| entry.unwrap().id).collect();
        assert_eq!(read, ids.iter().map(u64::to_string).collect::<Vec<_>>());
    }
    let asked = fake.asked(KNOWLEDGE).len();
    assert!(asked < 80, "{asked} calls");
}

// ---- scans ----

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_is_launched_with_the_profile_of_its_kind_and_each_address_once() {
    let fake = FakeQualys::start().await;
    let qualys = qualys(&fake).await;
    let targets =
        vec![target("1", "10.0.0.9", None), target("2", "10.0.0.1", None), target("3", "10.0.0.9", None)];
    let mut request = request(targets);
    let scan = qualys.launch(&request).await.unwrap();
    assert_eq!(scan.key, "scan/1700000000.1");
    (request.kind, request.marker) = (ScanKind::Discovery, "rosterd-0199-2".to_owned());
    qualys.launch(&request).await.unwrap();
    let forms: Vec<HashMap<String, String>> =
        fake.with(|store| store.scans.iter().map(|scan| scan.form.clone()).collect());
    let of = |nth: usize, name: &str| forms[nth].get(name).cloned().unwrap_or_default();
    assert_eq!((of(0, "option_id"), of(1, "option_id")), ("7".to_owned(), "8".to_owned()));
    assert_eq!((of(0, "ip"), of(0, "iscanner_id")), ("10.0.0.1,10.0.0.9".to_owned(), "41,42".to_owned()));
    assert_eq!(of(1, "scan_title"), "rosterd-0199-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_whose_launch_answer_was_cut_is_found_by_its_title() {
    let fake = FakeQualys::start().await;
    let qualys = qualys(&fake).await;
    let mut wanted = request(vec![target("1", "10.0.0.1", Some(BEFORE))]);
    for (nth, trouble) in [Trouble::Cut, Trouble::Half, Trouble::Lost].into_iter().enumerate() {
        wanted.marker = format!("rosterd-{nth}");
        assert_eq!(qualys.find(&wanted).await.unwrap(), None);
        let is_lost = matches!(trouble, Trouble::Lost);
        fake.trouble("scan launch", trouble);
        let error = qualys.launch(&wanted).await.unwrap_err();
        assert!(error.is_passing(), "{error}");
        let found = qualys.find(&wanted).await.unwrap();
        assert_eq!(found.is_none(), is_lost);
        if let Some(found) = found {
            fake.with(|store| store.hosts = vec![host(1, "10.0.0.1")]);
            assert_eq!(
                sorted(results(&qualys, &found).await).0,
                ["1"],
                "it is as good as if it had been launched"
            );
        }
    }
    assert_eq!(fake.with(|store| store.scans.len()), 2, "sent once each");
    wanted.marker = "rosterd-".to_owned();
    assert_eq!(qualys.find(&wanted).await.unwrap(), None, "a part of a title is another scan");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_is_finished_and_not_processed_is_not_finished() {
    use ScanStatus::{Canceled, Error, Finished, Paused, Processing, Queued};
    let fake = FakeQualys::start().await;
    let qualys = qualys(&fake).await;
    let scan = qualys.launch(&request(vec![target("1", "10.0.0.1", None)])).await.unwrap();
    let mut states = Vec::new();
    for _ in 0..4 {
        states.push(qualys.status(&scan).await.unwrap());
    }
    assert_eq!(states, [Queued, Processing, Processing, Finished]);
    for (word, expected) in
        [("Loading", Queued), ("Paused", Paused), ("Canceled", Canceled), ("Error", Error)]
    {
        fake.with(|store| store.scans[0].states = [(word, false)].into());
        assert_eq!(qualys.status(&scan).await.unwrap(), expected);
    }
    fake.with(|store| store.scans[0].states = [("Dreaming", false)].into());
    assert!(qualys.status(&scan).await.unwrap_err().to_string().contains("`Dreaming`"));
    fake.with(|store| store.scans.clear());
    let gone = qualys.status(&scan).await.unwrap_err();
    assert!(gone.to_string().contains("no such scan") && !gone.is_passing(), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_scans_at_once_is_told_as_something_that_passes() {
    let fake = FakeQualys::start().await;
    fake.with(|store| store.most_scans = 1);
    let qualys = qualys(&fake).await;
    let mut wanted = request(vec![target("1", "10.0.0.1", None)]);
    qualys.launch(&wanted).await.unwrap();
    wanted.marker = "rosterd-0199-2".to_owned();
    let error = qualys.launch(&wanted).await.unwrap_err();
    assert!(error.is_passing() && error.to_string().contains("1 concurrent scans"), "{error}");
    fake.with(|store| store.scans[0].states = [("Finished", true)].into());
    qualys.launch(&wanted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_qualys_refuses_is_about_that_scan_alone() {
    let fake = FakeQualys::start().await;
    let qualys = qualys(&fake).await;
    let error = qualys.launch(&request(vec![target("1", "192.0.2.1", None)])).await.unwrap_err();
    assert!(
        matches!(error, ScannerError::Item { .. }) && error.to_string().contains("not in your subscription"),
        "{error}"
    );
    let error =
        qualys.launch(&request(vec![target("1", "", None), target("2", "::1", None)])).await.unwrap_err();
    assert!(error.to_string().contains("none of its targets"), "{error}");
    let auth = json!({"Username": "svc", "Password": "canary-1"});
    let client = client_with(&fake.address, auth, json!({}), &quick()).await.unwrap();
    let unset = Qualys::new(client).unwrap();
    let error = unset.launch(&request(vec![target("1", "10.0.0.1", None)])).await.unwrap_err();
    assert!(error.to_string().contains("`option_profile_id` in its Payload is missing"), "{error}");
    assert!(fake.with(|store| store.scans.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_host_is_told_by_its_address() {
    let fake = FakeQualys::start().await;
    let qualys = qualys(&fake).await;
    let targets = vec![
        target("1", "10.0.0.1", Some(BEFORE)),
        target("2", "10.0.0.2", Some(BEFORE)),
        target("3", "10.0.0.3", Some(BEFORE)),
        target("4", "10.0.0.4", Some(BEFORE)),
        target("5", "10.0.0.200", Some(BEFORE)),
    ];
    let scan = qualys.launch(&request(targets)).await.unwrap();
    fake.with(|store| {
        store.hosts = vec![host(1, "10.0.0.1"), host(4, "10.0.0.4")];
        // An agent has told of the fourth meanwhile.
        store.scans[0].dead = "10.0.0.2-10.0.0.4, 10.1.0.0-10.1.255.255".to_owned();
    });
    let all = results(&qualys, &scan).await;
    let dead = all.iter().find_map(|result| match result {
        Ok(ScanResult::Dead { asset, ip, proof }) => Some((asset.clone(), *ip, proof.clone())),
        _ => None,
    });
    let (asset, ip, proof) = dead.unwrap();
    assert_eq!((asset.as_deref(), ip), (Some("2"), "10.0.0.2".parse().ok()));
    assert!(proof.contains("10.0.0.2") && proof.contains(&scan.key), "{proof}");
    let (assessed, dead, items) = sorted(all);
    assert_eq!(
        (assessed, dead, items),
        (vec!["1".to_owned(), "4".to_owned()], vec!["2".to_owned(), "3".to_owned()], vec![])
    );
    assert_eq!(fake.asked("scan/summary")[0]["scan_date_since"], "2026-05-04");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_hosts_that_were_looked_at_since_are_results_of_a_scan() {
    let fake = FakeQualys::start().await;
    let qualys = qualys(&fake).await;
    let mut left_out = target("6", "", None);
    left_out.instance = Some("i-0abc".to_owned());
    let targets = vec![
        target("1", "10.0.0.1", Some(AFTER)),
        target("2", "10.0.0.2", Some(BEFORE)),
        target("3", "10.0.0.3", None),
        target("4", "10.0.0.4", None),
        target("5", "10.0.0.5", Some(BEFORE)),
        left_out,
    ];
    let scan = qualys.launch(&request(targets)).await.unwrap();
    fake.with(|store| {
        store.hosts = vec![
            host(1, "10.0.0.1"),
            host(2, "10.0.0.2"),
            host(3, "10.0.0.3"),
            Host { scanned: "", ..host(4, "10.0.0.4") },
            // Made anew, with another number.
            host(55, "10.0.0.5"),
            host(9, "10.0.0.9"),
        ];
    });
    let (assessed, dead, items) = sorted(results(&qualys, &scan).await);
    assert_eq!((assessed, dead), (vec!["2".to_owned(), "3".to_owned(), "55".to_owned()], vec![]));
    assert_eq!(items.len(), 1);
    assert!(items[0].starts_with("host 6: it was not scanned"), "{items:?}");
    let nonsense = ScanHandle { key: scan.key, detail: Value::Null };
    assert!(matches!(results(&qualys, &nonsense).await.pop(), Some(Err(ScannerError::Item { .. }))));
}

// ---- the page about sources ----

#[tokio::test(flavor = "multi_thread")]
async fn the_statement_of_the_page_about_sources_says_how_to_scan() {
    let fake = FakeQualys::start().await;
    let pool = pool().await;
    let source = source(&pool, "Qualys", &fake.address, json!({})).await;
    let page = include_str!("../../docs/sources.md");
    let statements = page.split("```sql").skip(1).map(|block| block.split("```").next().unwrap());
    let statement = statements.into_iter().find(|statement| statement.contains("'Qualys'")).unwrap();
    let statement = statement.replace("where Source = 'Qualys'", &format!("where ID = '{}'", source.id));
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&pool).await.unwrap();
    let payload: Value = sqlx::query_scalar("select Payload from vm.SourceConfig where ID = $1")
        .bind(source.id)
        .fetch_one(&pool)
        .await
        .unwrap();
    let auth = json!({"Username": "svc", "Password": "canary-1"});
    let qualys = Qualys::new(client_with(&fake.address, auth, payload, &quick()).await.unwrap()).unwrap();
    let mut wanted = request(vec![target("1", "10.0.0.1", None)]);
    wanted.group = "99".to_owned();
    qualys.launch(&wanted).await.unwrap();
    fake.with(|store| {
        let form = &store.scans[0].form;
        assert_eq!((form["option_id"].as_str(), form["iscanner_name"].as_str()), ("123456", "External"));
    });
}
