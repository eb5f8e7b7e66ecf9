//! Connects to the peer port all the time, to notice when nobody listens.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Interval of the connections.
const EVERY: Duration = Duration::from_millis(20);
/// How long each connection is kept open.
const HOLD: Duration = Duration::from_millis(200);
/// Longest time that a connection may take: shorter than the second after which the kernel would repeat a lost SYN.
const CONNECT: Duration = Duration::from_millis(900);
/// Connections at once, at most.
const MOST: usize = 200;

/// What the prober has met.
#[derive(Debug, Default)]
pub(super) struct Probes {
    made: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
}

/// A reading of [`Probes`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Probed {
    /// Connections attempted.
    pub(super) made: u64,
    /// Connections that were refused, or that nobody answered.
    pub(super) refused: u64,
    /// Connections that were accepted and closed or reset again at once.
    pub(super) cut: u64,
}

impl Probes {
    pub(super) fn read(&self) -> Probed {
        Probed {
            made: self.made.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            cut: self.cut.load(Ordering::Relaxed),
        }
    }

    /// Connects until it is dropped.
    pub(super) async fn run(self: Arc<Self>, address: SocketAddr) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probes = JoinSet::new();
        loop {
            ticks.tick().await;
            while probes.try_join_next().is_some() {}
            if probes.len() >= MOST {
                continue;
            }
            let counts = self.clone();
            probes.spawn(async move {
                counts.made.fetch_add(1, Ordering::Relaxed);
                let connected = timeout(CONNECT, TcpStream::connect(address)).await;
                let Ok(Ok(mut stream)) = connected else {
                    counts.refused.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                if timeout(HOLD, read(&mut stream)).await.is_ok() {
                    counts.cut.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
}

/// Returns when the connection ends; the relay sends nothing.
async fn read(stream: &mut TcpStream) -> io::Result<usize> {
    stream.read(&mut [0]).await
}

impl std::ops::Sub for Probed {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            made: self.made - before.made,
            refused: self.refused - before.refused,
            cut: self.cut - before.cut,
        }
    }
}
