//! `relay-lab demo`: a Router, a relay and two peers on this machine, and verified data between them.

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
/// Longest that any step but the transfer may take.
const STEP: Duration = Duration::from_secs(30);
/// Longest time without any progress of the transfer.
const STALL: Duration = Duration::from_secs(30);

/// What is shown on the way: a live table and bars on a terminal, plain lines elsewhere.
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
        .map_err(|_| io::Error::other(format!("{what}: nothing for {} s", STEP.as_secs())))
}

/// Runs the demonstration with `mebibytes` in each direction and a Router of `version`.
///
/// # Errors
/// What failed, in words.
pub async fn run(mebibytes: u64, version: RouterVersion) -> io::Result<()> {
    let screen = Screen::new();
    screen.line("aspia-relay: a demonstration on this machine alone\n");
    let settings =
        [("MaxPeerCount", "8"), ("StatisticsEnabled", "true"), ("StatisticsInterval", "1")];
    let began = Instant::now();
    let Lab { router, relay } =
        Lab::start(Options { version, ..Options::default() }, &settings).await?;
    screen.done(&format!("Router {} of the laboratory on {}", version.0, router.address()));
    screen.done(&format!("relay on {}, this very program's code", relay.address()));
    let view = within("the relay does not register", router.keys(8)).await?;
    screen.done(&format!(
        "registered in {} ms: sealed with {}, {} keys on offer",
        began.elapsed().as_millis(),
        view.cipher.map(|cipher| cipher.to_string()).unwrap_or_default(),
        view.pool.len()
    ));

    let introduction = within("no key to introduce two peers with", router.introduce()).await??;
    let (client, host) = within("the relay does not accept", introduction.connect_both()).await??;
    let state = relay.handle().state().clone();
    within("the two peers are not paired", async {
        while state.counts().active == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await?;
    screen.done(&format!("Client and Host paired with key {}", introduction.key_id));

    let length = mebibytes * MIB;
    let began = Instant::now();
    let moved = Arc::new(AtomicU64::new(0));
    let there = end(client, 1, 2, length, screen.bar("Host   -> Client", length), moved.clone());
    let back = end(host, 2, 1, length, screen.bar("Client -> Host  ", length), moved.clone());
    let transfer = async { tokio::try_join!(there, back) };
    let watch = async {
        let mut ticks = interval(Duration::from_millis(200));
        let (mut last, mut last_moved, mut last_line) = (0, Instant::now(), Instant::now());
        loop {
            ticks.tick().await;
            let now = moved.load(Ordering::Relaxed);
            if now != last {
                (last, last_moved) = (now, Instant::now());
            }
            if last_moved.elapsed() > STALL {
                let stalled = format!("the transfer stands still after {now} bytes");
                return io::Error::other(stalled);
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
    };
    let (client, host) = tokio::select! {
        both = transfer => both?,
        stalled = watch => return Err(stalled),
    };
    let seconds = began.elapsed().as_secs_f64();
    screen.done(&format!("{mebibytes} MiB each way in {seconds:.2} s, every byte as it was sent"));

    let expected = i64::try_from(2 * length).unwrap_or(i64::MAX);
    let counted = |view: &crate::router::View| {
        view.statistics
            .as_ref()
            .and_then(|statistics| statistics.peer_connection.first())
            .is_some_and(|peer| peer.bytes_transferred == expected)
    };
    within("the Router's statistics lack bytes", router.wait_for(counted)).await?;
    screen.done(&format!("the Router's statistics count the same: {expected} bytes"));

    drop((client, host));
    within("the session does not end", router.keys(8)).await?;
    screen.done("session ended, its place is on offer again: 8 keys");
    relay.handle().drain();
    let stopped = within("the relay does not stop", relay.stopped()).await??;
    if stopped != Stopped::Drained {
        return Err(io::Error::other(format!(
            "the relay stopped with something left: {stopped:?}"
        )));
    }
    let complaints = router.view().complaints;
    if !complaints.is_empty() {
        return Err(io::Error::other(format!("the Router complains: {complaints:?}")));
    }
    screen.done("relay stopped, nothing left");
    screen.table.finish_and_clear();
    let rate = 2.0 * (length / MIB) as f64 / seconds;
    screen
        .line(&format!("\nAll is well: 1 session, {} MiB, {rate:.0} MiB/s in all.", 2 * mebibytes));
    Ok(())
}

/// One peer: sends, receives and checks; leaves the connection open.
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
    async fn the_demonstration_works() {
        super::run(1, super::RouterVersion::V2_7).await.unwrap();
        super::run(1, super::RouterVersion::V3_0).await.unwrap();
    }
}
