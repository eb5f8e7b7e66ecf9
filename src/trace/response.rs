//! Parses a collector's response to a delivery. A successful status is not enough: a login page answers 200 to everything,
//! and a collector may accept a delivery and reject some of its spans.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use serde_json::Value;

/// The most characters of a text from the collector that are shown.
const MAX_SHOWN: usize = 200;

/// The response to a delivery that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ExportResponse {
    /// The number of spans that the collector did not accept.
    pub(super) rejected: u64,
    /// The collector's message about them, or about the whole delivery, escaped; empty if there is none.
    pub(super) message: String,
}

impl ExportResponse {
    /// Converts a response that gRPC has decoded.
    pub(super) fn from_proto(response: ExportTraceServiceResponse) -> Self {
        response.partial_success.map_or_else(Self::default, |partial| Self {
            rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
            message: quote_beginning(&partial.error_message),
        })
    }

    /// Parses the body of a response over HTTP.
    ///
    /// # Errors
    /// The reason why the response is not that of a collector.
    pub(super) fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Self, String> {
        let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
        let parsed = match media_type.trim().to_ascii_lowercase().as_str() {
            // An empty response is an empty message of any type.
            _ if body.is_empty() => Some(Self::default()),
            "application/x-protobuf" | "application/protobuf" | "application/octet-stream" | "" => {
                ExportTraceServiceResponse::decode(body).ok().map(Self::from_proto)
            }
            // This is not the type that was requested, but it is unambiguous.
            "application/json" => Self::from_json(body),
            _ => None,
        };
        parsed.ok_or_else(|| {
            format!(
                "the response is successful but not that of a collector ({}, {} bytes that begin with {}): is this the \
                 address of a collector, or that of a login page or a proxy?",
                match content_type {
                    Some(given) => quote_beginning(given),
                    None => "no Content-Type".to_owned(),
                },
                body.len(),
                quote_beginning(&String::from_utf8_lossy(&body[..body.len().min(40)]))
            )
        })
    }

    fn from_json(body: &[u8]) -> Option<Self> {
        let response: Value = serde_json::from_slice(body).ok()?;
        let fields = response.as_object()?;
        let Some(partial) = fields.get("partialSuccess").or_else(|| fields.get("partial_success"))
        else {
            // An object with other fields does not come from a collector.
            return fields.is_empty().then(Self::default);
        };
        let field = |names: [&str; 2]| names.iter().find_map(|name| partial.get(*name));
        let rejected = field(["rejectedSpans", "rejected_spans"]);
        // 64-bit numbers are strings in the JSON format of Protocol Buffers.
        let rejected = rejected.and_then(|n| n.as_u64().or_else(|| n.as_str()?.parse().ok()));
        let message = field(["errorMessage", "error_message"]).and_then(Value::as_str);
        Some(Self {
            rejected: rejected.unwrap_or(0),
            message: quote_beginning(message.unwrap_or_default()),
        })
    }
}

/// Quotes the beginning of a text, escaped for terminals; an empty text stays empty.
pub(super) fn quote_beginning(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        _ if text.is_empty() => String::new(),
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

    fn partial(rejected_spans: i64, error_message: &str) -> Vec<u8> {
        let error_message = error_message.to_owned();
        let partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message });
        ExportTraceServiceResponse { partial_success }.encode_to_vec()
    }

    #[test]
    fn responses_of_collectors_are_parsed() {
        let (some, none) = (partial(3, "too old"), partial(0, ""));
        let cases: &[(Option<&str>, &[u8], u64, &str)] = &[
            (Some("application/x-protobuf"), b"", 0, ""),
            (Some("text/plain"), b"", 0, ""),
            (None, b"", 0, ""),
            (Some("application/x-protobuf"), &none, 0, ""),
            (Some("Application/X-Protobuf; charset=utf-8"), &some, 3, "\"too old\""),
            (None, &some, 3, "\"too old\""),
            (Some("application/json"), b"{}", 0, ""),
            (Some("application/json"), br#"{"partialSuccess":{}}"#, 0, ""),
            (
                Some("application/json; charset=utf-8"),
                br#"{"partialSuccess":{"rejectedSpans":"2","errorMessage":"no"}}"#,
                2,
                "\"no\"",
            ),
        ];
        for (content_type, body, rejected, message) in cases {
            let response = ExportResponse::parse(*content_type, body).unwrap();
            let expected = ExportResponse { rejected: *rejected, message: (*message).to_owned() };
            assert_eq!(response, expected, "{content_type:?} {body:?}");
        }
        assert_eq!(
            ExportResponse::parse(None, &partial(-1, "")).unwrap(),
            ExportResponse::default()
        );
    }

    #[test]
    fn responses_of_other_servers_are_errors() {
        let long = "x".repeat(10_000);
        let cases: &[(Option<&str>, &[u8])] = &[
            (Some("text/html; charset=utf-8"), b"<!doctype html><title>Log in</title>"),
            (None, b"<html>"),
            (Some("application/x-protobuf"), b"<html>"),
            (Some("text/plain"), b"OK"),
            (Some("application/json"), br#"{"status":"login required"}"#),
            (Some("application/json"), b"[]"),
            (Some("application/json"), b"<html>"),
            (Some(&long), long.as_bytes()),
            (Some("text/html"), b"\x1b[31m"),
        ];
        for (content_type, body) in cases {
            let error = ExportResponse::parse(*content_type, body).unwrap_err();
            assert!(error.contains("login page"), "{error}");
            assert!(error.len() < 600 && !error.contains(char::is_control), "{error}");
        }
    }

    #[test]
    fn long_message_of_a_collector_is_truncated() {
        let response = ExportResponse::parse(None, &partial(1, &"\n".repeat(5000))).unwrap();
        assert!(
            response.message.len() < 500 && !response.message.contains('\n'),
            "{}",
            response.message
        );
    }
}
