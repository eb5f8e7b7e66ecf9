//! Builds TLS configurations from certificates and private keys in PEM.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;

use crate::secret::Secret;

/// The text that distinguishes PEM from a path.
const BEGIN: &str = "-----BEGIN";
/// The byte order mark, U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The largest PEM file that is accepted, in bytes. The certificate authorities of a whole system need less.
const MAX_FILE_SIZE: u64 = 1024 * 1024;
/// The ALPN name of HTTP/1.1.
const ALPN_HTTP_1_1: &[u8] = b"http/1.1";

/// The supported versions of TLS.
const VERSIONS: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

const NOT_A_FILE: &str =
    "it is a pipe or a device, which cannot be read again to notice a renewed certificate";

/// PEM text, or the file that contains it.
#[derive(Debug, Clone)]
pub enum PemSource {
    /// The path of a file.
    File(PathBuf),
    /// The PEM text.
    Inline(Arc<Secret<String>>),
}

impl PemSource {
    /// Creates a source from a setting: PEM text if `text` looks like PEM, otherwise the path of a file.
    pub fn new(text: &str) -> Self {
        if text.contains(BEGIN) {
            Self::Inline(Arc::new(Secret::new(text.to_owned())))
        } else {
            Self::File(text.into())
        }
    }

    fn read(&self) -> io::Result<Pem> {
        let mut content = Vec::new();
        match self {
            Self::Inline(text) => content.extend(text.expose().as_bytes()),
            Self::File(path) => {
                // To open a pipe to which nobody writes would wait for ever, and its content could not be read again.
                let kind = fs::metadata(path)?.file_type();
                if !(kind.is_file() || kind.is_dir()) {
                    return Err(io::Error::other(NOT_A_FILE));
                }
                File::open(path)?.take(MAX_FILE_SIZE + 1).read_to_end(&mut content)?;
            }
        }
        if content.len() as u64 > MAX_FILE_SIZE {
            return Err(io::Error::other(format!("it is larger than {MAX_FILE_SIZE} bytes")));
        }
        remove_byte_order_marks(&mut content);
        Ok(Secret::new(content))
    }
}

/// Removes the byte order marks that some editors put at the start of a file, even inside concatenated files: the parser
/// would silently skip a certificate after such a mark. These bytes do not occur in PEM otherwise.
fn remove_byte_order_marks(pem: &mut Vec<u8>) {
    let (mut kept, mut at) = (0, 0);
    while at < pem.len() {
        if pem[at..].starts_with(BYTE_ORDER_MARK) {
            at += BYTE_ORDER_MARK.len();
        } else {
            pem[kept] = pem[at];
            (kept, at) = (kept + 1, at + 1);
        }
    }
    pem.truncate(kept);
}

impl PartialEq for PemSource {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(path), Self::File(other)) => path == other,
            (Self::Inline(text), Self::Inline(other)) => text.is_same_as(other),
            _ => false,
        }
    }
}

impl Eq for PemSource {}

/// PEM text. It is secret because it may contain a private key.
type Pem = Secret<Vec<u8>>;

/// The files of a TLS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// The server certificate, followed by the intermediate certificates.
    pub certificate: PemSource,
    /// The private key of the certificate.
    pub private_key: PemSource,
    /// The certificate authorities of clients; if set, clients must present a certificate.
    pub client_ca: Option<PemSource>,
}

/// A part of [`ServerFiles`] or [`ClientFiles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsPart {
    /// The certificate.
    Certificate,
    /// The private key.
    PrivateKey,
    /// The certificate authorities of clients.
    ClientCa,
    /// The certificate authorities of servers.
    ServerCa,
}

/// The error for a part of [`ServerFiles`] or [`ClientFiles`] that is not usable. It does not show the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsError {
    /// The part.
    pub part: TlsPart,
    /// What was expected, and in parentheses what was found.
    pub expected: String,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.part {
            TlsPart::Certificate => "certificate",
            TlsPart::PrivateKey => "private key",
            TlsPart::ClientCa => "client certificate authorities",
            TlsPart::ServerCa => "server certificate authorities",
        };
        write!(f, "{what}: expected {}", self.expected)
    }
}

