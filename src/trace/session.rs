//! The trace of one session, made when it is paired: whoever is not paired leaves none.

use std::net::SocketAddr;
use std::time::SystemTime;

use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;
use tokio::time::Instant;

use super::tracer::Tracer;

/// What is known of one of the two peers.
#[derive(Debug, Clone, Copy)]
pub struct PeerFacts {
    /// Where it connects from.
    pub address: SocketAddr,
    /// When it was accepted.
    pub accepted: Instant,
    /// When its first message was opened.
    pub opened: Instant,
}

/// Who the peers are; only where `TracePeerIdentity` allows it.
#[derive(Debug, Clone)]
pub struct IdentityFacts {
    /// The operator's name.
    pub user_name: String,
    /// The remote machine's number.
    pub host_id: u64,
}

/// What is known of a session when it is paired.
#[derive(Debug)]
pub struct SessionFacts {
    /// Its number.
    pub id: u64,
    /// Its peers, the first to come first.
    pub peers: [PeerFacts; 2],
    /// When it was paired.
    pub paired: Instant,
    /// Who they are. Without it their addresses are left out as well.
    pub identity: Option<IdentityFacts>,
}

/// The spans of a session that are not over yet. Dropped, it ends as one that failed.
#[derive(Debug, Default)]
pub struct SessionTrace(Option<Box<Spans>>);

#[derive(Debug)]
struct Spans {
    session: Context,
    forward: Context,
}

/// The clocks of tasks and of traces, at one moment.
struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    fn time(&self, instant: Instant) -> SystemTime {
        self.time - self.instant.saturating_duration_since(instant)
    }
}

impl Tracer {
    /// Begins the trace of a session that has just been paired. `facts` are only asked for where traces are on.
    pub fn session(&self, facts: impl FnOnce() -> SessionFacts) -> SessionTrace {
        SessionTrace(self.0.as_ref().map(|tracer| Box::new(Spans::begin(tracer, facts()))))
    }
}

impl Spans {
    fn begin(tracer: &SdkTracer, facts: SessionFacts) -> Self {
        let clock = Clock::now();
        let tcp = || KeyValue::new("network.transport", "tcp");
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let mut attributes = vec![tcp(), KeyValue::new("aspia.relay.session.id", number(facts.id))];
        let with_addresses = facts.identity.is_some();
        if let Some(identity) = facts.identity {
            attributes.push(KeyValue::new("user.name", identity.user_name));
            attributes.push(KeyValue::new("aspia.relay.host_id", number(identity.host_id)));
        }
        let [first, second] = facts.peers;
        let begin = |parent: &Context, name, kind, from, attributes: Vec<KeyValue>| {
            let span = SpanBuilder::from_name(name)
                .with_kind(kind)
                .with_start_time(clock.time(from))
                .with_attributes(attributes)
                .start_with_context(tracer, parent);
            parent.with_span(span)
        };
        let accepted = first.accepted.min(second.accepted);
        let session = begin(&Context::new(), "session", SpanKind::Internal, accepted, attributes);
        for (order, peer) in (1..).zip([first, second]) {
            let mut attributes = vec![tcp(), KeyValue::new("aspia.relay.peer.order", order)];
            if with_addresses {
                let (ip, port) = (peer.address.ip().to_canonical(), peer.address.port());
                attributes.push(KeyValue::new("client.address", ip.to_string()));
                attributes.push(KeyValue::new("client.port", i64::from(port)));
            }
            begin(&session, "peer.handshake", SpanKind::Server, peer.accepted, attributes)
                .span()
                .end_with_timestamp(clock.time(peer.opened));
        }
        let ready = first.opened.min(second.opened);
        begin(&session, "pairing", SpanKind::Internal, ready, Vec::new())
            .span()
            .end_with_timestamp(clock.time(facts.paired));
        let forward = begin(&session, "forward", SpanKind::Internal, facts.paired, vec![tcp()]);
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

/// The end of a session that is the relay's own failure.
const FAILED: &str = "error";

impl SessionTrace {
    /// Ends it: for which reason, and how many bytes were forwarded in both directions together.
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
