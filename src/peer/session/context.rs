//! The context of session tasks.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::forward::ForwardResources;
use crate::peer::path::PathMonitor;
use crate::state::sessions::Session;
use crate::state::shared::SharedState;
use crate::trace::Tracer;
use crate::trace::session::{ContinuedFacts, IdentityFacts, PeerFacts, SessionFacts, SessionTrace};
use crate::workers::Workers;

use super::kept::KeptSessions;
use super::requests::DetachRequests;

/// What the tasks of all sessions share.
#[derive(Debug)]
pub(super) struct SessionContext {
    pub(super) state: SharedState,
    pub(super) config: watch::Receiver<Arc<Config>>,
    pub(super) workers: Workers,
    pub(super) resources: ForwardResources,
    pub(super) tracer: Tracer,
    pub(super) paths: PathMonitor,
    pub(super) detach_requests: DetachRequests,
    pub(super) kept: KeptSessions,
    pub(super) tasks: TaskTracker,
}

impl SessionContext {
    /// Begins the trace of a session that has just been paired.
    pub(super) fn begin_trace(&self, session: &Session, peers: [PeerFacts; 2]) -> SessionTrace {
        self.tracer.begin_session(|| SessionFacts {
            id: session.id.0,
            peers,
            paired: session.started,
            identity: self.identity_facts(session),
        })
    }

    /// Begins the trace of the part of a session that runs here, linked to the part before.
    pub(super) fn continue_trace(
        &self,
        session: &Session,
        traceparent: Option<String>,
    ) -> SessionTrace {
        self.tracer.continue_session(|| ContinuedFacts {
            id: session.id.0,
            continued: Instant::now(),
            identity: self.identity_facts(session),
            traceparent,
        })
    }

    /// Says who the peers are, if traces may.
    fn identity_facts(&self, session: &Session) -> Option<IdentityFacts> {
        self.config.borrow().trace_peer_identity.then(|| IdentityFacts {
            user_name: session.identity.client_user_name().to_owned(),
            host_id: session.identity.host_id,
        })
    }
}
