//! What the metrics of all parts are made of. Each part owns its own, in a file called `metrics`; this one knows
//! none of them.

use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The values of a label, known from the start.
pub trait Label: Copy + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// The value as it stands in the metric.
    fn name(self) -> &'static str;

    /// The place in [`Self::ALL`].
    fn index(self) -> usize;
}

/// Makes an enum whose members are the values of a label.
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

/// A counter for each value of one label. Counting takes no lock and looks nothing up.
#[derive(Debug, Clone)]
pub struct Counters<L> {
    each: Vec<IntCounter>,
    label: PhantomData<L>,
}

impl<L: Label> Counters<L> {
    /// Counts one.
    pub fn count(&self, value: L) {
        self.add(value, 1);
    }

    /// Counts several.
    pub fn add(&self, value: L, count: usize) {
        if let Some(counter) = self.each.get(value.index()) {
            counter.inc_by(count as u64);
        }
    }

    /// The count of each value, in the order of [`Label::ALL`].
    pub fn values(&self) -> impl Iterator<Item = (L, u64)> + '_ {
        L::ALL.iter().copied().zip(self.each.iter().map(IntCounter::get))
    }
}

/// Registers counters, one for each value of `label`, with 0.
///
/// # Errors
/// When the name is wrong or taken.
pub fn counters<L: Label>(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> prometheus::Result<Counters<L>> {
    let family = registered(registry, IntCounterVec::new(Opts::new(name, help), &[label])?)?;
    let each = L::ALL.iter().map(|value| family.with_label_values(&[value.name()])).collect();
    Ok(Counters { each, label: PhantomData })
}

/// Registers a counter.
///
/// # Errors
/// When the name is wrong or taken.
pub fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    registered(registry, IntCounter::new(name, help)?)
}

/// Registers a counter whose value is kept by somebody who knows nothing of metrics.
///
/// # Errors
/// When the name is wrong or taken.
pub fn counter_of(
    registry: &Registry,
    name: &str,
    help: &str,
    value: impl Fn() -> u64 + Send + Sync + 'static,
) -> prometheus::Result<()> {
    let counter = IntCounter::new(name, help)?;
    let desc = counter.desc().into_iter().cloned().collect();
    registry.register(Box::new(CounterOf { desc, counter: Mutex::new(counter), value }))
}

/// Counts up to the value whenever it is collected.
struct CounterOf<F> {
    desc: Vec<Desc>,
    /// Locked, so that two who collect at once do not both add the same.
    counter: Mutex<IntCounter>,
    value: F,
}

impl<F: Fn() -> u64 + Send + Sync> Collector for CounterOf<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.desc.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let counter = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
        counter.inc_by((self.value)().saturating_sub(counter.get()));
        counter.collect()
    }
}

/// Registers a gauge.
///
/// # Errors
/// When the name is wrong or taken.
pub fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    registered(registry, IntGauge::new(name, help)?)
}

/// Registers a histogram.
///
/// # Errors
/// When the name is wrong or taken, or the buckets do not rise.
pub fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> prometheus::Result<Histogram> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    registered(registry, Histogram::with_opts(options)?)
}

fn registered<C: Collector + Clone + 'static>(
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
        /// Three.
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
    fn every_value_is_there_from_the_start_and_counts_for_itself() {
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
