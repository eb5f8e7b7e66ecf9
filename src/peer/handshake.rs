//! Takes an accepted connection to pairing: reads the first message, opens it, and waits for the partner.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::task::Poll;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::deadline;
use crate::listen::options;
use crate::secret::Secret;
use crate::state::keys::KeyId;
use crate::state::rendezvous::{PairingOutcome, ReadyPeer, Refusal, Rendezvous, WaitingTicket};
use crate::state::sessions::EndCause;
use crate::trace::session::PeerFacts;
use crate::wire::peer::PeerToRelay;

use super::admission::PendingConnection;
use super::error::{FIRST_MESSAGE_TIMEOUT, PAIRING_TIMEOUT, PeerError};
use super::first_message::{self, FirstMessageError, FirstMessageReader};
use super::metrics::PeerMetrics;
use super::peer_closed::peer_closed;
use super::proxied::{self, HeaderEnd};
use super::proxy_header::ProxySource;
use super::session::{Partner, PartnerReceiver, PartnerSender};
use super::suspended::SuspendedPeer;

/// A connection on its way to pairing.
#[derive(Debug)]
pub(super) struct PendingPeer {
    stream: std::net::TcpStream,
    address: SocketAddr,
    accepted: Instant,
    /// Whether its PROXY header comes first. The address is then that of the proxy.
    awaits_proxy_header: bool,
    /// What was read from it before it was suspended.
    received: Secret<Vec<u8>>,
    guard: Option<ResumeGuard>,
}

/// Held by a resumed peer until it is as far as it was when it was suspended.
pub(super) type ResumeGuard = mpsc::Sender<()>;

impl PendingPeer {
    /// Begins with a connection that has just been accepted.
    pub(super) fn accepted(
        stream: std::net::TcpStream,
        address: SocketAddr,
        awaits_proxy_header: bool,
    ) -> Self {
        let (received, accepted) = (Secret::new(Vec::new()), Instant::now());
        Self { stream, address, accepted, awaits_proxy_header, received, guard: None }
    }

    /// Continues with a suspended connection, whose deadlines still count from when it was accepted.
    pub(super) fn resumed(suspended: SuspendedPeer, guard: ResumeGuard) -> Self {
        let SuspendedPeer { socket, address, awaits_proxy_header, received, age } = suspended;
        let now = Instant::now();
        let accepted = now.checked_sub(age).unwrap_or(now);
        let guard = Some(guard);
        Self { stream: socket, address, accepted, awaits_proxy_header, received, guard }
    }

    /// Whether its PROXY header comes first.
    pub(super) fn awaits_proxy_header(&self) -> bool {
        self.awaits_proxy_header
    }

    /// Reads the PROXY header, unless the connection is suspended before that is complete.
    pub(super) async fn read_proxy_header(
        self,
        pending: &mut PendingConnection,
        suspend: &CancellationToken,
    ) -> Result<ProxiedPeer, PeerError> {
        let Self { stream, address, accepted, received, guard, .. } = self;
        // A resumed one is as far as it was, and must not keep the relay from accepting others.
        drop(guard);
        let deadline = accepted + FIRST_MESSAGE_TIMEOUT;
        let end =
            proxied::read_header(stream, received.expose(), deadline, pending, suspend).await?;
        Ok(match end {
            HeaderEnd::Read(stream, source) => {
                let source = proxied::recognise_own_address(source, address);
                let address = match source {
                    ProxySource::Peer(address) => address,
                    ProxySource::Proxy => address,
                };
                let peer = Self { accepted, ..Self::accepted(stream, address, false) };
                ProxiedPeer::Identified(peer, source)
            }
            HeaderEnd::Suspended(socket, received) => {
                let (received, age) = (Secret::new(received), accepted.elapsed());
                let awaits_proxy_header = true;
                let peer = SuspendedPeer { socket, address, awaits_proxy_header, received, age };
                ProxiedPeer::Suspended(peer)
            }
        })
    }

