//! What the kernel says about the socket of a session.

use std::net::TcpStream;
use std::time::Duration;

#[cfg(target_os = "linux")]
use crate::tcp_info::queues::{self, has_received_end};
#[cfg(target_os = "linux")]
use crate::tcp_info::{StreamPositions, read_positions};

/// How often figures are read until they agree. They disagree only if a packet arrives within a microsecond or two.
#[cfg(target_os = "linux")]
const MAX_ATTEMPTS: usize = 64;

/// What can be asked of the kernel about a socket, one call each.
#[cfg(target_os = "linux")]
trait Queries {
    fn positions(&self) -> Option<StreamPositions>;
    fn unread(&self) -> Option<u64>;
    fn unacknowledged(&self) -> Option<u64>;
}

#[cfg(target_os = "linux")]
impl Queries for TcpStream {
    fn positions(&self) -> Option<StreamPositions> {
        read_positions(self)
    }

    fn unread(&self) -> Option<u64> {
        queues::unread(self)
    }

    fn unacknowledged(&self) -> Option<u64> {
        queues::unacknowledged(self)
    }
}

/// What the kernel says about one socket of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketFigures {
    /// Bytes that were read from the socket since the connection began. If the connection is over, a FIN that was received
    /// counts as one byte.
    pub consumed: u64,
    /// Bytes that were written to the socket since the connection began. If the connection is over, a FIN that was sent counts
    /// as one byte.
    pub written: u64,
    /// Whether the peer's FIN was received, read or not. `false` if the connection is over.
    pub fin_received: bool,
    /// Whether a FIN was sent. `false` if the connection is over.
    pub fin_sent: bool,
    /// Whether the connection is over in both directions.
    pub is_closed: bool,
    /// Time since bytes were last received from the peer or sent to it.
    pub idle: Duration,
}

#[cfg(target_os = "linux")]
impl SocketFigures {
    /// Reads the figures of a socket that nobody reads from or writes to meanwhile; `None` if they are not known. A kernel that
    /// does not count bytes reports zeros, and every peer of a session has sent its first message: so zeros are not believed.
    pub fn read(socket: &TcpStream) -> Option<Self> {
        Self::ask(socket)
    }

    /// Asks until no packet has come between the first call and the last. The kernel reads the state of a connection before its
    /// counts, so that a FIN may be in the counts and not in the state: the state that belongs to them is one that was read
    /// between two equal counts.
    fn ask(socket: &impl Queries) -> Option<Self> {
        for _ in 0..MAX_ATTEMPTS {
            let before = socket.positions()?;
            let unread = socket.unread()?;
            // Most connections have nothing on its way at most times, and then these calls are enough.
            let is_busy = before.has_unacknowledged || before.is_closed;
            let unacknowledged = if is_busy { socket.unacknowledged()? } else { 0 };
            let positions = socket.positions()?;
            let key = |of: &StreamPositions| (of.received, of.acknowledged, of.is_closed);
            // Nobody reads or writes: with nothing received or acknowledged, the queues are as long as before.
            if key(&positions) == key(&before) {
                return Self::compute(&positions, unread, unacknowledged);
            }
        }
        None
    }

    fn compute(positions: &StreamPositions, unread: u64, unacknowledged: u64) -> Option<Self> {
        if positions.received == 0 {
            return None;
        }
        let (fin_received, fin_sent) = (positions.has_received_end, positions.has_sent_end);
        let written = positions.acknowledged + unacknowledged;
        Some(Self {
            consumed: positions.received.checked_sub(unread + u64::from(fin_received))?,
            written: written.checked_sub(u64::from(fin_sent))?,
            fin_received,
            fin_sent,
            is_closed: positions.is_closed,
            idle: positions.silence,
        })
    }

    /// Determines whether the peer of a connection that is over had finished, and no longer counts its FIN. Call this only if it
    /// matters: it may take the error of a connection that was reset.
    pub(super) fn settle_end(mut self, socket: &TcpStream) -> Self {
        let is_open = !self.is_closed || self.fin_received;
        if is_open || !queues::unread(socket).is_some_and(|unread| has_received_end(socket, unread))
        {
            return self;
        }
        self.fin_received = true;
        self.consumed -= 1;
        self
    }
}

/// Other systems do not report the figures.
#[cfg(not(target_os = "linux"))]
impl SocketFigures {
    /// Returns `None`: the figures are not known.
    pub fn read(_socket: &TcpStream) -> Option<Self> {
        None
    }

    pub(super) fn settle_end(self, _socket: &TcpStream) -> Self {
        self
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Shutdown, TcpListener};
    use std::time::Instant;

    use socket2::SockRef;

    /// A kernel whose answers have been written down, in the order in which they are asked for.
    struct Script {
        positions: RefCell<VecDeque<StreamPositions>>,
        unread: u64,
        unacknowledged: u64,
    }

