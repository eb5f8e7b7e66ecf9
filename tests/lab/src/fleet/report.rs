//! What a run has recorded: the rows of its table, the summary, JSON, charts and the verdict.

use std::collections::BTreeMap;
use std::io;

use serde_json::{Value, json};

use crate::plot::{Chart, Series};

/// A relay at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    /// CPU time since its start, in seconds.
    pub(super) cpu: f64,
    /// Part of its CPU quota in use since the sample before, from 0 to 1.
    pub(super) share: f64,
    /// How long it waited for its quota since its start, in seconds.
    pub(super) throttled: f64,
    pub(super) sessions: u64,
    /// Keys on offer at the Router.
    pub(super) keys: usize,
    /// `aspia_relay_headroom_ratio`, if the relay has it and answered.
    pub(super) headroom: Option<f64>,
}

/// All relays at one moment; `None` for one that does not run.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Seconds since the start of the load.
    pub(super) at: f64,
    pub(super) relays: Vec<Option<Figures>>,
    pub(super) lost: u64,
    pub(super) refused: u64,
}

/// What became of the sessions.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcomes {
    pub(super) opened: u64,
    pub(super) finished: u64,
    pub(super) round_trips: u64,
    /// By relay and reason: sessions that ended early.
    pub(super) lost: BTreeMap<(usize, String), u64>,
    /// Sessions that never began, by reason.
    pub(super) refused: BTreeMap<String, u64>,
}

/// The results of a run.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) offer_by_load: bool,
    /// CPU quotas in cores.
    pub(super) quotas: Vec<f64>,
    /// Index of the relay that was killed.
    pub(super) killed: usize,
    /// Seconds between which the shares are compared.
    pub(super) window: (f64, f64),
    /// What happened when.
    pub(super) events: Vec<(f64, String)>,
    pub(super) samples: Vec<Sample>,
    pub(super) outcomes: Outcomes,
    /// CPU that the laboratory itself used, in cores.
    pub(super) laboratory: f64,
    /// Relays that ended by themselves, or badly.
    pub(super) faults: Vec<String>,
}

/// The relay's name for people.
pub(super) fn name(index: usize) -> String {
    format!("relay {}", index + 1)
}

/// The heading of the table.
pub(super) fn heading(quotas: &[f64]) -> String {
    let mut text = "     s".to_owned();
    for (index, quota) in quotas.iter().enumerate() {
        let title = format!("{} ({:.0} %)", name(index), quota * 100.0);
        text += &format!(" | {title:^24}");
    }
    text += " |  lost refused\n      ";
    for _ in quotas {
        text += " |  load sessions keys left";
    }
    text + " |"
}

impl Sample {
    /// A row of the table; see [`heading`].
    pub(super) fn row(&self) -> String {
        let mut text = format!("{:>6.0}", self.at);
        for relay in &self.relays {
            text += &match relay {
                None => format!(" | {:^24}", "-"),
                Some(figures) => format!(
                    " | {:>3.0} % {:>8} {:>4} {:>4}",
                    figures.share * 100.0,
                    figures.sessions,
                    figures.keys,
                    figures.headroom.map_or("-".to_owned(), |left| format!("{left:.2}")),
                ),
            };
        }
        text + &format!(" | {:>5} {:>7}", self.lost, self.refused)
    }
}

impl Report {
    /// The mean share of its quota that each relay used between the samples of the window.
    fn shares(&self) -> Vec<(usize, f64)> {
        let (from, to) = self.window;
        let inside = || self.samples.iter().filter(|sample| sample.at >= from && sample.at <= to);
        let (Some(first), Some(last)) = (inside().next(), inside().next_back()) else {
            return Vec::new();
        };
        let seconds = last.at - first.at;
        let share = |(index, quota): (usize, &f64)| {
            let (begin, end) = (first.relays.get(index)?.as_ref()?, last.relays[index].as_ref()?);
            (seconds > 0.0).then(|| (index, (end.cpu - begin.cpu) / seconds / quota))
        };
        self.quotas.iter().enumerate().filter_map(share).collect()
    }

    /// The relay with the largest share, the one with the smallest, and their ratio.
    fn extremes(&self) -> Option<[(usize, f64); 2]> {
        let shares = self.shares();
        let largest = shares.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        let smallest = shares.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some([*largest, *smallest])
    }

    /// The largest share of a quota in use, divided by the smallest.
    pub(super) fn ratio(&self) -> Option<f64> {
        self.extremes().filter(|[_, (_, least)]| *least > 0.0).map(|[most, least]| most.1 / least.1)
    }

