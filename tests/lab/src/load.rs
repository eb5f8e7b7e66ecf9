//! `relay-lab load`: runs many concurrent sessions and reports rates and delays.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use crate::control;

/// The traffic of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// As much as it can, from Host to Client.
    Bulk,
    /// A remote desktop: 30 frames of 8 KiB per second one way with a large one of 100 KiB every two seconds, and 60
    /// events of 64 bytes per second the other way.
    Desktop,
    /// Nearly idle: one event of 64 bytes per second from Client to Host.
    Quiet,
}

/// A load, bounded in sessions and time.
#[derive(Debug, Clone)]
pub struct Load {
    /// The control address of a `relay-lab router`, as host:port.
    pub control: String,
    /// Concurrent sessions.
    pub sessions: usize,
    /// Traffic of each.
    pub kind: Kind,
    /// Duration.
    pub duration: Duration,
}

/// The results of a load.
#[derive(Debug, Default)]
pub struct Report {
    /// Sessions that were paired and lasted to the end.
    pub sessions: usize,
    /// Sessions that failed.
    pub failed: usize,
    /// The first failure.
    pub reason: Option<String>,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Duration.
    pub seconds: f64,
    /// Delay of each frame from Host to Client, sorted, in microseconds.
    pub frames: Vec<u64>,
    /// Delay of each event from Client to Host, sorted, in microseconds.
    pub events: Vec<u64>,
}

/// A message with a timestamp: length of the rest, microseconds since the beginning, padding.
const HEADER: usize = 12;
const FRAME: usize = 8 * 1024;
const LARGE_FRAME: usize = 100 * 1024;
const EVENT: usize = 64;

/// Number of pairs that connect at the same time. More would be a different kind of load.
const CONNECTING: usize = 64;

/// The quantile of sorted values: `part` of them lie below it.
pub fn percentile(sorted: &[u64], part: f64) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into a list, from a part between 0 and 1"
    )]
    let index = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
    sorted.get(index).copied()
}

impl Report {
    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "sessions {} ({} failed), {:.1} MiB in {:.1} s: {:.1} MiB/s\n",
            self.sessions,
            self.failed,
            self.bytes as f64 / (1024.0 * 1024.0),
            self.seconds,
            self.bytes as f64 / (1024.0 * 1024.0) / self.seconds.max(0.001),
        );
        for (name, delays) in [("frames", &self.frames), ("events", &self.events)] {
            let at = |part| percentile(delays, part).unwrap_or_default();
            if !delays.is_empty() {
                text += &format!(
                    "{name}: {} in all, delay p50 {} us, p99 {} us, p99.9 {} us, largest {} us\n",
                    delays.len(),
                    at(0.5),
                    at(0.99),
                    at(0.999),
                    at(1.0)
                );
            }
        }
        if let Some(reason) = &self.reason {
            text += &format!("first failure: {reason}\n");
        }
        text
    }

    /// JSON for programs.
    pub fn json(&self) -> serde_json::Value {
        let delays = |delays: &[u64]| {
            serde_json::json!({
                "count": delays.len(),
                "p50_us": percentile(delays, 0.5),
                "p99_us": percentile(delays, 0.99),
                "p999_us": percentile(delays, 0.999),
                "max_us": delays.last(),
            })
        };
        serde_json::json!({
            "sessions": self.sessions,
            "failed": self.failed,
            "reason": self.reason,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "frames": delays(&self.frames),
            "events": delays(&self.events),
        })
    }

    fn add(&mut self, session: io::Result<Seen>) {
        match session {
            Ok(seen) => {
                self.sessions += 1;
                self.bytes += seen.bytes;
                self.frames.extend(seen.frames);
                self.events.extend(seen.events);
            }
            Err(error) => {
                self.failed += 1;
                self.reason.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

#[derive(Default)]
struct Seen {
    bytes: u64,
    frames: Vec<u64>,
    events: Vec<u64>,
}

/// Runs the load.
pub async fn run(load: &Load) -> Report {
    let began = Instant::now();
    let mut report = Report::default();
    // All sessions are opened first, so that the load is even from the beginning.
    let permits = Arc::new(Semaphore::new(CONNECTING));
    let mut connecting = JoinSet::new();
    for _ in 0..load.sessions {
        let (permits, control) = (permits.clone(), load.control.clone());
        connecting.spawn(async move {
            let _permit = permits.acquire().await.map_err(io::Error::other)?;
            connect(&control).await
        });
    }
    let mut pairs = Vec::new();
    while let Some(pair) = connecting.join_next().await {
        match pair.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(pair) => pairs.push(pair),
            Err(error) => report.add(Err(error)),
        }
    }
    let start = Instant::now();
    let end = start + load.duration;
    let mut tasks = JoinSet::new();
    let count = u32::try_from(pairs.len()).unwrap_or(u32::MAX).max(1);
    for (number, (client, host)) in (0..).zip(pairs) {
        // Sessions do not send in lockstep.
        let first = start + Duration::from_secs(1) * number / count;
        tasks.spawn(session(client, host, load.kind, Clock { zero: began, first, end }));
    }
    while let Some(seen) = tasks.join_next().await {
        report.add(seen.unwrap_or_else(|error| Err(io::Error::other(error))));
    }
    report.seconds = start.elapsed().as_secs_f64();
    report.frames.sort_unstable();
    report.events.sort_unstable();
    report
}

async fn connect(control: &str) -> io::Result<(TcpStream, TcpStream)> {
    // In a short load, a session that is not active yet would end before it began.
    control::introduction(control).await?.session().await
}

/// The timing of one session.
#[derive(Debug, Clone, Copy)]
struct Clock {
    /// What delays are counted from.
    zero: Instant,
    /// When the first message goes out.
    first: Instant,
    /// When the last one does.
    end: Instant,
}

async fn session(client: TcpStream, host: TcpStream, kind: Kind, clock: Clock) -> io::Result<Seen> {
    let Clock { zero, end, .. } = clock;
    let (client_read, client_write) = client.into_split();
    let (host_read, host_write) = host.into_split();
    match kind {
        Kind::Bulk => {
            let sender = tokio::spawn(bulk(host_write, end));
            let received = tokio::spawn(count(client_read));
            drop((client_write, host_read));
            finish(sender).await?;
            Ok(Seen { bytes: finish(received).await?, ..Seen::default() })
        }
        Kind::Quiet => {
            let events = tokio::spawn(paced(client_write, 1, clock, |_| EVENT));
            let at_host = tokio::spawn(delays(host_read, zero));
            finish(events).await?;
            let (events, bytes) = finish(at_host).await?;
            drop((client_read, host_write));
            Ok(Seen { bytes, frames: Vec::new(), events })
        }
        Kind::Desktop => {
            let frames = tokio::spawn(paced(host_write, 30, clock, |n| {
                if n % 60 == 59 { LARGE_FRAME } else { FRAME }
            }));
            let events = tokio::spawn(paced(client_write, 60, clock, |_| EVENT));
            let at_client = tokio::spawn(delays(client_read, zero));
            let at_host = tokio::spawn(delays(host_read, zero));
            finish(frames).await?;
            finish(events).await?;
            let (frames, frame_bytes) = finish(at_client).await?;
            let (events, event_bytes) = finish(at_host).await?;
            Ok(Seen { bytes: frame_bytes + event_bytes, frames, events })
        }
    }
}

async fn finish<T>(task: tokio::task::JoinHandle<io::Result<T>>) -> io::Result<T> {
    task.await.map_err(io::Error::other)?
}

async fn bulk(mut to: impl AsyncWriteExt + Unpin, end: Instant) -> io::Result<()> {
    let chunk = vec![0x5a; 64 * 1024];
    while Instant::now() < end {
        to.write_all(&chunk).await?;
    }
    to.shutdown().await
}

async fn count(mut from: impl AsyncReadExt + Unpin) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(total),
            read => total += read as u64,
        }
    }
}

