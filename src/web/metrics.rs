//! `/metrics` for Prometheus.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, set_global_recorder,
    with_local_recorder,
};
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::sleep;

use crate::vitals::{self, Vitals};

/// Samples of histograms pile up until somebody scrapes or tidies.
const TIDY_EVERY: Duration = Duration::from_secs(5);

const CLAIM_BUCKETS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Finest around the published bounds, 5 ms, 50 ms and 1 s.
const LATENCY_BUCKETS: &[f64] =
    &[0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// The route. Starts recording, see [`install`].
pub fn routes(vitals: Arc<Vitals>) -> Router {
    install();
    Router::new().route("/metrics", get(render)).with_state(vitals)
}

/// Starts recording metrics for the whole process, the first time it is called; before, they go nowhere.
/// [`super::serve_router`] keeps the recorder tidy; whoever installs it without serving must call
/// `run_upkeep` now and then, or the samples of histograms pile up. In a program that has a recorder of
/// its own, that one gets the metrics and the page shows only the names.
pub fn install() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let recorder = with_buckets(PrometheusBuilder::new()).build_recorder();
        let handle = recorder.handle();
        with_local_recorder(&recorder, describe);
        if set_global_recorder(recorder).is_err() {
            tracing::warn!("Metrics: this program has its own recorder, /metrics will stay empty");
        }
        handle
    })
}

/// Runs for ever.
pub(super) async fn keep_tidy() {
    loop {
        sleep(TIDY_EVERY).await;
        install().run_upkeep();
    }
}

async fn render(State(vitals): State<Arc<Vitals>>) -> impl IntoResponse {
    set_gauges(&vitals);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], install().render())
}

#[allow(clippy::cast_precision_loss)] // Nobody runs 2^52 jobs.
fn set_gauges(vitals: &Vitals) {
    gauge!(vitals::JOBS_RUNNING).set(vitals.running() as f64);
    gauge!(vitals::TASKS_ALIVE).set(vitals.tasks() as f64);
    gauge!(vitals::SOURCES_LIMITED).set(vitals.limited() as f64);
    gauge!(vitals::DATABASE_UP).set(f64::from(u8::from(vitals.database_up())));
}

fn with_buckets(builder: PrometheusBuilder) -> PrometheusBuilder {
    let buckets = [(vitals::CLAIM_SECONDS, CLAIM_BUCKETS), (vitals::START_LATENCY_SECONDS, LATENCY_BUCKETS)];
    buckets.into_iter().fold(builder, |builder, (name, buckets)| {
        // Only an empty list of buckets is refused.
        match builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets) {
            Ok(builder) => builder,
            Err(error) => unreachable!("the buckets of {name}: {error}"),
        }
    })
}

/// Says what each metric means, and begins the counters at zero so that rates work from the start.
fn describe() {
    describe_counter!(vitals::JOBS_CLAIMED, "Rows claimed by this runner");
    describe_counter!(vitals::JOBS_FINISHED, "Runs that ended on this runner, by status");
    describe_gauge!(vitals::JOBS_RUNNING, "Jobs in progress on this runner");
    describe_gauge!(vitals::TASKS_ALIVE, "Alive tokio tasks; a steady rise is a leak");
    describe_histogram!(vitals::CLAIM_SECONDS, Unit::Seconds, "Time one claim statement took");
    describe_histogram!(
        vitals::START_LATENCY_SECONDS,
        Unit::Seconds,
        "Time from when a row was due to when its job started"
    );
    describe_counter!(vitals::LOG_LINES_DROPPED, "Log lines of jobs that never reached the table Logs");
    describe_counter!(
        vitals::LOG_LINES_UNWRITTEN,
        "Log lines that stdout did not take: a full disk, a reader that is gone"
    );
    describe_gauge!(vitals::SOURCES_LIMITED, "Sources that asked for a pause or that runners wait for");
    describe_gauge!(vitals::DATABASE_UP, "1 while the database answers, else 0");
    counter!(vitals::JOBS_CLAIMED).increment(0);
    counter!(vitals::LOG_LINES_DROPPED).increment(0);
    counter!(vitals::LOG_LINES_UNWRITTEN).increment(0);
    for status in vitals::FINISHED_STATUSES {
        counter!(vitals::JOBS_FINISHED, "status" => *status).increment(0);
    }
}
