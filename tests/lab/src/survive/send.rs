//! What each side of a session sends.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};

use super::pattern::CHUNK;
use super::session::{Direction, Ending, Kind, Load, Session};

/// Bytes of an interactive request and of its answer.
const EXCHANGE: [u64; 2] = [64, 256];
/// Bytes that the Client of a half-closed session sends before it ends its direction.
const LAST_WORDS: u64 = 10_000;
/// What the Host of a half-closed session sends, and how often.
const TRICKLE: (u64, Duration) = (32, Duration::from_millis(100));
/// Length of the question and of the answer at the end of an idle session.
const QUESTION: u64 = 16;
/// Bytes that a bulk sender with a limited rate sends at once: enough for the relay to take a pipe.
const BURST: u64 = 512 * 1024;

/// Sends everything of one side and ends its direction.
pub(super) async fn send(
    session: &Session,
    side: usize,
    write: &mut OwnedWriteHalf,
    load: &Load,
) -> Result<(), Ending> {
    let mut out = Out { direction: &session.directions[side], write };
    let other = &session.directions[1 - side];
    match (session.kind, side) {
        (Kind::Interactive, 0) => ask(session, &mut out, load).await?,
        (Kind::Interactive, _) => answer(&mut out, other).await?,
        (Kind::HalfClosed, 0) => out.put(LAST_WORDS).await?,
        (Kind::HalfClosed, _) => trickle(&mut out, load).await?,
        (Kind::Idle, 0) => {
            load.stop.cancelled().await;
            out.put(QUESTION).await?;
            other.reaches(QUESTION).await;
        }
        (Kind::Idle, _) => {
            other.reaches(QUESTION).await;
            out.put(QUESTION).await?;
        }
        (Kind::Bulk, _) if session.has_bulk(side) => bulk(&mut out, load.bulk_rate, load).await?,
        (Kind::Throttled, 1) => bulk(&mut out, 0, load).await?,
        (Kind::Bulk | Kind::Throttled, _) => load.stop.cancelled().await,
    }
    out.direction.is_finished.store(true, Ordering::Relaxed);
    Ok(out.write.shutdown().await?)
}

/// The sending half of a side.
struct Out<'a> {
    direction: &'a Direction,
    write: &'a mut OwnedWriteHalf,
}

impl Out<'_> {
    /// Sends the next `length` bytes of the stream.
    async fn put(&mut self, length: u64) -> Result<(), Ending> {
        let mut left = length;
        while left > 0 {
            let position = self.direction.sent.load(Ordering::Relaxed);
            let wanted = usize::try_from(left).unwrap_or(CHUNK);
            let bytes = self.direction.pattern.at(position, wanted);
            self.write.write_all(bytes).await?;
            self.direction.sent.store(position + bytes.len() as u64, Ordering::Relaxed);
            left -= bytes.len() as u64;
        }
        Ok(())
    }
}

/// Sends requests, one after the other.
async fn ask(session: &Session, out: &mut Out<'_>, load: &Load) -> Result<(), Ending> {
    let [request, answer] = EXCHANGE;
    // Sessions do not send in lockstep.
    sleep(load.pace.mul_f64((session.number % 97) as f64 / 97.0)).await;
    let mut ticks = interval(load.pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answers = 0;
    while load.stop.run_until_cancelled(ticks.tick()).await.is_some() {
        session.waits.ask(load.zero);
        out.put(request).await?;
        answers += answer;
        if !session.directions[1].reaches(answers).await {
            break;
        }
        session.waits.answer(load.zero);
    }
    Ok(())
}

/// Answers every request, until no more can come.
async fn answer(out: &mut Out<'_>, requests: &Direction) -> Result<(), Ending> {
    let [request, answer] = EXCHANGE;
    let mut next = request;
    while requests.reaches(next).await {
        out.put(answer).await?;
        next += request;
    }
    Ok(())
}

async fn trickle(out: &mut Out<'_>, load: &Load) -> Result<(), Ending> {
    let mut ticks = interval(TRICKLE.1);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while load.stop.run_until_cancelled(ticks.tick()).await.is_some() {
        out.put(TRICKLE.0).await?;
    }
    Ok(())
}

/// Sends without a pause, or in bursts at a limited rate.
async fn bulk(out: &mut Out<'_>, rate: u64, load: &Load) -> Result<(), Ending> {
    let mut due = Instant::now();
    while !load.stop.is_cancelled() {
        if rate == 0 {
            out.put(CHUNK as u64).await?;
            continue;
        }
        out.put(BURST).await?;
        // Time lost while the relay was away is not made up for.
        due = due.max(Instant::now()) + Duration::from_secs_f64(BURST as f64 / rate as f64);
        let _ = load.stop.run_until_cancelled(sleep_until(due.into())).await;
    }
    Ok(())
}
