//! Authentication to a Router in any dialect (docs/protocol.md, "Authentication in the 2.x dialect" and "Authentication in
//! the 3.0 dialect").
//!
//! The relay proves nothing about itself. It learns that the Router holds the private key for `RouterPublicKey`, because
//! only the holder can derive the keys that seal and open what follows the two hellos. Each step consumes the one before
//! it, so that no step can be left out:
//!
//! ```text
//! Handshake::start   ─ClientHello─▶                  returns AwaitServerHello
//! AwaitServerHello   ◀─ServerHello─                  returns AwaitChallenge
//! AwaitChallenge     ◀─SessionChallenge (sealed)─
//!                    ─SessionResponse (sealed)─▶     returns LinkParameters
//! ```
//!
//! The framing seals and opens: it gets the sealer and the opener that the `ServerHello` yields, and the later steps take
//! and return plaintext. A challenge that does not open is reported by the framing
//! ([`super::framing::FrameDecoder::to_handshake_error`]).

use prost::Message;

use crate::crypto::{Cipher, CryptoError, Iv, Opener, PrivateKey, PublicKey, Sealer, SharedSecret};
use crate::wire::messages::{
    ClientHello, ENCRYPTION_AES256_GCM, ENCRYPTION_CHACHA20_POLY1305, IDENTIFY_ANONYMOUS,
    SESSION_TYPE_RELAY, SessionChallenge, SessionResponse, Version,
};

use super::dialect::{Dialect, HandshakeError, Hellos};

/// What the relay tells the Router about its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineInfo {
    /// Number of CPU cores.
    pub cpu_cores: u32,
    /// Operating system: `Linux`, `Windows` or `macOS`.
    pub os_name: String,
    /// The name that the Router's console shows for the relay.
    pub computer_name: String,
    /// CPU architecture: `x86`, `x86_64`, `arm` or `arm64`.
    pub arch: String,
}

/// The relay's secrets for one link; every link has new ones.
#[derive(Debug)]
pub struct Handshake {
    /// The ephemeral key.
    pub ephemeral: PrivateKey,
    /// The iv that the relay seals with.
    pub iv: Iv,
    /// Whether the CPU has AES instructions. Without them AES is offered only in a dialect that has no other cipher.
    pub has_aes: bool,
    /// The dialect to speak.
    pub dialect: &'static dyn Dialect,
}

impl Handshake {
    /// Generates the secrets of a new link.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the system cannot provide random numbers.
    pub fn new(dialect: &'static dyn Dialect) -> Result<Self, CryptoError> {
        Ok(Self {
            ephemeral: PrivateKey::generate()?,
            iv: Iv::random()?,
            has_aes: crate::crypto::has_hardware_aes(),
            dialect,
        })
    }

    /// Starts the authentication. Returns the `ClientHello` to send and the state that waits for its answer.
    ///
    /// # Errors
    /// [`HandshakeError::Crypto`] if `router_key` is a point of low order.
    pub fn start(
        self,
        router_key: &PublicKey,
    ) -> Result<(Vec<u8>, AwaitServerHello), HandshakeError> {
        let offered = self.dialect.offered_ciphers(self.has_aes);
        let hello = ClientHello {
            encryption: offered,
            identify: IDENTIFY_ANONYMOUS,
            public_key: self.ephemeral.public().0.to_vec(),
            iv: self.iv.0.to_vec(),
            version: Some(self.dialect.announced_version()),
        };
        let hello = hello.encode_to_vec();
        let state = AwaitServerHello {
            dialect: self.dialect,
            secret: self.ephemeral.agree(router_key)?,
            iv: self.iv,
            offered,
            hello: hello.clone(),
        };
        Ok((hello, state))
    }
}

/// The `ClientHello` was sent; the `ServerHello` is expected.
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
    /// Processes the `ServerHello`. Returns the sealer and the opener of everything that follows.
    ///
    /// # Errors
    /// [`HandshakeError`] if the `ServerHello` is not acceptable.
    pub fn receive_server_hello(
        self,
        payload: &[u8],
    ) -> Result<(Sealer, Opener, AwaitChallenge), HandshakeError> {
        let hello = self.dialect.parse_server_hello(payload)?;
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
        let (sealer, opener) = self.dialect.derive_keys(cipher, &hellos)?;
        let state = AwaitChallenge { dialect: self.dialect, cipher, version: hello.version };
        Ok((sealer, opener, state))
    }
}

