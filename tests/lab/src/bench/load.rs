//! Loads: each opens its sessions, warms up, and measures for a period.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::TcpStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::forwarder::{Forwarder, TOKEN};
use super::meter::Machine;
use super::report::Figures;
use super::x25519::x25519;
use super::{Kind, meter};
use crate::say;

/// Warm-up time, in which buffers and TCP windows grow and threads settle.
const WARM_UP: Duration = Duration::from_millis(800);
/// Bytes of one write or read in bulk transfers.
const CHUNK: usize = 128 * 1024;
/// Concurrent short sessions.
const CHURNING: usize = 16;
/// Number of short sessions during the warm-up, and during the measurement. It is not a duration, since the kernel remembers
/// each connection for two minutes: many seconds of connections would fill its tables, and measure how it refuses them.
const SHORT_SESSIONS: (u64, u64) = (300, 3000);
/// Header of a message: length of the rest, and time of sending in nanoseconds.
const HEADER: usize = 12;
const FRAME: usize = 8 * 1024;
const LARGE_FRAME: usize = 100 * 1024;
const EVENT: usize = 64;
/// Shortest sleep of the sender: messages are sent one by one, and yet it does not spin.
const MIN_SLEEP: Duration = Duration::from_micros(100);
/// Bytes of a burst: in total, and at least for each session. With some hundred sessions, this is more than the kernel
/// accepts for readers that do not read, so the forwarder must buffer the rest.
const BURST: (usize, usize) = (1 << 30, 128 * 1024);
/// Socket buffer of such a reader, in bytes.
const SMALL_BUFFER: usize = 4096;
/// Nice value of the threads of the load, which stand for other machines.
const LOAD_PRIORITY: i32 = -10;
/// Time from a burst until memory is measured again.
const AFTER_BURST: Duration = Duration::from_secs(60);

/// One load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    Bulk { sessions: usize, both: bool },
    Desktop { sessions: usize },
    PingPong { size: usize },
    Churn,
    Waiting { peers: usize },
    Idle { sessions: usize },
    Burst { sessions: usize },
}

impl Load {
    /// The loads of a kind, with the given numbers of sessions or its own.
    pub(super) fn of(kind: Kind, sessions: &[usize]) -> Vec<Self> {
        let numbers = |own: &[usize]| if sessions.is_empty() { own } else { sessions }.to_vec();
        let each =
            |own: &[usize], load: fn(usize) -> Self| numbers(own).into_iter().map(load).collect();
        match kind {
            Kind::Bulk => each(&[1, 16, 64], |sessions| Self::Bulk { sessions, both: false }),
            Kind::BulkBoth => each(&[1, 16, 64], |sessions| Self::Bulk { sessions, both: true }),
            Kind::Desktop => each(&[10, 50, 100, 400], |sessions| Self::Desktop { sessions }),
            Kind::PingPong => vec![Self::PingPong { size: 64 }, Self::PingPong { size: 4096 }],
            Kind::Churn => vec![Self::Churn],
            Kind::Waiting => vec![Self::Waiting { peers: 10 }, Self::Waiting { peers: 5000 }],
            Kind::Idle => each(&[1000, 8000], |sessions| Self::Idle { sessions }),
            Kind::Burst => each(&[200], |sessions| Self::Burst { sessions }),
        }
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Bulk { sessions, both: false } => format!("bulk {sessions}"),
            Self::Bulk { sessions, both: true } => format!("bulk-both {sessions}"),
            Self::Desktop { sessions } => format!("desktop {sessions}"),
            Self::PingPong { size } => format!("ping-pong {size} B"),
            Self::Churn => "churn".into(),
            Self::Waiting { peers } => format!("churn, {peers} waiting"),
            Self::Idle { sessions } => format!("idle {sessions}"),
            Self::Burst { sessions } => format!("burst {sessions}"),
        }
    }

    /// Concurrent sessions that it needs.
    pub(super) fn sessions(self) -> usize {
        match self {
            Self::Bulk { sessions, .. }
            | Self::Desktop { sessions }
            | Self::Idle { sessions }
            | Self::Burst { sessions } => sessions,
            Self::PingPong { .. } => 1,
            Self::Churn => 8 * CHURNING,
            Self::Waiting { peers } => peers + 8 * CHURNING,
        }
    }

    /// Whether it is only for relays. With a proxy, no peer waits for a partner.
    pub(super) fn is_for_relays(self) -> bool {
        matches!(self, Self::Waiting { .. })
    }

    /// Runs it for the given time.
    pub(super) async fn run(self, forwarder: Forwarder, time: Duration) -> io::Result<Figures> {
        let forwarder = Arc::new(forwarder);
        match self {
            Self::Bulk { sessions, both } => bulk(&forwarder, sessions, both, time).await,
            Self::Desktop { sessions } => desktop(&forwarder, sessions, time).await,
            Self::PingPong { size } => ping_pong(&forwarder, size, time).await,
            Self::Churn => churn(&forwarder).await,
            Self::Waiting { peers } => {
                let _waiting = forwarder.open_waiting(peers).await?;
                churn(&forwarder).await
            }
            Self::Idle { sessions } => idle(&forwarder, sessions).await,
            Self::Burst { sessions } => burst(&forwarder, sessions).await,
        }
    }
}