    /// Whether the connection, which is not admitted, turns out to be a health check of a proxy; see [`proxied::is_health_check`].
    pub(super) async fn ends_as_health_check(
        self,
        pending: &mut PendingConnection,
        suspend: &CancellationToken,
    ) -> bool {
        let deadline = self.accepted + FIRST_MESSAGE_TIMEOUT;
        proxied::is_health_check(self.stream, deadline, pending, suspend).await
    }

    /// Returns where the peer connects from.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A connection of a proxy, after its PROXY header.
pub(super) enum ProxiedPeer {
    /// The header has told on whose behalf it connects.
    Identified(PendingPeer, ProxySource),
    /// It was suspended before its header was complete.
    Suspended(SuspendedPeer),
}

/// The first peer of a pair, with its partner.
pub(super) struct PairedPeer {
    pub(super) stream: std::net::TcpStream,
    pub(super) facts: PeerFacts,
    pub(super) partner: Partner,
}

/// What became of a connection that was not refused.
pub(super) enum HandshakeEnd {
    /// It is the first of a pair, and its partner has arrived.
    First(PairedPeer),
    /// It is the second of a pair, and was sent to the task of the first.
    Second,
    /// It was suspended before it was paired.
    Suspended(SuspendedPeer),
}

/// Takes connections from accepting to pairing.
pub(super) struct PeerHandshake<'a> {
    pub(super) rendezvous: &'a Rendezvous<PartnerSender>,
    pub(super) metrics: &'a PeerMetrics,
    pub(super) suspend: &'a CancellationToken,
}

impl PeerHandshake<'_> {
    /// Takes a connection to pairing, unless it is suspended before.
    pub(super) async fn run(
        &self,
        peer: PendingPeer,
        pending: &mut PendingConnection,
    ) -> Result<HandshakeEnd, PeerError> {
        let PendingPeer { stream, address, accepted, received, mut guard, .. } = peer;
        if !options::INHERITED {
            options::set(&stream)?;
        }
        let mut reader = FirstMessageReader::default();
        let resumed = reader.resume(received.expose());
        drop(received);
        let was_complete = resumed.is_ready();
        let (stream, message) = match resumed {
            Poll::Ready(message) => (PeerStream::Unregistered(stream), Some(message?)),
            Poll::Pending => {
                guard = None;
                let deadline = accepted + FIRST_MESSAGE_TIMEOUT;
                read_first_message(&mut reader, stream, deadline, pending, self.suspend).await?
            }
        };
        let suspend = |stream: PeerStream, reader: &FirstMessageReader| {
            suspend_peer(stream, address, accepted, reader)
        };
        let Some(message) = message else {
            return suspend(stream, &reader);
        };
        pending.note_first_message();
        // How long it took the first time is not known.
        let opened = was_complete.then_some(accepted);
        let (sender, receiver) = oneshot::channel();
        let (facts, outcome) = self.present(&message, address, accepted, opened, sender)?;
        // While the peer waits, only the bytes of its message are kept.
        drop((message, guard));
        match outcome {
            PairingOutcome::Paired { partner: first, session } => {
                let stream = stream.into_unregistered()?;
                join_first(first, Partner { stream, facts, session });
                Ok(HandshakeEnd::Second)
            }
            PairingOutcome::OverLimit { partner: first, why } => {
                let _ = first.send(Err(why.clone()));
                Err(why.into())
            }
            PairingOutcome::Waiting(ticket) => {
                let (stream, receiver) = (stream.into_registered()?, PartnerReceiver(receiver));
                let deadline = accepted + PAIRING_TIMEOUT;
                let waited =
                    wait_for_partner(&stream, ticket, receiver, deadline, self.suspend).await?;
                let Some(partner) = waited else {
                    return suspend(PeerStream::Registered(stream), &reader);
                };
                let waited = partner.facts.opened.duration_since(facts.opened);
                self.metrics.pairing_wait.observe(waited.as_secs_f64());
                Ok(HandshakeEnd::First(PairedPeer { stream: stream.into_std()?, facts, partner }))
            }
        }
    }

    /// Opens a first message and presents its secret. `opened` is when it was opened before, if it was.
    fn present(
        &self,
        message: &PeerToRelay,
        address: SocketAddr,
        accepted: Instant,
        opened: Option<Instant>,
        partner: PartnerSender,
    ) -> Result<(PeerFacts, PairingOutcome<PartnerSender>), PeerError> {
        let key = KeyId(message.key_id);
        let refused = |refusal| PeerError::Refused { key, refusal };
        let one_time_key = self.rendezvous.state().key(key, Instant::now());
        let one_time_key = one_time_key.ok_or_else(|| refused(Refusal::UnknownKey))?;
        let content = first_message::open(message, &one_time_key)?;
        let now = Instant::now();
        let facts = PeerFacts { address, accepted, opened: opened.unwrap_or(now) };
        let ready = ReadyPeer {
            key,
            session_key: content.session_key,
            secret: content.secret,
            identity: content.identity,
            address,
        };
        let outcome = self.rendezvous.peer_ready(ready, partner, now);
        if opened.is_none() {
            // Observed afterwards, so that a peer that is counted here is found waiting or paired.
            self.metrics.handshake.observe(now.duration_since(accepted).as_secs_f64());
        }
        Ok((facts, outcome.map_err(refused)?))
    }
}

