//! Whether a session has lost bytes is told from the figures of the kernel: a stand-in for a relay forwards between two pairs of
//! sockets, dies at any point between two system calls, and another relay goes on.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aspia_relay::forward::balance::{Balances, Verdict};
use aspia_relay::forward::figures::SocketFigures;
use aspia_relay::forward::metrics::ForwardMetrics;
use aspia_relay::forward::pipe::Pipes;
use aspia_relay::forward::{BUDGET, Forward, ForwardResources, TransferMethod};
use aspia_relay::handover::notes::clock::NoteClock;
use aspia_relay::handover::notes::session::SessionNote;
use aspia_relay::state::sessions::{PeerIdentity, SessionId, SessionRecord, Traffic};
use prometheus::Registry;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, timeout};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().unwrap();
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| runtime.block_on(work))
}

/// Longest wait for the end of a session.
const PATIENCE: Duration = Duration::from_secs(60);

/// What each peer sends, again and again. The length is a prime, so that no error is a whole period by chance.
static PATTERNS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let mixed = |index: u64| index.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0];
    [0, 1].map(|peer| (0..65_521).map(|index| mixed(2 * index + peer)).collect())
});

/// Returns a part of what a peer sends.
fn bytes(peer: usize, from: usize, count: usize) -> Vec<u8> {
    let pattern = &PATTERNS[peer];
    let mut bytes = Vec::with_capacity(count);
    while bytes.len() < count {
        let rest = &pattern[(from + bytes.len()) % pattern.len()..];
        bytes.extend_from_slice(&rest[..rest.len().min(count - bytes.len())]);
    }
    bytes
}

