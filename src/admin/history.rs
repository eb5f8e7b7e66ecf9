//! The last minutes: bytes moved and connections refused in each interval.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use crate::handle::Handle;
use crate::metrics::Label;
use crate::peer::metrics::Connection;

/// Length of an interval.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// Intervals kept: five minutes.
const KEPT: usize = 60;

/// What was counted up to a moment.
#[derive(Debug, Clone, Default)]
struct Reading {
    bytes: u64,
    /// In the order of [`Connection::ALL`].
    connections: Vec<u64>,
}

/// The readings of the last minutes, oldest first.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<VecDeque<Reading>>);

/// The last minutes as they are shown.
#[derive(Debug)]
pub(super) struct Recent {
    /// Bytes moved in each interval, oldest first.
    pub(super) bytes: Vec<u64>,
    /// Connections of each outcome in all of these intervals together.
    pub(super) connections: Vec<(Connection, u64)>,
}

impl History {
    /// Takes a reading in every interval, for ever.
    pub(super) async fn keep(&self, handle: &Handle) {
        let mut timer = interval(INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let handle = handle.clone();
            // It looks at all sessions: on a thread that does not forward.
            let Ok(reading) = spawn_blocking(move || read(&handle)).await else {
                continue;
            };
            let mut readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            readings.push_back(reading);
            // One more than intervals: each lies between two.
            if readings.len() > KEPT + 1 {
                readings.pop_front();
            }
        }
    }

    /// What is known of the last minutes, up to now for connections.
    pub(super) fn recent(&self, handle: &Handle) -> Recent {
        let readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = readings
            .iter()
            .zip(readings.iter().skip(1))
            .map(|(before, after)| after.bytes.saturating_sub(before.bytes))
            .collect();
        let none = Vec::new();
        let before = readings.front().map_or(&none, |reading| &reading.connections);
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

fn read(handle: &Handle) -> Reading {
    let (_, bytes) = handle.state().refresh_metrics();
    let connections = handle.peer_metrics().connections().values().map(|(_, n)| n).collect();
    Reading { bytes, connections }
}
