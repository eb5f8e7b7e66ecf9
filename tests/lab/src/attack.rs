//! `relay-lab attack`: measures what attackers can do to the users of a relay that it starts on this machine.
//!
//! Users connect from 127.0.0.1: a few sessions with occasional events, and pairs that connect one after the other. Attackers
//! connect from other loopback addresses, at a limited rate, and carry out one kind of attack at a time. The relay has
//! its default limits.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aspia_relay::memory;
use parking_lot::Mutex;
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

/// Sessions that run all the time, and the interval of events in each.
const SESSIONS: usize = 20;
const EVENT_EVERY: Duration = Duration::from_millis(20);
/// Interval of pairs. Two connections each stay well below the default of `PeerConnectRate`, as those of users do.
const PAIR_EVERY: Duration = Duration::from_millis(600);
/// Longest time that a user waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// The relay closes a peer that has waited for its partner for 30 s.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// Number of attacking addresses.
const STRANGERS: usize = 200;
/// Connections that each address holds in attacks that hold connections. Together they exceed `MaxPendingPeers`.
const HELD: usize = 20;
/// Longest time that an attacker holds a connection.
const HOLD: Duration = Duration::from_secs(12);
/// `MaxPeerCount`: enough for the sessions and the pairs.
const MAX_SESSIONS: &str = "100";

/// A kind of attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// No attack. The others are compared with it.
    Quiet,
    /// Connect and send nothing.
    Silent,
    /// Send one byte per second.
    Slow,
    /// Connect and reset at once.
    Reset,
    /// Send random bytes.
    Garbage,
    /// Announce a length over the limit, or one just within it.
    Oversized,
    /// Replay the first message of a waiting user.
    Replay,
    /// Connect and close as fast as possible.
    Storm,
}

/// All kinds, in this order.
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

/// Parameters of an attack.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Program of the relay.
    pub relay: PathBuf,
    /// Kinds of attack, one after the other.
    pub kinds: Vec<Kind>,
    /// Duration of each.
    pub time: Duration,
    /// Maximum rate of attacking connections, per second.
    pub rate: u32,
}

/// What users experienced during one kind of attack.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The kind of attack.
    pub kind: Kind,
    /// Connections that attackers made.
    pub strangers: u64,
    /// Pairs that were paired.
    pub paired: usize,
    /// Reasons of those that were not.
    pub failed: Vec<String>,
    /// Times until pairs were paired, sorted, in microseconds.
    pub pairing: Vec<u64>,
    /// Round-trip times of events, sorted, in microseconds.
    pub events: Vec<u64>,
    /// Sessions that ended. None should.
    pub lost: usize,
}

/// The results of all attacks.
#[derive(Debug, Clone)]
pub struct Report {
    /// The results of each kind.
    pub seen: Vec<Seen>,
    /// Peak memory of the relay, in bytes.
    pub peak: u64,
    /// Maximum memory that its settings allow, in bytes.
    pub bound: u64,
}

impl Report {
    /// A table for people.
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
        text + &format!(
            "memory: peak {:.1} MiB of {:.1} MiB allowed\n",
            mib(self.peak),
            mib(self.bound)
        )
    }

    /// JSON for programs.
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

    /// Fails if a user was kept out or disconnected, or if the relay took more memory than its settings allow.
    ///
    /// # Errors
    /// Says what happened.
    pub fn verdict(&self) -> io::Result<()> {
        for Seen { kind, failed, lost, strangers, paired, .. } in &self.seen {
            if *paired == 0 || (*strangers == 0) != (*kind == Kind::Quiet) {
                let text = format!(
                    "{kind:?}: only {strangers} attacking connections and {paired} pairs: too few to conclude anything"
                );
                return Err(io::Error::other(text));
            }
            if let Some(first) = failed.first() {
                let text =
                    format!("{kind:?}: {} pairs failed, the first because: {first}", failed.len());
                return Err(io::Error::other(text));
            }
            if *lost > 0 {
                return Err(io::Error::other(format!("{kind:?}: {lost} sessions ended")));
            }
        }
        if self.peak > self.bound {
            let text = format!(
                "the relay used {} bytes, but its settings allow only {}",
                self.peak, self.bound
            );
            return Err(io::Error::other(text));
        }
        Ok(())
    }
}

/// Maximum memory that the settings of a relay with default limits allow, in bytes.
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

/// Peak memory of a process, in bytes.
fn peak(relay: &RelayProcess) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("the relay has ended"))
}

/// What the attackers of one phase share.
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

/// Runs all attacks.
///
/// # Errors
/// If something cannot be started.
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
        // The first key shows that the relay has started.
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
        // Its message can be replayed only after it has been received: the first to send it is the peer that waits.
        let first = match kind {
            Kind::Replay => Some(begin_to_wait(&waiting, &field.recorded, admin).await?),
            _ => None,
        };
        // Attackers stand for another machine: as far as possible, their CPU time must not affect what is measured.
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
        // Connections of these attackers are closed before the next attack begins.
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
            self.events.lock().push(micros);
            sleep(EVENT_EVERY).await;
        }
    }

    fn begin(&self) {
        self.events.lock().clear();
    }

    fn end(&self) -> (Vec<u64>, usize) {
        let mut events = std::mem::take(&mut *self.events.lock());
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

/// Connects pairs, one after the other, and at the end the partner of `first` if that peer waits.
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
            Err(_) => failed.push("no key arrived".into()),
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
            Ok(Err(error)) => failed.push(format!("the peer whose message was replayed: {error}")),
            Err(_) => failed.push("the peer whose message was replayed was never paired".into()),
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

/// Runs all attackers of one phase, on this thread.
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
                    // A refused connection is expected; the next one follows.
                    let _ = timeout(HOLD, field.one(from)).await;
                }
            });
        }
        // Connections that are still open close with the runtime.
        while !field.over.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50)).await;
        }
        all.shutdown().await;
    });
    Ok(())
}

impl Field {
    /// Waits for this attacker's turn, so that all together keep to the rate.
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
                // As much as the relay accepts.
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
