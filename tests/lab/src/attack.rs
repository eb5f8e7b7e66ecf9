//! `relay-lab attack`: what strangers can do to those who use a relay. Against a relay of its own, on this machine alone.
//!
//! Users come from 127.0.0.1: some sessions with an event now and then, and pairs that meet one after the other. Strangers
//! come from other addresses of loopback, as many at a time as is said, and do one thing for some seconds each. The
//! limits of the relay are its defaults.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aspia_relay::memory;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::load::percentile;
use crate::metrics;
use crate::peer::Introduction;
use crate::port::free_port;
use crate::process::RelayProcess;
use crate::relay::config;
use crate::router::{LabRouter, Options};
use crate::say;

/// Sessions that run all the time, and how often each has an event.
const SESSIONS: usize = 20;
const EVENT_EVERY: Duration = Duration::from_millis(20);
/// How often a pair meets: with two connections each well below the default of `PeerConnectRate`, as users are.
const PAIR_EVERY: Duration = Duration::from_millis(600);
/// Longest wait of a user.
const PATIENCE: Duration = Duration::from_secs(10);
/// A user who waits for a partner is let go after 30 s.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// Addresses of strangers.
const STRANGERS: usize = 200;
/// Connections that each of them holds, where it is about holding: together more than may wait.
const HELD: usize = 20;
/// Longest that a stranger holds a connection.
const HOLD: Duration = Duration::from_secs(12);
/// Room for the sessions and the pairs.
const MAX_SESSIONS: &str = "100";

/// What strangers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Nothing: there are none. What the others are compared with.
    Quiet,
    /// Connect and say nothing.
    Silent,
    /// A byte a second.
    Slow,
    /// Connect and reset at once.
    Reset,
    /// Random bytes.
    Garbage,
    /// A length that nothing can have, and one that is just allowed.
    Oversized,
    /// The recorded first message of a user who waits.
    Replay,
    /// Connect and close, as fast as it goes.
    Storm,
}

/// All of them, in this order.
pub const ALL: [Kind; 8] = [
    Kind::Quiet,
    Kind::Silent,
    Kind::Slow,
    Kind::Reset,
    Kind::Garbage,
    Kind::Oversized,
    Kind::Replay,
    Kind::Storm,
];

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The relay.
    pub relay: PathBuf,
    /// What strangers do, one after the other.
    pub kinds: Vec<Kind>,
    /// How long each.
    pub time: Duration,
    /// Connections of strangers a second, at most.
    pub rate: u32,
}

/// What users saw while strangers did one thing.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What that was.
    pub kind: Kind,
    /// Connections that strangers made.
    pub strangers: u64,
    /// Pairs that met, and those that did not.
    pub paired: usize,
    /// Why the first of them did not.
    pub failed: Vec<String>,
    /// Time until a pair had met, sorted, in microseconds.
    pub pairing: Vec<u64>,
    /// Time of an event there and back, sorted, in microseconds.
    pub events: Vec<u64>,
    /// Sessions that ended, which none should.
    pub lost: usize,
}

