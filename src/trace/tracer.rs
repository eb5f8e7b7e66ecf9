//! The tracer, with which other modules make spans.

use opentelemetry_sdk::trace::SdkTracer;

/// The target of spans that go to the collector, and nowhere else.
pub const SPAN_TARGET: &str = "aspia_relay::span";

/// Makes spans, or does nothing if traces are off. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tracer(pub(super) Option<SdkTracer>);