/// The cost of a measured period, all in seconds.
struct Window {
    /// CPU time of the forwarder.
    cpu: f64,
    /// CPU time of the whole machine, this load included.
    machine: f64,
    seconds: f64,
}

/// A measurement that has begun.
struct Begun {
    cpu: f64,
    machine: Machine,
    at: Instant,
}

impl Begun {
    /// Begins now.
    fn now(forwarder: &Forwarder) -> Self {
        // The forwarder last, since reading its figures takes CPU time of the machine.
        let cpu = meter(forwarder).cpu;
        Self { cpu, machine: Machine::now(), at: Instant::now() }
    }

    /// Ends now.
    fn end(&self, forwarder: &Forwarder) -> Window {
        let seconds = self.at.elapsed().as_secs_f64();
        let machine = Machine::now().cpu_since(&self.machine);
        Window { cpu: meter(forwarder).cpu - self.cpu, machine, seconds }
    }
}

/// Warms up, then measures. `mark` is called at the beginning and end of the measured period.
async fn window(forwarder: &Forwarder, time: Duration, mut mark: impl FnMut()) -> Window {
    sleep(WARM_UP).await;
    let begun = Begun::now(forwarder);
    mark();
    sleep(time).await;
    mark();
    begun.end(forwarder)
}

/// Work per second, and per second of CPU time.
fn rates(forwarder: &Forwarder, window: &Window, done: f64, unit: f64) -> Figures {
    let mut figures = Figures::default();
    figures.set("rate", done / unit / window.seconds);
    figures.set("machine_cpu", window.machine / window.seconds);
    if forwarder.is_there() {
        figures.set("cpu", window.cpu / window.seconds);
        figures.set("per_cpu_s", done / unit / window.cpu);
    }
    figures
}

async fn bulk(
    forwarder: &Arc<Forwarder>,
    sessions: usize,
    both: bool,
    time: Duration,
) -> io::Result<Figures> {
    let bytes = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for (client, host) in forwarder.open_many(sessions).await? {
        let (client, host) = (client.into_split(), host.into_split());
        let mut ways = vec![(host.1, client.0)];
        if both {
            ways.push((client.1, host.0));
        } else {
            // The other halves stay open, since half-closed sessions would be a different load.
            tasks.spawn(async move {
                let _open = (client.1, host.0);
                std::future::pending::<()>().await;
            });
        }
        for (mut to, mut from) in ways {
            let bytes = bytes.clone();
            tasks.spawn(async move {
                let chunk = vec![0x5a; CHUNK];
                while to.write_all(&chunk).await.is_ok() {}
            });
            tasks.spawn(async move {
                let mut buffer = vec![0; 2 * CHUNK];
                while let Ok(read @ 1..) = from.read(&mut buffer).await {
                    bytes.fetch_add(read as u64, Ordering::Relaxed);
                }
            });
        }
    }
    let mut marks = Vec::new();
    let window = window(forwarder, time, || marks.push(bytes.load(Ordering::Relaxed) as f64)).await;
    let done = marks[1] - marks[0];
    if done == 0.0 {
        return Err(io::Error::other("nothing moved"));
    }
    tasks.shutdown().await;
    Ok(rates(forwarder, &window, done, 1e6))
}