impl std::error::Error for TlsError {}

/// The contents of [`ServerFiles`] at one moment.
#[derive(Debug)]
pub struct ServerPem {
    certificate: Pem,
    private_key: Pem,
    client_ca: Option<Pem>,
}

impl ServerPem {
    /// Returns whether the contents are the same. Each file is compared in constant time.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let has_same_ca = match (&self.client_ca, &other.client_ca) {
            (Some(ca), Some(other)) => ca.is_same_as(other),
            (None, None) => true,
            _ => false,
        };
        has_same_ca
            && self.certificate.is_same_as(&other.certificate)
            && self.private_key.is_same_as(&other.private_key)
    }
}

/// The configuration of a TLS server.
#[derive(Debug, Clone)]
pub struct TlsServerConfig {
    /// The configuration for `tokio_rustls`.
    pub config: Arc<ServerConfig>,
    /// The period in which all certificates of the chain are valid.
    pub validity: CertificateValidity,
}

/// The validity period of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateValidity {
    /// The start, as the time since 1970.
    pub not_before: Duration,
    /// The end, as the time since 1970.
    pub not_after: Duration,
}

impl CertificateValidity {
    /// Returns why clients would refuse the certificate at `now`, if they would.
    pub fn problem_at(&self, now: SystemTime) -> Option<String> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = |time: Duration| {
            humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + time).to_string()
        };
        if now > self.not_after {
            let since = seconds(self.not_after);
            return Some(format!("expired at {since}: clients refuse it; renew it"));
        }
        (now < self.not_before).then(|| {
            let from = seconds(self.not_before);
            format!("is not valid before {from}: clients refuse it; is this machine's clock right?")
        })
    }
}

impl ServerFiles {
    /// Reads all files. Blocks.
    ///
    /// # Errors
    /// [`TlsError`] if a file cannot be read.
    pub fn read(&self) -> Result<ServerPem, TlsError> {
        Ok(ServerPem {
            certificate: read(TlsPart::Certificate, &self.certificate)?,
            private_key: read(TlsPart::PrivateKey, &self.private_key)?,
            client_ca: match &self.client_ca {
                Some(source) => Some(read(TlsPart::ClientCa, source)?),
                None => None,
            },
        })
    }

    /// Reads all files and builds the configuration of a server. Blocks.
    ///
    /// # Errors
    /// [`TlsError`] if a file cannot be read, or its content is not usable.
    pub fn load(&self) -> Result<TlsServerConfig, TlsError> {
        self.read()?.build_server()
    }
}

impl ServerPem {
    /// Builds the configuration of a server for TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// [`TlsError`] if a part is not usable, or the private key does not belong to the certificate.
    pub fn build_server(&self) -> Result<TlsServerConfig, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = parse_certificates(&self.certificate, TlsPart::Certificate)?;
        let validity = chain_validity(&chain)?;
        let key = parse_private_key(&self.private_key)?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(VERSIONS)
            .map_err(|error| unusable_error(TlsPart::Certificate, &error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = rustls::RootCertStore::empty();
                for authority in parse_certificates(pem, TlsPart::ClientCa)? {
                    roots
                        .add(authority)
                        .map_err(|error| unusable_error(TlsPart::ClientCa, &error))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|error| unusable_error(TlsPart::ClientCa, &error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(key_error)?;
        config.alpn_protocols = vec![ALPN_HTTP_1_1.to_vec()];
        Ok(TlsServerConfig { config: Arc::new(config), validity })
    }
}

/// The files of a TLS client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificate authorities of servers; those of the system if not set.
    pub ca: Option<PemSource>,
    /// The certificate to present, and its private key.
    pub identity: Option<(PemSource, PemSource)>,
}

impl ClientFiles {
    /// Reads all files and builds the configuration of a client that speaks `protocol` (an ALPN name). Blocks.
    ///
    /// # Errors
    /// [`TlsError`] if a file cannot be read, or its content is not usable.
    pub fn load(&self, protocol: &[u8]) -> Result<ClientConfig, TlsError> {
        let authorities = match &self.ca {
            Some(source) => {
                parse_certificates(&read(TlsPart::ServerCa, source)?, TlsPart::ServerCa)?
            }
            None => rustls_native_certs::load_native_certs().certs,
        };
        let mut roots = rustls::RootCertStore::empty();
        // Certificates that TLS cannot use are ignored: a system may have some.
        let (usable, _) = roots.add_parsable_certificates(authorities);
        if usable == 0 {
            return Err(TlsError {
                part: TlsPart::ServerCa,
                expected:
                    "certificates that TLS can use, in the file that was named or among those of the system (on Debian: \
                     ca-certificates)"
                        .into(),
            });
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)
            .map_err(|error| unusable_error(TlsPart::Certificate, &error))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = parse_certificates(
                    &read(TlsPart::Certificate, certificate)?,
                    TlsPart::Certificate,
                )?;
                let key = parse_private_key(&read(TlsPart::PrivateKey, key)?)?;
                builder.with_client_auth_cert(chain, key).map_err(key_error)?
            }
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }
}

fn read(part: TlsPart, source: &PemSource) -> Result<Pem, TlsError> {
    source.read().map_err(|error| TlsError {
        part,
        expected: format!("a PEM file that can be read ({error})"),
    })
}

fn parse_private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|_| no_private_key_error(pem))
}

