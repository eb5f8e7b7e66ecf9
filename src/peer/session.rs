//! One session from pairing to its end.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TrackedFuture;
use tracing::{error, info};

use crate::config::Config;
use crate::forward::{Forward, Forwarding, Sockets, linger};
use crate::metrics::Label;
use crate::state::sessions::{End, Session, SessionId};
use crate::state::shared::{ActiveSession, SharedState};
use crate::trace::session::{PeerFacts, SessionTrace};
use crate::workers::{Place, Workers};

use super::departures::{Departures, Parts};
use super::metrics::PeerMetrics;
use super::path::Paths;

/// How a second peer reaches the task of the first.
pub type Way = oneshot::Sender<Partner>;

/// What the second peer brings to the first.
#[derive(Debug)]
pub struct Partner {
    /// Its connection.
    pub stream: std::net::TcpStream,
    /// When it came.
    pub facts: PeerFacts,
    /// The session that has begun.
    pub session: ActiveSession<Way>,
}

/// Runs sessions: what they share.
#[derive(Debug)]
pub struct Runner {
    state: SharedState<Way>,
    config: watch::Receiver<Arc<Config>>,
    workers: Workers,
    forwarding: Forwarding,
    paths: Paths,
    departures: Departures,
    tasks: TaskTracker,
}

impl Runner {
    /// Sessions of `state` that live on `workers`.
    pub fn new(
        state: SharedState<Way>,
        config: watch::Receiver<Arc<Config>>,
        metrics: PeerMetrics,
        workers: Workers,
        forwarding: Forwarding,
    ) -> Arc<Self> {
        let runner = Self {
            state,
            config,
            workers,
            forwarding,
            paths: Paths::new(metrics),
            departures: Departures::default(),
            tasks: TaskTracker::new(),
        };
        runner.apply_limits(&runner.config.borrow());
        Arc::new(runner)
    }

    pub(super) fn state(&self) -> &SharedState<Way> {
        &self.state
    }

    pub(super) fn config(&self) -> &watch::Receiver<Arc<Config>> {
        &self.config
    }

    /// Runs a session, on a thread that has time for it.
    pub(super) fn start(self: &Arc<Self>, joined: Joined) {
        announce(joined.active.session(), self.config.borrow().log_peer_identity);
        self.workers.spawn(|place| self.run(joined, place));
    }

    fn run(self: &Arc<Self>, joined: Joined, place: Place) -> TrackedFuture<Running> {
        self.tasks.track_future(Running::new(self.clone(), joined, place))
    }

    /// Takes a session apart, wherever its bytes are. `None` when there is no such session, or when it ends instead. A
    /// session that comes apart when nobody waits for it any more goes on here.
    pub async fn take_apart(self: &Arc<Self>, id: SessionId) -> Option<Parts> {
        let parts = self.departures.ask(id, &self.state);
        let mut coming = Coming { parts, runner: self.clone() };
        (&mut coming.parts).await.ok()
    }

    /// Goes on with a session that was taken apart. Its peers notice nothing.
    pub fn put_together(self: &Arc<Self>, parts: Parts) {
        let Parts { record, sockets, in_flight } = parts;
        let active = self.state.adopt_session(record, Instant::now());
        let (forward, trace) = (Forward::with(&in_flight), SessionTrace::default());
        self.start(Joined { sockets, forward, active, trace });
    }

    /// Returns when every thread of the sessions has done something for whoever asks: where one hangs, never.
    pub async fn answer(&self) {
        self.workers.answer().await;
    }

    /// Keeps the time of all sessions and their paths in view, and their threads balanced, for ever.
    pub(super) async fn keep_looking(&self) {
        tokio::join!(
            self.state.end_overdue(self.config.clone()),
            self.paths.keep_looking(),
            self.workers.keep_balanced(),
            self.keep_limits(),
        );
    }

