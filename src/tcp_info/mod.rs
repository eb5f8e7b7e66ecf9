//! The kernel's information about a TCP connection: round-trip time, retransmissions, unsent bytes.
//!
//! The crate has unsafe code only here, in `listen::acceptor`, in `systemd::activation`, in `heap`, in
//! `fd_store::credentials`, in a test of
//! `forward::half_closed` and, on Windows, in `service`. Here it reads the option `TCP_INFO`, which neither the standard
//! library nor `socket2` supports; and the structure in the `libc` crate lacks the last of the fields that are needed. The
//! kernel writes as many bytes as it knows, at offsets that never change (`struct tcp_info` of linux/tcp.h). `queues` asks
//! for two more figures that no safe function returns.

use std::num::NonZero;
#[cfg(target_os = "linux")]
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

#[cfg(target_os = "linux")]
pub mod queues;

/// The state of a connection, as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: u32,
    /// Segments retransmitted since the connection began.
    pub retransmits: u32,
    /// The latest delivery rate, in bytes a second; `None` if the kernel does not report it, or does not know it yet.
    pub delivery_rate: Option<NonZero<u64>>,
    /// Bytes that the kernel holds and has not sent yet; `None` if the kernel does not report it.
    pub unsent: Option<u32>,
    /// Bytes that the peer has acknowledged since the connection began; `None` if the kernel does not report it.
    pub acknowledged: Option<u64>,
    /// Segments that were sent and are not acknowledged, including the end (FIN).
    pub unacknowledged: u32,
    /// Whether the connection is over in both directions.
    pub is_closed: bool,
}

impl TcpInfo {
    /// Returns the smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        Duration::from_micros(self.rtt_us.into())
    }

    /// Whether nothing remains to be delivered: the peer's kernel has acknowledged everything that was written, or the
    /// connection is over.
    pub fn is_delivered(&self) -> bool {
        self.is_closed || (self.unacknowledged == 0 && self.unsent.unwrap_or(0) == 0)
    }

    /// Whether the peer has acknowledged bytes since `earlier`, when the kernel had unsent bytes for it: such a peer is slow,
    /// but not stalled.
    pub fn has_drained_since(&self, earlier: &Self) -> bool {
        earlier.unsent.is_some_and(|unsent| unsent > 0) && self.acknowledged > earlier.acknowledged
    }
}

#[cfg(target_os = "linux")]
mod offset {
    pub(super) const STATE: usize = 0;
    pub(super) const UNACKED: usize = 24;
    pub(super) const LAST_DATA_SENT: usize = 44;
    pub(super) const LAST_DATA_RECV: usize = 52;
    pub(super) const RTT: usize = 68;
    pub(super) const TOTAL_RETRANS: usize = 100;
    pub(super) const BYTES_ACKED: usize = 120;
    pub(super) const BYTES_RECEIVED: usize = 128;
    pub(super) const NOTSENT_BYTES: usize = 144;
    pub(super) const DELIVERY_RATE: usize = 160;
    /// The end of the last field that is read.
    pub(super) const END: usize = 168;
}

/// The states of a connection, from net/tcp_states.h.
#[cfg(target_os = "linux")]
mod state {
    pub(super) const FIN_WAIT1: u8 = 4;
    pub(super) const FIN_WAIT2: u8 = 5;
    pub(super) const TIME_WAIT: u8 = 6;
    pub(super) const CLOSE: u8 = 7;
    pub(super) const CLOSE_WAIT: u8 = 8;
    pub(super) const LAST_ACK: u8 = 9;
    pub(super) const CLOSING: u8 = 11;
}

/// How far the two streams of a connection have got.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamPositions {
    /// Bytes received since the connection began, and one more if the peer has finished (FIN).
    pub received: u64,
    /// Bytes that the peer has acknowledged since the connection began, and one more if it has acknowledged a FIN.
    pub acknowledged: u64,
    /// Whether the kernel holds something that the peer has not acknowledged. Not known of a connection that is over.
    pub has_unacknowledged: bool,
    /// Whether a FIN was received. Not known of a connection that is over.
    pub has_received_end: bool,
    /// Whether this side has finished (FIN). Not known of a connection that is over.
    pub has_sent_end: bool,
    /// Whether the connection is over in both directions.
    pub is_closed: bool,
    /// Time since bytes were last sent or received.
    pub silence: Duration,
}

/// Reads the state of a connection; `None` if the kernel cannot report it.
#[cfg(target_os = "linux")]
pub fn read(stream: &impl AsFd) -> Option<TcpInfo> {
    let (info, length) = read_raw(stream)?;
    parse(info.get(..length)?)
}

