//! Many peers at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![cfg(target_os = "linux")]

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use aspia_relay::app::{App, Engine, Listeners};
use aspia_relay::listen::bind::bind;
use aspia_relay::log::LogHandle;
use aspia_relay::open_files;
use aspia_relay::peer::PURPOSE;
use aspia_relay::trace::Tracer;
use aspia_relay::workers::Workers;
use relay_lab::relay;
use relay_lab::router::{LabRouter, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SESSIONS: usize = 500;

/// Fewer may wait than come: they are admitted between.
const SETTINGS: [(&str, &str); 2] = [("MaxPeerCount", "500"), ("MaxPendingPeers", "256")];

/// A peer that has dialled and said who it is. Blocks, and so does the relay, which is on the same thread.
fn dial(address: SocketAddr, first_message: &[u8]) -> TcpStream {
    // A full queue drops what comes, and the system tries again after a second: that would take minutes here.
    let mut stream =
        std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    stream.write_all(first_message).unwrap();
    stream.set_nonblocking(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}

#[tokio::test]
async fn a_thousand_peers_that_come_before_the_first_is_accepted_are_all_paired() {
    let queue = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    if queue.trim().parse::<usize>().unwrap() < 2 * SESSIONS {
        relay_lab::skip("a thousand peers at once", "net.core.somaxconn is too small");
        return;
    }
    let engine = Engine::on(Workers::start(2).unwrap());
    let router = LabRouter::start(Options::default()).await.unwrap();
    // As the program does it: its queue is what this is about.
    let listener = bind(PURPOSE, Some(Ipv4Addr::LOCALHOST.into()), 0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = relay::config(router.address(), router.public_key(), port, &SETTINGS).unwrap();
    // Both ends are here.
    let twice = [("MaxPeerCount", "2000")];
    let twice = relay::config(router.address(), router.public_key(), port, &twice).unwrap();
    if let Some(warning) = open_files::raise(&twice.config) {
        relay_lab::skip("a thousand peers at once", &warning);
        return;
    }
    let listeners = Listeners { peers: Some(listener), ..Listeners::default() };
    let app =
        App::bind(config, listeners, LogHandle::default(), Tracer::default(), engine).unwrap();
    let address = app.address();
    tokio::spawn(app.run());
    let mut introductions = Vec::new();
    for _ in 0..SESSIONS {
        introductions.push(router.introduce().await.unwrap());
    }
    let peers: Vec<[TcpStream; 2]> = introductions
        .iter()
        .map(|introduction| [(); 2].map(|()| dial(address, &introduction.first_bytes().unwrap())))
        .collect();
    for (number, [mut first, mut second]) in peers.into_iter().enumerate() {
        let said = number.to_be_bytes();
        first.write_all(&said).await.unwrap();
        let mut heard = [0; size_of::<usize>()];
        second.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, said);
    }
}
