//! Counts the spans that are delivered and rejected, and logs when the collector does not accept them.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::exporter::OtlpExporter;
use super::response::ExportResponse;

/// The shortest time between two reports of the same problem.
const REPORT_PERIOD: Duration = Duration::from_secs(300);

/// Counts the spans by result, and logs failures.
#[derive(Debug)]
pub(super) struct DeliveryStats {
    endpoint: String,
    ended: AtomicU64,
    delivered: AtomicU64,
    /// Spans that were sent but rejected.
    rejected: AtomicU64,
    failures: Mutex<ConditionReport>,
    rejections: Mutex<ConditionReport>,
}

impl DeliveryStats {
    /// Starts all counts at 0, for the collector at `endpoint`, which is logged and must be redacted.
    pub(super) fn new(endpoint: String) -> Self {
        Self {
            endpoint,
            ended: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            failures: Mutex::default(),
            rejections: Mutex::default(),
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns the numbers of spans that have ended, that were delivered, and that were rejected.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.ended), count(&self.delivered), count(&self.rejected))
    }

    /// Counts the spans of one delivery by the collector's response.
    fn record_response(&self, spans: u64, response: &ExportResponse) {
        let rejected = response.rejected.min(spans);
        self.delivered.fetch_add(spans - rejected, Ordering::Relaxed);
        let total = self.rejected.fetch_add(rejected, Ordering::Relaxed) + rejected;
        let mut failures = self.failures.lock();
        // A collector that rejects everything has not recovered.
        if rejected < spans && failures.take_reported() {
            warn!("traces are delivered to {} again", self.endpoint);
        }
        let mut rejections = self.rejections.lock();
        if rejected == 0 && response.message.is_empty() {
            rejections.take_reported();
        } else if rejections.is_due(Instant::now()) {
            let message =
                if response.message.is_empty() { "no reason given" } else { &response.message };
            warn!(
                "the collector at {} accepted a delivery of {spans} spans but rejected {rejected} of them ({total} since the \
                 start): {message}. Rejected spans are not sent again",
                self.endpoint
            );
        }
    }

    /// Logs a failed delivery.
    fn record_failure(&self, error: &dyn Display) {
        let mut failures = self.failures.lock();
        if failures.is_due(Instant::now()) {
            warn!(
                "traces cannot be delivered to {}: {error}; sessions are not affected, and spans are dropped. Is the \
                 collector up, and are the OTEL_EXPORTER_OTLP_… variables right?",
                self.endpoint
            );
        }
    }
}

/// Limits how often a lasting or recurring condition is reported.
#[derive(Debug, Default)]
struct ConditionReport {
    last_report: Option<Instant>,
    /// Whether the condition was reported, and its end not yet.
    is_reported: bool,
}

impl ConditionReport {
    /// Returns whether to report the condition now; if so, records that it was reported.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self
            .last_report
            .is_none_or(|last| now.saturating_duration_since(last) >= REPORT_PERIOD);
        if is_due {
            (self.last_report, self.is_reported) = (Some(now), true);
        }
        is_due
    }

    /// Returns whether the condition was reported, so that its end is to be reported now. Records that it has ended.
    fn take_reported(&mut self) -> bool {
        std::mem::take(&mut self.is_reported)
    }
}

/// Counts spans on their way into the queue, which drops them when it is full.
#[derive(Debug)]
pub(super) struct CountingProcessor {
    inner: BatchSpanProcessor,
    stats: Arc<DeliveryStats>,
}

impl CountingProcessor {
    pub(super) fn new(inner: BatchSpanProcessor, stats: Arc<DeliveryStats>) -> Self {
        Self { inner, stats }
    }
}

impl SpanProcessor for CountingProcessor {
    fn on_start(&self, span: &mut Span, context: &opentelemetry::Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.stats.ended.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Delivers batches on the runtime of the exporting thread, each within `timeout`.
#[derive(Debug)]
pub(super) struct BatchExporter {
    inner: Arc<OtlpExporter>,
    runtime: Handle,
    timeout: Duration,
    stats: Arc<DeliveryStats>,
}

impl BatchExporter {
    pub(super) fn new(
        exporter: OtlpExporter,
        runtime: Handle,
        timeout: Duration,
        stats: Arc<DeliveryStats>,
    ) -> Self {
        Self { inner: Arc::new(exporter), runtime, timeout, stats }
    }
}

impl SpanExporter for BatchExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let (inner, timeout) = (self.inner.clone(), self.timeout);
        let delivering = self.runtime.spawn(async move {
            let exporting = tokio::time::timeout(timeout, inner.export(batch)).await;
            exporting.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
        });
        let delivered = match delivering.await {
            Ok(delivered) => delivered,
            // The thread has ended because the relay is stopping. This is not the collector's fault, and a last log line will
            // say how many spans remain.
            Err(error) if error.is_cancelled() => {
                return Err(OTelSdkError::InternalFailure(error.to_string()));
            }
            Err(error) => Err(error.to_string()),
        };
        match delivered {
            Ok(response) => {
                self.stats.record_response(spans, &response);
                Ok(())
            }
            Err(error) => {
                self.stats.record_failure(&error);
                Err(OTelSdkError::InternalFailure(error))
            }
        }
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.set_resource(resource);
        } else {
            info!("the resource attributes of traces cannot be set");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recurring_condition_is_reported_once_per_period() {
        let (mut report, start) = (ConditionReport::default(), Instant::now());
        assert!(!report.take_reported(), "nothing was reported");
        assert!(report.is_due(start) && !report.is_due(start));
        assert!(report.take_reported() && !report.take_reported());
        // It recurs within the period: neither that nor its end is reported.
        assert!(!report.is_due(start + REPORT_PERIOD / 2) && !report.take_reported());
        assert!(report.is_due(start + REPORT_PERIOD) && report.take_reported());
    }

    #[test]
    fn recovery_is_reported_once_a_span_is_accepted() {
        let stats = DeliveryStats::new("here".into());
        let is_failing = || stats.failures.lock().is_reported;
        stats.record_failure(&"connection refused");
        assert!(is_failing());
        for rejected in [10, 99] {
            stats.record_response(10, &ExportResponse { rejected, message: String::new() });
            assert!(is_failing());
        }
        stats.record_response(10, &ExportResponse { rejected: 9, message: String::new() });
        assert!(!is_failing());
    }

    #[test]
    fn rejected_spans_are_not_counted_as_delivered() {
        let stats = DeliveryStats::new("here".into());
        stats.record_response(10, &ExportResponse::default());
        stats.record_response(10, &ExportResponse { rejected: 4, message: String::new() });
        // More than were sent.
        stats.record_response(10, &ExportResponse { rejected: 99, message: String::new() });
        assert_eq!(stats.counts(), (0, 16, 14));
    }
}
