//! Results: all runs, medians, spread, ratios.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::load::percentile;
use crate::plot::{self, Chart};

use super::Baseline;

/// The figures of one run, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Figures(BTreeMap<&'static str, f64>);

/// Descriptions of figures for people.
const LEGEND: &str = "rate and per_cpu_s: MB (bulk), messages, or sessions a second, and for each second of CPU of the \
                      forwarder; cpu: cores; machine_…: CPU of the whole machine, the load and everything \
                      else that ran included; p50_us …: delay of events, or of a round trip; pss, files: bytes of \
                      user memory and descriptors; x25519: three operations, as many as a session needs; it / proxy: to the best of HAProxy \
                      and nginx";
/// Figures of which more is better; of all others, less is.
const MORE_IS_BETTER: [&str; 2] = ["rate", "per_cpu_s"];

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

    /// The best median of a figure among the forwarders that fit.
    fn best(&self, load: &str, figure: &str, fits: fn(Baseline) -> bool) -> Option<f64> {
        let medians = self
            .rows()
            .filter(|(row_load, who, _)| {
                *row_load == load && Baseline::named(who).is_some_and(fits)
            })
            .filter_map(|(_, _, spreads)| spreads.get(figure).map(|[_, median, _]| *median));
        if MORE_IS_BETTER.contains(&figure) {
            medians.reduce(f64::max)
        } else {
            medians.reduce(f64::min)
        }
    }

    /// The ratios of a median to that of the best proxy and to that of the floor, as far as there are any.
    fn ratios(&self, load: &str, figure: &str, median: f64) -> [Option<f64>; 2] {
        let fits: [fn(Baseline) -> bool; 2] = [Baseline::is_proxy, |it| it == Baseline::Floor];
        fits.map(|fits| Some(median / self.best(load, figure, fits)?).filter(|it| it.is_finite()))
    }

    /// A table for people: medians with their spread, the ratio of ours to each other forwarder, and the ratios of each to the
    /// best proxy and to the floor.
    pub fn table(&self) -> String {
        let mut text = format!(
            "\n{:22} {:16} {:18} {:>10}  {:>21}  {:>10}  {:>10}  {:>10}\n",
            "load",
            "forwarder",
            "figure",
            "median",
            "smallest – largest",
            "ours / it",
            "it / proxy",
            "it / floor"
        );
        for (load, who, spreads) in self.rows() {
            for (figure, [least, median, most]) in &spreads {
                let ours = self.ours.as_deref().filter(|ours| *ours != who);
                let ratio = ours
                    .and_then(|ours| self.median(load, ours, figure))
                    .map(|ours| ours / median)
                    .filter(|ratio| ratio.is_finite())
                    .map(|ratio| format!("{ratio:.3}"))
                    .unwrap_or_default();
                let [proxy, floor] = self
                    .ratios(load, figure, *median)
                    .map(|ratio| ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default());
                let range = format!("{} – {}", short(*least), short(*most));
                let _ = writeln!(
                    text,
                    "{load:22} {who:16} {figure:18} {:>10}  {range:>21}  {ratio:>10}  {proxy:>10}  {floor:>10}",
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
                    .map(|(who, runs)| (who.clone(), self.figures_json(load, runs)))
                    .collect();
                (load.clone(), forwarders.into())
            })
            .collect();
        serde_json::json!({ "ours": self.ours, "loads": loads })
    }

    /// The figures of a forwarder under a load.
    fn figures_json(&self, load: &str, runs: &[Figures]) -> serde_json::Value {
        let figures: serde_json::Map<_, _> = Self::spreads(runs)
            .into_iter()
            .map(|(figure, [least, median, most])| {
                let [proxy, floor] = self.ratios(load, figure, median);
                let figures = serde_json::json!({
                    "min": least,
                    "median": median,
                    "max": most,
                    "to_best_proxy": proxy,
                    "to_floor": floor,
                });
                (figure.to_owned(), figures)
            })
            .collect();
        figures.into()
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
        assert!(row.contains("  0.500 ") && row.contains("4.000"), "{row}");
        let json = results.json();
        assert_eq!(json["loads"]["desktop 10"]["ours"]["cpu"]["median"], 2.0);
        assert!(results.svg().contains("nginx"));
    }

    #[test]
    fn ratios_are_to_the_floor_and_to_the_best_proxy_but_the_floor_is_no_proxy() {
        let mut results = Results::new(Some("ours".into()));
        for (who, cpu, rate) in [
            ("ours", 6.0, 6.0),
            ("haproxy", 8.0, 3.0),
            ("nginx", 12.0, 4.0),
            ("copy", 1.0, 100.0),
            ("floor", 3.0, 12.0),
        ] {
            let mut figures = figures(cpu);
            figures.set("rate", rate);
            results.add("bulk 1", who, figures);
        }
        let ours = &results.json()["loads"]["bulk 1"]["ours"];
        assert_eq!(ours["cpu"]["to_best_proxy"], 0.75);
        assert_eq!(ours["cpu"]["to_floor"], 2.0);
        assert_eq!(ours["rate"]["to_best_proxy"], 1.5);
        assert_eq!(ours["rate"]["to_floor"], 0.5);
        let table = results.table();
        let row = table.lines().find(|line| line.contains("ours             cpu")).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words[words.len() - 2..], ["0.750", "2.000"]);
        let row = table.lines().find(|line| line.contains("nginx            rate")).unwrap();
        assert!(row.ends_with("     1.500       1.000       0.333"), "{row}");
    }

    #[test]
    fn nothing_is_shown_as_a_ratio_without_a_proxy_or_a_floor() {
        let mut results = Results::new(Some("ours".into()));
        results.add("idle 1", "ours", figures(1.0));
        results.add("idle 1", "floor", figures(0.0));
        assert!(!results.table().contains("inf") && !results.table().contains("NaN"));
        let cpu = &results.json()["loads"]["idle 1"]["ours"]["cpu"];
        assert!(cpu["to_best_proxy"].is_null() && cpu["to_floor"].is_null(), "{cpu}");
    }

    #[test]
    fn delays_are_shown_in_microseconds() {
        let mut figures = Figures::default();
        figures.set_delays(&mut [3_000, 1_000, 2_000]);
        assert_eq!(figures.0["p50_us"], 2.0);
        assert_eq!(figures.line(), "p50_us 2.000  p999_us 3.000  p99_us 3.000");
    }
}
