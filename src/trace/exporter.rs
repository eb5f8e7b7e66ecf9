//! Sends spans to a collector over HTTP or gRPC, and reads the responses.

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    Compression, SpanExporter as HttpExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use parking_lot::Mutex;
use tonic::Status;

use super::connect::CollectorConnector;
use super::grpc::GrpcExporter;
use super::response::{ExportResponse, quote_beginning};
use super::settings::{OtlpProtocol, TraceSettings};

/// Sends spans with the configured protocol.
#[derive(Debug)]
pub(super) enum OtlpExporter {
    Http {
        exporter: HttpExporter,
        /// The last response. Deliveries do not overlap.
        response: SharedResponse,
    },
    Grpc(GrpcExporter),
}

/// The collector's response, as the HTTP client passes it to the exporter.
type SharedResponse = Arc<Mutex<Option<Result<ExportResponse, String>>>>;

impl OtlpExporter {
    /// Prepares the connection. Needs a runtime.
    pub(super) fn new(
        settings: &TraceSettings,
        connector: CollectorConnector,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        if settings.protocol == OtlpProtocol::Grpc {
            return Ok(Self::Grpc(GrpcExporter::new(settings, connector)?));
        }
        let response = SharedResponse::default();
        let client = CollectorClient {
            client: HyperClient::new(connector, settings.timeout, None),
            headers: settings.headers.clone(),
            response: response.clone(),
        };
        let builder = HttpExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_endpoint(settings.endpoint.to_string())
            .with_timeout(settings.timeout);
        let builder =
            if settings.uses_gzip { builder.with_compression(Compression::Gzip) } else { builder };
        Ok(Self::Http { exporter: builder.build()?, response })
    }

    /// Sends spans.
    ///
    /// # Errors
    /// The reason why they were not delivered.
    pub(super) async fn export(&self, batch: Vec<SpanData>) -> Result<ExportResponse, String> {
        match self {
            Self::Grpc(exporter) => {
                exporter.export(batch).await.map_err(|status| describe_status(&status))
            }
            Self::Http { exporter, response } => {
                exporter.export(batch).await.map_err(|error| error.to_string())?;
                let response = response.lock().take();
                response.unwrap_or_else(|| Ok(ExportResponse::default()))
            }
        }
    }

    /// Sets the resource that the spans belong to.
    pub(super) fn set_resource(&mut self, resource: &Resource) {
        match self {
            Self::Grpc(exporter) => exporter.set_resource(resource),
            Self::Http { exporter, .. } => exporter.set_resource(resource),
        }
    }
}

/// Describes a gRPC status. The message comes from the collector and is not trusted.
fn describe_status(status: &Status) -> String {
    match status.message() {
        "" => format!("gRPC status {:?}", status.code()),
        message => format!("gRPC status {:?}: {}", status.code(), quote_beginning(message)),
    }
}

/// An HTTP client that sets the configured headers itself, because the exporter would percent-decode them a second time,
/// and reads the response, which the exporter does not pass on.
#[derive(Debug)]
struct CollectorClient {
    client: HyperClient<CollectorConnector>,
    headers: Vec<(HeaderName, HeaderValue)>,
    response: SharedResponse,
}

fn set_headers(headers: &mut HeaderMap, ours: &[(HeaderName, HeaderValue)]) {
    for (name, value) in ours {
        headers.insert(name, value.clone());
    }
}

#[async_trait::async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        set_headers(request.headers_mut(), &self.headers);
        let response = self.client.send_bytes(request).await?;
        let parsed = response.status().is_success().then(|| {
            let content_type = response.headers().get(CONTENT_TYPE);
            let content_type = content_type.and_then(|value| value.to_str().ok());
            ExportResponse::parse(content_type, response.body())
        });
        *self.response.lock() = parsed;
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_message_of_a_collector_is_truncated_and_escaped() {
        let hostile = format!("\u{1b}[2Jno\nERROR all is lost\u{2028}{}", "x".repeat(10_000));
        let text = describe_status(&Status::unavailable(hostile));
        assert!(text.starts_with("gRPC status Unavailable: \"\\u{1b}[2Jno\\nERROR"), "{text}");
        assert!(text.len() < 600 && !text.contains(char::is_control), "{text}");
        assert!(!text.contains('\u{2028}'), "{text}");
        assert_eq!(describe_status(&Status::unavailable("")), "gRPC status Unavailable");
    }
}
