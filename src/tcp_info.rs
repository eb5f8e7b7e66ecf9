//! What the kernel knows of a TCP connection: round-trip time, retransmissions, what is unsent.
//!
//! Unsafe code is here, in `listen::acceptor`, in `systemd::activation`, in `heap`, in a test of `forward::half_closed` and, on Windows, in `service` only. The
//! option `TCP_INFO` cannot be read without it: neither the standard library nor `socket2` has it, and the structure of the
//! C library ends before the fields that matter here. The kernel writes as many bytes as it knows of, at offsets that
//! never change (`struct tcp_info` of linux/tcp.h).

use std::num::NonZero;
use std::time::Duration;

use tokio::net::TcpStream;

/// The state of a connection's path to its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: u32,
    /// Segments that were sent again since the connection began.
    pub retransmits: u32,
    /// The latest rate of delivery, in bytes a second; `None` where the kernel does not say, or does not know yet.
    pub delivery_rate: Option<NonZero<u64>>,
    /// Bytes that the kernel holds and has not sent yet; `None` where the kernel does not say.
    pub unsent: Option<u32>,
    /// Bytes that the peer has acknowledged since the connection began; `None` where the kernel does not say.
    pub acknowledged: Option<u64>,
    /// Segments that were sent and are not acknowledged, the end included.
    pub unacknowledged: u32,
    /// Whether the connection is over on both sides.
    pub closed: bool,
}

impl TcpInfo {
    /// Smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        Duration::from_micros(self.rtt_us.into())
    }

    /// Whether the peer's system has everything that was written.
    pub fn is_delivered(&self) -> bool {
        self.closed || (self.unacknowledged == 0 && self.unsent.unwrap_or(0) == 0)
    }

    /// Whether the peer has taken bytes since `earlier` that the kernel could not send then: a peer that is slow, and not
    /// one that stands still.
    pub fn has_drained_since(&self, earlier: &Self) -> bool {
        earlier.unsent.is_some_and(|unsent| unsent > 0) && self.acknowledged > earlier.acknowledged
    }
}

#[cfg(target_os = "linux")]
mod offset {
    pub(super) const STATE: usize = 0;
    pub(super) const UNACKED: usize = 24;
    pub(super) const RTT: usize = 68;
    pub(super) const TOTAL_RETRANS: usize = 100;
    pub(super) const BYTES_ACKED: usize = 120;
    pub(super) const NOTSENT_BYTES: usize = 144;
    pub(super) const DELIVERY_RATE: usize = 160;
    /// Past the last field that is read.
    pub(super) const END: usize = 168;
}

/// The state of a connection that is over (`TCP_CLOSE` of net/tcp_states.h).
#[cfg(target_os = "linux")]
const CLOSED: u8 = 7;

/// Asks the kernel; `None` where it cannot tell.
#[cfg(target_os = "linux")]
pub fn read(stream: &TcpStream) -> Option<TcpInfo> {
    use std::os::fd::AsRawFd;

    let mut info = [0_u8; offset::END];
    let mut length = libc::socklen_t::try_from(info.len()).ok()?;
    // SAFETY: `info` is writable for `length` bytes, the kernel writes at most that many and says how many; the
    // descriptor is open, since `stream` is borrowed.
    #[expect(unsafe_code, reason = "see above")]
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return None;
    }
    parse(info.get(..length as usize)?)
}

/// Asks the kernel; `None` where it cannot tell.
#[cfg(not(target_os = "linux"))]
pub fn read(_stream: &TcpStream) -> Option<TcpInfo> {
    None
}

#[cfg(target_os = "linux")]
fn parse(info: &[u8]) -> Option<TcpInfo> {
    fn field<const N: usize>(info: &[u8], offset: usize) -> Option<[u8; N]> {
        info.get(offset..offset + N)?.try_into().ok()
    }
    let number = |offset| field(info, offset).map(u32::from_ne_bytes);
    Some(TcpInfo {
        rtt_us: number(offset::RTT)?,
        retransmits: number(offset::TOTAL_RETRANS)?,
        delivery_rate: field(info, offset::DELIVERY_RATE)
            .map(u64::from_ne_bytes)
            .and_then(NonZero::new),
        unsent: number(offset::NOTSENT_BYTES),
        acknowledged: field(info, offset::BYTES_ACKED).map(u64::from_ne_bytes),
        unacknowledged: number(offset::UNACKED)?,
        closed: *info.get(offset::STATE)? == CLOSED,
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_kernel_tells_what_is_unsent_and_how_far_the_peer_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut here = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut there, _) = listener.accept().await.unwrap();
        here.write_all(b"x").await.unwrap();
        there.read_exact(&mut [0]).await.unwrap();
        let quiet = read(&here).unwrap();
        assert!(quiet.rtt() > Duration::ZERO && quiet.rtt() < Duration::from_secs(5), "{quiet:?}");
        assert_eq!(quiet.unsent, Some(0));
        // The peer reads nothing: after a while nothing more is taken.
        loop {
            match here.try_write(&[0; 65536]) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        let full = read(&here).unwrap();
        assert!(full.unsent > Some(0) && !full.is_delivered(), "{full:?}");
        assert!(quiet.is_delivered() && !quiet.closed, "{quiet:?}");
        assert!(!full.has_drained_since(&quiet), "{full:?}");
        // It reads some of it, slowly: the kernel has less to do, though it may not take more.
        let mut some = vec![0; 1024 * 1024];
        there.read_exact(&mut some).await.unwrap();
        while !read(&here).unwrap().has_drained_since(&full) {
            tokio::task::yield_now().await;
        }
        // It goes without having read the rest: what it did not want is nobody's any more.
        drop(there);
        while !read(&here).unwrap().closed {
            tokio::task::yield_now().await;
        }
        assert!(read(&here).unwrap().is_delivered());
    }

    #[test]
    fn an_older_kernel_says_less() {
        let mut info = [0; 104];
        info[68] = 9;
        info[100] = 3;
        let parsed = parse(&info).unwrap();
        assert_eq!((parsed.rtt(), parsed.retransmits), (Duration::from_micros(9), 3));
        assert_eq!((parsed.delivery_rate, parsed.unsent), (None, None));
        assert!(!parsed.has_drained_since(&parsed));
        assert_eq!(parse(&info[..100]), None);
    }
}
