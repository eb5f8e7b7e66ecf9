//! Many peers at once.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use aspia_relay::app::{App, DataPlane, Listeners};
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

use crate::harness::tests;

tests! {
    thousand_simultaneous_peers_are_all_paired,
}

const SESSIONS: usize = 500;

/// Fewer connections may be pending than peers arrive; the relay pairs some before it accepts more.
const SETTINGS: [(&str, &str); 2] = [("MaxPeerCount", "500"), ("MaxPendingPeers", "256")];

/// Connects a peer and sends its first message. Blocks the thread, and with it the relay.
fn dial(address: SocketAddr, first_message: &[u8]) -> TcpStream {
    // If the queue were full, the kernel would drop SYNs and retry after a second, which would take minutes here.
    let mut stream =
        std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    stream.write_all(first_message).unwrap();
    stream.set_nonblocking(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}

#[tokio::main(flavor = "current_thread")]
async fn thousand_simultaneous_peers_are_all_paired() {
    let queue = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    if queue.trim().parse::<usize>().unwrap() < 2 * SESSIONS {
        relay_lab::cannot_run("net.core.somaxconn is below 1000");
    }
    let data_plane = DataPlane::on(Workers::start(2).unwrap());
    let router = LabRouter::start(Options::default()).await.unwrap();
    // Bound as the program does it, since this test is about the queue of the socket.
    let listener = bind(PURPOSE, Some(Ipv4Addr::LOCALHOST.into()), 0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = relay::config(router.address(), router.public_key(), port, &SETTINGS).unwrap();
    // Both ends of every session are in this process.
    let twice = [("MaxPeerCount", "2000")];
    let twice = relay::config(router.address(), router.public_key(), port, &twice).unwrap();
    if let Some(warning) = open_files::raise_limit(&twice.config) {
        relay_lab::cannot_run(warning);
    }
    let listeners = Listeners { peers: Some(listener), ..Listeners::default() };
    let app =
        App::bind(config, listeners, LogHandle::default(), Tracer::default(), data_plane).unwrap();
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
