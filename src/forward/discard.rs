//! What a peer still sends after its partner has gone: it is read and discarded, so that the peer's own connection ends in
//! order. Closing a socket with unread bytes would reset it, and a reset overtakes what was delivered before.

use std::cell::Cell;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::socket::{self, is_transient, with_scratch};
use super::throttle::Account;

/// How long a peer whose partner is gone may take to read what was delivered and to close, once it has been sent
/// the end. Long enough for some megabytes on a slow line, short enough not to hold the place of a session.
pub const LINGER: Duration = Duration::from_secs(60);

/// How long it may take of that if it is silent and its system has everything: it had time to notice, and to close.
pub const QUIET: Duration = Duration::from_secs(10);

/// Most bytes a second that are discarded of one peer. What was under way when its partner went, some megabytes in buffers,
/// is gone within seconds; a peer that goes on sending for the whole of [`LINGER`] costs a few thousandths of a core.
pub const RATE: u64 = 4 * 1024 * 1024;

/// The discarding of what one peer sends.
#[derive(Debug)]
pub(super) struct Discard {
    until: Instant,
    last_heard: Instant,
    pace: Account,
}

impl Discard {
    /// Of a peer whose partner is gone, and that has known of it, since `since`.
    pub(super) fn since(since: Instant) -> Self {
        Self { until: since + LINGER, last_heard: since, pace: Account::default() }
    }

    /// When the peer last sent something, or was told of the end.
    pub(super) fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// When it stops at the latest.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Reads and discards what may be read at `now`: no more than `allowance`, from which it is taken away. Ready when the
    /// sender has ended or its time is over; what waits at that moment is read before. Whoever bounds the allowance wakes
    /// the task when there is more.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
        allowance: &Cell<usize>,
        now: Instant,
    ) -> Poll<()> {
        let grant = self.pace.grant(RATE, now);
        let most = grant.bytes.min(allowance.get());
        let (left, polled) = read_up_to(context, from, most);
        if left < most {
            self.last_heard = now;
        }
        self.pace.take(most - left);
        allowance.set(allowance.get() - (most - left));
        if now >= self.until {
            return Poll::Ready(());
        }
        let is_paced = polled.is_pending() && left == 0 && most == grant.bytes;
        if is_paced && self.pace.poll_more(context, grant).is_ready() {
            context.waker().wake_by_ref();
        }
        polled
    }
}

/// Reads up to `most` bytes. Gives how many fewer they were, and whether the sender has ended.
fn read_up_to(context: &mut Context<'_>, from: &TcpStream, most: usize) -> (usize, Poll<()>) {
    let mut left = most;
    while left > 0 {
        match from.poll_read_ready(context) {
            Poll::Pending => return (left, Poll::Pending),
            Poll::Ready(Err(_)) => return (left, Poll::Ready(())),
            Poll::Ready(Ok(())) => {}
        }
        let read = with_scratch(|scratch| {
            let room = scratch.len().min(left);
            socket::read(from, &mut scratch[..room])
        });
        match read {
            Ok(0) => return (left, Poll::Ready(())),
            Ok(count) => left -= count,
            Err(error) if is_transient(&error) => {}
            Err(_) => return (left, Poll::Ready(())),
        }
    }
    (0, Poll::Pending)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    use tokio::net::TcpListener;

    /// The relay's end of a connection, and a peer that sends without end.
    async fn flood() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut peer = std::net::TcpStream::connect(address).unwrap();
            while std::io::Write::write_all(&mut peer, &[0; 64 * 1024]).is_ok() {}
        });
        listener.accept().await.unwrap().0
    }

    /// Bytes that are taken of an allowance in so many turns at this time.
    async fn take(
        discard: &mut Discard,
        from: &TcpStream,
        allowance: usize,
        now: Instant,
    ) -> usize {
        let left = Cell::new(allowance);
        for _ in 0..20 {
            from.readable().await.unwrap();
            let polled = poll_fn(|context| Poll::Ready(discard.poll(context, from, &left, now)));
            assert!(polled.await.is_pending());
        }
        allowance - left.get()
    }

    #[tokio::test]
    async fn discarding_has_a_rate_an_allowance_and_an_end() {
        let from = flood().await;
        let begin = Instant::now();
        let mut discard = Discard::since(begin);
        let burst = take(&mut discard, &from, usize::MAX, begin).await;
        assert!(burst > 0 && burst as u64 <= RATE / 20, "{burst} bytes at once");
        let second = begin + Duration::from_secs(1);
        let little = take(&mut discard, &from, 100, second).await;
        assert_eq!(little, 100, "no more than the allowance");
        let more = take(&mut discard, &from, usize::MAX, second).await;
        assert!(more > 0 && more as u64 <= RATE / 20, "{more} bytes at once");
        // At the end, what waits is read, and then no more.
        let context = &mut Context::from_waker(std::task::Waker::noop());
        let all = Cell::new(usize::MAX);
        from.readable().await.unwrap();
        assert!(discard.poll(context, &from, &all, begin + LINGER).is_ready());
        assert!(all.get() < usize::MAX);
    }
}
