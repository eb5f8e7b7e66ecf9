//! Looks at a Router without offering it a key; for the doctor.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::config::Config;
use crate::config::parse::Protocol;
use crate::crypto::Cipher;
use crate::link::dialect::{Dialect, FramingError};
use crate::wire::frame::FrameError;
use crate::wire::router::Version;

use super::choice::{Begun, Choice};
use super::error::LinkError;
use super::machine_info;
use super::status::CONFIRMATION;

/// A Router that authenticated itself and takes relay sessions.
#[derive(Debug)]
pub struct Examined {
    /// The dialect that it speaks: `2.x` or `3.0`.
    pub dialect: &'static str,
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
    let mut choice = Choice::default();
    let connected = timeout(limit, connect(config, address, &mut choice)).await;
    let begun = connected.unwrap_or(Err(LinkError::AuthenticationTimeout(limit)))?;
    let Begun { connection, established, .. } = begun;
    let local = connection.local();
    let since = Instant::now();
    let (mut reader, mut writer) = connection.split();
    // The last answer of the authentication may still wait here.
    while writer.waiting() > 0 {
        if writer.flush().await.is_err() {
            break;
        }
    }
    // Whatever it says, but an end.
    let ended = timeout(CONFIRMATION, async {
        loop {
            match reader.next().await {
                Ok(Some(_)) => {}
                Ok(None) | Err(FramingError::Frame(FrameError::Io(_) | FrameError::Torn)) => {
                    break LinkError::Denied(since.elapsed());
                }
                // That is no white list, but a Router that does not speak as it should.
                Err(FramingError::Frame(error)) => break LinkError::Frame(error),
                Err(FramingError::Sealed(error)) => break LinkError::Sealed(error),
            }
        }
    });
    Ok(Examined {
        dialect: established.dialect.name(),
        version: established.router_version,
        cipher: established.cipher,
        local,
        kept: ended.await.map_or(Ok(CONFIRMATION), Err),
    })
}

/// The dialect that a Router speaks there, with whatever key and version; `None` where none is spoken. Tries all of
/// them, whatever `RouterProtocol` is, and offers no key.
pub async fn dialect_at(config: &Config, address: SocketAddr) -> Option<&'static str> {
    let mut config = config.clone();
    config.router.protocol = Protocol::Auto;
    let mut choice = Choice::default();
    // Whether it authenticates does not matter: that it answers says what it is.
    let _ = timeout(GREETING, connect(&config, address, &mut choice)).await;
    choice.known().map(Dialect::name)
}

/// Connects and authenticates.
async fn connect(
    config: &Config,
    address: SocketAddr,
    choice: &mut Choice,
) -> Result<Begun, LinkError> {
    let machine = machine_info(&config.router.display_name);
    choice.begin(config, &machine, Some(address)).await
}

/// Time for an answer to a greeting that only asks which dialect is spoken.
const GREETING: Duration = Duration::from_secs(10);