    /// How many sessions were lost, in all and at relays other than the one that was killed.
    fn lost(&self) -> (u64, u64) {
        let lost = &self.outcomes.lost;
        let others = lost.iter().filter(|((relay, _), _)| *relay != self.killed);
        (lost.values().sum(), others.map(|(_, count)| count).sum())
    }

    /// A summary for people.
    pub(super) fn text(&self) -> String {
        let state = if self.offer_by_load { "on" } else { "off" };
        let mut text = format!("OfferByLoad     {state}\n");
        for (at, what) in &self.events {
            text += &format!("event           {what} at {at:.0} s\n");
        }
        let (from, to) = self.window;
        match self.extremes() {
            None => text += "share of quota  not measured: no samples in the window\n",
            Some([(most, largest), (least, smallest)]) => {
                let ratio = self.ratio().map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
                text += &format!(
                    "share of quota  from {from:.0} to {to:.0} s: largest {:.0} % ({}), smallest {:.0} % ({}), ratio {ratio}\n",
                    largest * 100.0,
                    name(most),
                    smallest * 100.0,
                    name(least)
                );
            }
        }
        let outcomes = &self.outcomes;
        let (lost, others) = self.lost();
        text += &format!(
            "sessions        {} opened, {} ended in order, {lost} lost ({others} not at {}), {} refused; {} round trips\n",
            outcomes.opened,
            outcomes.finished,
            name(self.killed),
            outcomes.refused.values().sum::<u64>(),
            outcomes.round_trips
        );
        for ((relay, why), count) in &outcomes.lost {
            text += &format!("lost            {count} at {}: {why}\n", name(*relay));
        }
        for (why, count) in &outcomes.refused {
            text += &format!("refused         {count}: {why}\n");
        }
        text + &format!("laboratory      {:.2} cores\n", self.laboratory)
    }

    /// JSON for programs.
    pub(super) fn json(&self) -> Value {
        let outcomes = &self.outcomes;
        let lost = outcomes.lost.iter().map(
            |((relay, why), count)| json!({ "relay": relay + 1, "why": why, "sessions": count }),
        );
        let figures = |figures: &Option<Figures>| {
            figures.map(|figures| {
                json!({
                    "share": figures.share,
                    "cpu_seconds": figures.cpu,
                    "throttled_seconds": figures.throttled,
                    "sessions": figures.sessions,
                    "keys": figures.keys,
                    "headroom": figures.headroom,
                })
            })
        };
        let samples = self.samples.iter().map(|sample| {
            json!({
                "second": sample.at,
                "lost": sample.lost,
                "refused": sample.refused,
                "relays": sample.relays.iter().map(figures).collect::<Vec<_>>(),
            })
        });
        let shares = self.shares().into_iter();
        json!({
            "offer_by_load": self.offer_by_load,
            "quotas": self.quotas,
            "killed": self.killed + 1,
            "window": [self.window.0, self.window.1],
            "shares": shares.map(|(relay, share)| json!({ "relay": relay + 1, "share": share })).collect::<Vec<_>>(),
            "ratio": self.ratio(),
            "events": self.events.iter().map(|(at, what)| json!({ "second": at, "what": what })).collect::<Vec<_>>(),
            "opened": outcomes.opened,
            "finished": outcomes.finished,
            "round_trips": outcomes.round_trips,
            "lost": lost.collect::<Vec<_>>(),
            "refused": outcomes.refused,
            "laboratory_cores": self.laboratory,
            "faults": self.faults,
            "samples": samples.collect::<Vec<_>>(),
        })
    }

    /// Charts over time, for [`crate::plot::svg`].
    pub(super) fn charts(&self) -> Vec<Chart> {
        let state = if self.offer_by_load { "on" } else { "off" };
        let lines = |of: fn(&Figures) -> Option<f64>| {
            let mut series = Series::new();
            for (index, quota) in self.quotas.iter().enumerate() {
                let points = self.samples.iter().filter_map(|sample| {
                    let figures = sample.relays.get(index)?.as_ref()?;
                    Some((sample.at, of(figures)?))
                });
                let title = format!("{} ({:.0} %)", name(index), quota * 100.0);
                series.insert(title, points.collect());
            }
            series
        };
        let total = |of: fn(&Sample) -> u64| -> Vec<(f64, f64)> {
            self.samples.iter().map(|sample| (sample.at, of(sample) as f64)).collect()
        };
        let losses = [("lost", total(|one| one.lost)), ("refused", total(|one| one.refused))];
        let losses = losses.map(|(name, points)| (name.to_owned(), points)).into();
        [
            ("CPU quota in use, in %", lines(|one| Some(one.share * 100.0))),
            ("sessions", lines(|one| Some(one.sessions as f64))),
            ("keys on offer", lines(|one| Some(one.keys as f64))),
            ("aspia_relay_headroom_ratio", lines(|one| one.headroom)),
            ("sessions lost and refused so far", losses),
        ]
        .map(|(title, series)| {
            let title = format!("{title} (OfferByLoad {state}), by seconds");
            Chart::new(title, series).with_marks(self.events.clone())
        })
        .into()
    }

