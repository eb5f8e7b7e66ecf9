//! Whose failure an error at moving bytes is: that of a peer's connection, or the relay's own.

use std::io;

use tokio::net::TcpStream;

use crate::tcp_info;

/// Why nothing more can be read from, or written to, one side of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    /// The peer had closed in order, and was only sent something that it no longer wanted.
    Closed,
    /// The peer's connection failed.
    Reset,
    /// The relay or its system failed, with this error number. It is no peer's doing.
    Failed(i32),
}

impl Ending {
    /// Why nothing more can be read from a sender.
    pub(super) fn of_sender(error: &io::Error, sender: &TcpStream) -> Self {
        if is_end_of(error, sender) {
            Self::Reset
        } else {
            Self::Failed(error.raw_os_error().unwrap_or_default())
        }
    }

    /// Why nothing more can be written to a receiver. A broken pipe is the answer to a write to a peer that had closed
    /// in order before.
    pub(super) fn of_receiver(error: &io::Error, receiver: &TcpStream) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::of_sender(error, receiver),
        }
    }
}

/// Whether an error can only say that the connection is over, and not that the system refused the call.
pub fn is_of_connection(error: &io::Error) -> bool {
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

/// What Windows says where it refuses a call: WSAEFAULT, WSAEINVAL, WSAENOTSOCK, WSAENOBUFS. It has more names for
/// connections that are over than the standard library has kinds.
const OF_WINDOWS: [i32; 4] = [10014, 10022, 10038, 10055];

/// Whether the error of a read or a write says that the connection of `stream` is over.
fn is_end_of(error: &io::Error, stream: &TcpStream) -> bool {
    is_of_connection(error)
        || (cfg!(windows) && !error.raw_os_error().is_some_and(|code| OF_WINDOWS.contains(&code)))
        // A router on the way can have a connection fail with nearly any error (EACCES, EPROTO, EMSGSIZE ...), which a
        // sandbox may choose as well: the state of the connection tells the two apart.
        || tcp_info::read(stream).is_some_and(|info| info.closed)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use tokio::net::TcpListener;

    fn error(errno: Errno) -> io::Error {
        errno.into()
    }

    #[tokio::test]
    async fn errors_of_the_system_are_not_those_of_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (there, _) = listener.accept().await.unwrap();
        let system =
            [Errno::PERM, Errno::INVAL, Errno::NOSYS, Errno::NOMEM, Errno::NOBUFS, Errno::IO];
        for errno in system.into_iter().chain([Errno::ACCESS, Errno::OPNOTSUPP]) {
            let failed = Ending::Failed(errno.raw_os_error());
            assert_eq!(Ending::of_sender(&error(errno), &here), failed);
            assert_eq!(Ending::of_receiver(&error(errno), &here), failed);
        }
        for errno in [Errno::CONNRESET, Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::NETUNREACH] {
            assert_eq!(Ending::of_sender(&error(errno), &here), Ending::Reset);
            assert_eq!(Ending::of_receiver(&error(errno), &here), Ending::Reset);
        }
        assert_eq!(Ending::of_receiver(&error(Errno::PIPE), &here), Ending::Closed);
        // Once the connection is over, whatever the error: it was the connection.
        socket2::SockRef::from(&there).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(there);
        while !tcp_info::read(&here).unwrap().closed {
            tokio::task::yield_now().await;
        }
        assert_eq!(Ending::of_sender(&error(Errno::ACCESS), &here), Ending::Reset);
    }
}