/// Sends each message when it is due.
struct Sender {
    zero: Instant,
    outs: Vec<Out>,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
}

/// A sender: its socket, the bytes that the socket has not accepted, and its schedule.
struct Out {
    stream: StdStream,
    rest: Vec<u8>,
    period: Duration,
    number: u64,
    is_host: bool,
}

impl Sender {
    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        let message = vec![0; LARGE_FRAME];
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            while let Some(Reverse((at, out))) = self.due.peek().copied()
                && at <= now
            {
                self.due.pop();
                self.send(out, &message)?;
                self.due.push(Reverse((at + self.outs[out].period, out)));
            }
            for out in self.outs.iter_mut().filter(|out| !out.rest.is_empty()) {
                let rest = std::mem::take(&mut out.rest);
                out.put(&rest)?;
            }
            let next = self.due.peek().map_or(now, |Reverse((at, _))| *at);
            std::thread::sleep(next.saturating_duration_since(Instant::now()).max(MIN_SLEEP));
        }
        Ok(())
    }

    fn send(&mut self, out: usize, padding: &[u8]) -> io::Result<()> {
        let out = &mut self.outs[out];
        let length = match (out.is_host, out.number % 60) {
            (true, 59) => LARGE_FRAME,
            (true, _) => FRAME,
            (false, _) => EVENT,
        };
        out.number += 1;
        let mut message = padding[..length].to_vec();
        let rest = u32::try_from(length - HEADER).map_err(io::Error::other)?;
        message[..4].copy_from_slice(&rest.to_be_bytes());
        let sent = u64::try_from(self.zero.elapsed().as_nanos()).map_err(io::Error::other)?;
        message[4..HEADER].copy_from_slice(&sent.to_be_bytes());
        out.put(&message)
    }
}

