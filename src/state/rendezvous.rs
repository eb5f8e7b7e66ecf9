//! Where the two peers of a session meet: the handle to the waiting peers and to the keys and sessions.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::crypto::SessionKey;
use crate::secret::Secret;

use super::active_session::ActiveSession;
use super::keys::{KEY_LIFETIME, KeyId};
use super::metrics::KeyEvent;
use super::pairing::{PairingRefusal, PairingTable, PartnerLookup, WaitingNumber};
use super::sessions::{OverLimit, PeerIdentity};
use super::shared::SharedState;

/// A peer whose first message opened.
#[derive(Debug)]
pub struct ReadyPeer {
    /// The key that it named.
    pub key: KeyId,
    /// The key under which the message was sealed.
    pub session_key: SessionKey,
    /// The secret, as it was received.
    pub secret: Secret<Vec<u8>>,
    /// What the secret says about the two peers.
    pub identity: PeerIdentity,
    /// Where it connects from.
    pub address: SocketAddr,
}

/// What became of a [`ReadyPeer`], with guards that undo it.
#[derive(Debug)]
pub enum PairingOutcome<W> {
    /// It is the first of its pair and waits.
    Waiting(WaitingTicket<W>),
    /// It is the second: a session has begun.
    Paired {
        /// The value that represents the first peer.
        partner: W,
        /// The session.
        session: ActiveSession,
    },
    /// It is the second, and the session would exceed a limit of its user or its host. The key is used up.
    OverLimit {
        /// The value that represents the first peer, which no longer waits.
        partner: W,
        /// The limit.
        why: OverLimit,
    },
}

/// Why a [`ReadyPeer`] is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key was never offered, is used up, or has expired.
    #[error("unknown key (never offered, used up, or expired after {} s)", KEY_LIFETIME.as_secs())]
    UnknownKey,
    /// The key is valid, but not for this peer.
    #[error(transparent)]
    Pairing(#[from] PairingRefusal),
}

/// A peer that waits for its partner.
#[derive(Debug)]
struct Waiter<W> {
    address: SocketAddr,
    partner: W,
}

type WaitingPeers<W> = Arc<Mutex<PairingTable<Waiter<W>>>>;

/// The waiting peers, and the state whose keys they named; cheap to clone. `W` represents a waiting peer, and is dropped when
/// the key of that peer expires.
///
/// Lock order: the waiting peers first, then the state.
pub struct Rendezvous<W> {
    waiting: WaitingPeers<W>,
    state: SharedState,
}

impl<W> Clone for Rendezvous<W> {
    fn clone(&self) -> Self {
        Self { waiting: self.waiting.clone(), state: self.state.clone() }
    }
}

impl<W> fmt::Debug for Rendezvous<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rendezvous({:?})", self.state)
    }
}

/// The result of removing one batch of expired keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpiredBatch {
    pub(super) expired: usize,
    /// Whether no other key has expired yet.
    pub(super) is_last: bool,
}

impl<W> Rendezvous<W> {
    /// Creates a rendezvous for peers that name keys of `state`. A state must have only one: peers that wait in another one
    /// would not be released when their keys expire.
    pub fn new(state: SharedState) -> Self {
        Self { waiting: Arc::default(), state }
    }

    /// Returns the handle to keys and sessions.
    pub fn state(&self) -> &SharedState {
        &self.state
    }

    /// Pairs a peer whose first message opened, or makes it wait. From then on its key counts as handed out, since only the
    /// Router can have given it away. `partner` represents this peer while it waits, if it is the first.
    ///
    /// # Errors
    /// [`Refusal`]; the key stays as valid as it was.
    pub fn peer_ready(
        &self,
        peer: ReadyPeer,
        partner: W,
        now: Instant,
    ) -> Result<PairingOutcome<W>, Refusal> {
        let outcome = self.pair(peer, partner, now)?;
        let events = self.state.events();
        events.key_handed_out.notify_one();
        // If the number of keys on offer is limited, another one can be offered in place of this one.
        events.capacity_freed.notify_one();
        let key_events = &self.state.metrics().key_events;
        match outcome {
            PairingOutcome::Waiting(_) => {}
            PairingOutcome::Paired { .. } => key_events.count(KeyEvent::Paired),
            PairingOutcome::OverLimit { .. } => {
                key_events.count(KeyEvent::Refused);
                events.departed.notify_one();
            }
        }
        Ok(outcome)
    }

