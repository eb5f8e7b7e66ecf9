//! `relay-lab`: tries a relay without an Aspia Router, Client or Host.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use aspia_relay::crypto::PrivateKey;
use clap::{Parser, Subcommand};
use relay_lab::load::{Kind, Load};
use relay_lab::router::{LabRouter, Options, RouterDialect, RouterVersion};
#[cfg(target_os = "linux")]
use relay_lab::{attack, bench, fleet, soak, survive};
use relay_lab::{control, demo, load, say, traffic};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

/// The laboratory of aspia-relay.
#[derive(Debug, Parser)]
#[command(name = "relay-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a Router, a relay and two peers on this machine, with verified data both ways
    Demo {
        /// Mebibytes in each direction
        #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=65536))]
        mib: u64,
        /// Dialect of the Router
        #[arg(long, value_enum, default_value = "2")]
        router: RouterDialect,
    },
    /// Runs a Router for any relay; prints the settings for relay.json
    Router {
        /// Address for relays
        #[arg(long, default_value = "127.0.0.1:8060")]
        listen: SocketAddr,
        /// Address at which `relay-lab peers` and `relay-lab load` request introductions
        #[arg(long, default_value = "127.0.0.1:8061")]
        control: SocketAddr,
        /// File with the private key, created if it is missing; without it, a new key for each run
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Derive the private key from this word; anyone who knows the word knows the key
        #[arg(long, value_name = "WORD", conflicts_with = "key")]
        key_of: Option<String>,
        /// Version of the Router
        #[arg(long, value_enum, default_value = "2.7")]
        version: Version,
    },
    /// Runs two peers, introduced by `relay-lab router`, with verified data both ways
    Peers {
        /// The Router's --control, by name or address
        #[arg(long, default_value = "127.0.0.1:8061")]
        control: String,
        /// Mebibytes in each direction
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=65536))]
        mib: u64,
    },
    /// Runs many concurrent sessions, introduced by `relay-lab router`; reports rates and delays
    Load {
        /// The Router's --control, by name or address
        #[arg(long, default_value = "127.0.0.1:8061")]
        control: String,
        /// Concurrent sessions
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=10000))]
        sessions: u16,
        /// Traffic of each session
        #[arg(long, value_enum, default_value = "desktop")]
        kind: Kind,
        /// Duration of a round
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86400))]
        seconds: u64,
        /// Rounds, each with new sessions
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        rounds: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Measures what forwarding costs, compared with other forwarders, on this machine only
    #[cfg(target_os = "linux")]
    Bench(BenchArguments),
    /// Attacks a relay that it starts on this machine, and checks that its users do not suffer
    #[cfg(target_os = "linux")]
    Attack {
        /// Attacks, one after the other
        #[arg(
            long,
            value_enum,
            value_delimiter = ',',
            default_value = "quiet,silent,slow,reset,garbage,oversized,replay,storm"
        )]
        kinds: Vec<attack::Kind>,
        /// Duration of each attack
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
        /// Maximum rate of attacking connections, per second
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rate: u32,
        /// Program of the relay [default: aspia_relay in the directory of this program]
        #[arg(long, value_name = "PATH")]
        relay: Option<PathBuf>,
        /// Write the results as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Runs load, faults, reloads and attacks together, and checks that a relay leaks nothing
    #[cfg(target_os = "linux")]
    Soak {
        /// Duration
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        minutes: u64,
        /// Program of the relay [default: aspia_relay in the directory of this program]
        #[arg(long, value_name = "PATH")]
        relay: Option<PathBuf>,
    },
    /// Terminates or kills a relay again and again, and checks that its sessions outlive it
    #[cfg(target_os = "linux")]
    Survive(Box<survive::Arguments>),
    /// Runs relays with different CPU quotas at one Router, and shows how evenly they are used; needs root
    #[cfg(target_os = "linux")]
    Fleet(Box<fleet::Arguments>),
    /// Runs the plain proxy of `bench`
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    BenchCopy { listen: SocketAddr, to: SocketAddr },
    /// Runs the bare loop of `bench`
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    BenchFloor { listen: SocketAddr, to: SocketAddr },
}

