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

/// Feeds the watchdog from the progress of the loops, never from a timer alone; an outage of the database
/// does not stop the loops, so it starves no watchdog.
pub(crate) fn start(vitals: Arc<Vitals>, stop: CancellationToken) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let every = sd_notify::watchdog_enabled().map_or(STATUS_EVERY, |limit| (limit / 3).min(STATUS_EVERY));
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

/// It claims.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// It looks at everything anew; [`ready`] ends that.
pub(crate) fn reloading() {
    notify(&[NotifyState::Reloading]);
}

/// It stops, which may take this long; the watchdog waits.
pub(crate) fn stopping(longest: Duration) {
    let micros = u32::try_from((longest + Duration::from_secs(10)).as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

fn notify(state: &[NotifyState<'_>]) {
    // Not being heard by systemd is no reason to stop working.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd does not listen: {error}");
    }
}