fn key_error(error: rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => TlsError {
            part: TlsPart::PrivateKey,
            expected: "the private key of the certificate; this one belongs to another certificate"
                .into(),
        },
        rustls::Error::InvalidCertificate(_) => unusable_error(TlsPart::Certificate, &error),
        error => unusable_error(TlsPart::PrivateKey, &error),
    }
}

fn unusable_error(part: TlsPart, error: &dyn std::error::Error) -> TlsError {
    let what = match part {
        TlsPart::PrivateKey => {
            "a private key that TLS can use (RSA from 2048 bits, ECDSA, Ed25519)"
        }
        TlsPart::Certificate | TlsPart::ClientCa | TlsPart::ServerCa => {
            "certificates that TLS can use"
        }
    };
    TlsError { part, expected: format!("{what} ({error})") }
}

fn parse_certificates(pem: &Pem, part: TlsPart) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let expected = |why: String| TlsError { part, expected: format!("PEM certificates ({why})") };
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(pem.expose()).collect();
    match found {
        // The parser's error is not shown because it quotes the file.
        Err(_) => Err(expected("one of them is broken".into())),
        Ok(found) if found.is_empty() => Err(expected("there are none".into())),
        Ok(found) => Ok(found),
    }
}

fn no_private_key_error(pem: &Pem) -> TlsError {
    let has = |what: &str| pem.expose().windows(what.len()).any(|window| window == what.as_bytes());
    let why = if has("ENCRYPTED") {
        "this one is encrypted; decrypt it, for example with openssl pkey"
    } else if has("BEGIN CERTIFICATE") {
        "there are only certificates"
    } else {
        "there is none"
    };
    TlsError { part: TlsPart::PrivateKey, expected: format!("a private key in PEM ({why})") }
}

