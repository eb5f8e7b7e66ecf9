//! The history of the last minutes: bytes forwarded and connections by outcome.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use crate::handle::Handle;
use crate::metrics::Label;
use crate::peer::metrics::PeerOutcome;

/// Length of an interval.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// The number of intervals that are kept: five minutes.
const MAX_INTERVALS: usize = 60;

/// The counters at one moment.
#[derive(Debug, Clone, Default)]
struct Sample {
    bytes: u64,
    /// In the order of [`PeerOutcome::ALL`].
    connections: Vec<u64>,
}

/// The samples of the last minutes, the oldest first.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<VecDeque<Sample>>);

/// The last minutes as [`super::status::Status`] shows them.
#[derive(Debug)]
pub(super) struct Recent {
    /// Bytes forwarded in each interval, the oldest first.
    pub(super) bytes: Vec<u64>,
    /// Connections of each outcome over all these intervals.
    pub(super) connections: Vec<(PeerOutcome, u64)>,
}

impl History {
    /// Takes a sample in every interval, for ever.
    pub(super) async fn keep_sampling(&self, handle: &Handle) {
        let mut timer = interval(INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let handle = handle.clone();
            // Counting the bytes looks at all sessions, so it runs on a thread that does not forward.
            let Ok(sample) = spawn_blocking(move || take_sample(&handle)).await else {
                continue;
            };
            let mut samples = self.0.lock();
            samples.push_back(sample);
            // One more than there are intervals, since each lies between two samples.
            if samples.len() > MAX_INTERVALS + 1 {
                samples.pop_front();
            }
        }
    }

    /// The last minutes; connections are counted up to this moment.
    pub(super) fn recent(&self, handle: &Handle) -> Recent {
        let samples = self.0.lock();
        let bytes = samples
            .iter()
            .zip(samples.iter().skip(1))
            .map(|(before, after)| after.bytes.saturating_sub(before.bytes))
            .collect();
        let none = Vec::new();
        let before = samples.front().map_or(&none, |sample| &sample.connections);
        let counters = handle.peer_metrics().connections();
        let connections = counters
            .values()
            .map(|(outcome, count)| {
                let before = before.get(outcome.index()).copied().unwrap_or(0);
                (outcome, count.saturating_sub(before))
            })
            .collect();
        Recent { bytes, connections }
    }
}

fn take_sample(handle: &Handle) -> Sample {
    let (_, bytes) = handle.state().refresh_metrics();
    let connections = handle.peer_metrics().connections().values().map(|(_, n)| n).collect();
    Sample { bytes, connections }
}
