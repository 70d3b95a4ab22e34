//! The client of sources against an API that misbehaves: tries again where that does no harm, logs in, turns pages,
//! and gives up in time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures)]

use crate::generic_jobs::{pool, runner, settings, source};
use crate::support::api::{Asked, Reply, ScriptedApi};
use crate::support::{Daemon, SOON, TestDb};
use rosterd::config::SourcesSection;
use rosterd::connectors::{Answer, Call, ClientError, HeaderValue, Method, Paging, SourceClient};
use rosterd::history::HistoryId;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::Write;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Three retries that do not keep a test waiting.
fn quick() -> SourcesSection {
    let mut sources = settings().sources;
    sources.retry_base_seconds = 0.002;
    sources
}

pub async fn client_with(
    address: &str,
    auth: Value,
    payload: Value,
    settings: &SourcesSection,
) -> Result<SourceClient, ClientError> {
    let pool = pool().await;
    let mut source = source(&pool, "HTTP", address, auth).await;
    source.payload = payload;
    let limiter = runner(&pool).await;
    SourceClient::new(&source, settings, limiter, HistoryId(Uuid::now_v7()), CancellationToken::new())
}

async fn client(api: &ScriptedApi, auth: Value) -> SourceClient {
    client_with(&api.address, auth, json!({}), &quick()).await.unwrap()
}

async fn call(client: &SourceClient, call: Call) -> Result<Answer, ClientError> {
    timeout(SOON, client.call(call)).await.expect("the call ends")
}

/// These statuses, and then 200.
fn statuses(statuses: &'static [u16]) -> impl Fn(&Asked, usize) -> Reply + Send + Sync {
    move |_, nth| Reply::status(statuses.get(nth).copied().unwrap_or(200))
}

