//! The standard variables of OpenTelemetry, as far as they concern an OTLP exporter of traces.
//!
//! Names and defaults are those of the OpenTelemetry specification ("OTLP exporter configuration", "Environment variable
//! specification"). As it requires, an invalid value causes a warning, and the default is used. Without a valid endpoint, or
//! with TLS files that cannot be used, there are no traces.

use std::time::Duration;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Uri};
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{BatchConfig, BatchConfigBuilder, Sampler};

use crate::tls::{ClientFiles, PemSource};

use super::environment::{NumberRange, OtelEnvironment};

/// The default `service.name`.
const SERVICE_NAME: &str = "aspia-relay";
/// The path at which a collector accepts traces over HTTP, according to the OTLP specification.
const HTTP_PATH: &str = "v1/traces";
/// The time limit for one delivery, in milliseconds. The default is that of the specification.
const TIMEOUT_MS: NumberRange<u64> = (10_000, 100, 60_000);
/// The delay between two deliveries, in milliseconds. A delay below the minimum would keep a core busy.
const DELAY_MS: NumberRange<u64> = (5_000, 10, 600_000);
/// The number of spans in the queue, each of about 1 KiB.
const QUEUE_SIZE: NumberRange<usize> = (2_048, 1, 65_536);
/// The number of spans in one delivery.
const BATCH_SIZE: NumberRange<usize> = (512, 1, 65_536);

/// The protocol of a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// `grpc`.
    Grpc,
    /// `http/protobuf`.
    Http,
}

/// The settings of traces.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// The collector's address; over HTTP with the whole path.
    pub endpoint: Uri,
    /// The collector's protocol.
    pub protocol: OtlpProtocol,
    /// The headers of each delivery. Their values are marked as sensitive.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// The time limit for one delivery.
    pub timeout: Duration,
    /// Whether deliveries are compressed.
    pub(super) uses_gzip: bool,
    /// The CA and the client certificate, for an `https` endpoint.
    pub(super) tls: ClientFiles,
    pub(super) sampler: Sampler,
    pub(super) attributes: Vec<KeyValue>,
    pub(super) batch: BatchSettings,
}

/// How spans are collected for a delivery.
#[derive(Debug, Clone)]
pub(super) struct BatchSettings {
    queue: usize,
    size: usize,
    delay: Duration,
}

impl BatchSettings {
    fn from_environment(environment: &mut OtelEnvironment<'_>) -> Self {
        let queue = environment.get("OTEL_BSP_MAX_QUEUE_SIZE");
        let queue = environment.parse_number("OTEL_BSP_MAX_QUEUE_SIZE", queue, QUEUE_SIZE);
        let batch = environment.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE");
        let batch = environment.parse_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", batch, BATCH_SIZE);
        let delay = environment.get("OTEL_BSP_SCHEDULE_DELAY");
        let delay = environment.parse_number("OTEL_BSP_SCHEDULE_DELAY", delay, DELAY_MS);
        Self { queue, size: batch.min(queue), delay: Duration::from_millis(delay) }
    }

    /// Converts the settings to those of the SDK.
    pub(super) fn config(&self) -> BatchConfig {
        BatchConfigBuilder::default()
            .with_max_queue_size(self.queue)
            .with_max_export_batch_size(self.size)
            .with_scheduled_delay(self.delay)
            .build()
    }
}

