//! Notifications to systemd, or to another service manager that speaks its protocol: that the relay is ready, reloads or
//! stops, a status line, and the watchdog. Without `NOTIFY_SOCKET` nothing happens.
//!
//! The relay is ready as soon as it listens. The Router may be unreachable for hours: a boot that depended on the
//! Router would wait as long, and a relay that reconnects by itself would count as failed. The status line shows the
//! state of the link.

mod account;
mod activation;
mod status;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use crate::handle::Handle;

pub use account::let_service_read;
pub use activation::{ActivationError, take_listener};

/// How often the status line is compared with the one sent last, and sent if it differs. While the relay stops, the stop
/// timeout is extended as often.
const PERIOD: Duration = Duration::from_secs(5);
/// By how much the stop timeout is extended each time: several periods, so that a late message does no harm, and enough
/// for exporting traces and writing logs after the last session.
const EXTENSION: Duration = Duration::from_secs(30);

/// Notifies the service manager that the relay listens, and of every change after that, for ever.
pub async fn report(handle: Handle) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let first = format_status(&handle, None);
    notify(&[NotifyState::Ready, NotifyState::Status(&first)]).await;
    tokio::join!(report_status(&handle, first), feed_watchdog(&handle));
}

/// Notifies that a reload has begun; [`notify_reloaded`] must follow.
pub async fn notify_reloading(handle: &Handle) {
    // A relay that is stopping does not become ready again.
    if handle.is_draining() {
        return;
    }
    // systemd requires the time at which the reload began.
    let Ok(now) = NotifyState::monotonic_usec_now() else { return };
    notify(&[NotifyState::Reloading, now]).await;
}

/// Notifies that a reload is over, whether or not it succeeded.
pub async fn notify_reloaded(handle: &Handle) {
    if handle.is_draining() {
        return;
    }
    notify(&[NotifyState::Ready]).await;
}

async fn report_status(handle: &Handle, first: String) {
    let mut link = handle.watch_link();
    let mut last_sent = first;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = link.changed() => if changed.is_err() { return },
            () = handle.draining().cancelled() => break,
        }
        let now = format_status(handle, None);
        if now != last_sent {
            notify(&[NotifyState::Status(&now)]).await;
            last_sent = now;
        }
    }
    let deadline = Instant::now() + handle.config().drain_timeout;
    // From here on the manager's stop timeout (TimeoutStopSec) runs, which does not depend on DrainTimeout.
    let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
    let extension = NotifyState::ExtendTimeoutUsec(extension);
    notify(&[NotifyState::Stopping]).await;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = format_status(handle, Some(deadline));
        notify(&[extension.clone(), NotifyState::Status(&now)]).await;
    }
}

fn format_status(handle: &Handle, deadline: Option<Instant>) -> String {
    let counts = handle.state().counts();
    match deadline {
        None => status::format_running(&handle.link(), &handle.store_link(), counts),
        Some(deadline) => {
            status::format_stopping(counts, deadline.saturating_duration_since(Instant::now()))
        }
    }
}

/// Feeds the watchdog, if it is enabled: twice in each watchdog interval, and only after every thread of the relay has
/// responded.
async fn feed_watchdog(handle: &Handle) {
    let Some(allowed) = sd_notify::watchdog_enabled().filter(|allowed| !allowed.is_zero()) else {
        return;
    };
    let mut ticks = interval((allowed / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        handle.session_manager().ping_workers().await;
        notify(&[NotifyState::Watchdog]).await;
    }
}

/// Notifies the service manager, on a blocking thread: a manager that does not read must not block the relay.
async fn notify(states: &[NotifyState<'_>]) {
    static FAILED: AtomicBool = AtomicBool::new(false);

    let message = states.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let send = move || sd_notify::notify(&[NotifyState::Custom(&message)]);
    let Ok(sent) = tokio::task::spawn_blocking(send).await else { return };
    match sent {
        Ok(()) => FAILED.store(false, Ordering::Relaxed),
        Err(error) if !FAILED.swap(true, Ordering::Relaxed) => warn!(
            "cannot notify the service manager (NOTIFY_SOCKET): {error}; it may conclude that the relay hangs"
        ),
        Err(_) => {}
    }
}
