//! Which sessions come when: drawn from a seed, so that two runs get the same load.

use std::time::Duration;

use crate::traffic::Stream;

/// Round trips per second of a session by its weight, and the part of the sessions with it, in percent.
const WEIGHTS: [(u32, u64); 4] = [(4, 50), (16, 30), (40, 15), (100, 5)];
/// Bytes of a message.
const SIZES: [usize; 3] = [64, 512, 4096];
/// Duration of a session, in milliseconds.
const SHORTEST: u64 = 10_000;
pub(super) const LONGEST: u64 = 40_000;

/// A session that is to come.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arrival {
    /// Since the start of the load.
    pub(super) at: Duration,
    /// When it ends, since the start of the load.
    pub(super) until: Duration,
    /// Round trips per second.
    pub(super) rate: f64,
    /// Bytes of a message, each way.
    pub(super) size: usize,
}

/// Draws the sessions of a run of `time`: `per_minute` arrivals each minute, with `load` times the usual rates.
pub(super) fn draw(seed: u64, time: Duration, per_minute: u32, load: f64) -> Vec<Arrival> {
    let mut dice = Stream::new(seed);
    let mut below = |limit: u64| {
        let mut bytes = [0; 8];
        dice.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit
    };
    let count = time.as_secs() * u64::from(per_minute) / 60;
    let interval = Duration::from_secs(60) / per_minute;
    (0..u32::try_from(count).unwrap_or(u32::MAX))
        .map(|number| {
            let at = interval * number;
            let length = Duration::from_millis(SHORTEST + below(LONGEST - SHORTEST + 1));
            let mut drawn = below(100);
            let weight = WEIGHTS.iter().find(|(_, part)| {
                let is_it = drawn < *part;
                drawn = drawn.saturating_sub(*part);
                is_it
            });
            let rate = load * f64::from(weight.map_or(WEIGHTS[0].0, |(rate, _)| *rate));
            let size = SIZES[usize::try_from(below(SIZES.len() as u64)).unwrap_or(0)];
            Arrival { at, until: (at + length).min(time), rate, size }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_draws_the_same_sessions_of_unequal_weight() {
        let time = Duration::from_secs(500);
        let drawn = draw(1, time, 120, 0.5);
        assert_eq!(drawn, draw(1, time, 120, 0.5));
        assert_ne!(drawn, draw(2, time, 120, 0.5));
        assert_eq!(drawn.len(), 1000);
        assert!(drawn.iter().all(|one| one.until > one.at && one.until <= time));
        for (rate, percent) in WEIGHTS {
            let count = drawn.iter().filter(|one| one.rate == 0.5 * f64::from(rate)).count() as u64;
            assert!(count > percent * 5 && count < percent * 20, "{count} with {rate}");
        }
        let spacing: Vec<_> = drawn.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
        assert!(spacing.iter().all(|gap| *gap == Duration::from_millis(500)));
    }
}