impl TraceSettings {
    /// Reads the variables; `None` if traces are off. Adds a text for each problem to `warnings`.
    pub fn from_environment(
        environment: &[(String, String)],
        warnings: &mut Vec<String>,
    ) -> Option<Self> {
        let environment = &mut OtelEnvironment::new(environment, warnings);
        let (endpoint_name, endpoint) = environment.get_exporter("ENDPOINT")?;
        if !is_enabled(environment) {
            return None;
        }
        let protocol = read_protocol(environment);
        let timeout = environment.get_exporter("TIMEOUT").unzip();
        let timeout = environment.parse_number(
            timeout.0.as_deref().unwrap_or_default(),
            timeout.1,
            TIMEOUT_MS,
        );
        let uses_gzip = read_uses_gzip(environment);
        let Some(endpoint) = parse_endpoint(environment, protocol, &endpoint_name, endpoint) else {
            // The value is not shown because it may contain a password.
            environment.warnings.push(format!(
                "{endpoint_name}: expected an address such as http://collector.example:4318; there are no traces"
            ));
            return None;
        };
        let batch = BatchSettings::from_environment(environment);
        Some(Self {
            endpoint,
            protocol,
            headers: read_headers(environment),
            timeout: Duration::from_millis(timeout),
            uses_gzip,
            tls: read_tls(environment)?,
            sampler: read_sampler(environment),
            attributes: read_attributes(environment),
            batch,
        })
    }

    /// Returns the endpoint without its query, which may contain a key.
    pub fn redacted_endpoint(&self) -> String {
        let text = self.endpoint.to_string();
        match text.split_once('?') {
            Some((before, _)) => format!("{before}?…"),
            None => text,
        }
    }

    /// Whether the connection to the collector uses TLS.
    pub fn uses_tls(&self) -> bool {
        self.endpoint.scheme() == Some(&Scheme::HTTPS)
    }

    /// Returns the resource that the spans belong to.
    pub(super) fn resource(&self) -> Resource {
        Resource::builder_empty()
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attributes(self.attributes.clone())
            .build()
    }
}

fn is_enabled(environment: &mut OtelEnvironment<'_>) -> bool {
    if environment.parse_boolean("OTEL_SDK_DISABLED", environment.get("OTEL_SDK_DISABLED")) {
        return false;
    }
    match environment.get("OTEL_TRACES_EXPORTER") {
        None | Some("otlp") => true,
        Some("none") => false,
        Some(other) => {
            environment.warn("OTEL_TRACES_EXPORTER", other, "otlp or none; otlp is used");
            true
        }
    }
}

fn read_protocol(environment: &mut OtelEnvironment<'_>) -> OtlpProtocol {
    match environment.get_exporter("PROTOCOL") {
        None | Some((_, "http/protobuf")) => OtlpProtocol::Http,
        Some((_, "grpc")) => OtlpProtocol::Grpc,
        Some((name, other)) => {
            environment.warn(&name, other, "grpc or http/protobuf; http/protobuf is used");
            OtlpProtocol::Http
        }
    }
}

fn read_uses_gzip(environment: &mut OtelEnvironment<'_>) -> bool {
    match environment.get_exporter("COMPRESSION") {
        None | Some((_, "none")) => false,
        Some((_, "gzip")) => true,
        Some((name, other)) => {
            environment.warn(&name, other, "gzip or none; none is used");
            false
        }
    }
}

fn parse_endpoint(
    environment: &mut OtelEnvironment<'_>,
    protocol: OtlpProtocol,
    name: &str,
    text: &str,
) -> Option<Uri> {
    let text = if text.contains("://") {
        text.to_owned()
    } else {
        // gRPC endpoints may have no scheme, and then use TLS unless `INSECURE` is set.
        let insecure = environment.get_exporter("INSECURE").unzip();
        let insecure =
            environment.parse_boolean(insecure.0.as_deref().unwrap_or_default(), insecure.1);
        match protocol {
            OtlpProtocol::Grpc if insecure => format!("http://{text}"),
            OtlpProtocol::Grpc => format!("https://{text}"),
            OtlpProtocol::Http => return None,
        }
    };
    let uri: Uri = text.parse().ok()?;
    let is_http = [Some("http"), Some("https")].contains(&uri.scheme_str());
    // User information would be logged, and would not even be sent.
    if !is_http || uri.authority()?.as_str().contains('@') || uri.host()?.is_empty() {
        return None;
    }
    if protocol == OtlpProtocol::Grpc || name.ends_with("_TRACES_ENDPOINT") {
        return Some(uri);
    }
    let mut parts = uri.into_parts();
    let base = parts.path_and_query.as_ref().map_or("", PathAndQuery::path);
    let path = format!("{}/{HTTP_PATH}", base.trim_end_matches('/'));
    parts.path_and_query = Some(path.parse().ok()?);
    Uri::from_parts(parts).ok()
}

