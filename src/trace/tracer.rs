//! What makes spans.

use opentelemetry_sdk::trace::SdkTracer;

/// The target of spans that go to the collector, and nowhere else.
pub const SPAN_TARGET: &str = "aspia_relay::span";

/// Makes spans, or does nothing where traces are off; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tracer(pub(super) Option<SdkTracer>);
