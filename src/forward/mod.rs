//! Moves bytes between two sockets (section 6 of the protocol notes).
//!
//! The rules, whatever way the bytes are moved:
//! - what was received from a peer reaches the other one before that one sees the end;
//! - an end of one direction ends that direction only: a reply still under way arrives;
//! - a peer that was reset is read to its last byte, the other one gets an ordinary end, and what that one still
//!   sends is taken and thrown away for a while, so that its own connection ends in order (closing a socket with
//!   unread bytes would reset it, and a reset overtakes what was delivered);
//! - nothing is held for a direction in which nothing moves.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::state::sessions::{End, Traffic};
use crate::tcp_info;

/// Bytes moved by one read, at most.
const CHUNK: usize = 64 * 1024;

/// How long a peer whose partner is gone may take to read what was delivered and to close, once it has been sent
/// the end. Long enough for some megabytes on a slow line, short enough not to hold the place of a session.
pub const LINGER: Duration = Duration::from_secs(60);

/// How soon, and later how often, it is looked whether everything is delivered: less than the time to most peers and
/// back, and not a load for those who take long.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

thread_local! {
    /// The buffer of a worker: a direction owns only what the other side could not take yet.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Forwards until nothing more can be delivered. Cancelling it leaves the sockets as they are.
pub async fn forward<'a>(
    first: &'a TcpStream,
    second: &'a TcpStream,
    traffic: &Traffic,
) -> Closing<'a> {
    let mut there = pin!(carry(first, second, traffic));
    let mut back = pin!(carry(second, first, traffic));
    let (end, survivor) = tokio::select! {
        ended = &mut there => rest(first, ended, second, back).await,
        ended = &mut back => rest(second, ended, first, there).await,
    };
    Closing { end, both: [first, second], survivor }
}

/// Everything is handed to the kernel; perhaps one of the two is still there.
#[derive(Debug)]
#[must_use = "a survivor that is closed at once may lose what it has not read yet"]
pub struct Closing<'a> {
    /// Why forwarding ended: closed, or reset.
    pub end: End,
    both: [&'a TcpStream; 2],
    survivor: Option<&'a TcpStream>,
}

impl Closing<'_> {
    /// Gives the survivor, who has been sent the end, time to read what was delivered and to close, whatever it sends;
    /// and the kernel time to bring both what it still holds. A program may end with its last session, and where it is
    /// the first one of a container, the network and what is in it end as well. At most [`LINGER`] for all of it.
    pub async fn linger(&self) {
        let all = async {
            if let Some(survivor) = self.survivor {
                throw_away(survivor).await;
            }
            for stream in self.both {
                delivered(stream).await;
            }
        };
        // Who did not take everything in time: then it is closed for it.
        let _ = timeout(LINGER, all).await;
    }
}

/// Returns when the peer's system has everything, or does not want it any more.
async fn delivered(stream: &TcpStream) {
    let mut pause = LOOK.0;
    // Nothing tells when the last byte is acknowledged: it has to be asked for.
    while tcp_info::read(stream).is_some_and(|info| !info.is_delivered()) {
        sleep(pause).await;
        pause = LOOK.1.min(2 * pause);
    }
}

/// How a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The sender finished, and everything is delivered.
    Finished,
    /// The sender's connection failed; what it had sent is delivered.
    SenderGone,
    /// The receiver's connection is over. `reset` is false where it had closed in order and only got something
    /// that it no longer wanted.
    ReceiverGone { reset: bool },
}

impl Ended {
    fn by_reset(self) -> bool {
        matches!(self, Self::SenderGone | Self::ReceiverGone { reset: true })
    }
}

