//! Delivers spans: a thread of its own, a bounded queue, and a log that says when the collector does not take them.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::InstrumentationScope;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    Compression, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter, SpanLimits, SpanProcessor,
};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;
use tonic::Status;
use tracing::level_filters::LevelFilter;
use tracing::{info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;

use crate::log::SpanLayer;

use super::answer::{Answer, shown};
use super::connect::Connector;
use super::grpc::GrpcExporter;
use super::settings::{Protocol, TraceSettings};
use super::tracer::{SPAN_TARGET, Tracer};

/// How long the last spans may take when the relay stops.
const LAST_DELIVERY: Duration = Duration::from_secs(3);
/// A collector that takes nothing is mentioned again after this time.
const REMINDER: Duration = Duration::from_secs(300);

/// Traces that are on.
#[derive(Debug)]
pub struct Exporting {
    provider: SdkTracerProvider,
    tracer: Tracer,
    outcome: Arc<Outcome>,
    /// Ends the thread.
    stop: oneshot::Sender<()>,
}

/// Starts to deliver what is traced. Blocks while it reads files.
///
/// # Errors
/// Why there are no traces, in words.
pub fn start(settings: &TraceSettings) -> Result<Exporting, String> {
    let failed = |error: io::Error| format!("the thread for traces cannot be started: {error}");
    let connector = Connector::new(settings).map_err(|error| {
        format!("OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE or _CLIENT_KEY: {error}")
    })?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let handle = runtime.handle().clone();
    let exporter = {
        let _context = handle.enter();
        Exporter::new(settings, connector).map_err(|error| error.to_string())?
    };
    let (stop, stopped) = oneshot::channel();
    std::thread::Builder::new()
        .name("otlp-export".into())
        .spawn(move || run(runtime, stopped))
        .map_err(failed)?;
    let outcome = Arc::new(Outcome::new(settings.shown_endpoint()));
    let exporter = Delivery {
        inner: Arc::new(exporter),
        runtime: handle,
        limit: settings.timeout,
        outcome: outcome.clone(),
    };
    let batches =
        BatchSpanProcessor::builder(exporter).with_batch_config(settings.batch.config()).build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(Counting { inner: batches, outcome: outcome.clone() })
        .with_sampler(settings.sampler.clone())
        // Ours are few and short; the variables for limits would only take them away.
        .with_span_limits(SpanLimits::default())
        .with_resource(settings.resource())
        .build();
    let scope = InstrumentationScope::builder("aspia_relay")
        .with_version(env!("CARGO_PKG_VERSION"))
        .build();
    let tracer = Tracer(Some(provider.tracer_with_scope(scope)));
    Ok(Exporting { provider, tracer, outcome, stop })
}

fn run(runtime: Runtime, stopped: oneshot::Receiver<()>) {
    // Also when the other end is dropped.
    let _ = runtime.block_on(stopped);
    // A resolver that does not answer must not keep the program.
    runtime.shutdown_background();
}

impl Exporting {
    /// Makes spans.
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Where they go.
    pub fn endpoint(&self) -> &str {
        &self.outcome.endpoint
    }

    /// The layer that takes spans of the target [`SPAN_TARGET`], and those alone.
    pub fn layer(&self) -> Option<SpanLayer> {
        let tracer = self.tracer.0.clone()?;
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(SPAN_TARGET, LevelFilter::INFO));
        Some(layer.boxed())
    }

    /// Delivers what is left, within a few seconds, and no longer than until `at_once` is ready.
    pub async fn finish(self, at_once: impl Future<Output = ()>) {
        let provider = self.provider.clone();
        let delivery =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_DELIVERY));
        tokio::select! {
            _ = delivery => {}
            () = at_once => {}
        }
        let (ended, delivered) = self.outcome.counts();
        if delivered < ended {
            warn!(
                "{} of {ended} spans were not delivered to {}, or were rejected there ({})",
                ended - delivered,
                self.outcome.endpoint,
                self.outcome.rejected.load(Ordering::Relaxed)
            );
        }
        let _ = self.stop.send(());
    }
}

/// What spans are sent with.
#[derive(Debug)]
enum Exporter {
    Http {
        exporter: OtlpExporter,
        /// What was answered last. Deliveries come one after the other.
        answer: Answered,
    },
    Grpc(GrpcExporter),
}

/// What the collector answered, handed on by the client to whoever counts spans.
type Answered = Arc<Mutex<Option<Result<Answer, String>>>>;

