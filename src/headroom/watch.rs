//! The task that measures the load, and makes the keys on offer follow it.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Gauge, Registry};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::warn;

use crate::config::Config;
use crate::metrics::ratio_gauge;
use crate::state::shared::SharedState;

use super::average::{Headroom, LoadAverage};
use super::machine;
use super::resources::{MeasureResources, ResourceUse};

/// How often the load is measured: often enough for its [average](super::average::TIME_CONSTANT), and seldom enough to cost
/// nothing.
const PERIOD: Duration = Duration::from_secs(1);

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadReading {
    /// What is left of the scarcest resource.
    pub headroom: Headroom,
    /// The average use of each resource.
    pub used: ResourceUse,
}

impl Default for LoadReading {
    /// What is assumed before anything was measured.
    fn default() -> Self {
        Self { headroom: Headroom { ratio: 1.0, scarcest: None }, used: ResourceUse::default() }
    }
}

/// Measures the load, and makes the keys on offer follow it if `OfferByLoad` says so.
pub struct LoadWatch {
    state: SharedState,
    config: watch::Receiver<Arc<Config>>,
    meter: Box<dyn MeasureResources>,
    average: LoadAverage,
    readings: watch::Sender<LoadReading>,
    gauge: Gauge,
}

impl LoadWatch {
    /// Creates the task with what `meter` measures, for the first time here, and registers its metric.
    ///
    /// # Errors
    /// The name of the metric is already registered.
    pub fn new(
        state: SharedState,
        config: watch::Receiver<Arc<Config>>,
        meter: Box<dyn MeasureResources>,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let gauge = ratio_gauge(
            registry,
            "aspia_relay_headroom_ratio",
            "What is left of the scarcest of CPU, bandwidth, descriptors and memory: 1 is all, 0 is nothing.",
        )?;
        let (average, readings) = (LoadAverage::default(), watch::Sender::default());
        let mut watch = Self { state, config, meter, average, readings, gauge };
        // Before the link is up: keys that are on offer cannot be withdrawn.
        watch.measure(Instant::now());
        watch.apply();
        Ok(watch)
    }

    /// Returns a receiver of what is measured.
    pub fn subscribe(&self) -> watch::Receiver<LoadReading> {
        self.readings.subscribe()
    }

    /// Measures for ever. Says once what this system does not report.
    pub async fn run(mut self) {
        if let Some(warning) = machine::unmeasured_warning(&self.config.borrow()) {
            warn!("{warning}");
        }
        let mut ticks = interval_at(Instant::now() + PERIOD, PERIOD);
        // After a pause of the process, one measurement of all that time.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.measure(Instant::now()),
                Ok(()) = self.config.changed() => {}
            }
            self.apply();
        }
    }

    fn measure(&mut self, now: Instant) {
        let places = self.state.counts().places();
        let measured = self.meter.measure(now);
        self.average.add(now, &measured, places);
        let headroom = self.average.headroom(places);
        self.gauge.set(headroom.ratio);
        self.readings.send_replace(LoadReading { headroom, used: *self.average.used() });
    }

    /// Tells the state how many keys to keep on offer. If `OfferByLoad` was turned off, one for each free place again.
    fn apply(&mut self) {
        let follows_load = self.config.borrow_and_update().offer_by_load;
        let plan = follows_load.then(|| self.average.plan(self.state.counts().places()));
        self.state.set_offer_plan(plan);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::sleep;

    use super::*;
    use crate::config::testing::config;
    use crate::state::keys::StateCounts;
    use crate::state::metrics::StateMetrics;

    /// Measures what the test says, in percent.
    struct FakeMeter(Arc<AtomicU32>);

    impl MeasureResources for FakeMeter {
        fn measure(&mut self, _now: Instant) -> ResourceUse {
            let used = f64::from(self.0.load(Ordering::Relaxed)) / 100.0;
            ResourceUse { cpu: Some(used), memory: Some(0.1), ..ResourceUse::default() }
        }
    }

    /// Orders and offers all keys that are missing, as the Router link does.
    fn top_up(state: &SharedState) -> StateCounts {
        while let Some(order) = state.order(64, usize::MAX) {
            let keys = order.generate().unwrap();
            assert!(state.offer(&order, keys));
        }
        state.counts()
    }

    fn follow(setting: &str) -> Arc<Config> {
        Arc::new(config(&[("MAX_PEER_COUNT", "100"), ("OFFER_BY_LOAD", setting)]))
    }

    #[tokio::test(start_paused = true)]
    async fn keys_on_offer_follow_the_load_until_the_setting_is_turned_off() {
        let registry = Registry::new();
        let state = SharedState::new(100, 0, StateMetrics::new(&registry).unwrap());
        let settings = watch::Sender::new(follow("true"));
        let used = Arc::new(AtomicU32::new(100));
        let meter = Box::new(FakeMeter(used.clone()));
        let load = LoadWatch::new(state.clone(), settings.subscribe(), meter, &registry).unwrap();
        let readings = load.subscribe();
        let gauge = load.gauge.clone();
        state.link_up();
        // Nothing is left: the keys of the base stay on offer.
        assert_eq!(top_up(&state).offered, 40);
        let task = tokio::spawn(load.run());
        assert_eq!(gauge.get(), 0.0);
        assert_eq!(readings.borrow().used.memory, Some(0.1));
        // Much is left again.
        used.store(20, Ordering::Relaxed);
        sleep(60 * PERIOD).await;
        assert_eq!(top_up(&state).offered, 88);
        assert!((gauge.get() - 0.8).abs() < 0.01, "{}", gauge.get());
        // Keys cannot be withdrawn.
        used.store(90, Ordering::Relaxed);
        sleep(60 * PERIOD).await;
        assert_eq!(top_up(&state).offered, 88);
        // At once, and not with the next measurement.
        settings.send_replace(follow("false"));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(top_up(&state).offered, 100);
        assert!((gauge.get() - 0.1).abs() < 0.01, "{}", gauge.get());
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn link_is_told_when_more_keys_may_be_offered() {
        let registry = Registry::new();
        let state = SharedState::new(100, 0, StateMetrics::new(&registry).unwrap());
        let settings = watch::Sender::new(follow("true"));
        let meter = Box::new(FakeMeter(Arc::default()));
        let load = LoadWatch::new(state.clone(), settings.subscribe(), meter, &registry).unwrap();
        let task = tokio::spawn(load.run());
        tokio::time::timeout(10 * PERIOD, state.capacity_freed()).await.unwrap();
        task.abort();
    }
}
