//! The peers' side: accept, read the first message, pair, run the session.

pub mod departures;
mod door;
pub mod error;
pub mod first_message;
mod gone;
pub mod metrics;
mod origin;
mod path;
mod rate;
mod refusals;
pub mod session;

use std::io::{self, Read};
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::config::Config;
use crate::deadline;
use crate::forward::Forward;
use crate::listen::accept::{Accepting, Room, accept};
use crate::listen::acceptor::Acceptor;
use crate::listen::bind::Purpose;
use crate::listen::options;
use crate::log::limit::LineLimit;
use crate::open_files::{self, Budget};
use crate::state::keys::KeyId;
use crate::state::sessions::End;
use crate::state::shared::{Admitted, SharedState, WaitingPlace};
use crate::state::{ReadyPeer, Refusal};
use crate::trace::Tracer;
use crate::trace::session::{IdentityFacts, PeerFacts, SessionFacts, SessionTrace};
use crate::wire::peer::PeerToRelay;

use door::{Door, Pending};
use error::{Crowded, FIRST_MESSAGE_TIMEOUT, PeerError};
use first_message::{FirstMessageError, Reading};
use metrics::{Connection, PeerMetrics};
use refusals::Refusals;
use session::{Joined, Partner, Runner, Way};

/// The socket that peers dial.
pub const PURPOSE: Purpose =
    Purpose { callers: "peers", address_setting: "ListenInterface", port_setting: "ListenPort" };

/// Time from accepting a connection until it is paired.
pub const PAIRING_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is said that descriptors are short.
const SHORTAGES: Duration = Duration::from_secs(60);

/// Everything that the tasks of peers share.
#[derive(Clone)]
pub struct Peers {
    state: SharedState<Way>,
    config: watch::Receiver<Arc<Config>>,
    door: Arc<Door>,
    refusals: Arc<Refusals>,
    /// How often it is said that descriptors are short.
    shortages: Arc<LineLimit>,
    runner: Arc<Runner>,
    metrics: PeerMetrics,
    tracer: Tracer,
    accepting: Accepting,
    /// Threads that forward, whose descriptors are not for peers.
    workers: usize,
    tasks: TaskTracker,
    draining: CancellationToken,
    stop: CancellationToken,
}

impl Peers {
    /// Peers whose sessions `runner` runs, and who meet in its state; `accepting` says whether new ones are taken; all their tasks end when `stop` is cancelled. `draining` only changes what is
    /// said of those whose keys were withdrawn.
    pub fn new(
        runner: Arc<Runner>,
        metrics: PeerMetrics,
        tracer: Tracer,
        accepting: Accepting,
        draining: CancellationToken,
        stop: CancellationToken,
    ) -> Self {
        let (workers, _) = open_files::workers(&runner.config().borrow());
        Self {
            state: runner.state().clone(),
            config: runner.config().clone(),
            workers,
            door: Arc::new(Door::new(metrics.pending.clone())),
            refusals: Arc::new(Refusals::new()),
            shortages: Arc::new(LineLimit::new(NonZero::<u32>::MIN, SHORTAGES)),
            runner,
            metrics,
            tracer,
            accepting,
            tasks: TaskTracker::new(),
            draining,
            stop,
        }
    }

    /// Accepts connections until `stop` is cancelled, then waits for all their tasks.
    pub async fn run(&self, listener: Acceptor) {
        // One that was handed over may not have them.
        if options::INHERITED
            && let Err(error) = options::set(&listener)
        {
            warn!(%error, "the options of peers' sockets cannot be set");
        }
        let room = || self.room();
        let accept =
            accept(&listener, PURPOSE.callers, &self.accepting, room, |stream, address| {
                self.start(stream, address);
            });
        // In this task: should one of them fail, all do, and that is seen. A relay that no longer looks at the time of its
        // sessions must not go on as if it did.
        let all = async {
            tokio::join!(accept, self.runner.keep_looking(), self.refusals.keep_reporting());
        };
        self.stop.run_until_cancelled(all).await;
        drop(listener);
        self.state.stop_all_sessions(End::Drain);
        self.tasks.close();
        self.tasks.wait().await;
        // Nobody pairs any more.
        self.runner.ended().await;
    }

    /// Whether there is room for one more: descriptors for everything else must be left, and where places run out, those
    /// who came before must have had the time to say who they are.
    fn room(&self) -> Room {
        if self.are_descriptors_short() {
            return if self.door.can_make_room() { Room::Crowded } else { Room::None };
        }
        let is_full = self.door.pending() >= self.config.borrow().max_pending_peers;
        if is_full { Room::Crowded } else { Room::Enough }
    }