    fn pair(
        &self,
        peer: ReadyPeer,
        partner: W,
        now: Instant,
    ) -> Result<PairingOutcome<W>, Refusal> {
        let ReadyPeer { key, session_key, secret, identity, address } = peer;
        let mut waiting = self.waiting.lock();
        let mut tables = self.state.lock_at(now);
        if tables.find_key(key, now).is_none() {
            return Err(Refusal::UnknownKey);
        }
        let waiter = Waiter { address, partner };
        let found = waiting.find_partner(key, session_key, secret, waiter)?;
        tables.hand_out(key, now);
        Ok(match found {
            PartnerLookup::Waiting(number) => {
                PairingOutcome::Waiting(WaitingTicket { waiting: self.waiting.clone(), number })
            }
            PartnerLookup::Found(first) => {
                waiting.close(key);
                let addresses = [first.address, address];
                let partner = first.partner;
                match tables.begin_session(key, identity, addresses, now) {
                    Ok(session) => {
                        let session = ActiveSession::new(self.state.clone(), session);
                        PairingOutcome::Paired { partner, session }
                    }
                    Err((limit, identity)) => {
                        let is_identity_logged = self.state.is_identity_logged();
                        let why = OverLimit::new(limit, &identity, is_identity_logged);
                        PairingOutcome::OverLimit { partner, why }
                    }
                }
            }
        })
    }

    /// Returns the session keys of the first messages that opened with this key, except those of suspended peers: these present
    /// their messages again, and everything else that was received before is a recording.
    pub fn seen_keys(&self, key: KeyId) -> Vec<SessionKey> {
        self.waiting.lock().seen(key)
    }

    /// Returns how many first messages opened with each of these keys.
    pub fn count_seen(&self, keys: impl IntoIterator<Item = KeyId>) -> Vec<usize> {
        let waiting = self.waiting.lock();
        keys.into_iter().map(|key| waiting.count_seen(key)).collect()
    }

    /// Remembers session keys that were seen with a key in another process. Without effect if the key is not valid.
    pub fn restore_seen(&self, key: KeyId, seen: Vec<SessionKey>, now: Instant) {
        let mut waiting = self.waiting.lock();
        if self.state.lock_at(now).find_key(key, now).is_some() {
            waiting.restore_seen(key, seen);
        }
    }

    /// Removes keys that have expired at `now`, and releases the peers that wait with them by dropping their `W`. Examines at
    /// most `limit` keys.
    pub(super) fn expire_batch(&self, now: Instant, limit: usize) -> ExpiredBatch {
        let mut waiting = self.waiting.lock();
        let (expired, is_last) = {
            let mut tables = self.state.lock_at(now);
            let expired = tables.expire(now, limit);
            (expired, tables.next_expiry().is_none_or(|next| next > now))
        };
        let abandoned: Vec<_> = expired.iter().filter_map(|key| waiting.close(*key)).collect();
        drop(waiting);
        // This wakes the tasks of these peers, so it is done without a lock.
        drop(abandoned);
        ExpiredBatch { expired: expired.len(), is_last }
    }
}

/// The ticket of a waiting peer. When it is dropped, the peer no longer waits.
#[must_use = "a peer waits as long as its ticket is held"]
pub struct WaitingTicket<W> {
    waiting: WaitingPeers<W>,
    number: WaitingNumber,
}

impl<W> WaitingTicket<W> {
    /// Removes the peer, which goes away. Returns `false` if it no longer waits: either it was paired, and its partner is about
    /// to reach it, or its key has expired.
    pub fn leave(&self) -> bool {
        self.waiting.lock().leave(self.number)
    }

    /// Like [`Self::leave`], for a peer that will be resumed: its message may then be presented again.
    pub fn suspend(&self) -> bool {
        self.waiting.lock().suspend(self.number)
    }
}

