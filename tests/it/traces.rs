//! Traces as a real OTLP receiver gets them; and a receiver that fails delays no session.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aspia_relay::trace::settings::TraceSettings;
use aspia_relay::trace::{self, TraceExport};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use opentelemetry_semantic_conventions::attribute;
use prost::Message;
use relay_lab::log::CapturedLog;
use relay_lab::relay::Relay;
use relay_lab::router::{Behaviour, LabRouter, Options};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tracing_subscriber::layer::SubscriberExt;

/// The protocol that the collector speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Grpc,
    Http,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http/protobuf",
        }
    }
}

/// One delivery.
#[derive(Debug)]
struct Delivery {
    path: String,
    headers: HeaderMap,
    request: ExportTraceServiceRequest,
}

/// What a collector answers to a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Takes,
    /// It rejects this many spans.
    Rejects(i64),
    /// It is not a collector, but a login page that answers every request.
    LoginPage,
}

impl Reply {
    fn response(self) -> ExportTraceServiceResponse {
        let partial_success = match self {
            Self::Rejects(rejected_spans) => {
                Some(ExportTracePartialSuccess { rejected_spans, error_message: "quota".into() })
            }
            _ => None,
        };
        ExportTraceServiceResponse { partial_success }
    }
}

/// A receiver of OTLP.
struct Collector {
    address: SocketAddr,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    /// The connections that it has accepted.
    connections: Arc<Mutex<Vec<socket2::Socket>>>,
}

/// Receives the requests that tonic has decoded.
struct Sink(mpsc::UnboundedSender<Delivery>, Reply);

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let headers = request.metadata().clone().into_headers();
        let delivery = Delivery { path: String::new(), headers, request: request.into_inner() };
        let _ = self.0.send(delivery);
        Ok(tonic::Response::new(self.1.response()))
    }
}

/// A certificate for 127.0.0.1 that is its own authority, and its key.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// TLS with the certificate `server`, for clients with the certificate `client`.
fn tls(protocol: Protocol, server: &(String, String), client: &str) -> TlsAcceptor {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(client.as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(server.0.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(server.1.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = match protocol {
        Protocol::Grpc => vec![b"h2".to_vec()],
        Protocol::Http => vec![b"http/1.1".to_vec()],
    };
    TlsAcceptor::from(Arc::new(config))
}

impl Collector {
    async fn start(protocol: Protocol, tls: Option<TlsAcceptor>) -> Self {
        Self::start_with(protocol, tls, Reply::Takes).await
    }

    async fn start_with(protocol: Protocol, tls: Option<TlsAcceptor>, reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sink, deliveries) = mpsc::unbounded_channel();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let taken = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                taken.lock().unwrap().push(socket2::SockRef::from(&stream).try_clone().unwrap());
                let (sink, tls) = (sink.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(protocol, stream, sink, reply).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(protocol, stream, sink, reply).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, deliveries, connections }
    }

    /// All deliveries so far.
    fn taken(&mut self) -> Vec<Delivery> {
        std::iter::from_fn(|| self.deliveries.try_recv().ok()).collect()
    }
}

async fn serve(
    protocol: Protocol,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    sink: mpsc::UnboundedSender<Delivery>,
    reply: Reply,
) {
    let io = TokioIo::new(stream);
    match protocol {
        Protocol::Grpc => {
            let service = TraceServiceServer::new(Sink(sink, reply))
                .accept_compressed(tonic::codec::CompressionEncoding::Gzip);
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, TowerToHyperService::new(service))
                .await;
        }
        Protocol::Http => {
            let service = service_fn(move |request: Request<Incoming>| {
                let sink = sink.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let gzip = head.headers.get("content-encoding").is_some_and(|e| e == "gzip");
                    let body = if gzip {
                        let mut plain = Vec::new();
                        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
                        plain
                    } else {
                        body.to_vec()
                    };
                    let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
                    let path = head.uri.path().to_owned();
                    let _ = sink.send(Delivery { path, headers: head.headers, request });
                    let (content_type, answer) = match reply {
                        Reply::LoginPage => {
                            ("text/html; charset=utf-8", b"<!doctype html>".to_vec())
                        }
                        reply => ("application/x-protobuf", reply.response().encode_to_vec()),
                    };
                    let response = Response::builder().header("content-type", content_type);
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::from(answer))).unwrap())
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        }
    }
}

