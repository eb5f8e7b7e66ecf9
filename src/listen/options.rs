//! The options of accepted sockets. There is deliberately no `TCP_USER_TIMEOUT`: it would also end a peer that is alive
//! and only does not read for a while.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// A peer that vanished from a quiet connection is noticed after about a minute; and what translates addresses on
/// the way does not forget it. While bytes are under way to it, the system's limit of retransmissions rules instead.
const KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
/// Signs of life that may be missing in a row.
const RETRIES: u32 = 3;

/// Whether accepted sockets have the options of the listening one: that saves five system calls for each.
pub const INHERITED: bool = cfg!(target_os = "linux");

/// Sets the options of an accepted socket, or of one that will listen.
///
/// # Errors
/// What the system says.
#[cfg(unix)]
pub fn set(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    set_all(&SockRef::from(socket))
}

/// The same where sockets are no file descriptors.
///
/// # Errors
/// What the system says.
#[cfg(windows)]
pub fn set(socket: &impl std::os::windows::io::AsSocket) -> io::Result<()> {
    set_all(&SockRef::from(socket))
}

fn set_all(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    match socket.set_tcp_keepalive(&KEEP_ALIVE.with_retries(RETRIES)) {
        // Windows before version 1703, which Windows Server 2016 is, has its own number, 10.
        Err(_) if cfg!(windows) => socket.set_tcp_keepalive(&KEEP_ALIVE),
        set => set,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::bind::{Purpose, bind};
    use std::net::TcpStream;

    #[test]
    fn sockets_do_not_delay_and_ask_for_signs_of_life() {
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
        // Windows does not tell the rest, or not every version.
        #[cfg(unix)]
        {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        }
    }
}