    /// Has the limits on bandwidth follow the settings, for ever.
    async fn keep_limits(&self) {
        let mut config = self.config.clone();
        loop {
            self.apply_limits(&config.borrow_and_update());
            if config.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn apply_limits(&self, config: &Config) {
        self.forwarding.throttle.set(config.session_bandwidth, config.total_bandwidth);
    }

    /// Returns when all sessions have ended; no more may begin.
    pub(super) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A session that is coming apart.
struct Coming {
    parts: oneshot::Receiver<Parts>,
    runner: Arc<Runner>,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.parts.close();
        if let Ok(parts) = self.parts.try_recv() {
            self.runner.put_together(parts);
        }
    }
}

/// A session that is to run.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) sockets: [std::net::TcpStream; 2],
    pub(super) forward: Forward,
    pub(super) active: ActiveSession<Way>,
    pub(super) trace: SessionTrace,
}

/// What the trace of a session says that goes on elsewhere.
const DEPARTED: &str = "departed";

/// The task of a session. Written by hand rather than as an `async fn`: there are thousands of them, most of them
/// quiet, and this takes a quarter of the memory.
#[derive(Debug)]
pub(super) struct Running {
    runner: Arc<Runner>,
    /// `None` once it is over.
    active: Option<ActiveSession<Way>>,
    trace: SessionTrace,
    /// From its first moment on its thread.
    sockets: Option<Arc<Sockets>>,
    stage: Stage,
    place: Place,
}

enum Stage {
    /// The runtime of its thread does not know its sockets yet.
    New {
        sockets: [std::net::TcpStream; 2],
        forward: Forward,
    },
    /// Bytes move.
    Forwarding(Forward),
    /// Nothing is left to forward.
    Lingering {
        end: End,
        linger: Pin<Box<dyn Future<Output = ()> + Send>>,
    },
    /// It leaves its thread as soon as nobody else holds its sockets.
    Leaving {
        forward: Forward,
        to: Destination,
    },
    Over,
}

/// Where a session goes on.
#[derive(Debug)]
enum Destination {
    /// On another thread.
    Worker(usize),
    /// Somewhere else, taken apart.
    Elsewhere(oneshot::Sender<Parts>),
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New { .. } => "New",
            Self::Forwarding(_) => "Forwarding",
            Self::Lingering { .. } => "Lingering",
            Self::Leaving { .. } => "Leaving",
            Self::Over => "Over",
        })
    }
}

/// What comes after a stage has been polled.
enum Next {
    /// It goes on when it is woken.
    Wait,
    /// Another stage, at once.
    Go(Stage),
    /// The session is over.
    End(End),
}

impl Running {
    pub(super) fn new(runner: Arc<Runner>, joined: Joined, place: Place) -> Self {
        let Joined { sockets, forward, active, trace } = joined;
        let stage = Stage::New { sockets, forward };
        Self { runner, active: Some(active), trace, sockets: None, stage, place }
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.active.as_ref().map(|active| active.session().clone())
    }

    fn begin(
        &mut self,
        session: &Arc<Session>,
        sockets: [std::net::TcpStream; 2],
        forward: Forward,
    ) -> Next {
        let [first, second] = sockets.map(TcpStream::from_std);
        let (Ok(first), Ok(second)) = (first, second) else {
            error!(session = session.id.0, "session lost: the system does not watch more sockets");
            return Next::End(End::Error);
        };
        let sockets = Arc::new([first, second]);
        self.runner.paths.watch(session, &sockets);
        self.sockets = Some(sockets);
        Next::Go(Stage::Forwarding(forward))
    }

