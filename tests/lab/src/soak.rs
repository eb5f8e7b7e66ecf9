//! `relay-lab soak`: load, faults and attacks together for a long time; then checks that the relay has leaked nothing.
//!
//! It starts a relay on this machine. Sessions of all kinds come and go, attackers among them, while the link to the
//! Router is cut, carries nonsense, settings are reloaded and every path is requested over HTTP.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::bench::meter::Meter;
use crate::http;
use crate::metrics::{self, sum};
use crate::port::free_port;
use crate::process::RelayProcess;
use crate::router::{LabRouter, Options};
use crate::say;
use crate::traffic::{self, Stream};

/// Concurrent sessions.
const USERS: u64 = 24;
/// `MaxPeerCount`: enough for these, and for handed-out keys that nobody uses within their 30 s.
const MAX_SESSIONS: u32 = 1000;
/// Ends that no session of this test should have.
const WRONG_ENDS: [&str; 6] = ["idle", "disconnected", "max_duration", "drain", "error", "crash"];
/// Longest wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// Maximum bytes of a transfer in each direction.
const MOST: u64 = 4 * 1024 * 1024;
/// Interval of faults.
const FAULT_EVERY: Duration = Duration::from_millis(1500);
/// Time for resources that a relay releases after a while.
const SETTLING: Duration = Duration::from_secs(12);
/// Memory may grow by this many bytes plus this fraction, since allocators keep some.
const MORE_MEMORY: (f64, f64) = (4e6, 0.25);

/// There may be this many more threads, since those for blocking work come and go.
const MORE_THREADS: usize = 2;

/// Pipes that a relay keeps for the next sessions (`src/forward/pipe.rs`).
const KEPT_PIPES: f64 = 8.0;

/// Parameters of a soak test.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Program of the relay.
    pub relay: PathBuf,
    /// Duration.
    pub time: Duration,
}

/// What the laboratory itself has counted.
#[derive(Debug, Default)]
struct Counts {
    sessions: AtomicU64,
    /// Bytes that certainly arrived, and the maximum that was sent.
    arrived: AtomicU64,
    sent: AtomicU64,
    /// Connections to the relay's peer port.
    connections: AtomicU64,
    refused: AtomicU64,
    attackers: AtomicU64,
    faults: AtomicU64,
}

/// A relay as seen from outside.
#[derive(Debug, Clone, Copy)]
struct Sight {
    meter: Meter,
    threads: usize,
    pipes: f64,
    sessions: f64,
    /// Sessions with one of [`WRONG_ENDS`].
    ended_wrong: f64,
    connections: f64,
    paired: f64,
    bytes: f64,
}

struct Relay {
    process: RelayProcess,
    admin: SocketAddr,
    /// Its log.
    log: PathBuf,
}

impl Relay {
    fn start(program: &Path, router: &LabRouter) -> io::Result<Self> {
        let admin: SocketAddr = (Ipv4Addr::LOCALHOST, free_port()?).into();
        let settings = [
            ("AdminListen", admin.to_string()),
            ("MaxPeerCount", MAX_SESSIONS.to_string()),
            ("OfferByLoad", "false".to_owned()),
            // All peers connect from the same address, at a high rate.
            ("MaxPendingPeersPerAddress", "1024".to_owned()),
            ("PeerConnectRate", "0".to_owned()),
            ("StatisticsEnabled", "true".to_owned()),
            ("StatisticsInterval", "1".to_owned()),
            ("TotalBandwidth", "1GiB/s".to_owned()),
        ];
        let settings = settings.each_ref().map(|(key, value)| (*key, value.as_str()));
        let log = std::env::temp_dir().join(format!("relay-lab-soak-{}.log", std::process::id()));
        let process =
            RelayProcess::start(program, router, &settings, Stdio::from(File::create(&log)?))?;
        Ok(Self { process, admin, log })
    }

    async fn metrics(&self) -> io::Result<String> {
        about("/metrics", metrics::scrape(self.admin).await)
    }

