//! Authentication to a Router (section 3 of the protocol notes), in any dialect.
//!
//! The relay proves nothing about itself; it learns that the Router holds the private key of
//! `RouterPublicKey`, because only that holder derives the keys that open and seal what follows
//! the two hellos. Each step consumes the one before it, so that no step can be left out:
//!
//! ```text
//! Handshake::start ─ClientHello─▶   AwaitServerHello ◀─ServerHello─
//!                                   AwaitChallenge   ◀─SessionChallenge (sealed)─
//!                  ◀─SessionResponse (sealed)─ Established
//! ```
//!
//! Sealing is the framing's: the seals that the `ServerHello` gives go there, and what the steps take and give
//! afterwards is opened. A challenge that does not open never comes here
//! ([`super::framing::Incoming::handshake_error`]).

use prost::Message;

use crate::crypto::{Cipher, CryptoError, Iv, Opener, PrivateKey, PublicKey, Sealer, SharedSecret};
use crate::wire::router::{
    ClientHello, ENCRYPTION_AES256_GCM, ENCRYPTION_CHACHA20_POLY1305, IDENTIFY_ANONYMOUS,
    SESSION_TYPE_RELAY, SessionChallenge, SessionResponse, Version,
};

use super::dialect::{Dialect, HandshakeError, Hellos};

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

/// The relay's secrets for one link, made anew for each.
#[derive(Debug)]
pub struct Handshake {
    /// The ephemeral key.
    pub ephemeral: PrivateKey,
    /// The iv that the relay seals with.
    pub iv: Iv,
    /// Whether the CPU has instructions for AES: without them it is offered only where there is nothing else.
    pub offer_aes: bool,
    /// The dialect that is spoken.
    pub dialect: &'static dyn Dialect,
}

impl Handshake {
    /// Fresh secrets.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the system has no randomness to give.
    pub fn new(dialect: &'static dyn Dialect) -> Result<Self, CryptoError> {
        Ok(Self {
            ephemeral: PrivateKey::generate()?,
            iv: Iv::random()?,
            offer_aes: crate::crypto::has_hardware_aes(),
            dialect,
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
        let offered = self.dialect.ciphers(self.offer_aes);
        let hello = ClientHello {
            encryption: offered,
            identify: IDENTIFY_ANONYMOUS,
            public_key: self.ephemeral.public().0.to_vec(),
            iv: self.iv.0.to_vec(),
            version: Some(self.dialect.version()),
        };
        let hello = hello.encode_to_vec();
        let wait = AwaitServerHello {
            dialect: self.dialect,
            secret: self.ephemeral.agree(router_key)?,
            iv: self.iv,
            offered,
            hello: hello.clone(),
        };
        Ok((hello, wait))
    }
}

/// `ClientHello` is sent; the Router's answer is due.
#[derive(Debug)]
#[must_use = "the Router is not authenticated before its challenge has been opened"]
pub struct AwaitServerHello {
    dialect: &'static dyn Dialect,
    secret: SharedSecret,
    iv: Iv,
    offered: u32,
    hello: Vec<u8>,
}

impl AwaitServerHello {
    /// Takes the `ServerHello`. Gives what seals and opens everything from here on.
    ///
    /// # Errors
    /// Any [`HandshakeError`] but those about the challenge.
    pub fn server_hello(
        self,
        payload: &[u8],
    ) -> Result<(Sealer, Opener, AwaitChallenge), HandshakeError> {
        let hello = self.dialect.server_hello(payload)?;
        let cipher = match hello.encryption {
            chosen if chosen & self.offered != chosen => {
                return Err(HandshakeError::CipherNotOffered(chosen));
            }
            ENCRYPTION_CHACHA20_POLY1305 => Cipher::ChaCha20Poly1305,
            ENCRYPTION_AES256_GCM => Cipher::Aes256Gcm,
            other => return Err(HandshakeError::CipherNotOffered(other)),
        };
        let hellos = Hellos {
            secret: &self.secret,
            client: &self.hello,
            client_iv: self.iv,
            server: payload,
            server_iv: hello.iv,
        };
        let (sealer, opener) = self.dialect.seals(cipher, &hellos)?;
        let wait = AwaitChallenge { dialect: self.dialect, cipher, version: hello.version };
        Ok((sealer, opener, wait))
    }
}

/// The hellos are exchanged; the first sealed message is due.
#[derive(Debug)]
#[must_use = "the Router is not authenticated before its challenge has been opened"]
pub struct AwaitChallenge {
    dialect: &'static dyn Dialect,
    cipher: Cipher,
    version: Option<Version>,
}

impl AwaitChallenge {
    /// What to do where the challenge does not open, since the Router has another key: [`Dialect::key_remedy`].
    pub fn key_remedy(&self) -> &'static str {
        self.dialect.key_remedy(self.version.is_some())
    }

    /// Takes the opened `SessionChallenge` and gives the `SessionResponse` to seal and send.
    ///
    /// # Errors
    /// [`HandshakeError`]: the Router is none that a relay can serve.
    pub fn challenge(
        self,
        opened: &[u8],
        machine: &MachineInfo,
    ) -> Result<(Vec<u8>, Established), HandshakeError> {
        let challenge = SessionChallenge::decode(opened).map_err(|error| {
            HandshakeError::Malformed { message: "SessionChallenge", reason: error.to_string() }
        })?;
        let version = self.dialect.router_version(self.version, challenge.version)?;
        if challenge.session_types & SESSION_TYPE_RELAY == 0 {
            return Err(HandshakeError::RelaysNotAllowed(challenge.session_types));
        }
        let response = SessionResponse {
            version: Some(self.dialect.version()),
            session_type: SESSION_TYPE_RELAY,
            cpu_cores: machine.cpu_cores,
            os_name: machine.os_name.clone(),
            computer_name: machine.computer_name.clone(),
            arch: machine.arch.clone(),
            display_name: String::new(),
        };
        Ok((
            response.encode_to_vec(),
            Established { dialect: self.dialect, cipher: self.cipher, router_version: version },
        ))
    }
}

/// The Router is authenticated.
#[derive(Debug)]
pub struct Established {
    /// The dialect that is spoken.
    pub dialect: &'static dyn Dialect,
    /// The cipher in use.
    pub cipher: Cipher,
    /// The Router's version.
    pub router_version: Version,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::second::SECOND;
    use crate::wire::router::ServerHello;

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
            let handshake =
                Handshake { offer_aes: self.offer_aes, ..Handshake::new(&SECOND).unwrap() };
            let (hello, wait) = handshake.start(&router.public()).unwrap();
            let hello = ClientHello::decode(hello.as_slice()).unwrap();
            assert_eq!(hello.encryption, if self.offer_aes { 3 } else { 1 });
            let (mut sealer, mut opener, wait) = wait.server_hello(&self.hello.encode_to_vec())?;
            let cipher = match self.hello.encryption {
                2 => Cipher::Aes256Gcm,
                _ => Cipher::ChaCha20Poly1305,
            };
            let public = PublicKey::from_slice(&hello.public_key).unwrap();
            let key = router.agree(&public).unwrap().session_key();
            let sealed = Sealer::new(cipher, &key, Iv([7; 12])).unwrap();
            let sealed = { sealed }.seal(&self.challenge.encode_to_vec()).unwrap();
            let challenge = opener.open(&sealed).unwrap();
            let (response, established) = wait.challenge(&challenge, &machine())?;
            let iv = Iv(hello.iv.as_slice().try_into().unwrap());
            let sealed = sealer.seal(&response).unwrap();
            let opened = Opener::new(cipher, &key, iv).unwrap().open(&sealed).unwrap();
            let response = SessionResponse::decode(opened.as_slice()).unwrap();
            assert_eq!(response.session_type, SESSION_TYPE_RELAY);
            assert_eq!(response.version, Some(Version::new(2, 7, 0)));
            Ok(established)
        }

