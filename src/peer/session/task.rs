//! The task of one session.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TrackedFuture;
use tracing::{debug, error, info};

use crate::forward::balance::Balances;
use crate::forward::{Forward, Sockets, finish_connection, linger};
use crate::metrics::Label;
use crate::state::active_session::ActiveSession;
use crate::state::sessions::{EndCause, Session};
use crate::trace::session::SessionTrace;
use crate::workers::WorkerSlot;

use super::context::SessionContext;
use super::detach::DetachedSession;
use super::kept::KeptFacts;
use super::requests::SessionRequest;
use super::stage::{Linger, RunnableSession, SessionDestination, SessionStage, Transition};

/// The end reason in the trace of a session that continues elsewhere.
const DEPARTED: &str = "departed";

/// Runs a session on a thread with little load.
pub(super) fn start(context: &Arc<SessionContext>, session: RunnableSession) {
    log_start(session.active.session(), context.config.borrow().log_peer_identity);
    spawn(context, session);
}

fn spawn(context: &Arc<SessionContext>, session: RunnableSession) {
    context.workers.spawn(|slot| run(context, session, slot));
}

/// Continues a detached session.
pub(super) fn attach(context: &Arc<SessionContext>, detached: DetachedSession) {
    let in_hand = detached.count_in_flight();
    let DetachedSession { record, sockets, in_flight, balances, is_stored, traceparent, .. } =
        detached;
    let (number, bytes) = (record.id, record.bytes);
    let active = ActiveSession::adopt(&context.state, record, Instant::now());
    context.paths.adopt(active.session(), &sockets);
    let trace = context.continue_trace(active.session(), traceparent);
    let balances = || balances.or_else(|| Balances::take(&sockets, in_hand, bytes));
    context.kept.adopt(active.session(), number, balances, is_stored, &trace);
    let forward = Forward::resume(&in_flight);
    // There may be thousands, and a hand-over is logged as a whole.
    debug!(session = active.session().id.0, "session continues here");
    spawn(context, RunnableSession { sockets, forward, active, trace });
}

fn run(
    context: &Arc<SessionContext>,
    session: RunnableSession,
    slot: WorkerSlot,
) -> TrackedFuture<SessionTask> {
    context.tasks.track_future(SessionTask::new(context.clone(), session, slot))
}

