//! `relay-lab demo`: a Router, a relay and two peers on this machine, with verified data between the peers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aspia_relay::app::Stopped;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, interval, timeout};

use crate::relay::Lab;
use crate::router::{Options, RouterVersion};
use crate::traffic;

const MIB: u64 = 1024 * 1024;
/// Longest time for any step except the transfer.
const STEP: Duration = Duration::from_secs(30);
/// Longest time without progress of the transfer.
const STALL: Duration = Duration::from_secs(30);

/// Shows the progress: a live table and bars on a terminal, plain lines elsewhere.
struct Screen {
    all: MultiProgress,
    table: ProgressBar,
    plain: bool,
}

impl Screen {
    fn new() -> Self {
        let all = MultiProgress::new();
        let plain = all.is_hidden();
        let table = all.add(ProgressBar::new_spinner());
        table.set_style(style("{msg}"));
        Self { all, table, plain }
    }

    /// Announces a step.
    fn begin(&self, text: &str) {
        self.line(&format!("  ... {text}"));
    }

    /// Reports a completed step.
    fn done(&self, text: &str) {
        self.line(&format!("  ok  {text}"));
    }

    fn line(&self, text: &str) {
        self.all.suspend(|| crate::say(text));
    }

    fn bar(&self, name: &'static str, length: u64) -> ProgressBar {
        let bar = self.all.add(ProgressBar::new(length));
        bar.set_style(style(
            "      {prefix} [{bar:30}] {bytes:>10} of {total_bytes}, {bytes_per_sec}",
        ));
        bar.set_prefix(name);
        bar
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

async fn within<T>(what: &str, step: impl Future<Output = T>) -> io::Result<T> {
    timeout(STEP, step)
        .await
        .map_err(|_| io::Error::other(format!("{what} within {} s", STEP.as_secs())))
}

/// Runs the demonstration with `mebibytes` in each direction and a Router of `version`.
///
/// # Errors
/// Says which step failed, and how.
pub async fn run(mebibytes: u64, version: RouterVersion) -> io::Result<()> {
    let screen = Screen::new();
    screen.line("aspia-relay: a demonstration on this machine only\n");
    let lab = register(&screen, version).await?;
    let (client, host) = pair(&screen, &lab).await?;
    let length = mebibytes * MIB;
    let began = Instant::now();
    let peers = transfer(&screen, &lab, client, host, length).await?;
    let seconds = began.elapsed().as_secs_f64();
    screen.done(&format!("{mebibytes} MiB each way in {seconds:.2} s, every byte as it was sent"));
    compare_statistics(&screen, &lab, 2 * length).await?;
    drop(peers);
    stop(&screen, lab).await?;
    screen.table.finish_and_clear();
    let rate = 2.0 * mebibytes as f64 / seconds;
    screen.line(&format!("\nAll is well: 1 session, {} MiB, {rate:.0} MiB/s.", 2 * mebibytes));
    Ok(())
}

/// Starts a Router and a relay, which registers.
async fn register(screen: &Screen, version: RouterVersion) -> io::Result<Lab> {
    let settings =
        [("MaxPeerCount", "8"), ("StatisticsEnabled", "true"), ("StatisticsInterval", "1")];
    let began = Instant::now();
    screen.begin("starting a Router and a relay");
    let lab = Lab::start(Options { version, ..Options::default() }, &settings).await?;
    screen.done(&format!("laboratory Router {} on {}", version.0, lab.router.address()));
    screen.done(&format!("relay on {}, in this process", lab.relay.address()));
    screen.begin("waiting until the relay has registered");
    let view = within("the relay does not register", lab.router.keys(8)).await?;
    screen.done(&format!(
        "registered in {} ms: sealed with {}, {} keys on offer",
        began.elapsed().as_millis(),
        view.cipher.map(|cipher| cipher.to_string()).unwrap_or_default(),
        view.pool.len()
    ));
    Ok(lab)
}

/// Connects a Client and a Host, and waits until the relay has paired them.
async fn pair(screen: &Screen, lab: &Lab) -> io::Result<(TcpStream, TcpStream)> {
    screen.begin("connecting a Client and a Host");
    let introduction = within("no key is on offer", lab.router.introduce()).await??;
    let peers = within("the relay does not accept", introduction.connect_both()).await??;
    let state = lab.relay.handle().state();
    within("the two peers are not paired", async {
        while state.counts().active == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await?;
    screen.done(&format!("Client and Host paired with key {}", introduction.key_id));
    Ok(peers)
}

/// Sends `length` bytes in each direction and verifies them.
async fn transfer(
    screen: &Screen,
    lab: &Lab,
    client: TcpStream,
    host: TcpStream,
    length: u64,
) -> io::Result<(TcpStream, TcpStream)> {
    screen.begin(&format!("sending {} MiB each way through the relay", length / MIB));
    let moved = Arc::new(AtomicU64::new(0));
    let there = end(client, 1, 2, length, screen.bar("Host   -> Client", length), moved.clone());
    let back = end(host, 2, 1, length, screen.bar("Client -> Host  ", length), moved.clone());
    tokio::select! {
        both = async { tokio::try_join!(there, back) } => both,
        stalled = watch(screen, lab, &moved) => Err(stalled),
    }
}

/// Shows the progress of a transfer; returns when it stalls.
async fn watch(screen: &Screen, lab: &Lab, moved: &AtomicU64) -> io::Error {
    let state = lab.relay.handle().state();
    let began = Instant::now();
    let mut ticks = interval(Duration::from_millis(200));
    let (mut last, mut last_moved, mut last_line) = (0, Instant::now(), Instant::now());
    loop {
        ticks.tick().await;
        let now = moved.load(Ordering::Relaxed);
        if now != last {
            (last, last_moved) = (now, Instant::now());
        }
        if last_moved.elapsed() > STALL {
            return io::Error::other(format!("the transfer stalled after {now} bytes"));
        }
        let counts = state.counts();
        let bytes: u64 = state.sessions().iter().map(|session| session.traffic.bytes()).sum();
        let rate =
            bytes / MIB * 1000 / u64::try_from(began.elapsed().as_millis()).unwrap_or(1).max(1);
        let table = format!(
            "      sessions {}   keys on offer {}   handed out {}   {} MiB   {rate} MiB/s",
            counts.active,
            counts.offered,
            counts.handed_out,
            bytes / MIB,
        );
        if screen.plain && last_line.elapsed() > Duration::from_secs(1) {
            screen.line(&table);
            last_line = Instant::now();
        }
        screen.table.set_message(table);
    }
}

/// Waits until the Router's statistics count all bytes.
async fn compare_statistics(screen: &Screen, lab: &Lab, bytes: u64) -> io::Result<()> {
    screen.begin("waiting for the relay's statistics");
    let expected = i64::try_from(bytes).unwrap_or(i64::MAX);
    let counted = |view: &crate::router::View| {
        view.statistics
            .as_ref()
            .and_then(|statistics| statistics.peer_connection.first())
            .is_some_and(|peer| peer.bytes_transferred == expected)
    };
    within("the Router's statistics do not count all bytes", lab.router.wait_for(counted)).await?;
    screen.done(&format!("the Router's statistics count the same: {expected} bytes"));
    Ok(())
}

/// Waits for the end of the session and stops the relay.
async fn stop(screen: &Screen, Lab { router, relay }: Lab) -> io::Result<()> {
    screen.begin("ending the session and stopping the relay");
    within("the session does not end", router.keys(8)).await?;
    screen.done("session ended, its place is on offer again: 8 keys");
    relay.handle().drain();
    let stopped = within("the relay does not stop", relay.stopped()).await??;
    if stopped != Stopped::Drained {
        return Err(io::Error::other(format!(
            "the relay ended sessions as it stopped: {stopped:?}"
        )));
    }
    let complaints = router.view().complaints;
    if !complaints.is_empty() {
        return Err(io::Error::other(format!("the Router complains: {complaints:?}")));
    }
    screen.done("relay stopped, nothing left");
    Ok(())
}

/// Sends and verifies the bytes of one peer. Leaves the connection open.
async fn end(
    stream: TcpStream,
    seed: u64,
    expected: u64,
    length: u64,
    bar: ProgressBar,
    moved: Arc<AtomicU64>,
) -> io::Result<TcpStream> {
    let (mut read, mut write) = stream.into_split();
    let sender = tokio::spawn(async move {
        traffic::send(&mut write, seed, length).await?;
        write.flush().await?;
        io::Result::Ok(write)
    });
    traffic::verify(&mut read, expected, length, |count| {
        bar.inc(count as u64);
        moved.fetch_add(count as u64, Ordering::Relaxed);
    })
    .await?;
    bar.finish_and_clear();
    let write = sender.await.map_err(io::Error::other)??;
    read.reunite(write).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn demonstration_succeeds_with_either_router() {
        super::run(1, super::RouterVersion::V2_7).await.unwrap();
        super::run(1, super::RouterVersion::V3_0).await.unwrap();
    }
}
