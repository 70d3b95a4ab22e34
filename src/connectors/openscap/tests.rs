//! The connector as those who use it see it, on documents written by hand and on one of a real host.

use super::document::{Document, Reading};
use super::group::Head;
use super::results::{Budget, Detail};
use super::unpack::tests::{LIMITS, gzip};
use super::xml::Broken;
use super::*;
use crate::config::Config;
use crate::config_rows::AuthInfo;
use crate::connectors::scanner::{FindingStatus, ScanKind, Severity, Target};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::{create_dir, write};
use std::path::Path;
use std::time::SystemTime;
use tempfile::TempDir;
use uuid::Uuid;

const XCCDF: &str = "http://checklists.nist.gov/xccdf/1.2";
const RULES: &str = "<title>Guide to the Secure Configuration of Debian 12</title><Group id='g'><title>Partitions</title>
    <Rule id='r_home' severity='low'><title>Separate /home</title><description>Because <html:code
    xmlns:html='http://www.w3.org/1999/xhtml'>/home</html:code> fills.</description><rationale>Logs.</rationale></Rule>
    <Rule id='r_tmout' severity='medium'><title>Timeout</title><description>TMOUT=<sub
    idref='v_tmout'/></description></Rule><Rule id='r_other' severity='high'><title>Not selected</title></Rule></Group>";

/// A `TestResult` of a host at a time of 22 November 2026.
fn result(host: &str, time: &str, rule_results: &str) -> String {
    format!(
        "<TestResult xmlns='{XCCDF}' end-time='2026-11-22T{time}' version='1'><benchmark id='b'/><target>{host}</target>
         <target-address>127.0.0.1</target-address><target-address>fd00::2</target-address>
         <target-address>192.0.2.7</target-address><target-facts><fact
         name='urn:xccdf:fact:asset:identifier:mac'>00:00:00:00:00:00</fact><fact
         name='urn:xccdf:fact:asset:identifier:mac'>02:00:5E:00:53:01</fact></target-facts>
         <set-value idref='v_tmout'>900</set-value>{rule_results}</TestResult>"
    )
}

fn said(rule: &str, word: &str) -> String {
    format!("<rule-result idref='{rule}'><result>{word}</result></rule-result>")
}

fn home_failed() -> String {
    said("r_home", "fail") + &said("r_tmout", "pass") + &said("r_other", "notselected")
}

fn benchmark(results: &str) -> String {
    format!("<?xml version='1.0'?><Benchmark xmlns='{XCCDF}' id='b'>{RULES}{results}</Benchmark>")
}

fn fetched(document: impl Into<Vec<u8>>) -> Document {
    Document::Fetched(Bytes::from(document.into()), "a.xml".to_owned())
}

fn read(document: impl Into<Vec<u8>>) -> Result<Vec<Assessment>, Broken> {
    let mut all = Vec::new();
    let emit = |assessment| {
        all.push(assessment);
        Ok(())
    };
    fetched(document).assessments(&Reading::new(LIMITS), |_| true, emit).map(|_| all)
}

