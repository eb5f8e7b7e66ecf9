//! The time after the end of a session in which its last bytes reach the peers.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::deadline::timeout_at;
use crate::tcp_info;

use super::bidirectional::{Forward, ForwardEnd};
use super::discard::{Discard, LINGER_TIMEOUT, QUIET_TIMEOUT};
use super::socket::Sockets;
use super::throttle::Throttle;

/// The first pause between two checks whether everything is delivered: shorter than the round trip to most peers.
const MIN_PAUSE: Duration = Duration::from_millis(2);
/// The longest pause between two checks, so that connections that take long cause no load.
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// Gives the survivor, which has been sent a FIN, time to read what was delivered and to close, whatever it sends, and gives
/// the kernel time to deliver to both peers what it still holds. The process may exit after its last session, and if it is the
/// first process of a container, the container's network is removed with it.
///
/// What the survivor sends is discarded until [`LINGER_TIMEOUT`] after the end of its partner, or until it has been silent
/// for [`QUIET_TIMEOUT`]. Everything takes at most [`LINGER_TIMEOUT`] from now.
pub async fn linger(
    sockets: Arc<Sockets>,
    end: ForwardEnd,
    mut forward: Forward,
    throttle: Arc<Throttle>,
) {
    let now = Instant::now();
    let deadline = now + LINGER_TIMEOUT;
    if let Some(number) = end.survivor.filter(|number| *number < sockets.len()) {
        let discard = forward.take_discard(number, now);
        let until = discard.deadline().min(deadline);
        // If the survivor has not finished by then, the relay closes its connection.
        let discarded = discard_rest(&mut forward, &sockets[number], discard, &throttle);
        let _ = timeout_at(until, discarded).await;
    }
    let _ = timeout_at(deadline, async {
        for stream in &*sockets {
            wait_until_delivered(stream).await;
        }
    })
    .await;
}

/// Discards what a peer sends until it has finished, or has been silent for long enough with everything delivered.
async fn discard_rest(
    forward: &mut Forward,
    from: &TcpStream,
    mut discard: Box<Discard>,
    throttle: &Throttle,
) {
    let mut quiet = discard.last_heard() + QUIET_TIMEOUT;
    loop {
        let finished =
            poll_fn(|context| forward.poll_discarding(context, from, &mut discard, throttle));
        if timeout_at(quiet, finished).await.is_ok() {
            return;
        }
        let now = Instant::now();
        let is_silent = discard.last_heard() + QUIET_TIMEOUT <= now;
        if is_silent && tcp_info::read(from).is_some_and(|info| info.is_delivered()) {
            return;
        }
        quiet = if is_silent { now } else { discard.last_heard() } + QUIET_TIMEOUT;
    }
}

/// Returns when the peer's kernel has acknowledged everything, or the connection is over.
async fn wait_until_delivered(stream: &TcpStream) {
    let mut pause = MIN_PAUSE;
    // There is no event for the acknowledgement of the last byte: it has to be polled.
    while tcp_info::read(stream).is_some_and(|info| !info.is_delivered()) {
        sleep(pause).await;
        pause = MAX_PAUSE.min(2 * pause);
    }
}