fn is_transient(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

/// A peer.
struct Peer {
    number: usize,
    /// `None` once the connection was reset.
    socket: Option<TcpStream>,
    sent: usize,
    has_finished: bool,
    received: usize,
    has_received_end: bool,
}

impl Peer {
    fn send(&mut self, count: usize) {
        let piece = bytes(self.number, self.sent, count);
        if let (Some(socket), false) = (&mut self.socket, self.has_finished) {
            self.sent += socket.write(&piece).unwrap_or(0);
        }
    }

    fn read(&mut self, count: usize) {
        let mut buffer = vec![0; count];
        let Some(socket) = &mut self.socket else { return };
        match socket.read(&mut buffer) {
            Ok(0) => self.has_received_end = true,
            Ok(read) => self.check(&buffer[..read]),
            Err(error) => assert!(is_transient(&error), "{error}"),
        }
    }

    fn check(&mut self, received: &[u8]) {
        assert!(!self.has_received_end);
        let expected = bytes(1 - self.number, self.received, received.len());
        assert!(expected == received, "peer {} after {} bytes", self.number, self.received);
        self.received += received.len();
    }

    fn finish(&mut self) {
        if let Some(socket) = &self.socket {
            let _ = socket.shutdown(Shutdown::Write);
            self.has_finished = true;
        }
    }

    fn reset(&mut self) {
        if let Some(socket) = self.socket.take() {
            SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Sends more bytes and the end, and receives everything.
    async fn complete(&mut self, more: usize) {
        let Some(socket) = self.socket.take() else { return };
        let (mut read, mut write) = tokio::net::TcpStream::from_std(socket).unwrap().into_split();
        let (number, sent, has_finished) = (self.number, self.sent, self.has_finished);
        let send = async {
            if !has_finished {
                write.write_all(&bytes(number, sent, more)).await.unwrap();
                write.shutdown().await.unwrap();
            }
        };
        let receive = async {
            let mut buffer = vec![0; 65536];
            while !self.has_received_end {
                match read.read(&mut buffer).await.unwrap() {
                    0 => self.has_received_end = true,
                    count => self.check(&buffer[..count]),
                }
            }
        };
        tokio::join!(send, receive);
        self.sent += if has_finished { 0 } else { more };
    }
}

/// Both peers, and the relay between them.
struct Model {
    peers: [Peer; 2],
    relay: RelayModel,
}

/// Forwards as the relay does, one system call at a time.
struct RelayModel {
    sockets: [TcpStream; 2],
    /// What was read from each socket and not written to the other.
    hands: [Vec<u8>; 2],
    /// Bytes read from each socket.
    read: [usize; 2],
    written: [usize; 2],
    /// Whether each direction is over.
    is_over: [bool; 2],
}

impl RelayModel {
    /// Makes one system call in a direction.
    fn step(&mut self, direction: usize, max: usize) {
        let Self { sockets, hands, read, written, is_over } = self;
        let [mut from, to] = [&sockets[direction], &sockets[1 - direction]];
        let hand = &mut hands[direction];
        let has_ended = if hand.is_empty() {
            let mut buffer = vec![0; max];
            match from.read(&mut buffer) {
                Ok(0) => true,
                Ok(count) => {
                    read[direction] += count;
                    // Once nothing can be written, the bytes are discarded.
                    if !is_over[direction] {
                        hand.extend_from_slice(&buffer[..count]);
                    }
                    false
                }
                Err(error) => !is_transient(&error),
            }
        } else {
            match (&mut &*to).write(hand) {
                Ok(count) => {
                    written[direction] += count;
                    hand.drain(..count);
                    false
                }
                Err(error) if is_transient(&error) => false,
                Err(_) => {
                    hand.clear();
                    true
                }
            }
        };
        if has_ended && !is_over[direction] {
            is_over[direction] = true;
            let _ = to.shutdown(Shutdown::Write);
        }
    }
}

/// A connection: the relay's end and the peer's, which has sent its first message. Narrow connections have small buffers, so
/// that the relay often cannot write what it has read.
fn connection(listener: &TcpListener, number: usize, is_narrow: bool) -> (TcpStream, Peer) {
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut relay, _) = listener.accept().unwrap();
    if is_narrow {
        SockRef::from(&socket).set_recv_buffer_size(8192).unwrap();
        SockRef::from(&relay).set_send_buffer_size(8192).unwrap();
    }
    socket.write_all(b"first message").unwrap();
    relay.read_exact(&mut [0; 13]).unwrap();
    relay.set_nonblocking(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    let peer = Peer {
        number,
        socket: Some(socket),
        sent: 0,
        has_finished: false,
        received: 0,
        has_received_end: false,
    };
    (relay, peer)
}

impl Model {
    fn new(is_narrow: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        if is_narrow {
            // Segments of the size of the loopback device do not fit into small buffers, and would wait for a timer.
            SockRef::from(&listener).set_tcp_mss(1400).unwrap();
        }
        let (first, peer) = connection(&listener, 0, is_narrow);
        let (second, partner) = connection(&listener, 1, is_narrow);
        Self {
            peers: [peer, partner],
            relay: RelayModel {
                sockets: [first, second],
                hands: Default::default(),
                read: [0; 2],
                written: [0; 2],
                is_over: [false; 2],
            },
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Send(peer, count) => self.peers[peer].send(count),
            Step::Read(peer, count) => self.peers[peer].read(count),
            Step::Finish(peer) => self.peers[peer].finish(),
            Step::Reset(peer) => self.peers[peer].reset(),
            Step::Move(direction, max) => self.relay.step(direction, max),
            Step::Forward(direction, max) => {
                self.relay.step(direction, max);
                if !self.relay.hands[direction].is_empty() {
                    self.relay.step(direction, max);
                }
            }
        }
    }

    /// Takes the balances, and lets them go through a note.
    fn note(&self) -> SessionNote {
        let RelayModel { sockets, hands, written, .. } = &self.relay;
        let lengths = hands.each_ref().map(Vec::len);
        let note = SessionNote {
            record: SessionRecord {
                id: SessionId(7),
                age: Duration::ZERO,
                idle: Duration::ZERO,
                bytes: written.map(|count| count as u64),
                identity: PeerIdentity::default(),
                addresses: sockets.each_ref().map(|socket| socket.peer_addr()).map(|address| {
                    // A connection that is over has no address any more.
                    address.unwrap_or(([127, 0, 0, 1], 1).into())
                }),
            },
            balances: Balances::take(sockets, lengths, written.map(|count| count as u64)).unwrap(),
            in_flight: hands.clone(),
            is_final: true,
            traceparent: None,
        };
        let clock = NoteClock::now();
        let mut entries = note.encode(clock);
        let (_, last) = entries.pop().unwrap();
        let piece = |number: u16| Some(entries.get(usize::from(number))?.1.expose().as_slice());
        let decoded = SessionNote::decode(last.expose(), clock, piece).unwrap();
        assert_eq!(decoded, note);
        decoded
    }

    /// Verifies the session while the states of its connections do not change. Returns the verdict, and which are over.
    fn verify(&self, note: &SessionNote) -> (Verdict, [bool; 2]) {
        let sockets = &self.relay.sockets;
        loop {
            let are_closed =
                || sockets.each_ref().map(|socket| SocketFigures::read(socket).unwrap().is_closed);
            let before = are_closed();
            let verdict = note.balances.verify(sockets, note.in_flight.clone());
            if are_closed() == before {
                return (verdict, before);
            }
        }
    }

    /// Lets another relay continue with the bytes in flight until both peers have everything.
    async fn complete(
        &mut self,
        in_flight: &[Vec<u8>; 2],
        method: TransferMethod,
        more: [usize; 2],
    ) {
        let sockets =
            self.relay.sockets.each_ref().map(|socket| {
                tokio::net::TcpStream::from_std(socket.try_clone().unwrap()).unwrap()
            });
        let [first, second] = &mut self.peers;
        let all = async {
            tokio::join!(
                forward(Arc::new(sockets), Forward::resume(in_flight), method),
                first.complete(more[0]),
                second.complete(more[1]),
            );
        };
        timeout(PATIENCE, all).await.expect("the session ends");
    }
}

/// Forwards until both directions are over, and discards what the peers still send.
async fn forward(
    sockets: Arc<[tokio::net::TcpStream; 2]>,
    mut forward: Forward,
    method: TransferMethod,
) {
    let resources = resources(method);
    let now = Instant::now();
    let traffic = Traffic::new(now, [0; 2], now);
    let end =
        std::future::poll_fn(|context| forward.poll(context, &sockets, &traffic, now, &resources));
    let _ = end.await;
    for socket in &*sockets {
        let mut buffer = [0; 4096];
        loop {
            let read = socket.try_read(&mut buffer);
            match read {
                Ok(1..) => {}
                Err(error) if is_transient(&error) => socket.readable().await.unwrap(),
                Ok(0) | Err(_) => break,
            }
        }
    }
}

fn resources(method: TransferMethod) -> ForwardResources {
    let pipes = Pipes::new(2, ForwardMetrics::new(&Registry::new()).unwrap());
    ForwardResources { method, pipes, budget: BUDGET, throttle: Arc::default() }
}

#[derive(Debug, Clone)]
enum Step {
    Send(usize, usize),
    Read(usize, usize),
    Finish(usize),
    Reset(usize),
    /// One system call of the relay.
    Move(usize, usize),
    /// A read and a write, which usually leaves nothing in hand.
    Forward(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let side = || 0..2_usize;
    let count = || prop_oneof![4 => 1..3_usize, 4 => 1..2000_usize, 1 => 1..200_000_usize];
    prop_oneof![
        12 => (side(), count()).prop_map(|(peer, count)| Step::Send(peer, count)),
        6 => (side(), count()).prop_map(|(peer, count)| Step::Read(peer, count)),
        2 => side().prop_map(Step::Finish),
        1 => side().prop_map(Step::Reset),
        6 => (side(), count()).prop_map(|(direction, max)| Step::Move(direction, max)),
        12 => (side(), count()).prop_map(|(direction, max)| Step::Forward(direction, max)),
    ]
}

fn method() -> impl Strategy<Value = TransferMethod> {
    prop_oneof![Just(TransferMethod::Adaptive), Just(TransferMethod::Splice)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn session_continues_exactly_if_no_byte_is_lost(
        steps in prop::collection::vec(step(), 0..40),
        is_narrow in any::<bool>(),
        noted_at in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0_f64],
        method in method(),
        more in [0..3000_usize, 0..3000_usize],
    ) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a part of a small number")]
        let noted_at = (steps.len() as f64 * noted_at) as usize;
        check(&steps, noted_at, is_narrow, method, more)?;
    }
}

/// A relay forwards; after some steps it writes a note, with what is in its hands; it or the next one forwards more and dies; and
/// another one goes on from the note, if nothing is lost.
fn check(
    steps: &[Step],
    noted_at: usize,
    is_narrow: bool,
    method: TransferMethod,
    more: [usize; 2],
) -> TestCaseResult {
    let mut model = Model::new(is_narrow);
    let (before, after) = steps.split_at(noted_at);
    before.iter().for_each(|step| model.apply(step));
    let (note, read_before) = (model.note(), model.relay.read);
    after.iter().for_each(|step| model.apply(step));
    let (verdict, are_closed) = model.verify(&note);

    let RelayModel { hands, read, written, .. } = &model.relay;
    let is_lost = |direction: usize| {
        let is_known = read[direction] == read_before[direction];
        !are_closed[1 - direction] && !hands[direction].is_empty() && !is_known
    };
    let continuation = match verdict {
        Verdict::Intact(continuation) => continuation,
        Verdict::Lost(lost) => {
            prop_assert!(is_lost(0) || is_lost(1), "{lost}, but nothing is");
            prop_assert!(is_lost(lost.direction), "{lost}, but in the other direction");
            prop_assert_eq!(lost.in_hand.unsigned_abs(), hands[lost.direction].len() as u64);
            return Ok(());
        }
        Verdict::Unknown => return Err(TestCaseError::fail("unknown")),
    };
    prop_assert!(!is_lost(0) && !is_lost(1), "lost bytes are not noticed");
    for direction in [0, 1] {
        let hand = if are_closed[1 - direction] { &Vec::new() } else { &hands[direction] };
        prop_assert!(continuation.in_flight[direction] == *hand);
    }
    for direction in [0, 1] {
        let fin = u64::from(are_closed[1 - direction]);
        let excess = continuation.bytes[direction].checked_sub(written[direction] as u64);
        prop_assert!(excess.is_some_and(|excess| excess <= fin), "{excess:?}");
    }

    let were_reset = model.peers.each_ref().map(|peer| peer.socket.is_none());
    block_on(model.complete(&continuation.in_flight, method, more));
    if were_reset == [false; 2] {
        for [peer, partner] in [[0, 1], [1, 0]] {
            prop_assert_eq!(model.peers[peer].received, model.peers[partner].sent);
        }
    }
    Ok(())
}

/// Sends all bytes of a peer and then the end.
fn send_all(mut socket: &TcpStream, peer: usize, count: usize) {
    for from in (0..count).step_by(3000) {
        if socket.write_all(&bytes(peer, from, 3000.min(count - from))).is_err() {
            return;
        }
    }
    let _ = socket.shutdown(Shutdown::Write);
}

/// Receives until the end. Returns how many bytes arrived; all of them are checked.
fn receive_all(mut socket: &TcpStream, peer: usize) -> usize {
    let (mut buffer, mut received) = (vec![0; 20_000], 0);
    while let Ok(count @ 1..) = socket.read(&mut buffer) {
        assert!(buffer[..count] == bytes(1 - peer, received, count), "after {received} bytes");
        received += count;
    }
    received
}

/// Ends the connections if the test fails, so that the threads that use them end, too.
struct ShutDownOnPanic<'a>(&'a [TcpStream; 2]);

impl Drop for ShutDownOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.iter().for_each(|peer| drop(peer.shutdown(Shutdown::Both)));
        }
    }
}

