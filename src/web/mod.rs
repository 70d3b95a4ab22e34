//! The HTTP side: health, metrics.

pub mod health;
pub mod metrics;

use std::future::IntoFuture;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::vitals::Vitals;

/// Requests that are still answered when the daemon stops have this long.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// `/healthz`, `/readyz` and `/metrics`. Pages of other modules are merged into it.
pub fn router(vitals: Arc<Vitals>) -> Router {
    health::routes(Arc::clone(&vitals)).merge(metrics::routes(vitals))
}

/// Serves [`router`] until `stop`.
pub async fn serve(listener: TcpListener, vitals: Arc<Vitals>, stop: CancellationToken) -> io::Result<()> {
    serve_router(listener, router(vitals), stop).await
}

/// Serves any router until `stop`; open requests then have 2 s. Keeps the metrics tidy meanwhile.
pub async fn serve_router(listener: TcpListener, router: Router, stop: CancellationToken) -> io::Result<()> {
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let too_late = async {
        stop.cancelled().await;
        sleep(STOP_LIMIT).await;
    };
    tokio::select! {
        result = server.into_future() => result,
        () = too_late => Ok(()),
        () = metrics::keep_tidy() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;

    use super::*;

    struct Served {
        address: SocketAddr,
        vitals: Arc<Vitals>,
        stop: CancellationToken,
        server: JoinHandle<io::Result<()>>,
    }

    async fn served() -> Served {
        // As the daemon does before anything is counted: what is counted earlier is lost.
        metrics::install();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, vitals, stop) =
            (listener.local_addr().unwrap(), Arc::new(Vitals::new()), CancellationToken::new());
        let server = tokio::spawn(serve(listener, Arc::clone(&vitals), stop.clone()));
        Served { address, vitals, stop, server }
    }

    impl Served {
        async fn get(&self, path: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    #[tokio::test]
    async fn healthz_is_fine_while_the_loops_turn_and_names_the_one_that_does_not() {
        let served = served().await;
        served.vitals.progress("claim");
        let answer = served.get("/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"), "{answer}");

        let long_ago = Instant::now().checked_sub(Duration::from_secs(90)).unwrap();
        served.vitals.progress_at("claim", long_ago);
        let answer = served.get("/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("claim: no progress for 90 s\n"), "{answer}");
    }

    #[tokio::test]
    async fn readyz_is_fine_while_the_daemon_claims_and_its_database_answers() {
        let served = served().await;
        let answer = served.get("/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("not claiming"), "{answer}");
        served.vitals.set_ready(true);
        served.vitals.set_database_up(true);
        assert!(served.get("/readyz").await.starts_with("HTTP/1.1 200 OK"));
        served.vitals.set_database_up(false);
        assert!(served.get("/readyz").await.starts_with("HTTP/1.1 503 "));
    }

    #[tokio::test]
    async fn metrics_show_what_happened_with_help_for_every_metric() {
        let served = served().await;
        served.vitals.set_running(3);
        served.vitals.set_tasks(12);
        served.vitals.set_database_up(true);
        served.vitals.claimed(2, Duration::from_millis(3));
        served.vitals.started(Duration::from_millis(3));
        let answer = served.get("/metrics").await;
        assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
        for line in [
            "rosterd_jobs_running 3",
            "rosterd_tasks_alive 12",
            "rosterd_database_up 1",
            "rosterd_jobs_claimed_total 2",
            "rosterd_jobs_finished_total{status=\"completed\"} 0",
            "rosterd_log_lines_dropped_total ",
            "rosterd_claim_seconds_bucket{le=\"0.0025\"} 0",
            "rosterd_claim_seconds_bucket{le=\"0.005\"} 1",
            "rosterd_start_latency_seconds_bucket{le=\"0.005\"} 1",
        ] {
            assert!(answer.contains(line), "no {line} in {answer}");
        }
        for name in [
            crate::vitals::JOBS_CLAIMED,
            crate::vitals::JOBS_FINISHED,
            crate::vitals::JOBS_RUNNING,
            crate::vitals::TASKS_ALIVE,
            crate::vitals::CLAIM_SECONDS,
            crate::vitals::START_LATENCY_SECONDS,
            crate::vitals::LOG_LINES_DROPPED,
            crate::vitals::DATABASE_UP,
        ] {
            assert!(answer.contains(&format!("# HELP {name} ")), "no help for {name} in {answer}");
        }
    }

    #[tokio::test]
    async fn stop_ends_it_also_with_a_client_that_never_finishes_its_request() {
        let served = served().await;
        let mut slow = TcpStream::connect(served.address).await.unwrap();
        slow.write_all(b"GET /healthz HTT").await.unwrap();
        served.get("/healthz").await;
        served.stop.cancel();
        tokio::time::timeout(2 * STOP_LIMIT, served.server).await.unwrap().unwrap().unwrap();
    }
}
