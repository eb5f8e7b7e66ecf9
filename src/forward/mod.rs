//! Moves bytes between two sockets (section 6 of the protocol notes).
//!
//! The rules, whatever way the bytes are moved:
//! - what was received from a peer reaches the other one before that one sees the end;
//! - an end of one direction ends that direction only: a reply still under way arrives;
//! - a peer that was reset is read to its last byte, the other one gets an ordinary end, and what that one still
//!   sends is taken and thrown away, so that its own connection ends in order (closing a socket with unread
//!   bytes would reset it, and a reset overtakes what was delivered);
//! - nothing is held for a direction in which nothing moves.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::state::sessions::{End, Traffic};

/// Bytes moved by one read, at most.
const CHUNK: usize = 64 * 1024;

thread_local! {
    /// The buffer of a worker: a direction owns only what the other side could not take yet.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Forwards until both directions have ended; says whether a peer was reset. Cancelling it leaves the sockets
/// as they are.
pub async fn forward(first: &TcpStream, second: &TcpStream, traffic: &Traffic) -> End {
    let (there, back) = tokio::join!(carry(first, second, traffic), carry(second, first, traffic));
    if there == Direction::Reset || back == Direction::Reset { End::Reset } else { End::Closed }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// The sender finished, and everything is delivered.
    Finished,
    /// One of the two sockets failed.
    Reset,
}

enum Step {
    /// Nothing to read at the moment.
    Wait,
    /// All that was read has been written.
    Moved,
    /// The receiver took only a part.
    Rest(Vec<u8>),
    /// The sender has finished.
    End,
    /// The sender's connection is gone.
    SenderGone,
    /// The receiver's connection is gone.
    ReceiverGone,
}

async fn carry(from: &TcpStream, to: &TcpStream, traffic: &Traffic) -> Direction {
    let mut delivering = true;
    let mut end = Direction::Finished;
    loop {
        // Neither reading nor writing below takes from the budget of the task; without this, a fast direction
        // would keep its worker, and the other direction, waiting.
        tokio::task::consume_budget().await;
        let step = match from.readable().await {
            Ok(()) => step(from, delivering.then_some(to), traffic),
            Err(_) => Step::SenderGone,
        };
        match step {
            Step::Wait | Step::Moved => {}
            Step::Rest(rest) => {
                if deliver(to, &rest, traffic).await.is_err() {
                    (delivering, end) = (false, Direction::Reset);
                }
            }
            Step::ReceiverGone => (delivering, end) = (false, Direction::Reset),
            Step::End => break,
            Step::SenderGone => {
                end = Direction::Reset;
                break;
            }
        }
    }
    // The receiver may be gone already; then there is nobody to tell.
    let _ = SockRef::from(to).shutdown(Shutdown::Write);
    end
}

/// Reads once and writes once, without waiting. Without a receiver, what is read is thrown away.
fn step(from: &TcpStream, to: Option<&TcpStream>, traffic: &Traffic) -> Step {
    SCRATCH.with_borrow_mut(|scratch| {
        let read = match from.try_read(scratch) {
            Ok(0) => return Step::End,
            Ok(read) => &scratch[..read],
            Err(error) if is_transient(&error) => return Step::Wait,
            Err(_) => return Step::SenderGone,
        };
        let Some(to) = to else {
            return Step::Moved;
        };
        let written = match to.try_write(read) {
            Ok(written) => written,
            Err(error) if is_transient(&error) => 0,
            Err(_) => return Step::ReceiverGone,
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

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
