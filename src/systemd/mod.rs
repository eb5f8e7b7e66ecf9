//! What systemd, or whatever else speaks its notification protocol, hears of the relay: that it listens, reloads, stops and
//! how it is; and that it lives, by the watchdog. Without a service manager (`NOTIFY_SOCKET`) nothing happens.
//!
//! It is ready as soon as it listens. The Router may be away for hours: a boot that waited for it would wait as long, and a
//! relay that reconnects by itself would be taken for one that failed to start. What the link does stands in the status.

mod account;
mod activation;
mod status;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use crate::handle::Handle;

pub use account::let_read;
pub use activation::{ActivationError, listener};

/// How often the status is looked at; it is sent when it has changed. While the relay stops, the time that it gets is
/// extended as often.
const PERIOD: Duration = Duration::from_secs(5);
/// The time that is asked for each time: several periods, so that one message that is late does not matter, and enough for
/// what comes after the last session (traces and logs that are written out).
const EXTENSION: Duration = Duration::from_secs(30);

/// Tells the service manager about a relay that listens, for ever.
pub async fn report(handle: Handle) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let first = status_of(&handle, None);
    tell(&[NotifyState::Ready, NotifyState::Status(&first)]).await;
    tokio::join!(report_status(&handle, first), feed_watchdog(&handle));
}

/// Says that a reload has begun; [`reloaded`] must follow.
pub async fn reloading(handle: &Handle) {
    // One that stops is not ready again afterwards.
    if handle.is_draining() {
        return;
    }
    // systemd wants to know from which moment on the new settings are read.
    let Ok(now) = NotifyState::monotonic_usec_now() else { return };
    tell(&[NotifyState::Reloading, now]).await;
}

/// Says that a reload is over, whatever came of it.
pub async fn reloaded(handle: &Handle) {
    if handle.is_draining() {
        return;
    }
    tell(&[NotifyState::Ready]).await;
}

async fn report_status(handle: &Handle, first: String) {
    let mut link = handle.watch_link();
    let mut said = first;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = link.changed() => if changed.is_err() { return },
            () = handle.draining().cancelled() => break,
        }
        let now = status_of(handle, None);
        if now != said {
            tell(&[NotifyState::Status(&now)]).await;
            said = now;
        }
    }
    let deadline = Instant::now() + handle.config().drain_timeout;
    // From here on the manager's own limit (TimeoutStopSec) runs, which knows nothing of DrainTimeout.
    let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
    let extension = NotifyState::ExtendTimeoutUsec(extension);
    tell(&[NotifyState::Stopping]).await;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = status_of(handle, Some(deadline));
        tell(&[extension.clone(), NotifyState::Status(&now)]).await;
    }
}

fn status_of(handle: &Handle, deadline: Option<Instant>) -> String {
    let counts = handle.state().counts();
    match deadline {
        None => status::running(&handle.link(), counts),
        Some(deadline) => {
            status::stopping(counts, deadline.saturating_duration_since(Instant::now()))
        }
    }
}

/// Gives a sign of life where the manager waits for one: twice in the time that it allows, and only after every thread of
/// the relay has answered.
async fn feed_watchdog(handle: &Handle) {
    let Some(allowed) = sd_notify::watchdog_enabled().filter(|allowed| !allowed.is_zero()) else {
        return;
    };
    let mut ticks = interval((allowed / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        handle.runner().answer().await;
        tell(&[NotifyState::Watchdog]).await;
    }
}

/// Sends a message. On a thread of its own: a manager that does not read must not keep the relay from its work.
async fn tell(states: &[NotifyState<'_>]) {
    static FAILED: AtomicBool = AtomicBool::new(false);

    let message = states.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let send = move || sd_notify::notify(&[NotifyState::Custom(&message)]);
    let Ok(sent) = tokio::task::spawn_blocking(send).await else { return };
    match sent {
        Ok(()) => FAILED.store(false, Ordering::Relaxed),
        Err(error) if !FAILED.swap(true, Ordering::Relaxed) => warn!(
            "the service manager cannot be told how the relay is (NOTIFY_SOCKET): {error}; it may take the relay for \
             one that hangs"
        ),
        Err(_) => {}
    }
}
