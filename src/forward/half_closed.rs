//! Watches a peer that has finished sending while its partner may still send to it. Nothing is read from the peer any more,
//! and nothing is written to it while the partner is quiet: without this watch, the session would end only at its idle timeout
//! if the peer's connection were reset.
//!
//! A peer that has closed completely looks the same at first, since TCP does not say which halves were closed. This is
//! noticed as well: the peer's kernel answers a keep-alive probe with a reset once it has forgotten the connection.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::time::Instant;

use crate::state::sessions::Traffic;
use crate::tcp_info;

use super::failure::PeerFailure;
use super::socket::Sockets;

/// Watches one peer.
pub(super) struct HalfClosed {
    /// When the partner was sent a FIN.
    since: Instant,
    /// Bytes that the session had moved by then.
    bytes: u64,
    /// Completes when the connection has failed, with the error if the kernel reports one. `None` while the sockets are
    /// released.
    failure: Option<ConnectionFailure>,
}

type ConnectionFailure = Pin<Box<dyn Future<Output = Option<std::io::Error>> + Send>>;

impl fmt::Debug for HalfClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HalfClosed({:?})", self.since)
    }
}

impl HalfClosed {
    /// Starts to watch a peer that has finished at `now`.
    pub(super) fn new(traffic: &Traffic, now: Instant) -> Self {
        Self { since: now, bytes: traffic.bytes(), failure: None }
    }

    /// Releases the sockets; the next poll takes them again.
    pub(super) fn release_sockets(&mut self) {
        self.failure = None;
    }

    /// Returns when the partner was sent a FIN; `None` if bytes have moved since, because the partner may not have noticed the
    /// FIN yet.
    pub(super) fn silent_since(&self, traffic: &Traffic) -> Option<Instant> {
        (traffic.bytes() == self.bytes).then_some(self.since)
    }

    /// Ready when the connection of the peer with this index has ended, with the reason.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        sockets: &Arc<Sockets>,
        number: usize,
        traffic: &Traffic,
    ) -> Poll<PeerFailure> {
        let failure =
            self.failure.get_or_insert_with(|| Box::pin(wait_for_failure(sockets.clone(), number)));
        let error = ready!(failure.as_mut().poll(context));
        // A reset in answer to a write means that the peer had closed gracefully before. Without a write, it was unprompted.
        let is_answer = traffic.bytes() != self.bytes
            && error.is_none_or(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
        Poll::Ready(if is_answer { PeerFailure::Closed } else { PeerFailure::Reset })
    }
}

/// Returns when the connection has failed.
async fn wait_for_failure(sockets: Arc<Sockets>, number: usize) -> Option<std::io::Error> {
    let stream = sockets.get(number)?;
    if tcp_info::read(stream).is_some_and(|info| info.is_closed) {
        // If it had failed before the session was attached here, its error was taken elsewhere, and there is no event.
        return stream.take_error().ok().flatten();
    }
    let error = match stream.ready(Interest::ERROR).await {
        Ok(_) => stream.take_error().ok().flatten(),
        Err(error) => Some(error),
    };
    if error.is_none() && tcp_info::read(stream).is_some_and(|info| !info.is_closed) {
        // The event was not the end of the connection.
        return std::future::pending().await;
    }
    error
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::state::sessions::PeerOrder;
    use std::time::Duration;

    use relay_lab::sockets::connected_pair;
    use socket2::{SockRef, TcpKeepalive};
    use tokio::net::TcpStream;

    /// Makes the kernel forget a connection a second after its program has closed it.
    #[expect(unsafe_code, reason = "no safe function sets TCP_LINGER2")]
    fn forget_soon(stream: &TcpStream) {
        use std::os::fd::AsRawFd;

        let second: libc::c_int = 1;
        // SAFETY: the value is readable for the length that is given, and the descriptor is open.
        let result = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_LINGER2,
                (&raw const second).cast(),
                size_of::<libc::c_int>().try_into().unwrap(),
            )
        };
        assert_eq!(result, 0);
    }

    async fn failure(
        watch: &mut HalfClosed,
        sockets: &Arc<Sockets>,
        traffic: &Traffic,
    ) -> PeerFailure {
        std::future::poll_fn(|context| watch.poll(context, sockets, 0, traffic)).await
    }

    #[tokio::test]
    async fn unprompted_reset_is_distinguished_from_the_answer_to_a_write() {
        for is_answer in [false, true] {
            let (first, peer) = connected_pair().await.unwrap();
            let (second, _partner) = connected_pair().await.unwrap();
            let now = Instant::now();
            let traffic = Traffic::new(now, [7, 0], now);
            let sockets = Arc::new([first, second]);
            SockRef::from(&peer).shutdown(std::net::Shutdown::Write).unwrap();
            let mut watch = HalfClosed::new(&traffic, now);
            let context = &mut Context::from_waker(std::task::Waker::noop());
            assert!(watch.poll(context, &sockets, 0, &traffic).is_pending());
            traffic.record(PeerOrder::First, usize::from(is_answer), now);
            watch.release_sockets();
            assert_eq!(Arc::strong_count(&sockets), 1, "the session can leave its thread");
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            let expected = if is_answer { PeerFailure::Closed } else { PeerFailure::Reset };
            assert_eq!(failure(&mut watch, &sockets, &traffic).await, expected);
        }
    }

    #[tokio::test]
    async fn keep_alive_notices_a_peer_that_closed_completely() {
        let (first, peer) = connected_pair().await.unwrap();
        let (second, _partner) = connected_pair().await.unwrap();
        // As on the relay's connections, but faster.
        let second_long = Duration::from_secs(1);
        let keep_alive = TcpKeepalive::new().with_time(second_long).with_interval(second_long);
        SockRef::from(&first).set_tcp_keepalive(&keep_alive.with_retries(1)).unwrap();
        let now = Instant::now();
        let (traffic, sockets) = (Traffic::new(now, [0, 0], now), Arc::new([first, second]));
        let mut watch = HalfClosed::new(&traffic, now);
        // The peer's kernel remembers the connection for a second instead of a minute.
        forget_soon(&peer);
        drop(peer);
        assert_eq!(failure(&mut watch, &sockets, &traffic).await, PeerFailure::Reset);
    }
}
