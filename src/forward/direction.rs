//! One of the two directions of a session: the bytes that it holds, and how it moves bytes.
//!
//! Bytes are read into a buffer of the thread and written at once. A direction keeps only what its receiver does not accept,
//! and reads nothing more until that is written. If a lot of data arrives, the direction moves it through a pipe instead, where
//! the kernel passes bytes on without copying them.

use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::state::sessions::{PeerOrder, Traffic};

use super::backlog::Backlog;
use super::discard::Discard;
use super::failure::{PeerFailure, is_connection_error};
use super::pipe::{PipeLease, Pipes};
use super::readiness;
use super::socket::{self, is_transient, with_scratch};

/// The default budget, in bytes: a few hundred microseconds of work, and several times the cost of a system call. Between
/// network namespaces, 16 bulk sessions moved 2.75 GB per second of CPU time with it and 1.8 GB with 128 KiB; 2 MiB gave no
/// more, and would make other sessions wait four times as long.
pub const BUDGET: usize = 512 * 1024;

// When to switch between copying and a pipe. Other numbers (1 and 16 reads, 2 pieces, 64 KiB) were no better than these, within
// the spread of the runs. In the same runs, copying alone moved 0.37 times as many bytes per second of CPU time.

/// After this many consecutive reads that filled the buffer, a pipe is used: the sender is faster than the relay, so a pipe
/// is worth its cost.
const FULL_READS: u8 = 4;
/// After this many consecutive pieces smaller than [`SMALL_PIECE`], the pipe is not used any more.
const MAX_SMALL_PIECES: u8 = 8;
/// Copying fewer bytes than this costs less than two system calls on a pipe.
const SMALL_PIECE: usize = 16 * 1024;

/// How bytes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferMethod {
    /// By copying or through a pipe, whichever is cheaper for the observed traffic.
    Adaptive,
    /// Always by reading and writing.
    Copy,
    /// Always through a pipe, if one is available.
    Splice,
}

/// The progress of a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Bytes may still move.
    Moving,
    /// The sender has finished, everything is delivered, and the receiver was sent a FIN.
    Finished,
    /// Nothing more can be read from the sender. What was received from it is delivered, and the receiver was sent a FIN.
    SenderFailed(PeerFailure),
    /// Nothing more can be written to the receiver, and what the sender still sends is discarded.
    Discarding(PeerFailure),
    /// Like `Discarding`, but nothing more is read from the sender: it has finished, or its time is over.
    Discarded(PeerFailure),
}

/// What was read from the sender and not yet written to the receiver.
#[derive(Debug)]
enum Leftover {
    /// The bytes after the first `written`.
    Bytes { bytes: Backlog, written: usize },
    /// The `count` bytes in a pipe.
    Piped { pipe: PipeLease, count: usize },
}

/// How a direction with [`TransferMethod::Adaptive`] moves the next bytes, and how many consecutive reads have favoured the
/// other mode.
#[derive(Debug, Clone, Copy)]
enum AdaptiveMode {
    /// By copying, after this many consecutive reads that filled the buffer.
    Copying(u8),
    /// Through a pipe, after this many consecutive small pieces.
    Piping(u8),
}

/// One direction of a session. Between two polls its state is consistent, and the session can be detached.
#[derive(Debug)]
pub(super) struct Direction {
    /// Usually `None`, which takes no memory on the heap.
    leftover: Option<Box<Leftover>>,
    /// Exists while the sender's bytes are discarded.
    discard: Option<Box<Discard>>,
    mode: AdaptiveMode,
    progress: Progress,
}

impl Default for Direction {
    fn default() -> Self {
        Self {
            leftover: None,
            discard: None,
            mode: AdaptiveMode::Copying(0),
            progress: Progress::Moving,
        }
    }
}

/// The outcome of an attempt to read from the sender.
enum ReadOutcome {
    /// This many bytes were read; they are written or left over.
    Bytes(usize),
    /// No bytes are available, or the attempt has to be repeated.
    Nothing,
    /// No more bytes will move.
    Ended(Progress),
}

impl Direction {
    /// Continues with bytes that were read from the sender on another thread or in another process.
    pub(super) fn resume(in_flight: &[u8]) -> Self {
        Self { leftover: keep_leftover(in_flight), ..Self::default() }
    }

    /// Returns the bytes that were read from the sender and not written to the receiver.
    ///
    /// # Errors
    /// The bytes cannot be read out of a pipe, which is not known to happen.
    pub(super) fn into_in_flight(self) -> io::Result<Vec<u8>> {
        match self.leftover.map(|leftover| *leftover) {
            None => Ok(Vec::new()),
            Some(Leftover::Bytes { bytes, written }) => Ok(bytes[written..].to_vec()),
            Some(Leftover::Piped { pipe, count }) => pipe.into_bytes(count),
        }
    }

