//! Why there is no link to the Router, described so that an operator can act on it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::crypto::CryptoError;
use crate::dial::FailedAttempts;
use crate::link::dialect::{FramingError, HandshakeError};
use crate::link::keepalive::KeepAliveError;
use crate::wire::frame::FrameError;

/// Why a link could not be made, or why it ended.
#[derive(Debug)]
pub enum LinkError {
    /// The name does not resolve.
    Resolve {
        /// `RouterAddress`.
        host: String,
        /// The error of the resolver.
        error: io::Error,
        /// The address that last worked, if there is one, with the error of connecting to it now.
        last_good: FailedAttempts,
    },
    /// No address of the Router could be reached.
    Connect(FailedAttempts),
    /// The Router did not finish the authentication within this time.
    AuthenticationTimeout(Duration),
    /// The Router closed the connection before the end of the authentication; with the error of the socket, if any.
    ClosedEarly(Option<io::Error>),
    /// The Router is not the expected one, or violates the protocol of the authentication.
    Handshake(HandshakeError),
    /// The server speaks none of the dialects; with the error for each dialect.
    NoDialect(Vec<(&'static str, LinkError)>),
    /// The server is not a Router of this dialect.
    NotARouter(FrameError),
    /// The Router sent something that is not a frame.
    Frame(FrameError),
    /// The Router sent a frame that does not open.
    Sealed(CryptoError),
    /// The Router did not answer a ping, or answered wrongly.
    KeepAlive(KeepAliveError),
    /// The Router does not read what the relay sends.
    Stalled,
    /// The Router closed the link; with the error of the socket, if any.
    Closed(Option<io::Error>),
    /// The Router closed the link this soon after the authentication.
    Denied(Duration),
    /// The cryptographic provider failed.
    Provider(CryptoError),
    /// The relay panicked, with this message.
    Panicked(String),
}

impl LinkError {
    /// Whether a server may speak another dialect if this error occurs before its `ServerHello`.
    pub(super) fn suggests_another_dialect(&self) -> bool {
        matches!(
            self,
            Self::ClosedEarly(_)
                | Self::NotARouter(_)
                | Self::Handshake(HandshakeError::NotServerHello(_))
        )
    }

    /// Whether the error persists until an operator changes something.
    pub fn needs_operator(&self) -> bool {
        match self {
            Self::Denied(_) | Self::Provider(_) | Self::Panicked(_) => true,
            Self::Handshake(error) => !matches!(
                error,
                HandshakeError::Malformed { .. } | HandshakeError::NotServerHello(_)
            ),
            _ => false,
        }
    }
}

impl std::error::Error for LinkError {}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve { host, error, last_good } => write_resolve(f, host, error, last_good),
            Self::Connect(failed) => {
                f.write_str("cannot connect:")?;
                write_attempts(f, failed)
            }
            Self::AuthenticationTimeout(limit) => write!(
                f,
                "the Router accepted the connection but did not authenticate within {} s; is it an Aspia Router that \
                 listens on RouterPort?",
                limit.as_secs()
            ),
            Self::ClosedEarly(error) => {
                f.write_str(
                    "the Router closed the connection before authentication; is it an Aspia Router that \
                     listens for relays on RouterPort?",
                )?;
                write_reason(f, error.as_ref())
            }
            Self::Handshake(error) => write_handshake(f, error),
            Self::NoDialect(failed) => write_no_dialect(f, failed),
            Self::NotARouter(error) => write!(
                f,
                "the server there does not speak the protocol of an Aspia Router ({error}); is RouterPort right?"
            ),
            Self::Frame(error) => write!(f, "the Router violated the protocol: {error}"),
            Self::Sealed(error) => write!(f, "cannot open a message from the Router: {error}"),
            Self::KeepAlive(error) => write!(f, "{error}"),
            Self::Stalled => f.write_str("the Router does not read what the relay sends"),
            Self::Closed(error) => {
                f.write_str("closed by the Router")?;
                write_reason(f, error.as_ref())
            }
            Self::Denied(lifetime) => write!(
                f,
                "closed by the Router {} ms after authentication; if it has a white list of relays, this \
                 relay's address is missing from it",
                lifetime.as_millis()
            ),
            Self::Provider(error) => write!(f, "{error}"),
            Self::Panicked(message) => write!(
                f,
                "a task of the Router link panicked: {message}; this is a bug, please report it"
            ),
        }
    }
}