/// What was seen in all.
#[derive(Debug, Clone)]
pub struct Report {
    /// Of each kind.
    pub seen: Vec<Seen>,
    /// Most memory that the relay ever had, in bytes.
    pub peak: u64,
    /// What its settings may take, in bytes.
    pub bound: u64,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let quiet = self.seen.iter().find(|seen| seen.kind == Kind::Quiet);
        let quiet = quiet.and_then(|quiet| percentile(&quiet.events, 0.99));
        let mut text = format!(
            "{:10} {:>9} {:>7} {:>6} {:>14} {:>14} {:>12} {:>12} {:>8}\n",
            "strangers",
            "made",
            "paired",
            "failed",
            "pairing p50",
            "pairing p99",
            "event p50",
            "event p99",
            "to quiet"
        );
        for seen in &self.seen {
            let at = |times: &[u64], part| percentile(times, part).unwrap_or_default();
            let p99 = at(&seen.events, 0.99);
            let ratio = quiet.map_or(1.0, |quiet| p99 as f64 / quiet.max(1) as f64);
            text += &format!(
                "{:10} {:>9} {:>7} {:>6} {:>11} us {:>11} us {:>9} us {:>9} us {ratio:>8.2}\n",
                format!("{:?}", seen.kind).to_lowercase(),
                seen.strangers,
                seen.paired,
                seen.failed.len() + seen.lost,
                at(&seen.pairing, 0.5),
                at(&seen.pairing, 0.99),
                at(&seen.events, 0.5),
                p99,
            );
        }
        let mib = |bytes: u64| bytes as f64 / (1024.0 * 1024.0);
        text + &format!("memory: {:.1} MiB at most, of {:.1}\n", mib(self.peak), mib(self.bound))
    }

    /// For machines.
    pub fn json(&self) -> serde_json::Value {
        let times = |times: &[u64]| {
            serde_json::json!({
                "count": times.len(),
                "p50_us": percentile(times, 0.5),
                "p99_us": percentile(times, 0.99),
                "max_us": times.last(),
            })
        };
        let seen = self.seen.iter().map(|seen| {
            serde_json::json!({
                "kind": format!("{:?}", seen.kind).to_lowercase(),
                "strangers": seen.strangers,
                "paired": seen.paired,
                "failed": seen.failed,
                "lost": seen.lost,
                "pairing": times(&seen.pairing),
                "events": times(&seen.events),
            })
        });
        serde_json::json!({
            "seen": seen.collect::<Vec<_>>(),
            "peak_bytes": self.peak,
            "bound_bytes": self.bound,
        })
    }

    /// What must not be: a user who was kept out or cut off, or more memory than is said.
    ///
    /// # Errors
    /// What was.
    pub fn verdict(&self) -> io::Result<()> {
        for Seen { kind, failed, lost, strangers, paired, .. } in &self.seen {
            if *paired == 0 || (*strangers == 0) != (*kind == Kind::Quiet) {
                let text =
                    format!("{kind:?}: {strangers} strangers, {paired} pairs: this shows nothing");
                return Err(io::Error::other(text));
            }
            if let Some(first) = failed.first() {
                let text = format!("{kind:?}: {} pairs did not meet: {first}", failed.len());
                return Err(io::Error::other(text));
            }
            if *lost > 0 {
                return Err(io::Error::other(format!("{kind:?}: {lost} sessions ended")));
            }
        }
        if self.peak > self.bound {
            let text = format!("the relay took {} bytes of {}", self.peak, self.bound);
            return Err(io::Error::other(text));
        }
        Ok(())
    }
}

/// What the settings of a relay may take, with the limits that it has by default, in bytes.
fn bound(relay: &RelayProcess, router: &LabRouter) -> io::Result<u64> {
    let settings = [
        ("MaxPeerCount", MAX_SESSIONS),
        ("MaxPendingPeersPerAddress", "64"),
        ("PeerConnectRate", "300"),
    ];
    let port = relay.address().port();
    let loaded = config(router.address(), router.public_key(), port, &settings)?;
    Ok(memory::needed(&loaded.config))
}

/// Most memory that a process ever had, in bytes.
fn peak(relay: &RelayProcess) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("the relay is gone"))
}

/// What the strangers of one phase share.
struct Field {
    kind: Kind,
    relay: SocketAddr,
    made: AtomicU64,
    over: AtomicBool,
    /// When the next connection is due, in nanoseconds since the beginning.
    due: AtomicU64,
    began: Instant,
    pause: Duration,
    /// The first message of a user.
    recorded: Vec<u8>,
}

