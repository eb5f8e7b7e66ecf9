//! How much a session has moved, and when it last did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::cause::PeerOrder;

/// The byte counts of a session and the time of its last byte. Only the task that forwards writes them, so that it
/// needs neither a lock nor an atomic addition.
#[derive(Debug)]
pub struct Traffic {
    started: Instant,
    /// From each peer to the other.
    bytes: [AtomicU64; 2],
    last_moved_ms: AtomicU64,
    /// When the kernel was last seen to have delivered what it could not send before.
    last_drained_ms: AtomicU64,
}

impl Traffic {
    /// Creates the traffic of a session that began at `started` and has moved `bytes` from each peer so far, if it ran elsewhere
    /// before.
    pub fn new(started: Instant, bytes: [u64; 2], last_moved: Instant) -> Self {
        let traffic = Self {
            started,
            bytes: bytes.map(AtomicU64::new),
            last_moved_ms: AtomicU64::new(0),
            last_drained_ms: AtomicU64::new(0),
        };
        traffic.note_moved(last_moved);
        traffic
    }

    fn milliseconds(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        u64::try_from(elapsed).unwrap_or(u64::MAX)
    }

    /// Records that `count` bytes of this peer reached the other at `now`. Only the session's own task may call this.
    pub fn record(&self, from: PeerOrder, count: usize, now: Instant) {
        let [first, second] = &self.bytes;
        let bytes = match from {
            PeerOrder::First => first,
            PeerOrder::Second => second,
        };
        bytes.store(bytes.load(Ordering::Relaxed) + count as u64, Ordering::Relaxed);
        self.note_moved(now);
    }

    fn note_moved(&self, now: Instant) {
        self.last_moved_ms.store(self.milliseconds(now), Ordering::Relaxed);
    }

    /// Records that a slow peer was seen at `now` to have taken bytes that the kernel held for it. The kernel accepts no
    /// more from the relay until a large part of its buffer is free, which may be minutes later.
    pub fn record_drained(&self, now: Instant) {
        self.last_drained_ms.fetch_max(self.milliseconds(now), Ordering::Relaxed);
    }

    /// Returns how many bytes have moved, in both directions together.
    pub fn bytes(&self) -> u64 {
        self.bytes_from_each().iter().sum()
    }

    /// Returns how many bytes have moved from each peer to the other, in the order in which the peers arrived.
    pub fn bytes_from_each(&self) -> [u64; 2] {
        self.bytes.each_ref().map(|bytes| bytes.load(Ordering::Relaxed))
    }

    /// Returns when bytes last moved, from one peer to the other or out of the kernel's buffers; if none have, when the session
    /// began.
    pub fn last_moved(&self) -> Instant {
        let moved = self.last_moved_ms.load(Ordering::Relaxed);
        let drained = self.last_drained_ms.load(Ordering::Relaxed);
        self.started + Duration::from_millis(moved.max(drained))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_adds_up_and_remembers_when_it_last_moved() {
        let now = Instant::now();
        let traffic = Traffic::new(now, [0, 0], now);
        assert_eq!((traffic.bytes(), traffic.last_moved()), (0, now));
        traffic.record(PeerOrder::First, 5, now + Duration::from_secs(2));
        traffic.record(PeerOrder::Second, 6, now + Duration::from_secs(3));
        assert_eq!((traffic.bytes(), traffic.last_moved()), (11, now + Duration::from_secs(3)));
        assert_eq!(traffic.bytes_from_each(), [5, 6]);
    }
}
