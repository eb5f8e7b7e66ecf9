//! One session from pairing to its end.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use crate::config::Config;
use crate::forward::{Direction, Forwarding, forward};
use crate::metrics::Label;
use crate::state::sessions::{End, Session, SessionId};
use crate::state::shared::{ActiveSession, SharedState};
use crate::trace::session::{PeerFacts, SessionTrace};
use crate::workers::Workers;

use super::departures::{Departures, Parts};
use super::metrics::PeerMetrics;
use super::path::{Paths, Sockets};

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

/// A session that is to run.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) sockets: [std::net::TcpStream; 2],
    pub(super) in_flight: [Vec<u8>; 2],
    pub(super) active: ActiveSession<Way>,
    pub(super) trace: SessionTrace,
}

/// Runs sessions: what they share.
#[derive(Debug, Clone)]
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
    ) -> Self {
        Self {
            state,
            config,
            workers,
            forwarding,
            paths: Paths::new(metrics),
            departures: Departures::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Runs a session, on its worker.
    pub(super) fn start(&self, joined: Joined) {
        let runner = self.clone();
        self.workers.spawn(self.tasks.track_future(async move { runner.run(joined).await }));
    }

    /// Takes a session apart, wherever its bytes are. `None` when there is no such session, or when it ends instead.
    pub async fn take_apart(&self, id: SessionId) -> Option<Parts> {
        self.departures.ask(id, &self.state).await
    }

    /// Goes on with a session that was taken apart. Its peers notice nothing.
    pub fn put_together(&self, parts: Parts) {
        let Parts { record, sockets, in_flight } = parts;
        let active = self.state.adopt_session(record, Instant::now());
        self.start(Joined { sockets, in_flight, active, trace: SessionTrace::default() });
    }

    /// Keeps the paths of all sessions in view, for ever.
    pub(super) async fn keep_looking(&self) {
        self.paths.keep_looking().await;
    }

    /// Returns when all sessions have ended; no more may begin.
    pub(super) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Forwards between the two peers until the session ends, for whatever reason, or is taken apart.
    async fn run(self, joined: Joined) {
        let Joined { sockets, in_flight, active, trace } = joined;
        let session = active.session().clone();
        let [first, second] = sockets.map(TcpStream::from_std);
        let (Ok(first), Ok(second)) = (first, second) else {
            // The system has no room to watch them.
            self.over(active, trace, End::Error);
            return;
        };
        let sockets = Arc::new([first, second]);
        let mut directions = in_flight.map(Direction::with);
        announce(&session, self.config.borrow().log_peer_identity);
        let watch = self.paths.watch(&session, &sockets);
        let outcome = self.attend(&session, &sockets, &mut directions).await;
        drop(watch);
        match outcome {
            Outcome::End(end) => {
                // The sockets first: a place that is free again must not still hold two of them.
                drop(sockets);
                self.over(active, trace, end);
            }
            Outcome::Depart(to) => match take_apart(sockets, directions).await {
                Ok((sockets, in_flight)) => {
                    trace.end(DEPARTED, session.traffic.bytes());
                    let record = active.leave();
                    info!(session = record.id.0, bytes = record.bytes, "session goes on elsewhere");
                    // Where nobody takes it any more, both connections are closed by that.
                    let _ = to.send(Parts { record, sockets, in_flight });
                }
                Err(error) => {
                    error!(session = session.id.0, %error, "session lost: it cannot be taken apart");
                    self.over(active, trace, End::Error);
                }
            },
        }
        // Whoever asked for it while it ended waits in vain.
        drop(self.departures.take(session.id));
    }

    fn over(&self, active: ActiveSession<Way>, trace: SessionTrace, end: End) {
        let session = active.session().clone();
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

    /// Forwards until somebody or something ends it.
    async fn attend(
        &self,
        session: &Session,
        sockets: &Sockets,
        directions: &mut [Direction; 2],
    ) -> Outcome {
        let mut config = self.config.clone();
        loop {
            tokio::select! {
                closing = forward(sockets, directions, &session.traffic, &self.forwarding) => {
                    // One who is told of the end is not idle; and whatever cuts this short is not why the session
                    // ended.
                    tokio::select! {
                        () = closing.linger() => {}
                        () = self.ended_by_others(session) => {}
                    }
                    return Outcome::End(closing.end);
                }
                end = time_is_up(session, &mut config) => return Outcome::End(end),
                end = session.bell.rung() => match (end, self.departures.take(session.id)) {
                    (Some(end), _) => return Outcome::End(end),
                    (None, Some(to)) => return Outcome::Depart(to),
                    (None, None) => {}
                }
            }
        }
    }

    /// Returns when somebody wants the session ended. It does not depart any more.
    async fn ended_by_others(&self, session: &Session) {
        while session.bell.rung().await.is_none() {
            drop(self.departures.take(session.id));
        }
    }
}

/// What the trace of a session says that goes on elsewhere.
const DEPARTED: &str = "departed";

enum Outcome {
    End(End),
    Depart(oneshot::Sender<Parts>),
}

/// What of a session is in the system's hands.
type Taken = ([std::net::TcpStream; 2], [Vec<u8>; 2]);

async fn take_apart(mut sockets: Arc<Sockets>, directions: [Direction; 2]) -> io::Result<Taken> {
    // Whoever looks at its path holds the sockets for some microseconds.
    let [first, second] = loop {
        match Arc::try_unwrap(sockets) {
            Ok(sockets) => break sockets,
            Err(shared) => sockets = shared,
        }
        tokio::task::yield_now().await;
    };
    let [there, back] = directions.map(Direction::into_in_flight);
    Ok(([first.into_std()?, second.into_std()?], [there?, back?]))
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
