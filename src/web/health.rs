//! `/healthz`: do the loops turn? `/readyz`: does it claim? For systemd, Kubernetes and load balancers.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::vitals::Vitals;

/// A loop that has not gone round for this long stands still. Longer than any pause a loop makes.
pub const HEALTHY_WITHIN: Duration = Duration::from_secs(30);

/// The two routes.
pub fn routes(vitals: Arc<Vitals>) -> Router {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).with_state(vitals)
}

async fn healthz(State(vitals): State<Arc<Vitals>>) -> (StatusCode, String) {
    let stuck = vitals.stuck(HEALTHY_WITHIN);
    if stuck.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let mut text = String::new();
    for (name, silent) in stuck {
        // A String takes every write.
        let _ = writeln!(text, "{name}: no progress for {} s", silent.as_secs());
    }
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

async fn readyz(State(vitals): State<Arc<Vitals>>) -> (StatusCode, String) {
    let claims = vitals.ready() && vitals.database_up();
    let status = if claims { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{}\n", vitals.status()))
}