        fn error(&self) -> HandshakeError {
            self.run().expect_err("the handshake must fail")
        }
    }

    #[test]
    fn current_and_older_routers_are_taken() {
        let new = Answers::default().run().unwrap();
        assert_eq!(new.router_version, Version::new(2, 7, 0));
        for (major, minor, patch) in [(2, 6, 0), (2, 5, 9), (2, 3, 0)] {
            let version = Version::new(major, minor, patch);
            assert_eq!(Answers::old(Some(version)).run().unwrap().router_version, version);
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
    fn versions_follow_the_rules() {
        let mut hello_too_old = Answers::default();
        hello_too_old.hello.version = Some(Version::new(2, 6, 9));
        let errors = [
            hello_too_old.error(),
            Answers::old(Some(Version::new(2, 2, 9))).error(),
            Answers::old(Some(Version::new(2, 7, 0))).error(),
            Answers::old(Some(Version::new(2, 99, 0))).error(),
        ];
        assert!(errors.iter().all(|e| matches!(e, HandshakeError::Version { .. })), "{errors:?}");
        for version in [Version::new(3, 0, 0), Version::new(4, 1, 0)] {
            assert_eq!(Answers::old(Some(version)).error(), HandshakeError::HostPort(version));
        }
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
        let start = || Handshake::new(&SECOND).unwrap().start(&router).unwrap().1;
        let error = start().server_hello(&[0xff; 9]).unwrap_err();
        assert!(matches!(error, HandshakeError::NotServerHello(_)));
        let hello = Answers::default().hello.encode_to_vec();
        let (_, _, wait) = start().server_hello(&hello).unwrap();
        let error = wait.challenge(&[0xff; 9], &machine()).unwrap_err();
        assert!(matches!(error, HandshakeError::Malformed { .. }));
    }
}
