//! Averages of the load, and what follows from them for the keys on offer.
//!
//! Load is averaged exponentially over [`TIME_CONSTANT`], by the time that has passed and not by the number of measurements.
//! An average lags behind by its time constant. Steering by a value that lags makes relays overshoot: all new sessions go
//! where the average has not yet seen the last ones. Therefore the number of sessions is averaged exactly as the load is, and
//! both lag equally: their quotient, what one session costs, does not lag as long as the cost stays the same. The load is
//! corrected by that cost for the sessions that began or ended since the average.

use std::time::Duration;

use tokio::time::Instant;

use crate::state::offer::{OfferPlan, Places};

use super::resources::{Resource, ResourceUse};

/// Longer than a burst of a desktop session (a screen that is redrawn, a file of some MiB), so that one does not move new
/// sessions elsewhere and back. Short enough that a changed load is known to 95 % after 15 s (three time constants), so that
/// relays agree well within a minute. The lag itself does not matter for new sessions, which are added at once.
pub const TIME_CONSTANT: Duration = Duration::from_secs(5);
/// What one session costs is not known from few sessions, since the load has other causes too (the memory of the program, the
/// neighbours in the control group). So the load is divided by no fewer sessions than this share of the capacity, or 50.
const MIN_SESSIONS_SHARE: f64 = 0.05;
/// See [`MIN_SESSIONS_SHARE`].
const MIN_SESSIONS: f64 = 50.0;

/// The averages of the load of a relay.
#[derive(Debug, Clone, Default)]
pub struct LoadAverage {
    at: Option<Instant>,
    /// The average of [`Places::used`].
    sessions: f64,
    used: ResourceUse,
}

/// What is left of the scarcest resource.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Headroom {
    /// From 0 (nothing is left) to 1.
    pub ratio: f64,
    /// The scarcest resource; `None` if none was measured.
    pub scarcest: Option<Resource>,
}

impl LoadAverage {
    /// Takes a measurement into account. A resource that was not measured now does not count, whatever it was before.
    pub fn add(&mut self, now: Instant, measured: &ResourceUse, places: Places) {
        let weight = self.at.map_or(1.0, |at| weight(now.saturating_duration_since(at)));
        self.at = Some(now);
        let sessions = to_f64(places.used);
        self.sessions += weight * (sessions - self.sessions);
        for resource in Resource::ALL {
            let average = &mut self.used[resource];
            *average = measured[resource].map(|value| {
                // One that is measured for the first time has no past.
                average.map_or(value, |average| average + weight * (value - average))
            });
        }
    }

    /// Returns the average use of each resource.
    pub fn used(&self) -> &ResourceUse {
        &self.used
    }

    /// Returns what is left with the sessions that there are now.
    pub fn headroom(&self, places: Places) -> Headroom {
        let expected = Resource::ALL.into_iter().filter_map(|resource| {
            let used = self.used[resource]?;
            let more = to_f64(places.used) - self.sessions;
            Some((resource, used + more * self.session_cost(used, places.capacity)))
        });
        match expected.max_by(|a, b| a.1.total_cmp(&b.1)) {
            None => Headroom { ratio: 1.0, scarcest: None },
            Some((resource, used)) => {
                Headroom { ratio: (1.0 - used).clamp(0.0, 1.0), scarcest: Some(resource) }
            }
        }
    }

    /// Returns how to offer keys from now on.
    pub fn plan(&self, places: Places) -> OfferPlan {
        let Headroom { ratio, scarcest } = self.headroom(places);
        let used = scarcest.and_then(|resource| self.used[resource]).unwrap_or(0.0);
        OfferPlan {
            headroom: ratio,
            used: places.used,
            session_cost: self.session_cost(used, places.capacity),
        }
    }

    /// Returns what one session takes of a resource that is used this much.
    fn session_cost(&self, used: f64, capacity: usize) -> f64 {
        let fewest = (to_f64(capacity) * MIN_SESSIONS_SHARE).clamp(1.0, MIN_SESSIONS);
        used / self.sessions.max(fewest)
    }
}

