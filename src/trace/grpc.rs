//! Delivers spans over gRPC. The exporter of `opentelemetry-otlp` can do this as well, but does not pass on the collector's
//! message about rejected spans.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use http::{HeaderName, HeaderValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::connect::CollectorConnector;
use super::response::ExportResponse;
use super::settings::TraceSettings;

/// The delays between the attempts of one delivery, whose time limit includes them.
const RETRY_DELAYS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_delay(Duration::from_secs(2))
    .with_max_times(5)
    .with_jitter();

/// Sends spans to a collector over gRPC.
#[derive(Debug)]
pub(super) struct GrpcExporter {
    client: TraceServiceClient<Channel>,
    headers: Vec<(HeaderName, HeaderValue)>,
    resource: ResourceAttributesWithSchema,
}

impl GrpcExporter {
    /// Prepares the connection, which the first delivery makes. Needs a runtime.
    pub(super) fn new(
        settings: &TraceSettings,
        connector: CollectorConnector,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from(settings.endpoint.clone())
            .user_agent(concat!("aspia-relay/", env!("CARGO_PKG_VERSION")))?
            .timeout(settings.timeout);
        let client = TraceServiceClient::new(Channel::new(connector, endpoint));
        let client = match settings.uses_gzip {
            true => client
                .send_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Gzip),
            false => client,
        };
        let headers = settings.headers.clone();
        Ok(Self { client, headers, resource: ResourceAttributesWithSchema::default() })
    }

    /// Sets the resource that the spans belong to.
    pub(super) fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }

    /// Delivers spans, with retries if the error may be temporary.
    pub(super) async fn export(&self, batch: Vec<SpanData>) -> Result<ExportResponse, Status> {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let message = ExportTraceServiceRequest { resource_spans };
        let mut delays = RETRY_DELAYS.build();
        loop {
            let mut request = Request::new(message.clone());
            let mut headers = std::mem::take(request.metadata_mut()).into_headers();
            for (name, value) in &self.headers {
                headers.insert(name, value.clone());
            }
            *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
            match self.client.clone().export(request).await {
                Ok(response) => return Ok(ExportResponse::from_proto(response.into_inner())),
                Err(status) => match delays.next().filter(|_| is_retryable(&status)) {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => return Err(status),
                },
            }
        }
    }
}

/// Whether the OTLP specification allows a retry.
fn is_retryable(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}