    /// Whether peers have more descriptors than are theirs. The one more is of the reserve, and for a moment.
    fn are_descriptors_short(&self) -> bool {
        let taken = (self.door.pending() + 2 * self.state.counts().active) as u64;
        Budget::of_process(self.workers).is_some_and(|budget| taken > budget.peers)
    }

    fn start(&self, stream: std::net::TcpStream, address: SocketAddr) {
        let pending = match self.door.enter(address, &self.config.borrow()) {
            Ok(pending) => pending,
            Err(why) => {
                self.metrics.connections.count(why.into());
                self.refusals.shut_out(address, why);
                return;
            }
        };
        if self.are_descriptors_short()
            && self.door.make_room(Crowded::Descriptors)
            && self.shortages.allows()
        {
            warn!(
                "descriptors are short: of the peers that keep silent, the oldest make room. Raise the limit on open \
                 files (ulimit -n, LimitNOFILE, ulimits of the container)"
            );
        }
        let peers = self.clone();
        self.tasks.spawn(async move { peers.serve(stream, address, pending).await });
    }

    async fn serve(&self, stream: std::net::TcpStream, address: SocketAddr, mut pending: Pending) {
        let Some(admitted) =
            self.stop.run_until_cancelled(self.admit(stream, address, &mut pending)).await
        else {
            self.metrics.connections.count(Connection::Draining);
            return;
        };
        drop(pending);
        let outcome = match &admitted {
            Ok(_) => Connection::Paired,
            // The key was good until the relay withdrew it.
            Err(PeerError::Refused { refusal: Refusal::UnknownKey, .. })
                if self.draining.is_cancelled() =>
            {
                Connection::Draining
            }
            Err(error) => error.into(),
        };
        self.metrics.connections.count(outcome);
        match admitted {
            Ok(Some((stream, first, partner))) => self.join(stream, first, partner),
            Ok(None) => {}
            Err(error) => self.refusals.refused(address, outcome, &error),
        }
    }

    /// Takes a connection from accepting to pairing. Gives both ends of the session to the first of its peers;
    /// the second has handed over its own and gets nothing.
    async fn admit(
        &self,
        stream: std::net::TcpStream,
        address: SocketAddr,
        pending: &mut Pending,
    ) -> Result<Option<(std::net::TcpStream, PeerFacts, Partner)>, PeerError> {
        let accepted = Instant::now();
        if !options::INHERITED {
            options::set(&stream)?;
        }
        let (stream, message) = first(stream, accepted + FIRST_MESSAGE_TIMEOUT, pending).await?;
        let key = KeyId(message.key_id);
        let refused = |refusal| PeerError::Refused { key, refusal };
        let one_time_key =
            self.state.key(key, Instant::now()).ok_or_else(|| refused(Refusal::UnknownKey))?;
        let opened = first_message::open(&message, &one_time_key)?;
        let now = Instant::now();
        let facts = PeerFacts { address, accepted, opened: now };
        let (way, partner) = oneshot::channel();
        let ready = ReadyPeer {
            key,
            session_key: opened.session_key,
            secret: opened.secret,
            identity: opened.identity,
            address,
        };
        let admitted = self.state.peer_ready(ready, way, now);
        // After it: whoever sees this one counted finds it waiting, or paired.
        self.metrics.handshake.observe(now.duration_since(accepted).as_secs_f64());
        match admitted.map_err(refused)? {
            Admitted::Paired { first, session } => {
                // The first cannot have gone: it would have left its place first. Only a stop ends its
                // task all the same, before this or, see `Arrival`, after it.
                let stream = stream.into_unwatched()?;
                if let Err(partner) = first.send(Partner { stream, facts, session }) {
                    partner.session.finish(End::Drain);
                }
                Ok(None)
            }
            Admitted::Wait(place) => {
                let stream = stream.into_watched()?;
                let deadline = accepted + PAIRING_TIMEOUT;
                let partner = wait(&stream, place, Arrival(partner), deadline).await?;
                let waited = partner.facts.opened.duration_since(now);
                self.metrics.pairing_wait.observe(waited.as_secs_f64());
                Ok(Some((stream.into_std()?, facts, partner)))
            }
        }
    }

    fn join(&self, first: std::net::TcpStream, facts: PeerFacts, partner: Partner) {
        let trace = self.trace(facts, &partner);
        let Partner { stream: second, session: active, .. } = partner;
        let sockets = [first, second];
        self.runner.start(Joined { sockets, forward: Forward::default(), active, trace });
    }

    fn trace(&self, first: PeerFacts, partner: &Partner) -> SessionTrace {
        self.tracer.session(|| {
            let session = partner.session.session();
            let identity = self.config.borrow().trace_peer_identity.then(|| IdentityFacts {
                user_name: session.identity.client_user_name().to_owned(),
                host_id: session.identity.host_id,
            });
            let peers = [first, partner.facts];
            SessionFacts { id: session.id.0, peers, paired: session.started, identity }
        })
    }
}

