//! Delivers spans: a thread of its own, a bounded queue, and a log that says when the collector does not take them.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::InstrumentationScope;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    Compression, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanExporter, SpanLimits, SpanProcessor,
};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tracing::level_filters::LevelFilter;
use tracing::{info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;

use crate::log::SpanLayer;

use super::connect::Connector;
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
        exporter(settings, connector).map_err(|error| error.to_string())?
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

    /// Delivers what is left, within a few seconds. Blocks; not for a thread of a runtime.
    pub fn finish(self) {
        let _ = self.provider.shutdown_with_timeout(LAST_DELIVERY);
        let (ended, delivered) = self.outcome.counts();
        if delivered < ended {
            warn!(
                "{} of {ended} spans were not delivered to {}",
                ended - delivered,
                self.outcome.endpoint
            );
        }
        let _ = self.stop.send(());
    }
}

fn exporter(
    settings: &TraceSettings,
    connector: Connector,
) -> Result<OtlpExporter, Box<dyn std::error::Error>> {
    let headers = settings.headers.clone();
    match settings.protocol {
        Protocol::Http => {
            let client = HyperClient::new(connector, settings.timeout, None);
            let builder = OtlpExporter::builder()
                .with_http()
                .with_http_client(WithHeaders { client, headers })
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_endpoint(settings.endpoint.to_string())
                .with_timeout(settings.timeout);
            let builder =
                if settings.gzip { builder.with_compression(Compression::Gzip) } else { builder };
            Ok(builder.build()?)
        }
        Protocol::Grpc => {
            let endpoint = Endpoint::from(settings.endpoint.clone())
                .user_agent(concat!("aspia-relay/", env!("CARGO_PKG_VERSION")))?
                .timeout(settings.timeout);
            let builder = OtlpExporter::builder()
                .with_tonic()
                .with_channel(Channel::new(connector, endpoint))
                .with_interceptor(move |request| Ok(with_headers(request, &headers)))
                .with_timeout(settings.timeout);
            let builder =
                if settings.gzip { builder.with_compression(Compression::Gzip) } else { builder };
            Ok(builder.build()?)
        }
    }
}

/// Puts our headers into a call. The exporter reads the variable, too: what it added is replaced, not repeated.
fn with_headers(
    mut request: tonic::Request<()>,
    ours: &[(HeaderName, HeaderValue)],
) -> tonic::Request<()> {
    let mut headers = std::mem::take(request.metadata_mut()).into_headers();
    replace(&mut headers, ours);
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    request
}

fn replace(headers: &mut HeaderMap, ours: &[(HeaderName, HeaderValue)]) {
    for (name, value) in ours {
        headers.insert(name, value.clone());
    }
}

/// Sends our headers as they are: the exporter would decode them once more.
#[derive(Debug)]
struct WithHeaders {
    client: HyperClient<Connector>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[async_trait::async_trait]
impl HttpClient for WithHeaders {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        replace(request.headers_mut(), &self.headers);
        self.client.send_bytes(request).await
    }
}

/// What became of the spans.
#[derive(Debug)]
struct Outcome {
    endpoint: String,
    ended: AtomicU64,
    delivered: AtomicU64,
    failing: Mutex<Option<Instant>>,
}

impl Outcome {
    fn new(endpoint: String) -> Self {
        Self {
            endpoint,
            ended: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            failing: Mutex::new(None),
        }
    }

    fn counts(&self) -> (u64, u64) {
        (self.ended.load(Ordering::Relaxed), self.delivered.load(Ordering::Relaxed))
    }

    fn delivered(&self, spans: u64) {
        self.delivered.fetch_add(spans, Ordering::Relaxed);
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner).take();
        if failing.is_some() {
            // Whoever was told of the failure is told of its end.
            warn!("traces are delivered to {} again", self.endpoint);
        }
    }

    fn failed(&self, error: &dyn std::fmt::Display) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.is_none_or(|said| said.elapsed() >= REMINDER) {
            *failing = Some(Instant::now());
            warn!(
                "traces cannot be delivered to {}: {error}; relaying goes on, spans are dropped. Is the collector \
                 up, and are the OTEL_EXPORTER_OTLP_… variables right?",
                self.endpoint
            );
        }
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
    inner: Arc<OtlpExporter>,
    runtime: Handle,
    limit: Duration,
    outcome: Arc<Outcome>,
}

impl SpanExporter for Delivery {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let (inner, limit) = (self.inner.clone(), self.limit);
        let delivering = self.runtime.spawn(async move {
            tokio::time::timeout(limit, inner.export(batch)).await.unwrap_or_else(|_| {
                Err(OTelSdkError::InternalFailure(format!("no answer within {limit:?}")))
            })
        });
        // The thread ends before this only at the very end.
        let delivered = delivering
            .await
            .unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        match &delivered {
            Ok(()) => self.outcome.delivered(spans),
            Err(error) => self.outcome.failed(error),
        }
        delivered
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