fn problem(document: impl Into<Vec<u8>>) -> String {
    match read(document) {
        Err(Broken::Bad(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

fn statuses(assessment: &Assessment) -> Vec<(&str, FindingStatus)> {
    assessment.findings.iter().map(|finding| (finding.vulnerability.as_str(), finding.status)).collect()
}

// ---- one document ----

#[test]
fn results_are_found_in_a_benchmark_in_an_arf_collection_and_alone() {
    let result = result("web-01", "01:00:00Z", &home_failed());
    let of_benchmark = benchmark(&result);
    let arf = format!(
        "<arf:asset-report-collection xmlns:arf='http://scap.nist.gov/schema/asset-reporting-format/1.1'>
         <arf:reports><arf:report><arf:content>{result}</arf:content></arf:report></arf:reports>
         <arf:report-requests><ds:component xmlns:ds='http://scap.nist.gov/schema/scap/source/1.2'><Benchmark
         xmlns='{XCCDF}' id='b'>{RULES}</Benchmark></ds:component></arf:report-requests></arf:asset-report-collection>"
    );
    for document in [of_benchmark, arf] {
        let [found] = &read(document).unwrap()[..] else { panic!("one host") };
        assert_eq!(
            statuses(found),
            [("r_home", FindingStatus::Vulnerable), ("r_tmout", FindingStatus::Fixed)]
        );
        let [home, tmout] = &found.vulnerabilities[..] else { panic!("two rules") };
        assert_eq!(
            (home.title.as_str(), home.description.as_str()),
            ("Separate /home", "Because /home fills.")
        );
        assert_eq!((home.threat.as_str(), home.severity), ("Logs.", Severity::Low));
        assert_eq!((home.category.as_deref(), tmout.description.as_str()), (Some("Partitions"), "TMOUT=900"));
        assert_eq!(found.device.os, "Debian 12");
    }
    let [found] = &read(result).unwrap()[..] else { panic!("one host") };
    assert_eq!((found.findings.len(), found.vulnerabilities[0].title.as_str()), (2, "r_home"));
}

#[test]
fn a_device_has_the_address_others_reach_it_by() {
    let found = &read(result("web-01", "01:00:00", "")).unwrap()[0];
    let device = &found.device;
    assert_eq!((device.asset.as_str(), device.host_name.as_str()), ("web-01", "web-01"));
    assert_eq!(device.ip, Some("192.0.2.7".parse().unwrap()));
    assert_eq!(device.mac.as_deref(), Some("02:00:5E:00:53:01"));
    assert_eq!(found.assessed, Some("2026-11-22T01:00:00Z".parse().unwrap()));
}

#[test]
fn a_host_is_called_by_its_whole_name_unless_that_is_localhost() {
    let asset = |fqdn: &str| {
        let facts = format!(
            "<fact name='urn:xccdf:fact:asset:identifier:fqdn'>{fqdn}</fact><fact
             name='urn:xccdf:fact:asset:identifier:host_name'>short</fact>"
        );
        read(result("target", "01:00:00Z", &facts)).unwrap()[0].device.asset.clone()
    };
    assert_eq!(
        (asset("web.example.org"), asset("localhost.localdomain")),
        ("web.example.org".into(), "short".into())
    );
}

#[test]
fn every_word_of_a_result_has_its_meaning() {
    let words = "pass fixed fail error unknown notchecked informational notapplicable notselected surprise";
    let said: String = words.split(' ').map(|word| said(word, word)).collect();
    let found = read(result("web-01", "01:00:00Z", &said)).unwrap().remove(0);
    let wanted = [
        ("pass", FindingStatus::Fixed),
        ("fixed", FindingStatus::Fixed),
        ("fail", FindingStatus::Vulnerable),
        ("error", FindingStatus::Unknown),
        ("unknown", FindingStatus::Unknown),
        ("notchecked", FindingStatus::Unknown),
        ("informational", FindingStatus::Informational),
        ("surprise", FindingStatus::Unknown),
    ];
    assert_eq!(statuses(&found), wanted);
    let last_found: Vec<_> = found.findings.iter().filter(|finding| finding.last_found.is_some()).collect();
    assert!(last_found.len() == 1 && last_found[0].vulnerability == "fail");
    assert!(found.findings.iter().all(|finding| finding.last_updated == found.assessed));
    let complaints = fetched(result("web-01", "01:00:00Z", &said))
        .assessments(&Reading::new(LIMITS), |_| true, |_| Ok(()))
        .unwrap();
    assert!(complaints.len() == 1 && complaints[0].contains("\"surprise\""), "{complaints:?}");
}

#[test]
fn a_result_overrides_the_severity_of_its_rule_and_proves_itself() {
    let results = format!(
        "<rule-result idref='r_home' severity='high' time='2026-11-22T00:59:00+00:00'><result>fail</result>
         <message>no partition</message><check><check-content-ref name='oval:1'/></check></rule-result>
         <rule-result idref='r_tmout' severity='spicy'>{}</rule-result>",
        "<result>fail</result>"
    );
    let found = read(benchmark(&result("web-01", "01:00:00Z", &results))).unwrap().remove(0);
    assert_eq!(found.vulnerabilities[0].severity, Severity::High);
    assert_eq!(found.vulnerabilities[1].severity, Severity::Unknown);
    assert_eq!(found.findings[0].proof, "no partition\ncheck oval:1");
    assert_eq!(found.findings[0].last_updated, Some("2026-11-22T00:59:00Z".parse().unwrap()));
    assert_eq!(found.findings[0].last_found, found.assessed);
}

#[test]
fn a_rule_with_several_results_says_the_worst() {
    let results = said("r", "pass") + &said("r", "fail") + &said("r", "error");
    let found = read(result("web-01", "01:00:00Z", &results)).unwrap().remove(0);
    assert_eq!(statuses(&found), [("r", FindingStatus::Vulnerable)]);
    assert_eq!(found.vulnerabilities.len(), 1);
}

#[test]
fn a_document_with_results_of_two_hosts_is_two_assessments() {
    let both = result("web-01", "01:00:00Z", &home_failed()) + &result("web-02", "01:00:00Z", &home_failed());
    let found = read(benchmark(&both)).unwrap();
    let assets: Vec<&str> = found.iter().map(|one| one.device.asset.as_str()).collect();
    assert_eq!(assets, ["web-01", "web-02"]);
    assert_eq!(found[0].vulnerabilities, found[1].vulnerabilities);
}

#[test]
fn a_document_that_is_none_of_ours_is_told_so() {
    let old = "http://checklists.nist.gov/xccdf/1.1";
    assert!(problem(benchmark("").replace(XCCDF, old)).contains(old));
    assert!(problem(benchmark("")).contains("holds no TestResult"));
    assert!(problem("<html/>").contains("holds no TestResult"));
    let bomb = format!("<!DOCTYPE a [<!ENTITY a 'ha'>]>{}", result("&a;", "01:00:00Z", ""));
    assert!(problem(bomb).contains("DOCTYPE"));
    assert_eq!(read(&benchmark(&result("web-01", "01:00:00Z", ""))[..300]), Err(Broken::Truncated));
    let packed = gzip(benchmark(&result("web-01", "01:00:00Z", "")).as_bytes());
    assert_eq!(read(&packed[..packed.len() - 20]), Err(Broken::Truncated));
    assert_eq!(read(""), Err(Broken::Truncated));
}

#[test]
fn a_document_of_a_real_host_is_read_as_it_was_meant() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/openscap/web-01-standard.xml.gz");
    let found = read(std::fs::read(file).unwrap()).unwrap().remove(0);
    let failed = found.findings.iter().filter(|finding| finding.status == FindingStatus::Vulnerable).count();
    assert_eq!((found.findings.len(), found.vulnerabilities.len(), failed), (44, 44, 21));
    assert_eq!((found.device.asset.as_str(), found.device.os.as_str()), ("web-01.example.org", "Debian 11"));
    assert_eq!(found.device.ip, Some("192.0.2.10".parse().unwrap()));
    assert_eq!(found.device.mac.as_deref(), Some("02:00:5E:00:53:01"));
    assert_eq!(found.assessed, Some("2026-11-22T01:51:12Z".parse().unwrap()));
    let home = found.vulnerabilities.iter().find(|one| one.id.ends_with("partition_for_home")).unwrap();
    assert_eq!(home.title, "Ensure /home Located On Separate Partition");
    assert!(home.description.contains("for /home at installation time"), "{}", home.description);
    assert_eq!((home.severity, home.references.len()), (Severity::Low, 25));
    for one in &found.vulnerabilities {
        assert!(!one.title.is_empty() && !one.description.is_empty() && !one.threat.is_empty(), "{}", one.id);
        assert!(!one.description.contains("html:") && one.category.is_some(), "{}", one.id);
    }
}

proptest! {
    #[test]
    fn no_change_of_a_document_harms_its_reader(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        end in any::<prop::sample::Index>(),
        packed in any::<bool>(),
    ) {
        let whole = benchmark(&result("web-01", "01:00:00Z", &home_failed()));
        let mut bytes = if packed { gzip(whole.as_bytes()) } else { whole.into_bytes() };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - end.index(bytes.len()) / 4);
        for found in read(bytes).into_iter().flatten() {
            prop_assert!((1..=360).contains(&found.device.asset.chars().count()));
        }
    }
}

// ---- a folder of them ----

struct Fixture {
    folder: TempDir,
    payload: Value,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        create_dir(folder.path().join("web")).unwrap();
        Self { folder, payload: json!({}) }
    }

    fn put(&self, file: &str, document: impl AsRef<[u8]>) -> &Self {
        write(self.folder.path().join(file), document).unwrap();
        self
    }

    /// As if it had been written an hour ago.
    fn age(&self, file: &str) -> &Self {
        let file = std::fs::File::options().append(true).open(self.folder.path().join(file)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
        self
    }

    fn at(&self, address: String, folders: &[&Path]) -> Result<OpenScap, ScannerError> {
        let source = SourceConfig {
            id: Uuid::nil(),
            source: "OpenSCAP".to_owned(),
            organization: Uuid::nil(),
            address,
            port: None,
            auth: AuthInfo::new(json!({})),
            payload: self.payload.clone(),
        };
        let mut settings = Config::built_in().sources;
        settings.folders = folders.iter().map(|folder| (*folder).to_owned()).collect();
        OpenScap::new(&source, &settings, None)
    }

    fn scanner(&self) -> OpenScap {
        let path = self.folder.path();
        self.at(format!("file://{}", path.display()), &[path]).unwrap()
    }
}

async fn all<T>(stream: BoxStream<'_, Result<T, ScannerError>>) -> (Vec<T>, Vec<String>) {
    let (mut items, mut problems) = (Vec::new(), Vec::new());
    for item in stream.collect::<Vec<_>>().await {
        match item {
            Ok(item) => items.push(item),
            Err(error) => problems.push(error.to_string()),
        }
    }
    (items, problems)
}

#[tokio::test]
async fn of_several_results_of_a_host_the_newest_counts() {
    let fixture = Fixture::new();
    fixture
        .put("web/a.xml", benchmark(&result("web-01", "03:00:00Z", &said("r_home", "pass"))))
        .put("web/b.xml.gz", gzip(benchmark(&result("web-01", "02:00:00Z", &home_failed())).as_bytes()))
        .put("web/c", benchmark(&result("web-02", "02:00:00Z", &home_failed())))
        .put("d.xml", benchmark(&result("web-03", "02:00:00Z", "")));
    let scanner = fixture.scanner();
    let (found, problems) = all(scanner.assessments("web")).await;
    let assets: Vec<_> = found.iter().map(|one| (one.device.asset.as_str(), one.findings.len())).collect();
    assert_eq!((assets, problems), (vec![("web-01", 1), ("web-02", 2)], vec![]));
    assert_eq!(all(scanner.assessments(".")).await.0[0].device.asset, "web-03");
}

#[tokio::test]
async fn a_file_that_makes_no_sense_is_told_and_the_others_are_read() {
    let fixture = Fixture::new();
    let whole = benchmark(&result("web-01", "03:00:00Z", &home_failed()));
    let no_target = result("", "03:00:00Z", "");
    let both = benchmark(&(no_target + &result("web-02", "03:00:00Z", "")));
    fixture.put("web/a.xml", "hello").put("web/b.xml", &whole[..400]).age("web/b.xml");
    fixture
        .put("web/c.xml", &whole[..400])
        .put("web/d.xml", both)
        .put("web/e.xml", &whole)
        .put("web/.f.xml", "");
    let (found, problems) = all(fixture.scanner().assessments("web")).await;
    let assets: Vec<_> = found.iter().map(|one| one.device.asset.as_str()).collect();
    assert_eq!(assets, ["web-02", "web-01"]);
    // c.xml is being written.
    let wanted = [
        "web/a.xml: it is no XML",
        "web/b.xml: it ends in the middle",
        "web/d.xml: it has a TestResult that names no target",
    ];
    assert_eq!(problems, wanted);
}

#[tokio::test]
async fn knowledge_is_every_rule_once_selected_or_not() {
    let fixture = Fixture::new();
    let newer = result("web-01", "03:00:00Z", "").replace("version='1'", "version='2'");
    fixture
        .put("a.xml", benchmark(&result("web-03", "01:00:00Z", &home_failed())))
        .put("web/a.xml", benchmark(&result("web-02", "01:00:00Z", &home_failed())))
        .put("web/b.xml", benchmark(&newer).replace("r_other", "r_new"));
    let (rules, problems) = all(fixture.scanner().knowledge(None)).await;
    let ids: Vec<_> = rules.iter().map(|rule| rule.id.as_str()).collect();
    assert_eq!((ids, problems), (vec!["r_home", "r_tmout", "r_other", "r_new"], vec![]));
}

#[tokio::test]
async fn a_group_that_leads_elsewhere_is_the_sources_fault() {
    let fixture = Fixture::new();
    for group in ["..", "web/../..", "missing"] {
        let (found, problems) = all(fixture.scanner().assessments(group)).await;
        assert!(found.is_empty() && problems.len() == 1, "{group}: {problems:?}");
        assert!(problems[0].starts_with("source OpenSCAP (00000000"), "{group}: {problems:?}");
        assert!(fixture.scanner().launch(&request(group, &[])).await.is_err(), "{group}");
    }
}

#[test]
fn an_address_must_be_allowed_and_a_payload_understood() {
    let mut fixture = Fixture::new();
    let (path, elsewhere) = (fixture.folder.path(), Path::new("/etc"));
    let problem = fixture.at(format!("file://{}", path.display()), &[elsewhere]).unwrap_err().to_string();
    assert!(problem.contains("`sources.folders`"), "{problem}");
    let problem = fixture.at("https://scap.example.com/a.xml".to_owned(), &[path]).unwrap_err().to_string();
    assert!(problem.contains("its Address is no folder"), "{problem}");
    assert!(OpenScap::is_folder("file:///srv/scap") && !OpenScap::is_folder("https://x/a.xml"));
    fixture.payload = json!({"result_wait": 1});
    let path = fixture.folder.path();
    let problem = fixture.at(format!("file://{}", path.display()), &[path]).unwrap_err().to_string();
    assert!(problem.contains("unknown field `result_wait`"), "{problem}");
}

#[tokio::test]
async fn a_stream_that_is_dropped_ends_its_reader() {
    let fixture = Fixture::new();
    for n in 0..50 {
        let host = format!("web-{n}");
        fixture.put(&format!("web/{n}.xml"), benchmark(&result(&host, "01:00:00Z", &home_failed())));
    }
    let reading = Reading::new(LIMITS);
    let (stop, (ended, end)) = (reading.stop.clone(), std::sync::mpsc::channel());
    let collection = fixture.scanner().collection().await.unwrap();
    let mut stream = read_aside(reading, move |sink| {
        let read = collection.assessments("web", sink);
        ended.send(matches!(read, Err(Ending::Unwanted))).unwrap();
        read
    });
    assert!(stream.next().await.unwrap().is_ok());
    drop(stream);
    assert!(stop.is_cancelled());
    assert!(tokio::task::spawn_blocking(move || end.recv().unwrap()).await.unwrap());
}

#[test]
fn a_file_is_read_again_when_it_changed() {
    let fixture = Fixture::new();
    let path = fixture.folder.path().join("a.xml");
    let document = Document::File(path.canonicalize().unwrap_or(path), "a.xml".to_owned());
    let hosts = || -> Vec<Head> { group::heads(&document, &Reading::new(LIMITS)).unwrap().heads.clone() };
    fixture.put("a.xml", result("web-01", "01:00:00Z", ""));
    assert_eq!((hosts()[0].asset.as_str(), hosts().len()), ("web-01", 1));
    fixture.put("a.xml", result("web-02", "01:00:00Z", "") + " ");
    assert_eq!(hosts()[0].asset, "web-02");
}

#[test]
fn heads_cost_nothing_of_the_findings() {
    let document = fetched(benchmark(&result("web-01", "01:00:00Z", &home_failed())));
    let heads = document.results(&Reading::new(LIMITS), Detail::Heads, &mut Budget::default()).unwrap();
    assert!(heads.reports[0].said.is_empty() && heads.reports[0].values == HashMap::new());
}

// ---- a scan ----

fn target(asset: &str, assessed: Option<&str>) -> Target {
    Target {
        asset: asset.to_owned(),
        ip: Some("192.0.2.7".parse().unwrap()),
        host_name: asset.to_owned(),
        instance: None,
        region: None,
        assessed: assessed.map(|time| format!("2026-11-22T{time}").parse().unwrap()),
        vulnerabilities: vec![],
    }
}

fn request(group: &str, targets: &[Target]) -> ScanRequest {
    ScanRequest {
        marker: "rosterd-1".to_owned(),
        kind: ScanKind::Vulnerabilities,
        group: group.to_owned(),
        targets: targets.to_vec(),
        known: Value::Null,
    }
}

/// As if it had been launched so many seconds earlier.
fn earlier(mut scan: ScanHandle, seconds: i64) -> ScanHandle {
    let launched: DateTime<Utc> = scan.detail["launched"].as_str().unwrap().parse().unwrap();
    scan.detail["launched"] = json!(launched - chrono::TimeDelta::seconds(seconds));
    scan
}

fn fates(results: &[ScanResult]) -> Vec<(&str, &str)> {
    let fates = results.iter().map(|result| match result {
        ScanResult::Assessed(found) => (found.device.asset.as_str(), "assessed"),
        ScanResult::Dead { asset, proof, .. } => (asset.as_deref().unwrap(), proof.as_str()),
    });
    fates.collect()
}

#[tokio::test]
async fn a_scan_ends_when_there_is_something_newer_of_every_target() {
    let fixture = Fixture::new();
    let scanner = fixture.scanner();
    let targets =
        [target("web-01", Some("01:00:00Z")), target("web-02", Some("01:00:00Z")), target("web-03", None)];
    fixture
        .put("web/1.xml", benchmark(&result("web-01", "01:00:00Z", &home_failed())))
        .put("web/3.xml", benchmark(&result("web-03", "00:00:00Z", &home_failed())))
        .put("web/unreachable.csv", "web-02,2026-11-22T00:30:00Z,old\n");
    let scan = scanner.launch(&request("web", &targets)).await.unwrap();
    assert_eq!(scan.key, "rosterd-1");
    assert_eq!(scanner.find(&request("web", &targets)).await.unwrap().unwrap().key, scan.key);
    assert_eq!(scanner.status(&scan).await.unwrap(), ScanStatus::Processing);
    assert_eq!(fates(&all(scanner.results(&scan)).await.0), [("web-03", "assessed")]);

    fixture.put("web/1b.xml", benchmark(&result("web-01", "02:00:00Z", &home_failed())));
    assert_eq!(scanner.status(&scan).await.unwrap(), ScanStatus::Processing);
    fixture.put("web/unreachable.csv", "web-02,2026-11-22T02:00:00Z,timed out\nnonsense\n");
    assert_eq!(scanner.status(&scan).await.unwrap(), ScanStatus::Finished);
    let (results, problems) = all(scanner.results(&scan)).await;
    let wanted =
        [("web-02", "timed out (2026-11-22T02:00:00Z)"), ("web-01", "assessed"), ("web-03", "assessed")];
    assert_eq!(fates(&results), wanted);
    assert!(problems.len() == 1 && problems[0].starts_with("web/unreachable.csv line 2"), "{problems:?}");
}

#[tokio::test]
async fn a_scan_waits_no_longer_than_it_may() {
    let mut fixture = Fixture::new();
    fixture.payload = json!({"result_wait_seconds": 600});
    let scanner = fixture.scanner();
    let targets = [target("web-01", None), target("web-02", None)];
    let scan = scanner.launch(&request("web", &targets)).await.unwrap();
    assert_eq!(scanner.status(&earlier(scan.clone(), 500)).await.unwrap(), ScanStatus::Processing);
    assert_eq!(scanner.status(&earlier(scan.clone(), 601)).await.unwrap(), ScanStatus::Error);
    fixture.put("web/1.xml", benchmark(&result("web-01", "01:00:00Z", &home_failed())));
    assert_eq!(scanner.status(&earlier(scan.clone(), 500)).await.unwrap(), ScanStatus::Processing);
    assert_eq!(scanner.status(&earlier(scan, 601)).await.unwrap(), ScanStatus::Finished);
}

#[tokio::test]
async fn of_a_scan_that_rosterd_runs_only_what_came_after_it_was_asked_for_counts() {
    let mut fixture = Fixture::new();
    fixture.payload = json!({"run": {"over": "this host", "profile": "p", "content": "/srv/content/ds.xml"}});
    let scanner = fixture.scanner();
    assert!(scanner.is_run_by_us());
    // Both are newer than what the database knows, and older than the scan.
    fixture
        .put("web/1.xml", benchmark(&result("web-01", "02:00:00Z", &home_failed())))
        .put("web/unreachable.csv", "web-02,2026-11-22T02:00:00Z,yesterday\n");
    let targets = [target("web-01", Some("01:00:00Z")), target("web-02", Some("01:00:00Z"))];
    let mut request = request("web", &targets);
    scanner.prepare(&mut request).await.unwrap();
    let scan = scanner.launch(&request).await.unwrap();
    assert!(fates(&all(scanner.results(&scan)).await.0).is_empty());
    // Its row is over, and nothing came of it: it is not waited for any longer.
    assert_eq!(scanner.outcome(&scan).await.unwrap(), ScanStatus::Error);
    fixture.put(
        "web/unreachable.csv",
        "web-02,2026-11-22T02:00:00Z,yesterday\nweb-02,2026-11-22T02:00:01Z,now\n",
    );
    assert_eq!(scanner.outcome(&scan).await.unwrap(), ScanStatus::Finished);
    assert_eq!(fates(&all(scanner.results(&scan)).await.0), [("web-02", "now (2026-11-22T02:00:01Z)")]);
    fixture.put("web/1.xml", benchmark(&result("web-01", "02:00:01Z", &home_failed())));
    let (results, _) = all(scanner.results(&scan)).await;
    assert_eq!(fates(&results), [("web-02", "now (2026-11-22T02:00:01Z)"), ("web-01", "assessed")]);

    // Its clock was ahead when it was assessed, and that file was removed since.
    let mut request = self::request("web", &[target("web-04", Some("09:00:00Z"))]);
    scanner.prepare(&mut request).await.unwrap();
    let scan = scanner.launch(&request).await.unwrap();
    fixture.put("web/unreachable.csv", "web-04,2026-11-22T03:00:00Z,refused\n");
    assert_eq!(fates(&all(scanner.results(&scan)).await.0), [("web-04", "refused (2026-11-22T03:00:00Z)")]);
}

#[tokio::test]
async fn a_handle_of_another_scanner_is_told_so() {
    let scan = ScanHandle { key: "42".to_owned(), detail: json!({"id": 42}) };
    let scanner = Fixture::new();
    let problem = scanner.scanner().status(&scan).await.unwrap_err().to_string();
    assert!(problem.starts_with("scan 42: its handle is none of OpenSCAP"), "{problem}");
}
