//! Examines a Router without offering it a key; for the doctor.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::config::Config;
use crate::config::parse::RouterProtocol;
use crate::crypto::Cipher;
use crate::link::dialect::{Dialect, FramingError};
use crate::wire::frame::FrameError;
use crate::wire::messages::Version;

use super::connector::{ConnectedRouter, RouterConnector};
use super::error::LinkError;
use super::machine_info;
use super::status::CONFIRMATION_TIME;

/// The time limit for detecting the dialect.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known about a Router that has authenticated itself and accepts relay sessions.
#[derive(Debug)]
pub struct RouterExamination {
    /// The dialect that the Router speaks: `2.x` or `3.0`.
    pub dialect: &'static str,
    /// The Router's version.
    pub version: Version,
    /// The cipher that the Router chose.
    pub cipher: Cipher,
    /// The address that this machine dialled from. The Router sees the same address, unless NAT translates it.
    pub local: Option<IpAddr>,
    /// [`CONFIRMATION_TIME`] if the Router kept the link for that long, or why it did not. A Router whose white list of relays
    /// lacks this one closes the link at once.
    pub kept: Result<Duration, LinkError>,
}

/// Connects to `address`, authenticates within `limit` and watches for [`CONFIRMATION_TIME`] whether the Router hangs up.
///
/// # Errors
/// [`LinkError`] if the authentication fails.
pub async fn examine_router(
    config: &Config,
    address: SocketAddr,
    limit: Duration,
) -> Result<RouterExamination, LinkError> {
    let mut connector = RouterConnector::default();
    let connected = timeout(limit, connect(config, address, &mut connector)).await;
    let connected = connected.unwrap_or(Err(LinkError::AuthenticationTimeout(limit)))?;
    let ConnectedRouter { connection, parameters, .. } = connected;
    let local = connection.local_ip();
    let since = Instant::now();
    let (mut reader, mut writer) = connection.split();
    // The last message of the authentication may not be sent yet.
    while writer.pending_bytes() > 0 {
        if writer.flush().await.is_err() {
            break;
        }
    }
    // Frames are ignored: only the end of the connection matters.
    let ended = timeout(CONFIRMATION_TIME, async {
        loop {
            match reader.read_frame().await {
                Ok(Some(_)) => {}
                Ok(None) | Err(FramingError::Frame(FrameError::Io(_) | FrameError::Truncated)) => {
                    break LinkError::Denied(since.elapsed());
                }
                // The Router violates the protocol: this is not the effect of a white list.
                Err(FramingError::Frame(error)) => break LinkError::Frame(error),
                Err(FramingError::Crypto(error)) => break LinkError::Sealed(error),
            }
        }
    });
    Ok(RouterExamination {
        dialect: parameters.dialect.name(),
        version: parameters.router_version,
        cipher: parameters.cipher,
        local,
        kept: ended.await.map_or(Ok(CONFIRMATION_TIME), Err),
    })
}

/// Detects the dialect of the Router at `address`, whatever its key and version; `None` if it speaks none. Tries all
/// dialects regardless of `RouterProtocol`, and offers no key.
pub async fn detect_dialect(config: &Config, address: SocketAddr) -> Option<&'static str> {
    let mut config = config.clone();
    config.router.protocol = RouterProtocol::Auto;
    let mut connector = RouterConnector::default();
    // The result does not matter: an answer is enough to know the dialect.
    let _ = timeout(GREETING_TIMEOUT, connect(&config, address, &mut connector)).await;
    connector.known_dialect().map(Dialect::name)
}

/// Connects and authenticates.
async fn connect(
    config: &Config,
    address: SocketAddr,
    connector: &mut RouterConnector,
) -> Result<ConnectedRouter, LinkError> {
    let machine = machine_info(&config.router.display_name);
    connector.connect(config, &machine, Some(address)).await
}
