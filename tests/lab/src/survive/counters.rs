//! Compares two scrapes: no counter may go back.

use std::collections::BTreeMap;

/// Ends of the names of metrics that only grow.
const GROWING: [&str; 4] = ["_total", "_count", "_sum", "_bucket"];

/// The series of the relay that only grow, with their values.
fn growing(text: &str) -> BTreeMap<&str, f64> {
    let series = text.lines().filter(|line| line.starts_with("aspia_relay_"));
    series
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let name = series.split('{').next()?;
            let is_growing = GROWING.iter().any(|end| name.ends_with(end));
            Some((series, value.parse().ok()?)).filter(|_| is_growing)
        })
        .collect()
}

/// The counters that are lower in `after` than in `before`, or missing.
pub(super) fn went_back(before: &str, after: &str) -> Vec<String> {
    let after = growing(after);
    let lower = growing(before).into_iter().filter_map(|(series, old)| match after.get(series) {
        None if old > 0.0 => Some(format!("{series} was {old} and is missing")),
        Some(new) if *new < old => Some(format!("{series} was {old} and is {new}")),
        _ => None,
    });
    lower.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_go_back_are_named() {
        let before = "# TYPE aspia_relay_a_total counter\naspia_relay_a_total{x=\"1\"} 5\n\
                      aspia_relay_b_bucket{le=\"+Inf\"} 2\naspia_relay_c_sum 1.5\naspia_relay_d 9\n";
        assert!(went_back(before, before).is_empty());
        let after = "aspia_relay_a_total{x=\"1\"} 4\naspia_relay_c_sum 1.5\naspia_relay_d 0\n";
        let found = went_back(before, after);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("was 5 and is 4") && found[1].contains("missing"), "{found:?}");
    }
}
