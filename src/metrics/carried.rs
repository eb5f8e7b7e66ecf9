//! The counters and histograms that a relay carries over from the process before it, so that they go on instead of beginning
//! at 0.
//!
//! The process before may have run another version of the program. What this version cannot add to its own figures without
//! showing a wrong number is not shown: then the metric begins anew, which every reader of a counter understands.

use std::collections::BTreeSet;

use prometheus::proto::{Bucket, Counter, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// How the names of the metrics begin that are carried over. Those of the process (`process_*`) are its own.
const PREFIX: &str = "aspia_relay_";
/// How many series that this version does not have are kept for a version that does.
pub(crate) const MAX_FOREIGN: usize = 64;

/// Counters and histograms of earlier processes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CarriedMetrics {
    series: Vec<CarriedSeries>,
}

/// One counter or histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct CarriedSeries {
    /// The name of the metric.
    pub name: String,
    /// Names and values of its labels.
    pub labels: Vec<(String, String)>,
    /// What was counted.
    pub total: CarriedTotal,
}

/// What was counted.
#[derive(Debug, Clone, PartialEq)]
pub enum CarriedTotal {
    /// The value of a counter.
    Counter(f64),
    /// A histogram.
    Histogram(CarriedHistogram),
}

/// The state of a histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct CarriedHistogram {
    /// The upper bound of each bucket, ascending, and how many values do not exceed it.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of all values.
    pub sum: f64,
    /// The number of all values.
    pub count: u64,
}

impl CarriedMetrics {
    /// Collects series. Those that cannot be true, and all but the first of several with the same name and labels, are dropped.
    pub fn new(series: impl IntoIterator<Item = CarriedSeries>) -> Self {
        let mut known = BTreeSet::new();
        let series = series.into_iter().filter_map(|mut series| {
            series.labels.sort();
            let is_new = known.insert((series.name.clone(), series.labels.clone()));
            (is_new && series.is_plausible()).then_some(series)
        });
        Self { series: series.collect() }
    }

    /// All series.
    pub fn series(&self) -> &[CarriedSeries] {
        &self.series
    }

    /// Adds everything to the figures of this process.
    pub fn add_to(&self, families: &mut [MetricFamily]) {
        for series in &self.series {
            if let Some(family) = families.iter_mut().find(|family| family.name() == series.name) {
                series.add_to(family);
            }
        }
    }

    /// Returns what the next process carries over from this one: the sums in `families`, to which this was added, and what this
    /// version does not know.
    pub fn succeed(&self, families: &[MetricFamily]) -> Self {
        let mut series: Vec<_> = families.iter().flat_map(series_of_family).collect();
        let known: BTreeSet<_> = families
            .iter()
            .flat_map(|family| family.get_metric().iter().map(|metric| (family.name(), metric)))
            .map(|(name, metric)| (name.to_owned(), labels(metric)))
            .collect();
        let is_foreign = |series: &&CarriedSeries| {
            !known.contains(&(series.name.clone(), series.labels.clone()))
        };
        let foreign = self.series.iter().filter(is_foreign).take(MAX_FOREIGN);
        series.extend(foreign.cloned());
        Self { series }
    }

    /// Returns the value of a counter; 0 if it is not carried.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a count")]
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let matches = |series: &&CarriedSeries| {
            let own = series.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            series.name == name && own.eq(labels.iter().copied())
        };
        match self.series.iter().find(matches).map(|series| &series.total) {
            Some(CarriedTotal::Counter(value)) => *value as u64,
            _ => 0,
        }
    }
}

/// The largest count that is believed: 2⁶².
const MAX_PLAUSIBLE: f64 = (1_u64 << 62) as f64;

impl CarriedSeries {
    fn is_plausible(&self) -> bool {
        // The bound leaves room for what is added here.
        let is_sum = |value: f64| (0.0..=MAX_PLAUSIBLE).contains(&value);
        let is_ours = self.name.starts_with(PREFIX);
        is_ours
            && match &self.total {
                CarriedTotal::Counter(value) => is_sum(*value),
                CarriedTotal::Histogram(CarriedHistogram { buckets, sum, count }) => {
                    let ascends = buckets
                        .windows(2)
                        .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
                    is_sum(*sum)
                        && ascends
                        && buckets
                            .iter()
                            .all(|(bound, within)| bound.is_finite() && within <= count)
                }
            }
    }

