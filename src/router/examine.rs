//! Looks at a Router without offering it a key; for the doctor.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::config::Config;
use crate::crypto::{Cipher, Iv, PrivateKey};
use crate::link::dialect::{HandshakeError, ReadError};
use crate::link::handshake::Established;
use crate::link::second::SECOND;
use crate::wire::frame::FrameError;
use crate::wire::router::{ClientHello, IDENTIFY_ANONYMOUS, ServerHello, Version};

use super::connection::Connection;
use super::error::LinkError;
use super::{REFUSED_LINK, authenticate};

/// A Router that authenticated itself and takes relay sessions.
#[derive(Debug)]
pub struct Examined {
    /// Its version.
    pub version: Version,
    /// The cipher that it chose.
    pub cipher: Cipher,
    /// The address that this machine dialled from: the one that the Router sees, unless it is translated on the way.
    pub local: Option<IpAddr>,
    /// Whether it kept the link, and how long that was watched. It ends one at once where its white list of relays
    /// does not have this one.
    pub kept: Result<Duration, LinkError>,
}

/// Connects to `address`, authenticates within `limit` and watches for a few seconds whether the Router hangs up.
///
/// # Errors
/// [`LinkError`] where it does not come so far.
pub async fn examine(
    config: &Config,
    address: SocketAddr,
    limit: Duration,
) -> Result<Examined, LinkError> {
    let (connection, established, local) = connect(config, address, limit).await?;
    let since = Instant::now();
    let (mut reader, mut writer) = connection.split();
    // The last answer of the authentication may still wait here.
    while writer.waiting() > 0 {
        if writer.flush().await.is_err() {
            break;
        }
    }
    // Whatever it says, but an end.
    let ended = timeout(REFUSED_LINK, async {
        loop {
            match reader.next().await {
                Ok(Some(_)) => {}
                Ok(None) | Err(ReadError::Frame(FrameError::Io(_) | FrameError::Torn)) => {
                    break LinkError::Denied(since.elapsed());
                }
                // That is no white list, but a Router that does not speak as it should.
                Err(ReadError::Frame(error)) => break LinkError::Frame(error),
                Err(ReadError::Sealed(error)) => break LinkError::Sealed(error),
            }
        }
    });
    Ok(Examined {
        version: established.router_version,
        cipher: established.cipher,
        local,
        kept: ended.await.map_or(Ok(REFUSED_LINK), Err),
    })
}

/// Connects and authenticates; also gives the address that this machine dialled from.
async fn connect(
    config: &Config,
    address: SocketAddr,
    limit: Duration,
) -> Result<(Connection, Established, Option<IpAddr>), LinkError> {
    let authenticated = async {
        let failed = |error| LinkError::Connect(vec![(address, error)]);
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let local = stream.local_addr().ok().map(|local| local.ip());
        let mut connection = Connection::new(stream, &SECOND);
        let established = authenticate(&mut connection, config, &SECOND).await?;
        Ok((connection, established, local))
    };
    timeout(limit, authenticated).await.unwrap_or(Err(LinkError::AuthenticationTimeout(limit)))
}

/// Whether a Router of the 2.x dialect listens there, with whatever key and version. Hangs up as soon as that is
/// known.
pub async fn is_second_generation(config: &Config, address: SocketAddr) -> bool {
    use HandshakeError::{KeyMismatch, NoVersion, RelaysNotAllowed, Version};

    matches!(
        connect(config, address, GREETING).await,
        Ok(_)
            | Err(LinkError::Handshake(
                KeyMismatch | NoVersion | RelaysNotAllowed(_) | Version { .. }
            ))
    )
}

/// Time for an answer to a greeting that only asks which dialect is spoken.
const GREETING: Duration = Duration::from_secs(10);
/// An authentication frame of that dialect (section 7 of the protocol notes).
const AUTHENTICATION_FRAME: u8 = 2;
/// AES-256-GCM, the one cipher of that dialect.
const AES256_GCM: u32 = 2;
/// Longest frame there before the authentication has ended, in bytes.
const MAX_FRAME: usize = 16 * 1024;

/// Whether a Router of the 3.0 dialect listens there: one that answers its greeting. Goes no further.
pub async fn is_third_generation(address: SocketAddr) -> bool {
    timeout(GREETING, greet(address)).await.is_ok_and(|answer| answer.is_some())
}

async fn greet(address: SocketAddr) -> Option<ServerHello> {
    let hello = ClientHello {
        encryption: AES256_GCM,
        identify: IDENTIFY_ANONYMOUS,
        public_key: PrivateKey::generate().ok()?.public().0.to_vec(),
        iv: Iv::random().ok()?.0.to_vec(),
        version: Some(Version { major: 3, minor: 0, patch: 0, ..Version::default() }),
    }
    .encode_to_vec();
    let mut frame = vec![AUTHENTICATION_FRAME, 0, 0, 0];
    frame.extend(u32::try_from(hello.len()).ok()?.to_le_bytes());
    frame.extend(hello);
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(&frame).await.ok()?;
    let mut header = [0; 8];
    stream.read_exact(&mut header).await.ok()?;
    let [kind, 0, 0, 0, length @ ..] = header else { return None };
    let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
    if kind != AUTHENTICATION_FRAME || !(1..=MAX_FRAME).contains(&length) {
        return None;
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.ok()?;
    let answer = ServerHello::decode(payload.as_slice()).ok()?;
    (answer.encryption == AES256_GCM && answer.iv.len() == crate::crypto::IV_LEN).then_some(answer)
}
