//! Moves bytes between two sockets (section 6 of the protocol notes).
//!
//! The rules, whatever way the bytes are moved:
//! - what was received from a peer reaches the other one before that one sees the end;
//! - an end of one direction ends that direction only: a reply still under way arrives;
//! - a peer that was reset is read to its last byte, the other one gets an ordinary end, and what that one still
//!   sends is read and discarded for a while, so that its own connection ends in order;
//! - what the relay or its system fails at is never counted as a peer's doing;
//! - nothing is held for a direction in which nothing moves.

mod direction;
mod discard;
pub mod failure;
mod half_closed;
pub mod metrics;
#[cfg_attr(not(target_os = "linux"), path = "no_pipe.rs")]
pub mod pipe;
mod readiness;
mod rest;
mod socket;
pub mod throttle;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::deadline::timeout_at;
use crate::state::sessions::{End, Traffic};
use crate::tcp_info;

use direction::{Direction, Progress, Work};
use discard::Discard;
use failure::Ending;
use half_closed::HalfClosed;
use pipe::Pipes;
use throttle::{Account, Throttle};

pub use direction::{BUDGET, Method};
pub use discard::{LINGER, QUIET, RATE as DISCARD_RATE};
pub use socket::Sockets;

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

/// Both directions of a session: the first is from the first socket to the second. Whenever it is not being polled, it
/// can be taken apart, and nothing is lost when another one goes on with the same sockets.
#[derive(Debug, Default)]
pub struct Forward {
    directions: [Direction; 2],
    /// Only where bandwidth is limited.
    account: Option<Box<Account>>,
    /// Only while one peer has finished sending and the other has not.
    half_closed: Option<Box<HalfClosed>>,
}

/// Everything is handed to the kernel; perhaps one of the two is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a survivor that is closed at once may lose what it has not read yet"]
pub struct Over {
    /// Why forwarding ended: closed, reset, or an error of the relay's own.
    pub end: End,
    /// The error number of the system call that failed, where the end is an error.
    pub error: Option<i32>,
    /// Which of the two may still send what nobody takes.
    survivor: Option<usize>,
}

impl Forward {
    /// Goes on with what was taken from each socket elsewhere.
    pub fn with(in_flight: &[Vec<u8>; 2]) -> Self {
        let directions = in_flight.each_ref().map(|bytes| Direction::with(bytes));
        Self { directions, ..Self::default() }
    }

    /// What was taken from each socket and has not been given to the other.
    ///
    /// # Errors
    /// When a pipe does not give out what is in it, which the system does not do.
    pub fn into_in_flight(self) -> io::Result<[Vec<u8>; 2]> {
        let [there, back] = self.directions.map(Direction::into_in_flight);
        Ok([there?, back?])
    }

    /// Lets go of the sockets, which are about to leave their thread.
    pub fn release_sockets(&mut self) {
        if let Some(watch) = &mut self.half_closed {
            watch.release_sockets();
        }
    }

    /// Whether bytes could be moved at this moment, whatever the runtime has heard of the sockets so far.
    pub fn can_move(&self, sockets: &Sockets) -> bool {
        let can_move = |number: usize| {
            self.directions[number].can_move(&sockets[number], &sockets[1 - number])
        };
        can_move(0) || can_move(1)
    }

    /// Moves up to a budget of bytes each way at `now`, and wakes the task again where there may be more. Ready when nothing more can
    /// be delivered.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        sockets: &Arc<Sockets>,
        traffic: &Traffic,
        now: Instant,
        forwarding: &Forwarding,
    ) -> Poll<Over> {
        let over = self.poll_both(context, sockets, traffic, now, forwarding);
        if over.is_pending() && self.poll_half_closed(context, sockets, traffic, now).is_ready() {
            context.waker().wake_by_ref();
        }
        over
    }

    fn poll_both(
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

    /// Watches the peer that has finished sending and may still receive. Ready when its connection is found to be over,
    /// which the direction towards it then knows.
    fn poll_half_closed(
        &mut self,
        context: &mut Context<'_>,
        sockets: &Arc<Sockets>,
        traffic: &Traffic,
        now: Instant,
    ) -> Poll<()> {
        let [there, back] = self.directions.each_ref().map(Direction::progress);
        let finished = match (there, back) {
            (Progress::Finished, Progress::Moving) => 0,
            (Progress::Moving, Progress::Finished) => 1,
            _ => {
                self.half_closed = None;
                return Poll::Pending;
            }
        };
        let watch = self.half_closed.get_or_insert_with(|| Box::new(HalfClosed::new(traffic, now)));
        let ending = ready!(watch.poll(context, sockets, finished, traffic));
        // A partner that still sends has to be given the whole time from now on.
        let partner = &sockets[1 - finished];
        let silent_since = watch.silent_since(traffic).filter(|_| !readiness::has_unread(partner));
        let since = silent_since.unwrap_or(now);
        self.half_closed = None;
        self.directions[1 - finished].receiver_lost(ending, &sockets[finished], since);
        Poll::Ready(())
    }

    /// Discards what a peer sends until it has ended, or has been silent for long enough with everything delivered.
    async fn discard(&mut self, from: &TcpStream, mut discard: Box<Discard>, throttle: &Throttle) {
        let mut quiet = discard.last_heard() + QUIET;
        loop {
            let ended =
                poll_fn(|context| self.poll_discarding(context, from, &mut discard, throttle));
            if timeout_at(quiet, ended).await.is_ok() {
                return;
            }
            let now = Instant::now();
            let is_silent = discard.last_heard() + QUIET <= now;
            if is_silent && tcp_info::read(from).is_some_and(|info| info.is_delivered()) {
                return;
            }
            quiet = if is_silent { now } else { discard.last_heard() } + QUIET;
        }
    }

    /// Discards what a peer sends, within the limits on bandwidth. Ready when it has ended.
    fn poll_discarding(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
        discard: &mut Discard,
        throttle: &Throttle,
    ) -> Poll<()> {
        let now = Instant::now();
        let Some(limits) = throttle.limits() else {
            return discard.poll(context, from, &Cell::new(usize::MAX), now);
        };
        let account = self.account.get_or_insert_default();
        let grant = throttle.grant(account, limits, now);
        let allowance = Cell::new(grant.bytes);
        let polled = discard.poll(context, from, &allowance, now);
        throttle.take(account, limits, grant.bytes - allowance.get());
        if polled.is_pending()
            && allowance.get() == 0
            && account.poll_more(context, grant).is_ready()
        {
            context.waker().wake_by_ref();
        }
        polled
    }
}

