//! The metrics listener over TLS: who is admitted, and how certificates are replaced without a restart.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use relay_lab::http::{Answer, get, request_over_tls};
use relay_lab::log::CapturedLog;
use relay_lab::relay::{Lab, config};
use relay_lab::router::Options;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
};

const NAME: &str = "relay.example";
const EXPIRY: &str = "aspia_relay_tls_certificate_expiry_timestamp_seconds";

/// A certificate authority, and a directory with the certificates that it has signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::new([]).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer =
            CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, directory: tempfile::tempdir().unwrap() };
        std::fs::write(authority.path("ca.pem"), authority.issuer.pem()).unwrap();
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Signs a certificate that is valid until the first day of a year. Returns it with its key.
    fn sign(&self, year: i32) -> (String, String) {
        let mut parameters = CertificateParams::new([NAME.to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (parameters.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Writes `NAME.pem` and `NAME.key`.
    fn write(&self, name: &str, (certificate, key): &(String, String)) {
        std::fs::write(self.path(&format!("{name}.pem")), certificate).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key).unwrap();
    }

    /// A client that trusts this authority.
    fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        certificate: Option<&(String, String)>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        Arc::new(config)
    }

    async fn start(&self, more: &[(&str, &str)]) -> Lab {
        let (certificate, key) = (self.text("relay.pem"), self.text("relay.key"));
        let mut settings = vec![
            ("MetricsTlsCertificate", certificate.as_str()),
            ("MetricsTlsPrivateKey", key.as_str()),
        ];
        settings.extend(more);
        let lab = Lab::start(Options::default(), &settings).await.unwrap();
        lab.router.wait_for(|view| !view.pool.is_empty()).await;
        // A paused clock jumps to the next timer whenever all tasks wait for sockets, as they often do in a handshake.
        // Small steps keep it from reaching any time limit.
        tokio::spawn(async {
            loop {
                sleep(Duration::from_millis(10)).await;
            }
        });
        lab
    }
}

async fn scrape(lab: &Lab, client: Arc<ClientConfig>, lines: &[&str]) -> std::io::Result<Answer> {
    let name = NAME.try_into().unwrap();
    request_over_tls(lab.relay.metrics(), name, client, "GET /metrics", lines).await
}

/// When the certificate expires, according to the metrics.
fn expiry(text: &str) -> Option<i64> {
    let line = text.lines().find(|line| line.starts_with(EXPIRY))?;
    Some(line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

/// Waits until the certificate in use is the one that expires at `expected`, or until there is none.
async fn expires(lab: &Lab, expected: Option<i64>) {
    let mut seen = None;
    for _ in 0..100 {
        seen = expiry(&get(lab.relay.admin(), "/metrics").await.unwrap().body);
        if seen == expected {
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
    panic!("the certificate expires at {seen:?}, not {expected:?}");
}

/// The first moment of a year.
fn year(year: i32) -> i64 {
    rcgen::date_time_ymd(year, 1, 1).unix_timestamp()
}

#[tokio::test(start_paused = true)]
async fn only_tls_1_2_and_1_3_are_accepted() {
    let authority = Authority::new();
    authority.write("relay", &authority.sign(2040));
    let lab = authority.start(&[("MetricsToken", "scrap3r")]).await;
    for version in [&TLS12, &TLS13] {
        let client = authority.client(&[version], None);
        assert_eq!(scrape(&lab, client.clone(), &[]).await.unwrap().status, 401);
        let line = "Authorization: Bearer scrap3r";
        let answer = scrape(&lab, client, &[line]).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(expiry(&answer.body), Some(year(2040)));
    }
    assert_eq!(
        (TLS12.version, TLS13.version),
        (ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3)
    );
    let log = CapturedLog::start();
    let answer = get(lab.relay.metrics(), "/metrics").await.unwrap();
    assert_eq!(answer.status, 400, "without TLS");
    assert!(answer.body.contains("https"), "{}", answer.body);
    log.line("it speaks HTTP without TLS, but MetricsListen requires TLS").await;
    // A protocol that is neither TLS nor HTTP.
    let mut other = tokio::net::TcpStream::connect(lab.relay.metrics()).await.unwrap();
    other.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    log.line("a caller of MetricsListen is not served: its TLS handshake").await;
    // Clients that trust another authority refuse the certificate.
    let stranger = Authority::new().client(&[&TLS13], None);
    assert!(scrape(&lab, stranger, &[]).await.is_err());
    // The admin listener still speaks HTTP without TLS.
    assert_eq!(get(lab.relay.admin(), "/metrics").await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn tls_and_proxy_headers_on_an_http_port_are_recognised() {
    let log = CapturedLog::start();
    let lab = Lab::start(Options::default(), &[]).await.unwrap();
    for (listener, setting) in
        [(lab.relay.admin(), "AdminListen"), (lab.relay.metrics(), "MetricsListen")]
    {
        let client = Authority::new().client(&[&TLS13], None);
        let name = NAME.try_into().unwrap();
        assert!(request_over_tls(listener, name, client, "GET /livez", &[]).await.is_err());
        log.line(&format!("it speaks TLS, but {setting} has no TLS")).await;
        let mut proxy = tokio::net::TcpStream::connect(listener).await.unwrap();
        proxy.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n").await.unwrap();
        log.line(&format!("PROXY header (version 1), which {setting} does not accept")).await;
    }
    // The log mentions only some of many such connections.
    for _ in 0..100 {
        let mut caller = tokio::net::TcpStream::connect(lab.relay.admin()).await.unwrap();
        caller.write_all(b"\x16\x03\x01\0\x05").await.unwrap();
        let _ = caller.read(&mut [0]).await;
    }
    let lines = log.text().lines().filter(|line| line.contains("is not served")).count();
    assert!(lines <= 10, "{lines}");
}

#[tokio::test(start_paused = true)]
async fn incomplete_tls_handshake_times_out() {
    let authority = Authority::new();
    authority.write("relay", &authority.sign(2040));
    let log = CapturedLog::start();
    let lab = authority.start(&[]).await;
    let _silent = tokio::net::TcpStream::connect(lab.relay.metrics()).await.unwrap();
    log.line("its TLS handshake did not complete within 10 s").await;
}

#[tokio::test(start_paused = true)]
async fn required_client_certificates_are_verified() {
    let (authority, clients) = (Authority::new(), Authority::new());
    authority.write("relay", &authority.sign(2040));
    let lab = authority.start(&[("MetricsTlsClientCa", &clients.text("ca.pem"))]).await;
    for version in [&TLS12, &TLS13] {
        let known = clients.sign(2040);
        let answer = scrape(&lab, authority.client(&[version], Some(&known)), &[]).await;
        assert_eq!(answer.unwrap().status, 200);
        // Signed by another authority, expired, or missing.
        let (unknown, expired) = (authority.sign(2040), clients.sign(2020));
        for bad in [Some(&unknown), Some(&expired), None] {
            assert!(scrape(&lab, authority.client(&[version], bad), &[]).await.is_err());
        }
    }
}

/// Unix only: on Windows, only administrators can create symbolic links.
#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn changed_certificates_are_reloaded() {
    let authority = Authority::new();
    // As in Kubernetes, a symbolic link is switched from one directory to another.
    for (directory, year) in [("first", 2040), ("second", 2041)] {
        std::fs::create_dir(authority.path(directory)).unwrap();
        authority.write(&format!("{directory}/relay"), &authority.sign(year));
    }
    let turn = |to: &str| {
        let link = authority.path("link");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(authority.path(to), link).unwrap();
    };
    turn("first");
    let (certificate, key) = (authority.text("link/relay.pem"), authority.text("link/relay.key"));
    let settings: [(&str, &str); 2] =
        [("MetricsTlsCertificate", &certificate), ("MetricsTlsPrivateKey", &key)];
    let log = CapturedLog::start();
    let lab = authority.start(&settings).await;
    let good = || scrape(&lab, authority.client(&[&TLS13], None), &[]);
    assert_eq!(expiry(&good().await.unwrap().body), Some(year(2040)));
    turn("second");
    expires(&lab, Some(year(2041))).await;
    assert_eq!(good().await.unwrap().status, 200);
    // A broken key is not used. The log says so once, and once that the files can be used again.
    std::fs::write(authority.path("second/relay.key"), "nothing of the kind").unwrap();
    let line = log.line("the metrics listener continues with what it read before").await;
    assert!(line.contains("MetricsTlsPrivateKey: expected a private key in PEM"), "{line}");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(log.text().matches("continues with what it read before").count(), 1);
    assert_eq!(expiry(&good().await.unwrap().body), Some(year(2041)));
    turn("first");
    log.line("can be used again").await;
    expires(&lab, Some(year(2040))).await;
}

#[tokio::test(start_paused = true)]
async fn tls_settings_apply_without_a_restart() {
    let authority = Authority::new();
    authority.write("relay", &authority.sign(2040));
    let lab = authority.start(&[]).await;
    let reload = |settings: &[(&str, &str)]| {
        let (router, port) = (&lab.router, lab.relay.address().port());
        let loaded = config(router.address(), router.public_key(), port, settings).unwrap();
        lab.relay.handle().reload(&loaded)
    };
    let reloaded = reload(&[]);
    assert_eq!(reloaded.changed, ["MetricsTlsCertificate", "MetricsTlsPrivateKey"]);
    expires(&lab, None).await;
    assert_eq!(get(lab.relay.metrics(), "/metrics").await.unwrap().status, 200);
    let (certificate, key) = authority.sign(2042);
    reload(&[("MetricsTlsCertificate", &certificate), ("MetricsTlsPrivateKey", &key)]);
    expires(&lab, Some(year(2042))).await;
    assert_eq!(get(lab.relay.metrics(), "/metrics").await.unwrap().status, 400);
    // While MetricsListen waits for a restart, the socket in use keeps its TLS.
    let reloaded = reload(&[("MetricsListen", ":4242")]);
    assert!(
        reloaded
            .waiting
            .contains(&aspia_relay::config::settings::SettingKey::MetricsTlsCertificate),
        "{reloaded:?}"
    );
    sleep(Duration::from_secs(20)).await;
    assert_eq!(get(lab.relay.metrics(), "/metrics").await.unwrap().status, 400);
}

/// A program that is killed when the test ends.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts Prometheus on a free port. Returns it with the port.
fn prometheus(directory: &Path) -> (Program, u16) {
    // Another program may take the port before Prometheus does, so there are several attempts.
    for _ in 0..5 {
        let port = relay_lab::port::free_port().unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", directory.join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .current_dir(directory)
            .stderr(std::fs::File::create(directory.join("prometheus.log")).unwrap())
            .stdout(Stdio::null());
        let mut child = Program(
            command.spawn().expect("prometheus is missing; on Debian: apt install prometheus"),
        );
        for _ in 0..300 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
                && child.0.try_wait().unwrap().is_none()
            {
                return (child, port);
            }
            if child.0.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let log = std::fs::read_to_string(directory.join("prometheus.log")).unwrap();
    panic!("Prometheus does not start:\n{log}");
}

/// A real Prometheus runs the scrape configuration of `deploy/prometheus`, except for addresses and the interval.
#[tokio::test]
#[ignore = "needs Prometheus"]
async fn prometheus_scrapes_over_tls_with_the_token() {
    let authority = Authority::new();
    authority.write("relay", &authority.sign(2040));
    let clients = Authority::new();
    let token = "scrap3r";
    let lab = authority
        .start(&[("MetricsToken", token), ("MetricsTlsClientCa", &clients.text("ca.pem"))])
        .await;
    let directory = tempfile::tempdir().unwrap();
    let secrets = directory.path().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    let (certificate, key) = clients.sign(2040);
    for (name, content) in [
        ("aspia-relay.token", token),
        ("aspia-relay-ca.pem", &authority.issuer.pem()),
        ("prometheus.pem", &certificate),
        ("prometheus.key", &key),
    ] {
        std::fs::write(secrets.join(name), content).unwrap();
    }
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    std::fs::copy(shipped.join("rules.yaml"), directory.path().join("rules.yaml")).unwrap();
    let mut text = std::fs::read_to_string(shipped.join("prometheus.yaml")).unwrap();
    let target = lab.relay.metrics().to_string();
    for (from, to) in [
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ("# cert_file: secrets/prometheus.pem", &format!("server_name: {NAME}")),
        (
            "# key_file: secrets/prometheus.key",
            "cert_file: secrets/prometheus.pem\n      key_file: secrets/prometheus.key",
        ),
        ("- relay1.example.com:9477", &format!("- {target}")),
        ("          - relay2.example.com:9477\n", ""),
    ] {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        text = text.replace(from, to);
    }
    std::fs::write(directory.path().join("prometheus.yaml"), text).unwrap();
    let at = directory.path().to_owned();
    let (program, port) = tokio::task::spawn_blocking(move || prometheus(&at)).await.unwrap();
    let api = ([127, 0, 0, 1], port).into();
    let query = |query: &'static str| async move {
        let mut seen = serde_json::Value::Null;
        for _ in 0..600 {
            if let Ok(answer) = get(api, &format!("/api/v1/query?query={query}")).await {
                // Prometheus may send its answer in chunks.
                let json = answer.body.find('{').zip(answer.body.rfind('}'));
                let json = json.map_or("", |(first, last)| &answer.body[first..=last]);
                seen = serde_json::from_str(json).unwrap_or_default();
                let value = seen["data"]["result"][0]["value"][1].as_str();
                if let Some(value) = value {
                    return value.parse::<f64>().unwrap();
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("{query} has no value: {seen}");
    };
    let keys = query("aspia_relay_keys%7Bstate=%22offered%22%7D").await;
    assert!((keys - 100.0).abs() < f64::EPSILON, "{keys}");
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let until = year(2040) as f64;
    let expiry = query("aspia_relay_tls_certificate_expiry_timestamp_seconds").await;
    assert!((expiry - until).abs() < 1.0, "{expiry}");
    assert!((query("up").await - 1.0).abs() < f64::EPSILON);
    // Prometheus reports that a wrong token is refused.
    std::fs::write(secrets.join("aspia-relay.token"), "wrong").unwrap();
    let mut targets = String::new();
    for _ in 0..300 {
        targets = get(api, "/api/v1/targets").await.unwrap().body;
        if targets.contains("401 Unauthorized") {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!(targets.contains("401 Unauthorized"), "{targets}");
    drop(program);
}
