//! Wake-up hints: LISTEN on a connection of its own.
//!
//! A hint only makes things faster; the clock is the guarantee. So a listener that lost its connection just
//! comes back after a back-off and gives one hint for whatever it may have missed.

use super::connect::{Backoff, Limits, Speaker, with_settings};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Something to claim, or a schedule that changed.
pub const WAKE: &str = "rosterd_wake";
/// An operator cancelled a row in progress.
pub const CANCEL: &str = "rosterd_cancel";

/// Whom a hint wakes.
#[derive(Debug, Clone, Default)]
pub struct Hints {
    /// The claim loop.
    pub wake: Arc<Notify>,
    /// The loop that reads cancel requests.
    pub cancel: Arc<Notify>,
    /// The schedule loop.
    pub schedule: Arc<Notify>,
}

impl Hints {
    fn all(&self) {
        self.wake.notify_one();
        self.cancel.notify_one();
        self.schedule.notify_one();
    }
}

/// Listens until `stop`.
pub async fn run(options: PgConnectOptions, limits: Limits, hints: Hints, stop: CancellationToken) {
    let options = with_settings(options, "listen", Speaker::Operator, limits.statement);
    let mut backoff = Backoff::new(Duration::from_secs(5));
    loop {
        let heard = tokio::select! {
            () = stop.cancelled() => return,
            heard = listen(&options, limits, &hints, &mut backoff) => heard,
        };
        if let Err(error) = heard {
            tracing::debug!(%error, "Listener: connection lost, the clock takes over until it is back");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

/// One connection's life. It pings itself through the server, so that a half-open socket is noticed.
async fn listen(
    options: &PgConnectOptions,
    limits: Limits,
    hints: &Hints,
    backoff: &mut Backoff,
) -> Result<(), sqlx::Error> {
    // A pool of one, because PgListener keeps a pool's connection for ever.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(limits.connect)
        .connect_with(options.clone())
        .await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.ignore_pool_close_event(true);
    listener.listen_all([WAKE, CANCEL]).await?;
    backoff.reset();
    // Whatever was sent while nobody listened.
    hints.all();
    loop {
        match tokio::time::timeout(PING_EVERY, listener.try_recv()).await {
            Ok(Ok(Some(hint))) => {
                if hint.channel() == CANCEL {
                    hints.cancel.notify_one();
                } else {
                    hints.wake.notify_one();
                    if hint.payload() == "schedule" {
                        hints.schedule.notify_one();
                    }
                }
            }
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                let ping = sqlx::Executor::execute(&mut listener, "select 1");
                if tokio::time::timeout(limits.connect, ping).await.is_err() {
                    return Err(sqlx::Error::PoolTimedOut);
                }
            }
        }
    }
}

const PING_EVERY: Duration = Duration::from_secs(15);
