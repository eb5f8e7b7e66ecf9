//! A session whose every byte is verified, and what is known about it.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::pattern::{CHUNK, Pattern};
use super::send::send;

/// Bytes that a throttled reader reads at once, and the pause between.
const SIP: (usize, Duration) = (16 * 1024, Duration::from_millis(200));

/// The traffic of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A small request and its answer, many times a second.
    Interactive,
    /// Bytes without a pause, in both directions or in one.
    Bulk,
    /// The Client has finished sending; the Host sends a little at a time.
    HalfClosed,
    /// Silent until the end, when the Host must answer.
    Idle,
    /// The Host sends as much as it can to a Client that reads slowly.
    Throttled,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
            Self::HalfClosed => "half-closed",
            Self::Idle => "idle",
            Self::Throttled => "throttled",
        }
    }
}

/// What all sessions of a run share.
#[derive(Debug)]
pub(super) struct Load {
    /// Cancelled when the sessions are to end in order.
    pub(super) stop: CancellationToken,
    /// Interval of an interactive session's requests.
    pub(super) pace: Duration,
    /// Bytes per second in each direction of a bulk session; 0 is no limit.
    pub(super) bulk_rate: u64,
    /// What times are counted from.
    pub(super) zero: Instant,
    /// Bytes that arrived as they were sent.
    pub(super) verified: AtomicU64,
}

/// One direction of a session.
#[derive(Debug)]
pub(super) struct Direction {
    pub(super) pattern: Pattern,
    pub(super) sent: AtomicU64,
    received: AtomicU64,
    /// Whether the sender has sent everything.
    pub(super) is_finished: AtomicBool,
    /// Whether the receiver has seen the end.
    has_ended: AtomicBool,
    arrived: Notify,
}

impl Direction {
    fn new(number: u64) -> Self {
        Self {
            pattern: Pattern::new(number),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            is_finished: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            arrived: Notify::new(),
        }
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Returns true once `count` bytes have arrived, false if the direction ends before.
    pub(super) async fn reaches(&self, count: u64) -> bool {
        loop {
            let arrived = self.arrived.notified();
            if self.received() >= count {
                return true;
            }
            if self.has_ended.load(Ordering::Relaxed) {
                return false;
            }
            arrived.await;
        }
    }
}

/// Ending an end of a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// In order, with every byte.
    Finished,
    /// The connection was closed before the sender had finished.
    Closed,
    /// The connection was reset.
    Reset,
    /// Another error of the socket.
    Failed(String),
    /// Bytes differ from those sent.
    Wrong(String),
}

impl From<io::Error> for Ending {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl Display for Ending {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("ended in order"),
            Self::Closed => f.write_str("closed"),
            Self::Reset => f.write_str("reset"),
            Self::Failed(error) => f.write_str(error),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

/// The times an interactive Client waits for answers, in microseconds since [`Load::zero`].
#[derive(Debug, Default)]
pub(super) struct Waits {
    asked: AtomicU64,
    answered: AtomicU64,
    longest_wait: AtomicU64,
    longest_gap: AtomicU64,
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl Waits {
    pub(super) fn ask(&self, zero: Instant) {
        self.asked.store(micros(zero), Ordering::Relaxed);
    }

    pub(super) fn answer(&self, zero: Instant) {
        let now = micros(zero);
        let asked = self.asked.swap(0, Ordering::Relaxed);
        let before = self.answered.swap(now, Ordering::Relaxed);
        self.longest_wait.fetch_max(now.saturating_sub(asked), Ordering::Relaxed);
        if before > 0 {
            self.longest_gap.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
        }
    }

    /// Begins to measure anew.
    pub(super) fn reset(&self) {
        self.longest_wait.store(0, Ordering::Relaxed);
        self.longest_gap.store(0, Ordering::Relaxed);
    }

    /// The longest wait for an answer and the longest time between two answers since the last call.
    pub(super) fn take(&self) -> (u64, u64) {
        (self.longest_wait.swap(0, Ordering::Relaxed), self.longest_gap.swap(0, Ordering::Relaxed))
    }
}

/// The end of one side of a session.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) at: Instant,
    pub(super) ending: Ending,
}

/// A session. Side 0 is the Client and sends in direction 0; side 1 is the Host.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) directions: [Direction; 2],
    pub(super) waits: Waits,
    ends: Mutex<[Option<End>; 2]>,
}

impl Session {
    pub(super) fn new(number: u64, kind: Kind) -> Self {
        Self {
            number,
            kind,
            directions: [0, 1].map(|direction| Direction::new(2 * number + direction)),
            waits: Waits::default(),
            ends: Mutex::default(),
        }
    }

    /// The ends that have been seen so far, of the Client and of the Host.
    pub(super) fn ends(&self) -> [Option<End>; 2] {
        self.ends.lock().clone()
    }

    /// Whether bytes flow without a pause in a direction of a bulk session: in both, or from the Host only.
    pub(super) fn has_bulk(&self, direction: usize) -> bool {
        self.kind == Kind::Bulk && (direction == 1 || self.number.is_multiple_of(2))
    }

    /// Bytes received in the directions in which something must move while the session lives.
    pub(super) fn progress(&self) -> Vec<u64> {
        let moves = |direction: usize| match self.kind {
            Kind::Interactive => true,
            Kind::Bulk => self.has_bulk(direction),
            Kind::HalfClosed | Kind::Throttled => direction == 1,
            Kind::Idle => false,
        };
        let moving = self.directions.iter().enumerate().filter(|(number, _)| moves(*number));
        moving.map(|(_, direction)| direction.received()).collect()
    }
}

/// Runs one side of a session to its end.
pub(super) async fn run_side(
    session: Arc<Session>,
    side: usize,
    stream: TcpStream,
    load: Arc<Load>,
) {
    let (mut read, mut write) = stream.into_split();
    let sending = send(&session, side, &mut write, &load);
    let receiving = receive(&session, side, &mut read, &load);
    let ending = match tokio::try_join!(sending, receiving) {
        Ok(_) => Ending::Finished,
        Err(how) => how,
    };
    session.ends.lock()[side] = Some(End { at: Instant::now(), ending });
}

/// Reads and verifies what arrives at a side, to the end of the direction.
async fn receive(
    session: &Session,
    side: usize,
    read: &mut OwnedReadHalf,
    load: &Load,
) -> Result<(), Ending> {
    let direction = &session.directions[1 - side];
    let is_slow = session.kind == Kind::Throttled && side == 0;
    let mut buffer = match session.kind {
        Kind::Bulk => vec![0; CHUNK],
        Kind::Throttled => vec![0; SIP.0],
        _ => vec![0; 1024],
    };
    let mut position = 0;
    loop {
        if is_slow {
            let _ = load.stop.run_until_cancelled(sleep(SIP.1)).await;
        }
        let count = read.read(&mut buffer).await?;
        if count == 0 {
            direction.has_ended.store(true, Ordering::Relaxed);
            direction.arrived.notify_waiters();
            let is_whole = direction.is_finished.load(Ordering::Relaxed)
                && direction.sent.load(Ordering::Relaxed) == position;
            return if is_whole { Ok(()) } else { Err(Ending::Closed) };
        }
        direction.pattern.check(position, &buffer[..count]).map_err(Ending::Wrong)?;
        position += count as u64;
        load.verified.fetch_add(count as u64, Ordering::Relaxed);
        direction.received.store(position, Ordering::Relaxed);
        direction.arrived.notify_waiters();
    }
}
