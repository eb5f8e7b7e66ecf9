//! The tasks of a running relay: how they start, end, and are suspended for a hand-over.

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::handle::Handle;
use crate::handover::suspended::Suspended;
use crate::listen::acceptor::Acceptor;
use crate::peer::session::SessionManager;
use crate::peer::{Peers, SuspendedPeer};
use crate::router::RouterTask;
use crate::router::suspend::SuspendedLink;

use super::drain;
use super::error::RunError;
use super::free_memory;
use super::listeners::RunningListeners;
use super::parts::RelayParts;
use super::stop::{StopTokens, Stopped};

/// The tasks of a running relay.
pub(super) struct Tasks {
    router: JoinHandle<(RouterTask, Option<SuspendedLink>)>,
    peers: JoinHandle<Vec<SuspendedPeer>>,
    admin: JoinHandle<()>,
    key_expiry: JoinHandle<()>,
    reloads: JoinHandle<()>,
    load_watch: JoinHandle<()>,
    free_memory: JoinHandle<()>,
    peer_side: Peers,
    sessions: SessionManager,
}

/// What the tasks were waited for.
pub(super) enum TaskEvent {
    /// A drain has begun.
    Drain,
    /// A hand-over has begun.
    HandOver,
    /// The task with this name has ended by itself.
    Failed(&'static str),
}

impl Tasks {
    /// Starts all tasks, which continue with what was suspended.
    pub(super) fn spawn(
        parts: RelayParts,
        listeners: RunningListeners,
        resumed: Suspended,
    ) -> Self {
        let RelayParts { router, peers, admin, reloader, load_watch, handle, stop_tokens, .. } =
            parts;
        let everything = stop_tokens.everything;
        let RunningListeners { peers: peer_listener, http } = listeners;
        let Suspended { sessions: detached, link, peers: suspended_peers, .. } = resumed;
        let (key_expiry, sessions) = (peers.clone(), handle.session_manager().clone());
        for session in detached {
            sessions.attach(session);
        }
        Self {
            router: spawn_router(router, link),
            peers: spawn_peers(peers.clone(), peer_listener, suspended_peers),
            admin: tokio::spawn(async move { admin.run(http).await }),
            key_expiry: spawn_until(everything.clone(), async move {
                key_expiry.expire_keys().await;
            }),
            reloads: spawn_until(everything.clone(), reloader.run()),
            load_watch: spawn_until(everything.clone(), load_watch.run()),
            free_memory: spawn_until(everything, async move { free_memory::run(&handle).await }),
            peer_side: peers,
            sessions,
        }
    }

    /// Waits until a drain or a hand-over begins, or a task ends by itself.
    pub(super) async fn wait(&mut self, handle: &Handle) -> TaskEvent {
        tokio::select! {
            () = handle.draining().cancelled() => TaskEvent::Drain,
            () = handle.handing_over().cancelled() => TaskEvent::HandOver,
            _ = &mut self.router => TaskEvent::Failed("Router"),
            _ = &mut self.peers => TaskEvent::Failed("peer"),
            _ = &mut self.admin => TaskEvent::Failed("HTTP"),
            _ = &mut self.key_expiry => TaskEvent::Failed("expiry"),
            _ = &mut self.reloads => TaskEvent::Failed("reload"),
            _ = &mut self.load_watch => TaskEvent::Failed("load"),
            _ = &mut self.free_memory => TaskEvent::Failed("memory"),
        }
    }

    /// Suspends everything that serves the Router, peers and sessions. HTTP goes on. Either [`Self::resume`] follows, or the end
    /// of the process.
    ///
    /// # Errors
    /// A task has panicked.
    pub(super) async fn suspend(
        &mut self,
        suspend: &CancellationToken,
    ) -> Result<(RouterTask, Suspended), RunError> {
        let since = Some(Instant::now());
        suspend.cancel();
        // First the peers: no session begins after that.
        let peers = (&mut self.peers).await.map_err(|_| RunError::Task("peer"))?;
        let (router, link) = (&mut self.router).await.map_err(|_| RunError::Task("Router"))?;
        let sessions = self.sessions.detach_all().await;
        Ok((router, Suspended { since, sessions, link, peers }))
    }

    /// Continues with what was suspended.
    pub(super) fn resume(
        &mut self,
        mut router: RouterTask,
        resumed: Suspended,
        listener: Acceptor,
    ) {
        let Suspended { sessions, link, peers, .. } = resumed;
        for session in sessions {
            self.sessions.attach(session);
        }
        // A relay is suspended once.
        router.set_suspend_token(CancellationToken::new());
        self.router = spawn_router(router, link);
        self.peers = spawn_peers(self.peer_side.clone(), listener, peers);
    }

    /// Drains, unless told to stop at once, and ends all tasks.
    pub(super) async fn stop(mut self, handle: &Handle, tokens: &StopTokens) -> Stopped {
        let drained = drain::drain(handle, &tokens.link, &mut self.router);
        let stopped = tokio::select! {
            biased;
            () = handle.stopping().cancelled() => Stopped::AtOnce,
            stopped = drained => stopped,
        };
        tokens.everything.cancel();
        if stopped == Stopped::AtOnce {
            // Aborts the link instead of closing it in order.
            self.router.abort();
            self.admin.abort();
        }
        wait_for_end(self.router).await;
        wait_for_end(self.peers).await;
        wait_for_end(self.admin).await;
        wait_for_end(self.key_expiry).await;
        wait_for_end(self.reloads).await;
        wait_for_end(self.load_watch).await;
        wait_for_end(self.free_memory).await;
        stopped
    }

    /// Ends the tasks that still run after everything was handed over.
    pub(super) async fn end_handed_over(self, tokens: &StopTokens) {
        tokens.everything.cancel();
        // A scraper gets no answer rather than counters that another relay has gone on with.
        self.admin.abort();
        wait_for_end(self.admin).await;
        wait_for_end(self.key_expiry).await;
        wait_for_end(self.reloads).await;
        wait_for_end(self.load_watch).await;
        wait_for_end(self.free_memory).await;
    }
}

/// Starts a task that ends when `end` is cancelled.
fn spawn_until(
    end: CancellationToken,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        end.run_until_cancelled(task).await;
    })
}

fn spawn_router(
    mut router: RouterTask,
    link: Option<SuspendedLink>,
) -> JoinHandle<(RouterTask, Option<SuspendedLink>)> {
    tokio::spawn(async move {
        let suspended = router.run(link).await;
        (router, suspended)
    })
}

fn spawn_peers(
    peers: Peers,
    listener: Acceptor,
    suspended: Vec<SuspendedPeer>,
) -> JoinHandle<Vec<SuspendedPeer>> {
    tokio::spawn(async move { peers.run(listener, suspended).await })
}

/// Waits for the end of a task, unless it was awaited to its end, which must not be done again.
async fn wait_for_end<T>(task: JoinHandle<T>) {
    if !task.is_finished() {
        let _ = task.await;
    }
}
