//! Results: all runs, medians, spread, ratios.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::load::percentile;

use crate::plot::{self, Chart};

/// The figures of one run, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Figures(BTreeMap<&'static str, f64>);

/// Descriptions of figures for people.
const LEGEND: &str = "rate and per_cpu_s: MB (bulk), messages, or sessions a second, and for each second of CPU of the \
                      forwarder; cpu: cores; p50_us …: delay of events, or of a round trip; pss, files: bytes of \
                      user memory and descriptors; x25519: three operations, as many as a session needs";

impl Figures {
    pub(super) fn set(&mut self, name: &'static str, value: f64) {
        self.0.insert(name, value);
    }

    /// Adds delays, given in nanoseconds.
    pub(super) fn set_delays(&mut self, delays: &mut [u64]) {
        delays.sort_unstable();
        for (name, part) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
            if let Some(delay) = percentile(delays, part) {
                self.set(name, delay as f64 / 1e3);
            }
        }
    }

    pub(super) fn line(&self) -> String {
        self.0
            .iter()
            .map(|(name, value)| format!("{name} {}", short(*value)))
            .collect::<Vec<_>>()
            .join("  ")
    }
}

/// Formats with four significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// The smallest, the median and the largest of some values.
fn spread(values: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = match sorted.len() {
        0 => return None,
        even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    };
    Some([sorted[0], median, sorted[sorted.len() - 1]])
}

/// Named entries in the order of insertion.
type Named<T> = Vec<(String, T)>;

/// All runs of a benchmark.
#[derive(Debug, Default)]
pub struct Results {
    ours: Option<String>,
    /// Loads in the order in which they ran; for each, forwarders in their order.
    runs: Named<Named<Vec<Figures>>>,
}

impl Results {
    pub(super) fn new(ours: Option<String>) -> Self {
        Self { ours, ..Self::default() }
    }

    pub(super) fn add(&mut self, load: &str, who: &str, figures: Figures) {
        let forwarders = entry(&mut self.runs, load);
        entry(forwarders, who).push(figures);
    }

    /// Smallest, median and largest of each figure of a forwarder under a load.
    fn spreads(runs: &[Figures]) -> BTreeMap<&'static str, [f64; 3]> {
        let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for (name, value) in runs.iter().flat_map(|run| &run.0) {
            values.entry(name).or_default().push(*value);
        }
        values.into_iter().filter_map(|(name, values)| Some((name, spread(&values)?))).collect()
    }

    /// Each load with each forwarder and its spreads.
    fn rows(&self) -> impl Iterator<Item = (&str, &str, BTreeMap<&'static str, [f64; 3]>)> {
        self.runs.iter().flat_map(|(load, forwarders)| {
            forwarders
                .iter()
                .map(move |(who, runs)| (load.as_str(), who.as_str(), Self::spreads(runs)))
        })
    }

    /// The median of a figure.
    fn median(&self, load: &str, who: &str, figure: &str) -> Option<f64> {
        self.rows()
            .find(|(row_load, row_who, _)| *row_load == load && *row_who == who)
            .and_then(|(_, _, spreads)| spreads.get(figure).map(|[_, median, _]| *median))
    }

    /// A table for people: medians with their spread, and the ratio of ours to each other forwarder.
    pub fn table(&self) -> String {
        let mut text = format!(
            "\n{:22} {:16} {:16} {:>10}  {:>21}  {:>10}\n",
            "load", "forwarder", "figure", "median", "smallest – largest", "ours / it"
        );
        for (load, who, spreads) in self.rows() {
            for (figure, [least, median, most]) in &spreads {
                let ours = self.ours.as_deref().filter(|ours| *ours != who);
                let ratio = ours
                    .and_then(|ours| self.median(load, ours, figure))
                    .map(|ours| format!("{:.3}", ours / median))
                    .unwrap_or_default();
                let range = format!("{} – {}", short(*least), short(*most));
                let _ = writeln!(
                    text,
                    "{load:22} {who:16} {figure:16} {:>10}  {range:>21}  {ratio:>10}",
                    short(*median)
                );
            }
        }
        let _ = writeln!(text, "\n{LEGEND}");
        text
    }

    /// JSON for programs.
    pub fn json(&self) -> serde_json::Value {
        let loads: serde_json::Map<_, _> = self
            .runs
            .iter()
            .map(|(load, forwarders)| {
                let forwarders: serde_json::Map<_, _> = forwarders
                    .iter()
                    .map(|(who, runs)| {
                        let figures: serde_json::Map<_, _> = Self::spreads(runs)
                            .into_iter()
                            .map(|(figure, [least, median, most])| {
                                let figures = serde_json::json!({ "min": least, "median": median, "max": most });
                                (figure.to_owned(), figures)
                            })
                            .collect();
                        (who.clone(), figures.into())
                    })
                    .collect();
                (load.clone(), forwarders.into())
            })
            .collect();
        serde_json::json!({ "ours": self.ours, "loads": loads })
    }

    /// Two charts of the desktop load: p99 of the delay, and CPU, by the number of sessions.
    pub fn svg(&self) -> String {
        let series = |figure: &str| {
            let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
            for (load, who, spreads) in self.rows() {
                let sessions = load.strip_prefix("desktop ").and_then(|n| n.parse().ok());
                if let (Some(sessions), Some([_, median, _])) = (sessions, spreads.get(figure)) {
                    series.entry(who.to_owned()).or_default().push((sessions, *median));
                }
            }
            series
        };
        plot::svg(&[
            Chart::new("p99 of the delay of events, microseconds", series("p99_us")),
            Chart::new("CPU of the forwarder, cores", series("cpu")),
        ])
    }
}

/// The entry of a name; a new one goes to the end.
fn entry<'a, T: Default>(list: &'a mut Named<T>, name: &str) -> &'a mut T {
    let at = list.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
        list.push((name.to_owned(), T::default()));
        list.len() - 1
    });
    &mut list[at].1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(value: f64) -> Figures {
        let mut figures = Figures::default();
        figures.set("cpu", value);
        figures
    }

    #[test]
    fn medians_and_ratios() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some([1.0, 2.0, 3.0]));
        assert_eq!(spread(&[4.0, 1.0]), Some([1.0, 2.5, 4.0]));
        assert_eq!(spread(&[]), None);
        let mut results = Results::new(Some("ours".into()));
        for value in [1.0, 2.0, 9.0] {
            results.add("desktop 10", "ours", figures(value));
            results.add("desktop 10", "nginx", figures(2.0 * value));
        }
        let table = results.table();
        let row = table.lines().find(|line| line.contains("nginx")).unwrap();
        assert!(row.ends_with("0.500") && row.contains("4.000"), "{row}");
        let json = results.json();
        assert_eq!(json["loads"]["desktop 10"]["ours"]["cpu"]["median"], 2.0);
        assert!(results.svg().contains("nginx"));
    }

    #[test]
    fn delays_are_shown_in_microseconds() {
        let mut figures = Figures::default();
        figures.set_delays(&mut [3_000, 1_000, 2_000]);
        assert_eq!(figures.0["p50_us"], 2.0);
        assert_eq!(figures.line(), "p50_us 2.000  p999_us 3.000  p99_us 3.000");
    }
}
