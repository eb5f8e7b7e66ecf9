//! The standard variables of OpenTelemetry, as far as they concern an exporter of traces by OTLP.
//!
//! Names and defaults are those of the OpenTelemetry specification ("OTLP exporter configuration", "Environment
//! variable specification"). As it demands, what cannot be understood is warned about and the default taken; but
//! without a good endpoint, or with files of TLS that cannot be used, there are no traces.

use std::collections::HashMap;
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Uri};
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{BatchConfig, BatchConfigBuilder, Sampler};
use percent_encoding::percent_decode_str;

use crate::tls::{ClientFiles, Source};

/// `service.name` where nobody sets another.
const SERVICE_NAME: &str = "aspia-relay";
/// Where a collector takes traces over HTTP, by the OTLP specification.
const HTTP_PATH: &str = "v1/traces";
/// Time for one delivery, in milliseconds: the default of the specification, and what is taken.
const TIMEOUT: (u64, u64, u64) = (10_000, 100, 60_000);
/// Time between two deliveries, in milliseconds. Less than the least would keep a core busy.
const DELAY: (u64, u64, u64) = (5_000, 10, 600_000);
/// Spans that wait. Each takes about 1 KiB.
const QUEUE: (usize, usize, usize) = (2_048, 1, 65_536);
/// Spans in one delivery.
const BATCH: (usize, usize, usize) = (512, 1, 65_536);

/// How traces are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `grpc`.
    Grpc,
    /// `http/protobuf`.
    Http,
}

/// What the variables say.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// The collector; over HTTP with the whole path.
    pub endpoint: Uri,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Sent with each delivery; the values are marked as secrets.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Time for one delivery.
    pub timeout: Duration,
    /// Whether deliveries are compressed.
    pub(super) gzip: bool,
    /// Authorities and client certificate, where the endpoint is `https`.
    pub(super) tls: ClientFiles,
    pub(super) sampler: Sampler,
    pub(super) attributes: Vec<KeyValue>,
    pub(super) batch: Batch,
}

/// How spans are collected for a delivery.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    queue: usize,
    size: usize,
    delay: Duration,
}

impl Batch {
    pub(super) fn config(&self) -> BatchConfig {
        BatchConfigBuilder::default()
            .with_max_queue_size(self.queue)
            .with_max_export_batch_size(self.size)
            .with_scheduled_delay(self.delay)
            .build()
    }
}

impl TraceSettings {
    /// Reads the variables; `None` where traces are off. Adds what is wrong to `warnings`.
    pub fn from_environment(
        environment: &[(String, String)],
        warnings: &mut Vec<String>,
    ) -> Option<Self> {
        let mut variables = Variables {
            all: environment.iter().map(|(n, v)| (n.as_str(), v.trim())).collect(),
            warnings,
        };
        variables.settings()
    }

    /// The endpoint as it may be shown: what stands behind a question mark may be a key.
    pub fn shown_endpoint(&self) -> String {
        let text = self.endpoint.to_string();
        match text.split_once('?') {
            Some((before, _)) => format!("{before}?…"),
            None => text,
        }
    }

    /// Whether the collector is spoken to over TLS.
    pub fn is_tls(&self) -> bool {
        self.endpoint.scheme() == Some(&Scheme::HTTPS)
    }

    pub(super) fn resource(&self) -> Resource {
        Resource::builder_empty()
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attributes(self.attributes.clone())
            .build()
    }
}

struct Variables<'a> {
    all: HashMap<&'a str, &'a str>,
    warnings: &'a mut Vec<String>,
}