    async fn see(&self) -> io::Result<Sight> {
        let meter = Meter::of(&[self.process.id()]);
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.process.id()))?.count();
        let text = self.metrics().await?;
        Ok(Sight {
            meter,
            threads,
            pipes: sum(&text, "aspia_relay_pipes"),
            sessions: sum(&text, "aspia_relay_sessions_total"),
            ended_wrong: WRONG_ENDS
                .iter()
                .map(|end| sum(&text, &format!("aspia_relay_sessions_total{{end=\"{end}\"}}")))
                .sum(),
            connections: sum(&text, "aspia_relay_peer_connections_total"),
            paired: sum(&text, "aspia_relay_peer_connections_total{outcome=\"paired\"}"),
            bytes: sum(&text, "aspia_relay_bytes_total"),
        })
    }

    /// Waits until there is neither a session nor a pending peer, and the link is up.
    async fn settled(&self) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = self.metrics().await?;
            let there = [
                sum(&text, "aspia_relay_sessions_active"),
                sum(&text, "aspia_relay_peers_pending"),
                sum(&text, "aspia_relay_keys{state=\"handed_out\"}"),
                f64::from(MAX_SESSIONS) - sum(&text, "aspia_relay_keys{state=\"offered\"}"),
            ];
            if there == [0.0; 4] {
                break;
            }
            if Instant::now() > end {
                let text = format!(
                    "the relay does not settle: [sessions, pending, handed out, missing] are {there:?}"
                );
                return Err(io::Error::other(text));
            }
            sleep(Duration::from_millis(100)).await;
        }
        sleep(SETTLING).await;
        Ok(())
    }
}

/// Prefixes an error with what was attempted.
fn about<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}

/// Random numbers from a seed.
struct Dice(Stream);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit.max(1)
    }
}

/// Connections of all programs that the kernel has reset since its start because TCP had no memory left
/// (`TCPAbortOnMemory`). They may include those of this test, which is not the relay's fault.
fn resets_for_memory() -> u64 {
    let counters = std::fs::read_to_string("/proc/net/netstat").unwrap_or_default();
    // A line of names is followed by a line of values.
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    let found = both.find_map(|(name, value)| (name == "TCPAbortOnMemory").then_some(value));
    found.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Runs the test and compares before and after.
///
/// # Errors
/// Says what differs from before, or from what the laboratory counted.
pub async fn run(plan: &Plan) -> io::Result<()> {
    crate::bench::raise_limit();
    let router = Arc::new(LabRouter::start(Options::default()).await?);
    let relay = Arc::new(Relay::start(&plan.relay, &router)?);
    let resets = resets_for_memory();
    let soaked = soak(plan, &router, &relay).await;
    if let Err(error) = soaked {
        let alive = if relay.process.is_alive()? { "runs" } else { "has ended" };
        let log = relay.log.display();
        let resets = resets_for_memory() - resets;
        let why = if resets > 0 {
            format!(
                "; the kernel reset {resets} connections for lack of memory: run nothing else meanwhile"
            )
        } else {
            String::new()
        };
        let text = format!("{error} (the relay {alive}; its log is {log}{why})");
        return Err(io::Error::other(text));
    }
    std::fs::remove_file(&relay.log)
}

async fn soak(plan: &Plan, router: &Arc<LabRouter>, relay: &Arc<Relay>) -> io::Result<()> {
    router.wait_for(|view| view.pool.len() == MAX_SESSIONS as usize).await;
    let counts = Arc::new(Counts::default());
    // A first round without measuring: what a program allocates once and keeps is not a leak.
    round(router, relay, &counts, Duration::from_secs(5)).await?;
    relay.settled().await?;
    let before = relay.see().await?;
    say(&format!("before: {before:?}"));
    round(router, relay, &counts, plan.time).await?;
    relay.settled().await?;
    let after = relay.see().await?;
    say(&format!("after:  {after:?}"));
    say(&format!("here:   {counts:?}"));
    compare(&before, &after, &counts)
}

/// Descriptors other than pipes, some of which are kept for the next session.
fn others(sight: &Sight) -> f64 {
    sight.meter.files - 2.0 * sight.pipes
}

fn compare(before: &Sight, after: &Sight, counts: &Counts) -> io::Result<()> {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let (factor, more) = (1.0 + MORE_MEMORY.1, MORE_MEMORY.0);
    let checks = [
        ("memory", after.meter.pss <= before.meter.pss * factor + more),
        ("descriptors", others(after) <= others(before)),
        ("threads", after.threads <= before.threads + MORE_THREADS),
        ("pipes", after.pipes <= KEPT_PIPES),
        ("sessions", after.sessions == count(&counts.sessions)),
        ("ends of sessions", after.ended_wrong == 0.0),
        ("connections", after.connections == count(&counts.connections)),
        ("paired connections", after.paired == 2.0 * count(&counts.sessions)),
        ("bytes", after.bytes >= count(&counts.arrived) && after.bytes <= count(&counts.sent)),
        ("work", count(&counts.sessions) > 0.0 && count(&counts.faults) > 0.0),
    ];
    let wrong: Vec<&str> = checks.iter().filter(|(_, good)| !good).map(|(name, _)| *name).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "differs from before, or from the laboratory's count: {}",
        wrong.join(", ")
    )))
}

