//! The format of log lines.

use tracing::Subscriber;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::json::JsonLines;
use super::writer::OutputWriter;

/// The format of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object on each line.
    Json,
}

impl LogFormat {
    /// Makes the layer that writes events in this format.
    pub(super) fn layer<S>(self, writer: OutputWriter) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
        match self {
            Self::Text => layer.boxed(),
            Self::Json => layer.event_format(JsonLines).boxed(),
        }
    }
}