impl<'a> Variables<'a> {
    /// A variable that is not empty.
    fn get(&self, name: &str) -> Option<&'a str> {
        self.all.get(name).copied().filter(|value| !value.is_empty())
    }

    /// A variable of the exporter: the form for traces wins.
    fn exporter(&self, name: &str) -> Option<(String, &'a str)> {
        ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].iter().find_map(|start| {
            let name = format!("{start}{name}");
            self.get(&name).map(|value| (name, value))
        })
    }

    fn warn(&mut self, name: &str, value: &str, expected: &str) {
        self.warnings.push(format!("{name} = {value:?}: expected {expected}"));
    }

    /// A number within bounds; what is outside is moved to the nearest bound.
    fn number<T>(&mut self, name: &str, value: Option<&str>, (default, least, most): (T, T, T)) -> T
    where
        T: std::str::FromStr + Ord + Copy + std::fmt::Display,
    {
        let Some(value) = value else { return default };
        match value.parse::<T>() {
            Ok(number) if (least..=most).contains(&number) => number,
            Ok(number) => {
                let taken = number.clamp(least, most);
                self.warn(
                    name,
                    value,
                    &format!("a number from {least} to {most}; {taken} is taken"),
                );
                taken
            }
            Err(_) => {
                self.warn(
                    name,
                    value,
                    &format!("a number from {least} to {most}; {default} is taken"),
                );
                default
            }
        }
    }

    fn boolean(&mut self, name: &str, value: Option<&str>) -> bool {
        match value {
            Some(value) if value.eq_ignore_ascii_case("true") => true,
            Some(value) if !value.eq_ignore_ascii_case("false") => {
                self.warn(name, value, "true or false; false is taken");
                false
            }
            _ => false,
        }
    }

    fn settings(&mut self) -> Option<TraceSettings> {
        let (endpoint_name, endpoint) = self.exporter("ENDPOINT")?;
        if self.boolean("OTEL_SDK_DISABLED", self.get("OTEL_SDK_DISABLED")) {
            return None;
        }
        if let Some(exporter) = self.get("OTEL_TRACES_EXPORTER") {
            match exporter {
                "none" => return None,
                "otlp" => {}
                other => self.warn("OTEL_TRACES_EXPORTER", other, "otlp or none; otlp is taken"),
            }
        }
        let protocol = match self.exporter("PROTOCOL") {
            None | Some((_, "http/protobuf")) => Protocol::Http,
            Some((_, "grpc")) => Protocol::Grpc,
            Some((name, other)) => {
                self.warn(&name, other, "grpc or http/protobuf; http/protobuf is taken");
                Protocol::Http
            }
        };
        let timeout = self.exporter("TIMEOUT").unzip();
        let timeout = self.number(timeout.0.as_deref().unwrap_or_default(), timeout.1, TIMEOUT);
        let gzip = match self.exporter("COMPRESSION") {
            None | Some((_, "none")) => false,
            Some((_, "gzip")) => true,
            Some((name, other)) => {
                self.warn(&name, other, "gzip or none; none is taken");
                false
            }
        };
        let Some(endpoint) = self.endpoint(protocol, &endpoint_name, endpoint) else {
            // It may hold a password.
            self.warnings.push(format!(
                "{endpoint_name}: expected an address such as http://collector.example:4318; there are no traces"
            ));
            return None;
        };
        let queue = self.get("OTEL_BSP_MAX_QUEUE_SIZE");
        let queue = self.number("OTEL_BSP_MAX_QUEUE_SIZE", queue, QUEUE);
        let batch = self.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE");
        let batch = self.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", batch, BATCH);
        let delay = self.get("OTEL_BSP_SCHEDULE_DELAY");
        let delay = self.number("OTEL_BSP_SCHEDULE_DELAY", delay, DELAY);
        Some(TraceSettings {
            endpoint,
            protocol,
            headers: self.headers(),
            timeout: Duration::from_millis(timeout),
            gzip,
            tls: self.tls()?,
            sampler: self.sampler(),
            attributes: self.attributes(),
            batch: Batch { queue, size: batch.min(queue), delay: Duration::from_millis(delay) },
        })
    }

    fn endpoint(&mut self, protocol: Protocol, name: &str, text: &str) -> Option<Uri> {
        let text = if text.contains("://") {
            text.to_owned()
        } else {
            // Without a scheme it is gRPC's way to name a host, over TLS unless told otherwise.
            let insecure = self.exporter("INSECURE").unzip();
            let insecure = self.boolean(insecure.0.as_deref().unwrap_or_default(), insecure.1);
            match protocol {
                Protocol::Grpc if insecure => format!("http://{text}"),
                Protocol::Grpc => format!("https://{text}"),
                Protocol::Http => return None,
            }
        };
        let uri: Uri = text.parse().ok()?;
        let known = [Some("http"), Some("https")].contains(&uri.scheme_str());
        // What is in front of the host would be sent to nobody, and shown.
        if !known || uri.authority()?.as_str().contains('@') || uri.host()?.is_empty() {
            return None;
        }
        if protocol == Protocol::Grpc || name.ends_with("_TRACES_ENDPOINT") {
            return Some(uri);
        }
        let mut parts = uri.into_parts();
        let base = parts.path_and_query.as_ref().map_or("", PathAndQuery::path);
        let path = format!("{}/{HTTP_PATH}", base.trim_end_matches('/'));
        parts.path_and_query = Some(path.parse().ok()?);
        Uri::from_parts(parts).ok()
    }

    /// `name=value,name=value`, values percent-encoded.
    fn pairs(&mut self, variable: &str, text: &'a str) -> Vec<(&'a str, String)> {
        let mut pairs = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let decoded = part.split_once('=').and_then(|(name, value)| {
                let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
                Some((name.trim(), value.into_owned()))
            });
            match decoded {
                Some(pair) if !pair.0.is_empty() => pairs.push(pair),
                // It may be half a token: not shown.
                _ => self.warnings.push(format!(
                    "{variable}: expected name=value, several with commas between, values percent-encoded; \
                     one of them is left out"
                )),
            }
        }
        pairs
    }

    fn headers(&mut self) -> Vec<(HeaderName, HeaderValue)> {
        let Some((variable, text)) = self.exporter("HEADERS") else {
            return Vec::new();
        };
        let mut headers = Vec::new();
        for (name, value) in self.pairs(&variable, text) {
            let name = name.to_ascii_lowercase().parse::<HeaderName>();
            match (name, HeaderValue::from_str(&value)) {
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(true);
                    headers.push((name, value));
                }
                _ => self
                    .warnings
                    .push(format!("{variable}: one of the headers cannot be sent and is left out")),
            }
        }
        headers
    }

    fn tls(&mut self) -> Option<ClientFiles> {
        let file = |name| self.exporter(name).map(|(_, path)| Source::new(path));
        let identity = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                self.warnings.push(
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY: expected both or \
                     neither; there are no traces"
                        .into(),
                );
                return None;
            }
        };
        Some(ClientFiles { ca: file("CERTIFICATE"), identity })
    }

    fn sampler(&mut self) -> Sampler {
        const NAME: &str = "OTEL_TRACES_SAMPLER";
        let parent_based = |root| Sampler::ParentBased(Box::new(root));
        match self.get(NAME) {
            None | Some("parentbased_always_on") => parent_based(Sampler::AlwaysOn),
            Some("always_on") => Sampler::AlwaysOn,
            Some("always_off") => Sampler::AlwaysOff,
            Some("parentbased_always_off") => parent_based(Sampler::AlwaysOff),
            Some("traceidratio") => Sampler::TraceIdRatioBased(self.ratio()),
            Some("parentbased_traceidratio") => {
                parent_based(Sampler::TraceIdRatioBased(self.ratio()))
            }
            Some(other) => {
                self.warn(
                    NAME,
                    other,
                    "always_on, always_off, traceidratio, or one of these with parentbased_ in front; \
                     always_on is taken",
                );
                parent_based(Sampler::AlwaysOn)
            }
        }
    }

    fn ratio(&mut self) -> f64 {
        const NAME: &str = "OTEL_TRACES_SAMPLER_ARG";
        let Some(text) = self.get(NAME) else { return 1.0 };
        match text.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
            _ => {
                self.warn(NAME, text, "a number from 0 to 1; 1 is taken");
                1.0
            }
        }
    }

    fn attributes(&mut self) -> Vec<KeyValue> {
        const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let mut attributes = vec![KeyValue::new("service.name", SERVICE_NAME)];
        if let Some(text) = self.get(NAME) {
            let pairs = self.pairs(NAME, text);
            attributes.extend(
                pairs.into_iter().map(|(name, value)| KeyValue::new(name.to_owned(), value)),
            );
        }
        if let Some(name) = self.get("OTEL_SERVICE_NAME") {
            attributes.push(KeyValue::new("service.name", name.to_owned()));
        }
        attributes
    }
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
    fn traces_are_off_without_an_endpoint_and_when_told() {
        assert!(read(&[]).0.is_none());
        assert!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).0.is_none());
        for (name, value) in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            let (settings, warnings) =
                read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"), (name, value)]);
            assert!(settings.is_none() && warnings.is_empty(), "{warnings:?}");
        }
    }

    #[test]
    fn endpoints() {
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
    fn headers_are_decoded_and_not_shown() {
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
    fn what_cannot_be_understood_is_named_and_the_default_taken() {
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
            assert!(warning.contains("taken"), "{warning}");
        }
        let (_, warnings) =
            with(&[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")]);
        assert!(warnings[0].contains("OTEL_TRACES_SAMPLER_ARG"), "{warnings:?}");
    }

    #[test]
    fn the_service_is_named_and_attributes_are_decoded() {
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
    fn half_an_identity_is_none() {
        let (settings, warnings) = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4318"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem"),
        ]);
        assert!(settings.is_none());
        assert!(warnings[0].contains("both or neither"), "{warnings:?}");
    }
}
