//! Starts and stops the delivery of spans, which runs on a separate thread.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::InstrumentationScope;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracerProvider, SpanLimits};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tracing::level_filters::LevelFilter;
use tracing::warn;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;

use crate::log::SpanLayer;

use super::connect::CollectorConnector;
use super::delivery::{BatchExporter, CountingProcessor, DeliveryStats};
use super::exporter::OtlpExporter;
use super::settings::TraceSettings;
use super::tracer::{SPAN_TARGET, Tracer};

/// The time limit for delivering the last spans when the relay stops.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// The same when another relay follows, which is not started before this one has ended: all sessions stand still meanwhile.
pub const HAND_OVER_TIMEOUT: Duration = Duration::from_millis(200);

/// The running delivery of spans.
#[derive(Debug)]
pub struct TraceExport {
    provider: SdkTracerProvider,
    tracer: Tracer,
    stats: Arc<DeliveryStats>,
    /// Ends the thread.
    stop: oneshot::Sender<()>,
}

/// Starts the delivery of spans. Blocks while it reads files.
///
/// # Errors
/// The reason why there are no traces.
pub fn start(settings: &TraceSettings) -> Result<TraceExport, String> {
    let failed = |error: io::Error| format!("the thread for traces cannot be started: {error}");
    let connector = CollectorConnector::new(settings).map_err(|error| {
        format!("OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE or _CLIENT_KEY: {error}")
    })?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let handle = runtime.handle().clone();
    let exporter = {
        let _context = handle.enter();
        OtlpExporter::new(settings, connector).map_err(|error| error.to_string())?
    };
    let (stop, stopped) = oneshot::channel();
    std::thread::Builder::new()
        .name("otlp-export".into())
        .spawn(move || run(runtime, stopped))
        .map_err(failed)?;
    let stats = Arc::new(DeliveryStats::new(settings.redacted_endpoint()));
    let exporter = BatchExporter::new(exporter, handle, settings.timeout, stats.clone());
    let batches =
        BatchSpanProcessor::builder(exporter).with_batch_config(settings.batch.config()).build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(CountingProcessor::new(batches, stats.clone()))
        .with_sampler(settings.sampler.clone())
        // The relay's spans are few and short; the OTEL_* variables for limits could only truncate them.
        .with_span_limits(SpanLimits::default())
        .with_resource(settings.resource())
        .build();
    let scope = InstrumentationScope::builder("aspia_relay")
        .with_version(env!("CARGO_PKG_VERSION"))
        .build();
    let tracer = Tracer(Some(provider.tracer_with_scope(scope)));
    Ok(TraceExport { provider, tracer, stats, stop })
}

fn run(runtime: Runtime, stopped: oneshot::Receiver<()>) {
    // A dropped sender also ends the wait.
    let _ = runtime.block_on(stopped);
    // A name resolver that does not answer must not keep the process alive.
    runtime.shutdown_background();
}

impl TraceExport {
    /// Returns the tracer, which makes spans.
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Returns the address of the collector, redacted.
    pub fn endpoint(&self) -> &str {
        self.stats.endpoint()
    }

    /// Makes the layer that receives spans with the target [`SPAN_TARGET`], and no others.
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

    /// Delivers the remaining spans within this time, or until `abort` is ready.
    pub async fn finish(self, time: Duration, abort: impl Future<Output = ()>) {
        let provider = self.provider.clone();
        let delivery = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(time));
        tokio::select! {
            _ = delivery => {}
            () = abort => {}
        }
        let (ended, delivered, rejected) = self.stats.counts();
        if delivered < ended {
            warn!(
                "{} of {ended} spans were not delivered to {}; it rejected {rejected} of them",
                ended - delivered,
                self.stats.endpoint(),
            );
        }
        let _ = self.stop.send(());
    }
}