// ---- trying again ----

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_asks_is_sent_again_in_turns_of_its_own_and_with_ids_of_its_own() {
    let api = ScriptedApi::start(statuses(&[503, 502, 504])).await;
    let client = client(&api, json!({"Delay": 100_000_000, "Concurrency": 1})).await;
    let answer = call(&client, Call::get("/x")).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.tries), (200, 4));
    let asked = api.asked();
    let ids: HashSet<_> = asked.iter().map(|asked| asked.headers["x-request-id"].clone()).collect();
    let rows: HashSet<_> = asked.iter().map(|asked| asked.headers["x-rosterd-job"].clone()).collect();
    assert_eq!((ids.len(), rows.len()), (4, 1));
    assert!(asked[0].headers["user-agent"].starts_with("rosterd/"));
    // Without a turn of their own they would come within milliseconds.
    let all = asked[3].at - asked[0].at;
    assert!(all >= Duration::from_millis(250), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_end_and_the_last_answer_is_the_jobs() {
    let api = ScriptedApi::start(|_, _| Reply::status(503)).await;
    let answer = call(&client(&api, json!({})).await, Call::get("/x")).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.tries, api.asked().len()), (503, 4, 4));
    let mut settings = quick();
    settings.retries = 0;
    let once = client_with(&api.address, json!({}), json!({}), &settings).await.unwrap();
    assert_eq!(call(&once, Call::get("/x")).await.unwrap().tries, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_acts_is_sent_once_unless_it_was_refused_or_its_author_allows_it() {
    let post = || Call::post_json("/x", &json!({"text": "grüße"}));
    for (script, call_, statuses_seen) in [
        (statuses(&[503]), post(), 1),
        (statuses(&[500]), Call::get("/x"), 1),
        (statuses(&[429]), post(), 2),
        (statuses(&[503]), post().idempotent(), 2),
        (statuses(&[503]), post().idempotency_key("row/0/step ü"), 2),
        (statuses(&[503]), Call::new(Method::PATCH, "/x"), 1),
        (statuses(&[503]), Call::new(Method::PUT, "/x"), 2),
        (statuses(&[503]), Call::new(Method::DELETE, "/x"), 2),
    ] {
        let api = ScriptedApi::start(script).await;
        call(&client(&api, json!({})).await, call_.clone()).await.unwrap();
        let asked = api.asked();
        assert_eq!(asked.len(), statuses_seen, "{call_:?}");
        let bodies: HashSet<_> = asked.iter().map(|asked| asked.body.clone()).collect();
        assert_eq!(bodies.len(), 1, "the body is sent again as it was");
        assert_eq!(asked[0].body, call_.body.unwrap_or_default());
        let key = call_.headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
        assert!(asked.iter().all(|asked| asked.headers.get("idempotency-key") == key.as_ref()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_tried_again_for_a_call_that_asks_only() {
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec();
    for first in [None, Some(half)] {
        let first = std::sync::Arc::new(first);
        let script = move |_: &Asked, nth: usize| match (nth, first.as_ref()) {
            (0, None) => Reply::HangUp,
            (0, Some(half)) => Reply::Partly(half.clone()),
            _ => Reply::Answer(200, Vec::new(), b"whole".to_vec()),
        };
        let api = ScriptedApi::start(script.clone()).await;
        let answer = call(&client(&api, json!({})).await, Call::get("/x")).await.unwrap();
        assert_eq!((answer.body.as_slice(), answer.tries), (b"whole".as_slice(), 2));
        let api = ScriptedApi::start(script).await;
        let error =
            call(&client(&api, json!({})).await, Call::post_json("/x", &json!({}))).await.unwrap_err();
        assert!(error.to_string().contains("the connection broke") && error.is_passing(), "{error}");
        assert_eq!(api.asked().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_listens_nothing_was_sent_and_any_call_is_tried_again() {
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let mut settings = quick();
    (settings.retries, settings.retry_base_seconds, settings.retry_max_seconds) = (20, 0.3, 0.3);
    let client =
        client_with(&format!("http://127.0.0.1:{port}"), json!({}), json!({}), &settings).await.unwrap();
    let calling = tokio::spawn(async move { call(&client, Call::post_json("/x", &json!({}))).await });
    // The first try, or the second, finds nobody.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let api = ScriptedApi::start_at(&format!("127.0.0.1:{port}"), None, |_, _| Reply::status(200)).await;
    let answer = calling.await.unwrap().unwrap();
    assert_eq!((answer.status.as_u16(), api.asked().len()), (200, 1));
    assert!(answer.tries > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_waits_as_long_as_the_source_wants_or_is_not_made() {
    let after = |text: &'static str| {
        move |_: &Asked, nth: usize| match nth {
            0 => Reply::Answer(429, vec![("retry-after", text.to_owned())], Vec::new()),
            _ => Reply::status(200),
        }
    };
    let api = ScriptedApi::start(after("1")).await;
    let answer = call(&client(&api, json!({})).await, Call::post_json("/x", &json!({}))).await.unwrap();
    assert_eq!(answer.tries, 2);
    let gap = api.asked()[1].at - api.asked()[0].at;
    assert!(gap >= Duration::from_millis(990), "{gap:?}");
    let api = ScriptedApi::start(after("Tue, 31 Dec 2199 23:59:59 GMT")).await;
    let answer = call(&client(&api, json!({})).await, Call::get("/x")).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.tries), (429, 1), "too long to wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_the_wait_before_a_retry_at_once() {
    let api = ScriptedApi::start(|_, _| Reply::status(503)).await;
    let mut settings = quick();
    (settings.retry_base_seconds, settings.retry_max_seconds, settings.retry_total_seconds) =
        (600.0, 3600.0, 86_400.0);
    let pool = pool().await;
    let source = source(&pool, "HTTP", &api.address, json!({})).await;
    let cancel = CancellationToken::new();
    let client =
        SourceClient::new(&source, &settings, runner(&pool).await, HistoryId(Uuid::now_v7()), cancel.clone())
            .unwrap();
    let calling = tokio::spawn(async move { client.call(Call::get("/x")).await });
    crate::generic_jobs::until("it was asked", async || !api.asked().is_empty()).await;
    cancel.cancel();
    let error = timeout(SOON, calling).await.expect("at once").unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Cancelled { .. }), "{error}");
}

// ---- logging in ----

fn oauth2(token_api: &ScriptedApi) -> Value {
    json!({
        "TokenUrl": format!("{}/token?tenant=canary", token_api.address), "ClientID": "me", "ClientSecret": "s3cret-canary",
        "Scope": "read", "Concurrency": 1,
    })
}

fn grants() -> impl Fn(&Asked, usize) -> Reply + Send + Sync {
    |_, nth| {
        Reply::json(
            &json!({"access_token": format!("token-{nth}-canary"), "token_type": "Bearer", "expires_in": 600}),
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_once_for_many_calls_and_goes_to_the_source_alone() {
    let tokens = ScriptedApi::start(grants()).await;
    let api = ScriptedApi::start(statuses(&[])).await;
    let client = client(&api, oauth2(&tokens)).await;
    // With one call at a time at the source, the token's is not in the way of those that wait for it.
    let calls = (0..8).map(|_| call(&client, Call::get("/x")));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.unwrap().status.as_u16(), 200);
    }
    let asked = tokens.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].method.as_str(), asked[0].target.as_str()), ("POST", "/token?tenant=canary"));
    assert_eq!(asked[0].body, b"grant_type=client_credentials&scope=read");
    assert_eq!(asked[0].headers["authorization"], "Basic bWU6czNjcmV0LWNhbmFyeQ==");
    assert!(api.asked().iter().all(|asked| asked.headers["authorization"] == "Bearer token-0-canary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_the_source_refuses_is_fetched_once_more_and_then_the_401_stands() {
    let tokens = ScriptedApi::start(grants()).await;
    let api = ScriptedApi::start(|asked, _| {
        Reply::status(if asked.headers["authorization"].contains("token-0") { 401 } else { 200 })
    })
    .await;
    let once = client(&api, oauth2(&tokens)).await;
    let answer = call(&once, Call::post_json("/x", &json!({}))).await.unwrap();
    assert_eq!((answer.status.as_u16(), api.asked().len(), tokens.asked().len()), (200, 2, 2));

    let tokens = ScriptedApi::start(grants()).await;
    let api = ScriptedApi::start(|_, _| Reply::status(401)).await;
    let answer = call(&client(&api, oauth2(&tokens)).await, Call::get("/x")).await.unwrap();
    assert_eq!((answer.status.as_u16(), api.asked().len(), tokens.asked().len()), (401, 2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_given_is_a_sentence_and_nothing_is_sent_to_the_source() {
    let api = ScriptedApi::start(statuses(&[])).await;
    let denied = ScriptedApi::start(|_, _| {
        let body = json!({"error": "invalid_client", "error_description": "s3cret-canary is wrong"});
        Reply::Answer(401, Vec::new(), body.to_string().into_bytes())
    })
    .await;
    let elsewhere = ScriptedApi::start(grants()).await;
    let target = elsewhere.address.clone();
    let moved =
        ScriptedApi::start(move |_, _| Reply::Answer(307, vec![("location", target.clone())], Vec::new()))
            .await;
    for (tokens, word) in [(&denied, "401 Unauthorized: invalid_client, *** is wrong"), (&moved, "307")] {
        let error = call(&client(&api, oauth2(tokens)).await, Call::get("/x")).await.unwrap_err();
        let sentence = error.to_string();
        assert!(sentence.contains(word) && !sentence.contains("canary") && !error.is_passing(), "{sentence}");
    }
    assert_eq!((api.asked().len(), elsewhere.asked().len()), (0, 0));
    // One that is away for a moment is asked again.
    let flaky =
        ScriptedApi::start(|asked, nth| if nth == 0 { Reply::status(503) } else { grants()(asked, nth) })
            .await;
    assert_eq!(
        call(&client(&api, oauth2(&flaky)).await, Call::get("/x")).await.unwrap().status.as_u16(),
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_url_obeys_the_same_rule_of_addresses() {
    // The API may be called, and nothing else on loopback.
    let api = ScriptedApi::start_at("127.0.0.2:0", None, statuses(&[])).await;
    let mut settings = quick();
    for (allowed, url, word) in [
        ("127.0.0.2/32", "http://localhost:1/token", "`sources.allow_private`"),
        ("127.0.0.2/32", "http://127.0.0.1:1/token", "`sources.allow_private`"),
        ("127.0.0.2/32", "https://[::1]:1/token", "`sources.allow_private`"),
        ("127.0.0.2/32", "http://10.0.0.1/token", "`sources.allow_private`"),
        ("0.0.0.0/0", "http://169.254.169.254/token", "never allowed"),
        ("0.0.0.0/0", "http://[::ffff:169.254.169.254]/token", "never allowed"),
        ("0.0.0.0/0", "http://2852039166/token", "never allowed"),
    ] {
        settings.allow_private = vec![allowed.parse().unwrap()];
        let auth = json!({"TokenUrl": url, "ClientID": "me", "ClientSecret": "canary"});
        let client = match client_with(&api.address, auth, json!({}), &settings).await {
            Ok(client) => client,
            // TLS needs root certificates, which not every machine has.
            Err(error) => {
                assert!(
                    url.starts_with("https") && error.to_string().contains("root certificates"),
                    "{error}"
                );
                continue;
            }
        };
        let error = call(&client, Call::get("/x")).await.unwrap_err();
        assert!(error.to_string().contains(word) && !error.is_passing(), "{url}: {error}");
    }
    assert_eq!(api.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_to_a_private_address_is_refused_when_it_is_connected_to() {
    let mut settings = quick();
    settings.allow_private = vec!["127.0.0.2/32".parse().unwrap()];
    let client = client_with("http://localhost:1", json!({}), json!({}), &settings).await.unwrap();
    let error = call(&client, Call::get("/x")).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }) && !error.is_passing(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_make_no_sense_are_a_sentence_before_anything_is_sent() {
    for (auth, word) in [
        (json!({"Token": "canary", "Password": "canary", "Username": "u"}), "one way to log in"),
        (json!({"ConsumerKey": "c", "AccessToken": "canary", "PrivateKey": "canary"}), "`PrivateKey`"),
        (json!({"TokenUrl": "ftp://h", "ClientID": "c", "ClientSecret": "canary"}), "`TokenUrl`"),
    ] {
        let error =
            client_with("http://127.0.0.1:1", auth, json!({}), &quick()).await.unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("HTTP") && !error.contains("canary"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statements_of_the_page_about_sources_run_and_make_a_client() {
    let pool = pool().await;
    let source = source(&pool, "HTTP", "https://api.example.com", json!({})).await;
    let page = include_str!("../../docs/sources.md");
    let statements = page.split("```sql").skip(1).map(|block| block.split("```").next().unwrap());
    // The tests of each connector run those of its own section.
    let statements: Vec<_> = statements.filter(|statement| statement.contains("'HTTP'")).collect();
    assert_eq!(statements.len(), 2);
    for statement in statements {
        // The other tests have sources of the same kind.
        let statement = statement.replace("where Source = 'HTTP'", &format!("where ID = '{}'", source.id));
        let done = sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&pool).await.unwrap();
        assert_eq!(done.rows_affected(), 1);
    }
    let (auth, payload): (Value, Value) =
        sqlx::query_as("select AuthInfo, Payload from vm.SourceConfig where ID = $1")
            .bind(source.id)
            .fetch_one(&pool)
            .await
            .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut settings = quick();
    settings.ca_dir = folder.path().to_owned();
    // All of it is understood, up to the file that is not there.
    let error = client_with("https://127.0.0.1", auth, payload, &settings).await.unwrap_err().to_string();
    assert!(error.contains("`tls_ca_file` in its Payload: corp.pem: No such file"), "{error}");
}

#[cfg(feature = "aws")]
#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_aws_is_signed_anew_each_time() {
    let api = ScriptedApi::start(statuses(&[503])).await;
    let auth = json!({
        "AccessKeyID": "AKIDEXAMPLE", "SecretAccessKey": "canary-key", "SessionToken": "canary-session", "Region": "eu-west-1",
        "Service": "ec2",
    });
    call(&client(&api, auth).await, Call::get("/?Action=DescribeRegions")).await.unwrap();
    let asked = api.asked();
    assert_eq!(asked.len(), 2);
    for asked in asked {
        let header = &asked.headers["authorization"];
        assert!(
            header.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
                && header.contains("/eu-west-1/ec2/"),
            "{header}"
        );
        assert_eq!(asked.headers["x-amz-security-token"], "canary-session");
    }
}

// ---- pages ----

/// Seven items, at most three a page whatever was asked for.
fn stingy(asked: &Asked) -> Value {
    let start: usize = asked.parameter("startAt").unwrap().parse().unwrap();
    let items: Vec<_> = (start..7.min(start + 3)).collect();
    json!({"issues": items, "total": 7})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_advances_by_what_came_and_not_by_what_was_asked_for() {
    let api = ScriptedApi::start(|asked, _| Reply::json(&stingy(asked))).await;
    let client = client(&api, json!({})).await;
    let search = || Call::get("/search?jql=a").query("maxResults", 5);
    let all = client.pages(search(), Paging::offset("startAt", "/issues")).all_items().await.unwrap();
    assert_eq!(all, (0..7).map(Value::from).collect::<Vec<_>>());
    let starts =
        || api.asked().iter().map(|asked| asked.parameter("startAt").unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(starts(), ["0", "3", "6", "7"], "it ends with the empty page");
    assert!(
        api.asked()
            .iter()
            .all(|asked| asked.parameter("maxResults") == Some("5") && asked.parameter("jql") == Some("a"))
    );
    let all = client
        .pages(search(), Paging::offset("startAt", "/issues").total("/total"))
        .all_items()
        .await
        .unwrap();
    assert_eq!((all.len(), starts().len()), (7, 4 + 3), "the total saves the empty page");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_and_a_link_lead_from_page_to_page() {
    let api = ScriptedApi::start(|asked, _| {
        let page: usize = asked.parameter("page").unwrap_or("0").parse().unwrap();
        let next = (page < 3).then(|| (page + 1).to_string());
        // The second page is empty, as filters leave them.
        let items: Vec<_> = if page == 1 { vec![] } else { vec![page, page + 10] };
        let link = next
            .as_ref()
            .map(|next| format!("</base/x?page={next}>; rel=\"next\", </base/x>; rel=\"first\""));
        let Reply::Answer(status, _, body) = Reply::json(&json!({"items": items, "next": next})) else {
            unreachable!()
        };
        Reply::Answer(status, link.map(|link| ("link", link)).into_iter().collect(), body)
    })
    .await;
    let client = client_with(&format!("{}/base", api.address), json!({}), json!({}), &quick()).await.unwrap();
    for paging in [Paging::cursor("page", "/next", "/items"), Paging::link("/items")] {
        let all = client.pages(Call::get("/x"), paging).all_items().await.unwrap();
        assert_eq!(all, [0, 10, 2, 12, 3, 13].map(Value::from));
    }
    assert_eq!(api.asked().len(), 8);
}

type Script = Box<dyn Fn(&Asked, usize) -> Reply + Send + Sync>;

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_lead_nowhere_end_as_an_error() {
    let link = |link: &'static str| {
        move |_: &Asked, nth: usize| {
            Reply::Answer(200, vec![("link", format!("<{link}>; rel=next"))], format!("[{nth}]").into_bytes())
        }
    };
    let cursor = || Paging::cursor("page", "/next", "/items");
    let cases: Vec<(Script, Paging, &str)> = vec![
        // The offset is not looked at.
        (
            Box::new(|_, _| Reply::json(&json!({"items": [1, 2]}))),
            Paging::offset("start", "/items"),
            "the page before it once more",
        ),
        // It promises more than it has.
        (
            Box::new(|_, _| Reply::json(&json!({"items": [], "total": 5}))),
            Paging::offset("start", "/items").total("/total"),
            "gives no more than 0",
        ),
        (Box::new(|_, _| Reply::json(&json!({"items": [], "next": "same"}))), cursor(), "read already"),
        // A ring.
        (
            Box::new(|_, nth| Reply::json(&json!({"items": [nth], "next": (nth % 3).to_string()}))),
            cursor(),
            "read already",
        ),
        // No end.
        (
            Box::new(|_, nth| Reply::json(&json!({"items": [nth], "next": nth}))),
            cursor().max_pages(20),
            "more than 20 pages",
        ),
        (Box::new(|_, nth| Reply::json(&json!({"items": ["x"], "next": nth}))), cursor(), "once more"),
        (Box::new(link("/x")), Paging::link(""), "read already"),
        (
            Box::new(link("https://evil.example/x?token=1")),
            Paging::link(""),
            "leads out of the source's Address, to https://evil.example",
        ),
        (Box::new(|_, _| Reply::json(&json!({"items": 5}))), cursor(), "no array at \"/items\""),
        (Box::new(|_, _| Reply::Answer(200, vec![], b"<html>".to_vec())), cursor(), "is no JSON"),
        (Box::new(|_, _| Reply::status(404)), cursor(), "has status 404"),
    ];
    for (script, paging, word) in cases {
        let api = ScriptedApi::start(script).await;
        let pages = client(&api, json!({})).await.pages(Call::get("/x"), paging);
        let error = timeout(SOON, pages.all_items()).await.expect("it ends").unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("/x"), "{error}");
        assert!(api.asked().len() <= 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_cut_is_an_error() {
    let api = ScriptedApi::start(|_, _| Reply::json(&json!({"items": vec![0; 1000]}))).await;
    let mut settings = quick();
    settings.response_max_bytes = 1000;
    let client = client_with(&api.address, json!({}), json!({}), &settings).await.unwrap();
    let error =
        client.pages(Call::get("/x"), Paging::offset("start", "/items")).all_items().await.unwrap_err();
    assert!(error.to_string().contains("`sources.response_max_bytes`"), "{error}");
}

// ---- bounds ----

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_stands_still_ends_in_time_and_is_not_asked_for_again() {
    let mut settings = quick();
    for (sent, key) in [
        ("", "`sources.request_timeout_seconds`"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", "`sources.idle_timeout_seconds`"),
    ] {
        let api = ScriptedApi::start(|_, _| Reply::StandStill(sent.as_bytes().to_vec())).await;
        (settings.request_timeout_seconds, settings.idle_timeout_seconds) =
            if sent.is_empty() { (0.3, 60.0) } else { (60.0, 0.3) };
        let client = client_with(&api.address, json!({}), json!({}), &settings).await.unwrap();
        let begun = Instant::now();
        let error = call(&client, Call::get("/x")).await.unwrap_err();
        assert!(error.to_string().contains(key) && error.is_passing(), "{error}");
        assert!(begun.elapsed() >= Duration::from_millis(290), "{:?}", begun.elapsed());
        assert_eq!(api.asked().len(), 1, "it may be working on it still");
    }
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_answer_is_unpacked_and_one_that_swells_is_refused() {
    let packed = |body: Vec<u8>| {
        move |_: &Asked, _: usize| {
            Reply::Answer(200, vec![("content-encoding", "gzip".to_owned())], body.clone())
        }
    };
    let api = ScriptedApi::start(packed(gzip(b"hello"))).await;
    let answer = call(&client(&api, json!({})).await, Call::get("/x")).await.unwrap();
    assert_eq!((answer.body.as_slice(), answer.truncated), (b"hello".as_slice(), false));
    assert!(
        !answer.headers.contains_key("content-encoding") && !answer.headers.contains_key("content-length")
    );
    assert_eq!(api.asked()[0].headers["accept-encoding"], "gzip, deflate");
    let answer = call(&client(&api, json!({})).await, Call::new(Method::HEAD, "/x")).await.unwrap();
    assert!(answer.body.is_empty() && answer.tries == 1);

    let api = ScriptedApi::start(packed(gzip(&vec![b'x'; 20_000_000]))).await;
    let error = call(&client(&api, json!({})).await, Call::get("/x")).await.unwrap_err();
    assert!(
        error.to_string().contains("`sources.decompression_max_ratio`") && !error.is_passing(),
        "{error}"
    );
    assert_eq!(api.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_body_is_an_answer() {
    let api = ScriptedApi::start(|_, _| Reply::status(204)).await;
    let client = client(&api, json!({})).await;
    for method in [Method::GET, Method::HEAD, Method::DELETE, Method::POST] {
        let answer = call(&client, Call::new(method, "/x")).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.len(), answer.tries), (204, 0, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_is_followed_and_no_credential_goes_elsewhere() {
    let elsewhere = ScriptedApi::start(statuses(&[])).await;
    let target = elsewhere.address.clone();
    let api =
        ScriptedApi::start(move |_, _| Reply::Answer(302, vec![("location", format!("{target}/x"))], vec![]))
            .await;
    let answer = call(&client(&api, json!({"Token": "canary"})).await, Call::get("/x")).await.unwrap();
    assert_eq!((answer.status.as_u16(), api.asked().len(), elsewhere.asked().len()), (302, 1, 0));
}

// ---- canaries ----

/// What is logged on this thread, at every level, by whichever crate.
/// The private key of an example of OAuth 1 that is published everywhere.
const PEM: &str = include_str!("../data/published-oauth1.pem");

/// The secret, and what of it would show through masks that know it only as it stands; and each line of the key.
fn telling() -> impl Iterator<Item = &'static str> {
    let forms = ["c4nary", "pass&w", "pass%26w", "YzRuYXJ5", "M0bmFyeS", "Y0bmFyeS", "NG5hcnk"];
    forms.into_iter().chain(PEM.lines().filter(|line| !line.starts_with("-----")))
}

#[derive(Clone, Default)]
struct Caught(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Write for Caught {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_reaches_a_log_line_an_error_or_a_debug_output() {
    const SECRET: &str = "c4nary/+ \"pass&word\"";
    let caught = Caught::default();
    let writer = caught.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    // Answers everything back: in a header, in the body, in what looks like a token, in half an answer.
    let echo = ScriptedApi::start(|asked, nth| {
        let heard = format!("{} {:?} {}", asked.target, asked.headers, String::from_utf8_lossy(&asked.body));
        match nth % 3 {
            0 => Reply::Answer(
                503,
                vec![("x-echo", asked.headers.get("authorization").cloned().unwrap_or_default())],
                heard.into_bytes(),
            ),
            1 => Reply::Answer(200, vec![("content-encoding", "gzip".to_owned())], gzip(heard.as_bytes())),
            _ => {
                Reply::Partly(format!("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{heard}").into_bytes())
            }
        }
    })
    .await;
    let tokens =
        ScriptedApi::start(|_, nth| Reply::json(&json!({"access_token": format!("c4nary-token-{nth}")})))
            .await;
    let mut said = Vec::new();
    let ways = [
        json!({"Username": "svc", "Password": SECRET}),
        json!({"Token": SECRET}),
        json!({"ConsumerKey": "me", "AccessToken": SECRET, "PrivateKey": PEM}),
        json!({"Header": "X-Key", "Key": SECRET}),
        json!({"TokenUrl": format!("{}/token", echo.address), "ClientID": "me", "ClientSecret": SECRET}),
        json!({"TokenUrl": format!("{}/token", echo.address), "ClientID": "me", "ClientSecret": SECRET, "TokenAuth": "body"}),
        json!({"TokenUrl": tokens.address, "ClientID": "me", "ClientSecret": SECRET}),
        #[cfg(feature = "aws")]
        json!({"AccessKeyID": "AKID", "SecretAccessKey": SECRET, "SessionToken": SECRET, "Region": "r", "Service": "s3"}),
    ];
    for auth in ways {
        let client = client_with(&echo.address, auth, json!({}), &quick()).await.unwrap();
        for path in ["/x".to_owned(), format!("/{SECRET}"), format!("/x?key={SECRET}")] {
            let mut request = Call::get(path).query("q", SECRET);
            request.headers.insert("x-note", HeaderValue::from_static("c4nary-of-the-author"));
            said.push(format!("{request:?} {client:?}"));
            match call(&client, request).await {
                // As HttpJob keeps it.
                Ok(answer) => {
                    let body = String::from_utf8_lossy(&answer.body).replace("c4nary-of-the-author", "");
                    said.push(format!("{answer:?} {}", client.mask(&body)));
                }
                Err(error) => said.push(format!("{error} {error:?}")),
            }
        }
    }
    let said = said.join(" ");
    assert!(said.contains("Bearer ***") && said.contains("Basic ***"), "the echo was heard");
    let logged = String::from_utf8(caught.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("a call is tried again"), "the lines were caught");
    for text in [said.as_str(), logged.as_str()] {
        for form in telling() {
            if let Some(at) = text.find(form) {
                let around = &text
                    [text.floor_char_boundary(at.saturating_sub(200))..text.ceil_char_boundary(at + 100)];
                panic!("{form} shows in: {around}");
            }
        }
    }
}

#[test]
fn no_secret_of_a_source_reaches_what_the_daemon_prints_or_keeps() {
    const SECRET: &str = "c4nary/+ \"pass&word";
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let api = runtime.block_on(ScriptedApi::start(|asked, _| {
        let heard = format!("{} {:?} {}", asked.target, asked.headers, String::from_utf8_lossy(&asked.body));
        let token = json!({"access_token": "c4nary-token", "heard": heard});
        if asked.target == "/token" {
            Reply::json(&token)
        } else {
            // Back comes also what only a source that was given the key could know.
            Reply::Answer(500, vec![], format!("{heard} {PEM}").into_bytes())
        }
    }));
    let mut db = TestDb::new();
    let ways = [
        json!({"TokenUrl": format!("{}/token", api.address), "ClientID": "me", "ClientSecret": SECRET, "PreviousKey": PEM}),
        json!({"Token": SECRET, "PreviousKey": PEM}),
        json!({"ConsumerKey": "me", "AccessToken": SECRET, "PrivateKey": PEM}),
    ];
    let mut configs = Vec::new();
    for auth in &ways {
        let config = db.config("HttpJob", "", "");
        db.exec(&format!(
            "with s as (
               insert into SourceConfig (Source, OrganizationID, Address, AuthInfo)
               select 'HTTP', OrganizationID, '{}', '{auth}' from JobConfig where ID = '{config}' returning ID)
             update JobConfig set DataInSourceConfigID = (select ID from s) where ID = '{config}'",
            api.address,
        ));
        configs.push(config);
    }
    let trace = [
        ("RUST_LOG", "trace"),
        ("ROSTERD__LOG__DATABASE_LEVEL", "trace"),
        ("ROSTERD__SOURCES__ALLOW_PRIVATE", "127.0.0.0/8"),
    ];
    let mut daemon = Daemon::start_with(&db, &trace);
    let rows: Vec<_> = configs.iter().map(|config| db.insert(config, r#"{"path": "/x"}"#)).collect();
    for id in &rows {
        db.wait_status(id, 4);
    }
    daemon.stop();
    for (id, heard) in rows.iter().zip(["Bearer ***", "Bearer ***", "OAuth "]) {
        let error = db.column(id, "Error");
        assert!(error.contains("GET /x answered 500"), "{error}");
        assert!(db.column(id, "Result").contains(heard), "the echo was heard: {}", db.column(id, "Result"));
    }
    let kept = db.text(
        "select string_agg(t, ' ') from (select h::text from JobHistory h union all select l::text from Logs l) x (t)",
    );
    for text in [daemon.output(), kept] {
        for form in telling() {
            let line = text.lines().find(|line| line.contains(form));
            assert!(line.is_none(), "{form} shows in: {}", line.unwrap_or_default());
        }
    }
}
