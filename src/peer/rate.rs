//! Limits how often each address may connect: the generic cell rate algorithm over a table of bounded size.

use std::collections::HashMap;
use std::num::NonZero;
use std::ops::Add;
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::origin::Origin;

/// The maximum number of addresses that are remembered at once. They take about 3 MiB, and are more than connect in a minute,
/// unless an attacker has a whole network.
const MAX_ORIGINS: usize = 64 * 1024;
/// How often a full table is searched for addresses that can be forgotten.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(1);

/// The limit for one value of the setting. A new value starts with an empty table.
#[derive(Debug)]
pub(super) struct ConnectRate {
    rate: NonZero<u32>,
    limiter: RateLimiter<Origin, RateTable, RuntimeClock, NoOpMiddleware<RuntimeInstant>>,
    /// When the table was last cleaned up.
    cleaned: Instant,
}

impl ConnectRate {
    /// Allows `rate` connections a minute, and as many at once.
    pub(super) fn new(rate: NonZero<u32>) -> Self {
        let limiter = RateLimiter::new(Quota::per_minute(rate), RateTable::default(), RuntimeClock);
        Self { rate, limiter, cleaned: Instant::now() }
    }

    /// Returns the value of the setting.
    pub(super) fn rate(&self) -> NonZero<u32> {
        self.rate
    }

    /// Whether one more connection from `origin` is within the limit. When the table is full, an address that is not in it is
    /// allowed: an attacker who fills the table must not shut out everybody else, and the other limits still hold.
    pub(super) fn allows(&mut self, origin: Origin) -> bool {
        if self.limiter.len() >= MAX_ORIGINS && self.cleaned.elapsed() >= CLEANUP_INTERVAL {
            self.limiter.retain_recent();
            self.cleaned = Instant::now();
        }
        self.limiter.check_key(&origin).is_ok()
    }
}

/// The clock of the runtime, which tests can stop.
#[derive(Debug, Clone, Copy)]
struct RuntimeClock;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct RuntimeInstant(Instant);

impl Clock for RuntimeClock {
    type Instant = RuntimeInstant;

    fn now(&self) -> RuntimeInstant {
        RuntimeInstant(Instant::now())
    }
}

impl Add<Nanos> for RuntimeInstant {
    type Output = Self;

    fn add(self, nanos: Nanos) -> Self {
        Self(self.0 + Duration::from(nanos))
    }
}

impl Reference for RuntimeInstant {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_duration_since(earlier.0).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Self(self.0.checked_sub(duration.into()).unwrap_or(self.0))
    }
}

/// What the algorithm remembers of each address: its theoretical arrival time.
#[derive(Debug, Default)]
struct RateTable(Mutex<HashMap<Origin, Nanos>>);

impl StateStore for RateTable {
    type Key = Origin;

    fn measure_and_replace<T, F, E>(&self, origin: &Origin, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut table = self.0.lock();
        let known = table.get(origin).copied();
        let (decision, arrival) = decide(known)?;
        if known.is_some() || table.len() < MAX_ORIGINS {
            table.insert(*origin, arrival);
        }
        Ok(decision)
    }
}

impl ShrinkableKeyedStateStore<Origin> for RateTable {
    fn retain_recent(&self, drop_below: Nanos) {
        self.0.lock().retain(|_, arrival| *arrival > drop_below);
    }

    fn shrink_to_fit(&self) {
        self.0.lock().shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.0.lock().len()
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use tokio::time::advance;

    fn origin(number: u32) -> Origin {
        IpAddr::from(number.to_be_bytes()).into()
    }

    fn rate(rate: u32) -> ConnectRate {
        ConnectRate::new(NonZero::new(rate).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn burst_of_one_minute_is_allowed_and_then_an_even_rate() {
        let mut rate = rate(60);
        let mut burst = || (0..1000).filter(|_| rate.allows(origin(1))).count();
        assert_eq!(burst(), 60);
        advance(Duration::from_secs(10)).await;
        assert_eq!(burst(), 10);
        advance(Duration::from_secs(600)).await;
        assert_eq!(burst(), 60);
        assert!(rate.allows(origin(2)), "another address is another limit");
    }

    #[tokio::test(start_paused = true)]
    async fn full_table_admits_new_addresses_and_forgets_quiet_ones() {
        let mut rate = rate(2);
        let all = u32::try_from(MAX_ORIGINS).unwrap();
        for number in 0..all {
            assert!(rate.allows(origin(number)));
        }
        assert_eq!(rate.limiter.len(), MAX_ORIGINS);
        // A new address is not remembered; those in the table are limited as before.
        for _ in 0..100 {
            assert!(rate.allows(origin(all + 1)));
        }
        assert!(rate.allows(origin(0)) && !rate.allows(origin(0)));
        assert_eq!(rate.limiter.len(), MAX_ORIGINS);
        advance(Duration::from_secs(121)).await;
        assert!(rate.allows(origin(all + 1)));
        // What remains is this address, and perhaps the address that connected twice, which the algorithm may not forget yet.
        assert!(rate.limiter.len() <= 2, "{}", rate.limiter.len());
    }
}
