//! Watches a peer that has finished sending while its partner still may send to it. Nothing is read from it any more, and
//! nothing is written while the partner is quiet: a reset would be noticed only when the session is idle for too long.
//!
//! A peer that has closed completely looks the same at first, since TCP does not say which halves were closed. It is
//! noticed as well: its system answers the keep-alive of the connection with a reset once it has forgotten it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::time::Instant;

use crate::state::sessions::Traffic;
use crate::tcp_info;

use super::failure::Ending;
use super::socket::Sockets;

/// The watch of one peer.
pub(super) struct HalfClosed {
    /// When the partner was told that nothing more comes.
    since: Instant,
    /// Bytes that the session had moved then.
    bytes: u64,
    /// Ends when the connection has failed; why, where the system says. `None` where the sockets had to be let go.
    failure: Option<Failure>,
}

type Failure = Pin<Box<dyn Future<Output = Option<std::io::Error>> + Send>>;

impl fmt::Debug for HalfClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HalfClosed({:?})", self.since)
    }
}

impl HalfClosed {
    /// The watch of a peer that has finished at `now`.
    pub(super) fn new(traffic: &Traffic, now: Instant) -> Self {
        Self { since: now, bytes: traffic.bytes(), failure: None }
    }

    /// Lets go of the sockets; the next time that it is polled, it takes them again.
    pub(super) fn release_sockets(&mut self) {
        self.failure = None;
    }

    /// Since when the partner has been told that nothing more comes, if nothing was moved after that: otherwise it may not
    /// have noticed yet.
    pub(super) fn silent_since(&self, traffic: &Traffic) -> Option<Instant> {
        (traffic.bytes() == self.bytes).then_some(self.since)
    }

    /// Ready with how the connection of the peer with this number ended.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        sockets: &Arc<Sockets>,
        number: usize,
        traffic: &Traffic,
    ) -> Poll<Ending> {
        let failure =
            self.failure.get_or_insert_with(|| Box::pin(failure(sockets.clone(), number)));
        let error = ready!(failure.as_mut().poll(context));
        // A reset that answers what was sent to it: it had closed in order before. Any other one it sent by itself.
        let is_answer = traffic.bytes() != self.bytes
            && error.is_none_or(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
        Poll::Ready(if is_answer { Ending::Closed } else { Ending::Reset })
    }
}

/// Returns when the connection has failed.
async fn failure(sockets: Arc<Sockets>, number: usize) -> Option<std::io::Error> {
    let stream = sockets.get(number)?;
    let error = match stream.ready(Interest::ERROR).await {
        Ok(_) => stream.take_error().ok().flatten(),
        Err(error) => Some(error),
    };
    if error.is_none() && tcp_info::read(stream).is_some_and(|info| !info.closed) {
        // The system said something that is not the end of the connection.
        return std::future::pending().await;
    }
    error
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::time::Duration;

    use socket2::{SockRef, TcpKeepalive};
    use tokio::net::{TcpListener, TcpStream};

    /// The relay's end of a connection, and the peer's.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(address));
        (accepted.unwrap().0, connected.unwrap())
    }

    /// Has the system forget a connection a second after its program has closed it.
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

    async fn ending(watch: &mut HalfClosed, sockets: &Arc<Sockets>, traffic: &Traffic) -> Ending {
        std::future::poll_fn(|context| watch.poll(context, sockets, 0, traffic)).await
    }

    #[tokio::test]
    async fn a_reset_is_told_from_the_answer_to_what_was_sent() {
        for is_answer in [false, true] {
            let ((first, peer), (second, _partner)) = (connection().await, connection().await);
            let now = Instant::now();
            let traffic = Traffic::new(now, 7, now);
            let sockets = Arc::new([first, second]);
            SockRef::from(&peer).shutdown(std::net::Shutdown::Write).unwrap();
            let mut watch = HalfClosed::new(&traffic, now);
            let context = &mut Context::from_waker(std::task::Waker::noop());
            assert!(watch.poll(context, &sockets, 0, &traffic).is_pending());
            traffic.record(usize::from(is_answer), now);
            watch.release_sockets();
            assert_eq!(Arc::strong_count(&sockets), 1, "a session may leave its thread");
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            let expected = if is_answer { Ending::Closed } else { Ending::Reset };
            assert_eq!(ending(&mut watch, &sockets, &traffic).await, expected);
        }
    }

    #[tokio::test]
    async fn a_peer_that_closed_completely_is_noticed_by_the_keep_alive() {
        let ((first, peer), (second, _partner)) = (connection().await, connection().await);
        // As the relay's connections have it, only faster.
        let second_long = Duration::from_secs(1);
        let keep_alive = TcpKeepalive::new().with_time(second_long).with_interval(second_long);
        SockRef::from(&first).set_tcp_keepalive(&keep_alive.with_retries(1)).unwrap();
        let now = Instant::now();
        let (traffic, sockets) = (Traffic::new(now, 0, now), Arc::new([first, second]));
        let mut watch = HalfClosed::new(&traffic, now);
        // Its system remembers it for a second instead of a minute.
        forget_soon(&peer);
        drop(peer);
        assert_eq!(ending(&mut watch, &sockets, &traffic).await, Ending::Reset);
    }
}
