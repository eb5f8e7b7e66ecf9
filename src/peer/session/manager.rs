//! The handle to all sessions.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::forward::ForwardResources;
use crate::peer::metrics::PeerMetrics;
use crate::peer::path::PathMonitor;
use crate::state::enforce::enforce_session_limits;
use crate::state::sessions::{IdentityLimits, Session, SessionId};
use crate::state::shared::SharedState;
use crate::trace::Tracer;
use crate::trace::session::{PeerFacts, SessionTrace};
use crate::workers::Workers;

use super::context::SessionContext;
use super::detach::DetachedSession;
use super::kept::KeptSessions;
use super::requests::DetachRequests;
use super::stage::RunnableSession;
use super::task;

/// Runs sessions, detaches and attaches them; cheap to clone.
#[derive(Debug, Clone)]
pub struct SessionManager(Arc<SessionContext>);

impl SessionManager {
    /// Creates a manager of the sessions of `state`, which run on `workers`, are traced by `tracer` and reported to `kept`.
    pub fn new(
        state: SharedState,
        config: watch::Receiver<Arc<Config>>,
        metrics: PeerMetrics,
        workers: Workers,
        resources: ForwardResources,
        tracer: Tracer,
        kept: KeptSessions,
    ) -> Self {
        let manager = Self(Arc::new(SessionContext {
            state,
            config,
            workers,
            resources,
            tracer,
            paths: PathMonitor::new(metrics),
            detach_requests: DetachRequests::default(),
            kept,
            tasks: TaskTracker::new(),
        }));
        manager.apply(&manager.0.config.borrow());
        manager
    }

    pub(in crate::peer) fn state(&self) -> &SharedState {
        &self.0.state
    }

    pub(in crate::peer) fn config(&self) -> &watch::Receiver<Arc<Config>> {
        &self.0.config
    }

    /// Begins the trace of a session that has just been paired.
    pub(in crate::peer) fn begin_trace(
        &self,
        session: &Session,
        peers: [PeerFacts; 2],
    ) -> SessionTrace {
        self.0.begin_trace(session, peers)
    }

    /// Runs a session on a thread with little load.
    pub(in crate::peer) fn start(&self, session: RunnableSession) {
        task::start(&self.0, session);
    }

    /// Returns the sessions that a store should keep.
    pub fn kept(&self) -> &KeptSessions {
        &self.0.kept
    }

    /// Detaches a session, wherever its bytes are. Returns `None` if there is no such session, or if it ends instead. If the
    /// returned future is dropped early, the session continues here.
    pub async fn detach(&self, id: SessionId) -> Option<DetachedSession> {
        let mut batch = DetachBatch::request(&self.0, &[id]);
        batch.wait().await;
        batch.take().pop()
    }

    /// Detaches all sessions, also those that linger. Those that end in the meantime are left out. No session may begin during
    /// the call. If the returned future is dropped early, the sessions continue here.
    pub async fn detach_all(&self) -> Vec<DetachedSession> {
        let sessions = self.0.state.sessions();
        let ids: Vec<SessionId> = sessions.iter().map(|session| session.id).collect();
        drop(sessions);
        let mut batch = DetachBatch::request(&self.0, &ids);
        batch.wait().await;
        batch.take()
    }

    /// Continues a detached session. Its peers notice nothing.
    pub fn attach(&self, session: DetachedSession) {
        task::attach(&self.0, session);
    }

    /// Returns when every worker thread has run a task for the caller; never, if one of them hangs.
    pub async fn ping_workers(&self) {
        self.0.workers.ping().await;
    }

    /// Enforces the limits of sessions, samples their paths and balances their threads. Never returns.
    pub(in crate::peer) async fn maintain(&self) {
        tokio::join!(
            enforce_session_limits(&self.0.state, self.0.config.clone()),
            self.0.paths.run(),
            self.0.workers.balance(),
            self.follow_settings(),
        );
    }

    /// Applies the settings whenever they change. Never returns.
    async fn follow_settings(&self) {
        let mut config = self.0.config.clone();
        loop {
            self.apply(&config.borrow_and_update());
            if config.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Applies the limits on bandwidth and on the sessions of one user and one host, and what the log may say of peers.
    fn apply(&self, config: &Config) {
        self.0.state.set_identity_limits(IdentityLimits {
            per_user: config.max_sessions_per_user,
            per_host: config.max_sessions_per_host,
        });
        self.0.state.set_identity_logged(config.log_peer_identity);
        self.0.resources.throttle.set_limits(config.session_bandwidth, config.total_bandwidth);
    }

    /// Returns when all sessions have ended; no more may begin.
    pub(in crate::peer) async fn wait_until_ended(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

/// Sessions that are being detached. If it is dropped early, it attaches them again.
struct DetachBatch<'a> {
    context: &'a Arc<SessionContext>,
    receivers: Vec<oneshot::Receiver<DetachedSession>>,
    detached: Vec<DetachedSession>,
}

impl<'a> DetachBatch<'a> {
    fn request(context: &'a Arc<SessionContext>, ids: &[SessionId]) -> Self {
        let request = |id: &SessionId| context.detach_requests.request(*id, &context.state);
        let receivers = ids.iter().map(request).collect();
        Self { context, receivers, detached: Vec::with_capacity(ids.len()) }
    }

    /// Returns when each of the sessions is detached or has ended.
    async fn wait(&mut self) {
        for receiver in &mut self.receivers {
            if let Ok(session) = receiver.await {
                self.detached.push(session);
            }
        }
    }

    fn take(mut self) -> Vec<DetachedSession> {
        self.receivers.clear();
        std::mem::take(&mut self.detached)
    }
}

impl Drop for DetachBatch<'_> {
    fn drop(&mut self) {
        for receiver in &mut self.receivers {
            receiver.close();
            self.detached.extend(receiver.try_recv().ok());
        }
        for session in self.detached.drain(..) {
            task::attach(self.context, session);
        }
    }
}