    /// Takes it from its thread, and hands it over.
    fn leave(
        &mut self,
        context: &mut Context<'_>,
        session: &Session,
        mut forward: Forward,
        to: Destination,
    ) -> Next {
        let Some(sockets) = self.sockets.take() else {
            return Next::End(End::Error);
        };
        if let Destination::Elsewhere(_) = to {
            if let Poll::Ready(Some(end)) = session.bell.poll_rung(context) {
                // Whoever was told that it ends must not be wrong.
                self.sockets = Some(sockets);
                return Next::End(end);
            }
            self.runner.paths.forget(session, Some(&sockets));
        }
        forward.release_sockets();
        let [first, second] = match Arc::try_unwrap(sockets) {
            Ok(sockets) => sockets,
            Err(sockets) => {
                // Whoever looks at its path holds them for some microseconds.
                self.sockets = Some(sockets);
                self.stage = Stage::Leaving { forward, to };
                context.waker().wake_by_ref();
                return Next::Wait;
            }
        };
        let left = match (first.into_std(), second.into_std(), to) {
            (Ok(first), Ok(second), Destination::Worker(number)) => {
                self.go_on_at(number, [first, second], forward);
                Ok(())
            }
            (Ok(first), Ok(second), Destination::Elsewhere(to)) => forward
                .into_in_flight()
                .map(|in_flight| self.go_elsewhere([first, second], in_flight, to)),
            (Err(error), ..) | (_, Err(error), _) => Err(error),
        };
        match left {
            Ok(()) => Next::Wait,
            Err(error) => {
                error!(session = session.id.0, %error, "session lost: it cannot leave its thread");
                Next::End(End::Error)
            }
        }
    }

    /// Nobody but its threads knows that it has moved.
    fn go_on_at(&mut self, number: usize, sockets: [std::net::TcpStream; 2], forward: Forward) {
        if let Some(active) = self.active.take() {
            let trace = std::mem::take(&mut self.trace);
            let joined = Joined { sockets, forward, active, trace };
            let runner = &self.runner;
            runner.workers.spawn_at(number, |place| runner.run(joined, place));
        }
    }

    fn go_elsewhere(
        &mut self,
        sockets: [std::net::TcpStream; 2],
        in_flight: [Vec<u8>; 2],
        to: oneshot::Sender<Parts>,
    ) {
        if let Some(record) = self.active.take().map(ActiveSession::leave) {
            std::mem::take(&mut self.trace).end(DEPARTED, record.bytes);
            info!(session = record.id.0, bytes = record.bytes, "session goes on elsewhere");
            // Whoever asked for it as well waits in vain.
            drop(self.runner.departures.take(record.id));
            if let Err(parts) = to.send(Parts { record, sockets, in_flight }) {
                // Nobody wants it any more.
                self.runner.put_together(parts);
            }
        }
    }

    fn end(&mut self, session: &Session, end: End) {
        self.close(session);
        if let Some(active) = self.active.take() {
            active.finish(end);
        }
        std::mem::take(&mut self.trace).end(end.name(), session.traffic.bytes());
        info!(
            session = session.id.0,
            %end,
            bytes = session.traffic.bytes(),
            seconds = session.started.elapsed().as_secs(),
            "session ended"
        );
        // Whoever asked for it while it ended waits in vain.
        drop(self.runner.departures.take(session.id));
    }

    /// Closes the sockets. Before the session ends: a place that is free again must not still hold two of them.
    fn close(&mut self, session: &Session) {
        self.stage = Stage::Over;
        let sockets = self.sockets.take();
        self.runner.paths.forget(session, sockets.as_deref());
    }
}