impl Exporter {
    fn new(
        settings: &TraceSettings,
        connector: Connector,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        if settings.protocol == Protocol::Grpc {
            return Ok(Self::Grpc(GrpcExporter::new(settings, connector)?));
        }
        let answer = Answered::default();
        let client = CollectorClient {
            client: HyperClient::new(connector, settings.timeout, None),
            headers: settings.headers.clone(),
            answer: answer.clone(),
        };
        let builder = OtlpExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_endpoint(settings.endpoint.to_string())
            .with_timeout(settings.timeout);
        let builder =
            if settings.gzip { builder.with_compression(Compression::Gzip) } else { builder };
        Ok(Self::Http { exporter: builder.build()?, answer })
    }

    /// Delivers spans.
    ///
    /// # Errors
    /// Why they were not, in words.
    async fn export(&self, batch: Vec<SpanData>) -> Result<Answer, String> {
        match self {
            Self::Grpc(exporter) => exporter.export(batch).await.map_err(|status| refusal(&status)),
            Self::Http { exporter, answer } => {
                exporter.export(batch).await.map_err(|error| error.to_string())?;
                let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
                answer.unwrap_or_else(|| Ok(Answer::default()))
            }
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        match self {
            Self::Grpc(exporter) => exporter.set_resource(resource),
            Self::Http { exporter, .. } => exporter.set_resource(resource),
        }
    }
}

/// A gRPC status in words. Its message is the collector's, which may say anything.
fn refusal(status: &Status) -> String {
    match status.message() {
        "" => format!("gRPC status {:?}", status.code()),
        message => format!("gRPC status {:?}: {}", status.code(), shown(message)),
    }
}

fn replace(headers: &mut HeaderMap, ours: &[(HeaderName, HeaderValue)]) {
    for (name, value) in ours {
        headers.insert(name, value.clone());
    }
}

/// Sends our headers as they are, since the exporter would decode them once more; and reads the answer, which the exporter
/// keeps to itself.
#[derive(Debug)]
struct CollectorClient {
    client: HyperClient<Connector>,
    headers: Vec<(HeaderName, HeaderValue)>,
    answer: Answered,
}

#[async_trait::async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        replace(request.headers_mut(), &self.headers);
        let response = self.client.send_bytes(request).await?;
        let answer = response.status().is_success().then(|| {
            let content_type = response.headers().get(CONTENT_TYPE);
            Answer::read(content_type.and_then(|value| value.to_str().ok()), response.body())
        });
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
        Ok(response)
    }
}

/// What became of the spans.
#[derive(Debug)]
struct Outcome {
    endpoint: String,
    ended: AtomicU64,
    delivered: AtomicU64,
    /// Of the others, those that the collector rejected.
    rejected: AtomicU64,
    failures: Mutex<Reminder>,
    rejections: Mutex<Reminder>,
}

impl Outcome {
    fn new(endpoint: String) -> Self {
        Self {
            endpoint,
            ended: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            failures: Mutex::default(),
            rejections: Mutex::default(),
        }
    }

    fn counts(&self) -> (u64, u64) {
        (self.ended.load(Ordering::Relaxed), self.delivered.load(Ordering::Relaxed))
    }

    fn answered(&self, spans: u64, answer: &Answer) {
        let rejected = answer.rejected.min(spans);
        self.delivered.fetch_add(spans - rejected, Ordering::Relaxed);
        let all = self.rejected.fetch_add(rejected, Ordering::Relaxed) + rejected;
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        // A collector that rejects everything takes nothing.
        if rejected < spans && failures.is_over() {
            // Whoever was told of the failure is told of its end.
            warn!("traces are delivered to {} again", self.endpoint);
        }
        let mut rejections = self.rejections.lock().unwrap_or_else(PoisonError::into_inner);
        if rejected == 0 && answer.says.is_empty() {
            rejections.is_over();
        } else if rejections.is_due(Instant::now()) {
            let says = if answer.says.is_empty() { "gives no reason" } else { &answer.says };
            warn!(
                "the collector at {} took a delivery of {spans} spans but rejected {rejected} of them ({all} since the \
                 start); it says: {says}. Rejected spans are not sent again",
                self.endpoint
            );
        }
    }