fn write_resolve(
    f: &mut fmt::Formatter<'_>,
    host: &str,
    error: &io::Error,
    last_good: &[(SocketAddr, io::Error)],
) -> fmt::Result {
    write!(f, "RouterAddress {host} does not resolve ({error}); check its spelling and the DNS")?;
    if !last_good.is_empty() {
        f.write_str(". The address that last worked does not answer either:")?;
        write_attempts(f, last_good)?;
    }
    Ok(())
}

fn write_handshake(f: &mut fmt::Formatter<'_>, error: &HandshakeError) -> fmt::Result {
    write!(f, "{error}")?;
    match error {
        HandshakeError::KeyMismatch { remedy, .. } => write!(f, "; {remedy}"),
        HandshakeError::HostPort(_) => f.write_str(
            "; set RouterPort to 8063, where a 3.x Router listens for relays (and RouterProtocol, if it is \
             set, to auto). A Router that was migrated from 2.x keeps its key: leave RouterPublicKey as it is",
        ),
        HandshakeError::RelaysNotAllowed(_) => {
            f.write_str("; allow relay sessions in the Router's configuration")
        }
        HandshakeError::Version { .. } | HandshakeError::NoVersion => {
            f.write_str("; this relay works with Routers from 2.3.0 to 2.7, and 3.x")
        }
        _ => Ok(()),
    }
}

fn write_no_dialect(
    f: &mut fmt::Formatter<'_>,
    failed: &[(&'static str, LinkError)],
) -> fmt::Result {
    f.write_str("the server there speaks no dialect of this relay")?;
    for (index, (dialect, error)) in failed.iter().enumerate() {
        let sign = if index == 0 { ':' } else { ';' };
        write!(f, "{sign} in the {dialect} dialect, {error}")?;
    }
    Ok(())
}

/// Writes the addresses that could not be reached, each with a remedy.
fn write_attempts(f: &mut fmt::Formatter<'_>, failed: &[(SocketAddr, io::Error)]) -> fmt::Result {
    for (address, error) in failed {
        let remedy = match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                "refused; is the Router running there, and RouterPort right?"
            }
            io::ErrorKind::TimedOut => "timed out; does a firewall drop the packets?",
            io::ErrorKind::NetworkUnreachable => {
                "network unreachable; this machine has no route there: is its network up, and for an IPv6 address, \
                 does it have IPv6?"
            }
            io::ErrorKind::HostUnreachable => {
                "no route to host; is the address right and that machine up, or does a firewall reject the connection?"
            }
            _ => "",
        };
        if remedy.is_empty() {
            write!(f, " {address} ({error})")?;
        } else {
            write!(f, " {address} ({remedy})")?;
        }
    }
    Ok(())
}

fn write_reason(f: &mut fmt::Formatter<'_>, error: Option<&io::Error>) -> fmt::Result {
    error.map_or(Ok(()), |error| write!(f, " ({error})"))
}

impl From<HandshakeError> for LinkError {
    fn from(error: HandshakeError) -> Self {
        Self::Handshake(error)
    }
}

impl From<KeepAliveError> for LinkError {
    fn from(error: KeepAliveError) -> Self {
        Self::KeepAlive(error)
    }
}

impl From<FramingError> for LinkError {
    fn from(error: FramingError) -> Self {
        match error {
            FramingError::Frame(error) => Self::Frame(error),
            FramingError::Crypto(error) => Self::Provider(error),
        }
    }
}

impl From<CryptoError> for LinkError {
    fn from(error: CryptoError) -> Self {
        Self::Provider(error)
    }
}
