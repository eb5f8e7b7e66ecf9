//! The proxy configurations of `deploy/proxy` in front of a real relay: requests of the page work, and those of other sites are
//! refused.

use std::path::Path;
use std::sync::Arc;

use relay_lab::http::{Answer, request_over_tls};
use relay_lab::relay::Lab;
use relay_lab::router::Options;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::harness::tests;
use crate::proxy_process::{ProxyProcess, adapt};

tests! {
    page_works_behind_nginx,
    page_works_behind_caddy,
}

const NAME: &str = "relays.example.net";
const TOKEN: &str = "Authorization: Bearer a-long-random-text";

/// A proxy that speaks TLS.
struct Proxy {
    process: ProxyProcess,
    client: Arc<ClientConfig>,
}

impl Proxy {
    /// Starts a proxy, without which the test cannot run. `write` writes its configuration into a directory that contains
    /// `cert.pem` and `key.pem`, and returns its arguments.
    async fn start(program: &str, port: u16, write: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let certificate = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let pem = certificate.cert.pem();
        let key = certificate.signing_key.serialize_pem();
        let process = ProxyProcess::start(program, port, |directory| {
            std::fs::write(directory.join("cert.pem"), &pem).unwrap();
            std::fs::write(directory.join("key.pem"), key).unwrap();
            write(directory)
        });
        let process = process.await;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Self { process, client: Arc::new(client) }
    }

    async fn request(&self, request: &str, lines: &[&str]) -> Answer {
        let name = NAME.try_into().unwrap();
        let client = self.client.clone();
        request_over_tls(self.process.address, name, client, request, lines).await.unwrap()
    }

    /// Checks what a browser sends for the page, and what other sites make it send.
    async fn check(&self, program: &str) {
        // Browsers include the port unless it is the default.
        let host = format!("Host: {NAME}:{}", self.process.address.port());
        let origin = format!("Origin: https://{NAME}:{}", self.process.address.port());
        let same = "Sec-Fetch-Site: same-origin";
        let ask = async |asked: &str, lines: &[&str]| {
            let lines = [&[host.as_str(), TOKEN][..], lines].concat();
            self.request(asked, &lines).await.status
        };
        assert_eq!(ask("GET /", &["Sec-Fetch-Site: none"]).await, 200, "{program}");
        assert_eq!(ask("GET /status", &[same]).await, 200, "{program}");
        // This request was allowed: the status is 404 only because there is no such session.
        assert_eq!(ask("DELETE /sessions/99", &[same, &origin]).await, 404, "{program}");
        for foreign in
            ["Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"]
        {
            for asked in ["DELETE /sessions/99", "POST /drain"] {
                assert_eq!(ask(asked, &[foreign]).await, 403, "{program}: {asked} {foreign}");
            }
        }
        assert_eq!(self.request("GET /status", &[&host, same]).await.status, 401, "{program}");
        assert_eq!(self.request("GET /livez", &[&host]).await.status, 200, "{program}");
    }
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/proxy").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// Starts a relay whose `AdminHosts` contains the name of the proxy.
async fn lab(port: u16) -> Lab {
    let hosts = format!("{NAME}:{port}");
    let settings = [("AdminToken", "a-long-random-text"), ("AdminHosts", hosts.as_str())];
    let lab = Lab::start(Options::default(), &settings).await.unwrap();
    lab.router.wait_for(|view| !view.pool.is_empty()).await;
    lab
}

fn nginx(directory: &Path, site: &str) -> Vec<String> {
    let path = |name: &str| directory.join(name).display().to_string();
    let whole = format!(
        "pid {}; error_log stderr; daemon off; events {{}} http {{ access_log off; client_body_temp_path {}; \
         proxy_temp_path {}; fastcgi_temp_path {}; uwsgi_temp_path {}; scgi_temp_path {};\n{site}}}",
        path("pid"),
        path("body"),
        path("proxy"),
        path("fastcgi"),
        path("uwsgi"),
        path("scgi"),
    );
    std::fs::write(directory.join("nginx.conf"), whole).unwrap();
    vec!["-c".into(), path("nginx.conf"), "-p".into(), directory.display().to_string()]
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn page_works_behind_nginx() {
    for keeps_host in [false, true] {
        let port = relay_lab::port::free_port().unwrap();
        let lab = lab(port).await;
        let proxy = Proxy::start("nginx", port, |directory| {
            let path = |name: &str| directory.join(name).display().to_string();
            let upstream = match keeps_host {
                false => format!("proxy_pass http://{};", lab.relay.admin()),
                true => format!(
                    "proxy_set_header Host $http_host; proxy_pass http://{};",
                    lab.relay.admin()
                ),
            };
            let site = adapt(
                &example("nginx.conf"),
                &[
                    ("listen 443 ssl;", &format!("listen 127.0.0.1:{port} ssl;")),
                    ("/etc/ssl/certs/relays.example.net.pem", &path("cert.pem")),
                    ("/etc/ssl/private/relays.example.net.key", &path("key.pem")),
                    ("proxy_pass http://127.0.0.1:8071;", &upstream),
                ],
            );
            nginx(directory, &site)
        });
        proxy.await.check("nginx").await;
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn page_works_behind_caddy() {
    let port = relay_lab::port::free_port().unwrap();
    let lab = lab(port).await;
    let proxy = Proxy::start("caddy", port, |directory| {
        let path = |name: &str| directory.join(name).display().to_string();
        let site = adapt(
            &example("Caddyfile"),
            &[
                (
                    "relays.example.net {",
                    &format!(
                        "{NAME}:{port} {{\n\tbind 127.0.0.1\n\ttls {} {}",
                        path("cert.pem"),
                        path("key.pem")
                    ),
                ),
                ("127.0.0.1:8071", &lab.relay.admin().to_string()),
            ],
        );
        // Turns off Caddy's own admin interface and the redirect from port 80, which another program may use.
        let whole = format!("{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{site}");
        std::fs::write(directory.join("Caddyfile"), whole).unwrap();
        ["run", "--config", &path("Caddyfile"), "--adapter", "caddyfile"].map(Into::into).to_vec()
    });
    proxy.await.check("caddy").await;
}