fn read_headers(environment: &mut OtelEnvironment<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let Some((variable, text)) = environment.get_exporter("HEADERS") else {
        return Vec::new();
    };
    let mut headers = Vec::new();
    for (name, value) in environment.parse_pairs(&variable, text) {
        let name = name.to_ascii_lowercase().parse::<HeaderName>();
        match (name, HeaderValue::from_str(&value)) {
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.push((name, value));
            }
            _ => environment
                .warnings
                .push(format!("{variable}: one of the headers is not valid and is ignored")),
        }
    }
    headers
}

/// Reads the TLS files; `None` if there is a client certificate without its key, or the reverse.
fn read_tls(environment: &mut OtelEnvironment<'_>) -> Option<ClientFiles> {
    let file = |name| environment.get_exporter(name).map(|(_, path)| PemSource::new(path));
    let identity = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            environment.warnings.push(
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY: expected both or \
                 neither; there are no traces"
                    .into(),
            );
            return None;
        }
    };
    Some(ClientFiles { ca: file("CERTIFICATE"), identity })
}

fn read_sampler(environment: &mut OtelEnvironment<'_>) -> Sampler {
    const NAME: &str = "OTEL_TRACES_SAMPLER";
    let parent_based = |root| Sampler::ParentBased(Box::new(root));
    match environment.get(NAME) {
        None | Some("parentbased_always_on") => parent_based(Sampler::AlwaysOn),
        Some("always_on") => Sampler::AlwaysOn,
        Some("always_off") => Sampler::AlwaysOff,
        Some("parentbased_always_off") => parent_based(Sampler::AlwaysOff),
        Some("traceidratio") => Sampler::TraceIdRatioBased(read_ratio(environment)),
        Some("parentbased_traceidratio") => {
            parent_based(Sampler::TraceIdRatioBased(read_ratio(environment)))
        }
        Some(other) => {
            environment.warn(
                NAME,
                other,
                "always_on, always_off, traceidratio, or one of these with the prefix parentbased_; \
                 parentbased_always_on is used",
            );
            parent_based(Sampler::AlwaysOn)
        }
    }
}

fn read_ratio(environment: &mut OtelEnvironment<'_>) -> f64 {
    const NAME: &str = "OTEL_TRACES_SAMPLER_ARG";
    let Some(text) = environment.get(NAME) else { return 1.0 };
    match text.parse() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
        _ => {
            environment.warn(NAME, text, "a number from 0 to 1; 1 is used");
            1.0
        }
    }
}