    impl Queries for Script {
        fn positions(&self) -> Option<StreamPositions> {
            self.positions.borrow_mut().pop_front()
        }

        fn unread(&self) -> Option<u64> {
            Some(self.unread)
        }

        fn unacknowledged(&self) -> Option<u64> {
            Some(self.unacknowledged)
        }
    }

    /// 100 bytes received and 50 acknowledged, in a connection that is open.
    const OPEN: StreamPositions = StreamPositions {
        received: 100,
        acknowledged: 50,
        has_unacknowledged: false,
        has_received_end: false,
        has_sent_end: false,
        is_closed: false,
        silence: Duration::ZERO,
    };

    /// What is read if the kernel says that, one after the other, with 10 bytes unread and 7 unacknowledged.
    fn ask<const N: usize>(positions: [StreamPositions; N]) -> SocketFigures {
        let positions = RefCell::new(positions.into());
        let script = Script { positions, unread: 10, unacknowledged: 7 };
        let figures = SocketFigures::ask(&script).unwrap();
        assert!(script.positions.take().is_empty());
        figures
    }

    #[test]
    fn state_and_counts_of_different_moments_are_not_put_together() {
        // A FIN arrived after the state was read and before the counts were.
        let late = StreamPositions { received: 101, ..OPEN };
        let after = StreamPositions { has_received_end: true, ..late };
        assert_eq!(counts(&ask([late, after])), (90, 50));
        assert_eq!(counts(&ask([OPEN, late, late, after])), (90, 50));
        // It was acknowledged in the same way.
        let sent = StreamPositions { has_sent_end: true, has_unacknowledged: true, ..OPEN };
        let acknowledged = StreamPositions { acknowledged: 57, has_unacknowledged: false, ..sent };
        assert_eq!(counts(&ask([sent, acknowledged, acknowledged, acknowledged])), (90, 56));
        // A reset has emptied the queue, which the state did not tell yet.
        let emptied = StreamPositions { has_unacknowledged: false, ..OPEN };
        let closed = StreamPositions { is_closed: true, ..emptied };
        assert_eq!(counts(&ask([emptied, closed, closed, closed])), (90, 57));
        assert_eq!(counts(&ask([OPEN, OPEN])), (90, 50));
    }

