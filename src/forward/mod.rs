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
mod rest;
pub mod throttle;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::state::sessions::{End, Traffic};
use crate::tcp_info;

use direction::{Direction, Progress, Work, poll_discarding};
use pipe::Pipes;
use throttle::{Account, Throttle};

pub use direction::{BUDGET, Method};

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
    /// Bytes that a direction moves each time its task runs, at most; then it is the others' turn.
    pub budget: usize,
    /// Limits on bandwidth.
    pub throttle: Arc<Throttle>,
}

/// The two connections of a session.
pub type Sockets = [TcpStream; 2];

/// Both directions of a session: the first is from the first socket to the second. Whenever it is not being polled, it
/// can be taken apart, and nothing is lost when another one goes on with the same sockets.
#[derive(Debug, Default)]
pub struct Forward {
    directions: [Direction; 2],
    /// Only where bandwidth is limited.
    account: Option<Box<Account>>,
}

/// Everything is handed to the kernel; perhaps one of the two is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a survivor that is closed at once may lose what it has not read yet"]
pub struct Over {
    /// Why forwarding ended: closed, or reset.
    pub end: End,
    /// Which of the two may still send what nobody takes.
    survivor: Option<usize>,
}

impl Forward {
    /// Goes on with what was taken from each socket elsewhere.
    pub fn with(in_flight: &[Vec<u8>; 2]) -> Self {
        let directions = in_flight.each_ref().map(|bytes| Direction::with(bytes));
        Self { directions, account: None }
    }

    /// What was taken from each socket and has not been given to the other.
    ///
    /// # Errors
    /// When a pipe does not give out what is in it, which the system does not do.
    pub fn into_in_flight(self) -> io::Result<[Vec<u8>; 2]> {
        let [there, back] = self.directions.map(Direction::into_in_flight);
        Ok([there?, back?])
    }

    /// Moves up to a budget of bytes each way at `now`, and wakes the task again where there may be more. Ready when nothing more can
    /// be delivered.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        sockets: &Sockets,
        traffic: &Traffic,
        now: Instant,
        forwarding: &Forwarding,
    ) -> Poll<Over> {
        let Forwarding { method, pipes, budget, throttle } = forwarding;
        let allowance = Cell::new(usize::MAX);
        let work =
            Work { method: *method, pipes, traffic, now, budget: *budget, allowance: &allowance };
        let Some(limits) = throttle.limits() else {
            self.account = None;
            let progress =
                [0, 1].map(|number| self.poll_direction(number, context, sockets, &work));
            return over(progress);
        };
        let mut account = self.account.take().unwrap_or_default();
        let grant = throttle.grant(&mut account, limits, now);
        // Neither direction takes everything away from the other: half is for the first, the rest for the second.
        account.turn = !account.turn;
        let first = usize::from(account.turn);
        let half = grant.bytes.div_ceil(2);
        let mut progress = [Progress::Moving; 2];
        allowance.set(half);
        progress[first] = self.poll_direction(first, context, sockets, &work);
        let first_wants_more = allowance.get() == 0;
        allowance.set(grant.bytes - half + allowance.get());
        progress[1 - first] = self.poll_direction(1 - first, context, sockets, &work);
        let left = allowance.get();
        throttle.take(&mut account, limits, grant.bytes - left);
        let over = over(progress);
        if over.is_pending() {
            let wakes = if left == 0 {
                account.poll_more(context, grant).is_ready()
            } else {
                // The second left something that the first may want.
                first_wants_more
            };
            if wakes {
                context.waker().wake_by_ref();
            }
        }
        self.account = Some(account);
        over
    }

    fn poll_direction(
        &mut self,
        number: usize,
        context: &mut Context<'_>,
        sockets: &Sockets,
        work: &Work<'_>,
    ) -> Progress {
        let [from, to] = [&sockets[number], &sockets[1 - number]];
        self.directions[number].poll(context, from, to, work)
    }
}

/// Whether a session is over whose directions are like this.
fn over([there, back]: [Progress; 2]) -> Poll<Over> {
    use Progress::{Discarded, Discarding, Finished, Moving, SenderGone};

    let is_reset = |direction| {
        matches!(direction, SenderGone | Discarding { reset: true } | Discarded { reset: true })
    };
    // Which socket may still send something: it is told of the end, and what it sends is thrown away.
    let survivor = match (there, back) {
        (Moving, SenderGone) | (Discarding { .. }, Finished | SenderGone) => Some(0),
        (SenderGone, Moving) | (Finished | SenderGone, Discarding { .. }) => Some(1),
        // Both receivers are gone, and so is everybody.
        (Discarding { .. } | Discarded { .. }, Discarding { .. } | Discarded { .. }) => None,
        (Moving, _) | (_, Moving) => return Poll::Pending,
        (Finished | SenderGone | Discarded { .. }, Finished | SenderGone | Discarded { .. }) => {
            None
        }
    };
    let end = if is_reset(there) || is_reset(back) { End::Reset } else { End::Closed };
    Poll::Ready(Over { end, survivor })
}

/// Gives the survivor, who has been sent the end, time to read what was delivered and to close, whatever it sends;
/// and the kernel time to bring both what it still holds. A program may end with its last session, and where it is
/// the first one of a container, the network and what is in it end as well. At most [`LINGER`] for all of it.
pub async fn linger(sockets: &Sockets, over: Over) {
    let all = async {
        if let Some(survivor) = over.survivor.and_then(|number| sockets.get(number)) {
            throw_away(survivor).await;
        }
        for stream in sockets {
            delivered(stream).await;
        }
    };
    // Who did not take everything in time: then it is closed for it.
    let _ = timeout(LINGER, all).await;
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

/// Reads and forgets until the sender ends.
async fn throw_away(from: &TcpStream) {
    poll_fn(|context| poll_discarding(context, from)).await;
}