    /// Whether no session was lost other than those of the relay that was killed.
    ///
    /// # Errors
    /// What did not hold.
    pub(super) fn verdict(&self) -> io::Result<()> {
        let mut faults = self.faults.clone();
        let (_, others) = self.lost();
        if others > 0 {
            faults.push(format!("{others} sessions lost at relays that had not failed"));
        }
        if self.outcomes.finished == 0 {
            faults.push("no session ended in order".to_owned());
        }
        if faults.is_empty() { Ok(()) } else { Err(io::Error::other(faults.join("; "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(cpu: f64) -> Option<Figures> {
        Some(Figures { cpu, share: 0.5, sessions: 3, keys: 7, ..Figures::default() })
    }

    /// Relays with quotas of 0.1 and 0.2 cores; the second one is killed.
    fn report() -> Report {
        let sample = |at, one, other| Sample { at, relays: vec![one, other], lost: 2, refused: 1 };
        let mut outcomes = Outcomes { opened: 9, finished: 7, ..Outcomes::default() };
        outcomes.lost.insert((1, "the Host: reset".into()), 2);
        outcomes.refused.insert("no keys".into(), 1);
        Report {
            offer_by_load: true,
            quotas: vec![0.1, 0.2],
            killed: 1,
            window: (60.0, 90.0),
            events: vec![(90.0, "relay 2 is killed".into())],
            samples: vec![
                sample(50.0, figures(0.0), figures(0.0)),
                sample(60.0, figures(1.0), figures(2.0)),
                sample(70.0, figures(1.2), figures(3.0)),
                sample(80.0, figures(1.4), figures(3.6)),
                sample(95.0, figures(9.0), None),
            ],
            outcomes,
            laboratory: 0.3,
            faults: Vec::new(),
        }
    }

    #[test]
    fn shares_are_of_each_quota_and_between_the_samples_of_the_window() {
        let report = report();
        // 0.4 s of 20 s with a tenth of a core; 1.6 s of 20 s with a fifth.
        let shares: Vec<String> = report.shares().iter().map(|(_, s)| format!("{s:.3}")).collect();
        assert_eq!(shares, ["0.200", "0.400"]);
        assert!((report.ratio().unwrap() - 2.0).abs() < 1e-9);
        let text = report.text();
        let line = "largest 40 % (relay 2), smallest 20 % (relay 1), ratio 2.00";
        assert!(
            text.contains(line) && text.contains("2 lost (0 not at relay 2), 1 refused"),
            "{text}"
        );
        assert!(text.contains("lost            2 at relay 2: the Host: reset"), "{text}");
        let json = report.json();
        assert_eq!(json["samples"][4]["relays"][1], Value::Null);
        assert_eq!((&json["opened"], &json["refused"]["no keys"]), (&json!(9), &json!(1)));
    }

    #[test]
    fn ratio_needs_samples_in_the_window() {
        let mut report = report();
        report.window = (200.0, 300.0);
        assert_eq!(report.ratio(), None);
        assert!(report.text().contains("not measured"));
    }

    #[test]
    fn only_losses_at_relays_that_have_not_failed_are_faults() {
        let mut report = report();
        report.verdict().unwrap();
        report.outcomes.lost.insert((0, "the Host: reset".into()), 1);
        let error = report.verdict().unwrap_err().to_string();
        assert!(error.starts_with("1 sessions lost at relays"), "{error}");
        report.outcomes = Outcomes::default();
        assert!(report.verdict().is_err());
    }

    #[test]
    fn rows_have_a_column_for_each_relay_and_charts_a_line() {
        let report = report();
        let (heading, row) = (heading(&report.quotas), report.samples[4].row());
        let bars = |line: &str| line.match_indices(" |").map(|(at, _)| at).collect::<Vec<_>>();
        assert!(heading.lines().all(|line| bars(line) == bars(&row)), "{heading}\n{row}");
        let svg = crate::plot::svg(&report.charts());
        assert_eq!(svg.matches("<polyline").count(), 10);
        assert_eq!(svg.matches("relay 2 is killed").count(), 4, "not in the chart without points");
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
    }
}
