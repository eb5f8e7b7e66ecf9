//! What the relay knows: keys, waiting peers, sessions.
//!
//! Everything here is a function of events and of the time that the caller passes in: there is no socket, no
//! task and no clock. The link to the Router and the peers' connections never know each other; they
//! meet in this state, through the handle in [`shared`].
//!
//! Invariant: while the link is up, `ordered + offered + handed out + active = capacity` after every event that
//! is followed by ordering; without a link, `handed out + active <= capacity`.

pub mod keys;
pub mod metrics;
pub mod overdue;
pub mod pairing;
pub mod pauses;
pub mod sessions;
pub mod shared;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::crypto::SessionKey;
use crate::secret::Secret;

use keys::{Counts, KeyId, Keys, OneTimeKey, Order, Used, Withdrawn};
use pairing::{Arrival, Pairing, PairingError, Ticket};
use pauses::Pauses;
use sessions::{End, Identity, Record, Session, SessionId, Sessions};

/// A peer whose first message opened.
#[derive(Debug)]
pub struct ReadyPeer {
    /// The key that it named.
    pub key: KeyId,
    /// What the message was sealed under.
    pub session_key: SessionKey,
    /// The secret, as it came.
    pub secret: Secret<Vec<u8>>,
    /// What the secret says about the two peers.
    pub identity: Identity,
    /// Where it connects from.
    pub address: SocketAddr,
}

/// What became of a [`ReadyPeer`].
#[derive(Debug)]
pub enum Admission<W> {
    /// It is the first of its pair.
    Wait(Ticket),
    /// It is the second; a session has begun.
    Paired {
        /// The way to the first.
        first: W,
        /// The session.
        session: Arc<Session>,
    },
}

/// Why a [`ReadyPeer`] is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key was never offered, is used up, or its 30 s are over.
    #[error("unknown key (never offered, used up, or its 30 s are over)")]
    UnknownKey,
    /// The key is good, but not for this peer.
    #[error(transparent)]
    Pairing(#[from] PairingError),
}

#[derive(Debug)]
struct Waiter<W> {
    address: SocketAddr,
    way: W,
}

/// Keys, waiting peers and sessions, kept in step.
#[derive(Debug)]
pub struct State<W> {
    /// Keys live by the time that ran.
    pauses: Pauses,
    keys: Keys,
    pairing: Pairing<Waiter<W>>,
    sessions: Sessions,
}

impl<W> State<W> {
    /// Room for `capacity` sessions; key numbers start at `base`.
    pub fn new(capacity: usize, base: u32) -> Self {
        Self {
            pauses: Pauses::default(),
            keys: Keys::new(capacity, base),
            pairing: Pairing::default(),
            sessions: Sessions::default(),
        }
    }

    /// Where the places of the capacity are.
    pub fn counts(&self) -> Counts {
        self.keys.counts()
    }

    /// Changes the capacity; see [`Keys::set_capacity`].
    pub fn set_capacity(&mut self, capacity: usize) {
        self.keys.set_capacity(capacity);
    }

    /// A link to the Router is authenticated. Gives what was still on offer; see [`Keys::link_up`].
    pub fn link_up(&mut self) -> Withdrawn {
        self.keys.link_up()
    }

    /// The link is gone. Gives what was on offer; see [`Keys::link_lost`].
    pub fn link_lost(&mut self) -> Withdrawn {
        self.keys.link_lost()
    }

    /// Orders missing keys; see [`Keys::order`].
    pub fn order(&mut self, batch: usize, on_offer: usize) -> Option<Order> {
        self.keys.order(batch, on_offer)
    }

    /// Offers ordered keys; see [`Keys::offer`].
    pub fn offer(&mut self, order: &Order, keys: Vec<OneTimeKey>) -> bool {
        self.keys.offer(order, keys)
    }