fn settings(variables: &[(&str, &str)]) -> TraceSettings {
    let environment: Vec<_> =
        variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let mut warnings = Vec::new();
    let settings = TraceSettings::from_environment(&environment, &mut warnings);
    assert!(warnings.is_empty(), "{warnings:?}");
    settings.unwrap()
}

async fn start(settings: TraceSettings) -> Result<TraceExport, String> {
    tokio::task::spawn_blocking(move || trace::start(&settings)).await.unwrap()
}

async fn finish(exporting: TraceExport) {
    exporting.finish(trace::SHUTDOWN_TIMEOUT, std::future::pending()).await;
}

/// Bytes that a session of [`one_session`] moves.
const BYTES: i64 = 5 + 7;

/// Lets one connection fail and two peers have a session, and then stops the relay.
async fn one_session(exporting: &TraceExport, more: &[(&str, &str)]) {
    let router = LabRouter::start(Options::default()).await.unwrap();
    let tracer = exporting.tracer();
    let relay = Relay::start_traced(router.address(), router.public_key(), more, tracer).unwrap();
    router.wait_for(|view| !view.pool.is_empty()).await;
    let mut stranger = TcpStream::connect(relay.address()).await.unwrap();
    stranger.write_all(&[0xff; 64]).await.unwrap();
    let _ = stranger.read(&mut [0]).await;
    let (mut client, mut host) = router.introduce().await.unwrap().connect_both().await.unwrap();
    client.write_all(b"hello").await.unwrap();
    host.read_exact(&mut [0; 5]).await.unwrap();
    host.write_all(b"goodbye").await.unwrap();
    client.read_exact(&mut [0; 7]).await.unwrap();
    client.shutdown().await.unwrap();
    host.shutdown().await.unwrap();
    assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    relay.handle().drain();
    relay.stopped().await.unwrap();
}

