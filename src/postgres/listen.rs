//! Wake-up hints: LISTEN on a connection of its own.
//!
//! A hint only makes things faster; the clock is the guarantee. So a listener that lost its connection just
//! comes back after a back-off and gives one hint for whatever it may have missed. It asks the server now and
//! then whether it is there, because a half-open socket looks just like nothing to hear.

use super::connect::{Backoff, Limits, Speaker, with_settings, within};
use crate::limits::SourceNews;
use sqlx::Executor;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Something to claim, or a schedule that changed.
pub const WAKE: &str = "rosterd_wake";
/// A source was edited or paused, or a runner waits for a share of it.
pub const SOURCE: &str = "rosterd_source";
/// An operator cancelled a row in progress.
pub const CANCEL: &str = "rosterd_cancel";

/// Whom a hint wakes.
#[derive(Debug, Clone)]
pub struct Hints {
    /// The claim loop.
    pub wake: Arc<Notify>,
    /// The loop that reads cancel requests.
    pub cancel: Arc<Notify>,
    /// The schedule loop.
    pub schedule: Arc<Notify>,
    /// Whoever deals out calls to sources: the one that changed, or all of them.
    pub(crate) source: broadcast::Sender<Option<(Uuid, SourceNews)>>,
}

impl Default for Hints {
    fn default() -> Self {
        Self {
            wake: Arc::default(),
            cancel: Arc::default(),
            schedule: Arc::default(),
            source: broadcast::Sender::new(1000),
        }
    }
}

impl Hints {
    /// Everybody looks now, for what may have been missed.
    pub(crate) fn all(&self) {
        self.wake.notify_one();
        self.cancel.notify_one();
        self.schedule.notify_one();
        self.source(None);
    }

    fn source(&self, source: Option<(Uuid, SourceNews)>) {
        // Nobody listens before the engine has started.
        let _ = self.source.send(source);
    }
}

/// A listener that heard nothing for so many times the limit for an answer asks the server whether it is still there.
/// Not sooner, because until it finds out only the hints are missing, and an idle runner shall ask little.
const PING_EVERY: u32 = 10;

/// Listens until `stop`.
pub async fn run(options: PgConnectOptions, limits: Limits, hints: Hints, stop: CancellationToken) {
    let options = with_settings(options, "listen", Speaker::Operator, limits.statement);
    let mut backoff = Backoff::new(Duration::from_secs(2));
    while !stop.is_cancelled() {
        let listened = Arc::new(AtomicBool::new(false));
        let life = Life {
            options: options.clone(),
            limits,
            hints: hints.clone(),
            stop: stop.clone(),
            listened: Arc::clone(&listened),
        };
        match tokio::task::spawn_blocking(|| life.live()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "Listener: connection lost, the clock takes over until it is back");
            }
            Err(error) => tracing::error!(%error, "Listener: ended by a panic, begun anew"),
        }
        if listened.load(Ordering::Acquire) {
            backoff.reset();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

/// One connection's life.
struct Life {
    options: PgConnectOptions,
    limits: Limits,
    hints: Hints,
    stop: CancellationToken,
    listened: Arc<AtomicBool>,
}

impl Life {
    /// Lives on a runtime of its own: a `PgListener` that is dropped leaves a task behind that says good-bye to the
    /// server, and on a dead link that task would wait for ever. Here it ends with its runtime.
    fn live(self) -> Result<(), sqlx::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let heard = runtime.block_on(async {
            tokio::select! {
                heard = self.listen() => heard,
                () = self.stop.cancelled() => Ok(()),
            }
        });
        // Not waiting for a name that is just being looked up.
        runtime.shutdown_background();
        heard
    }

    /// Gives hints until the connection is lost.
    async fn listen(&self) -> Result<(), sqlx::Error> {
        let mut listener = within(self.limits.connect, self.open()).await?;
        self.listened.store(true, Ordering::Release);
        // Whatever was sent while nobody listened.
        self.hints.all();
        loop {
            match tokio::time::timeout(self.limits.answer * PING_EVERY, listener.try_recv()).await {
                Ok(Ok(Some(hint))) if hint.channel() == CANCEL => self.hints.cancel.notify_one(),
                Ok(Ok(Some(hint))) if hint.channel() == SOURCE => {
                    self.hints.source(news_of_source(hint.payload()));
                }
                Ok(Ok(Some(hint))) => {
                    self.hints.wake.notify_one();
                    if hint.payload() == "schedule" {
                        self.hints.schedule.notify_one();
                    }
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    // A half-open socket looks like silence. (What is sent meanwhile is heard by the next look.)
                    within(self.limits.answer, listener.execute("select 1")).await?;
                }
            }
        }
    }

    async fn open(&self) -> Result<PgListener, sqlx::Error> {
        // A pool of one, because PgListener keeps a pool's connection for ever.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.limits.connect)
            .connect_with(self.options.clone())
            .await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.ignore_pool_close_event(true);
        listener.listen_all([WAKE, CANCEL, SOURCE]).await?;
        Ok(listener)
    }
}

/// The ID of a source, and behind it what happened. Nothing that is known: all sources are looked at.
fn news_of_source(payload: &str) -> Option<(Uuid, SourceNews)> {
    let (id, news) = match payload.split_once(' ') {
        None => (payload, SourceNews::Changed),
        Some((id, "wanted")) => (id, SourceNews::Wanted),
        Some((id, "freed")) => (id, SourceNews::Freed),
        Some(_) => return None,
    };
    Some((id.parse().ok()?, news))
}
