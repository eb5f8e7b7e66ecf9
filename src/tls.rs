//! Certificates and private keys in PEM: where they are, and the server that is made of them.

use std::fmt;
use std::fs::File;
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

/// What the text of PEM has and no path.
const BEGIN: &str = "-----BEGIN";
/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Longest file read, in bytes: more than all certificate authorities of a system together.
const MAX_FILE: u64 = 1024 * 1024;
/// HTTP by the name that ALPN has for it.
const HTTP: &[u8] = b"http/1.1";

/// The versions of TLS that are spoken.
const VERSIONS: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// PEM, or where it is.
#[derive(Debug, Clone)]
pub enum Source {
    /// The path of a file.
    File(PathBuf),
    /// The text itself.
    Inline(Arc<Secret<String>>),
}

impl Source {
    /// A text that holds PEM is that; any other is the path of a file.
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
                File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut content)?;
            }
        }
        if content.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
        }
        without_marks(&mut content);
        Ok(Secret::new(content))
    }
}

/// Takes out the byte order marks that some editors put in front of a text: a certificate behind one would be passed over
/// without a word, also where files with marks were joined. PEM has no other use for these bytes.
fn without_marks(pem: &mut Vec<u8>) {
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

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(path), Self::File(other)) => path == other,
            (Self::Inline(text), Self::Inline(other)) => text.same_as(other),
            _ => false,
        }
    }
}

impl Eq for Source {}

/// PEM that was read; of a private key, too.
type Pem = Secret<Vec<u8>>;

/// What a TLS server needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its certificate, and after it those that lead to the authority.
    pub certificate: Source,
    /// The private key of the certificate.
    pub private_key: Source,
    /// The authorities of clients; where there are any, a client has to show a certificate.
    pub client_ca: Option<Source>,
}

/// One of [`ServerFiles`] or [`ClientFiles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The certificate.
    Certificate,
    /// The private key.
    PrivateKey,
    /// The authorities of clients.
    ClientCa,
    /// The authorities of servers.
    Authorities,
}

/// What is wrong with one of [`ServerFiles`] or [`ClientFiles`]. Shows nothing of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsError {
    /// Which.
    pub part: Part,
    /// What is expected of it, and why that is not so.
    pub expected: String,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.part {
            Part::Certificate => "certificate",
            Part::PrivateKey => "private key",
            Part::ClientCa => "authorities of clients",
            Part::Authorities => "authorities of servers",
        };
        write!(f, "{what}: expected {}", self.expected)
    }
}

impl std::error::Error for TlsError {}

/// What stood in [`ServerFiles`] at one moment.
#[derive(Debug)]
pub struct Content {
    certificate: Pem,
    private_key: Pem,
    client_ca: Option<Pem>,
}

impl Content {
    /// Whether `other` is the same.
    pub fn same_as(&self, other: &Self) -> bool {
        let client_ca = match (&self.client_ca, &other.client_ca) {
            (Some(ca), Some(other)) => ca.same_as(other),
            (None, None) => true,
            _ => false,
        };
        client_ca
            && self.certificate.same_as(&other.certificate)
            && self.private_key.same_as(&other.private_key)
    }
}

/// A TLS server.
#[derive(Debug, Clone)]
pub struct Server {
    /// What `tokio_rustls` takes.
    pub config: Arc<ServerConfig>,
    /// The time in which all certificates of the chain are good.
    pub valid: Validity,
}

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From, since 1970.
    pub not_before: Duration,
    /// To, since 1970.
    pub not_after: Duration,
}

impl Validity {
    /// What is wrong at a time: clients would refuse the certificate then.
    pub fn complaint(&self, now: SystemTime) -> Option<String> {
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
            format!(
                "is good only from {from} on: clients refuse it; is this machine's clock right?"
            )
        })
    }
}

impl ServerFiles {
    /// Reads all files. Blocks.
    ///
    /// # Errors
    /// [`TlsError`] with what the system says.
    pub fn read(&self) -> Result<Content, TlsError> {
        Ok(Content {
            certificate: read(Part::Certificate, &self.certificate)?,
            private_key: read(Part::PrivateKey, &self.private_key)?,
            client_ca: match &self.client_ca {
                Some(source) => Some(read(Part::ClientCa, source)?),
                None => None,
            },
        })
    }

