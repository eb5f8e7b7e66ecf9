//! The accept loop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tracing::warn;

use super::acceptor::Acceptor;

/// Longest pause after a failure to accept.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Whether connections are accepted at the moment; for those who report.
#[derive(Debug, Clone, Default)]
pub struct Accepting(Arc<AtomicBool>);

impl Accepting {
    /// Whether the loop runs and its last try did not fail.
    pub fn is_well(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, well: bool) {
        self.0.store(well, Ordering::Relaxed);
    }
}

/// Lowers the flag when the loop ends, however it ends.
struct Running<'a>(&'a Accepting);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Accepts connections until it is dropped, and passes on each with the address that it comes from. As many as are there
/// in one go, up to what a task may do at a time; then it is the turn of those who got them, and of everybody else.
/// Does not spin when accepting fails. `callers` is who connects, for the log.
pub async fn accept(
    acceptor: &Acceptor,
    callers: &str,
    accepting: &Accepting,
    mut take: impl FnMut(std::net::TcpStream, SocketAddr),
) {
    let delays = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(MAX_PAUSE)
        .without_max_times();
    let mut backoff = None;
    accepting.set(true);
    let _running = Running(accepting);
    loop {
        match acceptor.accept().await {
            Ok((stream, address)) => {
                backoff = None;
                accepting.set(true);
                // Those over IPv4 come through an IPv6 socket with a mapped address.
                take(stream, SocketAddr::new(address.ip().to_canonical(), address.port()));
                tokio::task::coop::consume_budget().await;
            }
            // It was gone before we looked: no trouble of ours.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                accepting.set(false);
                let delay =
                    backoff.get_or_insert_with(|| delays.build()).next().unwrap_or(MAX_PAUSE);
                warn!(
                    %error,
                    "cannot accept connections of {callers}, trying again in {delay:?}; \
                     if there are too many open files, raise the limit (ulimit -n)"
                );
                tokio::time::sleep(delay).await;
            }
        }
    }
}
