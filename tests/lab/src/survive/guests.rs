//! Peers that do something other than to go on while the relay is restarted: some wait for their partner, some have been
//! introduced and come later, and some end their session.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::departure;
use super::fleet::{join, pair};
use crate::metrics::{scrape, sum};
use crate::peer::Introduction;
use crate::router::LabRouter;

/// Longest wait for the relay to know the peers and keys.
const KNOWN: Duration = Duration::from_secs(10);
/// Longest wait for a pairing afterwards.
const PAIRING: Duration = Duration::from_secs(5);
/// Interval of asking the relay.
const ASK: Duration = Duration::from_millis(20);

/// Peers and keys that wait for the restart.
pub(super) struct Guests {
    waiting: Vec<(Introduction, TcpStream)>,
    keys: Vec<Introduction>,
    closing: Vec<(TcpStream, TcpStream)>,
    departures: JoinSet<io::Result<()>>,
}

/// How many guests of each kind there are at a restart.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuestCounts {
    /// Peers whose partner comes after the restart.
    pub(super) waiting: usize,
    /// Pairs that are introduced before the restart and come after it.
    pub(super) keys: usize,
    /// Sessions that a peer ends while the relay is away.
    pub(super) closing: usize,
}

/// How many of them were paired, of how many.
#[derive(Debug, Clone, Default)]
pub(super) struct Met {
    pub(super) waiting: (usize, usize),
    pub(super) keys: (usize, usize),
    /// Sessions that ended as their peers wanted.
    pub(super) closing: (usize, usize),
    pub(super) failures: Vec<String>,
}

impl Guests {
    /// Introduces peers, lets the first of the `waiting` pairs connect, and opens the sessions that will end. Returns once
    /// the relay knows all of them.
    pub(super) async fn invite(
        router: &LabRouter,
        admin: SocketAddr,
        counts: GuestCounts,
    ) -> io::Result<Self> {
        let GuestCounts { waiting, keys, closing } = counts;
        let opened = "aspia_relay_handshake_seconds_count";
        let mut guests = Self {
            waiting: Vec::new(),
            keys: Vec::new(),
            closing: Vec::new(),
            departures: JoinSet::new(),
        };
        for _ in 0..closing {
            guests.closing.push(pair(&introduce(router).await?, false).await?);
        }
        let before = scrape(admin).await?;
        for _ in 0..keys {
            guests.keys.push(introduce(router).await?);
        }
        for _ in 0..waiting {
            let introduction = introduce(router).await?;
            let stream = introduction.connect().await?;
            guests.waiting.push((introduction, stream));
        }
        let deadline = Instant::now() + KNOWN;
        while Instant::now() < deadline {
            let now = scrape(admin).await?;
            let handed_out = |text: &str| sum(text, "aspia_relay_keys{state=\"handed_out\"}");
            if sum(&now, opened) - sum(&before, opened) >= waiting as f64
                && handed_out(&now) >= (waiting + keys) as f64
            {
                return Ok(guests);
            }
            sleep(ASK).await;
        }
        Err(io::Error::other("the relay does not notice the peers that wait"))
    }

    /// Lets the sessions that are to end do so, one after the other from now on.
    pub(super) fn depart(&mut self) {
        for (number, (client, host)) in (0..).zip(self.closing.drain(..)) {
            self.departures.spawn(departure::depart(client, host, number));
        }
    }

    /// Lets all partners connect, and waits for the sessions that end.
    pub(super) async fn meet(mut self) -> Met {
        let mut met = Met {
            waiting: (0, self.waiting.len()),
            keys: (0, self.keys.len()),
            closing: (0, self.departures.len()),
            failures: Vec::new(),
        };
        while let Some(Ok(departed)) = self.departures.join_next().await {
            match departed {
                Ok(()) => met.closing.0 += 1,
                Err(error) => met.failures.push(error.to_string()),
            }
        }
        let mut meeting = JoinSet::new();
        for (introduction, stream) in self.waiting {
            meeting
                .spawn(async move { (true, timeout(PAIRING, join(&introduction, stream)).await) });
        }
        for introduction in self.keys {
            meeting.spawn(async move {
                let paired = async { pair(&introduction, false).await.map(drop) };
                (false, timeout(PAIRING, paired).await)
            });
        }
        while let Some(Ok((has_waited, paired))) = meeting.join_next().await {
            let (count, name) = if has_waited {
                (&mut met.waiting.0, "waiting peer")
            } else {
                (&mut met.keys.0, "peers with a key handed out before")
            };
            match paired {
                Ok(Ok(())) => *count += 1,
                Ok(Err(error)) => met.failures.push(format!("{name}: {error}")),
                Err(_) => met.failures.push(format!("{name}: not paired in time")),
            }
        }
        met
    }
}

async fn introduce(router: &LabRouter) -> io::Result<Introduction> {
    let late = |_| io::Error::other("no key is on offer");
    timeout(KNOWN, router.introduce()).await.map_err(late)?
}