/// Sends the second peer of a pair to the task of the first.
///
/// The first peer cannot have gone away, since it would have given back its ticket first. Only when the relay stops can its
/// task have ended; if it ends after this, `PartnerReceiver` ends the session.
fn join_first(first: PartnerSender, second: Partner) {
    if let Err(Ok(second)) = first.send(Ok(second)) {
        second.session.finish(EndCause::Drain);
    }
}

/// Suspends a connection whose address is that of the peer.
fn suspend_peer(
    stream: PeerStream,
    address: SocketAddr,
    accepted: Instant,
    reader: &FirstMessageReader,
) -> Result<HandshakeEnd, PeerError> {
    let (received, age) = (Secret::new(reader.received()), accepted.elapsed());
    let (socket, awaits_proxy_header) = (stream.into_unregistered()?, false);
    let peer = SuspendedPeer { socket, address, awaits_proxy_header, received, age };
    Ok(HandshakeEnd::Suspended(peer))
}

/// A peer's connection. It is registered with the runtime only if the relay has to wait for bytes.
enum PeerStream {
    Unregistered(std::net::TcpStream),
    Registered(TcpStream),
}

impl PeerStream {
    fn into_registered(self) -> io::Result<TcpStream> {
        match self {
            Self::Unregistered(stream) => TcpStream::from_std(stream),
            Self::Registered(stream) => Ok(stream),
        }
    }

    fn into_unregistered(self) -> io::Result<std::net::TcpStream> {
        match self {
            Self::Unregistered(stream) => Ok(stream),
            Self::Registered(stream) => stream.into_std(),
        }
    }
}

/// Reads the first message of a peer, or the rest of it. If many peers connect at once, the message has often arrived already,
/// and the connection need not be registered with the runtime. Returns no message if the connection is suspended before the
/// message is complete.
async fn read_first_message(
    reader: &mut FirstMessageReader,
    stream: std::net::TcpStream,
    deadline: Instant,
    pending: &mut PendingConnection,
    suspend: &CancellationToken,
) -> Result<(PeerStream, Option<PeerToRelay>), PeerError> {
    if let Poll::Ready(message) = reader.read(|bytes| (&stream).read(bytes)) {
        pending.note_first_message();
        return Ok((PeerStream::Unregistered(stream), Some(message?)));
    }
    let stream = TcpStream::from_std(stream)?;
    let message = tokio::select! {
        biased;
        message = deadline::timeout_at(deadline, reader.read_from(&stream)) => match message {
            Ok(message) => Some(message?),
            Err(_) => {
                let foreign = reader.recognise_foreign().map(FirstMessageError::ForeignProtocol);
                return Err(foreign.map_or(PeerError::Silent, PeerError::FirstMessage));
            }
        },
        eviction = pending.wait_for_eviction() => return Err(PeerError::Evicted(eviction)),
        () = suspend.cancelled() => None,
    };
    Ok((PeerStream::Registered(stream), message))
}

