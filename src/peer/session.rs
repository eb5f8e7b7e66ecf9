//! One session from pairing to its end.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::Config;
use crate::forward::forward;
use crate::metrics::Label;
use crate::state::sessions::{End, Session};
use crate::state::shared::ActiveSession;
use crate::trace::session::{PeerFacts, SessionTrace};

use super::path::Paths;

/// How a second peer reaches the task of the first.
pub type Way = oneshot::Sender<Partner>;

/// What the second peer brings to the first.
#[derive(Debug)]
pub struct Partner {
    /// Its connection.
    pub stream: TcpStream,
    /// When it came.
    pub facts: PeerFacts,
    /// The session that has begun.
    pub session: ActiveSession<Way>,
}

/// Forwards between the first peer and its partner until the session ends, for whatever reason.
pub(super) async fn run(
    first: TcpStream,
    partner: Partner,
    trace: SessionTrace,
    mut config: watch::Receiver<Arc<Config>>,
    paths: &Paths,
    stop: &CancellationToken,
) {
    let Partner { stream: second, session: mut active, .. } = partner;
    let session = active.session().clone();
    let sockets = Arc::new([first, second]);
    let watch = paths.watch(&session, &sockets);
    let [first, second] = &*sockets;
    announce(&session, config.borrow().log_peer_identity);
    let end = tokio::select! {
        closing = forward(first, second, &session.traffic) => {
            // One who is told of the end is not idle; and whatever cuts this short is not why the session ended.
            tokio::select! {
                () = closing.linger() => {}
                _ = &mut active.stop => {}
                () = stop.cancelled() => {}
            }
            closing.end
        }
        end = time_is_up(&session, &mut config) => end,
        // Nobody drops the other end but the table, when the session has ended.
        end = &mut active.stop => end.unwrap_or(End::Error),
        () = stop.cancelled() => End::Drain,
    };
    // The sockets first: a place that is free again must not still hold two of them.
    drop(watch);
    drop(sockets);
    active.finish(end);
    trace.end(end.name(), session.traffic.bytes());
    info!(
        session = session.id.0,
        %end,
        bytes = session.traffic.bytes(),
        seconds = session.started.elapsed().as_secs(),
        "session ended"
    );
}

fn announce(session: &Session, with_identity: bool) {
    let [first, second] = session.addresses;
    if with_identity {
        info!(
            session = session.id.0,
            %first,
            %second,
            user = session.identity.client_user_name,
            host_id = session.identity.host_id,
            "session started"
        );
    } else {
        info!(session = session.id.0, %first, %second, "session started");
    }
}

/// Returns when the session was idle for too long or lasts too long, by the settings in force at that time.
async fn time_is_up(session: &Session, config: &mut watch::Receiver<Arc<Config>>) -> End {
    loop {
        let (idle, longest) = {
            let config = config.borrow_and_update();
            (config.peer_idle_timeout, config.max_session_duration)
        };
        let idle_end = session.traffic.last_moved() + idle;
        let last_end = longest.map(|longest| session.started + longest);
        let now = Instant::now();
        if last_end.is_some_and(|end| end <= now) {
            return End::MaxDuration;
        }
        if idle_end <= now {
            return End::Idle;
        }
        let next = last_end.map_or(idle_end, |end| end.min(idle_end));
        tokio::select! {
            () = sleep_until(next) => {}
            changed = config.changed() => {
                if changed.is_err() {
                    // Nobody changes settings any more: only the time is left to wait for.
                    sleep_until(next).await;
                }
            }
        }
    }
}
