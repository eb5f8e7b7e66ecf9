//! Sessions that a peer ends while the relay is restarted: the other one must learn it, after every byte.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::traffic::Stream;

/// Time between the departures, so that they meet every phase of a restart.
const APART: Duration = Duration::from_millis(15);
/// Longest wait for the other side to learn it. It includes the restart.
const LEARNED: Duration = Duration::from_secs(20);
/// Bytes sent right before the end of a direction.
const LAST: usize = 1000;

/// Ends a session in a way and at a time that depend on `number`.
pub(super) async fn depart(client: TcpStream, host: TcpStream, number: u32) -> io::Result<()> {
    sleep(APART * number).await;
    let (name, ended) = match number % 3 {
        0 => ("one side ends, then the other", timeout(LEARNED, in_turn(client, host)).await),
        1 => ("both sides end", timeout(LEARNED, at_once(client, host)).await),
        _ => ("one side resets", timeout(LEARNED, reset(client, host)).await),
    };
    let failed = |error: &dyn std::fmt::Display| {
        Err(io::Error::other(format!("departure {number}, {name}: {error}")))
    };
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => failed(&error),
        Err(_) => failed(&"not learned in time"),
    }
}

async fn say_last(stream: &mut TcpStream, seed: u64) -> io::Result<()> {
    stream.write_all(&Stream::bytes(seed, LAST)).await?;
    stream.shutdown().await
}

async fn hear_last(stream: &mut TcpStream, seed: u64) -> io::Result<()> {
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await?;
    if heard == Stream::bytes(seed, LAST) {
        return Ok(());
    }
    Err(io::Error::other(format!("{} bytes of {LAST} before the end", heard.len())))
}

async fn in_turn(mut client: TcpStream, mut host: TcpStream) -> io::Result<()> {
    say_last(&mut client, 1).await?;
    hear_last(&mut host, 1).await?;
    say_last(&mut host, 2).await?;
    hear_last(&mut client, 2).await
}

async fn at_once(mut client: TcpStream, mut host: TcpStream) -> io::Result<()> {
    tokio::try_join!(say_last(&mut client, 1), say_last(&mut host, 2))?;
    tokio::try_join!(hear_last(&mut host, 1), hear_last(&mut client, 2)).map(drop)
}

async fn reset(client: TcpStream, mut host: TcpStream) -> io::Result<()> {
    SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    drop(client);
    match host.read(&mut [0]).await {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Ok(_) => Err(io::Error::other("bytes instead of an end")),
        Err(error) => Err(error),
    }
}
