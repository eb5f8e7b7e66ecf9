//! Why there is no link to the Router, in words that an operator can act on.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::crypto::CryptoError;
use crate::link::dialect::{FramingError, HandshakeError};
use crate::link::keepalive::KeepAliveError;
use crate::wire::frame::FrameError;

/// Why there is no link, or no longer one.
#[derive(Debug)]
pub enum LinkError {
    /// The name does not resolve.
    Resolve {
        /// `RouterAddress`.
        host: String,
        /// What the resolver says.
        error: io::Error,
        /// The address that worked last, where there is one, and why it does not now.
        last_good: Vec<(SocketAddr, io::Error)>,
    },
    /// No address of the Router could be reached.
    Connect(Vec<(SocketAddr, io::Error)>),
    /// The Router did not finish the authentication in this time.
    AuthenticationTimeout(Duration),
    /// The Router closed the connection before it was authenticated; the error of the socket, if any.
    ClosedEarly(Option<io::Error>),
    /// The Router is not the one that it should be, or speaks otherwise.
    Handshake(HandshakeError),
    /// What answers speaks none of the dialects: for each, why not.
    NoDialect(Vec<(&'static str, LinkError)>),
    /// What answers is no Router of this dialect.
    NotARouter(FrameError),
    /// What the Router sent is no frame.
    Frame(FrameError),
    /// What the Router sent does not open.
    Sealed(CryptoError),
    /// The Router does not answer pings as it should.
    KeepAlive(KeepAliveError),
    /// The Router does not take what is sent to it.
    Stalled,
    /// The Router closed the link; the error of the socket, if any.
    Closed(Option<io::Error>),
    /// The Router closed the link right after authentication.
    Denied(Duration),
    /// The cryptographic provider failed.
    Provider(CryptoError),
    /// The relay itself failed on it: what it panicked with.
    Panicked(String),
}

impl LinkError {
    /// Whether a Router that says this, before it has said anything else, may speak another dialect.
    pub(super) fn suggests_another_dialect(&self) -> bool {
        matches!(
            self,
            Self::ClosedEarly(_)
                | Self::NotARouter(_)
                | Self::Handshake(HandshakeError::NotServerHello(_))
        )
    }

    /// Whether waiting will not help: somebody has to change something.
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
            Self::Resolve { host, error, last_good } => {
                write!(
                    f,
                    "RouterAddress {host} does not resolve ({error}); check its spelling and the DNS"
                )?;
                if !last_good.is_empty() {
                    f.write_str(". Where it was last, there is no answer either:")?;
                    attempts(f, last_good)?;
                }
                Ok(())
            }
            Self::Connect(failed) => {
                f.write_str("cannot connect:")?;
                attempts(f, failed)
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
                reason(f, error.as_ref())
            }
            Self::Handshake(error) => {
                write!(f, "{error}")?;
                match error {
                    HandshakeError::KeyMismatch { remedy, .. } => write!(f, "; {remedy}"),
                    HandshakeError::HostPort(_) => f.write_str(
                        "; set RouterPort to 8063, where a 3.x Router listens for relays (and RouterProtocol, where it is \
                         set, to auto). A Router that was migrated from 2.x keeps its key: RouterPublicKey stays",
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
            Self::NoDialect(refused) => {
                f.write_str("what answers there speaks no dialect of this relay")?;
                for (index, (dialect, error)) in refused.iter().enumerate() {
                    let sign = if index == 0 { ':' } else { ';' };
                    write!(f, "{sign} in the {dialect} dialect, {error}")?;
                }
                Ok(())
            }
            Self::NotARouter(error) => write!(
                f,
                "what answers there does not speak as an Aspia Router does ({error}); is RouterPort right?"
            ),
            Self::Frame(error) => write!(f, "the Router broke the protocol: {error}"),
            Self::Sealed(error) => write!(f, "a message of the Router: {error}"),
            Self::KeepAlive(error) => write!(f, "{error}"),
            Self::Stalled => f.write_str("the Router does not take what is sent to it"),
            Self::Closed(error) => {
                f.write_str("closed by the Router")?;
                reason(f, error.as_ref())
            }
            Self::Denied(lived) => write!(
                f,
                "closed by the Router {} ms after authentication; if it keeps a white list of relays, this \
                 relay's address is missing there",
                lived.as_millis()
            ),
            Self::Provider(error) => write!(f, "{error}"),
            Self::Panicked(what) => {
                write!(f, "the relay itself failed on it: {what}; please report this as a bug")
            }
        }
    }
}

/// Addresses that could not be reached, each with what to do about it.
fn attempts(f: &mut fmt::Formatter<'_>, failed: &[(SocketAddr, io::Error)]) -> fmt::Result {
    for (address, error) in failed {
        let remedy = match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                "refused; is the Router running there, and RouterPort right?"
            }
            io::ErrorKind::TimedOut => "timed out; does a firewall drop it?",
            io::ErrorKind::NetworkUnreachable => {
                "network unreachable; this machine has no route there: is its network up, and for an IPv6 address, \
                 does it have IPv6?"
            }
            io::ErrorKind::HostUnreachable => {
                "no route to host; is the address right and that machine up, or does a firewall reject it?"
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

fn reason(f: &mut fmt::Formatter<'_>, error: Option<&io::Error>) -> fmt::Result {
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
            FramingError::Sealed(error) => Self::Provider(error),
        }
    }
}

impl From<CryptoError> for LinkError {
    fn from(error: CryptoError) -> Self {
        Self::Provider(error)
    }
}