async fn paced(
    mut to: impl AsyncWriteExt + Unpin,
    per_second: u32,
    Clock { zero, first, end }: Clock,
    size: impl Fn(u64) -> usize,
) -> io::Result<()> {
    let mut ticks = interval_at(first, Duration::from_secs(1) / per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut number = 0;
    let mut message = vec![0; LARGE_FRAME];
    while Instant::now() < end {
        ticks.tick().await;
        let length = size(number);
        let rest = u32::try_from(length - HEADER).unwrap_or(u32::MAX);
        message[..4].copy_from_slice(&rest.to_be_bytes());
        let micros = u64::try_from(zero.elapsed().as_micros()).unwrap_or(u64::MAX);
        message[4..HEADER].copy_from_slice(&micros.to_be_bytes());
        to.write_all(&message[..length]).await?;
        number += 1;
    }
    sleep_until(end).await;
    to.shutdown().await
}

async fn delays(mut from: impl AsyncReadExt + Unpin, zero: Instant) -> io::Result<(Vec<u64>, u64)> {
    let (mut delays, mut bytes) = (Vec::new(), 0);
    let mut rest = vec![0; LARGE_FRAME];
    loop {
        let mut header = [0; HEADER];
        match from.read_exact(&mut header).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok((delays, bytes));
            }
            read => read?,
        };
        let (length, sent) = header.split_at(4);
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n: u64, b| n << 8 | u64::from(*b));
        let length = usize::try_from(number(length)).unwrap_or(usize::MAX);
        let place = rest
            .get_mut(..length)
            .ok_or_else(|| io::Error::other("the bytes differ from those sent"))?;
        from.read_exact(place).await?;
        let now = u64::try_from(zero.elapsed().as_micros()).unwrap_or(u64::MAX);
        delays.push(now.saturating_sub(number(sent)));
        bytes += (HEADER + length) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Lab;
    use crate::router::Options;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_kind_of_load_is_delivered() {
        let Lab { router, relay: _relay } =
            Lab::start(Options::default(), &[("MaxPeerCount", "10")]).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(control::serve(listener, Arc::new(router)));
        for kind in [Kind::Desktop, Kind::Quiet, Kind::Bulk] {
            let (control, duration) = (control.clone(), Duration::from_millis(500));
            let report = run(&Load { control, sessions: 3, kind, duration }).await;
            assert_eq!((report.sessions, report.failed), (3, 0), "{:?}", report.reason);
            assert!(report.bytes > 0);
            assert_eq!(report.frames.is_empty(), kind != Kind::Desktop);
            assert_eq!(report.events.is_empty(), kind == Kind::Bulk);
            assert!(report.table().contains("sessions 3 (0 failed)"));
            assert_eq!(report.json()["sessions"], 3);
        }
        serving.abort();
    }

    #[test]
    fn percentiles() {
        let values: Vec<u64> = (0..=100).collect();
        assert_eq!(percentile(&values, 0.5), Some(50));
        assert_eq!(percentile(&values, 0.99), Some(99));
        assert_eq!(percentile(&values, 1.0), Some(100));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
