//! Moves bytes between two sockets (section 6 of the protocol notes).
//!
//! The rules, whatever way the bytes are moved:
//! - what was received from a peer reaches the other one before that one sees the end;
//! - an end of one direction ends that direction only: a reply still under way arrives;
//! - a peer that was reset is read to its last byte, the other one gets an ordinary end, and what that one still
//!   sends is taken and thrown away for a while, so that its own connection ends in order (closing a socket with
//!   unread bytes would reset it, and a reset overtakes what was delivered);
//! - nothing is held for a direction in which nothing moves.

mod direction;
pub mod metrics;
#[cfg_attr(not(target_os = "linux"), path = "no_pipe.rs")]
pub mod pipe;

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::state::sessions::{End, Traffic};
use crate::tcp_info;

use direction::{Ended, Work, is_transient, with_scratch};
use pipe::Pipes;

pub use direction::{BUDGET, Direction, Method};

/// How long a peer whose partner is gone may take to read what was delivered and to close, once it has been sent
/// the end. Long enough for some megabytes on a slow line, short enough not to hold the place of a session.
pub const LINGER: Duration = Duration::from_secs(60);

/// How soon, and later how often, it is looked whether everything is delivered: less than the time to most peers and
/// back, and not a load for those who take long.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// How bytes are moved; shared by all sessions.
#[derive(Debug, Clone)]
pub struct Forwarding {
    /// Which way.
    pub method: Method,
    /// Those that there are.
    pub pipes: Pipes,
}

/// Forwards between two sockets until nothing more can be delivered. Cancelling it leaves the sockets and the
/// directions as they are: nothing is lost when it is called with them again.
pub async fn forward<'a>(
    sockets: &'a [TcpStream; 2],
    directions: &mut [Direction; 2],
    traffic: &Traffic,
    forwarding: &Forwarding,
) -> Closing<'a> {
    let [first, second] = sockets;
    let [there, back] = directions;
    let work = Work { method: forwarding.method, pipes: &forwarding.pipes, traffic };
    let mut there = pin!(poll_fn(|context| there.poll(context, first, second, &work)));
    let mut back = pin!(poll_fn(|context| back.poll(context, second, first, &work)));
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

/// Reads and forgets until the sender ends.
async fn throw_away(from: &TcpStream) {
    loop {
        tokio::task::consume_budget().await;
        if from.readable().await.is_err() {
            return;
        }
        match with_scratch(|scratch| from.try_read(scratch)) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if is_transient(&error) => {}
            Err(_) => return,
        }
    }
}