/// Whether a session is over whose directions are like this.
fn over([there, back]: [Progress; 2]) -> Poll<Over> {
    use Progress::{Discarded, Discarding, Finished, Moving, SenderGone};

    // Which socket may still send something: it is told of the end, and what it sends is discarded.
    let survivor = match (there, back) {
        (Moving, SenderGone(_)) | (Discarding(_), Finished | SenderGone(_)) => Some(0),
        (SenderGone(_), Moving) | (Finished | SenderGone(_), Discarding(_)) => Some(1),
        // Both receivers are gone, and so is everybody.
        (Discarding(_) | Discarded(_), Discarding(_) | Discarded(_)) => None,
        (Moving, _) | (_, Moving) => return Poll::Pending,
        (Finished | SenderGone(_) | Discarded(_), Finished | SenderGone(_) | Discarded(_)) => None,
    };
    let ending = |direction| match direction {
        SenderGone(ending) | Discarding(ending) | Discarded(ending) => ending,
        Moving | Finished => Ending::Closed,
    };
    let (end, error) = match ending(there).max(ending(back)) {
        Ending::Closed => (End::Closed, None),
        Ending::Reset => (End::Reset, None),
        Ending::Failed(errno) => (End::Error, Some(errno)),
    };
    Poll::Ready(Over { end, error, survivor })
}

/// Gives the survivor, who has been sent the end, time to read what was delivered and to close, whatever it sends;
/// and the kernel time to bring both what it still holds. A program may end with its last session, and where it is
/// the first one of a container, the network and what is in it end as well. What the survivor sends is discarded within
/// [`LINGER`] of its partner's end, or for [`QUIET`] of silence; all of it is over within [`LINGER`] from now.
pub async fn linger(
    sockets: Arc<Sockets>,
    over: Over,
    mut forward: Forward,
    throttle: Arc<Throttle>,
) {
    let now = Instant::now();
    let end = now + LINGER;
    if let Some(number) = over.survivor.filter(|number| *number < sockets.len()) {
        let discard = std::mem::take(&mut forward.directions[number]).into_discard(now);
        let until = discard.until().min(end);
        // Who did not end in time: then it is closed for it.
        let _ = timeout_at(until, forward.discard(&sockets[number], discard, &throttle)).await;
    }
    let _ = timeout_at(end, async {
        for stream in &*sockets {
            delivered(stream).await;
        }
    })
    .await;
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

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(unix)]
    use std::io::Write;

    #[cfg(unix)]
    use tokio::net::TcpListener;

    /// The relay's end of a connection, and the peer's, which blocks.
    #[cfg(unix)]
    async fn connection() -> (TcpStream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().await.unwrap().0, peer)
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn bytes_that_wait_are_seen_before_the_runtime_hears_of_them() {
        let ((first, mut peer), (second, partner)) = (connection().await, connection().await);
        let (sockets, forward) = ([first, second], Forward::default());
        assert!(!forward.can_move(&sockets));
        peer.write_all(b"x").unwrap();
        // The runtime has had no chance to look since.
        assert!(forward.can_move(&sockets));
        // Where the receiver takes nothing, nothing can be moved.
        while sockets[1].try_write(&[0; 64 * 1024]).is_ok() {}
        assert!(!forward.can_move(&sockets));
        drop(partner);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn an_end_without_bytes_is_nothing_that_waits() {
        let ((first, peer), (second, _partner)) = (connection().await, connection().await);
        let sockets = [first, second];
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        sockets[0].readable().await.unwrap();
        assert!(!Forward::default().can_move(&sockets));
    }

    #[test]
    fn the_worst_of_two_endings_is_why_a_session_ended() {
        use Progress::{Discarded, Discarding, Finished, SenderGone};

        let end = |there, back| match over([there, back]) {
            Poll::Ready(over) => (over.end, over.error),
            Poll::Pending => panic!("it is over"),
        };
        let (closed, reset, failed) = (Ending::Closed, Ending::Reset, Ending::Failed(12));
        assert_eq!(end(Finished, Finished), (End::Closed, None));
        assert_eq!(end(Finished, Discarding(closed)), (End::Closed, None));
        assert_eq!(end(SenderGone(reset), Discarded(closed)), (End::Reset, None));
        assert_eq!(end(SenderGone(reset), Discarding(failed)), (End::Error, Some(12)));
        assert_eq!(end(SenderGone(failed), Finished), (End::Error, Some(12)));
    }
}
