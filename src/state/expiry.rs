//! The task that expires keys.

use std::num::NonZero;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::Instant;
use tracing::info;

use crate::log::limit::LineLimit;

use super::keys::KEY_LIFETIME;
use super::metrics::KeyEvent;
use super::pauses::OBSERVATION_INTERVAL;
use super::rendezvous::Rendezvous;

/// The maximum number of keys that are removed before the locks are released.
const BATCH: usize = 256;
/// The maximum number of lines about expired keys in a period. They are limited because strangers who ask the Router for
/// connections and never connect decide how many keys expire.
const LINES: (NonZero<u32>, Duration) =
    (NonZero::new(20).expect("it is not 0"), Duration::from_secs(10));

/// Removes keys as they expire and releases the peers that wait with them. Never returns; one task runs it.
pub async fn expire_keys<W>(rendezvous: &Rendezvous<W>) {
    let state = rendezvous.state();
    let lines = LineLimit::new(LINES.0, LINES.1);
    // Expired keys that no line has counted yet.
    let mut unreported = 0;
    loop {
        let now = Instant::now();
        let next = state.lock_at(now).next_expiry();
        match next {
            // The clock is observed while keys age; otherwise a pause of the process could go unnoticed.
            Some(at) => tokio::time::sleep_until(at.min(now + OBSERVATION_INTERVAL)).await,
            None => state.events().key_handed_out.notified().await,
        }
        let expired = expire_all(rendezvous, Instant::now()).await;
        if expired > 0 {
            state.metrics().key_events.add(KeyEvent::Expired, expired);
            unreported += expired;
            if lines.allows() {
                let expired = std::mem::take(&mut unreported);
                let seconds = KEY_LIFETIME.as_secs();
                info!(expired, "keys expired: two peers did not connect within {seconds} s");
            }
            state.events().capacity_freed.notify_one();
            state.events().departed.notify_one();
        }
    }
}

/// Removes all keys that have expired at `now`, in batches, so that other tasks get the locks and the thread in between.
/// Returns how many there were.
async fn expire_all<W>(rendezvous: &Rendezvous<W>, now: Instant) -> usize {
    let mut expired = 0;
    loop {
        let batch = rendezvous.expire_batch(now, BATCH);
        expired += batch.expired;
        if batch.is_last {
            return expired;
        }
        yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::state::keys::{KeyId, KeyUse};
    use crate::state::metrics::StateMetrics;
    use crate::state::shared::SharedState;

    /// Returns a state with a link and this many keys on offer, their numbers, and the task that expires them.
    fn offering(count: usize) -> (SharedState, Vec<KeyId>, tokio::task::JoinHandle<()>) {
        let metrics = StateMetrics::new(&prometheus::Registry::new()).unwrap();
        let state = SharedState::new(count, 0, metrics);
        state.link_up();
        let mut ids = Vec::new();
        while let Some(order) = state.order(1000, usize::MAX) {
            let keys = order.generate().unwrap();
            ids.extend(keys.iter().map(|key| key.id));
            assert!(state.offer(&order, keys));
        }
        let rendezvous: Rendezvous<()> = Rendezvous::new(state.clone());
        let task = tokio::spawn(async move { expire_keys(&rendezvous).await });
        (state, ids, task)
    }

    #[tokio::test(start_paused = true)]
    async fn expiring_thousands_of_keys_at_once_does_not_block_the_thread() {
        let (state, ids, task) = offering(20 * BATCH);
        let now = Instant::now();
        for id in &ids {
            assert_eq!(state.key_used(*id, now), KeyUse::HandedOut);
        }
        assert_eq!(state.counts().handed_out, ids.len());
        tokio::time::sleep(KEY_LIFETIME - Duration::from_millis(1)).await;
        assert_eq!(state.counts().handed_out, ids.len());
        // Another task on this thread has a turn after each batch.
        let mut seen = BTreeSet::new();
        tokio::time::sleep(Duration::from_millis(1)).await;
        while state.counts().handed_out > 0 {
            seen.insert(state.counts().handed_out);
            if seen.len() > ids.len() {
                break;
            }
            yield_now().await;
        }
        assert!(seen.len() >= 18, "{seen:?}");
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn keys_do_not_expire_while_the_process_is_stopped() {
        let (state, ids, task) = offering(1);
        state.key_used(ids[0], Instant::now());
        tokio::time::sleep(Duration::from_secs(3)).await;
        // The clock advances and nothing runs.
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(state.key(ids[0], Instant::now()).is_some());
        tokio::time::sleep(KEY_LIFETIME - Duration::from_secs(10)).await;
        assert_eq!(state.counts().handed_out, 1);
        // After it has run for the whole lifetime, the key expires.
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(state.counts().handed_out, 0);
        task.abort();
    }
}
