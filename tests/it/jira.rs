//! The JIRA connector against a JIRA that keeps issues, caps pages, lags, and hangs up after the deed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures)]

use crate::generic_jobs::{pool, settings, source};
use crate::source_client::client_with;
use crate::support::SOON;
use crate::support::fake_jira::{FakeJira, Step, Store, Trouble, anonymous, refused};
use chrono::{DateTime, Duration, Utc};
use futures_util::StreamExt;
use rosterd::config::SourcesSection;
use rosterd::connectors::jira::Jira;
use rosterd::connectors::ticket_engine::{
    RemoteTicket, TicketDraft, TicketEngine, TicketError, TicketUpdate,
};
use serde_json::{Value, json};
use std::collections::HashSet;
use tokio::time::timeout;

const MARKER: &str = "rosterd-0199-1";

/// Retries that do not keep a test waiting.
fn quick() -> SourcesSection {
    let mut sources = settings().sources;
    sources.retry_base_seconds = 0.002;
    sources
}

/// With what is mapped in most of these tests, and `more`.
fn payload(fake: &FakeJira, more: &Value) -> Value {
    let flavour = if fake.with(|store| store.is_cloud) { "cloud" } else { "server" };
    let mut payload = json!({
        "project": "SEC", "issue_type": "Request", "flavour": flavour,
        "status_map": {
            "In-Progress": "In Progress", "Resolved-Remediated": "Resolved", "Closed-Remediated": "Closed",
        },
    });
    payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    payload
}

async fn with_login(fake: &FakeJira, auth: Value, more: Value) -> Jira {
    let client = client_with(&fake.address, auth, payload(fake, &more), &quick()).await.unwrap();
    Jira::new(client).unwrap()
}

async fn jira(fake: &FakeJira, more: Value) -> Jira {
    with_login(fake, json!({"Username": "svc", "Password": "canary-1"}), more).await
}

fn draft() -> TicketDraft {
    TicketDraft { marker: MARKER.to_owned(), summary: "Old TLS".to_owned(), ..TicketDraft::default() }
}

