//! Draining under load, with real threads: sessions that end in time lose no byte.

use std::time::Duration;

use aspia_relay::app::{DataPlane, Stopped};
use aspia_relay::open_files;
use aspia_relay::workers::Workers;
use relay_lab::relay::{Lab, config};
use relay_lab::router::Options;
use relay_lab::traffic;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::harness::tests;

tests! {
    drain_with_500_active_transfers_loses_nothing,
}

const SESSIONS: usize = 500;
/// Bytes in each direction of a session, before the stop and again after it.
const PART: u64 = 64 * 1024;
/// The end of the second part, which is sent only after the stop, so that no session ends before it.
const LAST: usize = 1000;

/// One peer: sends both parts except the last bytes and reads the first part, and does the rest after the stop.
async fn one_side(
    mut stream: TcpStream,
    seed: u64,
    of_other: u64,
    stopping: watch::Receiver<bool>,
) {
    let (mut read, mut write) = stream.split();
    let stop = async || stopping.clone().wait_for(|stopping| *stopping).await.map(drop).unwrap();
    let send = async {
        let bytes = traffic::Stream::bytes(seed, usize::try_from(2 * PART).unwrap());
        let (bytes, last) = bytes.split_at(bytes.len() - LAST);
        write.write_all(bytes).await.unwrap();
        stop().await;
        write.write_all(last).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receive = async {
        let first = traffic::receive(&mut read, Some(PART)).await.unwrap();
        assert_eq!(first, (PART, traffic::hash(of_other, PART)));
        stop().await;
        // The stream continues where it stopped.
        let (rest, hash) = traffic::receive(&mut read, None).await.unwrap();
        let whole = traffic::Stream::bytes(of_other, usize::try_from(2 * PART).unwrap());
        let expected = traffic::hash_of(&whole[usize::try_from(PART).unwrap()..]);
        assert_eq!((rest, hash), (PART, expected));
    };
    tokio::join!(send, receive);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn drain_with_500_active_transfers_loses_nothing() {
    let data_plane = DataPlane::on(Workers::start(2).unwrap());
    let settings = [("MaxPeerCount", "500"), ("DrainTimeout", "600s")];
    let lab = Lab::start_with(Options::default(), &settings, data_plane).await.unwrap();
    let (router, key) = (lab.router.address(), lab.router.public_key());
    // Both ends of every session are in this process.
    let twice = config(router, key, 1, &[("MaxPeerCount", "2000")]).unwrap();
    if let Some(warning) = open_files::raise_limit(&twice.config) {
        relay_lab::cannot_run(warning);
    }
    let (stop, stopping) = watch::channel(false);
    let mut sides = JoinSet::new();
    for number in 0..SESSIONS as u64 {
        let (client, host) = lab.router.introduce().await.unwrap().session().await.unwrap();
        let (there, back) = (2 * number, 2 * number + 1);
        sides.spawn(one_side(client, there, back, stopping.clone()));
        sides.spawn(one_side(host, back, there, stopping.clone()));
    }
    let handle = lab.relay.handle().clone();
    assert_eq!(handle.state().counts().active, SESSIONS);
    // A reload in between does not affect them.
    let port = lab.relay.address().port();
    let settings =
        [("MaxPeerCount", "400"), ("DrainTimeout", "600s"), ("StatisticsEnabled", "true")];
    handle.reload(&config(router, key, port, &settings).unwrap());
    handle.drain();
    // New peers get other relays, since the Router has no more keys of this one.
    lab.router.wait_for(|view| !view.linked).await;
    assert_eq!(handle.state().counts().active, SESSIONS);
    stop.send_replace(true);
    while let Some(side) = sides.join_next().await {
        side.unwrap();
    }
    let stopped = tokio::time::timeout(Duration::from_secs(300), lab.relay.stopped()).await;
    assert_eq!(stopped.unwrap().unwrap(), Stopped::Drained);
}
