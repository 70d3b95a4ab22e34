//! Telling systemd how we are (`Type=notify`). Without systemd every call does nothing.

use crate::vitals::Vitals;
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often STATUS is refreshed.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// Loops that have not gone round for so long are stuck: the watchdog is no longer fed.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// The line to systemd.
#[derive(Debug)]
pub(crate) struct Systemd;

impl Systemd {
    /// Feeds the watchdog from the progress of the loops, never from a timer alone; an outage of the database
    /// does not stop the loops, so it starves no watchdog.
    pub(crate) fn start(vitals: Arc<Vitals>, stop: CancellationToken) -> Self {
        let watchdog = sd_notify::watchdog_enabled();
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            let every = watchdog.map_or(STATUS_EVERY, |limit| (limit / 3).min(STATUS_EVERY));
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(every) => {}
                    }
                    notify(&[NotifyState::Status(&vitals.status())]);
                    if vitals.healthy(STUCK_AFTER) {
                        notify(&[NotifyState::Watchdog]);
                    } else {
                        tracing::error!("Watchdog: these loops are stuck: {:?}", vitals.stuck(STUCK_AFTER));
                    }
                }
            });
        }
        Self
    }

    pub(crate) fn ready(&self) {
        notify(&[NotifyState::Ready]);
    }

    pub(crate) fn reloading(&self) {
        notify(&[NotifyState::Reloading]);
    }

    /// Stopping may take this long, and the watchdog waits.
    pub(crate) fn stopping(&self, longest: Duration) {
        let micros = u32::try_from((longest + Duration::from_secs(10)).as_micros()).unwrap_or(u32::MAX);
        notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
    }
}

fn notify(state: &[NotifyState<'_>]) {
    // Not being heard by systemd is no reason to stop working.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd does not listen: {error}");
    }
}