    /// Reads all files and makes a server of them. Blocks.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(&self) -> Result<Server, TlsError> {
        self.read()?.server()
    }
}

impl Content {
    /// Makes a server: TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// [`TlsError`] where the content is not what it should be, or does not go together.
    pub fn server(&self) -> Result<Server, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(&self.certificate, Part::Certificate)?;
        let valid = validity(&chain)?;
        let key = private_key(&self.private_key)?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(VERSIONS)
            .map_err(|error| wrong(Part::Certificate, &error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = rustls::RootCertStore::empty();
                for authority in certificates(pem, Part::ClientCa)? {
                    roots.add(authority).map_err(|error| wrong(Part::ClientCa, &error))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|error| wrong(Part::ClientCa, &error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(key_error)?;
        config.alpn_protocols = vec![HTTP.to_vec()];
        Ok(Server { config: Arc::new(config), valid })
    }
}

/// What a TLS client needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// The authorities of servers; without it, those of the system.
    pub ca: Option<Source>,
    /// A certificate to show, and its private key.
    pub identity: Option<(Source, Source)>,
}

impl ClientFiles {
    /// Reads all files and makes a client of them, which speaks `protocol` (by its name in ALPN). Blocks.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(&self, protocol: &[u8]) -> Result<ClientConfig, TlsError> {
        let authorities = match &self.ca {
            Some(source) => certificates(&read(Part::Authorities, source)?, Part::Authorities)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let mut roots = rustls::RootCertStore::empty();
        // A system may have some that TLS cannot use.
        let (usable, _) = roots.add_parsable_certificates(authorities);
        if usable == 0 {
            return Err(TlsError {
                part: Part::Authorities,
                expected:
                    "certificates that TLS can use; this system has none of its own (on Debian: \
                           ca-certificates), or the file that was named"
                        .into(),
            });
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)
            .map_err(|error| wrong(Part::Certificate, &error))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain =
                    certificates(&read(Part::Certificate, certificate)?, Part::Certificate)?;
                let key = private_key(&read(Part::PrivateKey, key)?)?;
                builder.with_client_auth_cert(chain, key).map_err(key_error)?
            }
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }
}

fn read(part: Part, source: &Source) -> Result<Pem, TlsError> {
    source.read().map_err(|error| TlsError {
        part,
        expected: format!("a PEM file that can be read ({error})"),
    })
}

fn private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|_| no_private_key(pem))
}

fn key_error(error: rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => TlsError {
            part: Part::PrivateKey,
            expected: "the private key of the certificate; this one belongs to another".into(),
        },
        rustls::Error::InvalidCertificate(_) => wrong(Part::Certificate, &error),
        error => wrong(Part::PrivateKey, &error),
    }
}

fn wrong(part: Part, error: &dyn std::error::Error) -> TlsError {
    let what = match part {
        Part::PrivateKey => "a private key that TLS can use (RSA from 2048 bits, ECDSA, Ed25519)",
        Part::Certificate | Part::ClientCa | Part::Authorities => "certificates that TLS can use",
    };
    TlsError { part, expected: format!("{what} ({error})") }
}

fn certificates(pem: &Pem, part: Part) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let expected = |why: String| TlsError { part, expected: format!("PEM certificates ({why})") };
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(pem.expose()).collect();
    match found {
        // What the parser quotes of the file may be anything.
        Err(_) => Err(expected("one of them is broken".into())),
        Ok(found) if found.is_empty() => Err(expected("there are none".into())),
        Ok(found) => Ok(found),
    }
}

fn no_private_key(pem: &Pem) -> TlsError {
    let has = |what: &str| pem.expose().windows(what.len()).any(|window| window == what.as_bytes());
    let why = if has("ENCRYPTED") {
        "this one is encrypted; decrypt it, such as by openssl pkey"
    } else if has("BEGIN CERTIFICATE") {
        "there are only certificates"
    } else {
        "there is none"
    };
    TlsError { part: Part::PrivateKey, expected: format!("a private key in PEM ({why})") }
}

