//! What a collector answers to a delivery. Success is not enough: a login page answers 200 to everything, and a collector
//! may take a delivery and reject some of its spans.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use serde_json::Value;

/// Longest text of a collector that is repeated, in characters.
const SHOWN: usize = 200;

/// What became of a delivery that was answered with success.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Answer {
    /// Spans that the collector did not take.
    pub(super) rejected: u64,
    /// What it says about them, or about the delivery as a whole, as a word for people; empty where it says nothing.
    pub(super) says: String,
}

impl Answer {
    /// Reads what gRPC has unpacked.
    pub(super) fn of(response: ExportTraceServiceResponse) -> Self {
        response.partial_success.map_or_else(Self::default, |partial| Self {
            rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
            says: shown(&partial.error_message),
        })
    }

    /// Reads the body of an answer over HTTP.
    ///
    /// # Errors
    /// In words, where it is not what a collector answers.
    pub(super) fn read(content_type: Option<&str>, body: &[u8]) -> Result<Self, String> {
        let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
        let read = match media_type.trim().to_ascii_lowercase().as_str() {
            // Nothing to say is an empty message, whatever it is called.
            _ if body.is_empty() => Some(Self::default()),
            "application/x-protobuf" | "application/protobuf" | "application/octet-stream" | "" => {
                ExportTraceServiceResponse::decode(body).ok().map(Self::of)
            }
            // Not what was asked for, but clear.
            "application/json" => Self::of_json(body),
            _ => None,
        };
        read.ok_or_else(|| {
            format!(
                "it answered with success but not as a collector does ({}, {} bytes that begin with {}): is this the \
                 address of a collector, or that of a login page or a proxy?",
                match content_type {
                    Some(given) => shown(given),
                    None => "no Content-Type".to_owned(),
                },
                body.len(),
                shown(&String::from_utf8_lossy(&body[..body.len().min(40)]))
            )
        })
    }

    fn of_json(body: &[u8]) -> Option<Self> {
        let answer: Value = serde_json::from_slice(body).ok()?;
        let fields = answer.as_object()?;
        let Some(partial) = fields.get("partialSuccess").or_else(|| fields.get("partial_success"))
        else {
            // An object that says something else is somebody else's.
            return fields.is_empty().then(Self::default);
        };
        let field = |names: [&str; 2]| names.iter().find_map(|name| partial.get(*name));
        let rejected = field(["rejectedSpans", "rejected_spans"]);
        // Numbers of 64 bits are strings in the JSON of Protocol Buffers.
        let rejected = rejected.and_then(|n| n.as_u64().or_else(|| n.as_str()?.parse().ok()));
        let says = field(["errorMessage", "error_message"]).and_then(Value::as_str);
        Some(Self { rejected: rejected.unwrap_or(0), says: shown(says.unwrap_or_default()) })
    }
}

/// Some of a text, as nothing that a terminal would act on; nothing of an empty one.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
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
    fn what_a_collector_answers_is_taken() {
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
        for (content_type, body, rejected, says) in cases {
            let answer = Answer::read(*content_type, body).unwrap();
            let expected = Answer { rejected: *rejected, says: (*says).to_owned() };
            assert_eq!(answer, expected, "{content_type:?} {body:?}");
        }
        assert_eq!(Answer::read(None, &partial(-1, "")).unwrap(), Answer::default());
    }

    #[test]
    fn what_anybody_else_answers_is_not() {
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
            let error = Answer::read(*content_type, body).unwrap_err();
            assert!(error.contains("login page"), "{error}");
            assert!(error.len() < 600 && !error.contains(char::is_control), "{error}");
        }
    }

    #[test]
    fn a_long_word_of_a_collector_is_cut() {
        let answer = Answer::read(None, &partial(1, &"\n".repeat(5000))).unwrap();
        assert!(answer.says.len() < 500 && !answer.says.contains('\n'), "{}", answer.says);
    }
}