fn chain_validity(chain: &[CertificateDer<'_>]) -> Result<CertificateValidity, TlsError> {
    let mut validity = CertificateValidity { not_before: Duration::ZERO, not_after: Duration::MAX };
    for certificate in chain {
        // `Raw` skips the rules of the RFC for serial numbers, which clients do not enforce either.
        let certificate = CertificateInner::<Raw>::from_der(certificate)
            .map_err(|error| unusable_error(TlsPart::Certificate, &error))?;
        let period = certificate.tbs_certificate().validity();
        validity.not_before = validity.not_before.max(period.not_before.to_unix_duration());
        validity.not_after = validity.not_after.min(period.not_after.to_unix_duration());
    }
    Ok(validity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inline(text: &str) -> PemSource {
        PemSource::new(text)
    }

    fn pair() -> (String, String) {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (pair.cert.pem(), pair.signing_key.serialize_pem())
    }

    fn load(certificate: &str, private_key: &str) -> Result<TlsServerConfig, TlsError> {
        ServerFiles {
            certificate: inline(certificate),
            private_key: inline(private_key),
            client_ca: None,
        }
        .load()
    }

    #[test]
    #[cfg(unix)]
    fn pipe_and_device_are_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("tls.crt");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.to_str().unwrap(), "/dev/zero"] {
            let files = ServerFiles {
                certificate: PemSource::new(path),
                private_key: inline(&pair().1),
                client_ca: None,
            };
            let error = files.load().unwrap_err().to_string();
            assert!(error.contains("pipe or a device"), "{error}");
        }
    }

    #[test]
    fn error_names_the_part_that_is_wrong() {
        let (certificate, key) = pair();
        assert!(load(&certificate, &key).is_ok());
        // Text around the certificate is common.
        assert!(load(&format!("subject=x\n{certificate}"), &key).is_ok());
        let (other, _) = pair();
        let broken = certificate.replacen("MII", "M!I", 1);
        let cut = &certificate[..certificate.len() / 2];
        let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
        for (certificate, key, part, why) in [
            ("/nonexistent", &*key, TlsPart::Certificate, "can be read ("),
            (&certificate, "/nonexistent", TlsPart::PrivateKey, "can be read ("),
            (&key, &key, TlsPart::Certificate, "there are none"),
            (&broken, &key, TlsPart::Certificate, "broken"),
            (cut, &key, TlsPart::Certificate, "broken"),
            (no_certificate, &key, TlsPart::Certificate, "certificates that TLS can use"),
            (&certificate, &certificate, TlsPart::PrivateKey, "there are only certificates"),
            (&certificate, &encrypted, TlsPart::PrivateKey, "openssl pkey"),
            (&other, &key, TlsPart::PrivateKey, "belongs to another"),
        ] {
            let error = load(certificate, key).unwrap_err();
            assert_eq!(error.part, part, "{error}");
            assert!(error.expected.contains(why), "{error}");
        }
    }

    #[test]
    fn client_authorities_must_be_certificates() {
        let (certificate, private_key) = pair();
        let files = |ca: &str| ServerFiles {
            certificate: inline(&certificate),
            private_key: inline(&private_key),
            client_ca: Some(inline(ca)),
        };
        assert!(files(&certificate).load().is_ok());
        let error = files(&private_key).load().unwrap_err();
        assert_eq!(
            (error.part, error.expected.contains("there are none")),
            (TlsPart::ClientCa, true)
        );
    }

    #[test]
    fn chain_is_valid_only_while_all_its_certificates_are() {
        let mut made = Vec::new();
        for (from, to) in [(2020, 2030), (2021, 2029)] {
            let mut parameters = rcgen::CertificateParams::new(["x".to_owned()]).unwrap();
            parameters.not_before = rcgen::date_time_ymd(from, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(to, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            made.push((parameters.self_signed(&key).unwrap().pem(), key.serialize_pem()));
        }
        let chain = format!("{}{}", made[0].0, made[1].0);
        let validity = load(&chain, &made[0].1).unwrap().validity;
        // date -ud 2021-01-01 +%s; date -ud 2029-01-01 +%s
        assert_eq!(validity.not_before.as_secs(), 1_609_459_200);
        assert_eq!(validity.not_after.as_secs(), 1_861_920_000);
        let at =
            |seconds| validity.problem_at(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(1_700_000_000), None);
        assert!(at(1_861_920_001).unwrap().contains("expired at 2029-01-01T00:00:00Z"));
        assert!(at(1_609_459_199).unwrap().contains("not valid before 2021-01-01T00:00:00Z"));
    }

    #[test]
    fn debug_output_shows_no_part_of_the_key() {
        let (certificate, private_key) = pair();
        let files = ServerFiles {
            certificate: inline(&certificate),
            private_key: inline(&private_key),
            client_ca: None,
        };
        let secret = private_key.lines().nth(1).unwrap();
        let printed = format!("{files:?} {:?}", files.read().unwrap());
        assert!(!printed.contains(secret), "{printed}");
    }
}