impl Out {
    /// Sends as much as the socket accepts, after any bytes that are queued already.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.rest.is_empty() {
            self.rest.extend_from_slice(bytes);
            return Ok(());
        }
        match self.stream.write(bytes) {
            Ok(written) => self.rest.extend_from_slice(&bytes[written..]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.rest.extend_from_slice(bytes);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Delays, in nanoseconds, of messages sent within the measured period.
#[derive(Debug, Default)]
struct Delays {
    from: AtomicU64,
    to: AtomicU64,
    messages: AtomicU64,
    list: Mutex<Vec<u64>>,
}

/// Reads messages to the end and records the delay of each.
async fn receive(
    stream: TcpStream,
    zero: Instant,
    delays: Arc<Delays>,
    keep: bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let (mut header, mut have, mut body, mut sent) = ([0; HEADER], 0, 0_usize, 0_u64);
    loop {
        stream.readable().await?;
        let read = match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let now = u64::try_from(zero.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut bytes = &buffer[..read];
        while !bytes.is_empty() {
            if body == 0 {
                let more = bytes.len().min(HEADER - have);
                header[have..have + more].copy_from_slice(&bytes[..more]);
                (have, bytes) = (have + more, &bytes[more..]);
                if have < HEADER {
                    break;
                }
                let number =
                    |bytes: &[u8]| bytes.iter().fold(0, |n: u64, b| n << 8 | u64::from(*b));
                (have, sent) = (0, number(&header[4..]));
                body = usize::try_from(number(&header[..4])).unwrap_or(usize::MAX);
                if body == 0 || body > LARGE_FRAME {
                    return Err(io::Error::other(format!(
                        "a message of {body} bytes was never sent"
                    )));
                }
            }
            let part = bytes.len().min(body);
            (body, bytes) = (body - part, &bytes[part..]);
            if body == 0
                && (delays.from.load(Ordering::Relaxed)..delays.to.load(Ordering::Relaxed))
                    .contains(&sent)
            {
                delays.messages.fetch_add(1, Ordering::Relaxed);
                if keep {
                    let mut list = delays.list.lock();
                    list.push(now.saturating_sub(sent));
                }
            }
        }
    }
}

/// The two ends of every session: one sender for all, and the streams that receive, each with whether it is a host's.
fn sender_and_receivers(
    pairs: Vec<(TcpStream, TcpStream)>,
    sessions: usize,
    zero: Instant,
) -> io::Result<(Sender, Vec<(std::net::TcpStream, bool)>)> {
    let mut sender = Sender { zero, outs: Vec::new(), due: BinaryHeap::new() };
    let mut receivers = Vec::new();
    for (number, (client, host)) in (0_u32..).zip(pairs) {
        for (stream, is_host) in [(client, false), (host, true)] {
            let stream = stream.into_std()?;
            let period = Duration::from_secs(1) / if is_host { 30 } else { 60 };
            // Sessions do not send in lockstep.
            let first = zero + period * number / u32::try_from(sessions).unwrap_or(1).max(1);
            sender.due.push(Reverse((first, sender.outs.len())));
            receivers.push((stream.try_clone()?, is_host));
            sender.outs.push(Out {
                stream,
                rest: Vec::new(),
                period,
                number: number.into(),
                is_host,
            });
        }
    }
    Ok((sender, receivers))
}

/// Receives on all streams until `stop` is set.
fn receive_all(
    receivers: Vec<(std::net::TcpStream, bool)>,
    zero: Instant,
    delays: &Arc<Delays>,
    stop: &AtomicBool,
) -> io::Result<()> {
    raise_priority();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for (stream, is_host) in receivers {
            let stream = TcpStream::from_std(stream)?;
            // Events go from client to host; a user notices their delay.
            tasks.spawn(receive(stream, zero, delays.clone(), is_host));
        }
        while !stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50)).await;
            if let Some(ended) = tasks.try_join_next() {
                ended.map_err(io::Error::other)??;
                return Err(io::Error::other("a session ended too early"));
            }
        }
        Ok(())
    })
}

