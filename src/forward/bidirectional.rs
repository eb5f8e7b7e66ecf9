//! Both directions of a session: forwarding with limited bandwidth, half-closed connections, and the end.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::state::sessions::{EndCause, PeerOrder, Traffic};

use super::direction::{Direction, Progress, TransferContext, TransferMethod};
use super::discard::Discard;
use super::failure::PeerFailure;
use super::half_closed::HalfClosed;
use super::pipe::Pipes;
use super::readiness;
use super::socket::Sockets;
use super::throttle::{BandwidthAccount, GrantUse, Throttle};

/// The method, the pipes and the limits with which bytes are moved. All sessions share them.
#[derive(Debug, Clone)]
pub struct ForwardResources {
    /// Whether bytes are copied or moved through pipes.
    pub method: TransferMethod,
    /// The pipes that sessions share.
    pub pipes: Pipes,
    /// The maximum number of bytes that a direction moves each time its task runs, before other tasks have their turn.
    pub budget: usize,
    /// The limits on bandwidth.
    pub throttle: Arc<Throttle>,
}

/// Both directions of a session; the first is from the first socket to the second. Between two polls, the session can be
/// detached: nothing is lost if another `Forward` resumes with the same sockets and the bytes in flight.
#[derive(Debug, Default)]
pub struct Forward {
    directions: [Direction; 2],
    /// Exists only if bandwidth is limited.
    account: Option<Box<BandwidthAccount>>,
    /// Exists only while one peer has finished sending and the other has not.
    half_closed: Option<Box<HalfClosed>>,
    /// The peer whose connection ended a direction before the other's did.
    leaver: Option<PeerOrder>,
}

/// The end of forwarding: everything is handed to the kernel, and one of the peers may still be connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a survivor that is closed immediately may lose what it has not read yet"]
pub struct ForwardEnd {
    /// What ended forwarding: a peer that closed or was reset, or an error of the relay itself.
    pub cause: EndCause,
    /// The error number of the failed system call, if the end is an error.
    pub error: Option<i32>,
    /// The index of the socket whose peer may still be sending, though nobody receives it.
    pub(super) survivor: Option<usize>,
}

impl Forward {
    /// Continues with the bytes that were read from each socket on another thread or in another process.
    pub fn resume(in_flight: &[Vec<u8>; 2]) -> Self {
        let directions = in_flight.each_ref().map(|bytes| Direction::resume(bytes));
        Self { directions, ..Self::default() }
    }

    /// Returns the bytes that were read from each socket and not written to the other.
    ///
    /// # Errors
    /// The bytes cannot be read out of a pipe, which is not known to happen.
    pub fn into_in_flight(self) -> io::Result<[Vec<u8>; 2]> {
        let [first, second] = self.directions.map(Direction::into_in_flight);
        Ok([first?, second?])
    }

    /// Releases the sockets, which are about to leave their thread.
    pub fn release_sockets(&mut self) {
        if let Some(watch) = &mut self.half_closed {
            watch.release_sockets();
        }
    }

    /// Whether bytes could be moved at this moment, according to the kernel rather than the runtime.
    pub fn can_move(&self, sockets: &Sockets) -> bool {
        let can_move = |number: usize| {
            self.directions[number].can_move(&sockets[number], &sockets[1 - number])
        };
        can_move(0) || can_move(1)
    }