/// Runs users and faults for the given time.
async fn round(
    router: &Arc<LabRouter>,
    relay: &Arc<Relay>,
    counts: &Arc<Counts>,
    time: Duration,
) -> io::Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let mut users = JoinSet::new();
    for number in 0..USERS {
        let (router, relay, counts, over) =
            (router.clone(), relay.clone(), counts.clone(), over.clone());
        users.spawn(async move {
            let mut dice = Dice(Stream::new(number + 1));
            while !over.load(Ordering::Relaxed) {
                user(&router, &relay, &counts, &mut dice).await?;
            }
            io::Result::Ok(())
        });
    }
    let end = Instant::now() + time;
    let mut number = 0;
    while Instant::now() < end {
        sleep(FAULT_EVERY).await;
        fault(router, relay, number).await?;
        counts.faults.fetch_add(1, Ordering::Relaxed);
        number += 1;
    }
    over.store(true, Ordering::Relaxed);
    while let Some(user) = users.join_next().await {
        user.map_err(io::Error::other)??;
    }
    Ok(())
}

/// Causes one fault, or makes one request.
async fn fault(router: &LabRouter, relay: &Relay, number: u64) -> io::Result<()> {
    match number % 6 {
        0 => router.drop_link().await,
        1 => router.request_nonsense().await,
        2 => router.disconnect(u64::MAX).await,
        3 => {
            let pid =
                i32::try_from(relay.process.id()).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                rustix::process::kill_process(pid, rustix::process::Signal::HUP)?;
            }
        }
        4 => router.tell_used(u32::MAX).await,
        _ => {
            for path in ["/status", "/sessions", "/config", "/"] {
                let asked = http::request(relay.admin, &format!("GET {path}"), &[], "").await;
                about(path, asked)?;
            }
        }
    }
    Ok(())
}

/// Runs one user or one attacker.
async fn user(
    router: &LabRouter,
    relay: &Relay,
    counts: &Counts,
    dice: &mut Dice,
) -> io::Result<()> {
    if dice.below(4) == 0 {
        counts.attackers.fetch_add(1, Ordering::Relaxed);
        counts.connections.fetch_add(1, Ordering::Relaxed);
        return about("an attacker", attacker(relay, dice).await);
    }
    let introduced = timeout(PATIENCE, router.introduce()).await;
    let introduction = introduced.map_err(|_| io::Error::other("no key arrived"))??;
    let kind = dice.below(8);
    if kind == 0 {
        // Its partner never connects.
        counts.connections.fetch_add(1, Ordering::Relaxed);
        let stream = about("a peer whose partner never connects", introduction.connect().await)?;
        sleep(Duration::from_millis(dice.below(50))).await;
        drop(stream);
        return Ok(());
    }
    counts.connections.fetch_add(2, Ordering::Relaxed);
    let Ok(Ok((client, host))) = timeout(PATIENCE, introduction.session()).await else {
        // The link was cut between the introduction and the notice, so the key was withdrawn.
        counts.refused.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    };
    counts.sessions.fetch_add(1, Ordering::Relaxed);
    let count = |arrived: u64, sent: u64| {
        counts.arrived.fetch_add(arrived, Ordering::Relaxed);
        counts.sent.fetch_add(sent, Ordering::Relaxed);
    };
    // The byte that shows that the session is active.
    count(1, 1);
    let (there, back) = (dice.below(MOST), dice.below(MOST / 16));
    let seed = dice.below(u64::MAX);
    if kind == 1 {
        count(0, there);
        return about("a reset", cut(client, host, seed, there).await);
    }
    if kind == 2 {
        sleep(Duration::from_millis(dice.below(1000))).await;
    }
    let transferred = timeout(PATIENCE, transfer(client, host, seed, (there, back))).await;
    let transferred = transferred.unwrap_or_else(|_| Err(io::Error::other("the session stalled")));
    about("a transfer", transferred)?;
    count(there + back, there + back);
    Ok(())
}

