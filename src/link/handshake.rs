//! Authentication to a Router of the 2.x dialect (section 3 of the protocol notes).
//!
//! The relay proves nothing about itself; it learns that the Router holds the private key of
//! `RouterPublicKey`, because only that holder derives the session key that opens and seals what follows
//! the two hellos. Each step consumes the one before it, so that no step can be left out:
//!
//! ```text
//! Handshake::start ─ClientHello─▶   AwaitServerHello ◀─ServerHello─
//!                                   AwaitChallenge   ◀─SessionChallenge (sealed)─
//!                  ◀─SessionResponse (sealed)─ Established
//! ```

use prost::Message;

use crate::crypto::{Cipher, CryptoError, Iv, Opener, PrivateKey, PublicKey, Sealer, SessionKey};
use crate::wire::router::{
    ClientHello, DIALECT_VERSION, ENCRYPTION_AES256_GCM, ENCRYPTION_CHACHA20_POLY1305,
    IDENTIFY_ANONYMOUS, SESSION_TYPE_RELAY, ServerHello, SessionChallenge, SessionResponse,
    Version,
};

/// The first version that names itself in `ServerHello`.
const VERSION_IN_HELLO: Version = Version::new(2, 7, 0);
/// The oldest Router that relays can talk to.
const OLDEST_VERSION: Version = Version::new(2, 3, 0);
/// The first version with a channel header on messages.
const CHANNEL_HEADER_VERSION: Version = Version::new(2, 6, 0);

/// What the relay tells of the machine that it runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineInfo {
    /// Number of CPU cores.
    pub cpu_cores: u32,
    /// Operating system, `Linux` or `Windows`.
    pub os_name: String,
    /// The name that the Router's console shows.
    pub computer_name: String,
    /// `x86`, `x86_64`, `arm` or `arm64`.
    pub arch: String,
}