/// The hellos were exchanged; the first sealed message, the `SessionChallenge`, is expected.
#[derive(Debug)]
#[must_use = "the Router is not authenticated before its challenge has been opened"]
pub struct AwaitChallenge {
    dialect: &'static dyn Dialect,
    cipher: Cipher,
    version: Option<Version>,
}

impl AwaitChallenge {
    /// Returns advice for a challenge that does not open because the Router has another key: [`Dialect::key_remedy`].
    pub fn key_remedy(&self) -> &'static str {
        self.dialect.key_remedy(self.version.is_some())
    }

    /// Processes the opened `SessionChallenge`. Returns the `SessionResponse` to seal and send.
    ///
    /// # Errors
    /// [`HandshakeError`] if this relay cannot work with the Router.
    pub fn receive_challenge(
        self,
        opened: &[u8],
        machine: &MachineInfo,
    ) -> Result<(Vec<u8>, LinkParameters), HandshakeError> {
        let challenge = SessionChallenge::decode(opened).map_err(|error| {
            HandshakeError::Malformed { message: "SessionChallenge", reason: error.to_string() }
        })?;
        let version = self.dialect.check_version(self.version, challenge.version)?;
        if challenge.session_types & SESSION_TYPE_RELAY == 0 {
            return Err(HandshakeError::RelaysNotAllowed(challenge.session_types));
        }
        let response = SessionResponse {
            version: Some(self.dialect.announced_version()),
            session_type: SESSION_TYPE_RELAY,
            cpu_cores: machine.cpu_cores,
            os_name: machine.os_name.clone(),
            computer_name: machine.computer_name.clone(),
            arch: machine.arch.clone(),
            display_name: String::new(),
        };
        Ok((
            response.encode_to_vec(),
            LinkParameters { dialect: self.dialect, cipher: self.cipher, router_version: version },
        ))
    }
}

/// What the authentication has negotiated.
#[derive(Debug)]
pub struct LinkParameters {
    /// The dialect that the Router speaks.
    pub dialect: &'static dyn Dialect,
    /// The cipher that the Router chose.
    pub cipher: Cipher,
    /// The Router's version.
    pub router_version: Version,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::v2::V2;
    use crate::wire::v2::ServerHelloV2;

    fn machine() -> MachineInfo {
        MachineInfo {
            cpu_cores: 2,
            os_name: "Linux".into(),
            computer_name: "vm".into(),
            arch: "x86_64".into(),
        }
    }

    /// A Router whose messages a test can change.
    struct TestRouter {
        hello: ServerHelloV2,
        challenge: SessionChallenge,
        has_aes: bool,
    }

    impl Default for TestRouter {
        fn default() -> Self {
            Self {
                hello: ServerHelloV2 {
                    encryption: ENCRYPTION_CHACHA20_POLY1305,
                    iv: vec![7; 12],
                    version: Some(Version::new(2, 7, 0)),
                },
                challenge: SessionChallenge {
                    session_types: SESSION_TYPE_RELAY | 4,
                    ..SessionChallenge::default()
                },
                has_aes: true,
            }
        }
    }

    impl TestRouter {
        fn before_2_7(version: Option<Version>) -> Self {
            let mut router = Self::default();
            router.hello.version = None;
            router.challenge.version = version;
            router
        }

