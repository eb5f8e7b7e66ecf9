//! Discards what a peer still sends after its partner has gone, so that the peer's connection closes gracefully. Closing a
//! socket with unread bytes would reset the connection, and a reset overtakes data that was sent before it.

use std::cell::Cell;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::socket::{self, is_transient, with_scratch};
use super::throttle::BandwidthAccount;

/// How long a peer whose partner is gone may take to read what was delivered and to close, once it has been sent a FIN. Long
/// enough for some megabytes on a slow line, short enough not to occupy a session for long.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a peer may take that sends nothing and whose kernel has acknowledged everything: enough to notice the FIN and to
/// close.
pub(super) const QUIET_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum rate at which the bytes of one peer are discarded, in bytes a second. What was in flight when its partner went
/// away, some megabytes in buffers, is discarded within seconds; a peer that keeps sending for the whole of [`LINGER_TIMEOUT`]
/// costs a few thousandths of a core.
const DISCARD_RATE: u64 = 4 * 1024 * 1024;

/// Discards what one peer sends.
#[derive(Debug)]
pub(super) struct Discard {
    deadline: Instant,
    last_heard: Instant,
    account: BandwidthAccount,
}

impl Discard {
    /// Starts discarding for a peer that was sent a FIN at `since`.
    pub(super) fn new(since: Instant) -> Self {
        let account = BandwidthAccount::default();
        Self { deadline: since + LINGER_TIMEOUT, last_heard: since, account }
    }

    /// Returns when the peer last sent something, or when it was sent the FIN.
    pub(super) fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// Returns when discarding ends at the latest.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads and discards what may be read at `now`, at most `allowance` bytes, and reduces the allowance by as many. Ready
    /// when the sender has finished or its time is over; what has been received by then is read first. The caller, which
    /// limits the allowance, wakes the task when there is more.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &TcpStream,
        allowance: &Cell<usize>,
        now: Instant,
    ) -> Poll<()> {
        let grant = self.account.grant(DISCARD_RATE, now);
        let max = grant.bytes.min(allowance.get());
        let (left, end) = read_up_to(context, from, max);
        if left < max {
            self.last_heard = now;
        }
        self.account.subtract(max - left);
        allowance.set(allowance.get() - (max - left));
        if now >= self.deadline {
            return Poll::Ready(());
        }
        let is_rate_limited = end.is_pending() && left == 0 && max == grant.bytes;
        if is_rate_limited && self.account.poll_more(context, grant).is_ready() {
            context.waker().wake_by_ref();
        }
        end
    }
}

/// Reads up to `max` bytes. Returns how many were not read, and is ready if the sender has finished.
fn read_up_to(context: &mut Context<'_>, from: &TcpStream, max: usize) -> (usize, Poll<()>) {
    let mut left = max;
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

    /// Returns the relay's end of a connection whose peer sends endlessly.
    async fn flood() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut peer = std::net::TcpStream::connect(address).unwrap();
            while std::io::Write::write_all(&mut peer, &[0; 64 * 1024]).is_ok() {}
        });
        listener.accept().await.unwrap().0
    }

    /// Polls 20 times at `now`. Returns how many bytes were discarded.
    async fn take(
        discard: &mut Discard,
        from: &TcpStream,
        allowance: usize,
        now: Instant,
    ) -> usize {
        let left = Cell::new(allowance);
        for _ in 0..20 {
            from.readable().await.unwrap();
            let end = poll_fn(|context| Poll::Ready(discard.poll(context, from, &left, now)));
            assert!(end.await.is_pending());
        }
        allowance - left.get()
    }

    #[tokio::test]
    async fn discarding_is_limited_by_rate_allowance_and_deadline() {
        let from = flood().await;
        let begin = Instant::now();
        let mut discard = Discard::new(begin);
        let burst = take(&mut discard, &from, usize::MAX, begin).await;
        assert!(burst > 0 && burst as u64 <= DISCARD_RATE / 20, "{burst} bytes in one burst");
        let second = begin + Duration::from_secs(1);
        let little = take(&mut discard, &from, 100, second).await;
        assert_eq!(little, 100, "no more than the allowance");
        let more = take(&mut discard, &from, usize::MAX, second).await;
        assert!(more > 0 && more as u64 <= DISCARD_RATE / 20, "{more} bytes in one burst");
        // At the deadline, what has been received is read, and then no more.
        let context = &mut Context::from_waker(std::task::Waker::noop());
        let all = Cell::new(usize::MAX);
        from.readable().await.unwrap();
        assert!(discard.poll(context, &from, &all, begin + LINGER_TIMEOUT).is_ready());
        assert!(all.get() < usize::MAX);
    }
}
