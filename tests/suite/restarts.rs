//! A Router that goes away after any byte of the way to a link: the relay is back by itself, and its session goes on.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use relay_lab::relay::Relay;
use relay_lab::router::LabRouter;
use relay_lab::traffic;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{options, protocol};

/// Relays at once; each waits most of its time for its next try.
const AT_ONCE: usize = 200;
/// Longest wait for a relay that is not back.
const PATIENCE: Duration = Duration::from_secs(300);
/// The number of a key takes 1 to 5 bytes, so that a link may be as much shorter than the one before.
const NUMBER: usize = 4;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToRouter,
    ToRelay,
}

/// Where a connection is cut.
#[derive(Debug, Clone, Copy)]
struct Cut {
    way: Way,
    after: usize,
    /// By a reset instead of an end.
    reset: bool,
}

/// Stands between a relay and its Router. Once it is armed, the next connection is the one that may be cut.
struct Between {
    address: SocketAddr,
    is_armed: Arc<AtomicBool>,
    /// Connections since it was armed.
    connections: watch::Receiver<usize>,
    /// Bytes of the first of these, by [`Way`].
    passed: Arc<[AtomicUsize; 2]>,
    _tasks: JoinSet<()>,
}

impl Between {
    async fn start(router: SocketAddr, cut: Option<Cut>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (count, connections) = watch::channel(0);
        let passed = Arc::new([const { AtomicUsize::new(0) }; 2]);
        let is_armed = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        let (counted, armed) = (passed.clone(), is_armed.clone());
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((relay, _)) = listener.accept().await {
                let is_armed = armed.load(Ordering::Relaxed);
                count.send_modify(|count| *count += usize::from(is_armed));
                let is_it = *count.borrow() == 1;
                let counted = if is_it { counted.clone() } else { Arc::default() };
                let cut = cut.filter(|_| is_it);
                open.spawn(async move {
                    if let Ok(router) = TcpStream::connect(router).await {
                        pass(relay, router, cut, &counted).await;
                    }
                });
            }
        });
        Ok(Self { address, is_armed, connections, passed, _tasks: tasks })
    }

    fn passed(&self, way: Way) -> usize {
        self.passed[way as usize].load(Ordering::Relaxed)
    }
}

/// Passes bytes on until one side ends, or to the cut.
async fn pass(relay: TcpStream, router: TcpStream, cut: Option<Cut>, passed: &[AtomicUsize; 2]) {
    let end = |stream: &TcpStream| {
        if cut.is_some_and(|cut| cut.reset) {
            SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    };
    end(&relay);
    end(&router);
    let (from_relay, to_relay) = relay.into_split();
    let (from_router, to_router) = router.into_split();
    let most = |way| cut.filter(|cut| cut.way == way).map_or(usize::MAX, |cut| cut.after);
    // Both ends of both connections go with whichever is over first.
    tokio::select! {
        () = copy(from_relay, to_router, most(Way::ToRouter), &passed[Way::ToRouter as usize]) => {}
        () = copy(from_router, to_relay, most(Way::ToRelay), &passed[Way::ToRelay as usize]) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, most: usize, passed: &AtomicUsize) {
    let mut buffer = [0; 4096];
    loop {
        let room = (most - passed.load(Ordering::Relaxed)).min(buffer.len());
        if room == 0 {
            return;
        }
        let Ok(read @ 1..) = from.read(&mut buffer[..room]).await else {
            return;
        };
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        passed.fetch_add(read, Ordering::Relaxed);
    }
}

/// A relay with a session loses its link, and comes back over one that is cut. Gives how many bytes that one had.
async fn comes_back(protocol: &str, cut: Option<Cut>) -> io::Result<[usize; 2]> {
    let router = LabRouter::start(options()).await?;
    let mut between = Between::start(router.address(), cut).await?;
    let settings = [("MaxPeerCount", "2"), ("RouterProtocol", protocol)];
    let relay = Relay::start(between.address, router.public_key(), &settings)?;
    router.keys(2).await;
    let (mut client, mut host) = router.introduce().await?.session().await?;
    between.is_armed.store(true, Ordering::Relaxed);
    router.drop_link().await;
    let enough = if cut.is_some() { 2 } else { 1 };
    between.connections.wait_for(|count| *count >= enough).await.map_err(io::Error::other)?;
    // The other key is with the session.
    router.keys(1).await;
    let passed = [between.passed(Way::ToRouter), between.passed(Way::ToRelay)];
    // Not that it is ready: the Router has to keep the link for a while first.
    assert!(relay.handle().link().link.is_some(), "{cut:?}: {:?}", relay.handle().link());
    assert!(relay.handle().accepting().is_well(), "{cut:?}");
    traffic::send(&mut client, 1, 1000).await?;
    traffic::send(&mut host, 2, 1000).await?;
    let at_host = traffic::receive(&mut host, Some(1000)).await?;
    let at_client = traffic::receive(&mut client, Some(1000)).await?;
    assert_eq!((at_host.1, at_client.1), (traffic::hash(1, 1000), traffic::hash(2, 1000)));
    drop(router.introduce().await?.session().await?);
    Ok(passed)
}

/// In real time: bytes are between sockets here, where a paused clock would jump over every wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    windows,
    ignore = "under Wine one of some hundred sessions ends early; why is not known"
)]
async fn a_router_that_goes_away_after_any_byte_finds_the_relay_back() {
    let [to_router, to_relay] = comes_back(protocol(), None).await.unwrap();
    assert!(to_router > 100 && to_relay > 50, "{to_router} {to_relay}");
    let cuts = [(Way::ToRouter, to_router - NUMBER), (Way::ToRelay, to_relay)];
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut relays = JoinSet::new();
    for (way, length) in cuts {
        for after in 0..length {
            // Where the relay finds out by itself what the Router speaks, a cut leads to the other dialect and back.
            for (protocol, reset) in [(protocol(), false), (protocol(), true), ("auto", false)] {
                let (cut, places) = (Cut { way, after, reset }, places.clone());
                relays.spawn(async move {
                    let _place = places.acquire().await.unwrap();
                    match timeout(PATIENCE, comes_back(protocol, Some(cut))).await {
                        Ok(back) => drop(back.unwrap_or_else(|error| panic!("{cut:?}: {error}"))),
                        Err(_) => panic!("{cut:?}: the relay does not come back"),
                    }
                });
            }
        }
    }
    assert!(relays.len() > 3 * 150, "{}", relays.len());
    while let Some(relay) = relays.join_next().await {
        relay.unwrap();
    }
}
