//! Sessions whose peers and kernel follow a random schedule.
//!
//! After each step, nobody may be asleep with work to do: if bytes could move and no event is due, the task has been woken. At
//! the end, each peer has received what its partner sent, in order and whole, unless one of them was reset.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use real_tokio::runtime::Builder;
use real_tokio::time::{Instant, sleep};

use crate::config::parse::Bandwidth;
use crate::forward::bidirectional::{Forward, ForwardEnd, ForwardResources};
use crate::forward::direction::TransferMethod;
use crate::forward::metrics::ForwardMetrics;
use crate::forward::pipe::Pipes;
use crate::forward::throttle::Throttle;
use crate::io::Errno;
use crate::kernel::{self, Fault, Socket};
use crate::net::TcpStream;
use crate::state::sessions::{EndCause, PeerOrder, Traffic};

/// The tests, by name.
pub(crate) const TESTS: &[(&str, fn())] = &[
    ("copied_bytes_arrive_whatever_fails", || run_all(TransferMethod::Copy)),
    ("spliced_bytes_arrive_whatever_fails", || run_all(TransferMethod::Splice)),
    ("bytes_arrive_whatever_fails_while_the_method_changes", || run_all(TransferMethod::Adaptive)),
];

/// How many schedules each test tries, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 5000;
/// How many received bytes a kernel keeps before the peer has to wait.
const WINDOW: usize = 200 * 1024;
/// How many pipes there are.
const MAX_PIPES: usize = 2;
/// How often the session may leave its thread.
const MAX_MOVES: u32 = 5;

/// How a peer's connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PeerEnd {
    /// With its FIN.
    Fin,
    /// With an error, after everything was sent.
    Reset(Errno),
    /// With its FIN, and later with an error.
    FinAndReset(Errno),
    /// When the relay ends it. The partner is reset.
    ByRelay,
}

/// What a peer does.
#[derive(Debug, Clone)]
struct PeerPlan {
    sends: usize,
    /// How many bytes it sends, and acknowledges, at once.
    chunk: usize,
    send_buffer: usize,
    end: PeerEnd,
}

#[derive(Debug, Clone)]
struct Plan {
    peers: [PeerPlan; 2],
    budget: usize,
    /// In bytes a second.
    bandwidth: Option<NonZero<u64>>,
    can_move: bool,
    /// Which of the possible steps follows.
    steps: Vec<u8>,
    faults: Vec<Fault>,
}

fn errors() -> impl Strategy<Value = Errno> {
    prop_oneof![Just(Errno::CONNRESET), Just(Errno::TIMEDOUT), Just(Errno::HOSTUNREACH)]
}

fn peers() -> impl Strategy<Value = PeerPlan> {
    let size = || prop_oneof![3 => 1..2000_usize, 2 => 1..100_000_usize];
    let end = prop_oneof![
        3 => Just(PeerEnd::Fin),
        1 => errors().prop_map(PeerEnd::Reset),
        1 => errors().prop_map(PeerEnd::FinAndReset),
    ];
    let sends = prop_oneof![1 => Just(0), 4 => 1..5000_usize, 4 => 1..600_000_usize];
    (sends, size(), size(), end).prop_map(|(sends, chunk, send_buffer, end)| PeerPlan {
        sends,
        chunk,
        send_buffer,
        end,
    })
}

fn faults() -> impl Strategy<Value = Fault> {
    let refusals = vec![Errno::NOMEM, Errno::IO, Errno::INVAL, Errno::PERM];
    prop_oneof![
        4 => Just(Fault::None),
        3 => Just(Fault::Interrupted),
        3 => Just(Fault::NotReady),
        3 => prop_oneof![1..20_usize, 1..70_000_usize].prop_map(Fault::Short),
        1 => proptest::sample::select(refusals).prop_map(Fault::Refused),
    ]
}

fn plans() -> impl Strategy<Value = Plan> {
    let budget = prop_oneof![1..2000_usize, 1..200_000_usize, Just(512 * 1024)];
    let bandwidth =
        prop_oneof![4 => Just(None), 1 => (100_000..10_000_000_u64).prop_map(NonZero::new)];
    let steps = proptest::collection::vec(any::<u8>(), 0..400);
    let faults = proptest::collection::vec(faults(), 0..200);
    let choices = (any::<bool>(), any::<bool>());
    ([peers(), peers()], budget, bandwidth, choices, steps, faults).prop_map(
        |(mut peers, budget, bandwidth, (can_move, is_second_open), steps, faults)| {
            // So much at a time that a schedule does not take many thousands of steps.
            let least = peers.iter().map(|peer| peer.sends).sum::<usize>() / 500;
            for peer in &mut peers {
                peer.chunk = peer.chunk.max(least);
                peer.send_buffer = peer.send_buffer.max(least);
            }
            let [first, second] = &mut peers;
            if is_second_open && !matches!(first.end, PeerEnd::Fin) {
                second.end = PeerEnd::ByRelay;
            }
            Plan { peers, budget: budget.max(least), bandwidth, can_move, steps, faults }
        },
    )
}