fn spans(deliveries: &[Delivery]) -> Vec<Span> {
    deliveries
        .iter()
        .flat_map(|delivery| &delivery.request.resource_spans)
        .flat_map(|resource| &resource.scope_spans)
        .flat_map(|scope| scope.spans.clone())
        .collect()
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes
        .iter()
        .map(|attribute| {
            let value = attribute.value.clone().and_then(|value| value.value);
            let value = match value.unwrap() {
                Value::StringValue(text) => text,
                Value::IntValue(number) => number.to_string(),
                Value::BoolValue(value) => value.to_string(),
                other => panic!("{other:?}"),
            };
            (attribute.key.clone(), value)
        })
        .collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

/// Checks the trace of a session: its spans, their parents and their times.
fn check_session(spans: &[Span]) {
    let count = |name| named(spans, name).len();
    let counts = ["session", "peer.handshake", "pairing", "forward", "router.connect"].map(count);
    assert_eq!(counts, [1, 2, 1, 1, 1], "{spans:#?}");
    assert_eq!(spans.len(), 6, "and nothing else: {spans:#?}");
    let session = named(spans, "session")[0];
    assert!(session.parent_span_id.is_empty());
    for child in ["peer.handshake", "pairing", "forward"] {
        for span in named(spans, child) {
            assert_eq!(span.parent_span_id, session.span_id, "{child}");
            assert_eq!(span.trace_id, session.trace_id, "{child}");
            assert!(span.start_time_unix_nano >= session.start_time_unix_nano, "{child}");
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{child}");
            assert!(span.end_time_unix_nano <= session.end_time_unix_nano, "{child}");
        }
    }
    let (pairing, forward) = (named(spans, "pairing")[0], named(spans, "forward")[0]);
    assert_eq!(pairing.end_time_unix_nano, forward.start_time_unix_nano);
    let first_ready =
        named(spans, "peer.handshake").iter().map(|span| span.end_time_unix_nano).min();
    assert_eq!(Some(pairing.start_time_unix_nano), first_ready);
    let said = attributes(&session.attributes);
    assert_eq!(said["aspia.relay.session.end"], "closed");
    assert_eq!(said["aspia.relay.session.bytes"], BYTES.to_string());
    let connect = named(spans, "router.connect")[0];
    assert!(connect.parent_span_id.is_empty() && connect.trace_id != session.trace_id);
    assert_eq!(attributes(&connect.attributes)[attribute::SERVER_ADDRESS], "127.0.0.1");
    for (span, kind) in [(session, SpanKind::Internal), (connect, SpanKind::Client)]
        .into_iter()
        .chain(named(spans, "peer.handshake").into_iter().map(|span| (span, SpanKind::Server)))
    {
        assert_eq!(span.kind(), kind, "{}", span.name);
        assert_eq!(attributes(&span.attributes)[attribute::NETWORK_TRANSPORT], "tcp");
    }
    // The semantic conventions define ports as numbers.
    for port in [attribute::SERVER_PORT, attribute::NETWORK_PEER_PORT] {
        let port = connect.attributes.iter().find(|attribute| attribute.key == port).unwrap();
        let value = port.value.clone().unwrap().value.unwrap();
        assert!(matches!(value, Value::IntValue(1..=65535)), "{port:?}");
    }
    // Attribute names are those of the semantic conventions, or have our own prefix.
    let known = [
        attribute::NETWORK_TRANSPORT,
        attribute::NETWORK_PEER_ADDRESS,
        attribute::NETWORK_PEER_PORT,
        attribute::SERVER_ADDRESS,
        attribute::SERVER_PORT,
        attribute::CLIENT_ADDRESS,
        attribute::CLIENT_PORT,
        attribute::USER_NAME,
        attribute::ERROR_TYPE,
    ];
    for span in spans {
        for key in attributes(&span.attributes).keys() {
            assert!(known.contains(&key.as_str()) || key.starts_with("aspia."), "{key}");
        }
    }
}

#[tokio::test]
async fn session_is_one_trace_over_each_protocol_with_and_without_tls() {
    let (server, client) = (certificate(), certificate());
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca = file("ca.pem", &server.0);
    let (certificate, key) = (file("client.pem", &client.0), file("client.key", &client.1));
    for (protocol, with_tls, gzip) in [
        (Protocol::Http, false, false),
        (Protocol::Http, true, true),
        (Protocol::Grpc, false, true),
        (Protocol::Grpc, true, false),
    ] {
        let tls = with_tls.then(|| tls(protocol, &server, &client.0));
        let mut collector = Collector::start(protocol, tls).await;
        let scheme = if with_tls { "https" } else { "http" };
        let endpoint = format!("{scheme}://{}", collector.address);
        let exporting = start(settings(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.name()),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", if gzip { "gzip" } else { "none" }),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &certificate),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &key),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab"),
        ]))
        .await
        .unwrap();
        let subscriber = tracing_subscriber::registry().with(exporting.layer());
        let guard = tracing::subscriber::set_default(subscriber);
        one_session(&exporting, &[]).await;
        drop(guard);
        finish(exporting).await;
        let deliveries = collector.taken();
        let spans = spans(&deliveries);
        check_session(&spans);
        let printed = format!(
            "{:?}",
            // Only the attributes, since a timestamp might contain the same digits.
            spans
                .iter()
                .filter(|span| span.name != "router.connect")
                .map(|span| attributes(&span.attributes))
                .collect::<Vec<_>>()
        );
        assert!(!printed.contains("operator") && !printed.contains("1234"), "{printed}");
        assert!(!printed.contains("127.0.0.1"), "{printed}");
        for delivery in &deliveries {
            assert_eq!(delivery.headers["authorization"], "Bearer s3cret", "{protocol:?}");
            if protocol == Protocol::Http {
                assert_eq!(delivery.path, "/v1/traces");
                assert_eq!(delivery.headers.contains_key("content-encoding"), gzip);
            } else {
                assert_eq!(delivery.headers.contains_key("grpc-encoding"), gzip);
            }
            let resource = delivery.request.resource_spans[0].resource.clone().unwrap();
            let resource = attributes(&resource.attributes);
            assert_eq!(resource["service.name"], "aspia-relay");
            assert_eq!(resource["deployment.environment.name"], "lab");
        }
    }
}

/// Checks that spans tell of a session in two parts, the second linked to the first.
fn check_parts(spans: &[Span], first_end: &str) {
    let sessions = named(spans, "session");
    let is_continued =
        |span: &&&Span| attributes(&span.attributes).contains_key("aspia.relay.session.continued");
    let part = |continued| {
        let mut found = sessions.iter().filter(|span| is_continued(span) == continued);
        let part = *found.next().unwrap_or_else(|| panic!("{sessions:#?}"));
        assert!(found.next().is_none(), "{sessions:#?}");
        part
    };
    let (before, after) = (part(false), part(true));
    let [before_said, after_said] = [before, after].map(|span| attributes(&span.attributes));
    assert_eq!(before_said["aspia.relay.session.end"], first_end);
    assert_eq!(after_said["aspia.relay.session.end"], "closed");
    assert_eq!(after_said["aspia.relay.session.id"], before_said["aspia.relay.session.id"]);
    let [link] = &after.links[..] else { panic!("{after:#?}") };
    assert_eq!((&link.trace_id, &link.span_id), (&before.trace_id, &before.span_id));
    assert_ne!(after.trace_id, before.trace_id);
    assert!(before.links.is_empty() && after.parent_span_id.is_empty());
    let forward = named(spans, "forward");
    assert!(forward.iter().any(|span| span.parent_span_id == after.span_id), "{forward:#?}");
}