    /// Moves up to a budget of bytes, and wakes the task again if there may be more.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        transfer: &TransferContext<'_>,
    ) -> Progress {
        if self.progress == Progress::Moving
            && let Poll::Ready(progress) = self.poll_moving(context, from, to, transfer)
        {
            self.finish(progress, to, transfer.now);
        }
        if let (Progress::Discarding(failure), Some(discard)) = (self.progress, &mut self.discard)
            && discard.poll(context, from, transfer.allowance, transfer.now).is_ready()
        {
            self.discard = None;
            self.progress = Progress::Discarded(failure);
        }
        self.progress
    }

    /// Returns the progress of this direction.
    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// Notes that the receiver's connection was found to be over without a failed write. The sender was sent a FIN at `since`,
    /// from which its time to finish is counted.
    pub(super) fn note_lost_receiver(
        &mut self,
        failure: PeerFailure,
        to: &TcpStream,
        since: Instant,
    ) {
        self.finish(Progress::Discarding(failure), to, since);
    }

    /// Returns the [`Discard`] of the sender that has begun, or a new one that begins at `now`.
    pub(super) fn into_discard(self, now: Instant) -> Box<Discard> {
        self.discard.unwrap_or_else(|| Box::new(Discard::new(now)))
    }

    /// Whether bytes could be moved immediately, according to the kernel rather than the runtime.
    pub(super) fn can_move(&self, from: &TcpStream, to: &TcpStream) -> bool {
        self.progress == Progress::Moving
            && (self.leftover.is_some() || readiness::has_unread(from))
            && readiness::is_writable(to)
    }

    fn finish(&mut self, progress: Progress, to: &TcpStream, now: Instant) {
        self.progress = progress;
        self.leftover = None;
        if let Progress::Discarding(_) = progress {
            self.discard = Some(Box::new(Discard::new(now)));
        }
        // This fails if the receiver's connection is over, and then nobody needs the FIN.
        let _ = SockRef::from(to).shutdown(Shutdown::Write);
    }

    /// Ready with the final progress when no more bytes can be moved.
    fn poll_moving(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        transfer: &TransferContext<'_>,
    ) -> Poll<Progress> {
        let mut moved = 0;
        loop {
            while self.leftover.is_some() {
                let written = match ready!(to.poll_write_ready(context)) {
                    Ok(()) => self.write_leftover(to, transfer),
                    Err(error) => Err(error),
                };
                if let Err(error) = written {
                    return Poll::Ready(Progress::Discarding(PeerFailure::of_receiver(&error, to)));
                }
            }
            if moved >= transfer.budget {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let allowed = transfer.allowance.get();
            if allowed == 0 {
                // The caller, which limits the allowance, wakes the task when there is more.
                return Poll::Pending;
            }
            let max = allowed.min(transfer.budget - moved);
            let outcome = match ready!(from.poll_read_ready(context)) {
                Ok(()) => self.read(from, to, max, transfer),
                Err(error) => {
                    let failure = PeerFailure::of_sender(&error, from);
                    ReadOutcome::Ended(Progress::SenderFailed(failure))
                }
            };
            match outcome {
                ReadOutcome::Bytes(bytes) => {
                    moved += bytes;
                    transfer.allowance.set(allowed.saturating_sub(bytes));
                }
                ReadOutcome::Nothing => {}
                ReadOutcome::Ended(progress) => return Poll::Ready(progress),
            }
        }
    }

    /// Reads up to `max` bytes from the sender, either to copy them or into a pipe.
    fn read(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        max: usize,
        transfer: &TransferContext<'_>,
    ) -> ReadOutcome {
        let uses_pipe = match transfer.method {
            TransferMethod::Copy => false,
            TransferMethod::Splice => true,
            // With limited bandwidth, so few bytes may be allowed that a pipe is not worth its cost.
            TransferMethod::Adaptive => {
                matches!(self.mode, AdaptiveMode::Piping(_)) && max >= SMALL_PIECE
            }
        };
        match uses_pipe.then(|| transfer.pipes.acquire()).flatten() {
            Some(pipe) => self.read_into_pipe(pipe, from, to, max, transfer),
            None => self.copy(from, to, max, transfer),
        }
    }

    fn copy(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        max: usize,
        transfer: &TransferContext<'_>,
    ) -> ReadOutcome {
        with_scratch(|scratch| {
            let (size, room) = (scratch.len(), scratch.len().min(max));
            let scratch = &mut scratch[..room];
            let bytes = match socket::read(from, scratch) {
                Ok(0) => return ReadOutcome::Ended(Progress::Finished),
                Ok(read) => &scratch[..read],
                Err(error) if is_transient(&error) => return ReadOutcome::Nothing,
                Err(error) => {
                    let failure = PeerFailure::of_sender(&error, from);
                    return ReadOutcome::Ended(Progress::SenderFailed(failure));
                }
            };
            self.mode = match self.mode {
                AdaptiveMode::Copying(_) if bytes.len() < room => AdaptiveMode::Copying(0),
                // The buffer was filled because it was small.
                copying @ AdaptiveMode::Copying(_) if room < size => copying,
                AdaptiveMode::Copying(full) if full + 1 < FULL_READS => {
                    AdaptiveMode::Copying(full + 1)
                }
                AdaptiveMode::Copying(_) => AdaptiveMode::Piping(0),
                piping @ AdaptiveMode::Piping(_) => piping,
            };
            match write(to, bytes, transfer) {
                Ok(written) => {
                    self.leftover = keep_leftover(&bytes[written..]);
                    ReadOutcome::Bytes(bytes.len())
                }
                Err(error) => {
                    let failure = PeerFailure::of_receiver(&error, to);
                    ReadOutcome::Ended(Progress::Discarding(failure))
                }
            }
        })
    }

    /// Reads bytes into an empty pipe. If the kernel refuses, they are copied.
    fn read_into_pipe(
        &mut self,
        pipe: PipeLease,
        from: &TcpStream,
        to: &TcpStream,
        max: usize,
        transfer: &TransferContext<'_>,
    ) -> ReadOutcome {
        // A short read does not mean that the socket is empty: the pipe may be full, since it is limited by the number of
        // pieces, not of bytes.
        match from.try_io(Interest::READABLE, || pipe.read_from(from, max)) {
            Ok(0) => {
                pipe.release();
                ReadOutcome::Ended(Progress::Finished)
            }
            Ok(count) => {
                self.mode = match self.mode {
                    AdaptiveMode::Piping(small)
                        if count < SMALL_PIECE && small + 1 == MAX_SMALL_PIECES =>
                    {
                        AdaptiveMode::Copying(0)
                    }
                    AdaptiveMode::Piping(small) if count < SMALL_PIECE => {
                        AdaptiveMode::Piping(small + 1)
                    }
                    _ => AdaptiveMode::Piping(0),
                };
                self.leftover = Some(Box::new(Leftover::Piped { pipe, count }));
                ReadOutcome::Bytes(count)
            }
            Err(error) if is_transient(&error) => {
                pipe.release();
                ReadOutcome::Nothing
            }
            Err(error) if is_connection_error(&error) => {
                pipe.release();
                ReadOutcome::Ended(Progress::SenderFailed(PeerFailure::Reset))
            }
            Err(error) => {
                pipe.release();
                transfer.pipes.note_refusal(&error, from);
                self.mode = AdaptiveMode::Copying(0);
                self.copy(from, to, max, transfer)
            }
        }
    }

    /// Writes as many of the leftover bytes as the receiver accepts.
    fn write_leftover(&mut self, to: &TcpStream, transfer: &TransferContext<'_>) -> io::Result<()> {
        let Some(leftover) = self.leftover.take() else {
            return Ok(());
        };
        let rest = match *leftover {
            Leftover::Bytes { bytes, written } => {
                let written = written + write(to, &bytes[written..], transfer)?;
                (written < bytes.len()).then_some(Leftover::Bytes { bytes, written })
            }
            Leftover::Piped { pipe, count } => {
                match treat_transient_as_zero(
                    to.try_io(Interest::WRITABLE, || pipe.write_to(to, count)),
                ) {
                    Ok(written) => {
                        transfer.traffic.record(transfer.from, written, transfer.now);
                        if written == count {
                            pipe.release();
                            None
                        } else {
                            Some(Leftover::Piped { pipe, count: count - written })
                        }
                    }
                    Err(error) if is_connection_error(&error) => return Err(error),
                    Err(error) => {
                        // The bytes are taken out of the pipe, and copied on the next iteration.
                        let bytes = Backlog::copy_of(&pipe.into_bytes(count)?);
                        transfer.pipes.note_refusal(&error, to);
                        self.mode = AdaptiveMode::Copying(0);
                        Some(Leftover::Bytes { bytes, written: 0 })
                    }
                }
            }
        };
        self.leftover = rest.map(Box::new);
        Ok(())
    }
}