/// Sends data both ways; the second transfer follows a half-close.
async fn transfer(
    mut client: TcpStream,
    mut host: TcpStream,
    seed: u64,
    (there, back): (u64, u64),
) -> io::Result<()> {
    let at_client = async {
        about("sending from the client", traffic::send(&mut client, seed, there).await)?;
        about("ending the client", client.shutdown().await)?;
        let came = traffic::verify(&mut client, seed ^ 1, back, |_| {}).await;
        about("receiving at the client", came)?;
        about("the end at the client", ended(&mut client).await)
    };
    let at_host = async {
        about("receiving at the host", traffic::verify(&mut host, seed, there, |_| {}).await)?;
        about("the end at the host", ended(&mut host).await)?;
        about("sending from the host", traffic::send(&mut host, seed ^ 1, back).await)?;
        about("ending the host", host.shutdown().await)
    };
    let (at_client, at_host) = tokio::join!(at_client, at_host);
    at_client.and(at_host)
}

async fn ended(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(io::Error::other("more was received than was sent")),
    }
}

/// One side resets during a transfer: the other receives what was sent, and an orderly close.
async fn cut(mut client: TcpStream, mut host: TcpStream, seed: u64, length: u64) -> io::Result<()> {
    let sender = async {
        // Only part of it may have been accepted.
        let _ = traffic::send(&mut client, seed, length).await;
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        drop(client);
    };
    let receiver = timeout(PATIENCE, traffic::receive(&mut host, None));
    let ((), received) = tokio::join!(sender, receiver);
    match received {
        Ok(Ok((bytes, hash))) if hash != traffic::hash(seed, bytes) => {
            Err(io::Error::other("bytes received before a reset differ from those sent"))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(io::Error::other("a reset did not reach the other side")),
    }
}

/// An attacker.
async fn attacker(relay: &Relay, dice: &mut Dice) -> io::Result<()> {
    let mut stream = TcpStream::connect(relay.process.address()).await?;
    match dice.below(4) {
        0 => {
            let _ = stream.write_all(&Stream::bytes(dice.below(u64::MAX), 256)).await;
            let _ = timeout(PATIENCE, stream.read(&mut [0])).await;
        }
        1 => SockRef::from(&stream).set_linger(Some(Duration::ZERO))?,
        2 => {
            let _ = stream.write_all(&[0, 0, 0x10, 0, 8]).await;
            sleep(Duration::from_millis(dice.below(300))).await;
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_after_a_soak_are_named() {
        let meter = Meter { cpu: 0.0, pss: 1e7, files: 20.0 };
        let sight = Sight {
            meter,
            threads: 4,
            pipes: 0.0,
            sessions: 3.0,
            ended_wrong: 0.0,
            connections: 8.0,
            paired: 6.0,
            bytes: 100.0,
        };
        let counts = Counts {
            sessions: 3.into(),
            connections: 8.into(),
            arrived: 90.into(),
            sent: 110.into(),
            faults: 1.into(),
            ..Counts::default()
        };
        compare(&sight, &sight, &counts).unwrap();
        let meter = Meter { files: 21.0, pss: 2e7, ..meter };
        let wrong = Sight { meter, ended_wrong: 1.0, connections: 7.0, bytes: 89.0, ..sight };
        let error = compare(&sight, &wrong, &counts).unwrap_err().to_string();
        assert!(
            error.ends_with(": memory, descriptors, ends of sessions, connections, bytes"),
            "{error}"
        );
    }
}
