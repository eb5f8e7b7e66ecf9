//! A listening socket that the service manager made and hands over (`LISTEN_FDS`): connections wait in it while the relay
//! is replaced, and none is refused.
//!
//! Unsafe code: a descriptor comes as a number, and only the environment says whose it is.

use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};

use socket2::{SockRef, Type};

use crate::listen::options;

/// Why what was handed over cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// The variables are wrong, or say what is not so.
    #[error("the service manager's LISTEN_FDS and LISTEN_PID do not fit what it handed over: {0}")]
    Environment(io::Error),
    /// There is more than the one socket for peers.
    #[error(
        "the service manager handed over {0} sockets, but the relay takes one, for peers: a single ListenStream= in \
         aspia-relay.socket listens on IPv4 and IPv6 (BindIPv6Only=both)"
    )]
    Several(usize),
    /// It is something else.
    #[error(
        "what the service manager handed over is no TCP socket that listens: aspia-relay.socket needs ListenStream= with a \
         port, and Accept=no"
    )]
    NotListening,
    /// It cannot be prepared.
    #[error("the socket that the service manager handed over cannot be used: {0}")]
    Options(io::Error),
}

/// The socket for peers that was handed over, if one was. To be called once, before anything is opened.
///
/// # Errors
/// [`ActivationError`] when it is not what the relay needs.
pub fn listener() -> Result<Option<TcpListener>, ActivationError> {
    let mut handed_over = sd_notify::listen_fds().map_err(ActivationError::Environment)?;
    if handed_over.len() > 1 {
        return Err(ActivationError::Several(handed_over.len()));
    }
    let Some(descriptor) = handed_over.next() else { return Ok(None) };
    // SAFETY: the descriptor is open, or marking it close-on-exec had failed just now. It was handed over to this very
    // process, by its number, for nobody else to close; nothing was opened since that could have taken its place, and
    // this is called once.
    #[expect(unsafe_code, reason = "a descriptor that comes by its number")]
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    prepare(descriptor).map(Some)
}

/// What the relay's own sockets are, too.
fn prepare(descriptor: OwnedFd) -> Result<TcpListener, ActivationError> {
    let socket = SockRef::from(&descriptor);
    let listens = socket.is_listener().unwrap_or(false)
        && socket.r#type().is_ok_and(|kind| kind == Type::STREAM)
        && socket.local_addr().is_ok_and(|address| address.as_socket().is_some());
    if !listens {
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
    fn a_listening_socket_gets_the_options_of_our_own() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let prepared = prepare(listener.into()).unwrap();
        assert_eq!(prepared.local_addr().unwrap(), address);
        let socket = SockRef::from(&prepared);
        assert_eq!(socket.tcp_nodelay().unwrap(), options::INHERITED);
        assert_eq!(socket.keepalive().unwrap(), options::INHERITED);
    }

    #[test]
    fn nothing_else_is_taken() {
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