/// Forwards, and heeds those who ring.
fn attend(
    context: &mut Context<'_>,
    runner: &Runner,
    session: &Session,
    sockets: &Arc<Sockets>,
    forward: &mut Forward,
    place: &mut Place,
) -> Next {
    let (began, bytes) = (Instant::now(), session.traffic.bytes());
    let forwarding = &runner.forwarding;
    if let Poll::Ready(over) = forward.poll(context, sockets, &session.traffic, began, forwarding) {
        session.over.store(true, Ordering::Relaxed);
        if let Some(errno) = over.error {
            let error = std::io::Error::from_raw_os_error(errno);
            error!(session = session.id.0, %error, "session lost: the system refuses to move its bytes");
        }
        let (forward, throttle) = (std::mem::take(forward), forwarding.throttle.clone());
        let linger = Box::pin(linger(sockets.clone(), over, forward, throttle));
        return Next::Go(Stage::Lingering { end: over.end, linger });
    }
    if let Poll::Ready(end) = session.bell.poll_rung(context) {
        match (end, runner.departures.take(session.id)) {
            (Some(end), _) => return Next::End(end),
            (None, Some(to)) if !to.is_closed() => {
                let to = Destination::Elsewhere(to);
                return Next::Go(Stage::Leaving { forward: std::mem::take(forward), to });
            }
            // Whoever asked for it has what they wanted.
            (None, _) => {}
        }
        if is_idle(runner, session, sockets, forward) {
            return Next::End(End::Idle);
        }
    }
    match place.worked(began.elapsed(), session.traffic.bytes() != bytes) {
        Some(number) => {
            let to = Destination::Worker(number);
            Next::Go(Stage::Leaving { forward: std::mem::take(forward), to })
        }
        None => Next::Wait,
    }
}

/// Whether a session that is suspected to be idle is: nothing has moved meanwhile, nothing can, and the kernel has delivered
/// nothing of what it holds for a slow peer.
fn is_idle(runner: &Runner, session: &Session, sockets: &Sockets, forward: &Forward) -> bool {
    let Some(since) = session.bell.take_suspicion() else {
        return false;
    };
    runner.paths.look_now(session, sockets);
    session.traffic.last_moved() == since && !forward.can_move(sockets)
}

/// Waits until the peers have everything. The session does not depart any more, and is not idle.
fn wait(
    context: &mut Context<'_>,
    runner: &Runner,
    session: &Session,
    end: End,
    linger: &mut Pin<Box<dyn Future<Output = ()> + Send>>,
) -> Next {
    while let Poll::Ready(wanted) = session.bell.poll_rung(context) {
        drop(runner.departures.take(session.id));
        if wanted.is_some() {
            // Whatever cuts this short is not why the session ended.
            return Next::End(end);
        }
    }
    match linger.as_mut().poll(context) {
        Poll::Ready(()) => Next::End(end),
        Poll::Pending => Next::Wait,
    }
}

impl Future for Running {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            let Some(active) = &this.active else {
                return Poll::Ready(());
            };
            let next = match (&mut this.stage, &this.sockets) {
                (Stage::Forwarding(forward), Some(sockets)) => {
                    let (runner, place) = (&this.runner, &mut this.place);
                    attend(context, runner, active.session(), sockets, forward, place)
                }
                (Stage::Lingering { end, linger }, _) => {
                    wait(context, &this.runner, active.session(), *end, linger)
                }
                _ => {
                    let session = active.session().clone();
                    match std::mem::replace(&mut this.stage, Stage::Over) {
                        Stage::New { sockets, forward } => this.begin(&session, sockets, forward),
                        Stage::Leaving { forward, to } => {
                            this.leave(context, &session, forward, to)
                        }
                        _ => Next::End(End::Error),
                    }
                }
            };
            match next {
                Next::Wait if this.active.is_some() => return Poll::Pending,
                Next::Wait => {}
                Next::Go(stage) => this.stage = stage,
                Next::End(end) => {
                    if let Some(session) = this.session() {
                        this.end(&session, end);
                    }
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its runtime has ended before it.
        if let Some(session) = self.session() {
            self.close(&session);
            drop(self.runner.departures.take(session.id));
        }
    }
}

fn announce(session: &Session, with_identity: bool) {
    let [first, second] = session.addresses;
    if with_identity {
        info!(
            session = session.id.0,
            %first,
            %second,
            user = session.identity.client_user_name(),
            host_id = session.identity.host_id,
            "session started"
        );
    } else {
        info!(session = session.id.0, %first, %second, "session started");
    }
}
