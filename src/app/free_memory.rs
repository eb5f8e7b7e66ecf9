//! Gives memory back to the system when many peers have gone.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval};

use crate::handle::Handle;
use crate::heap;
use crate::state::keys::StateCounts;

/// How often the relay counts what needs memory, so that a short peak is noticed, too.
const INTERVAL: Duration = Duration::from_secs(1);
/// The minimum time between two times that memory is given back. What has just been freed may be needed again.
const PAUSE: Duration = Duration::from_secs(10);
/// How many keys, or connections of peers, must have gone. They had at most 2 KiB each, so that fewer are not worth the work.
const MIN_GONE: u64 = 256;

/// Gives memory back, for ever. While peers come and go and their number stays about the same, nothing happens: what one
/// session frees, the next one uses.
pub(super) async fn run(handle: &Handle) {
    // Apart, since the key that is offered in place of a session needs far less than that did.
    let (mut peers, mut keys) = (Peak::default(), Peak::default());
    let (mut interval, mut next) = (interval(INTERVAL), Instant::now());
    loop {
        let now = interval.tick().await;
        let StateCounts { ordered, offered, handed_out, active, .. } = handle.state().counts();
        peers.note(2 * active as u64 + handle.peer_metrics().pending());
        keys.note((ordered + offered + handed_out) as u64);
        if now >= next && (peers.has_passed() || keys.has_passed()) {
            // On another thread, since it takes a while.
            let _ = spawn_blocking(heap::release_free_memory).await;
            (peers, keys) = (peers.restart(), keys.restart());
            next = now + PAUSE;
        }
    }
}

/// How many things hold memory now, and at most since memory was given back.
#[derive(Debug, Default, Clone, Copy)]
struct Peak {
    highest: u64,
    now: u64,
}

impl Peak {
    fn note(&mut self, now: u64) {
        *self = Self { highest: self.highest.max(now), now };
    }

    /// Whether the number is so far below the highest that memory should be given back.
    fn has_passed(self) -> bool {
        self.highest - self.now >= MIN_GONE.max(self.highest / 4)
    }

    /// Begins again with the present number.
    fn restart(self) -> Self {
        Self { highest: self.now, now: self.now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns at which of these numbers memory is given back.
    fn given_back_at(numbers: &[u64]) -> Vec<u64> {
        let mut peak = Peak::default();
        let passes = |number: &u64| {
            peak.note(*number);
            let has_passed = peak.has_passed();
            if has_passed {
                peak = peak.restart();
            }
            has_passed
        };
        numbers.iter().copied().filter(passes).collect()
    }

    #[test]
    fn memory_is_given_back_once_after_a_quarter_of_the_peak_has_gone() {
        assert_eq!(
            given_back_at(&[0, 8000, 6001, 6000, 6000, 7000, 5251, 5250, 0, 0]),
            [6000, 5250, 0]
        );
        // Peers that come and go.
        assert_eq!(given_back_at(&[1000, 900, 1000, 800, 1000]), [0; 0]);
    }

    #[test]
    fn memory_of_a_few_is_not_worth_giving_back() {
        assert_eq!(given_back_at(&[255, 0, 255, 0]), [0; 0]);
        assert_eq!(given_back_at(&[256, 0]), [0]);
    }
}