#[tokio::test]
async fn parts_of_a_session_in_two_relays_are_linked() {
    let mut collector = Collector::start(Protocol::Http, None).await;
    let endpoint = format!("http://{}", collector.address);
    let exporting = start(settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)])).await.unwrap();
    let mut relays = Vec::new();
    for more in [&[][..], &[("TracePeerIdentity", "true")]] {
        let router = LabRouter::start(Options::default()).await.unwrap();
        let (key, tracer) = (router.public_key(), exporting.tracer());
        let relay = Relay::start_traced(router.address(), key, more, tracer).unwrap();
        relays.push((router, relay));
    }
    let [(router, here), (_, there)] = &relays[..] else { unreachable!() };
    let (mut client, mut host) = router.introduce().await.unwrap().session().await.unwrap();
    let mut detached = here.handle().session_manager().detach_all().await;
    assert_eq!(detached.len(), 1);
    there.handle().session_manager().attach(detached.remove(0));
    host.write_all(b"goodbye").await.unwrap();
    client.read_exact(&mut [0; 7]).await.unwrap();
    drop((client, host));
    for (_, relay) in relays {
        relay.handle().drain();
        relay.stopped().await.unwrap();
    }
    finish(exporting).await;
    let spans = spans(&collector.taken());
    check_parts(&spans, "departed");
    // Each relay says of the peers what its own settings allow.
    let users = named(&spans, "session").into_iter();
    let users: Vec<_> =
        users.filter_map(|span| attributes(&span.attributes).remove("user.name")).collect();
    assert_eq!(users, ["operator"]);
}

#[tokio::test]
async fn spans_identify_peers_only_if_allowed() {
    let mut collector = Collector::start(Protocol::Http, None).await;
    let endpoint = format!("http://{}", collector.address);
    let exporting = start(settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)])).await.unwrap();
    let guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(exporting.layer()));
    one_session(&exporting, &[("TracePeerIdentity", "true")]).await;
    drop(guard);
    finish(exporting).await;
    let spans = spans(&collector.taken());
    check_session(&spans);
    let session = attributes(&named(&spans, "session")[0].attributes);
    assert_eq!((&*session["user.name"], &*session["aspia.relay.host_id"]), ("operator", "1234"));
    for handshake in named(&spans, "peer.handshake") {
        assert_eq!(attributes(&handshake.attributes)["client.address"], "127.0.0.1");
    }
}

