//! Socket activation: the service manager creates the listening socket and passes it on (`LISTEN_FDS`). Connections
//! wait in this socket while the relay is replaced, so that none is refused.
//!
//! Unsafe code: the descriptor is only known by its number, which the environment gives.

use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};

use socket2::{SockRef, Type};

use crate::listen::options;

/// Why the descriptors that were passed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// The variables are invalid, or do not match the open descriptors.
    #[error(
        "the service manager's LISTEN_FDS and LISTEN_PID do not match the descriptors that it passed: {0}"
    )]
    Environment(io::Error),
    /// More than one socket was passed.
    #[error(
        "the service manager passed {0} sockets, but the relay takes one, for peers: a single ListenStream= in \
         aspia-relay.socket listens on IPv4 and IPv6 (BindIPv6Only=both)"
    )]
    Several(usize),
    /// The descriptor is not a listening TCP socket.
    #[error(
        "what the service manager passed is not a listening TCP socket: aspia-relay.socket needs ListenStream= with a \
         port, and Accept=no"
    )]
    NotListening,
    /// The options of the socket cannot be set.
    #[error("the socket that the service manager passed cannot be used: {0}")]
    Options(io::Error),
}

/// Takes the socket for peers, if one was passed. Must be called once, before any descriptor is opened.
///
/// # Errors
/// [`ActivationError`] if the socket is not what the relay needs.
pub fn take_listener() -> Result<Option<TcpListener>, ActivationError> {
    let mut descriptors = sd_notify::listen_fds().map_err(ActivationError::Environment)?;
    if descriptors.len() > 1 {
        return Err(ActivationError::Several(descriptors.len()));
    }
    let Some(descriptor) = descriptors.next() else { return Ok(None) };
    // SAFETY: the descriptor is open, because marking it close-on-exec has just succeeded. It was passed to this very
    // process by its number, and nothing else owns it: nothing has been opened since that could have reused the number,
    // and this function is called once.
    #[expect(unsafe_code, reason = "a descriptor known by its number")]
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    prepare(descriptor).map(Some)
}

/// Checks the descriptor, and sets the options that the relay's own listening sockets have.
fn prepare(descriptor: OwnedFd) -> Result<TcpListener, ActivationError> {
    let socket = SockRef::from(&descriptor);
    let is_listening = socket.is_listener().unwrap_or(false)
        && socket.r#type().is_ok_and(|kind| kind == Type::STREAM)
        && socket.local_addr().is_ok_and(|address| address.as_socket().is_some());
    if !is_listening {
        return Err(ActivationError::NotListening);
    }
    if options::INHERITED {
        options::set(&descriptor).map_err(ActivationError::Options)?;
    }
    Ok(descriptor.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_passed_listening_socket_gets_the_relays_socket_options() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let prepared = prepare(listener.into()).unwrap();
        assert_eq!(prepared.local_addr().unwrap(), address);
        let socket = SockRef::from(&prepared);
        assert_eq!(socket.tcp_nodelay().unwrap(), options::INHERITED);
        assert_eq!(socket.keepalive().unwrap(), options::INHERITED);
    }

    #[test]
    fn descriptors_other_than_listening_tcp_sockets_are_rejected() {
        let directory = tempfile::tempdir().unwrap();
        let connected = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(connected.local_addr().unwrap()).unwrap();
        let others: [OwnedFd; 4] = [
            UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            UnixListener::bind(directory.path().join("socket")).unwrap().into(),
            connected.into(),
            std::fs::File::open("/dev/null").unwrap().into(),
        ];
        for other in others {
            let error = prepare(other).unwrap_err();
            assert!(matches!(error, ActivationError::NotListening), "{error}");
        }
    }
}