async fn desktop(
    forwarder: &Arc<Forwarder>,
    sessions: usize,
    time: Duration,
) -> io::Result<Figures> {
    let pairs = forwarder.open_many(sessions).await?;
    let zero = Instant::now();
    let delays = Arc::new(Delays::default());
    delays.from.store(u64::MAX, Ordering::Relaxed);
    delays.to.store(u64::MAX, Ordering::Relaxed);
    let (sender, receivers) = sender_and_receivers(pairs, sessions, zero)?;
    // Receivers and the sender have a thread each, so that neither waits for the other.
    let stop = Arc::new(AtomicBool::new(false));
    let sending = std::thread::spawn({
        let stop = stop.clone();
        move || {
            raise_priority();
            sender.run(&stop)
        }
    });
    let receiving = std::thread::spawn({
        let (stop, delays) = (stop.clone(), delays.clone());
        move || receive_all(receivers, zero, &delays, &stop)
    });
    let mut first = true;
    let window = window(forwarder, time, || {
        let now = u64::try_from(zero.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mark = if std::mem::take(&mut first) { &delays.from } else { &delays.to };
        mark.store(now, Ordering::Relaxed);
    })
    .await;
    // Messages in flight arrive.
    sleep(Duration::from_millis(200)).await;
    stop.store(true, Ordering::Relaxed);
    let ended = |thread: std::thread::JoinHandle<io::Result<()>>| {
        thread.join().map_err(|_| io::Error::other("a thread of the load panicked"))?
    };
    ended(receiving)?;
    ended(sending)?;
    let messages = delays.messages.load(Ordering::Relaxed) as f64;
    let mut figures = rates(forwarder, &window, messages, 1.0);
    let of_session = |cpu: f64| 1e3 * cpu / window.seconds / sessions as f64;
    figures.set("machine_ms_session", of_session(window.machine));
    if forwarder.is_there() {
        figures.set("cpu_ms_session", of_session(window.cpu));
    }
    let mut list = std::mem::take(&mut *delays.list.lock());
    figures.set_delays(&mut list);
    Ok(figures)
}

async fn ping_pong(forwarder: &Arc<Forwarder>, size: usize, time: Duration) -> io::Result<Figures> {
    let (client, host) = forwarder.open().await?;
    let (mut client, mut host) = (client.into_std()?, host.into_std()?);
    client.set_nonblocking(false)?;
    host.set_nonblocking(false)?;
    let echo = std::thread::spawn(move || {
        let mut message = vec![0; size];
        while host.read_exact(&mut message).is_ok() && host.write_all(&message).is_ok() {}
    });
    let stop = Arc::new(AtomicBool::new(false));
    let times: Arc<Mutex<Vec<u64>>> = Arc::default();
    let asking = std::thread::spawn({
        let (stop, times) = (stop.clone(), times.clone());
        move || -> io::Result<()> {
            let mut message = vec![1; size];
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                client.write_all(&message)?;
                client.read_exact(&mut message)?;
                let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                times.lock().push(took);
            }
            Ok(())
        }
    });
    let (mut counts, mut first) = (Vec::new(), 0);
    let window = window(forwarder, time, || {
        let count = times.lock().len();
        first = if counts.is_empty() { count } else { first };
        counts.push(count as f64);
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    asking.join().map_err(|_| io::Error::other("a thread of the load panicked"))??;
    echo.join().map_err(|_| io::Error::other("a thread of the load panicked"))?;
    let mut figures = rates(forwarder, &window, counts[1] - counts[0], 1.0);
    let mut times = std::mem::take(&mut *times.lock());
    figures.set_delays(&mut times[first..]);
    Ok(figures)
}

async fn churn(forwarder: &Arc<Forwarder>) -> io::Result<Figures> {
    let failed = Arc::new(AtomicU64::new(0));
    let (warm_up, measured) = SHORT_SESSIONS;
    short_sessions(forwarder, warm_up, &Arc::default()).await?;
    let agreed = x25519();
    let begun = Begun::now(forwarder);
    short_sessions(forwarder, measured, &failed).await?;
    let window = begun.end(forwarder);
    let failed = failed.load(Ordering::Relaxed);
    let sessions = measured.saturating_sub(failed) as f64;
    let mut figures = rates(forwarder, &window, sessions, 1.0);
    figures.set("machine_us_session", 1e6 * window.machine / sessions);
    if forwarder.is_there() {
        figures.set("cpu_us_session", 1e6 * window.cpu / sessions);
    }
    if forwarder.pairs() {
        // Before and after, since the speed of a shared machine varies.
        let agreed = f64::midpoint(agreed, x25519());
        figures.set("x25519_us", agreed);
        figures.set("us_less_x25519", 1e6 * window.cpu / sessions - agreed);
    }
    figures.set("failed", failed as f64);
    Ok(figures)
}

/// Runs a number of short sessions, some concurrently.
async fn short_sessions(
    forwarder: &Arc<Forwarder>,
    count: u64,
    failed: &Arc<AtomicU64>,
) -> io::Result<()> {
    let left = Arc::new(AtomicU64::new(count));
    let mut tasks = JoinSet::new();
    for _ in 0..CHURNING {
        let (forwarder, left, failed) = (forwarder.clone(), left.clone(), failed.clone());
        tasks.spawn(async move {
            let take = |left: u64| left.checked_sub(1);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                if short(&forwarder).await.is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(io::Error::other)?;
    }
    Ok(())
}

/// A session of 1 KiB each way.
async fn short(forwarder: &Forwarder) -> io::Result<()> {
    let mut message = [7; 1024];
    let (mut client, mut host) = forwarder.open_with(message.len()).await?;
    host.read_exact(&mut message[TOKEN..]).await?;
    host.write_all(&message).await?;
    client.read_exact(&mut message).await?;
    Ok(())
}

/// Memory and descriptors that a forwarder uses per session.
fn memory(figures: &mut Figures, forwarder: &Forwarder, empty: super::Meter, sessions: usize) {
    let now = meter(forwarder);
    figures.set("pss_session", (now.pss - empty.pss) / sessions as f64);
    figures.set("files_session", (now.files - empty.files) / sessions as f64);
}

async fn idle(forwarder: &Arc<Forwarder>, sessions: usize) -> io::Result<Figures> {
    sleep(Duration::from_secs(1)).await;
    let empty = meter(forwarder);
    let _open = forwarder.open_many(sessions).await?;
    sleep(Duration::from_secs(2)).await;
    let mut figures = Figures::default();
    memory(&mut figures, forwarder, empty, sessions);
    Ok(figures)
}

async fn burst(forwarder: &Arc<Forwarder>, sessions: usize) -> io::Result<Figures> {
    let open = forwarder.open_many(sessions).await?;
    sleep(Duration::from_secs(2)).await;
    let before = meter(forwarder).pss;
    let burst = BURST.1.max(BURST.0 / sessions);
    let mut tasks = JoinSet::new();
    let read_now = Arc::new(tokio::sync::Semaphore::new(0));
    for (mut client, mut host) in open {
        // Without a reader, everything backs up in the kernel and in the forwarder.
        SockRef::from(&host).set_recv_buffer_size(SMALL_BUFFER)?;
        let read_now = read_now.clone();
        tasks.spawn(async move {
            let writing = async {
                let (chunk, mut written) = (vec![1; CHUNK.min(burst)], 0);
                while written < burst {
                    let more = chunk.len().min(burst - written);
                    client.write_all(&chunk[..more]).await?;
                    written += more;
                }
                io::Result::Ok(())
            };
            let reading = async {
                let _ = read_now.acquire().await.map_err(io::Error::other)?;
                let mut buffer = vec![0; CHUNK];
                let mut read = 0;
                while read < burst {
                    read += match host.read(&mut buffer).await? {
                        0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                        more => more,
                    };
                }
                io::Result::Ok(())
            };
            let (written, read) = tokio::join!(writing, reading);
            written.and(read).map(|()| (client, host))
        });
    }
    let mut most = before;
    for _ in 0..5 {
        sleep(Duration::from_secs(1)).await;
        most = meter(forwarder).pss.max(most);
    }
    // Some at a time, since their buffers in this process count as well.
    read_now.add_permits(CHURNING);
    let mut open = Vec::new();
    while let Some(done) = tasks.join_next().await {
        open.push(done.map_err(io::Error::other)??);
    }
    sleep(AFTER_BURST).await;
    let mut figures = Figures::default();
    figures.set("pss_burst", most / before);
    figures.set("pss_after", meter(forwarder).pss / before);
    Ok(figures)
}

/// Raises the priority of this thread: the load stands for other machines, and its own scheduling delays must not count as
/// delays of the forwarder. Prints a warning if that is not allowed.
#[cfg(target_os = "linux")]
fn raise_priority() {
    static SAID: std::sync::Once = std::sync::Once::new();
    if let Err(error) = rustix::process::setpriority_process(None, LOAD_PRIORITY) {
        SAID.call_once(|| {
            say(&format!(
                "*** the load has no priority over the forwarder ({error}): delays include those of the load"
            ));
        });
    }
}

/// On other systems, only whole processes have a priority.
#[cfg(not(target_os = "linux"))]
fn raise_priority() {}
