//! One session: requests of one peer and answers of the other, every byte verified.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::arrivals::Arrival;
use crate::peer::Introduction;
use crate::traffic::Stream;

/// Longest time for a session to begin, and for one answer: far more than a relay needs whose quota is used up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connects two peers.
pub(super) async fn open(introduction: &Introduction) -> Result<(TcpStream, TcpStream), String> {
    match timeout(PATIENCE, introduction.session()).await {
        Ok(opened) => opened.map_err(|error| error.to_string()),
        Err(_) => Err(format!("not paired within {} s", PATIENCE.as_secs())),
    }
}

/// Runs a session to its end. Returns the number of round trips.
///
/// # Errors
/// Why it ended before.
pub(super) async fn run(
    (mut client, mut host): (TcpStream, TcpStream),
    arrival: &Arrival,
    seed: u64,
    end: Instant,
) -> Result<u64, String> {
    let pace = Duration::from_secs_f64(1.0 / arrival.rate);
    let data = Stream::bytes(seed, arrival.size);
    let mut buffer = vec![0; arrival.size];
    let (mut next, mut count) = (Instant::now(), 0);
    while Instant::now() < end {
        for (from, to) in [(true, "the Host"), (false, "the Client")] {
            let (from, into) =
                if from { (&mut client, &mut host) } else { (&mut host, &mut client) };
            let passed = timeout(PATIENCE, pass(from, into, &data, &mut buffer)).await;
            let passed = passed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            passed.map_err(|error| format!("{to}: {error}"))?;
        }
        count += 1;
        // A relay that is too slow is not asked more at once later on.
        next = (next + pace).max(Instant::now());
        sleep_until(next.min(end)).await;
    }
    Ok(count)
}

async fn pass(
    from: &mut TcpStream,
    to: &mut TcpStream,
    data: &[u8],
    buffer: &mut [u8],
) -> io::Result<()> {
    from.write_all(data).await?;
    to.read_exact(buffer).await?;
    if buffer != data {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "WRONG BYTES"));
    }
    Ok(())
}