fn log_start(session: &Session, is_identity_logged: bool) {
    let [first, second] = session.addresses;
    if is_identity_logged {
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

/// The task of a session. It is written by hand rather than as an `async fn`: there are thousands of them, most of them idle,
/// and it takes a quarter of the memory.
#[derive(Debug)]
struct SessionTask {
    context: Arc<SessionContext>,
    /// `None` once the session is over, or continues elsewhere.
    active: Option<ActiveSession>,
    trace: SessionTrace,
    /// Set when the task first runs on its thread.
    sockets: Option<Arc<Sockets>>,
    stage: SessionStage,
    slot: WorkerSlot,
    /// Whether it is being polled. If it is dropped meanwhile, the poll has panicked.
    is_polled: bool,
}

impl SessionTask {
    fn new(context: Arc<SessionContext>, session: RunnableSession, slot: WorkerSlot) -> Self {
        let RunnableSession { sockets, forward, active, trace } = session;
        let stage = SessionStage::New { sockets, forward };
        Self { context, active: Some(active), trace, sockets: None, stage, slot, is_polled: false }
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.active.as_ref().map(|active| active.session().clone())
    }

    /// Registers the sockets with the runtime of this thread.
    fn begin(
        &mut self,
        session: &Arc<Session>,
        sockets: [std::net::TcpStream; 2],
        forward: Forward,
    ) -> Transition {
        let balances = self.context.kept.take_balances(session, &sockets);
        let [first, second] = sockets.map(TcpStream::from_std);
        let (first, second) = match (first, second) {
            (Ok(first), Ok(second)) => (first, second),
            (Err(error), _) | (_, Err(error)) => {
                error!(session = session.id.0, %error, "session lost: cannot register its sockets with epoll");
                return Transition::End(EndCause::Error);
            }
        };
        let sockets = Arc::new([first, second]);
        self.context.paths.watch(session, &sockets);
        self.context.kept.begin(session, &sockets, balances, &self.trace);
        self.sockets = Some(sockets);
        Transition::To(SessionStage::Forwarding(forward))
    }

    /// Takes the session from its thread and passes it on.
    fn leave(
        &mut self,
        context: &mut Context<'_>,
        session: &Session,
        mut forward: Forward,
        to: SessionDestination,
    ) -> Transition {
        let Some(sockets) = self.sockets.take() else {
            return Transition::End(EndCause::Error);
        };
        if let SessionDestination::Elsewhere(_) = to {
            if let Poll::Ready(Some(cause)) = session.signal.poll_signal(context) {
                // The task that asked the session to end was told that it would.
                self.sockets = Some(sockets);
                return Transition::End(cause);
            }
            self.context.paths.forget(session, Some(&sockets));
        }
        forward.release_sockets();
        let [first, second] = match Arc::try_unwrap(sockets) {
            Ok(sockets) => sockets,
            Err(sockets) => {
                // The path monitor holds the sockets for a few microseconds while it takes a sample.
                self.sockets = Some(sockets);
                self.stage = SessionStage::Leaving { forward, to };
                context.waker().wake_by_ref();
                return Transition::Pending;
            }
        };
        let left = match (first.into_std(), second.into_std(), to) {
            (Ok(first), Ok(second), SessionDestination::Worker(number)) => {
                self.continue_on_worker(number, [first, second], forward);
                Ok(Transition::Pending)
            }
            (Ok(first), Ok(second), SessionDestination::Elsewhere(to)) => forward
                .into_in_flight()
                .map(|in_flight| self.continue_elsewhere([first, second], in_flight, to)),
            // A store that keeps the session closes its duplicates when it hears that it has ended.
            (Err(error), ..) | (_, Err(error), _) => Err(error),
        };
        left.unwrap_or_else(|error| {
            error!(session = session.id.0, %error, "session lost: it cannot leave its thread");
            Transition::End(EndCause::Error)
        })
    }

    /// Passes the session on to another thread. Only the two threads know that it has moved.
    fn continue_on_worker(
        &mut self,
        number: usize,
        sockets: [std::net::TcpStream; 2],
        forward: Forward,
    ) {
        if let Some(active) = self.active.take() {
            let trace = std::mem::take(&mut self.trace);
            let session = RunnableSession { sockets, forward, active, trace };
            let context = &self.context;
            context.workers.spawn_at(number, |slot| run(context, session, slot));
        }
    }

    /// Sends the session to the task that asked for it.
    fn continue_elsewhere(
        &mut self,
        sockets: [std::net::TcpStream; 2],
        in_flight: [Vec<u8>; 2],
        to: oneshot::Sender<DetachedSession>,
    ) -> Transition {
        let Some(active) = self.active.take() else {
            return Transition::Pending;
        };
        let is_lingering = !active.session().is_forwarding();
        let record = match active.try_hand_over() {
            Ok(record) => record,
            Err(active) => {
                // It goes on here, where its task sees the request to end.
                self.active = Some(active);
                let forward = Forward::resume(&in_flight);
                return Transition::To(SessionStage::New { sockets, forward });
            }
        };
        let traceparent = self.trace.traceparent();
        std::mem::take(&mut self.trace).end(DEPARTED, record.total_bytes());
        debug!(session = record.id.0, bytes = record.total_bytes(), "session continues elsewhere");
        // A second request for the session is dropped.
        drop(self.context.detach_requests.take(record.id));
        let KeptFacts { balances, is_stored } = self.context.kept.detach(record.id);
        let detached = DetachedSession {
            record,
            sockets,
            in_flight,
            balances,
            is_stored,
            is_lingering,
            traceparent,
        };
        if let Err(detached) = to.send(detached) {
            // The task that asked for it no longer waits.
            attach(&self.context, detached);
        }
        Transition::Pending
    }

    /// Polls one stage after the other, until one is pending or the session is over here.
    fn poll_stages(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(active) = &self.active else {
                return Poll::Ready(());
            };
            let transition = match (&mut self.stage, &self.sockets) {
                (SessionStage::Forwarding(forward), Some(sockets)) => {
                    let (sessions, slot) = (&self.context, &mut self.slot);
                    poll_forwarding(context, sessions, active.session(), sockets, forward, slot)
                }
                (SessionStage::Lingering { cause, linger }, _) => {
                    poll_lingering(context, &self.context, active.session(), *cause, linger)
                }
                _ => {
                    let session = active.session().clone();
                    match std::mem::replace(&mut self.stage, SessionStage::Over) {
                        SessionStage::New { sockets, forward } => {
                            self.begin(&session, sockets, forward)
                        }
                        SessionStage::Leaving { forward, to } => {
                            self.leave(context, &session, forward, to)
                        }
                        _ => Transition::End(EndCause::Error),
                    }
                }
            };
            match transition {
                Transition::Pending if self.active.is_some() => return Poll::Pending,
                Transition::Pending => {}
                Transition::To(stage) => self.stage = stage,
                Transition::End(cause) => {
                    if let Some(session) = self.session() {
                        self.end(&session, cause);
                    }
                }
            }
        }
    }

    fn end(&mut self, session: &Session, cause: EndCause) {
        let continues = self.context.kept.outlives_process(session.id);
        self.shut_down(session);
        self.close(session);
        match self.active.take() {
            // Another relay goes on with it, sees its end, and records it.
            Some(active) if continues => drop(active.hand_over()),
            Some(active) => active.finish(cause),
            None => {}
        }
        let reason = cause.reason().name();
        std::mem::take(&mut self.trace).end(reason, session.traffic.bytes());
        // A request to detach the session that arrived while it ended is dropped.
        drop(self.context.detach_requests.take(session.id));
    }

    /// Ends the connections of a session that a store keeps: its duplicates would keep them open.
    fn shut_down(&self, session: &Session) {
        if self.context.kept.end(session.id) {
            self.sockets.iter().flat_map(|sockets| sockets.iter()).for_each(finish_connection);
        }
    }

    /// Closes the sockets. This happens before the session ends, so that the two sockets are closed when its share of the
    /// capacity is free again.
    fn close(&mut self, session: &Session) {
        self.stage = SessionStage::Over;
        let sockets = self.sockets.take();
        self.context.paths.forget(session, sockets.as_deref());
    }
}

/// Forwards bytes, and carries out the requests of other tasks.
fn poll_forwarding(
    context: &mut Context<'_>,
    sessions: &SessionContext,
    session: &Session,
    sockets: &Arc<Sockets>,
    forward: &mut Forward,
    slot: &mut WorkerSlot,
) -> Transition {
    let (began, bytes) = (Instant::now(), session.traffic.bytes());
    let resources = &sessions.resources;
    if let Poll::Ready(over) = forward.poll(context, sockets, &session.traffic, began, resources) {
        session.has_ended_forwarding.store(true, Ordering::Relaxed);
        if let Some(errno) = over.error {
            let error = std::io::Error::from_raw_os_error(errno);
            error!(session = session.id.0, %error, "session lost: the system refuses to move its bytes");
        }
        let (forward, throttle) = (std::mem::take(forward), resources.throttle.clone());
        let linger = Box::pin(linger(sockets.clone(), over, forward, throttle));
        return Transition::To(SessionStage::Lingering { cause: over.cause, linger });
    }
    if let Poll::Ready(request) = sessions.detach_requests.poll_request(context, session) {
        match request {
            SessionRequest::End(cause) => return Transition::End(cause),
            SessionRequest::Detach(to) => {
                let (forward, to) = (std::mem::take(forward), SessionDestination::Elsewhere(to));
                return Transition::To(SessionStage::Leaving { forward, to });
            }
            SessionRequest::Other if is_idle(sessions, session, sockets, forward) => {
                return Transition::End(EndCause::Idle);
            }
            SessionRequest::Other => {}
        }
    }
    match slot.record_work(began.elapsed(), session.traffic.bytes() != bytes) {
        Some(number) => {
            let (forward, to) = (std::mem::take(forward), SessionDestination::Worker(number));
            Transition::To(SessionStage::Leaving { forward, to })
        }
        None => Transition::Pending,
    }
}

/// Whether a session that is suspected of being idle really is: nothing has moved in the meantime, nothing can move, and the
/// kernel has delivered nothing of what it holds for a slow peer.
fn is_idle(
    sessions: &SessionContext,
    session: &Session,
    sockets: &Sockets,
    forward: &Forward,
) -> bool {
    let Some(since) = session.signal.take_idle_check() else {
        return false;
    };
    sessions.paths.sample(session, sockets);
    session.traffic.last_moved() == since && !forward.can_move(sockets)
}

/// Waits until the peers have received everything. A session that lingers is not idle. If it is detached, it ends where it is
/// attached: there, too, nothing is left to forward.
fn poll_lingering(
    context: &mut Context<'_>,
    sessions: &SessionContext,
    session: &Session,
    cause: EndCause,
    linger: &mut Linger,
) -> Transition {
    while let Poll::Ready(request) = sessions.detach_requests.poll_request(context, session) {
        match request {
            // The request cuts the lingering short, but it is not why the session ended.
            SessionRequest::End(_) => return Transition::End(cause),
            SessionRequest::Detach(to) => {
                let (forward, to) = (Forward::default(), SessionDestination::Elsewhere(to));
                return Transition::To(SessionStage::Leaving { forward, to });
            }
            SessionRequest::Other => {}
        }
    }
    match linger.as_mut().poll(context) {
        Poll::Ready(()) => Transition::End(cause),
        Poll::Pending => Transition::Pending,
    }
}

impl Future for SessionTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.is_polled = true;
        let poll = this.poll_stages(context);
        this.is_polled = false;
        poll
    }
}