    /// Moves up to a budget of bytes in each direction at `now`, and wakes the task again if there may be more. Ready when
    /// nothing more can be delivered.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        sockets: &Arc<Sockets>,
        traffic: &Traffic,
        now: Instant,
        resources: &ForwardResources,
    ) -> Poll<ForwardEnd> {
        let end = self.poll_both(context, sockets, traffic, now, resources);
        if end.is_pending() && self.poll_half_closed(context, sockets, traffic, now).is_ready() {
            context.waker().wake_by_ref();
        }
        end
    }

    fn poll_both(
        &mut self,
        context: &mut Context<'_>,
        sockets: &Sockets,
        traffic: &Traffic,
        now: Instant,
        resources: &ForwardResources,
    ) -> Poll<ForwardEnd> {
        let ForwardResources { method, pipes, budget, throttle } = resources;
        let allowance = Cell::new(usize::MAX);
        let transfer = TransferContext {
            method: *method,
            pipes,
            traffic,
            now,
            budget: *budget,
            allowance: &allowance,
            from: PeerOrder::First,
        };
        let Self { directions, account, leaver, .. } = self;
        let mut poll_direction = |number: usize, context: &mut Context<'_>| {
            let [from, to] = [&sockets[number], &sockets[1 - number]];
            let transfer = TransferContext { from: PeerOrder::of_index(number), ..transfer };
            directions[number].poll(context, from, to, &transfer)
        };
        let Some(limits) = throttle.limits() else {
            *account = None;
            return forward_end(leaver, [0, 1].map(|number| poll_direction(number, context)));
        };
        let account = account.get_or_insert_default();
        // Neither direction starves the other: the one that goes first gets half, the other the rest, and they take turns.
        account.is_second_first = !account.is_second_first;
        let first = usize::from(account.is_second_first);
        throttle.poll_granted(account, limits, now, context, |bytes, context| {
            let half = bytes.div_ceil(2);
            let mut progress = [Progress::Moving; 2];
            allowance.set(half);
            progress[first] = poll_direction(first, context);
            let can_use_rest = allowance.get() == 0;
            allowance.set(bytes - half + allowance.get());
            progress[1 - first] = poll_direction(1 - first, context);
            let unused = allowance.get();
            // The second direction may have left some of its bytes, and the first may want them.
            (forward_end(leaver, progress), GrantUse { unused, can_use_rest })
        })
    }

    /// Watches a peer that has finished sending and may still receive. Ready when its connection was found to be over and the
    /// direction towards it was notified.
    fn poll_half_closed(
        &mut self,
        context: &mut Context<'_>,
        sockets: &Arc<Sockets>,
        traffic: &Traffic,
        now: Instant,
    ) -> Poll<()> {
        let [first, second] = self.directions.each_ref().map(Direction::progress);
        let finished = match (first, second) {
            (Progress::Finished, Progress::Moving) => 0,
            (Progress::Moving, Progress::Finished) => 1,
            _ => {
                self.half_closed = None;
                return Poll::Pending;
            }
        };
        let watch = self.half_closed.get_or_insert_with(|| Box::new(HalfClosed::new(traffic, now)));
        let failure = ready!(watch.poll(context, sockets, finished, traffic));
        // A partner that still sends may linger for the whole time, counted from now.
        let partner = &sockets[1 - finished];
        let silent_since = watch.silent_since(traffic).filter(|_| !readiness::has_unread(partner));
        let since = silent_since.unwrap_or(now);
        self.half_closed = None;
        self.directions[1 - finished].note_lost_receiver(failure, &sockets[finished], since);
        Poll::Ready(())
    }

    /// Takes the [`Discard`] of the survivor with this index, or starts one at `now`.
    pub(super) fn take_discard(&mut self, index: usize, now: Instant) -> Box<Discard> {
        std::mem::take(&mut self.directions[index]).into_discard(now)
    }

    /// Discards what a peer sends, within the limits on bandwidth. Ready when the peer has finished or its time is over.
    pub(super) fn poll_discarding(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
        discard: &mut Discard,
        throttle: &Throttle,
    ) -> Poll<()> {
        let now = Instant::now();
        let allowance = Cell::new(usize::MAX);
        let Some(limits) = throttle.limits() else {
            return discard.poll(context, from, &allowance, now);
        };
        let account = self.account.get_or_insert_default();
        throttle.poll_granted(account, limits, now, context, |bytes, context| {
            allowance.set(bytes);
            let end = discard.poll(context, from, &allowance, now);
            (end, GrantUse { unused: allowance.get(), can_use_rest: false })
        })
    }
}

/// Determines from the progress of both directions whether the session is over, and why. `leaver` becomes the peer whose
/// connection was the first to end a direction.
fn forward_end(leaver: &mut Option<PeerOrder>, [first, second]: [Progress; 2]) -> Poll<ForwardEnd> {
    use Progress::{Discarded, Discarding, Finished, Moving, SenderFailed};

    let actors = [find_actor(0, first), find_actor(1, second)];
    *leaver = leaver.or(actors[0]).or(actors[1]);
    // The survivor may still send something: it has been sent a FIN, and what it sends is discarded.
    let survivor = match (first, second) {
        (Moving, SenderFailed(_)) | (Discarding(_), Finished | SenderFailed(_)) => Some(0),
        (SenderFailed(_), Moving) | (Finished | SenderFailed(_), Discarding(_)) => Some(1),
        // Both receivers, and so both peers, are gone.
        (Discarding(_) | Discarded(_), Discarding(_) | Discarded(_)) => None,
        (Moving, _) | (_, Moving) => return Poll::Pending,
        (Finished | SenderFailed(_) | Discarded(_), Finished | SenderFailed(_) | Discarded(_)) => {
            None
        }
    };
    let failure = |progress| match progress {
        SenderFailed(failure) | Discarding(failure) | Discarded(failure) => failure,
        Moving | Finished => PeerFailure::Closed,
    };
    let (worst, actor) = if failure(first) >= failure(second) {
        (failure(first), actors[0])
    } else {
        (failure(second), actors[1])
    };
    let or_first = |peer: Option<PeerOrder>| peer.unwrap_or(PeerOrder::First);
    let (cause, error) = match worst {
        PeerFailure::Closed => (EndCause::Closed(or_first(*leaver)), None),
        PeerFailure::Reset => (EndCause::Reset(or_first(actor)), None),
        PeerFailure::Failed(errno) => (EndCause::Error, Some(errno)),
    };
    Poll::Ready(ForwardEnd { cause, error, survivor })
}