fn change(status: &str, comment: &str) -> TicketUpdate {
    TicketUpdate {
        marker: "change-7".to_owned(),
        status: (!status.is_empty()).then(|| status.to_owned()),
        comment: comment.to_owned(),
        ..TicketUpdate::default()
    }
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

async fn all(
    jira: &Jira,
    organization: &str,
    since: Option<DateTime<Utc>>,
) -> Vec<Result<RemoteTicket, TicketError>> {
    timeout(SOON, jira.updated_since(organization, since).collect()).await.expect("it ends")
}

async fn keys(jira: &Jira, since: Option<DateTime<Utc>>) -> Vec<String> {
    all(jira, "ACME", since).await.into_iter().map(|ticket| ticket.unwrap().key).collect()
}

/// Both kinds of JIRA.
async fn both() -> [FakeJira; 2] {
    [FakeJira::start(false).await, FakeJira::start(true).await]
}

/// So many issues, each made `apart` after the one before.
fn seed(store: &mut Store, count: usize, apart: Duration) {
    for _ in 0..count {
        store.now += apart;
        store.seed(json!({}));
    }
}

// ---- making tickets, and finding them again ----

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_answer_was_cut_is_found_by_its_marker() {
    for fake in both().await {
        for (nth, trouble) in [Trouble::Cut, Trouble::Half].into_iter().enumerate() {
            let marker = format!("rosterd-{nth}");
            fake.trouble("POST issue", trouble);
            let jira = jira(&fake, json!({})).await;
            let error = jira.create(&TicketDraft { marker: marker.clone(), ..draft() }).await.unwrap_err();
            assert!(error.is_passing(), "{error}");
            let key = format!("SEC-{}", nth + 1);
            assert_eq!(jira.find(&marker).await.unwrap(), Some(key.clone()));
            assert_eq!(fake.effects().last(), Some(&format!("create {key}")));
            assert_eq!(jira.get(&key).await.unwrap().unwrap().marker, Some(marker));
        }
        assert_eq!(fake.effects().len(), 2, "each was sent once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_never_answers_is_found_by_its_marker_too() {
    let fake = FakeJira::start(false).await;
    fake.trouble("POST issue", Trouble::Silent);
    let mut settings = quick();
    settings.request_timeout_seconds = 0.2;
    let auth = json!({"Token": "canary-2"});
    let client = client_with(&fake.address, auth, payload(&fake, &json!({})), &settings).await.unwrap();
    let jira = Jira::new(client).unwrap();
    let error = jira.create(&draft()).await.unwrap_err();
    assert!(error.is_passing() && error.to_string().contains("time ran out"), "{error}");
    assert_eq!(jira.find(MARKER).await.unwrap().unwrap(), "SEC-1");
    assert_eq!(fake.effects(), ["create SEC-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_was_lost_on_the_way_may_be_made_again() {
    let fake = FakeJira::start(false).await;
    let jira = jira(&fake, json!({})).await;
    fake.trouble("POST issue", Trouble::Lost);
    assert!(jira.create(&draft()).await.unwrap_err().is_passing());
    assert_eq!(jira.find(MARKER).await.unwrap(), None);
    assert_eq!(jira.create(&draft()).await.unwrap(), "SEC-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_lags_is_not_taken_for_absence() {
    for fake in both().await {
        fake.with(|store| store.lag = 2);
        let jira = jira(&fake, json!({})).await;
        assert_eq!(jira.create(&draft()).await.unwrap(), "SEC-1");
        // Nobody can tell this from a ticket that is not there, so callers ask again later before they create.
        assert_eq!(jira.find(MARKER).await.unwrap(), None);
        assert_eq!(jira.find(MARKER).await.unwrap(), None);
        assert_eq!(jira.find(MARKER).await.unwrap().unwrap(), "SEC-1");
        // The issue itself is there at once.
        assert!(jira.get("SEC-1").await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_tickets_with_one_marker_the_newest_is_found() {
    for fake in both().await {
        fake.with(|store| {
            for labels in [json!([MARKER]), json!(["x", MARKER]), json!(["rosterd-0199-10"])] {
                store.seed(json!({"labels": labels}));
            }
        });
        assert_eq!(jira(&fake, json!({})).await.find(MARKER).await.unwrap().unwrap(), "SEC-2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_in_jql_are_quoted_whatever_they_hold() {
    for fake in both().await {
        let odd = "x\" OR project = \"HR\\ \n\t\u{1} ~*?+-&|!(){}[]^:;/@#$%,.<> AND 'ü'";
        fake.with(|store| {
            store.seed(json!({"labels": [odd]}));
            store.seed(json!({"labels": ["x"], "customfield_10001": {"value": odd}}));
        });
        let jira = jira(&fake, json!({"field_map": {"organization": "Org"}})).await;
        assert_eq!(jira.find(odd).await.unwrap().unwrap(), "SEC-1");
        let ours = all(&jira, odd, None).await;
        assert_eq!(ours.into_iter().map(|ticket| ticket.unwrap().key).collect::<Vec<_>>(), ["SEC-2"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_carries_what_is_mapped_and_nothing_else() {
    let draft = TicketDraft {
        organization: "ACME".to_owned(),
        summary: format!("Old\nTLS {}", "😀".repeat(200)),
        description: "What it is.\n\nAnd why.".to_owned(),
        solution: "Update.\nRestart.".to_owned(),
        cvss: Some(7.5),
        due: Some("2026-07-01".parse().unwrap()),
        alert_date: Some(at("2026-06-01T10:00:00Z")),
        host_name: "web1".to_owned(),
        os: "Linux, BSD".to_owned(),
        assignment_group: "ops".to_owned(),
        assignee: "ada".to_owned(),
        mac: "00:11".to_owned(),
        ..draft()
    };
    for fake in both().await {
        let map = json!({
            "organization": "customfield_10001", "host_name": "host name", "solution": "Solution", "cvss": "CVSS",
            "alert_date": "Alert Date", "os": "Systems", "assignment_group": "Team", "category": "Device",
        });
        let jira = jira(&fake, json!({ "field_map": map })).await;
        let key = jira.create(&draft).await.unwrap();
        let is_cloud = fake.with(|store| store.is_cloud);
        let fields = fake.with(|store| store.issue(&key).unwrap().fields.clone());
        assert!(fields["summary"].as_str().unwrap().starts_with("Old TLS 😀"));
        assert_eq!(fields["labels"], json!([MARKER]));
        assert_eq!(fields["duedate"], "2026-07-01");
        assert_eq!(fields["customfield_10001"], json!({"value": "ACME"}));
        assert_eq!(fields["customfield_10002"], "web1");
        assert_eq!(fields["customfield_10004"], 7.5);
        assert_eq!(fields["customfield_10005"], "2026-06-01T10:00:00.000+0000");
        assert_eq!(fields["customfield_10006"], json!([{"value": "Linux"}, {"value": "BSD"}]));
        assert_eq!(fields["customfield_10007"], json!({"name": "ops"}));
        assert_eq!(fields["description"].is_string(), !is_cloud);
        assert_eq!(fields["customfield_10003"].is_string(), !is_cloud);
        for unset in ["customfield_10008", "customfield_10009", "customfield_10011", "customfield_10012"] {
            assert!(!fields.contains_key(unset), "{unset}");
        }
        let ticket = jira.get(&key).await.unwrap().unwrap();
        assert_eq!(
            (ticket.assignee.as_deref(), ticket.assignment_group.as_deref(), ticket.due),
            (Some("ada"), Some("ops"), draft.due)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignee_that_jira_does_not_know_is_named_and_nothing_is_made() {
    for fake in both().await {
        let jira = jira(&fake, json!({})).await;
        let error =
            jira.create(&TicketDraft { assignee: "mallory".to_owned(), ..draft() }).await.unwrap_err();
        assert!(error.to_string().contains("Assignee (assignee): User 'mallory' does not exist"), "{error}");
        assert!(!error.is_passing());
        assert_eq!(fake.effects(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_payload_that_jira_does_not_have_is_answered_with_the_one_that_was_meant() {
    let fake = FakeJira::start(false).await;
    for (more, words) in [
        (
            json!({"field_map": {"host_name": "Hostname"}}),
            ["`field_map.host_name`", "is \"Host Name\" meant?"],
        ),
        (json!({"status_map": {"Open": "Opened"}}), ["`status_map.Open`", "is \"Open\" meant?"]),
    ] {
        let error = jira(&fake, more).await.create(&draft()).await.unwrap_err();
        assert!(matches!(error, TicketError::Source { .. }) && !error.is_passing());
        for words in words {
            assert!(error.to_string().contains(words), "{error}");
        }
    }
    let client = client_with(&fake.address, json!({}), json!({"project": "SEC"}), &quick()).await.unwrap();
    let error = Jira::new(client).unwrap_err();
    assert!(error.to_string().contains("missing field `issue_type`"), "{error}");
    assert_eq!(fake.effects(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statement_of_the_page_about_sources_makes_a_jira() {
    let pool = pool().await;
    let source = source(&pool, "JIRA", "https://jira.example.com", json!({})).await;
    let page = include_str!("../../docs/sources.md");
    let statement = page.split("```sql").find(|block| block.contains("Source = 'JIRA'")).unwrap();
    let statement = statement.split("```").next().unwrap();
    let statement = statement.replace("where Source = 'JIRA'", &format!("where ID = '{}'", source.id));
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&pool).await.unwrap();
    assert_eq!(done.rows_affected(), 1);
    let payload: Value = sqlx::query_scalar("select Payload from vm.SourceConfig where ID = $1")
        .bind(source.id)
        .fetch_one(&pool)
        .await
        .unwrap();
    let client = client_with("http://127.0.0.1", json!({}), payload, &quick()).await.unwrap();
    Jira::new(client).unwrap();
}

// ---- changing tickets ----

fn long_way() -> Value {
    json!({
        "workflow": {
            "Open": ["In-Progress"], "In-Progress": ["Resolved-Remediated"],
            "Resolved-Remediated": ["Closed-Remediated", "Reopened"],
        },
        "resolution_map": {"Closed-Remediated": "fixed"},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_brought_there_step_by_step_whatever_breaks_on_the_way() {
    for fake in both().await {
        let key = fake.with(|store| store.seed(json!({})));
        for trouble in [Trouble::Cut, Trouble::Lost, Trouble::Half, Trouble::Cut] {
            fake.trouble("POST transitions", trouble);
        }
        fake.trouble("POST comment", Trouble::Cut);
        let change = change("Closed-Remediated", "It is gone.");
        let mut attempts = 1;
        // Each attempt is another run, which knows nothing of those before.
        while let Err(error) = jira(&fake, long_way()).await.change(&key, &change).await {
            assert!(error.is_passing(), "{error}");
            attempts += 1;
        }
        assert!(attempts > 3, "{attempts}");
        jira(&fake, long_way()).await.change(&key, &change).await.unwrap();
        assert_eq!(
            fake.effects(),
            ["step SEC-1 Start", "step SEC-1 Resolve", "step SEC-1 Close", "comment SEC-1"]
        );
        let ticket = jira(&fake, long_way()).await.get(&key).await.unwrap().unwrap();
        assert_eq!(ticket.status, "Closed-Remediated");
        assert!(ticket.resolved.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comment_is_left_once_however_often_the_change_is_tried() {
    for fake in both().await {
        let key = fake.with(|store| store.seed(json!({})));
        let jira = jira(&fake, json!({})).await;
        fake.trouble("POST comment", Trouble::Cut);
        assert!(jira.change(&key, &change("", "Line\n\nand line.")).await.unwrap_err().is_passing());
        // Others talk meanwhile, and more than a page of it.
        fake.page(7);
        fake.with(|store| {
            let is_cloud = store.is_cloud;
            for nth in 0..30 {
                let said = format!("[rosterd:change-7] was quoted by {nth}");
                let document = json!({"type": "doc", "version": 1, "content": [
                    {"type": "paragraph", "content": [{"type": "text", "text": said}]}]});
                store.issue(&key).unwrap().comments.push(if is_cloud { document } else { json!(said) });
            }
        });
        for _ in 0..3 {
            jira.change(&key, &change("", "Line\n\nand line.")).await.unwrap();
        }
        assert_eq!(fake.effects(), ["comment SEC-1"]);
        // Another change has a comment of its own.
        let other = TicketUpdate { marker: "change-8".to_owned(), ..change("", "More.") };
        jira.change(&key, &other).await.unwrap();
        assert_eq!(fake.effects(), ["comment SEC-1"; 2]);
        let last = fake.with(|store| store.issue(&key).unwrap().comments.last().unwrap().to_string());
        assert!(last.contains("More.") && last.contains("[rosterd:change-8]"), "{last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_without_the_wanted_transition_is_named() {
    let fake = FakeJira::start(false).await;
    let key = fake.with(|store| store.seed(json!({})));
    let problem = async |more: Value, to: &str| {
        let error = jira(&fake, more).await.change(&key, &change(to, "x")).await.unwrap_err();
        assert!(matches!(error, TicketError::Workflow { .. }) && !error.is_passing(), "{error}");
        error.to_string()
    };
    let said = problem(json!({}), "Closed-Remediated").await;
    for words in ["SEC-1: ", "\"Open\"", "\"Closed\"", "Closed-Remediated", "\"Start\" (to \"In Progress\")"]
    {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(fake.effects(), [""; 0], "not even a comment");
    let mut unmapped = long_way();
    unmapped.as_object_mut().unwrap().remove("resolution_map");
    let said = problem(unmapped, "Closed-Remediated").await;
    assert!(said.contains("one of Fixed, Won't Fix as `resolution_map.Closed-Remediated`"), "{said}");
    fake.with(|store| {
        store.steps = vec![Step {
            requires: Some(("customfield_9", "Root Cause")),
            ..Step::new("Go", "Resolved", "Open")
        }];
    });
    let said = problem(json!({}), "Open").await;
    assert!(said.contains("\"Go\" requires the field \"Root Cause\" (customfield_9)"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_that_leads_in_a_circle_is_left() {
    let fake = FakeJira::start(false).await;
    let key = fake.with(|store| {
        store.steps = vec![
            Step::new("There", "Open", "Reopened"),
            Step::new("Back", "Reopened", "Open"),
            Step::new("Again", "Closed", "Closed"),
        ];
        store.seed(json!({}))
    });
    let more = json!({"workflow": {"Open": ["Reopened"], "Reopened": ["Open", "Closed"]}});
    let error = jira(&fake, more).await.change(&key, &change("Closed", "")).await.unwrap_err();
    assert!(error.to_string().contains("cannot go from \"Reopened\" to \"Closed\""), "{error}");
    assert_eq!(fake.effects(), ["step SEC-1 There"], "it does not go back");
    // A step that leads nowhere: the resolution, which tells two of ours apart, stays as it is.
    let key =
        fake.with(|store| store.seed(json!({"status": {"name": "Closed"}, "resolution": {"name": "Done"}})));
    let more = json!({
        "status_map": {"Closed-Remediated": "Closed", "Closed-Error": "Closed"},
        "resolution_map": {"Closed-Remediated": "Fixed", "Closed-Error": "Done"},
    });
    let error = jira(&fake, more).await.change(&key, &change("Closed-Remediated", "")).await.unwrap_err();
    assert!(matches!(error, TicketError::Workflow { .. }), "{error}");
    assert!(
        error.to_string().contains("in a circle and not to Closed-Remediated: Closed, Closed"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_differs_is_set_and_where_the_issue_can_be_edited() {
    for fake in both().await {
        let word = if fake.with(|store| store.is_cloud) { "accountId" } else { "name" };
        let key =
            fake.with(|store| store.seed(json!({"assignee": {word: "ada"}, "status": {"name": "Resolved"}})));
        let mut more = long_way();
        more["field_map"] = json!({"last_checked": "Last Checked"});
        let jira = jira(&fake, more).await;
        let checked = Some(at("2026-06-01T10:00:00Z"));
        let close =
            TicketUpdate { clear_assignee: true, last_checked: checked, ..change("Closed-Remediated", "") };
        let edits = ["edit SEC-1 assignee", "edit SEC-1 customfield_10008"];
        // Before it is closed to edits.
        jira.change(&key, &close).await.unwrap();
        assert_eq!(fake.effects(), [edits[0], edits[1], "step SEC-1 Close"]);
        jira.change(&key, &close).await.unwrap();
        assert_eq!(fake.effects().len(), 3, "a second time there is nothing to do");
        // After it is open to them again.
        fake.with(|store| {
            store.effects.clear();
            store.steps.push(Step::new("Again", "Closed", "Reopened"));
            store.issue(&key).unwrap().fields.insert("assignee".to_owned(), json!({word: "ada"}));
        });
        let checked = Some(at("2026-06-02T10:00:00Z"));
        let reopen = TicketUpdate { clear_assignee: true, last_checked: checked, ..change("Reopened", "") };
        jira.change(&key, &reopen).await.unwrap();
        assert_eq!(fake.effects(), ["step SEC-1 Again", edits[0], edits[1]]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issue_that_is_not_there_is_none() {
    for fake in both().await {
        let jira = jira(&fake, json!({})).await;
        assert_eq!(jira.get("SEC-99").await.unwrap(), None);
        let error = jira.change("SEC-99", &change("Open", "x")).await.unwrap_err();
        assert!(matches!(error, TicketError::Item { .. }) && error.to_string().contains("SEC-99"), "{error}");
        assert!(matches!(jira.get("../../x").await.unwrap_err(), TicketError::Item { .. }));
    }
}

// ---- what changed ----

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_caps_pages_loses_no_issue() {
    for fake in both().await {
        fake.page(7);
        fake.with(|store| seed(store, 60, Duration::seconds(31)));
        let jira = jira(&fake, json!({})).await;
        let expected: Vec<String> = (1..=60).map(|nth| format!("SEC-{nth}")).collect();
        assert_eq!(keys(&jira, None).await, expected, "oldest change first, each once");
        // Of two minutes before, because search may learn of changes late.
        let since = fake.with(|store| store.issue("SEC-40").unwrap().updated);
        let some = keys(&jira, Some(since)).await;
        assert_eq!(some.last().unwrap(), "SEC-60");
        assert!((21..=26).contains(&some.len()), "{some:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minute_that_holds_more_than_a_page_loses_no_issue() {
    for fake in both().await {
        fake.page(7);
        fake.with(|store| {
            seed(store, 5, Duration::minutes(1));
            seed(store, 40, Duration::milliseconds(1));
            seed(store, 10, Duration::minutes(1));
            // In another order than that of the keys.
            for key in ["SEC-30", "SEC-12", "SEC-31"] {
                let back = store.issue("SEC-8").unwrap().updated;
                store.issue(key).unwrap().updated = back;
            }
        });
        let tickets = all(&jira(&fake, json!({})).await, "ACME", None).await;
        let tickets: Vec<RemoteTicket> = tickets.into_iter().map(Result::unwrap).collect();
        assert!(tickets.is_sorted_by_key(|ticket| ticket.updated));
        let keys: HashSet<&str> = tickets.iter().map(|ticket| ticket.key.as_str()).collect();
        assert_eq!((keys.len(), tickets.len()), (55, 55));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn issues_that_change_while_pages_are_read_are_not_lost() {
    for (fake, apart) in both().await.into_iter().zip([Duration::seconds(20), Duration::milliseconds(1)]) {
        fake.page(5);
        fake.with(|store| {
            seed(store, 60, apart);
            store.now += Duration::minutes(5);
        });
        // Each search moves issues that were read, and one that was not, to the end of the list.
        fake.meanwhile(|store, nth| {
            for number in [nth, nth * 5 % 60 + 1, 60 - nth % 60] {
                store.touch(&format!("SEC-{}", number.clamp(1, 60)));
            }
            store.now += Duration::seconds(1);
        });
        let since = Some(at("2026-06-01T00:00:00Z"));
        let tickets = all(&jira(&fake, json!({})).await, "ACME", since).await;
        let tickets: Vec<RemoteTicket> = tickets.into_iter().map(Result::unwrap).collect();
        let keys: HashSet<&str> = tickets.iter().map(|ticket| ticket.key.as_str()).collect();
        assert_eq!(keys.len(), 60);
        let versions: HashSet<_> = tickets.iter().map(|ticket| (&ticket.key, ticket.updated)).collect();
        assert_eq!(versions.len(), tickets.len(), "no version comes twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issue_that_is_deleted_while_pages_are_read_costs_an_attempt_at_most() {
    for fake in both().await {
        fake.page(5);
        fake.with(|store| seed(store, 20, Duration::milliseconds(1)));
        // The last key of the first page by key, which the next question names.
        fake.meanwhile(|store, nth| {
            if nth == 3 {
                store.issues.retain(|issue| issue.key() != "SEC-5");
            }
        });
        let jira = jira(&fake, json!({})).await;
        let mut tickets = all(&jira, "ACME", None).await;
        let error = tickets.pop().unwrap().unwrap_err();
        assert!(error.is_passing() && error.to_string().contains("SEC-5"), "{error}");
        assert_eq!(keys(&jira, None).await.len(), 19);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn issues_that_change_without_an_end_do_not_keep_the_reader_for_ever() {
    let fake = FakeJira::start(false).await;
    fake.page(5);
    fake.with(|store| seed(store, 30, Duration::seconds(20)));
    fake.meanwhile(|store, _| {
        store.now += Duration::seconds(50);
        for number in 1..=20 {
            store.touch(&format!("SEC-{number}"));
        }
    });
    let tickets = all(&jira(&fake, json!({})).await, "ACME", None).await;
    assert!(tickets.len() < 200, "{}", tickets.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn times_are_asked_in_the_time_zone_of_the_user() {
    for (zone, changed, asked) in [
        ("Asia/Kolkata", "2026-06-01T20:30:10Z", "2026/06/02 01:58"),
        ("America/Los_Angeles", "2026-06-01T03:00:59Z", "2026/05/31 19:58"),
        // The hour that comes twice: JIRA may take 02:28 for the later one.
        ("Europe/Berlin", "2026-10-25T00:30:00Z", "2026/10/25 01:59"),
        ("Europe/Berlin", "2026-10-25T01:30:00Z", "2026/10/25 01:59"),
    ] {
        let fake = FakeJira::start(false).await;
        let changed = at(changed);
        fake.with(|store| {
            store.zone = zone.to_owned();
            store.now = changed - Duration::hours(5);
            store.seed(json!({}));
            store.now = changed;
            store.seed(json!({}));
        });
        assert_eq!(keys(&jira(&fake, json!({})).await, Some(changed)).await, ["SEC-2"]);
        let question = format!("updated >= \"{asked}\"");
        assert!(fake.searches()[0].contains(&question), "{:?} {question}", fake.searches());
    }
    let fake = FakeJira::start(false).await;
    fake.with(|store| store.zone = "Mars/Olympus".to_owned());
    let error = all(&jira(&fake, json!({})).await, "ACME", None).await.pop().unwrap().unwrap_err();
    assert!(error.to_string().contains("time zone \"Mars/Olympus\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_changes_in_the_hour_that_comes_twice_are_all_read() {
    let fake = FakeJira::start(false).await;
    fake.page(7);
    fake.with(|store| {
        store.zone = "Europe/Berlin".to_owned();
        store.now = at("2026-10-24T23:50:00Z");
        seed(store, 60, Duration::minutes(3));
    });
    let expected: Vec<String> = (1..=60).map(|nth| format!("SEC-{nth}")).collect();
    assert_eq!(keys(&jira(&fake, json!({})).await, None).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_of_other_organizations_are_left_out() {
    for field in ["Org", "Organization"] {
        for fake in both().await {
            fake.page(2);
            fake.with(|store| {
                for organization in ["ACME", "ACME EU", "acme", "Other"] {
                    for _ in 0..3 {
                        store.seed(json!({
                            "customfield_10001": {"value": organization}, "customfield_10012": organization,
                        }));
                    }
                }
            });
            let jira = jira(&fake, json!({"field_map": {"organization": field}})).await;
            assert_eq!(keys(&jira, None).await, ["SEC-1", "SEC-2", "SEC-3"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_makes_no_sense_is_named_and_the_others_follow() {
    for fake in both().await {
        fake.page(2);
        fake.with(|store| {
            seed(store, 2, Duration::minutes(1));
            store.seed(json!({"status": null}));
            seed(store, 3, Duration::minutes(1));
        });
        let tickets = all(&jira(&fake, json!({})).await, "ACME", None).await;
        let broken: Vec<String> =
            tickets.iter().filter_map(|ticket| Some(ticket.as_ref().err()?.to_string())).collect();
        assert_eq!(broken, ["SEC-3: it has no status"]);
        assert_eq!(tickets.len(), 6);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_fails_in_the_middle_is_the_last_item() {
    let fake = FakeJira::start(false).await;
    fake.page(2);
    fake.with(|store| seed(store, 8, Duration::minutes(1)));
    let jira = jira(&fake, json!({})).await;
    // A search may be sent again, and so it is.
    fake.trouble("search", Trouble::Half);
    let mut tickets = jira.updated_since("ACME", None);
    assert_eq!(tickets.next().await.unwrap().unwrap().key, "SEC-1");
    fake.trouble("search", refused(500, Vec::new()));
    let rest: Vec<_> = tickets.collect().await;
    let error = rest.last().unwrap().as_ref().unwrap_err();
    assert!(error.is_passing() && error.to_string().contains("500"), "{error}");
    assert_eq!(rest.iter().filter(|ticket| ticket.is_ok()).count(), 1);
}

// ---- refusals ----

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_whether_another_attempt_may_help() {
    let fake = FakeJira::start(false).await;
    let jira = with_login(&fake, json!({"Token": "canary-2"}), json!({})).await;
    jira.find("x").await.unwrap();
    let soon = || vec![("retry-after", "0".to_owned())];
    for (status, times, passing) in [
        (400, 1, false),
        (401, 1, false),
        (403, 1, false),
        (409, 1, true),
        (429, 4, true),
        (500, 1, true),
        (503, 4, true),
    ] {
        for _ in 0..times {
            fake.trouble("search", refused(status, soon()));
        }
        let error = jira.find(MARKER).await.unwrap_err();
        assert_eq!(error.is_passing(), passing, "{status}: {error}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        if matches!(status, 401 | 403) {
            assert!(error.to_string().contains("credentials"), "{error}");
        }
    }
    // A refusal that passes within the retries of the client is none.
    fake.trouble("search", refused(429, soon()));
    assert_eq!(jira.find(MARKER).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_logged_in_is_told_why_and_no_secret_is() {
    let fake = FakeJira::start(true).await;
    fake.with(|store| store.seed(json!({"labels": [MARKER]})));
    let wrong = with_login(&fake, json!({"Username": "svc", "Password": "canary-9"}), json!({})).await;
    let error = wrong.find(MARKER).await.unwrap_err().to_string();
    assert!(error.contains("credentials") && !error.contains("canary"), "{error}");
    let jira = jira(&fake, json!({})).await;
    // An answer as to anybody, in which no issue is found, would be taken for absence.
    fake.trouble("search", anonymous());
    let error = jira.find(MARKER).await.unwrap_err();
    assert!(error.to_string().contains("credentials") && !error.is_passing(), "{error}");
    let captcha = vec![("x-authentication-denied-reason", "CAPTCHA_CHALLENGE; login-url=x".to_owned())];
    fake.trouble("search", refused(403, captcha));
    let error = jira.find(MARKER).await.unwrap_err();
    assert!(error.to_string().contains("CAPTCHA") && !error.is_passing(), "{error}");
    assert_eq!(jira.find(MARKER).await.unwrap().unwrap(), "SEC-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_jira_is_said_to_be_none() {
    let fake = FakeJira::start(true).await;
    let jira = jira(&fake, json!({"flavour": "server"})).await;
    let error = jira.find(MARKER).await.unwrap_err();
    assert!(!error.is_passing() && error.to_string().contains("404"), "{error}");
}
