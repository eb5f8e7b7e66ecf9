//! Proves from figures of the kernel that a session lost no byte when the relay that held it was replaced or died.
//!
//! The kernel counts what it received from a peer and what the other peer has acknowledged. With the lengths of its queues, this
//! gives how many bytes the relay has read from one socket (`consumed`) and written to the other (`written`). Their difference
//! is the number of bytes in the hands of the relay, plus a constant: a first message, for example, is read but not forwarded.
//! The constant, the *balance* of the direction, is taken while it is known what is in hand. Afterwards, any process that has the
//! sockets can tell how many bytes were in hand when the relay stopped moving them.
//!
//! A FIN takes a place in the sequence numbers, and so in the kernel's figures, like one byte. While a connection is open, its
//! state tells which FINs were sent and received, and they are subtracted. When it is over, the state does not tell any more.
//! What was read from such a connection is either one byte less than the figures say or not; which of the two is determined only if
//! it matters, since asking takes the error of a connection that was reset.

use std::fmt;
use std::net::TcpStream;
use std::time::Duration;

use super::figures::SocketFigures;

/// What the kernel's figures of a session were when it was known what was in hand. The first direction is from the first socket
/// to the second, and the first socket is that of the first peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balances {
    /// Of each direction, what was consumed minus what was written minus what was in hand.
    pub constants: [i64; 2],
    /// What was consumed from each socket.
    pub consumed: [u64; 2],
    /// What was written to each socket.
    pub written: [u64; 2],
    /// Whether each connection was over.
    pub was_closed: [bool; 2],
    /// How many bytes the session had moved from each peer to the other.
    pub bytes: [u64; 2],
}

/// What was proven about a session.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is lost, and the session can continue.
    Intact(Continuation),
    /// Bytes are lost.
    Lost(LostBytes),
    /// The kernel does not report the figures. Bytes may be lost.
    Unknown,
}

/// How a session continues.
#[derive(Debug, PartialEq, Eq)]
pub struct Continuation {
    /// What was received from each peer and is still to be written to the other.
    pub in_flight: [Vec<u8>; 2],
    /// Bytes that the session has moved from each peer to the other. A FIN may count as a byte.
    pub bytes: [u64; 2],
    /// Time since bytes last moved, from or to either peer.
    pub idle: Duration,
}

/// Bytes that were in the hands of a relay and are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostBytes {
    /// The number of the direction, 0 if it is from the first peer to the second.
    pub direction: usize,
    /// How many bytes were in hand. It is negative if more were written than had been read, which nobody should have done.
    pub in_hand: i64,
    /// How many of the bytes that were in flight when they were noted could be told.
    pub known: usize,
}

impl fmt::Display for LostBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = if self.direction == 0 { "first" } else { "second" };
        let Self { in_hand, known, .. } = self;
        write!(f, "{in_hand} bytes from the {from} peer were in hand, and the note has {known}")
    }
}

impl Balances {
    /// Takes the balances of a session while nobody reads from or writes to its sockets. `in_hand` is how many bytes were read
    /// from each socket and not yet written to the other, and `bytes` how many the session has moved from each so far.
    /// `None` if the kernel does not report the figures.
    pub fn take(sockets: &[TcpStream; 2], in_hand: [usize; 2], bytes: [u64; 2]) -> Option<Self> {
        Some(Self::compute(&read_figures(sockets)?, in_hand, bytes))
    }

    fn compute(figures: &[SocketFigures; 2], in_hand: [usize; 2], bytes: [u64; 2]) -> Self {
        let constant = |direction: usize| {
            let in_hand = i64::try_from(in_hand[direction]).unwrap_or(i64::MAX);
            difference(figures, direction).wrapping_sub(in_hand)
        };
        Self {
            constants: [constant(0), constant(1)],
            consumed: figures.map(|figures| figures.consumed),
            written: figures.map(|figures| figures.written),
            was_closed: figures.map(|figures| figures.is_closed),
            bytes,
        }
    }

    /// Determines whether bytes of a session are lost, or which of those that were `in_flight` when these balances were taken
    /// are still to be written. Nobody may read from or write to its sockets.
    pub fn verify(&self, sockets: &[TcpStream; 2], in_flight: [Vec<u8>; 2]) -> Verdict {
        let Some(mut figures) = read_figures(sockets) else {
            return Verdict::Unknown;
        };
        let mut rests = in_flight;
        for (direction, rest) in rests.iter_mut().enumerate() {
            let mut length = self.length_of_rest(&figures, direction, rest.len());
            // A FIN that was counted when the balance was taken must be counted now.
            if length.is_err() && !self.was_closed[direction] {
                figures[direction] = figures[direction].settle_end(&sockets[direction]);
                length = self.length_of_rest(&figures, direction, rest.len());
            }
            match length {
                Ok(length) => drop(rest.drain(..rest.len() - length)),
                Err(lost) => return Verdict::Lost(lost),
            }
        }
        Verdict::Intact(Continuation {
            in_flight: rests,
            bytes: self.add_written(&figures),
            idle: figures[0].idle.min(figures[1].idle),
        })
    }

    /// Returns how many bytes the session has moved from each peer by now, also if some are lost. A FIN may count as a byte. If
    /// the kernel does not report the figures, the bytes are those of when these balances were taken.
    pub fn count_bytes(&self, sockets: &[TcpStream; 2]) -> [u64; 2] {
        read_figures(sockets).map_or(self.bytes, |figures| self.add_written(&figures))
    }

    /// Adds to the bytes of each peer what was written to the other since these balances were taken.
    fn add_written(&self, figures: &[SocketFigures; 2]) -> [u64; 2] {
        [0, 1].map(|from| {
            let written = figures[1 - from].written.saturating_sub(self.written[1 - from]);
            self.bytes[from].saturating_add(written)
        })
    }

    /// Returns how many of the `noted` bytes in flight are still to be written.
    fn length_of_rest(
        &self,
        figures: &[SocketFigures; 2],
        direction: usize,
        noted: usize,
    ) -> Result<usize, LostBytes> {
        let [from, to] = [&figures[direction], &figures[1 - direction]];
        if to.is_closed {
            // Nothing more can be written, and everything that could be is delivered or was discarded.
            return Ok(0);
        }
        let in_hand = difference(figures, direction).wrapping_sub(self.constants[direction]);
        match usize::try_from(in_hand) {
            Ok(0) => Ok(0),
            // Only as long as nothing else was read are these bytes the last of those that were in flight.
            Ok(rest) if rest <= noted && from.consumed == self.consumed[direction] => Ok(rest),
            _ => {
                let known = if from.consumed == self.consumed[direction] { noted } else { 0 };
                Err(LostBytes { direction, in_hand, known })
            }
        }
    }
}

fn read_figures(sockets: &[TcpStream; 2]) -> Option<[SocketFigures; 2]> {
    Some([SocketFigures::read(&sockets[0])?, SocketFigures::read(&sockets[1])?])
}

/// What was consumed from the sender minus what was written to the receiver.
fn difference(figures: &[SocketFigures; 2], direction: usize) -> i64 {
    let (consumed, written) = (figures[direction].consumed, figures[1 - direction].written);
    consumed.cast_signed().wrapping_sub(written.cast_signed())
}
