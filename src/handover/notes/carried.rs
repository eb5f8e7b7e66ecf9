//! The part of the note of the counters that holds what the next relay continues with: metrics, and the log level if it was set
//! while the relay ran.

use prost::Message;

use crate::log::ChangedFilter;
use crate::metrics::carried::{CarriedHistogram, CarriedMetrics, CarriedSeries, CarriedTotal};

/// What the next relay continues with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CarriedOver {
    /// Counters and histograms.
    pub metrics: CarriedMetrics,
    /// The log level, if it was set while the relay ran.
    pub log: Option<ChangedFilter>,
    /// The version of the program that wrote this.
    pub version: String,
}

/// The message of [`CarriedOver`].
#[derive(Clone, PartialEq, Message)]
pub struct CarriedMessage {
    #[prost(message, repeated, tag = "1")]
    series: Vec<SeriesMessage>,
    #[prost(message, optional, tag = "2")]
    log: Option<LogMessage>,
    #[prost(string, tag = "3")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct SeriesMessage {
    #[prost(string, tag = "1")]
    name: String,
    /// Names and values of labels, in turn.
    #[prost(string, repeated, tag = "2")]
    labels: Vec<String>,
    /// The value of a counter.
    #[prost(double, optional, tag = "3")]
    counter: Option<f64>,
    #[prost(message, optional, tag = "4")]
    histogram: Option<HistogramMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct HistogramMessage {
    #[prost(double, repeated, tag = "1")]
    bounds: Vec<f64>,
    /// How many values each bucket holds, without those of the buckets before it.
    #[prost(uint64, repeated, tag = "2")]
    counts: Vec<u64>,
    #[prost(double, tag = "3")]
    sum: f64,
    #[prost(uint64, tag = "4")]
    count: u64,
}

#[derive(Clone, PartialEq, Message)]
struct LogMessage {
    #[prost(string, tag = "1")]
    configured: String,
    #[prost(string, tag = "2")]
    filter: String,
}

impl CarriedOver {
    /// Creates what this version of the program hands on.
    pub fn new(metrics: CarriedMetrics, log: Option<ChangedFilter>) -> Self {
        Self { metrics, log, version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// Returns the message.
    pub fn to_message(&self) -> CarriedMessage {
        CarriedMessage {
            series: self.metrics.series().iter().map(SeriesMessage::of).collect(),
            log: self.log.as_ref().map(|ChangedFilter { configured, filter }| LogMessage {
                configured: configured.clone(),
                filter: filter.clone(),
            }),
            version: self.version.clone(),
        }
    }

    /// Reads a message. Series that make no sense are left out: they are not worth losing anything else.
    pub fn from_message(message: CarriedMessage) -> Self {
        let CarriedMessage { series, log, version } = message;
        Self {
            metrics: CarriedMetrics::new(series.into_iter().filter_map(SeriesMessage::read)),
            log: log.map(|LogMessage { configured, filter }| ChangedFilter { configured, filter }),
            version,
        }
    }
}

impl SeriesMessage {
    fn of(series: &CarriedSeries) -> Self {
        let CarriedSeries { name, labels, total } = series;
        let (counter, histogram) = match total {
            CarriedTotal::Counter(value) => (Some(*value), None),
            CarriedTotal::Histogram(histogram) => (None, Some(HistogramMessage::of(histogram))),
        };
        let labels = labels.iter().flat_map(|(name, value)| [name.clone(), value.clone()]);
        Self { name: name.clone(), labels: labels.collect(), counter, histogram }
    }

    fn read(self) -> Option<CarriedSeries> {
        let Self { name, labels, counter, histogram } = self;
        let total = match (counter, histogram) {
            (Some(value), None) => CarriedTotal::Counter(value),
            (None, Some(histogram)) => CarriedTotal::Histogram(histogram.read()?),
            _ => return None,
        };
        let (pairs, []) = labels.as_chunks::<2>() else {
            return None;
        };
        let labels = pairs.iter().map(|[name, value]| (name.clone(), value.clone())).collect();
        Some(CarriedSeries { name, labels, total })
    }
}

impl HistogramMessage {
    fn of(histogram: &CarriedHistogram) -> Self {
        let mut before = 0;
        let counts = histogram.buckets.iter().map(|(_, within)| {
            let count = within.saturating_sub(before);
            before = *within;
            count
        });
        Self {
            counts: counts.collect(),
            bounds: histogram.buckets.iter().map(|(bound, _)| *bound).collect(),
            sum: histogram.sum,
            count: histogram.count,
        }
    }

    fn read(self) -> Option<CarriedHistogram> {
        let Self { bounds, counts, sum, count } = self;
        if bounds.len() != counts.len() {
            return None;
        }
        let mut within = 0_u64;
        let buckets = bounds.into_iter().zip(counts).map(|(bound, count)| {
            within = within.checked_add(count)?;
            Some((bound, within))
        });
        Some(CarriedHistogram { buckets: buckets.collect::<Option<_>>()?, sum, count })
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use crate::forward::metrics::ForwardMetrics;
    use crate::metrics::carried::MAX_FOREIGN;
    use crate::peer::metrics::PeerMetrics;
    use crate::router::metrics::RouterMetrics;
    use crate::state::metrics::StateMetrics;

    use super::*;

    fn counter(name: &str, labels: &[(&str, &str)], value: f64) -> CarriedSeries {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        CarriedSeries {
            name: name.to_owned(),
            labels: labels.iter().map(owned).collect(),
            total: CarriedTotal::Counter(value),
        }
    }

    fn histogram(buckets: &[(f64, u64)], sum: f64, count: u64) -> CarriedSeries {
        let total = CarriedHistogram { buckets: buckets.to_vec(), sum, count };
        CarriedSeries {
            total: CarriedTotal::Histogram(total),
            ..counter("aspia_relay_session_bytes", &[], 0.0)
        }
    }

    fn example() -> CarriedOver {
        CarriedOver {
            metrics: CarriedMetrics::new([
                counter("aspia_relay_bytes_total", &[], 1_234_567_890_123.0),
                counter("aspia_relay_sessions_total", &[("end", "closed")], 3.0),
                histogram(&[(1024.0, 1), (8192.0, 1), (65536.0, 3)], 70_000.5, 4),
            ]),
            log: Some(ChangedFilter { configured: "info".into(), filter: "debug".into() }),
            version: "2.1.0".into(),
        }
    }

    #[test]
    fn what_is_carried_over_is_read_again() {
        for carried in [example(), CarriedOver::default()] {
            let bytes = carried.to_message().encode_to_vec();
            let message = CarriedMessage::decode(&bytes[..]).unwrap();
            assert_eq!(CarriedOver::from_message(message), carried);
        }
    }

    #[test]
    fn recorded_note_is_understood() {
        let recorded = include_str!("../../../tests/vectors/handover/carried.hex").trim();
        let bytes = hex::decode(recorded).unwrap();
        let message = CarriedMessage::decode(&bytes[..]).unwrap();
        assert_eq!(CarriedOver::from_message(message), example());
        assert_eq!(hex::encode(example().to_message().encode_to_vec()), recorded);
    }

    /// The longest series of this name and these labels, with as many buckets as there are bounds.
    fn longest(name: &str, labels: &[(&str, &str)], bounds: Option<&[f64]>) -> CarriedSeries {
        let Some(bounds) = bounds else { return counter(name, labels, 1e15) };
        let buckets: Vec<_> =
            (1..).zip(bounds).map(|(number, bound)| (*bound, number << 50)).collect();
        CarriedSeries {
            total: histogram(&buckets, 1e15, u64::MAX).total,
            ..counter(name, labels, 0.0)
        }
    }

    #[test]
    fn longest_note_fits_into_the_store() {
        let registry = Registry::new();
        let _ = StateMetrics::new(&registry).unwrap();
        let _ = PeerMetrics::new(&registry).unwrap();
        let _ = RouterMetrics::new(&registry).unwrap();
        let _ = ForwardMetrics::new(&registry).unwrap();
        let mut series = Vec::new();
        for family in &registry.gather() {
            for metric in family.get_metric() {
                let labels: Vec<_> =
                    metric.get_label().iter().map(|label| (label.name(), label.value())).collect();
                let buckets = metric.get_histogram().get_bucket().iter();
                let bounds: Vec<_> = buckets.map(|bucket| bucket.upper_bound()).collect();
                let bounds = (!bounds.is_empty()).then_some(&bounds[..]);
                series.push(longest(family.name(), &labels, bounds));
            }
        }
        assert!(series.len() > 40, "{}", series.len());
        // As many as are kept for other versions, each as long as any.
        let bounds: Vec<f64> = (1..=13).map(f64::from).collect();
        series.extend((0..MAX_FOREIGN).map(|number| {
            let name = format!("aspia_relay_of_another_version_{number}_seconds");
            longest(&name, &[("outcome", "unknown")], Some(&bounds))
        }));
        let log = ChangedFilter { configured: "x".repeat(1024), filter: "x".repeat(1024) };
        let carried = CarriedOver::new(CarriedMetrics::new(series), Some(log));
        let length = carried.to_message().encoded_len();
        // The store takes notes of 64 KiB.
        assert!(length < 48 * 1024, "{length}");
    }

    #[test]
    fn series_that_make_no_sense_are_left_out() {
        let good = SeriesMessage::of(&counter("aspia_relay_bytes_total", &[], 1.0));
        let both = SeriesMessage { histogram: Some(HistogramMessage::default()), ..good.clone() };
        let neither = SeriesMessage { counter: None, ..good.clone() };
        let odd = SeriesMessage { labels: vec!["end".into()], ..good.clone() };
        let with = |histogram| SeriesMessage { histogram: Some(histogram), ..neither.clone() };
        let uneven = HistogramMessage { bounds: vec![1.0], ..HistogramMessage::default() };
        let huge = HistogramMessage {
            bounds: vec![1.0, 2.0],
            counts: vec![u64::MAX, 1],
            count: u64::MAX,
            ..HistogramMessage::default()
        };
        let series = vec![both, neither.clone(), odd, with(uneven), with(huge), good];
        let carried = CarriedOver::from_message(CarriedMessage { series, ..Default::default() });
        assert_eq!(carried.metrics.series(), [counter("aspia_relay_bytes_total", &[], 1.0)]);
    }
}
