//! The ends of a session, as Clients and Hosts behave.

use std::io;

use aspia_relay::crypto::{CryptoError, Iv, PublicKey};
use aspia_relay::peer::first_message;
use aspia_relay::state::keys::KeyId;
use aspia_relay::wire::peer::{self, PeerToRelay};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a Router gives two peers: the relay's address, a key and a secret.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// The relay's host.
    pub host: String,
    /// The relay's port.
    pub port: u16,
    /// The identifier of the relay's key.
    pub key_id: u32,
    /// Its public key.
    pub public_key: PublicKey,
    /// Its initialisation vector.
    pub iv: Iv,
    /// The serialised secret, the same for both peers.
    pub secret: Vec<u8>,
    /// `PeerToRelay.encryption`: 0 as 2.x peers do, 1 or 2 as 3.0 peers do.
    pub encryption: u32,
}

impl Introduction {
    /// A first message, with an ephemeral key of its own.
    ///
    /// # Errors
    /// [`CryptoError`] if a key cannot be generated or used.
    pub fn first_message(&self) -> Result<PeerToRelay, CryptoError> {
        let key = KeyId(self.key_id);
        first_message::seal(key, &self.public_key, self.iv, &self.secret, self.encryption)
    }

    /// The bytes of a first message.
    ///
    /// # Errors
    /// If a key cannot be generated, or the secret is longer than a relay accepts.
    pub fn first_bytes(&self) -> io::Result<Vec<u8>> {
        let message = self.first_message().map_err(io::Error::other)?;
        peer::encode_first_message(&message).map_err(io::Error::other)
    }

    /// Dials the relay and sends nothing.
    ///
    /// # Errors
    /// The system's error.
    pub async fn dial(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Dials the relay and sends the first message, with `early` right behind it.
    ///
    /// # Errors
    /// The system's error.
    pub async fn connect_with(&self, early: &[u8]) -> io::Result<TcpStream> {
        let mut stream = self.dial().await?;
        let mut bytes = self.first_bytes()?;
        bytes.extend_from_slice(early);
        stream.write_all(&bytes).await?;
        Ok(stream)
    }

    /// Dials the relay and sends the first message.
    ///
    /// # Errors
    /// The system's error.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        self.connect_with(&[]).await
    }

    /// Connects both ends of a session.
    ///
    /// # Errors
    /// The system's error.
    pub async fn connect_both(&self) -> io::Result<(TcpStream, TcpStream)> {
        Ok((self.connect().await?, self.connect().await?))
    }

    /// Both ends of a session that is certainly active: a byte has passed from the first to the second.
    ///
    /// # Errors
    /// The system's error.
    pub async fn session(&self) -> io::Result<(TcpStream, TcpStream)> {
        let (mut client, mut host) = self.connect_both().await?;
        client.write_all(b"x").await?;
        host.read_exact(&mut [0]).await?;
        Ok((client, host))
    }
}