    fn failed(&self, error: &dyn std::fmt::Display) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.is_due(Instant::now()) {
            warn!(
                "traces cannot be delivered to {}: {error}; relaying goes on, spans are dropped. Is the collector \
                 up, and are the OTEL_EXPORTER_OTLP_… variables right?",
                self.endpoint
            );
        }
    }
}

/// When to speak of something that goes on, or comes and goes.
#[derive(Debug, Default)]
struct Reminder {
    said: Option<Instant>,
    /// Whether it was said, and not that it is over.
    is_open: bool,
}

impl Reminder {
    /// Whether it is to be said now that it is so.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.said.is_none_or(|said| now.saturating_duration_since(said) >= REMINDER);
        if is_due {
            (self.said, self.is_open) = (Some(now), true);
        }
        is_due
    }

    /// Whether it is to be said that it is over.
    fn is_over(&mut self) -> bool {
        std::mem::take(&mut self.is_open)
    }
}

/// Counts spans on their way into the queue, which drops them when it is full.
#[derive(Debug)]
struct Counting {
    inner: BatchSpanProcessor,
    outcome: Arc<Outcome>,
}

impl SpanProcessor for Counting {
    fn on_start(&self, span: &mut Span, context: &opentelemetry::Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.outcome.ended.fetch_add(1, Ordering::Relaxed);
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

/// Delivers batches on our own runtime, each within a time.
#[derive(Debug)]
struct Delivery {
    inner: Arc<Exporter>,
    runtime: Handle,
    limit: Duration,
    outcome: Arc<Outcome>,
}

impl SpanExporter for Delivery {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let (inner, limit) = (self.inner.clone(), self.limit);
        let delivering = self.runtime.spawn(async move {
            let exporting = tokio::time::timeout(limit, inner.export(batch)).await;
            exporting.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
        });
        let delivered = match delivering.await {
            Ok(delivered) => delivered,
            // The thread has ended, at the very end: the last line says how many spans are left, and the collector is not
            // to blame.
            Err(error) if error.is_cancelled() => {
                return Err(OTelSdkError::InternalFailure(error.to_string()));
            }
            Err(error) => Err(error.to_string()),
        };
        match delivered {
            Ok(answer) => {
                self.outcome.answered(spans, &answer);
                Ok(())
            }
            Err(error) => {
                self.outcome.failed(&error);
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
    fn what_comes_and_goes_is_said_now_and_then() {
        let (mut reminder, start) = (Reminder::default(), Instant::now());
        assert!(!reminder.is_over(), "there was nothing");
        assert!(reminder.is_due(start) && !reminder.is_due(start));
        assert!(reminder.is_over() && !reminder.is_over());
        // It is back at once, and nobody is told that what they do not know is over.
        assert!(!reminder.is_due(start + REMINDER / 2) && !reminder.is_over());
        assert!(reminder.is_due(start + REMINDER) && reminder.is_over());
    }

    #[test]
    fn traces_are_delivered_again_only_once_a_span_is_taken() {
        let outcome = Outcome::new("here".into());
        let is_failing = || outcome.failures.lock().unwrap().is_open;
        outcome.failed(&"nobody is there");
        assert!(is_failing());
        for rejected in [10, 99] {
            outcome.answered(10, &Answer { rejected, says: String::new() });
            assert!(is_failing());
        }
        outcome.answered(10, &Answer { rejected: 9, says: String::new() });
        assert!(!is_failing());
    }

    #[test]
    fn what_a_collector_says_over_grpc_is_short_and_harmless() {
        let hostile = format!("\u{1b}[2Jno\nERROR all is lost\u{2028}{}", "x".repeat(10_000));
        let text = refusal(&Status::unavailable(hostile));
        assert!(text.starts_with("gRPC status Unavailable: \"\\u{1b}[2Jno\\nERROR"), "{text}");
        assert!(text.len() < 600 && !text.contains(char::is_control), "{text}");
        assert!(!text.contains('\u{2028}'), "{text}");
        assert_eq!(refusal(&Status::unavailable("")), "gRPC status Unavailable");
    }

    #[test]
    fn rejected_spans_are_not_delivered() {
        let outcome = Outcome::new("here".into());
        outcome.answered(10, &Answer::default());
        outcome.answered(10, &Answer { rejected: 4, says: String::new() });
        // More than there were.
        outcome.answered(10, &Answer { rejected: 99, says: String::new() });
        assert_eq!(outcome.counts().1, 16);
        assert_eq!(outcome.rejected.load(Ordering::Relaxed), 14);
    }
}
