//! One of the two directions of a session: what it holds, and how it moves bytes.
//!
//! Nothing is held while nothing moves. Bytes are read into a buffer of the thread and written at once; what the
//! receiver does not take is kept, and nothing more is read until it has gone. A direction in which much arrives
//! moves its bytes through a pipe instead, where the kernel passes them on without copying.

use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::state::sessions::Traffic;

use super::discard::Discard;
use super::failure::{Ending, is_of_connection};
use super::pipe::{Lease, Pipes};
use super::readiness;
use super::rest::Rest;
use super::socket::{self, is_transient, with_scratch};

/// The usual budget, in bytes: some hundred microseconds of work, and several times what a call costs. Between network
/// namespaces, 16 bulk sessions moved 2.75 GB for each second of CPU with it and 1.8 with 128 KiB; 2 MiB gave no more, and
/// would let others wait four times as long.
pub const BUDGET: usize = 512 * 1024;

// When to change between copying and a pipe: of other numbers (1 and 16 reads, 2 pieces, 64 KiB) none was better than
// these beyond the spread of runs, where always copying moved 0.37 of the bytes for each second of CPU.

/// So many times in a row a read filled the whole buffer: the sender is faster than we are, and its bytes are worth a
/// pipe.
const MANY: u8 = 4;
/// So many times in a row less than [`LITTLE`] came through the pipe: it is not.
const FEW: u8 = 8;
/// Below it, copying costs less than two system calls on a pipe.
const LITTLE: usize = 16 * 1024;

/// How bytes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// As it is cheaper, by what is seen.
    Adaptive,
    /// Always by reading and writing.
    Copy,
    /// Always through a pipe, where there is one.
    Splice,
}

/// How far a direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It goes on.
    Moving,
    /// The sender finished, everything is delivered, and the receiver was told.
    Finished,
    /// Nothing more can be read from the sender; what it had sent is delivered, and the receiver was told.
    SenderGone(Ending),
    /// Nothing more can be written to the receiver, and what the sender still sends is discarded.
    Discarding(Ending),
    /// The same, and nothing more is read from the sender: it has finished, or its time is over.
    Discarded(Ending),
}

/// What was taken from the sender and not yet given to the receiver.
#[derive(Debug)]
enum Held {
    /// The bytes after the first `done`.
    Bytes { bytes: Rest, done: usize },
    /// So many in a pipe.
    Piped { pipe: Lease, count: usize },
}

/// Which way the next bytes go, by what was seen of the latest.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// By copying; so many reads in a row filled the buffer.
    Copying(u8),
    /// Through a pipe; so many times in a row little came.
    Piping(u8),
}

/// A direction. What it holds is consistent whenever it is not being polled: it can be taken apart at any time.
#[derive(Debug)]
pub(super) struct Direction {
    /// Nothing, most of the time: then it takes no memory of its own.
    held: Option<Box<Held>>,
    /// While the sender's bytes are discarded.
    discard: Option<Box<Discard>>,
    pace: Pace,
    progress: Progress,
}

impl Default for Direction {
    fn default() -> Self {
        Self { held: None, discard: None, pace: Pace::Copying(0), progress: Progress::Moving }
    }
}

/// What a try to take bytes from the sender gave.
enum Taken {
    /// So many bytes. They are at the receiver, or held.
    Bytes(usize),
    /// There are none at the moment, or not for certain.
    Nothing,
    /// There will be none any more.
    Ended(Progress),
}

impl Direction {
    /// Goes on with bytes that were taken from the sender elsewhere.
    pub(super) fn with(in_flight: &[u8]) -> Self {
        Self { held: hold(in_flight), ..Self::default() }
    }

    /// The bytes that were taken from the sender and have not been given to the receiver.
    ///
    /// # Errors
    /// When a pipe does not give out what is in it, which the system does not do.
    pub(super) fn into_in_flight(self) -> io::Result<Vec<u8>> {
        match self.held.map(|held| *held) {
            None => Ok(Vec::new()),
            Some(Held::Bytes { bytes, done }) => Ok(bytes[done..].to_vec()),
            Some(Held::Piped { pipe, count }) => pipe.empty(count),
        }
    }

