//! Waits until the node has an address.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::address_source::AddressSource;
use super::cluster::Cluster;
use super::error::NodeError;

/// How often [`Cluster::wait_for_address`] sends a request, and how often it reports why it waits.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// The delay between a response and the next attempt.
    pub delay: Duration,
    /// The period in which the same reason is reported only once.
    pub report_period: Duration,
    /// How long to try; `None` for no limit.
    pub limit: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { delay: Duration::from_secs(5), report_period: Duration::from_secs(60), limit: None }
    }
}

/// The reasons that were reported recently. Two alternating reasons cause no more reports than both would separately.
struct ReportedReasons {
    period: Duration,
    reasons: Vec<(String, Instant)>,
}

impl ReportedReasons {
    fn new(period: Duration) -> Self {
        Self { period, reasons: Vec::new() }
    }

    /// Returns whether to report `reason`: not if it was reported recently. If so, records that it is reported now.
    fn insert(&mut self, reason: String, now: Instant) -> bool {
        self.reasons.retain(|(_, at)| now.saturating_duration_since(*at) < self.period);
        if self.reasons.iter().any(|(reported, _)| *reported == reason) {
            return false;
        }
        self.reasons.push((reason, now));
        true
    }
}

impl Cluster {
    /// Requests the node until there is an address in `source`. Calls `report` with the reason for waiting: immediately if it
    /// is new, again only after [`RetryPolicy::report_period`]. By default there is no time limit, because the pod needs the
    /// address: Kubernetes shows the pod as `Init`, and the wait ends with the pod.
    ///
    /// # Errors
    /// [`NodeError::ServiceAccount`] if the pod is misconfigured from the beginning, and [`NodeError::GaveUp`].
    pub async fn wait_for_address(
        &self,
        source: &AddressSource,
        policy: RetryPolicy,
        mut report: impl FnMut(&NodeError),
    ) -> Result<String, NodeError> {
        let mut reported = ReportedReasons::new(policy.report_period);
        let begin = Instant::now();
        let mut is_first = true;
        loop {
            let error = match self.node_address(source).await {
                Err(error) if !(is_first && error.is_permanent()) => error,
                answer => return answer,
            };
            is_first = false;
            let reason = error.to_string();
            if let Some(after) = policy.limit
                && begin.elapsed() + policy.delay >= after
            {
                return Err(NodeError::GaveUp { after, reason });
            }
            if reported.insert(reason, Instant::now()) {
                report(&error);
            }
            sleep(policy.delay).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_reported_once_per_period() {
        let mut reported = ReportedReasons::new(Duration::from_secs(60));
        let begin = Instant::now();
        let mut lines = 0;
        // Two alternating reasons, every 5 s for ten minutes.
        for attempt in 0..120_u64 {
            let now = begin + Duration::from_secs(5 * attempt);
            let reason = if attempt % 2 == 0 { "no annotation" } else { "no answer" };
            lines += usize::from(reported.insert(reason.to_owned(), now));
        }
        assert_eq!(lines, 2 * 10);
        assert!(reported.insert("another".to_owned(), begin + Duration::from_secs(600)));
    }
}
