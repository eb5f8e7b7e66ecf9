//! The options of accepted sockets. `TCP_USER_TIMEOUT` is deliberately not set: it would also end the connection of a peer
//! that is alive but does not read for a while.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// A peer that has vanished from a quiet connection is noticed after about a minute, and NAT devices on the path do not
/// forget the connection. While bytes are in flight to the peer, the system's limit on retransmissions applies instead.
const KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
/// How many consecutive probes may remain unanswered.
const RETRIES: u32 = 3;

/// Whether accepted sockets inherit the options of the listening one, which saves five system calls for each.
pub const INHERITED: bool = cfg!(target_os = "linux");

/// Sets the options of an accepted socket, or of one that will listen.
///
/// # Errors
/// The error of the system call.
#[cfg(unix)]
pub fn set(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    set_all(&SockRef::from(socket))
}

/// Sets the options of an accepted socket, or of one that will listen.
///
/// # Errors
/// The error of the system call.
#[cfg(windows)]
pub fn set(socket: &impl std::os::windows::io::AsSocket) -> io::Result<()> {
    set_all(&SockRef::from(socket))
}

fn set_all(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    match socket.set_tcp_keepalive(&KEEP_ALIVE.with_retries(RETRIES)) {
        // Windows before version 1703, such as Windows Server 2016, has a fixed number of retries, 10.
        Err(_) if cfg!(windows) => socket.set_tcp_keepalive(&KEEP_ALIVE),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::bind::{Purpose, bind};
    use std::net::TcpStream;

    #[test]
    fn accepted_sockets_have_nodelay_and_keep_alive() {
        let anyone = Purpose { callers: "anyone", address_setting: "", port_setting: "" };
        let listener = bind(anyone, Some([127, 0, 0, 1].into()), 0).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        if !INHERITED {
            set(&stream).unwrap();
        }
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap() && socket.keepalive().unwrap());
        // Windows does not report the rest, or not in every version.
        #[cfg(unix)]
        {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        }
    }
}