/// A peer's connection; the runtime watches it where somebody waits for what comes.
enum Connected {
    Unwatched(std::net::TcpStream),
    Watched(TcpStream),
}

impl Connected {
    fn into_watched(self) -> io::Result<TcpStream> {
        match self {
            Self::Unwatched(stream) => TcpStream::from_std(stream),
            Self::Watched(stream) => Ok(stream),
        }
    }

    fn into_unwatched(self) -> io::Result<std::net::TcpStream> {
        match self {
            Self::Unwatched(stream) => Ok(stream),
            Self::Watched(stream) => stream.into_std(),
        }
    }
}

/// The first message of a peer. Where many come at once it is there already, and nobody has to wait for it.
async fn first(
    stream: std::net::TcpStream,
    until: Instant,
    pending: &mut Pending,
) -> Result<(Connected, PeerToRelay), PeerError> {
    let mut reading = Reading::default();
    if let Poll::Ready(message) = reading.read(|bytes| (&stream).read(bytes)) {
        pending.speaks();
        return Ok((Connected::Unwatched(stream), message?));
    }
    let stream = TcpStream::from_std(stream)?;
    let message = tokio::select! {
        biased;
        message = deadline::timeout_at(until, reading.read_from(&stream)) => match message {
            Ok(message) => message?,
            Err(_) => {
                let foreign = reading.foreign().map(FirstMessageError::Foreign);
                return Err(foreign.map_or(PeerError::Silent, PeerError::FirstMessage));
            }
        },
        why = pending.asked_to_go() => return Err(PeerError::MadeRoom(why)),
    };
    pending.speaks();
    Ok((Connected::Watched(stream), message))
}

/// Where the partner of a first peer arrives.
struct Arrival(oneshot::Receiver<Partner>);

impl Drop for Arrival {
    fn drop(&mut self) {
        // Only a stop cuts the wait short. A partner that was handed over and is not taken yet ends by it, too, not by an
        // error.
        self.0.close();
        if let Ok(partner) = self.0.try_recv() {
            partner.session.finish(End::Drain);
        }
    }
}