#[tokio::test]
async fn failed_router_connection_has_its_reason_in_the_span() {
    let mut collector = Collector::start(Protocol::Http, None).await;
    let endpoint = format!("http://{}", collector.address);
    let exporting = start(settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)])).await.unwrap();
    let guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(exporting.layer()));
    let log = CapturedLog::start();
    for behaviour in [Behaviour::WrongKey, Behaviour::CloseAfterAuthentication] {
        let options = Options { behaviour, ..Options::default() };
        let router = LabRouter::start(options).await.unwrap();
        let tracer = exporting.tracer();
        let key = router.public_key();
        let relay = Relay::start_traced(router.address(), key, &[], tracer).unwrap();
        for _ in 0..500 {
            if relay.handle().link().failures > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        relay.handle().stop();
        relay.stopped().await.unwrap();
    }
    drop((guard, log));
    finish(exporting).await;
    let spans = spans(&collector.taken());
    let connects = named(&spans, "router.connect");
    let of = |outcome| {
        let is = |span: &&&Span| {
            attributes(&span.attributes).get("error.type").is_some_and(|found| found == outcome)
        };
        *connects.iter().find(is).unwrap()
    };
    for (outcome, words) in [("key_mismatch", "router.pub"), ("denied", "white list")] {
        let connect = of(outcome);
        let status = connect.status.clone().unwrap();
        assert_eq!(status.code, StatusCode::Error as i32);
        assert!(status.message.contains(words), "{}", status.message);
        // The span names the address of the Router that was dialled.
        assert_eq!(attributes(&connect.attributes)[attribute::NETWORK_PEER_ADDRESS], "127.0.0.1");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn export_resumes_after_the_collector_vanished() {
    let mut collector = Collector::start(Protocol::Grpc, None).await;
    let endpoint = format!("http://{}", collector.address);
    let exporting = start(settings(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ]))
    .await
    .unwrap();
    one_session(&exporting, &[]).await;
    assert!(collector.deliveries.recv().await.is_some());
    // From now on, the collector's existing connections drop every segment; new ones work.
    let drop_all = [socket2::SockFilter::new(0x06, 0, 0, 0)];
    for connection in collector.connections.lock().unwrap().iter() {
        connection.attach_filter(&drop_all).unwrap();
    }
    collector.taken();
    let deadline = Instant::now() + Duration::from_secs(60);
    while collector.taken().is_empty() {
        assert!(Instant::now() < deadline, "nothing was delivered on a new connection");
        one_session(&exporting, &[]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    finish(exporting).await;
}

#[tokio::test]
async fn failing_collector_delays_no_session() {
    // Bound, but nobody listens: connections are refused.
    let away = tokio::net::TcpSocket::new_v4().unwrap();
    away.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nonsense = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses =
        [away.local_addr().unwrap(), silent.local_addr().unwrap(), nonsense.local_addr().unwrap()];
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            kept.push(stream);
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = nonsense.accept().await {
            let _ = stream.write_all(b"\0\xffHTTP? never heard of it\r\n\r\n").await;
        }
    });
    for address in addresses {
        for protocol in ["grpc", "http/protobuf"] {
            let endpoint = format!("http://{address}");
            let exporting = start(settings(&[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
                ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ]))
            .await
            .unwrap();
            // A whole session with bytes, while the collector fails.
            one_session(&exporting, &[]).await;
            let began = Instant::now();
            finish(exporting).await;
            assert!(began.elapsed() < Duration::from_secs(20), "{endpoint} {protocol}");
        }
    }
}

/// Runs the program, since spans are delivered on a thread of their own. The log says once what is wrong, and at the end how
/// many spans were not accepted.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_success_of_a_collector_is_reported() {
    for (protocol, reply, expected) in [
        (Protocol::Http, Reply::Rejects(1), "rejected 1 of"),
        (Protocol::Grpc, Reply::Rejects(1), "rejected 1 of"),
        (Protocol::Http, Reply::LoginPage, "login page"),
    ] {
        let collector = Collector::start_with(protocol, None, reply).await;
        let router = LabRouter::start(Options::default()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let port = relay_lab::port::free_port().unwrap();
        let mut child =
            relay_program(&router, port, &format!("http://{}", collector.address), protocol, &log)
                .env("OTEL_BSP_SCHEDULE_DELAY", "50")
                .spawn()
                .unwrap();
        router.wait_for(|view| !view.pool.is_empty()).await;
        // Several links, so that there are several deliveries.
        for number in 1..4 {
            router.drop_link().await;
            router.wait_for(|view| view.links > number && !view.pool.is_empty()).await;
        }
        let pid = child.id().to_string();
        let stop = move || {
            assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
            child.wait().unwrap()
        };
        assert!(tokio::task::spawn_blocking(stop).await.unwrap().success());
        let text = std::fs::read_to_string(Path::new(&log)).unwrap();
        let said: Vec<&str> = text.lines().filter(|line| line.contains(expected)).collect();
        assert_eq!(said.len(), 1, "{protocol:?} {reply:?}: {text}");
        assert!(said[0].contains("WARN"), "{text}");
        assert!(text.contains("spans were not delivered to http://127.0.0.1"), "{text}");
        if let Reply::Rejects(_) = reply {
            assert!(said[0].contains("\"quota\""), "{text}");
        }
    }
}

#[tokio::test]
async fn unusable_tls_files_are_named() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nonexistent.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/dev/null"),
    ] {
        let settings =
            settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:1"), (name, value)]);
        let error = start(settings).await.unwrap_err();
        assert!(error.contains("_CERTIFICATE") && error.contains("expected"), "{error}");
    }
}