    /// Adds this to the metric with the same labels, or shows it beside the others: a value of a label that this version does
    /// not know still counts in sums over all values.
    fn add_to(&self, family: &mut MetricFamily) {
        let first = family.get_metric().first();
        let names = |labels: &[(String, String)]| -> Vec<String> {
            labels.iter().map(|(name, _)| name.clone()).collect()
        };
        if first.is_some_and(|metric| names(&labels(metric)) != names(&self.labels)) {
            return;
        }
        let kind = family.get_field_type();
        let empty = first.map(|metric| empty_histogram(metric.get_histogram()));
        let own = family.mut_metric().iter_mut().find(|metric| labels(metric) == self.labels);
        match (&self.total, kind, own) {
            (CarriedTotal::Counter(value), MetricType::COUNTER, Some(own)) => {
                let mut counter = Counter::default();
                counter.set_value(own.get_counter().get_value() + value);
                own.set_counter(counter);
            }
            (CarriedTotal::Counter(value), MetricType::COUNTER, None) => {
                let mut counter = Counter::default();
                counter.set_value(*value);
                let mut metric = self.metric();
                metric.set_counter(counter);
                family.mut_metric().push(metric);
            }
            (CarriedTotal::Histogram(carried), MetricType::HISTOGRAM, Some(own)) => {
                if let Some(sum) = carried.add(own.get_histogram()) {
                    own.set_histogram(sum);
                }
            }
            (CarriedTotal::Histogram(carried), MetricType::HISTOGRAM, None) => {
                if let Some(histogram) = empty.and_then(|empty| carried.add(&empty)) {
                    let mut metric = self.metric();
                    metric.set_histogram(histogram);
                    family.mut_metric().push(metric);
                }
            }
            _ => {}
        }
    }

    /// A metric with these labels and no value.
    fn metric(&self) -> Metric {
        let labels = self.labels.iter().map(|(name, value)| {
            let mut label = LabelPair::default();
            label.set_name(name.clone());
            label.set_value(value.clone());
            label
        });
        let mut metric = Metric::default();
        metric.set_label(labels.collect());
        metric
    }
}

impl CarriedHistogram {
    /// Returns the sum of both, with the buckets of `own`; `None` if this histogram lacks one of them, since nobody knows how
    /// many of its values belong there.
    fn add(&self, own: &Histogram) -> Option<Histogram> {
        let buckets = own.get_bucket().iter().map(|bucket| {
            let bound = bucket.upper_bound();
            let (_, within) = self.buckets.iter().find(|(carried, _)| *carried == bound)?;
            let mut sum = Bucket::default();
            sum.set_upper_bound(bound);
            sum.set_cumulative_count(bucket.cumulative_count().saturating_add(*within));
            Some(sum)
        });
        let buckets: Option<Vec<_>> = buckets.collect();
        let mut sum = Histogram::default();
        sum.set_bucket(buckets?);
        sum.set_sample_sum(own.get_sample_sum() + self.sum);
        sum.set_sample_count(own.get_sample_count().saturating_add(self.count));
        Some(sum)
    }
}

