//! The trace of a session. It is created when the peers are paired: connections without a partner have no trace.

use std::net::SocketAddr;
use std::time::SystemTime;

use opentelemetry::trace::{
    Link, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags,
    TraceId, TraceState,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;
use tokio::time::Instant;

use super::tracer::Tracer;

/// What a trace says about one of the two peers.
#[derive(Debug, Clone, Copy)]
pub struct PeerFacts {
    /// The peer's address, as the relay sees it.
    pub address: SocketAddr,
    /// When its connection was accepted.
    pub accepted: Instant,
    /// When its first message was decrypted.
    pub opened: Instant,
}

/// Identifies the peers. It is present only if `TracePeerIdentity` is enabled.
#[derive(Debug, Clone)]
pub struct IdentityFacts {
    /// The user name of the Client's operator.
    pub user_name: String,
    /// The id of the Host.
    pub host_id: u64,
}

/// What a trace says about a session when it is paired.
#[derive(Debug)]
pub struct SessionFacts {
    /// The session id.
    pub id: u64,
    /// The peers, in the order of their arrival.
    pub peers: [PeerFacts; 2],
    /// When the peers were paired.
    pub paired: Instant,
    /// Identifies the peers. Without it, their addresses are omitted as well.
    pub identity: Option<IdentityFacts>,
}

/// What a trace says about a session that began in another process.
#[derive(Debug)]
pub struct ContinuedFacts {
    /// The session id.
    pub id: u64,
    /// When it went on in this process.
    pub continued: Instant,
    /// Identifies the peers.
    pub identity: Option<IdentityFacts>,
    /// The context of the part before, as [`SessionTrace::traceparent`] returned it.
    pub traceparent: Option<String>,
}

/// The open spans of a session. If this is dropped without [`Self::end`], the session ends as failed.
#[derive(Debug, Default)]
pub struct SessionTrace(Option<Box<OpenSpans>>);

#[derive(Debug)]
struct OpenSpans {
    session: Context,
    forward: Context,
}

/// Converts the monotonic time of tasks to the system time of traces.
struct TraceClock {
    instant: Instant,
    time: SystemTime,
}

impl TraceClock {
    fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    fn system_time(&self, instant: Instant) -> SystemTime {
        self.time - self.instant.saturating_duration_since(instant)
    }
}

impl Tracer {
    /// Begins the trace of a session that has just been paired. `facts` is called only if traces are on.
    pub fn begin_session(&self, facts: impl FnOnce() -> SessionFacts) -> SessionTrace {
        SessionTrace(self.0.as_ref().map(|tracer| Box::new(OpenSpans::begin(tracer, facts()))))
    }

    /// Begins the trace of a session that another process has forwarded so far. It is a trace of its own, linked to the one
    /// before: the spans of the part before have ended, or, if that process died, will never be delivered.
    pub fn continue_session(&self, facts: impl FnOnce() -> ContinuedFacts) -> SessionTrace {
        let resume = |tracer| Box::new(OpenSpans::resume(tracer, facts()));
        SessionTrace(self.0.as_ref().map(resume))
    }
}

/// The attributes that every span of a session has, and those of the session itself.
fn session_attributes(id: u64, identity: Option<IdentityFacts>) -> Vec<KeyValue> {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let mut attributes = vec![
        KeyValue::new("network.transport", "tcp"),
        KeyValue::new("aspia.relay.session.id", number(id)),
    ];
    if let Some(identity) = identity {
        attributes.push(KeyValue::new("user.name", identity.user_name));
        attributes.push(KeyValue::new("aspia.relay.host_id", number(identity.host_id)));
    }
    attributes
}

/// Parses the header `traceparent` of W3C Trace Context, version 00.
fn parse_traceparent(text: &str) -> Option<SpanContext> {
    let parts: Vec<&str> = text.split('-').collect();
    let ["00", trace, span, flags] = parts[..] else {
        return None;
    };
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    if !is_hex(trace, 32) || !is_hex(span, 16) || !is_hex(flags, 2) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

impl OpenSpans {
    fn begin(tracer: &SdkTracer, facts: SessionFacts) -> Self {
        let clock = TraceClock::now();
        let tcp = || KeyValue::new("network.transport", "tcp");
        let has_addresses = facts.identity.is_some();
        let attributes = session_attributes(facts.id, facts.identity);
        let [first, second] = facts.peers;
        let begin = |parent: &Context, name, kind, from, attributes: Vec<KeyValue>| {
            let span = SpanBuilder::from_name(name)
                .with_kind(kind)
                .with_start_time(clock.system_time(from))
                .with_attributes(attributes)
                .start_with_context(tracer, parent);
            parent.with_span(span)
        };
        let accepted = first.accepted.min(second.accepted);
        let session = begin(&Context::new(), "session", SpanKind::Internal, accepted, attributes);
        for (order, peer) in (1..).zip([first, second]) {
            let mut attributes = vec![tcp(), KeyValue::new("aspia.relay.peer.order", order)];
            if has_addresses {
                let (ip, port) = (peer.address.ip().to_canonical(), peer.address.port());
                attributes.push(KeyValue::new("client.address", ip.to_string()));
                attributes.push(KeyValue::new("client.port", i64::from(port)));
            }
            begin(&session, "peer.handshake", SpanKind::Server, peer.accepted, attributes)
                .span()
                .end_with_timestamp(clock.system_time(peer.opened));
        }
        let ready = first.opened.min(second.opened);
        begin(&session, "pairing", SpanKind::Internal, ready, Vec::new())
            .span()
            .end_with_timestamp(clock.system_time(facts.paired));
        let forward = begin(&session, "forward", SpanKind::Internal, facts.paired, vec![tcp()]);
        Self { session, forward }
    }

    fn resume(tracer: &SdkTracer, facts: ContinuedFacts) -> Self {
        let ContinuedFacts { id, continued, identity, traceparent } = facts;
        let start = TraceClock::now().system_time(continued);
        let mut attributes = session_attributes(id, identity);
        attributes.push(KeyValue::new("aspia.relay.session.continued", true));
        let before = traceparent.as_deref().and_then(parse_traceparent);
        let begin = |parent: &Context, name, attributes, links| {
            let span = SpanBuilder::from_name(name)
                .with_kind(SpanKind::Internal)
                .with_start_time(start)
                .with_attributes(attributes)
                .with_links(links)
                .start_with_context(tracer, parent);
            parent.with_span(span)
        };
        let links = before.map(Link::with_context).into_iter().collect();
        let session = begin(&Context::new(), "session", attributes, links);
        let tcp = vec![KeyValue::new("network.transport", "tcp")];
        let forward = begin(&session, "forward", tcp, Vec::new());
        Self { session, forward }
    }

    fn end(&self, end: &'static str, bytes: Option<u64>) {
        for context in [&self.forward, &self.session] {
            let span = context.span();
            if let Some(bytes) = bytes {
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                span.set_attribute(KeyValue::new("aspia.relay.session.bytes", bytes));
            }
            span.set_attribute(KeyValue::new("aspia.relay.session.end", end));
            if end == FAILED {
                span.set_attribute(KeyValue::new("error.type", end));
                span.set_status(Status::error("the relay failed"));
            }
            span.end();
        }
    }
}

/// The reason that a session ended because the relay itself failed.
const FAILED: &str = "error";

impl SessionTrace {
    /// Returns the context of the session's span, as in the header `traceparent` of W3C Trace Context, for the process that
    /// continues the session. `None` if traces are off.
    pub fn traceparent(&self) -> Option<String> {
        let span = self.0.as_ref()?.session.span();
        let context = span.span_context();
        context.is_valid().then(|| {
            let flags = context.trace_flags().to_u8();
            format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
        })
    }

    /// Ends the trace, with the reason, and the number of bytes forwarded in both directions together.
    pub fn end(mut self, end: &'static str, bytes: u64) {
        if let Some(spans) = self.0.take() {
            spans.end(end, Some(bytes));
        }
    }
}

impl Drop for SessionTrace {
    fn drop(&mut self) {
        if let Some(spans) = self.0.take() {
            spans.end(FAILED, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
    use parking_lot::Mutex;

    use super::*;

    /// Keeps the spans that ended.
    #[derive(Debug, Clone, Default)]
    struct EndedSpans(std::sync::Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for EndedSpans {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().extend(batch);
            Ok(())
        }
    }

    #[test]
    fn parts_of_a_session_are_linked() {
        let exporter = EndedSpans::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let tracer = Tracer(Some(provider.tracer("test")));
        let now = Instant::now();
        let peer = PeerFacts { address: ([127, 0, 0, 1], 1).into(), accepted: now, opened: now };
        let first = tracer.begin_session(|| SessionFacts {
            id: 7,
            peers: [peer; 2],
            paired: now,
            identity: None,
        });
        let traceparent = first.traceparent();
        first.end("departed", 1);
        let second = tracer.continue_session(|| ContinuedFacts {
            id: 7,
            continued: now,
            identity: None,
            traceparent: traceparent.clone(),
        });
        assert_ne!(second.traceparent(), traceparent);
        second.end("closed", 2);
        let spans = exporter.0.lock().clone();
        let sessions: Vec<_> = spans.iter().filter(|span| span.name == "session").collect();
        let [before, after] = &sessions[..] else { panic!("{sessions:?}") };
        let [link] = &after.links.links[..] else { panic!("{after:?}") };
        assert_eq!(link.span_context.trace_id(), before.span_context.trace_id());
        assert_eq!(link.span_context.span_id(), before.span_context.span_id());
        assert_ne!(after.span_context.trace_id(), before.span_context.trace_id());
        let is_continued = |span: &SpanData| {
            span.attributes.contains(&KeyValue::new("aspia.relay.session.continued", true))
        };
        assert!(is_continued(after) && !is_continued(before));
        let forward = spans.iter().rfind(|span| span.name == "forward").unwrap();
        assert_eq!(forward.parent_span_id, after.span_context.span_id());
    }

    #[test]
    fn context_of_another_form_is_ignored() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        assert!(parse_traceparent(&format!("00-{trace}-{span}-01")).is_some());
        for text in [
            String::new(),
            format!("01-{trace}-{span}-01"),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-00"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-+{}-{span}-01", &trace[1..]),
            format!("00-{trace}-{span}0-01"),
        ] {
            assert!(parse_traceparent(&text).is_none(), "{text}");
        }
        assert_eq!(SessionTrace::default().traceparent(), None);
    }
}