/// Runs all of it.
///
/// # Errors
/// When something cannot be started.
pub async fn run(plan: &Plan) -> io::Result<Report> {
    crate::bench::raise_limit();
    let router = Arc::new(LabRouter::start(Options::default()).await?);
    let admin: SocketAddr = (Ipv4Addr::LOCALHOST, free_port()?).into();
    let listen = admin.to_string();
    let settings = [("AdminListen", listen.as_str()), ("MaxPeerCount", MAX_SESSIONS)];
    let relay = RelayProcess::start(&plan.relay, &router, &settings, Stdio::null())?;
    let bound = bound(&relay, &router)?;
    let users = Arc::new(Users::default());
    for _ in 0..SESSIONS {
        // The relay may not have come up yet: the first key says that it has.
        let session = timeout(PATIENCE, router.introduce()).await.map_err(io::Error::other)??;
        let (client, host) = session.session().await?;
        tokio::spawn(users.clone().session(client, host));
    }
    let mut seen = Vec::new();
    for kind in &plan.kinds {
        let waiting = router.introduce().await?;
        let field = Arc::new(Field {
            kind: *kind,
            relay: relay.address(),
            made: AtomicU64::new(0),
            over: AtomicBool::new(false),
            due: AtomicU64::new(0),
            began: Instant::now(),
            pause: Duration::from_secs(1) / plan.rate.max(1),
            recorded: waiting.first_bytes()?,
        });
        // Its message can be recorded once it was sent; whoever brings it first is the one who waits.
        let first = match kind {
            Kind::Replay => Some(begin_to_wait(&waiting, &field.recorded, admin).await?),
            _ => None,
        };
        // Strangers are another machine: what they take must not be a part of what is measured, as far as it goes.
        let strangers = (*kind != Kind::Quiet).then(|| {
            let field = field.clone();
            std::thread::spawn(move || strangers(&field))
        });
        users.begin();
        let (paired, failed, pairing) = meet(&router, plan.time, &waiting, first).await;
        let (events, lost) = users.end();
        field.over.store(true, Ordering::Relaxed);
        if let Some(strangers) = strangers {
            let ended = tokio::task::spawn_blocking(move || strangers.join()).await;
            ended
                .map_err(io::Error::other)?
                .map_err(|_| io::Error::other("strangers failed"))??;
        }
        let strangers = field.made.load(Ordering::Relaxed);
        let now = Seen { kind: *kind, strangers, paired, failed, pairing, events, lost };
        let p99 = percentile(&now.events, 0.99).unwrap_or_default();
        let name = format!("{kind:?}").to_lowercase();
        say(&format!("{name:10} {paired} paired, {} not; events p99 {p99} us", now.failed.len()));
        seen.push(now);
        // What strangers hold is gone before the next ones come.
        sleep(Duration::from_secs(1)).await;
    }
    Ok(Report { seen, peak: peak(&relay)?, bound })
}

/// The sessions that run all the time.
#[derive(Debug, Default)]
struct Users {
    events: Mutex<Vec<u64>>,
    lost: AtomicU64,
}

impl Users {
    async fn session(self: Arc<Self>, mut client: TcpStream, mut host: TcpStream) {
        let mut event = [7; 64];
        loop {
            let sent = Instant::now();
            let there_and_back = async {
                client.write_all(&event).await?;
                host.read_exact(&mut event).await?;
                host.write_all(&event).await?;
                client.read_exact(&mut event).await
            };
            if !matches!(timeout(PATIENCE, there_and_back).await, Ok(Ok(_))) {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.events.lock().unwrap_or_else(PoisonError::into_inner).push(micros);
            sleep(EVENT_EVERY).await;
        }
    }

    fn begin(&self) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn end(&self) -> (Vec<u64>, usize) {
        let mut events =
            std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner));
        events.sort_unstable();
        (events, usize::try_from(self.lost.load(Ordering::Relaxed)).unwrap_or(usize::MAX))
    }
}

/// A user sends a first message and waits; returns once the relay has let it wait.
async fn begin_to_wait(
    waiting: &Introduction,
    message: &[u8],
    admin: SocketAddr,
) -> io::Result<TcpStream> {
    let taken = async || {
        let text = metrics::scrape(admin).await?;
        io::Result::Ok(metrics::sum(&text, "aspia_relay_handshake_seconds_count"))
    };
    let before = taken().await?;
    let mut stream = waiting.dial().await?;
    stream.write_all(message).await?;
    let until_taken = async {
        while taken().await? <= before {
            sleep(Duration::from_millis(10)).await;
        }
        Ok(stream)
    };
    timeout(PATIENCE, until_taken).await.map_err(io::Error::other)?
}