fn validity(chain: &[CertificateDer<'_>]) -> Result<Validity, TlsError> {
    let mut valid = Validity { not_before: Duration::ZERO, not_after: Duration::MAX };
    for certificate in chain {
        // Without the demands of the RFC on serial numbers, which clients do not have either.
        let certificate = CertificateInner::<Raw>::from_der(certificate)
            .map_err(|error| wrong(Part::Certificate, &error))?;
        let one = certificate.tbs_certificate().validity();
        valid.not_before = valid.not_before.max(one.not_before.to_unix_duration());
        valid.not_after = valid.not_after.min(one.not_after.to_unix_duration());
    }
    Ok(valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inline(text: &str) -> Source {
        Source::new(text)
    }

    fn pair() -> (String, String) {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (pair.cert.pem(), pair.signing_key.serialize_pem())
    }

    fn load(certificate: &str, private_key: &str) -> Result<Server, TlsError> {
        ServerFiles {
            certificate: inline(certificate),
            private_key: inline(private_key),
            client_ca: None,
        }
        .load()
    }

    #[test]
    fn what_is_wrong_is_said_of_the_part_at_fault() {
        let (certificate, key) = pair();
        assert!(load(&certificate, &key).is_ok());
        // Text around it is usual.
        assert!(load(&format!("subject=x\n{certificate}"), &key).is_ok());
        let (other, _) = pair();
        let broken = certificate.replacen("MII", "M!I", 1);
        let cut = &certificate[..certificate.len() / 2];
        let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
        for (certificate, key, part, why) in [
            ("/nonexistent", &*key, Part::Certificate, "can be read ("),
            (&certificate, "/nonexistent", Part::PrivateKey, "can be read ("),
            (&key, &key, Part::Certificate, "there are none"),
            (&broken, &key, Part::Certificate, "broken"),
            (cut, &key, Part::Certificate, "broken"),
            (no_certificate, &key, Part::Certificate, "certificates that TLS can use"),
            (&certificate, &certificate, Part::PrivateKey, "there are only certificates"),
            (&certificate, &encrypted, Part::PrivateKey, "openssl pkey"),
            (&other, &key, Part::PrivateKey, "belongs to another"),
        ] {
            let error = load(certificate, key).unwrap_err();
            assert_eq!(error.part, part, "{error}");
            assert!(error.expected.contains(why), "{error}");
        }
    }

    #[test]
    fn authorities_of_clients_are_certificates() {
        let (certificate, private_key) = pair();
        let files = |ca: &str| ServerFiles {
            certificate: inline(&certificate),
            private_key: inline(&private_key),
            client_ca: Some(inline(ca)),
        };
        assert!(files(&certificate).load().is_ok());
        let error = files(&private_key).load().unwrap_err();
        assert_eq!((error.part, error.expected.contains("there are none")), (Part::ClientCa, true));
    }

    #[test]
    fn the_shortest_time_of_the_chain_counts() {
        let mut made = Vec::new();
        for (from, to) in [(2020, 2030), (2021, 2029)] {
            let mut parameters = rcgen::CertificateParams::new(["x".to_owned()]).unwrap();
            parameters.not_before = rcgen::date_time_ymd(from, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(to, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            made.push((parameters.self_signed(&key).unwrap().pem(), key.serialize_pem()));
        }
        let chain = format!("{}{}", made[0].0, made[1].0);
        let valid = load(&chain, &made[0].1).unwrap().valid;
        // date -ud 2021-01-01 +%s; date -ud 2029-01-01 +%s
        assert_eq!(valid.not_before.as_secs(), 1_609_459_200);
        assert_eq!(valid.not_after.as_secs(), 1_861_920_000);
        let at = |seconds| valid.complaint(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(1_700_000_000), None);
        assert!(at(1_861_920_001).unwrap().contains("expired at 2029-01-01T00:00:00Z"));
        assert!(at(1_609_459_199).unwrap().contains("only from 2021-01-01T00:00:00Z"));
    }

    #[test]
    fn nothing_of_a_key_is_printed() {
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