#[cfg(target_os = "linux")]
#[derive(Debug, clap::Args)]
struct BenchArguments {
    /// Loads to measure
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "bulk,bulk-both,desktop,ping-pong,churn,idle"
    )]
    loads: Vec<bench::Kind>,
    /// Concurrent sessions, instead of the numbers of each load
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=9000))]
    sessions: Vec<u16>,
    /// Forwarders to compare with
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "haproxy,haproxy-splice,nginx,copy,floor,direct"
    )]
    against: Vec<bench::Baseline>,
    /// Programs of relays to measure [default: aspia_relay in the directory of this program]
    #[arg(long, value_name = "[NAME=]PATH")]
    relay: Vec<String>,
    /// Environment variable for the relays
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Run the forwarders in a network namespace behind virtual Ethernet devices instead of on loopback
    #[arg(long)]
    veth: bool,
    /// Measurements of each forwarder
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    repeats: u16,
    /// Duration of each measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write charts of the desktop load as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Version {
    #[value(name = "3.0")]
    V3_0,
    #[value(name = "2.7")]
    V2_7,
    #[value(name = "2.6")]
    V2_6,
    #[value(name = "2.5")]
    V2_5,
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let result = tokio::select! {
        result = run(command) => result,
        stopped = stop_requested() => stopped,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "relay-lab: FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns when the program is asked to stop. As process 1 of a container it would ignore the signal otherwise.
async fn stop_requested() -> io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};

        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            stopped = tokio::signal::ctrl_c() => stopped,
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

async fn run(command: Command) -> io::Result<()> {
    match command {
        Command::Demo { mib, router } => demo::run(mib, router.into()).await,
        Command::Router { listen, control, key, key_of, version } => match key_for(key, key_of) {
            Ok(private) => router(listen, control, private, version).await,
            Err(error) => Err(error),
        },
        Command::Peers { control, mib } => peers(&control, mib).await,
        Command::Load { control, sessions, kind, seconds, rounds, json } => {
            let duration = Duration::from_secs(seconds);
            let load = Load { control, sessions: sessions.into(), kind, duration };
            run_load(&load, rounds, json).await
        }
        #[cfg(target_os = "linux")]
        Command::Attack { kinds, seconds, rate, relay, json } => {
            let beside = std::env::current_exe()?.with_file_name("aspia_relay");
            let (relay, time) = (relay.unwrap_or(beside), Duration::from_secs(seconds));
            let report = attack::run(&attack::Plan { relay, kinds, time, rate }).await?;
            say(&report.table());
            if let Some(path) = json {
                std::fs::write(path, format!("{:#}\n", report.json()))?;
            }
            report.verdict()
        }
        #[cfg(target_os = "linux")]
        Command::Soak { minutes, relay } => {
            let beside = std::env::current_exe()?.with_file_name("aspia_relay");
            let (relay, time) = (relay.unwrap_or(beside), Duration::from_secs(60 * minutes));
            soak::run(&soak::Plan { relay, time }).await
        }
        #[cfg(target_os = "linux")]
        Command::Survive(arguments) => {
            survive::enter_namespace()?;
            let results = survive::run(&arguments.plan()?).await?;
            if let Some(path) = &arguments.json {
                std::fs::write(path, format!("{:#}\n", results.json()))?;
            }
            results.verdict()
        }
        #[cfg(target_os = "linux")]
        Command::Fleet(arguments) => run_fleet(&arguments).await,
        #[cfg(target_os = "linux")]
        Command::Bench(arguments) => run_bench(arguments).await,
        #[cfg(target_os = "linux")]
        Command::BenchCopy { listen, to } => {
            let work = move || bench::serve_copy(listen, to);
            tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
        }
        #[cfg(target_os = "linux")]
        Command::BenchFloor { listen, to } => {
            let work = move || bench::serve_floor(listen, to);
            tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
        }
    }
}

#[cfg(target_os = "linux")]
async fn run_fleet(arguments: &fleet::Arguments) -> io::Result<()> {
    survive::enter_namespace()?;
    let results = fleet::run(&arguments.plans()?).await?;
    if let Some(path) = &arguments.json {
        std::fs::write(path, format!("{:#}\n", results.json()))?;
    }
    if let Some(path) = &arguments.svg {
        std::fs::write(path, results.svg())?;
    }
    results.verdict()
}

#[cfg(target_os = "linux")]
async fn run_bench(arguments: BenchArguments) -> io::Result<()> {
    let pair = |text: &str| text.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned()));
    let beside = std::env::current_exe()?.with_file_name("aspia_relay");
    let mut relays: Vec<(String, PathBuf)> = arguments
        .relay
        .iter()
        .map(|text| pair(text).unwrap_or_else(|| ("ours".into(), text.clone())))
        .map(|(name, path)| (name, path.into()))
        .collect();
    if relays.is_empty() {
        relays.push(("ours".into(), beside));
    }
    let environment = arguments.env.iter().map(|text| {
        pair(text).ok_or_else(|| io::Error::other(format!("--env {text}: expected KEY=VALUE")))
    });
    let plan = bench::Plan {
        relays,
        environment: environment.collect::<Result<_, _>>()?,
        veth: arguments.veth,
        against: arguments.against,
        kinds: arguments.loads,
        sessions: arguments.sessions.into_iter().map(usize::from).collect(),
        repeats: arguments.repeats.into(),
        time: Duration::from_secs(arguments.seconds),
    };
    let results = bench::run(&plan).await?;
    say(&results.table());
    if let Some(path) = arguments.json {
        std::fs::write(path, format!("{:#}\n", results.json()))?;
    }
    if let Some(path) = arguments.svg {
        std::fs::write(path, results.svg())?;
    }
    Ok(())
}