    /// Moves up to a budget of bytes, and wakes the task again where there may be more.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        work: &Work<'_>,
    ) -> Progress {
        if self.progress == Progress::Moving
            && let Poll::Ready(ended) = self.poll_moving(context, from, to, work)
        {
            self.end(ended, to, work.now);
        }
        if let (Progress::Discarding(ending), Some(discard)) = (self.progress, &mut self.discard)
            && discard.poll(context, from, work.allowance, work.now).is_ready()
        {
            self.discard = None;
            self.progress = Progress::Discarded(ending);
        }
        self.progress
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// The receiver's connection was found to be over, without a write that failed. The sender has known since `since`
    /// that its partner sends nothing more.
    pub(super) fn receiver_lost(&mut self, ending: Ending, to: &TcpStream, since: Instant) {
        self.end(Progress::Discarding(ending), to, since);
    }

    /// Discards what the sender has left to send, if it is being discarded; otherwise from `now` on.
    pub(super) fn into_discard(self, now: Instant) -> Box<Discard> {
        self.discard.unwrap_or_else(|| Box::new(Discard::since(now)))
    }

    /// Whether something could be moved at once: for those who doubt what the runtime knows of the sockets.
    pub(super) fn can_move(&self, from: &TcpStream, to: &TcpStream) -> bool {
        self.progress == Progress::Moving
            && (self.held.is_some() || readiness::has_unread(from))
            && readiness::is_writable(to)
    }

    fn end(&mut self, ended: Progress, to: &TcpStream, now: Instant) {
        self.progress = ended;
        self.held = None;
        if let Progress::Discarding(_) = ended {
            self.discard = Some(Box::new(Discard::since(now)));
        }
        // The receiver may be gone already; then there is nobody to tell.
        let _ = SockRef::from(to).shutdown(Shutdown::Write);
    }

    /// Ready with how it ended when no more can be moved.
    fn poll_moving(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        work: &Work<'_>,
    ) -> Poll<Progress> {
        let mut moved = 0;
        loop {
            while self.held.is_some() {
                let given = match ready!(to.poll_write_ready(context)) {
                    Ok(()) => self.give(to, work),
                    Err(error) => Err(error),
                };
                if let Err(error) = given {
                    return Poll::Ready(Progress::Discarding(Ending::of_receiver(&error, to)));
                }
            }
            if moved >= work.budget {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let allowed = work.allowance.get();
            if allowed == 0 {
                // Whoever set it wakes the task when there is more.
                return Poll::Pending;
            }
            let most = allowed.min(work.budget - moved);
            let taken = match ready!(from.poll_read_ready(context)) {
                Ok(()) => self.take(from, to, most, work),
                Err(error) => Taken::Ended(Progress::SenderGone(Ending::of_sender(&error, from))),
            };
            match taken {
                Taken::Bytes(bytes) => {
                    moved += bytes;
                    work.allowance.set(allowed.saturating_sub(bytes));
                }
                Taken::Nothing => {}
                Taken::Ended(ended) => return Poll::Ready(ended),
            }
        }
    }

    /// Takes bytes from the sender, in the way that suits what was seen.
    fn take(&mut self, from: &TcpStream, to: &TcpStream, most: usize, work: &Work<'_>) -> Taken {
        let piped = match work.method {
            Method::Copy => false,
            Method::Splice => true,
            // Little may be allowed, where bandwidth is limited.
            Method::Adaptive => matches!(self.pace, Pace::Piping(_)) && most >= LITTLE,
        };
        match piped.then(|| work.pipes.take()).flatten() {
            Some(pipe) => self.fill(pipe, from, to, most, work),
            None => self.copy(from, to, most, work),
        }
    }

    fn copy(&mut self, from: &TcpStream, to: &TcpStream, most: usize, work: &Work<'_>) -> Taken {
        with_scratch(|scratch| {
            let (whole, room) = (scratch.len(), scratch.len().min(most));
            let scratch = &mut scratch[..room];
            let bytes = match socket::read(from, scratch) {
                Ok(0) => return Taken::Ended(Progress::Finished),
                Ok(read) => &scratch[..read],
                Err(error) if is_transient(&error) => return Taken::Nothing,
                Err(error) => {
                    let ending = Ending::of_sender(&error, from);
                    return Taken::Ended(Progress::SenderGone(ending));
                }
            };
            self.pace = match self.pace {
                Pace::Copying(_) if bytes.len() < room => Pace::Copying(0),
                // It was filled because it was small.
                copying @ Pace::Copying(_) if room < whole => copying,
                Pace::Copying(full) if full + 1 < MANY => Pace::Copying(full + 1),
                Pace::Copying(_) => Pace::Piping(0),
                piping @ Pace::Piping(_) => piping,
            };
            match write(to, bytes, work) {
                Ok(written) => {
                    self.held = hold(&bytes[written..]);
                    Taken::Bytes(bytes.len())
                }
                Err(error) => Taken::Ended(Progress::Discarding(Ending::of_receiver(&error, to))),
            }
        })
    }

    /// Takes bytes into a pipe, which is empty. Where the kernel refuses, they are copied.
    fn fill(
        &mut self,
        pipe: Lease,
        from: &TcpStream,
        to: &TcpStream,
        most: usize,
        work: &Work<'_>,
    ) -> Taken {
        // A short one says nothing of the socket: what counts against the pipe is pieces, not bytes.
        match from.try_io(Interest::READABLE, || pipe.fill(from, most)) {
            Ok(0) => {
                pipe.give_back();
                Taken::Ended(Progress::Finished)
            }
            Ok(count) => {
                self.pace = match self.pace {
                    Pace::Piping(few) if count < LITTLE && few + 1 == FEW => Pace::Copying(0),
                    Pace::Piping(few) if count < LITTLE => Pace::Piping(few + 1),
                    _ => Pace::Piping(0),
                };
                self.held = Some(Box::new(Held::Piped { pipe, count }));
                Taken::Bytes(count)
            }
            Err(error) if is_transient(&error) => {
                pipe.give_back();
                Taken::Nothing
            }
            Err(error) if is_of_connection(&error) => {
                pipe.give_back();
                Taken::Ended(Progress::SenderGone(Ending::Reset))
            }
            Err(error) => {
                pipe.give_back();
                work.pipes.refused(&error, from);
                self.pace = Pace::Copying(0);
                self.copy(from, to, most, work)
            }
        }
    }

    /// Gives the receiver of what is held as much as it takes.
    fn give(&mut self, to: &TcpStream, work: &Work<'_>) -> io::Result<()> {
        let Some(held) = self.held.take() else {
            return Ok(());
        };
        let rest = match *held {
            Held::Bytes { bytes, done } => {
                let done = done + write(to, &bytes[done..], work)?;
                (done < bytes.len()).then_some(Held::Bytes { bytes, done })
            }
            Held::Piped { pipe, count } => {
                match transient_is_none(to.try_io(Interest::WRITABLE, || pipe.drain(to, count))) {
                    Ok(given) => {
                        work.traffic.record(given, work.now);
                        if given == count {
                            pipe.give_back();
                            None
                        } else {
                            Some(Held::Piped { pipe, count: count - given })
                        }
                    }
                    Err(error) if is_of_connection(&error) => return Err(error),
                    Err(error) => {
                        // What is in the pipe is taken out again, and written at the next turn.
                        let bytes = Rest::keep(&pipe.empty(count)?);
                        work.pipes.refused(&error, to);
                        self.pace = Pace::Copying(0);
                        Some(Held::Bytes { bytes, done: 0 })
                    }
                }
            }
        };
        self.held = rest.map(Box::new);
        Ok(())
    }
}

/// What moving bytes needs beside the sockets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) method: Method,
    pub(super) pipes: &'a Pipes,
    pub(super) traffic: &'a Traffic,
    /// The time, within what a budget takes: it is not asked for again for each piece.
    pub(super) now: Instant,
    pub(super) budget: usize,
    /// Bytes that may be taken from the sender; what is taken is taken away from it.
    pub(super) allowance: &'a Cell<usize>,
}

fn hold(bytes: &[u8]) -> Option<Box<Held>> {
    (!bytes.is_empty()).then(|| Box::new(Held::Bytes { bytes: Rest::keep(bytes), done: 0 }))
}

/// Writes as much as the receiver takes, perhaps nothing.
fn write(to: &TcpStream, bytes: &[u8], work: &Work<'_>) -> io::Result<usize> {
    let written = transient_is_none(socket::write(to, bytes))?;
    if written > 0 {
        work.traffic.record(written, work.now);
    }
    Ok(written)
}

fn transient_is_none(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if is_transient(&error) => Ok(0),
        result => result,
    }
}