/// What a direction needs to move bytes, besides the sockets.
#[derive(Debug, Clone, Copy)]
pub(super) struct TransferContext<'a> {
    pub(super) method: TransferMethod,
    pub(super) pipes: &'a Pipes,
    pub(super) traffic: &'a Traffic,
    /// The time, read once for a whole budget and not again for each piece.
    pub(super) now: Instant,
    pub(super) budget: usize,
    /// Bytes that may still be read from the sender. Reading reduces it.
    pub(super) allowance: &'a Cell<usize>,
    /// The sender.
    pub(super) from: PeerOrder,
}

fn keep_leftover(bytes: &[u8]) -> Option<Box<Leftover>> {
    (!bytes.is_empty())
        .then(|| Box::new(Leftover::Bytes { bytes: Backlog::copy_of(bytes), written: 0 }))
}

/// Writes as many bytes as the receiver accepts, possibly none.
fn write(to: &TcpStream, bytes: &[u8], transfer: &TransferContext<'_>) -> io::Result<usize> {
    let written = treat_transient_as_zero(socket::write(to, bytes))?;
    if written > 0 {
        transfer.traffic.record(transfer.from, written, transfer.now);
    }
    Ok(written)
}

fn treat_transient_as_zero(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if is_transient(&error) => Ok(0),
        result => result,
    }
}