/// A histogram with the same buckets and no value.
fn empty_histogram(like: &Histogram) -> Histogram {
    let buckets = like.get_bucket().iter().map(|bucket| {
        let mut empty = Bucket::default();
        empty.set_upper_bound(bucket.upper_bound());
        empty
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram
}

fn labels(metric: &Metric) -> Vec<(String, String)> {
    let pair = |label: &LabelPair| (label.name().to_owned(), label.value().to_owned());
    let mut labels: Vec<_> = metric.get_label().iter().map(pair).collect();
    labels.sort();
    labels
}

/// The series of a family that are to be carried over: those that have counted something.
fn series_of_family(family: &MetricFamily) -> Vec<CarriedSeries> {
    let total = |metric: &Metric| match family.get_field_type() {
        MetricType::COUNTER => {
            let value = metric.get_counter().get_value();
            (value > 0.0).then_some(CarriedTotal::Counter(value))
        }
        MetricType::HISTOGRAM => {
            let histogram = metric.get_histogram();
            let buckets = histogram.get_bucket().iter();
            let carried = CarriedHistogram {
                buckets: buckets
                    .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
                    .filter(|(bound, _)| bound.is_finite())
                    .collect(),
                sum: histogram.get_sample_sum(),
                count: histogram.get_sample_count(),
            };
            (carried.count > 0).then_some(CarriedTotal::Histogram(carried))
        }
        _ => None,
    };
    if !family.name().starts_with(PREFIX) {
        return Vec::new();
    }
    let series = family.get_metric().iter().filter_map(|metric| {
        let name = family.name().to_owned();
        Some(CarriedSeries { name, labels: labels(metric), total: total(metric)? })
    });
    series.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};
    use proptest::prelude::*;

    const BUCKETS: [f64; 3] = [1.0, 2.0, 4.0];
    const VALUES: [&str; 3] = ["a", "b", "c"];

    /// The metrics of one process.
    struct Process {
        registry: Registry,
        counters: IntCounterVec,
        histograms: HistogramVec,
        carried: CarriedMetrics,
    }

    impl Process {
        fn start(carried: CarriedMetrics, buckets: &[f64]) -> Self {
            let registry = Registry::new();
            let options = Opts::new("aspia_relay_x_total", "help");
            let counters = IntCounterVec::new(options, &["which"]).unwrap();
            let options = HistogramOpts::new("aspia_relay_x_seconds", "help");
            let histograms = HistogramVec::new(options.buckets(buckets.to_vec()), &["which"]);
            let histograms = histograms.unwrap();
            let gauge = IntGauge::new("aspia_relay_x", "help").unwrap();
            gauge.set(7);
            registry.register(Box::new(counters.clone())).unwrap();
            registry.register(Box::new(histograms.clone())).unwrap();
            registry.register(Box::new(gauge)).unwrap();
            for value in VALUES {
                counters.with_label_values(&[value]);
                histograms.with_label_values(&[value]);
            }
            Self { registry, counters, histograms, carried }
        }

        fn gather(&self) -> Vec<MetricFamily> {
            let mut families = self.registry.gather();
            self.carried.add_to(&mut families);
            families
        }

        fn hand_over(self) -> CarriedMetrics {
            self.carried.succeed(&self.gather())
        }
    }

    fn counter(name: &str, value: &str, count: f64) -> CarriedSeries {
        let labels = vec![("which".to_owned(), value.to_owned())];
        CarriedSeries { name: name.to_owned(), labels, total: CarriedTotal::Counter(count) }
    }

    fn histogram(buckets: &[(f64, u64)], sum: f64, count: u64) -> CarriedSeries {
        let total = CarriedHistogram { buckets: buckets.to_vec(), sum, count };
        CarriedSeries {
            total: CarriedTotal::Histogram(total),
            ..counter("aspia_relay_x_seconds", "a", 0.0)
        }
    }

    /// Every figure that only grows: of counters, and of each bucket, sum and count of histograms.
    fn figures(families: &[MetricFamily]) -> Vec<f64> {
        let mut figures = Vec::new();
        for family in families {
            for metric in family.get_metric() {
                let histogram = metric.get_histogram();
                figures.push(metric.get_counter().get_value());
                figures.push(histogram.get_sample_sum());
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                figures.extend(
                    histogram
                        .get_bucket()
                        .iter()
                        .map(Bucket::cumulative_count)
                        .chain([histogram.get_sample_count()])
                        .map(|count| count as f64),
                );
            }
        }
        figures
    }

    proptest! {
        /// Whatever is counted, and wherever it is divided among processes: no figure goes back, and the last process shows
        /// what a single one would.
        #[test]
        fn figures_of_many_processes_add_up(
            processes in prop::collection::vec(
                prop::collection::vec((0..3_usize, 0..6_u32), 0..12), 1..6
            )
        ) {
            let single = Process::start(CarriedMetrics::default(), &BUCKETS);
            let mut current = Process::start(CarriedMetrics::default(), &BUCKETS);
            let mut before = figures(&current.gather());
            for events in processes {
                for (which, seconds) in events {
                    for process in [&single, &current] {
                        process.counters.with_label_values(&[VALUES[which]]).inc();
                        let histogram = process.histograms.with_label_values(&[VALUES[which]]);
                        histogram.observe(f64::from(seconds));
                    }
                }
                current = Process::start(current.hand_over(), &BUCKETS);
                let now = figures(&current.gather());
                prop_assert_eq!(now.len(), before.len());
                prop_assert!(now.iter().zip(&before).all(|(now, before)| now >= before));
                before = now;
            }
            prop_assert_eq!(before, figures(&single.gather()));
        }
    }

    #[test]
    fn gauges_and_metrics_of_the_process_are_not_carried() {
        let process = Process::start(CarriedMetrics::default(), &BUCKETS);
        let other = IntCounterVec::new(Opts::new("process_x_total", "help"), &[]).unwrap();
        process.registry.register(Box::new(other.clone())).unwrap();
        other.with_label_values::<&str>(&[]).inc();
        process.counters.with_label_values(&["b"]).inc_by(3);
        let carried = process.hand_over();
        assert_eq!(carried, CarriedMetrics::new([counter("aspia_relay_x_total", "b", 3.0)]));
        assert_eq!(carried.count("aspia_relay_x_total", &[("which", "b")]), 3);
        assert_eq!(carried.count("aspia_relay_x_total", &[("which", "a")]), 0);
    }

    #[test]
    fn what_another_version_counted_is_kept_for_it() {
        let foreign = [
            counter("aspia_relay_removed_total", "a", 5.0),
            counter("aspia_relay_x_total", "unknown", 2.0),
        ];
        let process = Process::start(CarriedMetrics::new(foreign.clone()), &BUCKETS);
        let families = process.gather();
        assert!(families.iter().all(|family| family.name() != "aspia_relay_removed_total"));
        // A value of a label that this version does not know counts in the sum over all of them.
        let family = families.iter().find(|family| family.name() == "aspia_relay_x_total").unwrap();
        assert_eq!(
            family.get_metric().iter().map(|m| m.get_counter().get_value()).sum::<f64>(),
            2.0
        );
        let mut kept = process.hand_over().series().to_vec();
        kept.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(kept, foreign);
    }

    #[test]
    fn foreign_series_do_not_pile_up() {
        let many = (0..1000).map(|n| counter("aspia_relay_removed_total", &n.to_string(), 1.0));
        let process = Process::start(CarriedMetrics::new(many), &BUCKETS);
        assert_eq!(process.hand_over().series().len(), MAX_FOREIGN);
    }

    #[test]
    fn other_labels_types_and_buckets_are_never_added() {
        let mut other_labels = counter("aspia_relay_x_total", "a", 5.0);
        other_labels.labels.push(("more".to_owned(), "x".to_owned()));
        let mut other_type = histogram(&[(1.0, 1)], 1.0, 1);
        other_type.name = "aspia_relay_x_total".to_owned();
        let gauge = CarriedSeries { labels: Vec::new(), ..counter("aspia_relay_x", "", 5.0) };
        let other_buckets = histogram(&[(1.0, 1), (3.0, 2), (4.0, 2)], 5.0, 3);
        let fresh = Process::start(CarriedMetrics::default(), &BUCKETS).gather();
        for series in [other_labels, other_type, gauge, other_buckets] {
            let process = Process::start(CarriedMetrics::new([series.clone()]), &BUCKETS);
            assert_eq!(process.gather(), fresh, "{series:?}");
        }
    }

    #[test]
    fn coarser_buckets_take_over_from_finer_ones() {
        let finer = histogram(&[(1.0, 1), (2.0, 3), (4.0, 4)], 9.0, 5);
        let process = Process::start(CarriedMetrics::new([finer]), &[2.0]);
        process.histograms.with_label_values(&["a"]).observe(1.5);
        let expected = CarriedMetrics::new([histogram(&[(2.0, 4)], 10.5, 6)]);
        assert_eq!(process.hand_over(), expected);
    }

    #[test]
    fn impossible_figures_are_dropped() {
        for series in [
            counter("aspia_relay_x_total", "a", -1.0),
            counter("aspia_relay_x_total", "a", f64::NAN),
            counter("aspia_relay_x_total", "a", f64::INFINITY),
            counter("process_cpu_seconds_total", "a", 1.0),
            histogram(&[(1.0, 2), (2.0, 1), (4.0, 2)], 1.0, 2),
            histogram(&[(2.0, 1), (1.0, 1), (4.0, 2)], 1.0, 2),
            histogram(&[(1.0, 1), (2.0, 1), (4.0, 3)], 1.0, 2),
            histogram(&[(f64::NAN, 1)], 1.0, 2),
            histogram(&[], -1.0, 2),
        ] {
            assert_eq!(
                CarriedMetrics::new([series.clone()]),
                CarriedMetrics::default(),
                "{series:?}"
            );
        }
        let twice = [1.0, 2.0].map(|count| counter("aspia_relay_x_total", "a", count));
        assert_eq!(CarriedMetrics::new(twice.clone()).series(), &twice[..1]);
        // Numbers at their limits are added without a panic.
        let process = Process::start(
            CarriedMetrics::new([histogram(&[(1.0, 1), (2.0, 1), (4.0, u64::MAX)], 1.0, u64::MAX)]),
            &BUCKETS,
        );
        process.histograms.with_label_values(&["a"]).observe(0.5);
        process.gather();
    }
}