/// Why a Router cannot be authenticated. Each of these ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A message is not what it should be.
    #[error("the Router's {message} cannot be read: {reason}")]
    Malformed {
        /// Which message.
        message: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The Router chose a cipher that was not offered.
    #[error("the Router chose cipher {0}, which was not offered")]
    CipherNotOffered(u32),
    /// The sealed challenge does not open: the Router has another private key.
    #[error("the Router does not hold the private key for RouterPublicKey")]
    KeyMismatch,
    /// The Router is too old, or contradicts itself.
    #[error("the Router's version {version} {rule}")]
    Version {
        /// The version that the Router named.
        version: Version,
        /// What it should be.
        rule: &'static str,
    },
    /// The Router named no version at all.
    #[error("the Router names no version")]
    NoVersion,
    /// The Router takes no relays.
    #[error("the Router takes no relay sessions (session types {0:#x}, bit 8 is missing)")]
    RelaysNotAllowed(u32),
    /// The cryptographic provider failed, or `RouterPublicKey` is a point of low order.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

fn malformed(message: &'static str, reason: impl Into<String>) -> HandshakeError {
    HandshakeError::Malformed { message, reason: reason.into() }
}

/// The relay's secrets for one link, made anew for each.
#[derive(Debug)]
pub struct Handshake {
    /// The ephemeral key.
    pub ephemeral: PrivateKey,
    /// The iv that the relay seals with.
    pub iv: Iv,
    /// Whether AES-256-GCM is offered beside ChaCha20-Poly1305.
    pub offer_aes: bool,
}

impl Handshake {
    /// Fresh secrets; AES-256-GCM is offered only where the CPU has instructions for it.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the system has no randomness to give.
    pub fn new() -> Result<Self, CryptoError> {
        Ok(Self {
            ephemeral: PrivateKey::generate()?,
            iv: Iv::random()?,
            offer_aes: crate::crypto::has_hardware_aes(),
        })
    }

    /// Begins: the `ClientHello` to send, and what waits for its answer.
    ///
    /// # Errors
    /// [`HandshakeError::Crypto`] when `router_key` is a point of low order.
    pub fn start(
        self,
        router_key: &PublicKey,
    ) -> Result<(Vec<u8>, AwaitServerHello), HandshakeError> {
        let mut encryption = ENCRYPTION_CHACHA20_POLY1305;
        if self.offer_aes {
            encryption |= ENCRYPTION_AES256_GCM;
        }
        let hello = ClientHello {
            encryption,
            identify: IDENTIFY_ANONYMOUS,
            public_key: self.ephemeral.public().0.to_vec(),
            iv: self.iv.0.to_vec(),
            version: Some(DIALECT_VERSION),
        };
        let key = self.ephemeral.agree(router_key)?;
        Ok((hello.encode_to_vec(), AwaitServerHello { key, iv: self.iv, offered: encryption }))
    }
}

/// `ClientHello` is sent; the Router's answer is due.
#[derive(Debug)]
#[must_use = "the Router is not authenticated before its challenge has been opened"]
pub struct AwaitServerHello {
    key: SessionKey,
    iv: Iv,
    offered: u32,
}

impl AwaitServerHello {
    /// Takes the `ServerHello`.
    ///
    /// # Errors
    /// Any [`HandshakeError`] but those about the challenge.
    pub fn server_hello(self, payload: &[u8]) -> Result<AwaitChallenge, HandshakeError> {
        let hello =
            ServerHello::decode(payload).map_err(|e| malformed("ServerHello", e.to_string()))?;
        let cipher = match hello.encryption {
            chosen if chosen & self.offered != chosen => {
                return Err(HandshakeError::CipherNotOffered(chosen));
            }
            ENCRYPTION_CHACHA20_POLY1305 => Cipher::ChaCha20Poly1305,
            ENCRYPTION_AES256_GCM => Cipher::Aes256Gcm,
            other => return Err(HandshakeError::CipherNotOffered(other)),
        };
        let iv = <[u8; 12]>::try_from(hello.iv.as_slice()).map_err(|_| {
            malformed("ServerHello", format!("an iv of {} bytes instead of 12", hello.iv.len()))
        })?;
        if let Some(version) = hello.version
            && version < VERSION_IN_HELLO
        {
            return Err(HandshakeError::Version {
                version,
                rule: "stands in its ServerHello, where only 2.7.0 and later name it",
            });
        }
        Ok(AwaitChallenge {
            sealer: Sealer::new(cipher, &self.key, self.iv)?,
            opener: Opener::new(cipher, &self.key, Iv(iv))?,
            cipher,
            version: hello.version,
        })
    }
}

/// The hellos are exchanged; the first sealed message is due.
#[derive(Debug)]
#[must_use = "the Router is not authenticated before its challenge has been opened"]
pub struct AwaitChallenge {
    sealer: Sealer,
    opener: Opener,
    cipher: Cipher,
    version: Option<Version>,
}

impl AwaitChallenge {
    /// Takes the sealed `SessionChallenge` and gives the sealed `SessionResponse` to send.
    ///
    /// # Errors
    /// [`HandshakeError::KeyMismatch`] when it does not open; the other [`HandshakeError`]s otherwise.
    pub fn challenge(
        mut self,
        sealed: &[u8],
        machine: &MachineInfo,
    ) -> Result<(Vec<u8>, Established), HandshakeError> {
        let opened = self.opener.open(sealed).map_err(|e| match e {
            CryptoError::TooShort(_) => malformed("SessionChallenge", e.to_string()),
            _ => HandshakeError::KeyMismatch,
        })?;
        let challenge = SessionChallenge::decode(opened.as_slice())
            .map_err(|e| malformed("SessionChallenge", e.to_string()))?;
        let version = match (self.version, challenge.version) {
            (Some(version), _) => version,
            (None, None) => return Err(HandshakeError::NoVersion),
            (None, Some(version)) if version < OLDEST_VERSION => {
                return Err(HandshakeError::Version { version, rule: "is older than 2.3.0" });
            }
            (None, Some(version)) if version >= VERSION_IN_HELLO => {
                return Err(HandshakeError::Version {
                    version,
                    rule: "is missing from its ServerHello, where 2.7.0 and later name it",
                });
            }
            (None, Some(version)) => version,
        };
        if challenge.session_types & SESSION_TYPE_RELAY == 0 {
            return Err(HandshakeError::RelaysNotAllowed(challenge.session_types));
        }
        let response = SessionResponse {
            version: Some(DIALECT_VERSION),
            session_type: SESSION_TYPE_RELAY,
            cpu_cores: machine.cpu_cores,
            os_name: machine.os_name.clone(),
            computer_name: machine.computer_name.clone(),
            arch: machine.arch.clone(),
            display_name: String::new(),
        };
        let response = self.sealer.seal(&response.encode_to_vec())?;
        Ok((
            response,
            Established {
                sealer: self.sealer,
                opener: self.opener,
                cipher: self.cipher,
                router_version: version,
            },
        ))
    }
}

/// The Router is authenticated.
#[derive(Debug)]
pub struct Established {
    /// Seals what the relay sends from now on.
    pub sealer: Sealer,
    /// Opens what the Router sends from now on.
    pub opener: Opener,
    /// The cipher in use.
    pub cipher: Cipher,
    /// The Router's version.
    pub router_version: Version,
}

impl Established {
    /// Whether messages after the `SessionResponse` carry the channel header.
    pub fn channel_header(&self) -> bool {
        self.router_version >= CHANNEL_HEADER_VERSION
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> MachineInfo {
        MachineInfo {
            cpu_cores: 2,
            os_name: "Linux".into(),
            computer_name: "vm".into(),
            arch: "x86_64".into(),
        }
    }

    /// A Router that answers as it is told to.
    struct Answers {
        hello: ServerHello,
        challenge: SessionChallenge,
        wrong_key: bool,
        offer_aes: bool,
    }

    impl Default for Answers {
        fn default() -> Self {
            Self {
                hello: ServerHello {
                    encryption: ENCRYPTION_CHACHA20_POLY1305,
                    iv: vec![7; 12],
                    version: Some(Version::new(2, 7, 0)),
                },
                challenge: SessionChallenge {
                    session_types: SESSION_TYPE_RELAY | 4,
                    ..SessionChallenge::default()
                },
                wrong_key: false,
                offer_aes: true,
            }
        }
    }

    impl Answers {
        fn old(version: Option<Version>) -> Self {
            let mut answers = Self::default();
            answers.hello.version = None;
            answers.challenge.version = version;
            answers
        }

        fn run(&self) -> Result<Established, HandshakeError> {
            let router = PrivateKey::generate().unwrap();
            let pinned = if self.wrong_key {
                PrivateKey::generate().unwrap().public()
            } else {
                router.public()
            };
            let handshake = Handshake { offer_aes: self.offer_aes, ..Handshake::new().unwrap() };
            let (hello, wait) = handshake.start(&pinned).unwrap();
            let hello = ClientHello::decode(hello.as_slice()).unwrap();
            assert_eq!(hello.encryption, if self.offer_aes { 3 } else { 1 });
            let wait = wait.server_hello(&self.hello.encode_to_vec())?;
            let cipher = match self.hello.encryption {
                2 => Cipher::Aes256Gcm,
                _ => Cipher::ChaCha20Poly1305,
            };
            let key = router.agree(&PublicKey::from_slice(&hello.public_key).unwrap()).unwrap();
            let mut sealer = Sealer::new(cipher, &key, Iv([7; 12])).unwrap();
            let sealed = sealer.seal(&self.challenge.encode_to_vec()).unwrap();
            let (response, established) = wait.challenge(&sealed, &machine())?;
            let iv = Iv(hello.iv.as_slice().try_into().unwrap());
            let opened = Opener::new(cipher, &key, iv).unwrap().open(&response).unwrap();
            let response = SessionResponse::decode(opened.as_slice()).unwrap();
            assert_eq!(response.session_type, SESSION_TYPE_RELAY);
            assert_eq!(response.version, Some(DIALECT_VERSION));
            Ok(established)
        }

        fn error(&self) -> HandshakeError {
            self.run().expect_err("the handshake must fail")
        }
    }

    #[test]
    fn current_and_older_routers_are_taken() {
        let new = Answers::default().run().unwrap();
        assert_eq!((new.router_version, new.channel_header()), (Version::new(2, 7, 0), true));
        for (version, header) in [((2, 6, 0), true), ((2, 5, 9), false), ((2, 3, 0), false)] {
            let version = Version::new(version.0, version.1, version.2);
            let old = Answers::old(Some(version)).run().unwrap();
            assert_eq!((old.router_version, old.channel_header()), (version, header));
        }
    }

    #[test]
    fn either_cipher_is_taken_when_offered() {
        let mut answers = Answers::default();
        answers.hello.encryption = ENCRYPTION_AES256_GCM;
        assert_eq!(answers.run().unwrap().cipher, Cipher::Aes256Gcm);
        answers.offer_aes = false;
        assert_eq!(answers.error(), HandshakeError::CipherNotOffered(2));
    }

    #[test]
    fn ciphers_that_do_not_exist_are_refused() {
        for chosen in [0, 3, 4, u32::MAX] {
            let mut answers = Answers::default();
            answers.hello.encryption = chosen;
            assert_eq!(answers.error(), HandshakeError::CipherNotOffered(chosen));
        }
    }

    #[test]
    fn another_private_key_is_named_as_such() {
        let answers = Answers { wrong_key: true, ..Answers::default() };
        assert_eq!(answers.error(), HandshakeError::KeyMismatch);
    }

    #[test]
    fn versions_follow_the_rules() {
        let mut hello_too_old = Answers::default();
        hello_too_old.hello.version = Some(Version::new(2, 6, 9));
        let errors = [
            hello_too_old.error(),
            Answers::old(Some(Version::new(2, 2, 9))).error(),
            Answers::old(Some(Version::new(2, 7, 0))).error(),
            Answers::old(Some(Version::new(3, 0, 0))).error(),
        ];
        assert!(errors.iter().all(|e| matches!(e, HandshakeError::Version { .. })), "{errors:?}");
        assert_eq!(Answers::old(None).error(), HandshakeError::NoVersion);
    }

    #[test]
    fn a_router_without_relay_sessions_is_refused() {
        let mut answers = Answers::default();
        answers.challenge.session_types = 7;
        assert_eq!(answers.error(), HandshakeError::RelaysNotAllowed(7));
    }

    #[test]
    fn an_iv_of_another_length_is_refused() {
        for length in [0, 11, 13] {
            let mut answers = Answers::default();
            answers.hello.iv = vec![0; length];
            assert!(matches!(answers.error(), HandshakeError::Malformed { .. }));
        }
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        let router = PrivateKey::generate().unwrap().public();
        let (_, wait) = Handshake::new().unwrap().start(&router).unwrap();
        assert!(matches!(wait.server_hello(&[0xff; 9]), Err(HandshakeError::Malformed { .. })));
        let (_, wait) = Handshake::new().unwrap().start(&router).unwrap();
        let hello = Answers::default().hello.encode_to_vec();
        let error = wait.server_hello(&hello).unwrap().challenge(&[0; 15], &machine()).unwrap_err();
        assert!(matches!(error, HandshakeError::Malformed { .. }));
    }
}