impl Drop for SessionTask {
    fn drop(&mut self) {
        // The runtime of its thread ended before the session did, or the task has panicked. A store that keeps the session does
        // so in the first case, and the next relay continues it; in the second case, the session has ended.
        if let Some(session) = self.session() {
            if self.is_polled {
                self.shut_down(&session);
            } else if self.context.kept.is_stored(session.id) {
                // Whoever sees its end records it.
                self.active.take().map(ActiveSession::hand_over);
            }
            self.close(&session);
            // Only once nobody finds the session any more: a request that came later would never be answered.
            drop(self.active.take());
            drop(self.context.detach_requests.take(session.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    use prometheus::Registry;
    use relay_lab::sockets::connected_pair;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::watch;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::forward::metrics::ForwardMetrics;
    use crate::forward::pipe::Pipes;
    use crate::forward::{ForwardResources, TransferMethod};
    use crate::peer::metrics::PeerMetrics;
    use crate::peer::path::PathMonitor;
    use crate::peer::session::kept::KeptSessions;
    use crate::state::metrics::StateMetrics;
    use crate::state::sessions::{PeerIdentity, SessionId, SessionRecord};
    use crate::state::shared::SharedState;
    use crate::workers::Workers;

    /// A session task that works for a byte at a time, and is woken after each of them.
    fn session_context() -> Arc<SessionContext> {
        let config = Arc::new(crate::config::testing::config(&[]));
        let registry = Registry::new();
        let pipes = Pipes::new(0, ForwardMetrics::new(&registry).unwrap());
        Arc::new(SessionContext {
            state: SharedState::new(1, 0, StateMetrics::new(&registry).unwrap()),
            config: watch::Sender::new(config).subscribe(),
            workers: Workers::on_current_runtime(),
            resources: ForwardResources {
                method: TransferMethod::Copy,
                pipes,
                budget: 1,
                throttle: Arc::default(),
            },
            tracer: Default::default(),
            paths: PathMonitor::new(PeerMetrics::new(&registry).unwrap()),
            detach_requests: Default::default(),
            kept: KeptSessions::new(),
            tasks: TaskTracker::new(),
        })
    }

    struct PanickingWaker;

    impl Wake for PanickingWaker {
        fn wake(self: Arc<Self>) {
            panic!("as expected");
        }
    }

    /// Runs a session that a store keeps until a byte has moved, and then drops its task, after a panic if `panics`. Returns the
    /// peers and what the store has.
    async fn drop_session(
        context: &Arc<SessionContext>,
        panics: bool,
    ) -> ([TcpStream; 2], Vec<crate::peer::session::KeptSession>) {
        let (first, mut peer) = connected_pair().await.unwrap();
        let (second, partner) = connected_pair().await.unwrap();
        peer.write_all(&[7; 1000]).await.unwrap();
        let address: SocketAddr = (Ipv4Addr::LOCALHOST, 1).into();
        let (age, idle, identity) = (Duration::ZERO, Duration::ZERO, PeerIdentity::default());
        let addresses = [address; 2];
        let record =
            SessionRecord { id: SessionId(5), age, idle, bytes: [0, 0], identity, addresses };
        let active = ActiveSession::adopt(&context.state, record, Instant::now());
        let sockets = [first.into_std().unwrap(), second.into_std().unwrap()];
        let (forward, trace) = (Forward::default(), SessionTrace::default());
        let runnable = RunnableSession { sockets, forward, active, trace };
        let (done, store) = oneshot::channel();
        context.workers.spawn(|slot| {
            let mut task = Box::pin(SessionTask::new(context.clone(), runnable, slot));
            let context = context.clone();
            async move {
                poll_fn(|context| match task.as_mut().poll(context) {
                    Poll::Pending if task.session().unwrap().traffic.bytes() == 0 => Poll::Pending,
                    polled => {
                        assert!(polled.is_pending());
                        Poll::Ready(())
                    }
                })
                .await;
                let store = context.kept.take_changes(10).begun;
                let waker = Waker::from(Arc::new(PanickingWaker));
                let poll = || task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
                assert!(!panics || catch_unwind(AssertUnwindSafe(poll)).is_err());
                drop(task);
                done.send(store).unwrap();
            }
        });
        ([peer, partner], store.await.unwrap())
    }

    #[tokio::test]
    async fn panic_of_a_session_ends_the_connections_that_a_store_keeps() {
        let context = session_context();
        let (peers, store) = drop_session(&context, true).await;
        assert_eq!(store.len(), 1);
        for mut peer in peers {
            let mut received = Vec::new();
            // The connection is reset if bytes were not read.
            let _ = peer.read_to_end(&mut received).await;
        }
        assert_eq!(context.kept.take_changes(10).ended, [SessionId(5)]);
        assert_eq!(context.state.counts().active, 0);
    }

    #[tokio::test]
    async fn session_whose_task_is_dropped_stays_in_the_store() {
        let context = session_context();
        let (peers, store) = drop_session(&context, false).await;
        assert!(context.kept.take_changes(10).ended.is_empty());
        let (mut stored, mut buffer) = (store, [0; 4]);
        let [_, to_partner] = stored.remove(0).sockets;
        let [_, mut partner] = peers;
        // The connections are still open, and another process that has the sockets can continue them.
        let mut to_partner = TcpStream::from_std(to_partner).unwrap();
        to_partner.write_all(b"more").await.unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"more") {
            let read = partner.read(&mut buffer).await.unwrap();
            assert!(read > 0);
            received.extend_from_slice(&buffer[..read]);
        }
    }
}