/// Returns the peer whose connection ended a direction; `None` while bytes may move.
fn find_actor(direction: usize, progress: Progress) -> Option<PeerOrder> {
    let index = match progress {
        Progress::Moving => return None,
        Progress::Finished | Progress::SenderFailed(_) => direction,
        Progress::Discarding(_) | Progress::Discarded(_) => 1 - direction,
    };
    Some(PeerOrder::of_index(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sessions::End;
    #[cfg(unix)]
    use std::io::Write;

    #[cfg(unix)]
    use relay_lab::sockets::connected_pair_with_blocking_peer as connected_pair;

    #[cfg(unix)]
    #[tokio::test]
    async fn received_bytes_are_seen_before_the_runtime_knows_of_them() {
        let (first, mut peer) = connected_pair().await.unwrap();
        let (second, partner) = connected_pair().await.unwrap();
        let (sockets, forward) = ([first, second], Forward::default());
        assert!(!forward.can_move(&sockets));
        peer.write_all(b"x").unwrap();
        // The kernel knows of the byte, but the runtime has not polled the socket since.
        assert!(forward.can_move(&sockets));
        // Nothing can be moved while the receiver accepts nothing.
        while sockets[1].try_write(&[0; 64 * 1024]).is_ok() {}
        assert!(!forward.can_move(&sockets));
        drop(partner);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn end_of_stream_without_bytes_cannot_be_moved() {
        let (first, peer) = connected_pair().await.unwrap();
        let (second, _partner) = connected_pair().await.unwrap();
        let sockets = [first, second];
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        sockets[0].readable().await.unwrap();
        assert!(!Forward::default().can_move(&sockets));
    }

    #[test]
    fn session_ends_for_the_more_serious_of_two_failures() {
        use Progress::{Discarded, Discarding, Finished, SenderFailed};

        let end = |first, second| match forward_end(&mut None, [first, second]) {
            Poll::Ready(end) => (end.cause.reason(), end.error),
            Poll::Pending => panic!("not over"),
        };
        let (closed, reset, failed) =
            (PeerFailure::Closed, PeerFailure::Reset, PeerFailure::Failed(12));
        assert_eq!(end(Finished, Finished), (End::Closed, None));
        assert_eq!(end(Finished, Discarding(closed)), (End::Closed, None));
        assert_eq!(end(SenderFailed(reset), Discarded(closed)), (End::Reset, None));
        assert_eq!(end(SenderFailed(reset), Discarding(failed)), (End::Error, Some(12)));
        assert_eq!(end(SenderFailed(failed), Finished), (End::Error, Some(12)));
    }

    #[test]
    fn peer_that_ended_the_session_is_the_one_that_left_first_or_was_reset() {
        use PeerOrder::{First, Second};
        use Progress::{Discarding, Finished, Moving, SenderFailed};

        let mut leaver = None;
        assert!(forward_end(&mut leaver, [Moving, Finished]).is_pending());
        let cause = |leaver: &mut Option<PeerOrder>, progress| match forward_end(leaver, progress) {
            Poll::Ready(end) => end.cause,
            Poll::Pending => panic!("not over"),
        };
        assert_eq!(cause(&mut leaver, [Finished, Finished]), EndCause::Closed(Second));
        // A write to the first peer found it gone.
        let gone = PeerFailure::Closed;
        assert_eq!(cause(&mut None, [Finished, Discarding(gone)]), EndCause::Closed(First));
        // The second finished, and the first was reset later.
        let reset = PeerFailure::Reset;
        assert_eq!(cause(&mut leaver, [SenderFailed(reset), Finished]), EndCause::Reset(First));
        assert_eq!(cause(&mut None, [Discarding(reset), Finished]), EndCause::Reset(Second));
    }
}