/// Returns how much a measurement counts that was made this long after the one before.
fn weight(elapsed: Duration) -> f64 {
    -(-elapsed.as_secs_f64() / TIME_CONSTANT.as_secs_f64()).exp_m1()
}

#[expect(clippy::cast_precision_loss, reason = "numbers of sessions are far below 2^52")]
fn to_f64(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn cpu(used: f64) -> ResourceUse {
        ResourceUse { cpu: Some(used), ..ResourceUse::default() }
    }

    fn close(left: f64, right: f64) {
        assert!((left - right).abs() < 0.005, "{left} {right}");
    }

    #[test]
    fn average_depends_on_the_time_and_not_on_the_number_of_measurements() {
        let start = Instant::now();
        let places = Places { capacity: 100, used: 0 };
        let run = |step: Duration| {
            let mut average = LoadAverage::default();
            average.add(start, &cpu(0.0), places);
            let mut now = start;
            while now < start + 10 * SECOND {
                now += step;
                average.add(now, &cpu(1.0), places);
            }
            average.used().cpu.unwrap()
        };
        close(run(SECOND), run(SECOND / 10));
        close(run(10 * SECOND), 1.0 - (-2.0f64).exp());
    }

    #[test]
    fn short_burst_hardly_changes_the_headroom() {
        let mut now = Instant::now();
        let places = Places { capacity: 1000, used: 100 };
        let mut average = LoadAverage::default();
        average.add(now, &cpu(0.2), places);
        for used in [1.0, 0.2] {
            now += SECOND / 2;
            average.add(now, &cpu(used), places);
        }
        let headroom = average.headroom(places);
        assert!((0.7..0.8).contains(&headroom.ratio), "{headroom:?}");
        assert_eq!(headroom.scarcest, Some(Resource::Cpu));
    }

    /// Sessions of the same cost keep arriving. The average alone would lag behind by 5 s, in which 250 of them began.
    #[test]
    fn headroom_does_not_lag_behind_sessions_of_equal_cost() {
        let mut now = Instant::now();
        let mut average = LoadAverage::default();
        for used in (0..800).step_by(50) {
            now += SECOND;
            let places = Places { capacity: 1000, used };
            average.add(now, &cpu(0.001 * to_f64(used)), places);
            if used > 200 {
                close(average.headroom(places).ratio, 1.0 - 0.001 * to_f64(used));
                close(average.plan(places).session_cost, 0.001);
                assert!(average.used().cpu.unwrap() < 0.001 * to_f64(used) - 0.1);
            }
        }
    }

    #[test]
    fn scarcest_resource_counts_and_unmeasured_ones_do_not() {
        let places = Places { capacity: 100, used: 10 };
        let mut average = LoadAverage::default();
        assert_eq!(average.headroom(places), Headroom { ratio: 1.0, scarcest: None });
        let now = Instant::now();
        let all = ResourceUse {
            cpu: Some(0.1),
            bandwidth: Some(0.7),
            descriptors: Some(0.2),
            memory: Some(0.3),
        };
        average.add(now, &all, places);
        let headroom = average.headroom(places);
        close(headroom.ratio, 0.3);
        assert_eq!(headroom.scarcest, Some(Resource::Bandwidth));
        // The limit was removed.
        average.add(now + SECOND, &ResourceUse { bandwidth: None, ..all }, places);
        let headroom = average.headroom(places);
        close(headroom.ratio, 0.7);
        assert_eq!(headroom.scarcest, Some(Resource::Memory));
    }

    #[test]
    fn load_without_sessions_does_not_make_the_first_session_expensive() {
        let places = Places { capacity: 1000, used: 0 };
        let mut average = LoadAverage::default();
        average.add(Instant::now(), &cpu(0.5), places);
        let plan = average.plan(places);
        close(plan.session_cost, 0.01);
        assert_eq!(plan.target(places, 1000), 88);
    }
}