async fn router(
    listen: SocketAddr,
    control: SocketAddr,
    private: PrivateKey,
    version: Version,
) -> io::Result<()> {
    let version = match version {
        Version::V3_0 => RouterVersion::V3_0,
        Version::V2_7 => RouterVersion::V2_7,
        Version::V2_6 => RouterVersion::V2_6,
        Version::V2_5 => RouterVersion::V2_5,
    };
    let options = Options { listen, version, ..Options::default() };
    let cannot = |what: &str, address: SocketAddr, error: io::Error| {
        io::Error::other(format!("cannot listen on {address} ({error}); choose another {what}"))
    };
    let router = LabRouter::with_key(options, private).await;
    let router = Arc::new(router.map_err(|error| cannot("--listen", listen, error))?);
    let introductions =
        TcpListener::bind(control).await.map_err(|error| cannot("--control", control, error))?;
    say(&format!("Router on {}; a relay reaches it with", router.address()));
    say(&format!("    \"RouterAddress\": \"{}\",", router.address().ip()));
    say(&format!("    \"RouterPort\": \"{}\",", router.address().port()));
    say(&format!("    \"RouterPublicKey\": \"{}\"", router.public_key()));
    say(&format!(
        "introductions on {}: relay-lab peers --control {0}",
        introductions.local_addr()?
    ));
    let watch = async {
        let (mut linked, mut count) = (false, 0);
        let mut changes = router.changes();
        while changes.changed().await.is_ok() {
            let view = router.view();
            if view.linked != linked {
                linked = view.linked;
                say(if linked { "a relay is connected" } else { "the relay has disconnected" });
            }
            if view.statistics_count != count {
                count = view.statistics_count;
                let sessions = view.statistics.map(|s| s.peer_connection).unwrap_or_default();
                let bytes: i64 = sessions.iter().map(|s| s.bytes_transferred).sum();
                say(&format!(
                    "{} sessions, {bytes} bytes, {} keys on offer",
                    sessions.len(),
                    view.pool.len()
                ));
            }
        }
    };
    tokio::select! {
        () = control::serve(introductions, router.clone()) => Ok(()),
        () = watch => Ok(()),
    }
}

/// The private key that the arguments ask for.
fn key_for(file: Option<PathBuf>, word: Option<String>) -> io::Result<PrivateKey> {
    match (file, word) {
        (Some(path), _) => stored_key(&path),
        (None, Some(word)) => LabRouter::key_of(&word).map_err(io::Error::other),
        (None, None) => PrivateKey::generate().map_err(io::Error::other),
    }
}

/// The private key in a file, in hex; creates the file with a new key if it is missing.
fn stored_key(path: &Path) -> io::Result<PrivateKey> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let bad = || io::Error::other(format!("{} is not a key of relay-lab", path.display()));
            let raw = hex::decode(text.trim()).map_err(|_| bad())?;
            PrivateKey::from_slice(&raw).map_err(|_| bad())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let private = PrivateKey::generate().map_err(io::Error::other)?;
            let raw = private.to_secret().map_err(io::Error::other)?;
            let mut file = std::fs::OpenOptions::new();
            file.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
            let mut file = file.open(path)?;
            file.write_all(hex::encode(raw.expose()).as_bytes())?;
            Ok(private)
        }
        Err(error) => Err(error),
    }
}

async fn peers(control: &str, mib: u64) -> io::Result<()> {
    let introduction = control::introduction(control).await?;
    say(&format!(
        "introduced with key {} at {}:{}",
        introduction.key_id, introduction.host, introduction.port
    ));
    let (client, host) = introduction.connect_both().await?;
    let length = mib * 1024 * 1024;
    let began = std::time::Instant::now();
    let end = |stream: tokio::net::TcpStream, seed: u64, expected: u64| async move {
        let (mut read, mut write) = stream.into_split();
        let sender = tokio::spawn(async move {
            traffic::send(&mut write, seed, length).await?;
            write.shutdown().await
        });
        traffic::verify(&mut read, expected, length, |_| {}).await?;
        sender.await.map_err(io::Error::other)?
    };
    tokio::try_join!(end(client, 1, 2), end(host, 2, 1))?;
    say(&format!(
        "{mib} MiB each way in {:.2} s, every byte as it was sent",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

async fn run_load(load: &Load, rounds: u32, json: bool) -> io::Result<()> {
    let mut failed = 0;
    for _ in 0..rounds {
        let report = load::run(load).await;
        if json {
            say(&format!("{:#}", report.json()));
        } else {
            say(report.table().trim_end());
        }
        failed += report.failed;
    }
    if failed > 0 {
        return Err(io::Error::other(format!("{failed} sessions failed")));
    }
    Ok(())
}