/// Waits for the partner, as long as the peer is there and its time is not over.
async fn wait(
    stream: &TcpStream,
    place: WaitingPlace<Way>,
    mut partner: Arrival,
    until: Instant,
) -> Result<Partner, PeerError> {
    let reason = tokio::select! {
        // The way was dropped with the key: its time is over.
        came = &mut partner.0 => {
            return match came {
                Ok(partner) => Ok(partner),
                Err(_) => Err(PeerError::Alone),
            };
        }
        () = gone::gone(stream) => PeerError::WentAway,
        () = deadline::sleep_until(until) => PeerError::Alone,
    };
    if place.leave() {
        return Err(reason);
    }
    // It was paired in the same moment: the partner is on its way and must not be left alone.
    match (&mut partner.0).await {
        Ok(partner) => Ok(partner),
        Err(_) => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use prometheus::{Registry, TextEncoder};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::sources::Sources;
    use crate::crypto::SessionKey;
    use crate::secret::Secret;
    use crate::state::metrics::StateMetrics;
    use crate::state::sessions::Identity;
    use crate::state::shared::ActiveSession;

    /// The relay's end of a connection, and the peer's.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(address));
        (accepted.unwrap().0, connected.unwrap())
    }

    fn ready(key: KeyId, number: u8) -> ReadyPeer {
        ReadyPeer {
            key,
            session_key: SessionKey::from_bytes([number; 32]),
            secret: Secret::new(vec![7]),
            identity: Identity::default(),
            address: ([127, 0, 0, 1], 1).into(),
        }
    }

    /// A state in which two peers were just paired.
    struct Paired {
        state: SharedState<Way>,
        registry: Registry,
        place: WaitingPlace<Way>,
        partner: Arrival,
        first: Way,
        session: ActiveSession<Way>,
    }

    fn pair() -> Paired {
        let registry = Registry::new();
        let metrics = StateMetrics::new(&registry).unwrap();
        let state: SharedState<Way> = SharedState::new(1, 0, metrics);
        state.link_up();
        let order = state.order(1, 1).unwrap();
        let keys = order.make().unwrap();
        let key = keys[0].id;
        assert!(state.offer(&order, keys));
        let (way, partner) = oneshot::channel();
        let now = Instant::now();
        let Ok(Admitted::Wait(place)) = state.peer_ready(ready(key, 1), way, now) else {
            panic!("the first waits");
        };
        let (way, _) = oneshot::channel();
        let Ok(Admitted::Paired { first, session }) = state.peer_ready(ready(key, 2), way, now)
        else {
            panic!("the second is paired");
        };
        Paired { state, registry, place, partner: Arrival(partner), first, session }
    }

    fn facts() -> PeerFacts {
        let now = Instant::now();
        PeerFacts { address: ([127, 0, 0, 1], 2).into(), accepted: now, opened: now }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_goes_away_while_its_partner_comes_is_paired_all_the_same() {
        let Paired { state, registry, place, partner, first, session } = pair();
        // Paired, but the partner has not been handed over yet; the first goes away, and its time is over, too.
        let (stream, peer) = connection().await;
        drop(peer);
        let (second, _peer) = connection().await;
        let deadline = Instant::now() + PAIRING_TIMEOUT;
        let hand_over = async {
            tokio::time::sleep(2 * PAIRING_TIMEOUT).await;
            first
                .send(Partner { stream: second.into_std().unwrap(), facts: facts(), session })
                .unwrap();
        };
        let (waited, ()) = tokio::join!(wait(&stream, place, partner, deadline), hand_over);
        assert!(waited.is_ok());
        assert_eq!(state.counts().active, 1);
        // Whoever drops a session without a reason has failed.
        drop(waited);
        assert_eq!(state.counts().active, 0);
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("aspia_relay_sessions_total{end=\"error\"} 1"), "{text}");
    }

    /// A process that was stopped for a minute finds its deadlines over, and what came meanwhile in its sockets.
    #[tokio::test(start_paused = true)]
    async fn what_came_while_the_process_was_stopped_is_taken() {
        // A partner that is accepted only now.
        let Paired { state, place, partner, first: way, session, .. } = pair();
        let (stream, _peer) = connection().await;
        let (second, _other) = connection().await;
        let until = Instant::now() + PAIRING_TIMEOUT;
        let mut waiting = Box::pin(wait(&stream, place, partner, until));
        assert!(waiting.as_mut().now_or_never().is_none());
        tokio::time::advance(2 * PAIRING_TIMEOUT).await;
        let hand_over = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let stream = second.into_std().unwrap();
            assert!(way.send(Partner { stream, facts: facts(), session }).is_ok());
        };
        let (waited, ()) = tokio::join!(waiting, hand_over);
        assert!(waited.is_ok());
        assert_eq!(state.counts().active, 1);
        // A first message.
        let (relay, mut peer) = connection().await;
        let until = Instant::now() + FIRST_MESSAGE_TIMEOUT;
        let door = Arc::new(Door::new(prometheus::IntGauge::new("pending", "pending").unwrap()));
        let environment = [
            ("ROUTER_ADDRESS", "127.0.0.1".to_owned()),
            ("ROUTER_PUBLIC_KEY", "01".repeat(32)),
            ("PEER_ADDRESS", "127.0.0.1".to_owned()),
        ];
        let environment =
            environment.map(|(name, value)| (format!("ASPIA_RELAY_{name}"), value)).into();
        let path = std::path::PathBuf::new();
        let sources = Sources { path, path_is_explicit: false, environment };
        let config = crate::config::load(&sources).unwrap().config;
        let mut pending = door.enter(([127, 0, 0, 1], 1).into(), &config).unwrap();
        let mut reading = Box::pin(first(relay.into_std().unwrap(), until, &mut pending));
        assert!(reading.as_mut().now_or_never().is_none());
        let message = PeerToRelay { key_id: 7, ..PeerToRelay::default() };
        let message = crate::wire::peer::encode(&message).unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut peer, &message).await.unwrap();
        tokio::time::advance(2 * FIRST_MESSAGE_TIMEOUT).await;
        assert_eq!(reading.await.unwrap().1.key_id, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_between_handing_over_and_taking_a_partner_is_no_error() {
        let Paired { state, registry, place, partner, first, session } = pair();
        let (stream, _peer) = connection().await;
        let (second, mut peer) = connection().await;
        let deadline = Instant::now() + PAIRING_TIMEOUT;
        let mut waiting = Box::pin(wait(&stream, place, partner, deadline));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("nobody came yet"),
            () = std::future::ready(()) => {}
        }
        first
            .send(Partner { stream: second.into_std().unwrap(), facts: facts(), session })
            .unwrap();
        assert_eq!(state.counts().active, 1);
        drop(waiting);
        assert_eq!(state.counts().active, 0);
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("aspia_relay_sessions_total{end=\"drain\"} 1"), "{text}");
        assert!(text.contains("aspia_relay_sessions_total{end=\"error\"} 0"), "{text}");
        assert_eq!(tokio::io::AsyncReadExt::read(&mut peer, &mut [0]).await.unwrap(), 0);
    }
}
