//! How often each address may connect: the generic cell rate algorithm over a table that does not grow without a bound.

use std::collections::HashMap;
use std::num::NonZero;
use std::ops::Add;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use super::origin::Origin;

/// Addresses that are remembered at once. About 3 MiB, and more than come in a minute unless somebody has a whole network.
const MAX_ORIGINS: usize = 64 * 1024;
/// How often a full table is looked through for those that have kept quiet for long enough.
const CLEANING: Duration = Duration::from_secs(1);

/// The limit of one setting. Starts anew where the setting changes.
#[derive(Debug)]
pub(super) struct ConnectRate {
    rate: NonZero<u32>,
    limiter: RateLimiter<Origin, Table, RuntimeClock, NoOpMiddleware<Moment>>,
    /// When the table was last cleaned.
    cleaned: Instant,
}

impl ConnectRate {
    /// So many connections a minute, and as many at once.
    pub(super) fn new(rate: NonZero<u32>) -> Self {
        let limiter = RateLimiter::new(Quota::per_minute(rate), Table::default(), RuntimeClock);
        Self { rate, limiter, cleaned: Instant::now() }
    }

    /// The setting.
    pub(super) fn rate(&self) -> NonZero<u32> {
        self.rate
    }

    /// Whether one more from there is within the limit. Where the table is full of others, an address that is not in
    /// it is let in: whoever fills it must not shut out everybody else, and other limits hold all the same.
    pub(super) fn allows(&mut self, origin: Origin) -> bool {
        if self.limiter.len() >= MAX_ORIGINS && self.cleaned.elapsed() >= CLEANING {
            self.limiter.retain_recent();
            self.cleaned = Instant::now();
        }
        self.limiter.check_key(&origin).is_ok()
    }
}

/// The runtime's clock, which tests stop.
#[derive(Debug, Clone, Copy)]
struct RuntimeClock;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(Instant);

impl Clock for RuntimeClock {
    type Instant = Moment;

    fn now(&self) -> Moment {
        Moment(Instant::now())
    }
}

impl Add<Nanos> for Moment {
    type Output = Self;

    fn add(self, nanos: Nanos) -> Self {
        Self(self.0 + Duration::from(nanos))
    }
}

impl Reference for Moment {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_duration_since(earlier.0).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Self(self.0.checked_sub(duration.into()).unwrap_or(self.0))
    }
}

/// What the algorithm remembers of each address: until when what has come is paid for.
#[derive(Debug, Default)]
struct Table(Mutex<HashMap<Origin, Nanos>>);

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<Origin, Nanos>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateStore for Table {
    type Key = Origin;

    fn measure_and_replace<T, F, E>(&self, origin: &Origin, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut table = self.lock();
        let known = table.get(origin).copied();
        let (decision, paid) = decide(known)?;
        if known.is_some() || table.len() < MAX_ORIGINS {
            table.insert(*origin, paid);
        }
        Ok(decision)
    }
}

impl ShrinkableKeyedStateStore<Origin> for Table {
    fn retain_recent(&self, drop_below: Nanos) {
        self.lock().retain(|_, paid| *paid > drop_below);
    }

    fn shrink_to_fit(&self) {
        self.lock().shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.lock().len()
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
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
    async fn as_many_at_once_as_a_minute_and_then_evenly() {
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
    async fn a_full_table_shuts_nobody_out_and_forgets_those_that_keep_quiet() {
        let mut rate = rate(2);
        let all = u32::try_from(MAX_ORIGINS).unwrap();
        for number in 0..all {
            assert!(rate.allows(origin(number)));
        }
        assert_eq!(rate.limiter.len(), MAX_ORIGINS);
        // Who came late is not remembered; who was there is limited as ever.
        for _ in 0..100 {
            assert!(rate.allows(origin(all + 1)));
        }
        assert!(rate.allows(origin(0)) && !rate.allows(origin(0)));
        assert_eq!(rate.limiter.len(), MAX_ORIGINS);
        advance(Duration::from_secs(121)).await;
        assert!(rate.allows(origin(all + 1)));
        // It, and perhaps the one that came twice, of which the algorithm is not sure yet.
        assert!(rate.limiter.len() <= 2, "{}", rate.limiter.len());
    }
}
