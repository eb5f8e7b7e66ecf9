//! Reads a relay's metrics as Prometheus does.

use std::io;
use std::net::SocketAddr;

use crate::http;

/// The metrics of the relay with the admin interface `admin`, as text.
///
/// # Errors
/// If it does not answer.
pub async fn scrape(admin: SocketAddr) -> io::Result<String> {
    Ok(http::request(admin, "GET /metrics", &[], "").await?.body)
}

/// The sum of a metric over all its labels, or the value of one series if `name` includes the labels.
pub fn sum(text: &str, name: &str) -> f64 {
    let of = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let rest = if name.ends_with('}') {
            rest
        } else {
            rest.split_once('}').map_or(rest, |(_, rest)| rest)
        };
        rest.strip_prefix(' ')?.parse::<f64>().ok()
    };
    text.lines().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let text = "# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3\nab 9\nb 4\n";
        assert_eq!((sum(text, "a"), sum(text, "b"), sum(text, "a{x=\"2\"}")), (5.0, 4.0, 3.0));
        assert_eq!(sum(text, "c"), 0.0);
    }
}