        fn run(&self) -> Result<LinkParameters, HandshakeError> {
            let private = PrivateKey::generate().unwrap();
            let handshake = Handshake { has_aes: self.has_aes, ..Handshake::new(&V2).unwrap() };
            let (hello, state) = handshake.start(&private.public()).unwrap();
            let hello = ClientHello::decode(hello.as_slice()).unwrap();
            assert_eq!(hello.encryption, if self.has_aes { 3 } else { 1 });
            let (mut sealer, mut opener, state) =
                state.receive_server_hello(&self.hello.encode_to_vec())?;
            let cipher = match self.hello.encryption {
                2 => Cipher::Aes256Gcm,
                _ => Cipher::ChaCha20Poly1305,
            };
            let public = PublicKey::from_slice(&hello.public_key).unwrap();
            let key = private.agree(&public).unwrap().derive_session_key();
            let sealed = Sealer::new(cipher, &key, Iv([7; 12])).unwrap();
            let sealed = { sealed }.seal(&self.challenge.encode_to_vec()).unwrap();
            let challenge = opener.open(&sealed).unwrap();
            let (response, parameters) = state.receive_challenge(&challenge, &machine())?;
            let iv = Iv(hello.iv.as_slice().try_into().unwrap());
            let sealed = sealer.seal(&response).unwrap();
            let opened = Opener::new(cipher, &key, iv).unwrap().open(&sealed).unwrap();
            let response = SessionResponse::decode(opened.as_slice()).unwrap();
            assert_eq!(response.session_type, SESSION_TYPE_RELAY);
            assert_eq!(response.version, Some(Version::new(2, 7, 0)));
            Ok(parameters)
        }

        fn error(&self) -> HandshakeError {
            self.run().expect_err("the handshake must fail")
        }
    }

    #[test]
    fn routers_from_2_3_to_2_7_are_accepted() {
        let new = TestRouter::default().run().unwrap();
        assert_eq!(new.router_version, Version::new(2, 7, 0));
        for (major, minor, patch) in [(2, 6, 0), (2, 5, 9), (2, 3, 0)] {
            let version = Version::new(major, minor, patch);
            assert_eq!(
                TestRouter::before_2_7(Some(version)).run().unwrap().router_version,
                version
            );
        }
    }

    #[test]
    fn cipher_is_accepted_only_if_it_was_offered() {
        let mut router = TestRouter::default();
        router.hello.encryption = ENCRYPTION_AES256_GCM;
        assert_eq!(router.run().unwrap().cipher, Cipher::Aes256Gcm);
        router.has_aes = false;
        assert_eq!(router.error(), HandshakeError::CipherNotOffered(2));
    }

    #[test]
    fn unknown_ciphers_are_refused() {
        for chosen in [0, 3, 4, u32::MAX] {
            let mut router = TestRouter::default();
            router.hello.encryption = chosen;
            assert_eq!(router.error(), HandshakeError::CipherNotOffered(chosen));
        }
    }

    #[test]
    fn version_must_be_supported_and_named_in_the_right_message() {
        let mut hello_too_old = TestRouter::default();
        hello_too_old.hello.version = Some(Version::new(2, 6, 9));
        let errors = [
            hello_too_old.error(),
            TestRouter::before_2_7(Some(Version::new(2, 2, 9))).error(),
            TestRouter::before_2_7(Some(Version::new(2, 7, 0))).error(),
            TestRouter::before_2_7(Some(Version::new(2, 99, 0))).error(),
        ];
        assert!(errors.iter().all(|e| matches!(e, HandshakeError::Version { .. })), "{errors:?}");
        for version in [Version::new(3, 0, 0), Version::new(4, 1, 0)] {
            assert_eq!(
                TestRouter::before_2_7(Some(version)).error(),
                HandshakeError::HostPort(version)
            );
        }
        assert_eq!(TestRouter::before_2_7(None).error(), HandshakeError::NoVersion);
    }

    #[test]
    fn router_that_accepts_no_relays_is_refused() {
        let mut router = TestRouter::default();
        router.challenge.session_types = 7;
        assert_eq!(router.error(), HandshakeError::RelaysNotAllowed(7));
    }

    #[test]
    fn iv_of_wrong_length_is_refused() {
        for length in [0, 11, 13] {
            let mut router = TestRouter::default();
            router.hello.iv = vec![0; length];
            assert!(matches!(router.error(), HandshakeError::Malformed { .. }));
        }
    }

    #[test]
    fn malformed_messages_are_refused() {
        let router = PrivateKey::generate().unwrap().public();
        let start = || Handshake::new(&V2).unwrap().start(&router).unwrap().1;
        let error = start().receive_server_hello(&[0xff; 9]).unwrap_err();
        assert!(matches!(error, HandshakeError::NotServerHello(_)));
        let hello = TestRouter::default().hello.encode_to_vec();
        let (_, _, state) = start().receive_server_hello(&hello).unwrap();
        let error = state.receive_challenge(&[0xff; 9], &machine()).unwrap_err();
        assert!(matches!(error, HandshakeError::Malformed { .. }));
    }
}
