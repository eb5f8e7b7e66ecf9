//! Watches the files that settings come from (`WatchConfig`).
//!
//! The files are read periodically and their content is compared, as those of the metrics listener's certificate are.
//! That notices every kind of change on every file system: a file that is replaced, removed or mounted, a link that is
//! turned (Kubernetes turns that of a directory above), a network file system that reports no events.

use std::time::Duration;

use tokio::time::sleep;

use crate::config::SourceDigest;
use crate::config::sources::Sources;
use crate::handle::Handle;

/// How often the files are read.
const READ_INTERVAL: Duration = Duration::from_secs(5);
/// How long the files must stay the same before a change counts: a file may be half written, or removed just before
/// another one takes its place.
const SETTLING_TIME: Duration = Duration::from_secs(1);

/// Waits until the files of `sources` differ from what was read last and no longer change. While what was read last
/// cannot be used, waits only for the next time to try: what was wrong may have been something else, such as a missing
/// certificate. If `WatchConfig` is off, waits until it is on.
pub(super) async fn wait_for_change(handle: &Handle, sources: &Sources) {
    let mut settings = handle.settings().subscribe();
    loop {
        // Fails only if the relay is gone.
        if settings.wait_for(|config| config.watch_config).await.is_err() {
            return std::future::pending().await;
        }
        sleep(READ_INTERVAL).await;
        let is_on = settings.borrow().watch_config;
        let Some(mut digest) = read(sources).await.filter(|_| is_on) else { continue };
        while digest != handle.settings().last_read().digest {
            sleep(SETTLING_TIME).await;
            let Some(again) = read(sources).await else { break };
            if again == digest {
                return;
            }
            digest = again;
        }
        if handle.settings().last_read().failure.is_some() {
            return;
        }
    }
}

/// Reads the files on a thread that may block. `None` if that fails.
async fn read(sources: &Sources) -> Option<SourceDigest> {
    let sources = sources.clone();
    tokio::task::spawn_blocking(move || SourceDigest::read(&sources)).await.ok()
}
