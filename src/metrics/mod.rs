//! Building blocks for metrics. Modules define their metrics with them, most in a file `metrics.rs` of their own.

pub mod carried;

use std::marker::PhantomData;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// A metric label whose values are known in advance.
pub trait Label: Copy + 'static {
    /// All values.
    const ALL: &'static [Self];

    /// Returns the value as it appears in the metric.
    fn name(self) -> &'static str;

    /// Returns the index of the value in [`Self::ALL`].
    fn index(self) -> usize;
}

/// Defines an enum whose variants are the values of a label.
macro_rules! labels {
    ($(#[$about:meta])* $visible:vis enum $name:ident {
        $($(#[$doc:meta])* $member:ident = $text:literal,)+
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $visible enum $name {
            $($(#[$doc])* $member,)+
        }

        impl $crate::metrics::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$member),+];

            fn name(self) -> &'static str {
                match self {
                    $(Self::$member => $text,)+
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(crate) use labels;

/// A counter for each value of one label. Counting needs neither a lock nor a lookup.
#[derive(Debug, Clone)]
pub struct Counters<L> {
    each: Vec<IntCounter>,
    label: PhantomData<L>,
}

impl<L: Label> Counters<L> {
    /// Adds one to the counter of a value.
    pub fn count(&self, value: L) {
        self.add(value, 1);
    }

    /// Adds to the counter of a value.
    pub fn add(&self, value: L, count: usize) {
        if let Some(counter) = self.each.get(value.index()) {
            counter.inc_by(count as u64);
        }
    }

    /// Returns the count of each value, in the order of [`Label::ALL`].
    pub fn values(&self) -> impl Iterator<Item = (L, u64)> + '_ {
        L::ALL.iter().copied().zip(self.each.iter().map(IntCounter::get))
    }
}

/// Registers counters, one for each value of `label`, that start at 0.
///
/// # Errors
/// The name is invalid or already registered.
pub fn counters<L: Label>(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> prometheus::Result<Counters<L>> {
    let family = register(registry, IntCounterVec::new(Opts::new(name, help), &[label])?)?;
    let each = L::ALL.iter().map(|value| family.with_label_values(&[value.name()])).collect();
    Ok(Counters { each, label: PhantomData })
}

/// Registers a counter.
///
/// # Errors
/// The name is invalid or already registered.
pub fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::new(name, help)?)
}

/// Registers a counter whose value comes from a function that is called whenever metrics are gathered.
///
/// # Errors
/// The name is invalid or already registered.
pub fn counter_from_fn(
    registry: &Registry,
    name: &str,
    help: &str,
    value: impl Fn() -> u64 + Send + Sync + 'static,
) -> prometheus::Result<()> {
    let counter = IntCounter::new(name, help)?;
    let desc = counter.desc().into_iter().cloned().collect();
    registry.register(Box::new(FnCounter { desc, counter: Mutex::new(counter), value }))
}

/// A counter that catches up with the value of its function whenever it is collected.
struct FnCounter<F> {
    desc: Vec<Desc>,
    /// Locked, so that two concurrent collections do not both add the same difference.
    counter: Mutex<IntCounter>,
    value: F,
}

impl<F: Fn() -> u64 + Send + Sync> Collector for FnCounter<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.desc.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let counter = self.counter.lock();
        counter.inc_by((self.value)().saturating_sub(counter.get()));
        counter.collect()
    }
}

/// Registers a gauge.
///
/// # Errors
/// The name is invalid or already registered.
pub fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register(registry, IntGauge::new(name, help)?)
}

/// Registers a gauge for a number that is not an integer.
///
/// # Errors
/// The name is invalid or already registered.
pub fn ratio_gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<Gauge> {
    register(registry, Gauge::new(name, help)?)
}

/// Registers a histogram.
///
/// # Errors
/// The name is invalid or already registered, or the buckets are not in ascending order.
pub fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> prometheus::Result<Histogram> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(registry, Histogram::with_opts(options)?)
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use super::*;

    labels! {
        /// Three values.
        enum Number {
            /// 1
            One = "one",
            /// 2
            Two = "two",
            /// 3
            Three = "three",
        }
    }

    #[test]
    fn every_label_value_is_registered_and_counted_separately() {
        let registry = Registry::new();
        let counters = counters::<Number>(&registry, "x_total", "help", "which").unwrap();
        let family = &registry.gather()[0];
        assert_eq!(family.get_metric().len(), 3);
        counters.count(Number::Two);
        counters.add(Number::Three, 5);
        let values: Vec<_> = counters.values().map(|(value, n)| (value.name(), n)).collect();
        assert_eq!(values, [("one", 0), ("two", 1), ("three", 5)]);
    }
}