/// Forwards until `stop_at` bytes were read and `further` more system calls were made, while both peers send and receive as fast
/// as they can, and verifies while they do. Returns whether the session continued.
fn verify_under_load(counts: [usize; 2], stop_at: usize, further: usize, is_planned: bool) -> bool {
    let mut model = Model::new(false);
    let start = Balances::take(&model.relay.sockets, [0; 2], [0; 2]).unwrap();
    let peers = model.peers.each_mut().map(|peer| peer.socket.take().unwrap());
    peers.iter().for_each(|peer| peer.set_nonblocking(false).unwrap());
    std::thread::scope(|scope| {
        let mut receiving = Vec::new();
        for (number, peer) in peers.iter().enumerate() {
            scope.spawn(move || send_all(peer, number, counts[number]));
            receiving.push(scope.spawn(move || receive_all(peer, number)));
        }
        let _guard = ShutDownOnPanic(&peers);
        let relay = &mut model.relay;
        for turn in 0.. {
            if relay.read.iter().sum::<usize>() >= stop_at || relay.is_over == [true; 2] {
                (turn..turn + further).for_each(|turn| relay.step(turn % 2, 10_000));
                break;
            }
            relay.step(turn % 2, 10_000);
        }
        let RelayModel { sockets, hands, .. } = &model.relay;
        let (mut balances, mut in_flight) = (start, Default::default());
        if is_planned {
            balances = Balances::take(sockets, hands.each_ref().map(Vec::len), [0; 2]).unwrap();
            in_flight = hands.clone();
        }
        let verdict = balances.verify(sockets, in_flight);
        let is_lost = !is_planned && hands.iter().any(|hand| !hand.is_empty());
        match verdict {
            Verdict::Intact(continuation) => {
                assert!(!is_lost);
                let rest = &continuation.in_flight;
                assert!(*rest == *hands);
                block_on(model.complete(rest, TransferMethod::Adaptive, [0; 2]));
                for (number, receiving) in receiving.into_iter().enumerate() {
                    assert_eq!(receiving.join().unwrap(), counts[1 - number]);
                }
                true
            }
            verdict => {
                assert!(is_lost, "{verdict:?}");
                peers.iter().for_each(|peer| peer.shutdown(Shutdown::Both).unwrap_or(()));
                false
            }
        }
    })
}