/// Reads how far the streams of a connection have got; `None` if the kernel cannot report it. The counts are of the same moment,
/// and the state (whether it is closed, and who has finished) may be of an earlier one: `tcp_get_info` of the kernel reads it
/// before it locks the socket.
#[cfg(target_os = "linux")]
pub fn read_positions(socket: &impl AsFd) -> Option<StreamPositions> {
    let (info, length) = read_raw(socket)?;
    parse_positions(info.get(..length)?)
}

/// Reads the option. Returns it with the number of bytes that the kernel knows.
#[cfg(target_os = "linux")]
fn read_raw(socket: &impl AsFd) -> Option<([u8; offset::END], usize)> {
    let mut info = [0_u8; offset::END];
    let mut length = libc::socklen_t::try_from(info.len()).ok()?;
    // SAFETY: `info` is writable for `length` bytes, the kernel writes at most that many and says how many; the
    // descriptor is open, since `socket` is borrowed.
    #[expect(unsafe_code, reason = "see above")]
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some((info, length as usize))
}

/// Returns `None`: this system does not report the state of a connection.
#[cfg(not(target_os = "linux"))]
pub fn read<S>(_stream: &S) -> Option<TcpInfo> {
    None
}

#[cfg(target_os = "linux")]
fn field<const N: usize>(info: &[u8], offset: usize) -> Option<[u8; N]> {
    info.get(offset..offset + N)?.try_into().ok()
}

#[cfg(target_os = "linux")]
fn parse(info: &[u8]) -> Option<TcpInfo> {
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
        is_closed: *info.get(offset::STATE)? == state::CLOSE,
    })
}

#[cfg(target_os = "linux")]
fn parse_positions(info: &[u8]) -> Option<StreamPositions> {
    use state::{CLOSE, CLOSE_WAIT, CLOSING, FIN_WAIT1, FIN_WAIT2, LAST_ACK, TIME_WAIT};

    let number = |offset| field(info, offset).map(u32::from_ne_bytes);
    let count = |offset| field(info, offset).map(u64::from_ne_bytes);
    let state = *info.get(offset::STATE)?;
    let quiet_ms = number(offset::LAST_DATA_SENT)?.min(number(offset::LAST_DATA_RECV)?);
    Some(StreamPositions {
        received: count(offset::BYTES_RECEIVED)?,
        acknowledged: count(offset::BYTES_ACKED)?,
        has_unacknowledged: number(offset::UNACKED)? > 0 || number(offset::NOTSENT_BYTES)? > 0,
        has_received_end: matches!(state, CLOSE_WAIT | CLOSING | LAST_ACK | TIME_WAIT),
        has_sent_end: matches!(state, FIN_WAIT1 | FIN_WAIT2 | CLOSING | LAST_ACK | TIME_WAIT),
        is_closed: state == CLOSE,
        silence: Duration::from_millis(quiet_ms.into()),
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use relay_lab::sockets::connected_pair;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn unsent_and_acknowledged_bytes_are_reported() {
        let (mut there, mut here) = connected_pair().await.unwrap();
        here.write_all(b"x").await.unwrap();
        there.read_exact(&mut [0]).await.unwrap();
        let quiet = read(&here).unwrap();
        assert!(quiet.rtt() > Duration::ZERO && quiet.rtt() < Duration::from_secs(5), "{quiet:?}");
        assert_eq!(quiet.unsent, Some(0));
        // The peer does not read: after a while, the socket accepts no more bytes.
        loop {
            match here.try_write(&[0; 65536]) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        let full = read(&here).unwrap();
        assert!(full.unsent > Some(0) && !full.is_delivered(), "{full:?}");
        assert!(quiet.is_delivered() && !quiet.is_closed, "{quiet:?}");
        assert!(!full.has_drained_since(&quiet), "{full:?}");
        // The peer reads some bytes: fewer are unsent, though the socket may not accept more.
        let mut some = vec![0; 1024 * 1024];
        there.read_exact(&mut some).await.unwrap();
        while !read(&here).unwrap().has_drained_since(&full) {
            tokio::task::yield_now().await;
        }
        // The peer closes without reading the rest, which then no longer counts as undelivered.
        drop(there);
        while !read(&here).unwrap().is_closed {
            tokio::task::yield_now().await;
        }
        assert!(read(&here).unwrap().is_delivered());
    }

    #[test]
    fn fields_that_an_older_kernel_lacks_are_none() {
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
