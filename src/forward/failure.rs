//! Attributes an error in moving bytes to a peer's connection, or to the relay and its system.

use std::io;

use tokio::net::TcpStream;

use crate::tcp_info;

/// Why nothing more can be read from, or written to, one side of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PeerFailure {
    /// The peer had closed gracefully, and then was sent more.
    Closed,
    /// The peer's connection failed.
    Reset,
    /// The relay or its system failed, with this error number. No peer caused it.
    Failed(i32),
}

impl PeerFailure {
    /// Determines why nothing more can be read from a sender.
    pub(super) fn of_sender(error: &io::Error, sender: &TcpStream) -> Self {
        if is_connection_over(error, sender) {
            Self::Reset
        } else {
            Self::Failed(error.raw_os_error().unwrap_or_default())
        }
    }

    /// Determines why nothing more can be written to a receiver. A broken pipe is the result of a write to a peer that had
    /// closed gracefully.
    pub(super) fn of_receiver(error: &io::Error, receiver: &TcpStream) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::of_sender(error, receiver),
        }
    }
}

/// Whether an error can only mean that the connection is over, and not that the system refused the call.
pub fn is_connection_error(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;

    matches!(
        error.kind(),
        Kind::BrokenPipe
            | Kind::ConnectionAborted
            | Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::HostUnreachable
            | Kind::NetworkDown
            | Kind::NetworkUnreachable
            | Kind::NotConnected
            | Kind::TimedOut
    )
}

/// The errors with which Windows refuses a call: WSAEFAULT, WSAEINVAL, WSAENOTSOCK, WSAENOBUFS. These are listed rather than
/// the errors of a connection that is over, since the standard library does not have kinds for all of the latter.
const WINDOWS_CALL_ERRORS: [i32; 4] = [10014, 10022, 10038, 10055];

/// Whether the error of a read or a write means that the connection of `stream` is over.
fn is_connection_over(error: &io::Error, stream: &TcpStream) -> bool {
    is_connection_error(error)
        || (cfg!(windows) && !error.raw_os_error().is_some_and(|code| WINDOWS_CALL_ERRORS.contains(&code)))
        // A network router on the path can make a connection fail with nearly any error (EACCES, EPROTO, EMSGSIZE and so on),
        // and a sandbox may choose the same error: the state of the connection tells the two apart.
        || tcp_info::read(stream).is_some_and(|info| info.is_closed)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use relay_lab::sockets::connected_pair;
    use rustix::io::Errno;

    fn error(errno: Errno) -> io::Error {
        errno.into()
    }

    #[tokio::test]
    async fn system_errors_are_distinguished_from_connection_errors() {
        let (there, here) = connected_pair().await.unwrap();
        let system =
            [Errno::PERM, Errno::INVAL, Errno::NOSYS, Errno::NOMEM, Errno::NOBUFS, Errno::IO];
        for errno in system.into_iter().chain([Errno::ACCESS, Errno::OPNOTSUPP]) {
            let failed = PeerFailure::Failed(errno.raw_os_error());
            assert_eq!(PeerFailure::of_sender(&error(errno), &here), failed);
            assert_eq!(PeerFailure::of_receiver(&error(errno), &here), failed);
        }
        for errno in [Errno::CONNRESET, Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::NETUNREACH] {
            assert_eq!(PeerFailure::of_sender(&error(errno), &here), PeerFailure::Reset);
            assert_eq!(PeerFailure::of_receiver(&error(errno), &here), PeerFailure::Reset);
        }
        assert_eq!(PeerFailure::of_receiver(&error(Errno::PIPE), &here), PeerFailure::Closed);
        // Once the connection is over, any error is attributed to it.
        socket2::SockRef::from(&there).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(there);
        while !tcp_info::read(&here).unwrap().is_closed {
            tokio::task::yield_now().await;
        }
        assert_eq!(PeerFailure::of_sender(&error(Errno::ACCESS), &here), PeerFailure::Reset);
    }
}