    /// Returns the relay's end of a connection and the peer's, which has sent a first message of one byte that was read.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut relay, _) = listener.accept().unwrap();
        peer.write_all(b"m").unwrap();
        relay.read_exact(&mut [0]).unwrap();
        relay.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        (relay, peer)
    }

    /// Reads the figures until they are as expected, since packets take a moment.
    fn wait_for(socket: &TcpStream, is_expected: impl Fn(&SocketFigures) -> bool) -> SocketFigures {
        let begin = Instant::now();
        loop {
            let figures = SocketFigures::read(socket).unwrap();
            if is_expected(&figures) {
                return figures;
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "{figures:?}");
            std::thread::yield_now();
        }
    }

    fn counts(figures: &SocketFigures) -> (u64, u64) {
        (figures.consumed, figures.written)
    }

    fn wait_until_unread(socket: &TcpStream, count: u64) {
        while queues::unread(socket).unwrap() < count {
            std::thread::yield_now();
        }
    }

    fn reset(peer: TcpStream) {
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
    }

    #[test]
    fn nothing_is_known_of_a_connection_whose_peer_has_sent_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (relay, _) = listener.accept().unwrap();
        assert_eq!(SocketFigures::read(&relay), None);
    }

    #[test]
    fn only_what_was_read_is_consumed_and_only_what_was_accepted_is_written() {
        let (mut relay, mut peer) = connection();
        let (consumed, written) = counts(&SocketFigures::read(&relay).unwrap());
        peer.write_all(&[0; 1000]).unwrap();
        wait_until_unread(&relay, 1000);
        assert_eq!(counts(&SocketFigures::read(&relay).unwrap()), (consumed, written));
        relay.read_exact(&mut [0; 400]).unwrap();
        assert_eq!(counts(&SocketFigures::read(&relay).unwrap()), (consumed + 400, written));
        relay.write_all(&[0; 300]).unwrap();
        let figures = SocketFigures::read(&relay).unwrap();
        assert_eq!(counts(&figures), (consumed + 400, written + 300));
        assert!(!figures.fin_received && !figures.fin_sent && !figures.is_closed);
        assert!(figures.idle < Duration::from_secs(10));
    }

    #[test]
    fn written_bytes_are_exact_while_the_peer_accepts_nothing() {
        let (mut relay, mut peer) = connection();
        let (_, before) = counts(&SocketFigures::read(&relay).unwrap());
        let mut written = 0;
        loop {
            match relay.write(&[0; 7919]) {
                Ok(count) => written += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
            assert_eq!(SocketFigures::read(&relay).unwrap().written, before + written);
        }
        let mut left = written;
        while left > 0 {
            match peer.read(&mut [0; 50_000]) {
                Ok(count) => left -= count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
            assert_eq!(SocketFigures::read(&relay).unwrap().written, before + written);
        }
    }

    #[test]
    fn fin_is_not_consumed_whether_it_was_read_or_not() {
        let (mut relay, mut peer) = connection();
        let (consumed, written) = counts(&SocketFigures::read(&relay).unwrap());
        peer.write_all(b"abc").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let figures = wait_for(&relay, |figures| figures.fin_received);
        assert_eq!(counts(&figures), (consumed, written));
        relay.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(SocketFigures::read(&relay).unwrap().consumed, consumed + 3);
        assert_eq!(relay.read(&mut [0]).unwrap(), 0);
        let figures = SocketFigures::read(&relay).unwrap();
        assert_eq!(counts(&figures), (consumed + 3, written));
        assert!(figures.fin_received && !figures.fin_sent && !figures.is_closed);
    }

    #[test]
    fn fin_is_not_written_whether_it_is_acknowledged_or_not() {
        let (mut relay, mut peer) = connection();
        let (consumed, before) = counts(&SocketFigures::read(&relay).unwrap());
        // The peer accepts nothing more, so the FIN stays in the queue.
        let mut written = before;
        while let Ok(count) = relay.write(&[0; 65536]) {
            written += count as u64;
        }
        relay.shutdown(Shutdown::Write).unwrap();
        let figures = SocketFigures::read(&relay).unwrap();
        assert!(figures.fin_sent && !figures.fin_received && !figures.is_closed);
        assert_eq!(counts(&figures), (consumed, written));
        assert!(queues::unacknowledged(&relay).unwrap() > 0);
        let mut buffer = vec![0; 65536];
        while !matches!(peer.read(&mut buffer), Ok(0)) {}
        while queues::unacknowledged(&relay).unwrap() > 0 {}
        let figures = SocketFigures::read(&relay).unwrap();
        assert!(figures.fin_sent && !figures.is_closed);
        assert_eq!(counts(&figures), (consumed, written));
    }

    #[test]
    fn fin_of_a_connection_that_is_over_is_told_from_a_byte() {
        // The relay finishes first or last, and has read what the peer sent, or nothing, or all but the end.
        for is_relay_first in [true, false] {
            for reads in [0, 3, 4] {
                let (mut relay, mut peer) = connection();
                let before = SocketFigures::read(&relay).unwrap();
                if is_relay_first {
                    relay.shutdown(Shutdown::Write).unwrap();
                    wait_for(&relay, |figures| figures.fin_sent);
                    while queues::unacknowledged(&relay).unwrap() > 0 {}
                }
                peer.write_all(b"abc").unwrap();
                peer.shutdown(Shutdown::Write).unwrap();
                let mut consumed = 0;
                wait_until_unread(&relay, 3);
                for _ in 0..reads {
                    consumed += relay.read(&mut [0]).unwrap() as u64;
                }
                if !is_relay_first {
                    wait_for(&relay, |figures| figures.fin_received);
                    relay.shutdown(Shutdown::Write).unwrap();
                }
                let figures = wait_for(&relay, |figures| figures.is_closed);
                assert_eq!(figures.consumed, before.consumed + consumed + 1);
                let settled = figures.settle_end(&relay);
                assert!(settled.fin_received);
                assert_eq!(settled.consumed, before.consumed + consumed);
                // Nothing was taken out of the queue.
                let mut rest = Vec::new();
                assert_eq!(relay.read_to_end(&mut rest).unwrap() as u64, 3 - consumed);
                assert_eq!(
                    SocketFigures::read(&relay).unwrap().settle_end(&relay).consumed,
                    before.consumed + 3
                );
            }
        }
    }

    #[test]
    fn reset_is_not_taken_for_the_end_of_the_stream() {
        // With and without unread bytes, with and without a FIN before it.
        for (sent, is_finished) in [(0, false), (3, false), (0, true), (3, true)] {
            let (mut relay, mut peer) = connection();
            let before = SocketFigures::read(&relay).unwrap();
            peer.write_all(&vec![0; sent]).unwrap();
            wait_until_unread(&relay, sent as u64);
            if is_finished {
                peer.shutdown(Shutdown::Write).unwrap();
                wait_for(&relay, |figures| figures.fin_received);
            }
            reset(peer);
            let figures = wait_for(&relay, |figures| figures.is_closed);
            assert_eq!(figures.consumed, before.consumed + u64::from(is_finished));
            let settled = figures.settle_end(&relay);
            assert_eq!((settled.fin_received, settled.consumed), (is_finished, before.consumed));
            assert_eq!(relay.read(&mut [0; 9]).unwrap_or(0), sent);
        }
    }
}