fn run_all(method: TransferMethod) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    TestRunner::new(config)
        .run(&plans(), |plan| {
            let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
            runtime.block_on(run(&plan, method));
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// The byte of a peer at a place: any two places nearby differ.
fn byte(peer: usize, at: usize) -> u8 {
    let mixed = (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(peer as u64);
    (mixed >> 56) as u8
}

/// A peer of a session.
struct Peer {
    number: usize,
    plan: PeerPlan,
    socket: Arc<Mutex<Socket>>,
    sent: usize,
    received: usize,
    has_finished: bool,
    is_reset: bool,
}

/// What can happen next.
#[derive(Debug, Clone, Copy)]
enum Step {
    Poll,
    /// The session continues with new registrations.
    Move,
    Send(usize),
    End(usize),
    Reset(usize),
    Acknowledge(usize),
    Event(usize),
}

impl Peer {
    fn new(number: usize, plan: &PeerPlan) -> Self {
        let (plan, socket) = (plan.clone(), Socket::new(plan.send_buffer));
        Self { number, plan, socket, sent: 0, received: 0, has_finished: false, is_reset: false }
    }

    fn steps(&self, steps: &mut Vec<Step>) {
        let (socket, number) = (self.socket.lock(), self.number);
        let mut add = |is_possible, step: fn(usize) -> Step| {
            if is_possible {
                steps.push(step(number));
            }
        };
        let (is_open, has_sent) = (!self.is_reset, self.sent == self.plan.sends);
        add(is_open && !has_sent && socket.received.len() < WINDOW, Step::Send);
        let is_end_due = is_open && has_sent;
        let (finishes, is_reset_next) = match self.plan.end {
            PeerEnd::Fin => (true, false),
            PeerEnd::Reset(_) => (false, true),
            PeerEnd::FinAndReset(_) => (true, self.has_finished),
            PeerEnd::ByRelay => (false, false),
        };
        add(is_end_due && finishes && !self.has_finished, Step::End);
        add(is_end_due && is_reset_next, Step::Reset);
        add(is_open && !socket.sent.is_empty(), Step::Acknowledge);
        add(socket.has_late_events(), Step::Event);
    }

    fn send(&mut self) {
        let end = self.plan.sends.min(self.sent + self.plan.chunk);
        let number = self.number;
        self.socket.lock().arrive((self.sent..end).map(|at| byte(number, at)));
        self.sent = end;
    }

    fn finish(&mut self) {
        self.has_finished = true;
        self.socket.lock().end();
    }

    fn reset(&mut self) {
        if let PeerEnd::Reset(error) | PeerEnd::FinAndReset(error) = self.plan.end {
            self.is_reset = true;
            self.socket.lock().reset(error);
        }
    }

    fn acknowledge(&mut self, max: usize) {
        for received in self.socket.lock().acknowledge(max) {
            let expected = byte(1 - self.number, self.received);
            assert_eq!(received, expected, "byte {} to peer {}", self.received, self.number);
            self.received += 1;
        }
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A session with its peers.
struct Scene {
    peers: [Peer; 2],
    sockets: Arc<[TcpStream; 2]>,
    forward: Forward,
    resources: ForwardResources,
    metrics: ForwardMetrics,
    traffic: Traffic,
    woken: Arc<Woken>,
    moves_left: u32,
    is_limited: bool,
    end: Option<ForwardEnd>,
}

impl Scene {
    fn new(plan: &Plan, method: TransferMethod) -> Self {
        kernel::boot(plan.faults.clone());
        let [first, second] = &plan.peers;
        let peers = [Peer::new(0, first), Peer::new(1, second)];
        let sockets = Arc::new(peers.each_ref().map(|peer| TcpStream::register(&peer.socket)));
        let metrics = ForwardMetrics::new();
        let throttle = Throttle::default();
        throttle.set_limits(plan.bandwidth.map(Bandwidth), None);
        let resources = ForwardResources {
            method,
            pipes: Pipes::new(MAX_PIPES, metrics.clone()),
            budget: plan.budget,
            throttle: Arc::new(throttle),
        };
        let now = Instant::now();
        Self {
            peers,
            sockets,
            forward: Forward::default(),
            resources,
            metrics,
            traffic: Traffic::new(now, [0, 0], now),
            woken: Arc::new(Woken(AtomicBool::new(true))),
            moves_left: if plan.can_move { MAX_MOVES } else { 0 },
            is_limited: plan.bandwidth.is_some(),
            end: None,
        }
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed)
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.is_woken() {
            steps.push(Step::Poll);
        }
        self.peers.iter().for_each(|peer| peer.steps(&mut steps));
        // A move wakes the task, and is no reason why it need not be woken otherwise.
        if self.moves_left > 0 && !steps.is_empty() {
            steps.push(Step::Move);
        }
        steps
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Poll => self.poll(),
            Step::Move => self.move_elsewhere(),
            Step::Send(number) => self.peers[number].send(),
            Step::End(number) => self.peers[number].finish(),
            Step::Reset(number) => self.peers[number].reset(),
            Step::Acknowledge(number) => {
                let chunk = self.peers[number].plan.chunk;
                self.peers[number].acknowledge(chunk);
            }
            Step::Event(number) => self.peers[number].socket.lock().deliver_late_events(),
        }
    }

    fn poll(&mut self) {
        kernel::begin_poll();
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(self.woken.clone());
        let context = &mut Context::from_waker(&waker);
        let Self { forward, sockets, traffic, resources, .. } = self;
        match forward.poll(context, sockets, traffic, Instant::now(), resources) {
            Poll::Ready(end) => self.end = Some(end),
            Poll::Pending => {}
        }
    }

    fn move_elsewhere(&mut self) {
        self.moves_left -= 1;
        self.forward.release_sockets();
        assert_eq!(Arc::strong_count(&self.sockets), 1);
        let in_flight = std::mem::take(&mut self.forward).into_in_flight().unwrap();
        self.forward = Forward::resume(&in_flight);
        let register = |peer: &Peer| TcpStream::register(&peer.socket);
        self.sockets = Arc::new(self.peers.each_ref().map(register));
        self.woken.0.store(true, Ordering::Relaxed);
    }

    /// Nobody is asleep with work to do.
    fn check_awake(&self) {
        let is_event_due = self.peers.iter().any(|peer| peer.socket.lock().has_late_events());
        if !self.is_woken() && !is_event_due && !self.is_limited {
            assert!(!self.forward.can_move(&self.sockets), "asleep with bytes to move");
        }
    }
}

async fn run(plan: &Plan, method: TransferMethod) {
    let mut scene = Scene::new(plan, method);
    let mut choices = plan.steps.iter().map(|choice| usize::from(*choice));
    for count in 0.. {
        assert!(count < 100_000, "the session never ends");
        let mut steps = scene.steps();
        if steps.is_empty() {
            // Only time can help: the limit on bandwidth, or on discarding.
            sleep(Duration::from_secs(1)).await;
            steps = scene.steps();
            assert!(!steps.is_empty(), "asleep for ever: {:?}", scene.forward);
        }
        let choice = choices.next().unwrap_or(count);
        scene.take(steps[choice % steps.len()]);
        if scene.end.is_some() {
            break;
        }
        scene.check_awake();
    }
    check_end(scene, plan);
}

fn check_end(scene: Scene, plan: &Plan) {
    let Scene { mut peers, traffic, end, forward, metrics, sockets, .. } = scene;
    drop((forward, sockets));
    let end = end.unwrap();
    for peer in peers.iter_mut().filter(|peer| !peer.is_reset) {
        peer.acknowledge(usize::MAX);
        assert!(peer.socket.lock().is_shut_down, "peer {} was not sent a FIN", peer.number);
    }
    assert!(metrics.pipes.get() <= i64::try_from(MAX_PIPES).unwrap());
    let is_reset = peers.each_ref().map(|peer| peer.is_reset);
    for (peer, partner) in [(&peers[0], &peers[1]), (&peers[1], &peers[0])] {
        assert!(peer.received <= partner.sent);
        // The bytes of a peer that was reset arrive, too.
        if !peer.is_reset {
            assert_eq!(peer.received, partner.sent, "to peer {}", peer.number);
            assert_eq!(partner.sent, partner.plan.sends);
            let counted = traffic.bytes_from_each()[partner.number];
            assert_eq!(counted, partner.sent as u64, "counted from peer {}", partner.number);
        }
    }
    assert_eq!(end.error, None, "no peer causes an error of the relay");
    // The relay to which a session has moved does not know what happened before.
    let has_moved = plan.can_move;
    match end.cause {
        EndCause::Closed(_) => assert!(
            has_moved || is_reset == [false; 2] || peers.iter().any(|peer| peer.has_finished),
            "a reset is not a graceful end"
        ),
        EndCause::Reset(PeerOrder::First) => assert!(is_reset[0], "the first was not reset"),
        EndCause::Reset(PeerOrder::Second) => assert!(is_reset[1], "the second was not reset"),
        cause => panic!("{cause:?}"),
    }
}