#[tokio::test]
async fn collector_probe_reports_the_outcome() {
    let server = certificate();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, &server.0).unwrap();
    let tls = tls(Protocol::Http, &server, &certificate().0);
    let collector = Collector::start(Protocol::Http, Some(tls)).await;
    let endpoint = format!("https://{}", collector.address);
    let good = settings(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca.display().to_string()),
    ]);
    trace::probe(&good).await.unwrap();
    std::fs::write(&ca, certificate().0).unwrap();
    let error = trace::probe(&good).await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
}

/// Runs the program: it delivers the remaining spans when it stops, and its log says what is wrong with the variables.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remaining_spans_are_exported_at_the_stop() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        check_program(protocol).await;
    }
}

/// Runs the program with a collector that accepts connections and never answers.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_signal_does_not_wait_for_the_last_spans() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", collector.local_addr().unwrap());
        let router = LabRouter::start(Options::default()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let port = relay_lab::port::free_port().unwrap();
        let mut child = relay_program(&router, port, &endpoint, protocol, &log)
            .env("OTEL_BSP_SCHEDULE_DELAY", "600000")
            .spawn()
            .unwrap();
        router.wait_for(|view| !view.pool.is_empty()).await;
        let pid = child.id().to_string();
        let signal = |name: &str| {
            assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
        };
        signal("TERM");
        // There is no session, so the relay itself stops at once; only the span of the Router link remains to be delivered.
        let text = || std::fs::read_to_string(&log).unwrap();
        while !text().contains("stopped=Drained") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        signal("TERM");
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
        assert!(status.success(), "{protocol:?}");
        assert!(text().contains("SIGTERM: stopping at once"), "{protocol:?}: {}", text());
        assert!(text().contains("1 of 1 spans were not delivered"), "{protocol:?}: {}", text());
    }
}

/// The relay as a program of its own that exports traces to `endpoint` and logs to the file `log`.
#[cfg(unix)]
fn relay_program(
    router: &LabRouter,
    port: u16,
    endpoint: &str,
    protocol: Protocol,
    log: &Path,
) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
    program
        .env_clear()
        .env("ASPIA_LOG_LEVEL", "0")
        .env("ASPIA_RELAY_ADMIN_LISTEN", "off")
        .env("ASPIA_RELAY_ROUTER_ADDRESS", "127.0.0.1")
        .env("ASPIA_RELAY_ROUTER_PORT", router.address().port().to_string())
        .env("ASPIA_RELAY_ROUTER_PUBLIC_KEY", router.public_key().to_string())
        .env("ASPIA_RELAY_PEER_ADDRESS", "127.0.0.1")
        .env("ASPIA_RELAY_PEER_PORT", port.to_string())
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.name())
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(log).unwrap())
        .stderr(Stdio::null());
    program
}

#[cfg(unix)]
async fn check_program(protocol: Protocol) {
    let mut collector = Collector::start(protocol, None).await;
    let router = LabRouter::start(Options::default()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let port = relay_lab::port::free_port().unwrap();
    let mut child =
        relay_program(&router, port, &format!("http://{}", collector.address), protocol, &log)
            .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3%2525cret")
            .env("OTEL_BSP_SCHEDULE_DELAY", "600000")
            .env("OTEL_TRACES_SAMPLER", "sometimes")
            .spawn()
            .unwrap();
    router.wait_for(|view| !view.pool.is_empty()).await;
    let (mut client, mut host) = router.introduce().await.unwrap().connect_both().await.unwrap();
    client.write_all(b"hello").await.unwrap();
    host.read_exact(&mut [0; 5]).await.unwrap();
    drop((client, host));
    let pid = child.id().to_string();
    let status = tokio::task::spawn_blocking(move || {
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        child.wait().unwrap()
    })
    .await
    .unwrap();
    assert!(status.success());
    let deliveries = collector.taken();
    for delivery in &deliveries {
        // The header is sent once, and percent-decoded once.
        let shown: Vec<_> = delivery.headers.get_all("authorization").iter().collect();
        assert_eq!(shown, ["Bearer s3%25cret"], "{protocol:?}");
    }
    let spans = spans(&deliveries);
    assert_eq!((named(&spans, "session").len(), named(&spans, "router.connect").len()), (1, 1));
    let text = std::fs::read_to_string(Path::new(&log)).unwrap();
    assert!(text.contains("traces go to http://127.0.0.1"), "{text}");
    assert!(text.contains("OTEL_TRACES_SAMPLER = \"sometimes\""), "{text}");
    assert!(!text.contains("router.connect"), "spans are not logged: {text}");
}