/// Waits for the partner, until the peer goes away or the deadline passes. Returns `None` if the peer is suspended before its
/// partner arrives.
async fn wait_for_partner(
    stream: &TcpStream,
    ticket: WaitingTicket<PartnerSender>,
    mut receiver: PartnerReceiver,
    deadline: Instant,
    suspend: &CancellationToken,
) -> Result<Option<Partner>, PeerError> {
    let reason = tokio::select! {
        received = &mut receiver.0 => {
            // The sender is dropped when the key expires.
            return match received {
                Ok(partner) => Ok(Some(partner?)),
                Err(_) => Err(PeerError::NoPartner),
            };
        }
        () = peer_closed(stream) => Some(PeerError::WentAway),
        () = deadline::sleep_until(deadline) => Some(PeerError::NoPartner),
        () = suspend.cancelled() => None,
    };
    let is_alone = if reason.is_some() { ticket.leave() } else { ticket.suspend() };
    if is_alone {
        return reason.map_or(Ok(None), Err);
    }
    // It was paired at the same moment: the partner is about to arrive and must not be left alone. Or its key has expired.
    match (&mut receiver.0).await {
        Ok(partner) => Ok(Some(partner?)),
        Err(_) => Err(reason.unwrap_or(PeerError::NoPartner)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use prometheus::{Registry, TextEncoder};
    use relay_lab::sockets::connected_pair;

    use super::*;
    use crate::crypto::SessionKey;
    use crate::peer::admission::AdmissionControl;
    use crate::secret::Secret;
    use crate::state::active_session::ActiveSession;
    use crate::state::metrics::StateMetrics;
    use crate::state::sessions::PeerIdentity;
    use crate::state::shared::SharedState;

    fn ready(key: KeyId, number: u8) -> ReadyPeer {
        ReadyPeer {
            key,
            session_key: SessionKey::from_bytes([number; 32]),
            secret: Secret::new(vec![7]),
            identity: PeerIdentity::default(),
            address: ([127, 0, 0, 1], 1).into(),
        }
    }

    /// Two peers that were just paired.
    struct Paired {
        state: SharedState,
        registry: Registry,
        ticket: WaitingTicket<PartnerSender>,
        receiver: PartnerReceiver,
        sender: PartnerSender,
        session: ActiveSession,
    }

    fn pair() -> Paired {
        let registry = Registry::new();
        let metrics = StateMetrics::new(&registry).unwrap();
        let state = SharedState::new(1, 0, metrics);
        let rendezvous = Rendezvous::new(state.clone());
        state.link_up();
        let order = state.order(1, 1).unwrap();
        let keys = order.generate().unwrap();
        let key = keys[0].id;
        assert!(state.offer(&order, keys));
        let (sender, receiver) = oneshot::channel();
        let now = Instant::now();
        let first = rendezvous.peer_ready(ready(key, 1), sender, now);
        let Ok(PairingOutcome::Waiting(ticket)) = first else {
            panic!("the first peer waits");
        };
        let (unused, _) = oneshot::channel();
        let second = rendezvous.peer_ready(ready(key, 2), unused, now);
        let Ok(PairingOutcome::Paired { partner: sender, session }) = second else {
            panic!("the second peer is paired");
        };
        Paired { state, registry, ticket, receiver: PartnerReceiver(receiver), sender, session }
    }

    fn facts() -> PeerFacts {
        let now = Instant::now();
        PeerFacts { address: ([127, 0, 0, 1], 2).into(), accepted: now, opened: now }
    }

    #[tokio::test(start_paused = true)]
    async fn peer_that_goes_away_while_its_partner_arrives_is_still_paired() {
        let Paired { state, registry, ticket, receiver, sender, session } = pair();
        // Paired, but the partner has not been sent yet; the first peer goes away, and its deadline passes, too.
        let (stream, peer) = connected_pair().await.unwrap();
        drop(peer);
        let (second, _peer) = connected_pair().await.unwrap();
        let deadline = Instant::now() + PAIRING_TIMEOUT;
        let hand_over = async {
            tokio::time::sleep(2 * PAIRING_TIMEOUT).await;
            sender
                .send(Ok(Partner { stream: second.into_std().unwrap(), facts: facts(), session }))
                .unwrap();
        };
        let never = CancellationToken::new();
        let wait = wait_for_partner(&stream, ticket, receiver, deadline, &never);
        let (waited, ()) = tokio::join!(wait, hand_over);
        assert!(waited.as_ref().unwrap().is_some());
        assert_eq!(state.counts().active, 1);
        // A session that is dropped without a reason has ended by an error.
        drop(waited);
        assert_eq!(state.counts().active, 0);
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("aspia_relay_sessions_total{end=\"error\"} 1"), "{text}");
    }

    /// A process that was stopped for a minute finds its deadlines passed, and what arrived meanwhile in its sockets.
    #[tokio::test(start_paused = true)]
    async fn partner_that_arrived_while_the_process_was_stopped_is_paired() {
        let Paired { state, ticket, receiver, sender, session, .. } = pair();
        let (stream, _peer) = connected_pair().await.unwrap();
        let (second, _other) = connected_pair().await.unwrap();
        let (deadline, never) = (Instant::now() + PAIRING_TIMEOUT, CancellationToken::new());
        let mut waiting = Box::pin(wait_for_partner(&stream, ticket, receiver, deadline, &never));
        assert!(waiting.as_mut().now_or_never().is_none());
        tokio::time::advance(2 * PAIRING_TIMEOUT).await;
        // The partner is accepted only now.
        let hand_over = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let stream = second.into_std().unwrap();
            assert!(sender.send(Ok(Partner { stream, facts: facts(), session })).is_ok());
        };
        let (waited, ()) = tokio::join!(waiting, hand_over);
        assert!(waited.as_ref().unwrap().is_some());
        assert_eq!(state.counts().active, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn first_message_that_arrived_while_the_process_was_stopped_is_read() {
        let (relay, mut peer) = connected_pair().await.unwrap();
        let deadline = Instant::now() + FIRST_MESSAGE_TIMEOUT;
        let gauge = prometheus::IntGauge::new("pending", "pending").unwrap();
        let admission = AdmissionControl::new(gauge);
        let config = crate::config::testing::config(&[]);
        let mut pending = admission.try_admit(([127, 0, 0, 1], 1).into(), &config).unwrap();
        let relay = relay.into_std().unwrap();
        let (mut reader, never) = (FirstMessageReader::default(), CancellationToken::new());
        let read = read_first_message(&mut reader, relay, deadline, &mut pending, &never);
        let mut reading = Box::pin(read);
        assert!(reading.as_mut().now_or_never().is_none());
        let message = PeerToRelay { key_id: 7, ..PeerToRelay::default() };
        let message = crate::wire::peer::encode_first_message(&message).unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut peer, &message).await.unwrap();
        tokio::time::advance(2 * FIRST_MESSAGE_TIMEOUT).await;
        assert_eq!(reading.await.unwrap().1.unwrap().key_id, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn peer_that_is_suspended_while_its_partner_arrives_is_paired() {
        let Paired { ticket, receiver, sender, session, .. } = pair();
        let (stream, _peer) = connected_pair().await.unwrap();
        let (second, _other) = connected_pair().await.unwrap();
        let (deadline, suspend) = (Instant::now() + PAIRING_TIMEOUT, CancellationToken::new());
        suspend.cancel();
        let hand_over = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let stream = second.into_std().unwrap();
            assert!(sender.send(Ok(Partner { stream, facts: facts(), session })).is_ok());
        };
        let wait = wait_for_partner(&stream, ticket, receiver, deadline, &suspend);
        let (waited, ()) = tokio::join!(wait, hand_over);
        assert!(waited.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn stop_before_a_sent_partner_is_received_is_no_error() {
        let Paired { state, registry, ticket, receiver, sender, session } = pair();
        let (stream, _peer) = connected_pair().await.unwrap();
        let (second, mut peer) = connected_pair().await.unwrap();
        let (deadline, never) = (Instant::now() + PAIRING_TIMEOUT, CancellationToken::new());
        let mut waiting = Box::pin(wait_for_partner(&stream, ticket, receiver, deadline, &never));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("no partner has arrived yet"),
            () = std::future::ready(()) => {}
        }
        sender
            .send(Ok(Partner { stream: second.into_std().unwrap(), facts: facts(), session }))
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