    /// Looks at the clock, which must be done every [`pauses::LOOK`] while keys are handed out: time in which nobody does,
    /// since the process did not run, does not count for keys. Without any look, all time counts.
    pub fn look_at_clock(&mut self, now: Instant) {
        self.pauses.look(now);
    }

    /// Time in which nobody looked at the clock, since the last call.
    pub fn take_unreported_pause(&mut self) -> Duration {
        self.pauses.take_unreported()
    }

    /// The Router gave a key to two peers.
    pub fn key_used(&mut self, id: KeyId, now: Instant) -> Used {
        self.keys.used(id, self.pauses.running(now))
    }

    /// The key that a peer names, as long as it is good.
    pub fn key(&self, id: KeyId, now: Instant) -> Option<Arc<OneTimeKey>> {
        self.keys.find(id, self.pauses.running(now))
    }

    /// A peer's first message opened. From then on its key counts as handed out, since only the Router can
    /// have given it away.
    ///
    /// # Errors
    /// [`Refusal`]; the key stays as good as it was.
    pub fn peer_ready(
        &mut self,
        peer: ReadyPeer,
        way: W,
        now: Instant,
    ) -> Result<Admission<W>, Refusal> {
        let ReadyPeer { key, session_key, secret, identity, address } = peer;
        let running = self.pauses.running(now);
        if self.keys.find(key, running).is_none() {
            return Err(Refusal::UnknownKey);
        }
        let waiter = Waiter { address, way };
        let arrival = self.pairing.arrive(key, session_key, secret, waiter)?;
        self.keys.used(key, running);
        match arrival {
            Arrival::First(ticket) => Ok(Admission::Wait(ticket)),
            Arrival::Second(first) => {
                let paired = self.keys.pair(key, running);
                debug_assert!(paired, "a key that was found can be paired");
                self.pairing.close(key);
                let addresses = [first.address, address];
                let session = self.sessions.start(identity, addresses, now);
                Ok(Admission::Paired { first: first.way, session })
            }
        }
    }

