//! Delivers spans over gRPC. The exporter of `opentelemetry-otlp` does it as well, but keeps to itself what a collector says
//! of spans that it rejects.

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

use super::answer::Answer;
use super::connect::Connector;
use super::settings::TraceSettings;

/// Pauses between the tries of one delivery; the timeout of the delivery ends them.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_delay(Duration::from_secs(2))
    .with_max_times(5)
    .with_jitter();

/// Sends spans to a collector.
#[derive(Debug)]
pub(super) struct GrpcExporter {
    client: TraceServiceClient<Channel>,
    headers: Vec<(HeaderName, HeaderValue)>,
    resource: ResourceAttributesWithSchema,
}

impl GrpcExporter {
    /// Connects with the first delivery. Needs a runtime.
    pub(super) fn new(
        settings: &TraceSettings,
        connector: Connector,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from(settings.endpoint.clone())
            .user_agent(concat!("aspia-relay/", env!("CARGO_PKG_VERSION")))?
            .timeout(settings.timeout);
        let client = TraceServiceClient::new(Channel::new(connector, endpoint));
        let client = match settings.gzip {
            true => client
                .send_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Gzip),
            false => client,
        };
        let headers = settings.headers.clone();
        Ok(Self { client, headers, resource: ResourceAttributesWithSchema::default() })
    }

    /// Whose spans they are.
    pub(super) fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }

    /// Delivers spans, with some tries where that may help.
    pub(super) async fn export(&self, batch: Vec<SpanData>) -> Result<Answer, Status> {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let message = ExportTraceServiceRequest { resource_spans };
        let mut pauses = PAUSES.build();
        loop {
            let mut request = Request::new(message.clone());
            let mut headers = std::mem::take(request.metadata_mut()).into_headers();
            for (name, value) in &self.headers {
                headers.insert(name, value.clone());
            }
            *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
            match self.client.clone().export(request).await {
                Ok(response) => return Ok(Answer::of(response.into_inner())),
                Err(status) => match pauses.next().filter(|_| may_pass(&status)) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(status),
                },
            }
        }
    }
}

/// Whether another try may succeed, as the specification of OTLP has it.
fn may_pass(status: &Status) -> bool {
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