/// What is left when the direction from `sender` has ended: the other one, from `other_sender`. Gives how the session
/// ended, and who of the two is still there.
async fn rest<'a>(
    sender: &'a TcpStream,
    ended: Ended,
    other_sender: &'a TcpStream,
    mut other: impl Future<Output = Ended> + Unpin,
) -> (End, Option<&'a TcpStream>) {
    let (other_ended, survivor) = match ended {
        // Nothing that the other one still sends can be delivered.
        Ended::SenderGone => return (End::Reset, Some(other_sender)),
        Ended::ReceiverGone { .. } => {
            // It may have sent something before it went: that arrives meanwhile, and then the end.
            let mut thrown_away = pin!(throw_away(sender));
            tokio::select! {
                other_ended = &mut other => (other_ended, Some(sender)),
                () = &mut thrown_away => (other.await, None),
            }
        }
        Ended::Finished => {
            let other_ended = other.await;
            let gone = matches!(other_ended, Ended::ReceiverGone { .. });
            (other_ended, gone.then_some(other_sender))
        }
    };
    let reset = ended.by_reset() || other_ended.by_reset();
    (if reset { End::Reset } else { End::Closed }, survivor)
}

enum Step {
    /// Nothing to do at the moment.
    Wait,
    /// All that was read has been written.
    Moved,
    /// The receiver took only a part.
    Rest(Vec<u8>),
    /// No more steps.
    Ended(Ended),
}

/// Moves bytes one way until that way ends. The receiver is told of an end, unless it is gone.
async fn carry(from: &TcpStream, to: &TcpStream, traffic: &Traffic) -> Ended {
    let ended = loop {
        // Neither reading nor writing below takes from the budget of the task; without this, a fast direction
        // would keep its worker, and the other direction, waiting.
        tokio::task::consume_budget().await;
        let step = match from.readable().await {
            Ok(()) => step(from, to, traffic),
            Err(_) => Step::Ended(Ended::SenderGone),
        };
        match step {
            Step::Wait | Step::Moved => {}
            Step::Rest(rest) => {
                if let Err(error) = deliver(to, &rest, traffic).await {
                    break receiver_gone(&error);
                }
            }
            Step::Ended(ended) => break ended,
        }
    };
    // The receiver may be gone already; then there is nobody to tell.
    let _ = SockRef::from(to).shutdown(Shutdown::Write);
    ended
}

/// Reads once and writes once, without waiting.
fn step(from: &TcpStream, to: &TcpStream, traffic: &Traffic) -> Step {
    SCRATCH.with_borrow_mut(|scratch| {
        let read = match from.try_read(scratch) {
            Ok(0) => return Step::Ended(Ended::Finished),
            Ok(read) => &scratch[..read],
            Err(error) if is_transient(&error) => return Step::Wait,
            Err(_) => return Step::Ended(Ended::SenderGone),
        };
        let written = match to.try_write(read) {
            Ok(written) => written,
            Err(error) if is_transient(&error) => 0,
            Err(error) => return Step::Ended(receiver_gone(&error)),
        };
        if written > 0 {
            traffic.record(written, Instant::now());
        }
        match &read[written..] {
            [] => Step::Moved,
            rest => Step::Rest(rest.to_vec()),
        }
    })
}

async fn deliver(to: &TcpStream, mut rest: &[u8], traffic: &Traffic) -> io::Result<()> {
    while !rest.is_empty() {
        to.writable().await?;
        match to.try_write(rest) {
            Ok(written) => {
                traffic.record(written, Instant::now());
                rest = &rest[written..];
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads and forgets until the sender ends.
async fn throw_away(from: &TcpStream) {
    loop {
        tokio::task::consume_budget().await;
        if from.readable().await.is_err() {
            return;
        }
        match SCRATCH.with_borrow_mut(|scratch| from.try_read(scratch)) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if is_transient(&error) => {}
            Err(_) => return,
        }
    }
}

/// A broken pipe is what writing to a peer gives that had closed in order before; anything else is a failure.
fn receiver_gone(error: &io::Error) -> Ended {
    Ended::ReceiverGone { reset: error.kind() != io::ErrorKind::BrokenPipe }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