impl<W> fmt::Debug for WaitingTicket<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WaitingTicket({:?})", self.number)
    }
}

impl<W> Drop for WaitingTicket<W> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::time::Duration;

    use proptest::prelude::*;
    use proptest::test_runner::TestCaseResult;
    use tokio::sync::oneshot;

    use super::*;
    use crate::state::keys::{KeyOrder, KeyUse, StateCounts};
    use crate::state::metrics::StateMetrics;
    use crate::state::offer::{OfferPlan, Places};

    const SECOND: Duration = Duration::from_secs(1);

    fn address() -> SocketAddr {
        ([127, 0, 0, 1], 9).into()
    }

    fn peer(key: KeyId, peer: u64, secret: u8) -> ReadyPeer {
        let mut session_key = [0; 32];
        session_key[..8].copy_from_slice(&peer.to_be_bytes());
        ReadyPeer {
            key,
            session_key: SessionKey::from_bytes(session_key),
            secret: Secret::new(vec![secret]),
            identity: PeerIdentity::default(),
            address: address(),
        }
    }

    fn rendezvous<W>(capacity: usize, base: u32) -> Rendezvous<W> {
        let metrics = StateMetrics::new(&prometheus::Registry::new()).unwrap();
        Rendezvous::new(SharedState::new(capacity, base, metrics))
    }

    /// Returns a rendezvous whose keys are all on offer.
    fn filled<W>(capacity: usize) -> Rendezvous<W> {
        let rendezvous = rendezvous(capacity, 0);
        let state = rendezvous.state();
        state.link_up();
        while let Some(order) = state.order(usize::MAX, usize::MAX) {
            let keys = order.generate().unwrap();
            state.offer(&order, keys);
        }
        rendezvous
    }

    fn expire<W>(rendezvous: &Rendezvous<W>, now: Instant) -> usize {
        rendezvous.expire_batch(now, usize::MAX).expired
    }

    /// Advances the time by this many seconds while the process runs.
    fn pass(state: &SharedState, now: &mut Instant, seconds: u64) {
        for _ in 0..seconds {
            *now += SECOND;
            drop(state.lock_at(*now));
        }
    }

    #[test]
    fn peer_that_arrives_before_the_routers_notice_hands_out_its_key() {
        let rendezvous = filled(2);
        let (state, now) = (rendezvous.state(), Instant::now());
        let first = rendezvous.peer_ready(peer(KeyId(1), 1, 5), 1, now).unwrap();
        assert!(matches!(first, PairingOutcome::Waiting(_)));
        assert_eq!((state.counts().offered, state.counts().handed_out), (1, 1));
        assert_eq!(state.key_used(KeyId(1), now), KeyUse::AlreadyHandedOut);
        let second = rendezvous.peer_ready(peer(KeyId(1), 2, 5), 2, now).unwrap();
        assert!(matches!(second, PairingOutcome::Paired { partner: 1, .. }));
        assert_eq!((state.counts().handed_out, state.counts().active), (0, 1));
    }

    #[test]
    fn waiting_peer_is_released_when_its_key_expires() {
        let rendezvous = filled(1);
        let (partner, mut waits) = oneshot::channel::<()>();
        let mut now = Instant::now();
        let first = rendezvous.peer_ready(peer(KeyId(0), 1, 1), partner, now).unwrap();
        pass(rendezvous.state(), &mut now, KEY_LIFETIME.as_secs() - 1);
        assert_eq!(expire(&rendezvous, now), 0);
        assert_eq!(waits.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        pass(rendezvous.state(), &mut now, 1);
        assert_eq!(expire(&rendezvous, now), 1);
        assert_eq!(waits.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        let late = rendezvous.peer_ready(peer(KeyId(0), 2, 1), oneshot::channel().0, now);
        assert_eq!(late.unwrap_err(), Refusal::UnknownKey);
        let PairingOutcome::Waiting(ticket) = first else { panic!("{first:?}") };
        assert!(!ticket.leave());
    }

    /// The process is stopped for a minute while two peers connect, so that they wait in the accept queue.
    #[test]
    fn key_does_not_age_while_the_process_is_stopped() {
        let rendezvous = filled(2);
        let (state, start) = (rendezvous.state(), Instant::now());
        state.key_used(KeyId(0), start);
        let again = start + 60 * SECOND;
        assert_eq!(expire(&rendezvous, again), 0);
        assert!(state.key(KeyId(0), again).is_some());
        let _first = rendezvous.peer_ready(peer(KeyId(0), 1, 1), 1, again).unwrap();
        let paired = rendezvous.peer_ready(peer(KeyId(0), 2, 1), 2, again).unwrap();
        let PairingOutcome::Paired { session, .. } = paired else { panic!("{paired:?}") };
        assert_eq!(session.session().started, again);
        // A key lives for its lifetime of running time, and not longer.
        state.key_used(KeyId(1), again);
        let mut now = again;
        for _ in 1..KEY_LIFETIME.as_secs() {
            pass(state, &mut now, 1);
            assert!(state.key(KeyId(1), now).is_some());
            assert_eq!(expire(&rendezvous, now), 0);
        }
        pass(state, &mut now, 1);
        assert!(state.key(KeyId(1), now).is_none());
        assert_eq!(expire(&rendezvous, now), 1);
    }

    #[test]
    fn key_serves_one_pair_only() {
        let rendezvous = filled(3);
        let now = Instant::now();
        let _first = rendezvous.peer_ready(peer(KeyId(0), 1, 1), 1, now).unwrap();
        let _second = rendezvous.peer_ready(peer(KeyId(0), 2, 1), 2, now).unwrap();
        let third = rendezvous.peer_ready(peer(KeyId(0), 3, 1), 3, now).unwrap_err();
        assert_eq!(third, Refusal::UnknownKey);
    }

    #[derive(Debug, Clone)]
    enum Event {
        LinkUp,
        LinkLost,
        Order { batch: usize, on_offer: usize },
        Capacity { capacity: usize },
        Load { plan: Option<OfferPlan> },
        Fill,
        FillLate,
        Used { key: usize },
        Ready { key: usize, peer: u64, secret: u8 },
        Leave { waiting: usize },
        Pass { seconds: u64 },
        Expire,
        End { session: usize },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            1 => Just(Event::LinkUp),
            1 => Just(Event::LinkLost),
            6 => (prop_oneof![1usize..6, Just(40)], prop_oneof![Just(usize::MAX), 0usize..6])
                .prop_map(|(batch, on_offer)| Event::Order { batch, on_offer }),
            1 => prop_oneof![1usize..9, 9usize..40].prop_map(|capacity| Event::Capacity { capacity }),
            1 => prop::option::of(0.0..1.0).prop_map(|headroom| Event::Load {
                plan: headroom.map(|headroom| OfferPlan { headroom, used: 3, session_cost: 0.1 }),
            }),
            6 => Just(Event::Fill),
            1 => Just(Event::FillLate),
            6 => any::<usize>().prop_map(|key| Event::Used { key }),
            12 => (any::<usize>(), 0u64..6, 0u8..2)
                .prop_map(|(key, peer, secret)| Event::Ready { key, peer, secret }),
            2 => any::<usize>().prop_map(|waiting| Event::Leave { waiting }),
            3 => (1u64..20).prop_map(|seconds| Event::Pass { seconds }),
            3 => Just(Event::Expire),
            4 => any::<usize>().prop_map(|session| Event::End { session }),
        ]
    }

    /// What the Router and the peers have seen.
    #[derive(Default)]
    struct Observed {
        is_linked: bool,
        ids: HashSet<KeyId>,
        /// All keys that the Router ever got, valid or not.
        recent: Vec<KeyId>,
        /// Keys that should be on offer, and handed out until when.
        offered: HashSet<KeyId>,
        handed_out: HashMap<KeyId, Instant>,
        orders: Vec<KeyOrder>,
        waiting: Vec<(WaitingTicket<u64>, u64)>,
        plan: Option<OfferPlan>,
        arrived: HashMap<u64, (KeyId, u64, u8)>,
        sessions: Vec<ActiveSession>,
        arrivals: u64,
    }

    impl Observed {
        fn hand_out(&mut self, key: KeyId, now: Instant) {
            if self.offered.remove(&key) {
                self.handed_out.insert(key, now + KEY_LIFETIME);
            }
        }

        fn order(
            &mut self,
            state: &SharedState,
            capacity: usize,
            batch: usize,
            on_offer: usize,
        ) -> TestCaseResult {
            let before = state.counts();
            let ordered_or_offered = before.ordered + self.offered.len();
            let missing = capacity
                .saturating_sub(ordered_or_offered + self.handed_out.len() + self.sessions.len());
            let order = state.order(batch, on_offer);
            let on_offer = self.plan.map_or(on_offer, |plan| {
                let used = self.handed_out.len() + self.sessions.len();
                plan.target(Places { capacity, used }, on_offer)
            });
            let allowed = on_offer.saturating_sub(ordered_or_offered);
            let expected = if self.is_linked { missing.min(batch).min(allowed) } else { 0 };
            prop_assert_eq!(order.as_ref().map_or(0, KeyOrder::len), expected);
            self.orders.extend(order);
            Ok(())
        }

        fn fill(&mut self, state: &SharedState, is_late: bool) -> TestCaseResult {
            let order = if is_late && self.orders.len() > 1 {
                Some(self.orders.remove(0))
            } else {
                self.orders.pop()
            };
            if let Some(order) = order {
                let keys = order.generate().unwrap();
                let ids: Vec<_> = keys.iter().map(|key| key.id).collect();
                for &id in &ids {
                    prop_assert!(self.ids.insert(id), "key {:?} was generated twice", id);
                }
                if state.offer(&order, keys) {
                    self.offered.extend(&ids);
                    self.recent.extend(ids);
                }
            }
            Ok(())
        }

        fn use_key(&mut self, state: &SharedState, key: usize, now: Instant) -> TestCaseResult {
            if let Some(id) = pick(&self.recent, key) {
                let expected = if self.offered.contains(&id) {
                    KeyUse::HandedOut
                } else if self.handed_out.contains_key(&id) {
                    KeyUse::AlreadyHandedOut
                } else {
                    KeyUse::Unknown
                };
                prop_assert_eq!(state.key_used(id, now), expected);
                self.hand_out(id, now);
            }
            Ok(())
        }

        fn ready(
            &mut self,
            rendezvous: &Rendezvous<u64>,
            key: usize,
            number: u64,
            secret: u8,
            now: Instant,
        ) -> TestCaseResult {
            let state = rendezvous.state();
            let before = state.counts();
            if let Some(id) = pick(&self.recent, key) {
                self.arrivals += 1;
                let partner = self.arrivals;
                let is_valid = self.offered.contains(&id)
                    || self.handed_out.get(&id).is_some_and(|until| *until > now);
                prop_assert_eq!(state.key(id, now).is_some(), is_valid);
                match rendezvous.peer_ready(peer(id, number, secret), partner, now) {
                    Ok(PairingOutcome::Waiting(ticket)) => {
                        self.hand_out(id, now);
                        self.waiting.push((ticket, partner));
                    }
                    Ok(PairingOutcome::Paired { partner: first, session }) => {
                        let (first_key, first_number, first_secret) = self.arrived[&first];
                        prop_assert_eq!((first_key, first_secret), (id, secret));
                        prop_assert_ne!(first_number, number, "paired with its own replay");
                        prop_assert!(self.waiting.iter().any(|(_, peer)| *peer == first));
                        self.waiting.retain(|(_, peer)| *peer != first);
                        self.sessions.push(session);
                        prop_assert!(self.handed_out.remove(&id).is_some());
                    }
                    Ok(PairingOutcome::OverLimit { why, .. }) => {
                        prop_assert!(false, "nobody is limited: {why}");
                    }
                    Err(_) => prop_assert_eq!(before, state.counts()),
                }
                self.arrived.insert(partner, (id, number, secret));
            }
            Ok(())
        }

        fn leave(&mut self, waiting: usize) -> TestCaseResult {
            if !self.waiting.is_empty() {
                let index = waiting % self.waiting.len();
                let (ticket, _) = self.waiting.swap_remove(index);
                ticket.leave();
                prop_assert!(!ticket.leave());
            }
            Ok(())
        }
    }

    fn pick<T: Copy>(list: &[T], index: usize) -> Option<T> {
        (!list.is_empty()).then(|| list[index % list.len()])
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        /// In any order of events, the accounting of keys and sessions is correct after each of them.
        #[test]
        fn capacity_is_accounted_for_after_every_event(
            capacity in 1usize..8,
            base in any::<u32>(),
            events in prop::collection::vec(event(), 1..200),
        ) {
            let rendezvous: Rendezvous<u64> = rendezvous(capacity, base);
            let state = rendezvous.state();
            let mut seen = Observed::default();
            let mut now = Instant::now();
            let mut capacity = capacity;
            for event in events {
                let before = state.counts();
                match event {
                    Event::LinkUp => {
                        state.link_up();
                        seen.is_linked = true;
                        seen.offered.clear();
                    }
                    Event::LinkLost => {
                        prop_assert_eq!(state.link_lost(), seen.offered.len());
                        seen.is_linked = false;
                        seen.offered.clear();
                    }
                    Event::Capacity { capacity: new } => {
                        state.set_capacity(new);
                        capacity = new;
                    }
                    Event::Load { plan } => {
                        state.set_offer_plan(plan);
                        seen.plan = plan;
                    }
                    Event::Order { batch, on_offer } => seen.order(state, capacity, batch, on_offer)?,
                    Event::Fill => seen.fill(state, false)?,
                    Event::FillLate => seen.fill(state, true)?,
                    Event::Used { key } => seen.use_key(state, key, now)?,
                    Event::Ready { key, peer, secret } => seen.ready(&rendezvous, key, peer, secret, now)?,
                    Event::Leave { waiting } => seen.leave(waiting)?,
                    Event::Pass { seconds } => pass(state, &mut now, seconds),
                    Event::Expire => {
                        let all = seen.handed_out.len();
                        seen.handed_out.retain(|_, until| *until > now);
                        prop_assert_eq!(expire(&rendezvous, now), all - seen.handed_out.len());
                        prop_assert!(state.lock().next_expiry().is_none_or(|next| next > now));
                    }
                    Event::End { session } => {
                        if !seen.sessions.is_empty() {
                            let index = session % seen.sessions.len();
                            let session = seen.sessions.swap_remove(index);
                            // Only the first of the two calls counts.
                            state.lock().end_session(session.session().id);
                            drop(session);
                        }
                    }
                }
                let counts = state.counts();
                // The sum never exceeds the capacity, unless it already did when the capacity was lowered.
                let sum = |c: StateCounts| c.ordered + c.offered + c.handed_out + c.active;
                prop_assert!(sum(counts) <= capacity.max(sum(before)), "{:?}", counts);
                prop_assert_eq!(counts.offered, seen.offered.len());
                prop_assert_eq!(counts.handed_out, seen.handed_out.len());
                prop_assert_eq!(counts.active, seen.sessions.len());
                prop_assert_eq!(counts.active, state.sessions().len());
                prop_assert!(seen.is_linked || counts.ordered + counts.offered == 0);
                let slots = rendezvous.waiting.lock().len();
                prop_assert!(slots <= counts.handed_out, "a pairing slot without a key");
            }
            // Whatever happened, with a link, ordering brings the sum back to the capacity.
            state.set_offer_plan(None);
            state.link_up();
            while let Some(order) = state.order(3, usize::MAX) {
                let keys = order.generate().unwrap();
                prop_assert!(state.offer(&order, keys));
            }
            let counts = state.counts();
            let taken = counts.handed_out + counts.active;
            prop_assert_eq!(counts.offered + taken, capacity.max(taken));
            prop_assert_eq!(counts.ordered, 0);
            // After all sessions have ended and all keys have expired, nothing is left.
            drop(seen.sessions);
            pass(state, &mut now, KEY_LIFETIME.as_secs());
            expire(&rendezvous, now);
            prop_assert!(state.is_empty() && rendezvous.waiting.lock().is_empty());
        }
    }
}