/// Pairs meet, one after the other; at the end the two of whom `first` waits, if one does.
async fn meet(
    router: &LabRouter,
    time: Duration,
    waiting: &Introduction,
    first: Option<TcpStream>,
) -> (usize, Vec<String>, Vec<u64>) {
    let (mut paired, mut failed, mut times) = (0, Vec::new(), Vec::new());
    let mut meeting = JoinSet::new();
    let longest = if first.is_some() { LONGEST_WAIT } else { time };
    let end = Instant::now() + time.min(longest);
    while Instant::now() < end {
        match timeout(PATIENCE, router.introduce()).await {
            Ok(Ok(introduction)) => drop(meeting.spawn(async move {
                let began = Instant::now();
                match timeout(PATIENCE, introduction.session()).await {
                    Ok(Ok(_)) => Ok(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(format!("it took more than {PATIENCE:?}")),
                }
            })),
            Ok(Err(error)) => failed.push(error.to_string()),
            Err(_) => failed.push("no key came".into()),
        }
        sleep(PAIR_EVERY).await;
    }
    if let Some(mut first) = first {
        let both = async {
            let mut second = waiting.connect().await?;
            second.write_all(b"x").await?;
            first.read_exact(&mut [0]).await
        };
        match timeout(PATIENCE, both).await {
            Ok(Ok(_)) => paired += 1,
            Ok(Err(error)) => failed.push(format!("the one whose message was recorded: {error}")),
            Err(_) => failed.push("the one whose message was recorded waits for ever".into()),
        }
    }
    while let Some(met) = meeting.join_next().await {
        match met.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(time) => {
                paired += 1;
                times.push(time);
            }
            Err(error) => failed.push(error),
        }
    }
    times.sort_unstable();
    (paired, failed, times)
}

/// All strangers of one phase, on this thread.
fn strangers(field: &Arc<Field>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut all = JoinSet::new();
        let holds = matches!(field.kind, Kind::Silent | Kind::Slow | Kind::Oversized);
        for number in 0..STRANGERS * if holds { HELD } else { 1 } {
            let field = field.clone();
            all.spawn(async move {
                while !field.over.load(Ordering::Relaxed) {
                    field.turn().await;
                    let from =
                        Ipv4Addr::new(127, 0, 2, u8::try_from(number % STRANGERS).unwrap_or(0) + 1);
                    // What is refused is refused: the next one comes.
                    let _ = timeout(HOLD, field.one(from)).await;
                }
            });
        }
        // Whoever still holds a connection lets it go with the runtime.
        while !field.over.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50)).await;
        }
        all.shutdown().await;
    });
    Ok(())
}

impl Field {
    /// Waits until it is this stranger's turn: all together are not more than was said.
    async fn turn(&self) {
        let pause = u64::try_from(self.pause.as_nanos()).unwrap_or(u64::MAX);
        let due = Duration::from_nanos(self.due.fetch_add(pause, Ordering::Relaxed));
        sleep((self.began + due).saturating_duration_since(Instant::now())).await;
    }

    async fn one(&self, from: Ipv4Addr) -> io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let mut stream = socket.connect(self.relay).await?;
        self.made.fetch_add(1, Ordering::Relaxed);
        let mut nothing = [0];
        match self.kind {
            Kind::Quiet => {}
            Kind::Silent => drop(stream.read(&mut nothing).await?),
            Kind::Slow => {
                // The beginning of a message that is long enough.
                for byte in [0, 0, 1, 0].into_iter().chain(std::iter::repeat(8)) {
                    stream.write_all(&[byte]).await?;
                    if timeout(Duration::from_secs(1), stream.read(&mut nothing)).await.is_ok() {
                        break;
                    }
                }
            }
            Kind::Reset => SockRef::from(&stream).set_linger(Some(Duration::ZERO))?,
            Kind::Garbage => {
                let made = self.made.load(Ordering::Relaxed);
                stream.write_all(&crate::traffic::Stream::bytes(made, 512)).await?;
                let _ = stream.read(&mut nothing).await?;
            }
            Kind::Oversized => {
                let lengths: [&[u8]; 3] = [&[0xff; 4], &[0, 0, 0x40, 1], &[0, 0, 0x40, 0]];
                let number = self.made.load(Ordering::Relaxed) % 3;
                stream.write_all(lengths[usize::try_from(number).unwrap_or(0)]).await?;
                // As much as is taken.
                while stream.write_all(&[9; 4096]).await.is_ok() && number < 2 {}
                let _ = stream.read(&mut nothing).await?;
            }
            Kind::Replay => {
                stream.write_all(&self.recorded).await?;
                let _ = stream.read(&mut nothing).await?;
            }
            Kind::Storm => {}
        }
        Ok(())
    }
}