#[test]
fn verification_is_exact_while_both_peers_send() {
    let mut continued = [0; 2];
    for round in 0..300_usize {
        let counts = [1 + round * 7919 % 400_000, 1 + round * 104_729 % 400_000];
        let stop_at = (round * 31_337) % (counts[0] + counts[1]);
        let is_planned = round % 2 == 1;
        let has_continued = verify_under_load(counts, stop_at, round % 5, is_planned);
        continued[round % 2] += usize::from(has_continued);
    }
    // A planned hand-over loses nothing. After a crash, both outcomes occur.
    assert_eq!(continued[1], 150);
    assert!(continued[0] > 0 && continued[0] < 150, "{continued:?}");
}

/// The relay itself forwards, by copying or through pipes, and is stopped between two polls.
#[test]
fn bytes_that_the_relay_holds_are_noticed_and_continue() {
    for round in 0..200_usize {
        let method =
            [TransferMethod::Copy, TransferMethod::Splice, TransferMethod::Adaptive][round % 3];
        let mut model = Model::new(round % 2 == 0);
        let sockets = &model.relay.sockets;
        let start = Balances::take(sockets, [0; 2], [0; 2]).unwrap();
        let in_flight = block_on(async {
            let clones = sockets.each_ref().map(|socket| {
                tokio::net::TcpStream::from_std(socket.try_clone().unwrap()).unwrap()
            });
            let (clones, resources, now) = (Arc::new(clones), resources(method), Instant::now());
            let (mut forward, traffic) = (Forward::default(), Traffic::new(now, [0; 2], now));
            for turn in 0..10 + round % 7 {
                for peer in &mut model.peers {
                    peer.send(1 + (round * 7919 + turn * 104_729) % 60_000);
                    peer.read(1 + (round * turn * 31) % 30_000);
                }
                tokio::task::yield_now().await;
                let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
                assert!(forward.poll(context, &clones, &traffic, now, &resources).is_pending());
            }
            forward.release_sockets();
            forward.into_in_flight().unwrap()
        });
        let lengths = in_flight.each_ref().map(Vec::len);
        let sockets = &model.relay.sockets;
        let is_lost = matches!(start.verify(sockets, Default::default()), Verdict::Lost(_));
        assert_eq!(is_lost, lengths != [0; 2], "{lengths:?}");
        let planned = Balances::take(sockets, lengths, [0; 2]).unwrap();
        let Verdict::Intact(continuation) = planned.verify(sockets, in_flight.clone()) else {
            panic!("nothing is lost");
        };
        assert!(continuation.in_flight == in_flight);
        block_on(model.complete(&in_flight, method, [1000; 2]));
        for [peer, partner] in [[0, 1], [1, 0]] {
            assert_eq!(model.peers[peer].received, model.peers[partner].sent);
        }
    }
}