    /// A waiting peer goes away. `false` when it no longer waits.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        self.pairing.leave(ticket)
    }

    /// Removes expired keys; gives how many there were. Peers that waited with one are let go: their `W` is
    /// dropped.
    pub fn expire(&mut self, now: Instant) -> usize {
        self.expire_some(now, usize::MAX)
    }

    /// Like [`Self::expire`], but looks at `most` keys only; [`Self::next_expiry`] tells whether there are more.
    pub fn expire_some(&mut self, now: Instant, most: usize) -> usize {
        let expired = self.keys.expire(self.pauses.running(now), most);
        for &key in &expired {
            self.pairing.close(key);
        }
        expired.len()
    }

    /// When [`Self::expire`] has something to do next.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.keys.next_expiry().map(|running| self.pauses.passing(running))
    }

    /// An active session.
    pub fn session(&self, id: SessionId) -> Option<Arc<Session>> {
        self.sessions.get(id)
    }

    /// Asks for the end of a session. `false` when there is no such session.
    pub fn stop_session(&self, id: SessionId, why: End) -> bool {
        self.sessions.stop(id, why)
    }

    /// Asks for the end of all sessions, those included that begin from now on.
    pub fn stop_all_sessions(&mut self, why: End) {
        self.sessions.close(why);
    }

    /// What is known of the time in which the process did not run.
    pub fn pauses(&self) -> &Pauses {
        &self.pauses
    }

    /// Goes on with a session that began elsewhere; it takes a place, even where there is none left.
    pub fn adopt_session(&mut self, record: Record, now: Instant) -> Arc<Session> {
        self.keys.occupy();
        self.sessions.adopt(record, now)
    }

    /// A session has ended; its place is free. Only the first call for a session counts.
    pub fn session_ended(&mut self, id: SessionId) {
        if self.sessions.end(id) {
            self.keys.release();
        }
    }

    /// All active sessions, in the order of their numbers.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.sessions.list()
    }

    /// The first active sessions with numbers above `after`, at most `most` of them.
    pub fn sessions_after(&self, after: SessionId, most: usize) -> Vec<Arc<Session>> {
        self.sessions.list_after(after, most)
    }

    /// Bytes of all sessions there ever were.
    pub fn bytes(&self) -> u64 {
        self.sessions.bytes()
    }

    /// Whether no session is active and no key is handed out: nobody is here, and nobody is on the way.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.keys.counts().handed_out == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::sync::oneshot;

    use super::*;

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
            identity: Identity::default(),
            address: address(),
        }
    }

    fn filled(capacity: usize) -> State<u64> {
        let mut state = State::new(capacity, 0);
        drop(state.link_up());
        while let Some(order) = state.order(usize::MAX, usize::MAX) {
            let keys = order.make().unwrap();
            state.offer(&order, keys);
        }
        state
    }

    #[test]
    fn a_peer_before_the_routers_notice_hands_the_key_out() {
        let mut state = filled(2);
        let now = Instant::now();
        let wait = state.peer_ready(peer(KeyId(1), 1, 5), 1, now).unwrap();
        assert!(matches!(wait, Admission::Wait(_)));
        assert_eq!((state.counts().offered, state.counts().handed_out), (1, 1));
        assert_eq!(state.key_used(KeyId(1), now), Used::Already);
        let pair = state.peer_ready(peer(KeyId(1), 2, 5), 2, now).unwrap();
        assert!(matches!(pair, Admission::Paired { first: 1, .. }));
        assert_eq!((state.counts().handed_out, state.counts().active), (0, 1));
    }

    #[test]
    fn expiry_lets_the_waiting_peer_go() {
        let mut state: State<oneshot::Sender<()>> = State::new(1, 0);
        drop(state.link_up());
        let order = state.order(1, 1).unwrap();
        let made = order.make().unwrap();
        state.offer(&order, made);
        let (way, mut waits) = oneshot::channel();
        let now = Instant::now();
        state.peer_ready(peer(KeyId(0), 1, 1), way, now).unwrap();
        assert_eq!(state.expire(now + keys::KEY_LIFETIME), 1);
        assert_eq!(waits.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        let late = state.peer_ready(peer(KeyId(0), 2, 1), oneshot::channel().0, now);
        assert_eq!(late.unwrap_err(), Refusal::UnknownKey);
    }

    /// Stopped for a minute while two peers were on their way, who wait in the accept queue then.
    #[test]
    fn a_key_does_not_grow_old_while_the_process_is_stopped() {
        let mut state = filled(2);
        let start = Instant::now();
        let second = Duration::from_secs(1);
        state.look_at_clock(start);
        state.key_used(KeyId(0), start);
        let again = start + 60 * second;
        state.look_at_clock(again);
        assert_eq!(state.expire(again), 0);
        assert!(state.key(KeyId(0), again).is_some());
        state.peer_ready(peer(KeyId(0), 1, 1), 1, again).unwrap();
        let paired = state.peer_ready(peer(KeyId(0), 2, 1), 2, again).unwrap();
        assert!(matches!(paired, Admission::Paired { session, .. } if session.started == again));
        // A key lives for 30 s of the time that runs, and not longer.
        state.key_used(KeyId(1), again);
        let until = state.next_expiry().unwrap().max(again + keys::KEY_LIFETIME);
        let mut now = again;
        while now < until {
            assert!(state.key(KeyId(1), now).is_some());
            now += second;
            state.look_at_clock(now);
            if now < until {
                assert_eq!(state.expire(now), 0);
            }
        }
        assert!(state.key(KeyId(1), now).is_none());
        assert_eq!(state.expire(now), 1);
    }

    #[test]
    fn a_key_is_good_for_one_pair_only() {
        let mut state = filled(3);
        let now = Instant::now();
        state.peer_ready(peer(KeyId(0), 1, 1), 1, now).unwrap();
        state.peer_ready(peer(KeyId(0), 2, 1), 2, now).unwrap();
        let third = state.peer_ready(peer(KeyId(0), 3, 1), 3, now).unwrap_err();
        assert_eq!(third, Refusal::UnknownKey);
    }

    #[derive(Debug, Clone)]
    enum Event {
        LinkUp,
        LinkLost,
        Order { batch: usize, on_offer: usize },
        Capacity { capacity: usize },
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
            6 => (1usize..6, prop_oneof![Just(usize::MAX), 0usize..6])
                .prop_map(|(batch, on_offer)| Event::Order { batch, on_offer }),
            1 => (1usize..9).prop_map(|capacity| Event::Capacity { capacity }),
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

    /// What the world outside has seen.
    #[derive(Default)]
    struct World {
        linked: bool,
        ids: HashSet<KeyId>,
        /// All keys that the Router ever got, good or not.
        recent: Vec<KeyId>,
        /// Keys that should be on offer, and handed out until when.
        offered: HashSet<KeyId>,
        handed_out: HashMap<KeyId, Instant>,
        orders: Vec<Order>,
        waiting: Vec<(Ticket, u64)>,
        came: HashMap<u64, (KeyId, u64, u8)>,
        sessions: Vec<SessionId>,
        arrivals: u64,
    }

    impl World {
        fn hand_out(&mut self, key: KeyId, now: Instant) {
            if self.offered.remove(&key) {
                self.handed_out.insert(key, now + keys::KEY_LIFETIME);
            }
        }
    }

    fn pick<T: Copy>(list: &[T], index: usize) -> Option<T> {
        (!list.is_empty()).then(|| list[index % list.len()])
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        /// The accounting holds after every event, in any order of events.
        #[test]
        fn accounting(
            capacity in 1usize..8,
            base in any::<u32>(),
            events in prop::collection::vec(event(), 1..200),
        ) {
            let mut state: State<u64> = State::new(capacity, base);
            let mut world = World::default();
            let mut now = Instant::now();
            let mut capacity = capacity;
            for event in events {
                let before = state.counts();
                match event {
                    Event::LinkUp => {
                        drop(state.link_up());
                        world.linked = true;
                        world.offered.clear();
                    }
                    Event::LinkLost => {
                        prop_assert_eq!(state.link_lost().len(), world.offered.len());
                        world.linked = false;
                        world.offered.clear();
                    }
                    Event::Capacity { capacity: new } => {
                        state.set_capacity(new);
                        capacity = new;
                    }
                    Event::Order { batch, on_offer } => {
                        let on_the_way = before.ordered + world.offered.len();
                        let missing = capacity.saturating_sub(
                            on_the_way + world.handed_out.len() + world.sessions.len(),
                        );
                        let order = state.order(batch, on_offer);
                        let room = on_offer.saturating_sub(on_the_way);
                        let expected = if world.linked { missing.min(batch).min(room) } else { 0 };
                        prop_assert_eq!(order.as_ref().map_or(0, Order::len), expected);
                        world.orders.extend(order);
                    }
                    Event::Fill | Event::FillLate => {
                        let late = matches!(event, Event::FillLate) && world.orders.len() > 1;
                        let order = if late { Some(world.orders.remove(0)) } else { world.orders.pop() };
                        if let Some(order) = order {
                            let keys = order.make().unwrap();
                            let ids: Vec<_> = keys.iter().map(|key| key.id).collect();
                            for &id in &ids {
                                prop_assert!(world.ids.insert(id), "key {:?} twice", id);
                            }
                            if state.offer(&order, keys) {
                                world.offered.extend(&ids);
                                world.recent.extend(ids);
                            }
                        }
                    }
                    Event::Used { key } => {
                        if let Some(id) = pick(&world.recent, key) {
                            let expected = if world.offered.contains(&id) {
                                Used::HandedOut
                            } else if world.handed_out.contains_key(&id) {
                                Used::Already
                            } else {
                                Used::Unknown
                            };
                            prop_assert_eq!(state.key_used(id, now), expected);
                            world.hand_out(id, now);
                        }
                    }
                    Event::Ready { key, peer: number, secret } => {
                        if let Some(id) = pick(&world.recent, key) {
                            world.arrivals += 1;
                            let way = world.arrivals;
                            let good = world.offered.contains(&id)
                                || world.handed_out.get(&id).is_some_and(|until| *until > now);
                            prop_assert_eq!(state.key(id, now).is_some(), good);
                            match state.peer_ready(peer(id, number, secret), way, now) {
                                Ok(Admission::Wait(ticket)) => {
                                    world.hand_out(id, now);
                                    world.waiting.push((ticket, way));
                                }
                                Ok(Admission::Paired { first, session, .. }) => {
                                    let (first_key, first_number, first_secret) = world.came[&first];
                                    prop_assert_eq!((first_key, first_secret), (id, secret));
                                    prop_assert_ne!(first_number, number, "paired with its own copy");
                                    prop_assert!(world.waiting.iter().any(|(_, way)| *way == first));
                                    world.waiting.retain(|(_, way)| *way != first);
                                    world.sessions.push(session.id);
                                    prop_assert!(world.handed_out.remove(&id).is_some());
                                }
                                Err(_) => prop_assert_eq!(before, state.counts()),
                            }
                            world.came.insert(way, (id, number, secret));
                        }
                    }
                    Event::Leave { waiting } => {
                        if !world.waiting.is_empty() {
                            let index = waiting % world.waiting.len();
                            let (ticket, _) = world.waiting.swap_remove(index);
                            state.leave(ticket);
                            prop_assert!(!state.leave(ticket));
                        }
                    }
                    Event::Pass { seconds } => now += Duration::from_secs(seconds),
                    Event::Expire => {
                        let all = world.handed_out.len();
                        world.handed_out.retain(|_, until| *until > now);
                        prop_assert_eq!(state.expire(now), all - world.handed_out.len());
                        prop_assert!(state.next_expiry().is_none_or(|next| next > now));
                    }
                    Event::End { session } => {
                        if !world.sessions.is_empty() {
                            let index = session % world.sessions.len();
                            let id = world.sessions.swap_remove(index);
                            state.session_ended(id);
                            state.session_ended(id);
                        }
                    }
                }
                let counts = state.counts();
                // Never more than there is room for, except what a lower capacity finds there already.
                let sum = |c: Counts| c.ordered + c.offered + c.handed_out + c.active;
                prop_assert!(sum(counts) <= capacity.max(sum(before)), "{:?}", counts);
                prop_assert_eq!(counts.offered, world.offered.len());
                prop_assert_eq!(counts.handed_out, world.handed_out.len());
                prop_assert_eq!(counts.active, world.sessions.len());
                prop_assert_eq!(counts.active, state.sessions().len());
                prop_assert!(world.linked || counts.ordered + counts.offered == 0);
                prop_assert!(state.pairing.len() <= counts.handed_out, "a room without a key");
            }
            // Whatever happened: with a link, ordering brings the sum back to the capacity.
            drop(state.link_up());
            while let Some(order) = state.order(3, usize::MAX) {
                let keys = order.make().unwrap();
                prop_assert!(state.offer(&order, keys));
            }
            let counts = state.counts();
            let taken = counts.handed_out + counts.active;
            prop_assert_eq!(counts.offered + taken, capacity.max(taken));
            prop_assert_eq!(counts.ordered, 0);
            // And when all is over, every place is a key on offer again.
            for id in world.sessions { state.session_ended(id); }
            state.expire(now + keys::KEY_LIFETIME);
            prop_assert!(state.is_empty() && state.pairing.is_empty());
        }
    }
}