fn read_attributes(environment: &mut OtelEnvironment<'_>) -> Vec<KeyValue> {
    const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let mut attributes = vec![KeyValue::new("service.name", SERVICE_NAME)];
    if let Some(text) = environment.get(NAME) {
        let pairs = environment.parse_pairs(NAME, text);
        attributes
            .extend(pairs.into_iter().map(|(name, value)| KeyValue::new(name.to_owned(), value)));
    }
    if let Some(name) = environment.get("OTEL_SERVICE_NAME") {
        attributes.push(KeyValue::new("service.name", name.to_owned()));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> (Option<TraceSettings>, Vec<String>) {
        let environment: Vec<_> =
            variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let mut warnings = Vec::new();
        (TraceSettings::from_environment(&environment, &mut warnings), warnings)
    }

    fn with(variables: &[(&str, &str)]) -> (TraceSettings, Vec<String>) {
        let mut all = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")];
        all.extend(variables);
        let (settings, warnings) = read(&all);
        (settings.unwrap(), warnings)
    }

    #[test]
    fn traces_are_off_without_an_endpoint_or_when_disabled() {
        assert!(read(&[]).0.is_none());
        assert!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).0.is_none());
        for (name, value) in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            let (settings, warnings) =
                read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"), (name, value)]);
            assert!(settings.is_none() && warnings.is_empty(), "{warnings:?}");
        }
    }

    #[test]
    fn endpoint_follows_the_specification() {
        const GENERIC: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        const GRPC: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        const INSECURE: (&str, &str) = ("OTEL_EXPORTER_OTLP_INSECURE", "true");
        for (variables, expected) in [
            (&[(GENERIC, "http://c:4318")][..], "http://c:4318/v1/traces"),
            (&[(GENERIC, "https://c/otlp/")], "https://c/otlp/v1/traces"),
            (&[(TRACES, "http://c:4318/x")], "http://c:4318/x"),
            (&[(GENERIC, "http://other"), (TRACES, "http://c/")], "http://c/"),
            (&[(GENERIC, "http://c:4317"), GRPC], "http://c:4317/"),
            (&[(GENERIC, "c:4317"), GRPC], "https://c:4317/"),
            (&[(GENERIC, "c:4317"), GRPC, INSECURE], "http://c:4317/"),
            (&[(GENERIC, "https://[::1]:4317"), GRPC, INSECURE], "https://[::1]:4317/"),
        ] {
            let (settings, warnings) = read(variables);
            assert_eq!(settings.unwrap().endpoint.to_string(), expected);
            assert!(warnings.is_empty(), "{warnings:?}");
        }
        for bad in ["c:4318", "unix:///x", "http://", "http://user:pass@c:4318", "http://a b"] {
            let (settings, warnings) = read(&[(GENERIC, bad)]);
            assert!(settings.is_none(), "{bad}");
            assert!(warnings[0].contains(GENERIC) && !warnings[0].contains("pass"), "{warnings:?}");
        }
    }

    #[test]
    fn headers_are_decoded_and_redacted() {
        let value = "Authorization=Basic%20c2VjcmV0, x-team = relays ,broken";
        let (settings, warnings) = with(&[("OTEL_EXPORTER_OTLP_HEADERS", value)]);
        let headers: Vec<_> = settings
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(headers, [("authorization", "Basic c2VjcmV0"), ("x-team", "relays")]);
        assert_eq!(warnings.len(), 1);
        assert!(!format!("{settings:?} {warnings:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn invalid_value_causes_a_warning_and_the_default_is_used() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "br"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_BSP_SCHEDULE_DELAY", "0"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "99999999"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_SDK_DISABLED", "yes"),
        ] {
            let (_, warnings) = with(&[(name, value)]);
            assert_eq!(warnings.len(), 1, "{name}: {warnings:?}");
            let warning = &warnings[0];
            assert!(warning.contains(name) && warning.contains(value), "{warning}");
            assert!(warning.contains("is used"), "{warning}");
        }
        let (_, warnings) =
            with(&[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")]);
        assert!(warnings[0].contains("OTEL_TRACES_SAMPLER_ARG"), "{warnings:?}");
    }

    #[test]
    fn service_name_is_set_and_attributes_are_decoded() {
        let value = |settings: &TraceSettings, key: &'static str| {
            settings.resource().get(&key.into()).map(|value| value.to_string())
        };
        let (plain, _) = with(&[]);
        assert_eq!(value(&plain, "service.name").as_deref(), Some("aspia-relay"));
        assert_eq!(value(&plain, "telemetry.sdk.language").as_deref(), Some("rust"));
        let (set, _) = with(&[
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=x,deployment.environment.name=a%2Cb"),
            ("OTEL_SERVICE_NAME", "relay7"),
        ]);
        assert_eq!(value(&set, "service.name").as_deref(), Some("relay7"));
        assert_eq!(value(&set, "deployment.environment.name").as_deref(), Some("a,b"));
    }

    #[test]
    fn client_key_without_certificate_turns_traces_off() {
        let (settings, warnings) = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4318"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem"),
        ]);
        assert!(settings.is_none());
        assert!(warnings[0].contains("both or neither"), "{warnings:?}");
    }
}
