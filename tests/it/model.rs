//! The state of the relay (keys, waiting peers, sessions) as a state machine, checked against a model that is simple enough to
//! be obviously correct. The clock is paused and advances only in the steps that say so.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use aspia_relay::crypto::SessionKey;
use aspia_relay::secret::Secret;
use aspia_relay::state::active_session::ActiveSession;
use aspia_relay::state::expiry::expire_keys;
use aspia_relay::state::keys::{KEY_LIFETIME, KeyId, KeyUse};
use aspia_relay::state::metrics::StateMetrics;
use aspia_relay::state::pairing::{MAX_MESSAGES_PER_KEY, PairingRefusal};
use aspia_relay::state::rendezvous::{
    PairingOutcome, ReadyPeer, Refusal, Rendezvous, WaitingTicket,
};
use aspia_relay::state::sessions::{
    EndCause, IdentityLimit, IdentityLimits, PeerIdentity, PeerOrder,
};
use aspia_relay::state::shared::SharedState;
use prometheus::{Registry, TextEncoder};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

/// The n-th key that was ever on offer.
type KeyNumber = usize;
/// The n-th connection whose first message opened.
type PeerNumber = usize;

/// The messages of a flood, which no other step uses.
const FLOOD: std::ops::Range<u8> = 100..117;

#[derive(Debug, Clone)]
enum Step {
    LinkUp,
    LinkLost,
    /// The link offers the missing keys.
    Fill,
    Capacity(usize),
    /// One user, and one host, may have this many sessions; 0 is no limit.
    Limits {
        per_user: u32,
        per_host: u32,
    },
    /// The Router says that it gave a key to two peers.
    KeyUsed(KeyNumber),
    /// One of a few messages opens with a key and contains one of a few secrets.
    Ready {
        key: KeyNumber,
        message: u8,
        secret: u8,
    },
    /// More messages with a key than the relay accepts, each with a secret of its own.
    Flood(KeyNumber),
    /// A connection that may be waiting closes.
    Leave(PeerNumber),
    /// A session that may exist ends.
    End(PeerNumber, EndCause),
    Pass(Duration),
}

/// The answer of the state to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    None,
    Used(KeyUse),
    Waits,
    /// The peer was paired with this one.
    Paired(PeerNumber),
    /// The peer would have been paired with this one.
    OverLimit(PeerNumber, IdentityLimit),
    Refused(Refusal),
    Left(bool),
}

#[derive(Debug, Clone, Default)]
struct WaitingPeer {
    peer: PeerNumber,
    secret: u8,
}

/// The model.
#[derive(Debug, Clone)]
struct Model {
    capacity: usize,
    is_linked: bool,
    now: Duration,
    keys: usize,
    offered: BTreeSet<KeyNumber>,
    /// The keys handed out, with their times of expiry.
    handed_out: BTreeMap<KeyNumber, Duration>,
    seen: BTreeMap<KeyNumber, BTreeSet<u8>>,
    waiting: BTreeMap<KeyNumber, WaitingPeer>,
    /// The secrets of the sessions, each of which is named by the first of its two peers.
    sessions: BTreeMap<PeerNumber, u8>,
    limits: IdentityLimits,
    peers: usize,
    issued: usize,
    paired: usize,
    refused: usize,
    expired: usize,
    dropped: usize,
    ends: BTreeMap<&'static str, usize>,
    /// The answer to the latest step.
    answer: Answer,
}

impl Model {
    fn is_valid(&self, key: KeyNumber) -> bool {
        self.offered.contains(&key)
            || self.handed_out.get(&key).is_some_and(|until| *until > self.now)
    }

    fn hand_out(&mut self, key: KeyNumber) {
        if self.offered.remove(&key) {
            self.handed_out.insert(key, self.now + KEY_LIFETIME);
        }
    }

    fn ready(&mut self, key: KeyNumber, message: u8, secret: u8) -> Answer {
        if !self.is_valid(key) {
            return Answer::Refused(Refusal::UnknownKey);
        }
        let seen = self.seen.entry(key).or_default();
        if seen.contains(&message) {
            return Answer::Refused(PairingRefusal::Replay.into());
        }
        if seen.len() >= MAX_MESSAGES_PER_KEY {
            return Answer::Refused(PairingRefusal::TooMany.into());
        }
        seen.insert(message);
        match self.waiting.get(&key) {
            Some(first) if first.secret != secret => {
                Answer::Refused(PairingRefusal::OtherSecret.into())
            }
            Some(first) => {
                let first = first.peer;
                self.waiting.remove(&key);
                self.handed_out.remove(&key);
                if let Some(limit) = self.exceeded(secret) {
                    self.refused += 1;
                    return Answer::OverLimit(first, limit);
                }
                self.sessions.insert(first, secret);
                self.paired += 1;
                Answer::Paired(first)
            }
            None => {
                self.hand_out(key);
                self.waiting.insert(key, WaitingPeer { peer: self.peers, secret });
                Answer::Waits
            }
        }
    }

    fn exceeded(&self, secret: u8) -> Option<IdentityLimit> {
        let count = |is_same: fn(u8, u8) -> bool| {
            self.sessions.values().filter(|other| is_same(**other, secret)).count()
        };
        let of_user = count(|one, other| user(one) == user(other));
        let of_host = count(|one, other| host(one) == host(other));
        let IdentityLimits { per_user, per_host } = self.limits;
        let per_user = per_user.filter(|most| of_user >= most.get() as usize);
        let per_host = per_host.filter(|most| of_host >= most.get() as usize);
        per_user.map(IdentityLimit::User).or(per_host.map(IdentityLimit::Host))
    }

    fn drop_offered(&mut self) {
        self.dropped += self.offered.len();
        self.offered.clear();
    }

    fn fill(&mut self) {
        let taken = self.offered.len() + self.handed_out.len() + self.sessions.len();
        let missing = if self.is_linked { self.capacity.saturating_sub(taken) } else { 0 };
        for _ in 0..missing {
            self.offered.insert(self.keys);
            self.keys += 1;
        }
        self.issued += missing;
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let all = self.handed_out.len();
        let now = self.now;
        self.handed_out.retain(|_, until| *until > now);
        self.expired += all - self.handed_out.len();
        // Peers that waited with an expired key are released.
        let valid = self.handed_out.clone();
        self.waiting.retain(|key, _| valid.contains_key(key));
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        (1_usize..6)
            .prop_map(|capacity| Self {
                capacity,
                is_linked: false,
                now: Duration::ZERO,
                keys: 0,
                offered: BTreeSet::new(),
                handed_out: BTreeMap::new(),
                seen: BTreeMap::new(),
                waiting: BTreeMap::new(),
                sessions: BTreeMap::new(),
                limits: IdentityLimits::default(),
                peers: 0,
                issued: 0,
                paired: 0,
                refused: 0,
                expired: 0,
                dropped: 0,
                ends: BTreeMap::new(),
                answer: Answer::None,
            })
            .boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Step> {
        // Only the latest keys may be valid.
        let key = state.keys.saturating_sub(10)..state.keys.max(1);
        let peer = state.peers.saturating_sub(10)..state.peers.max(1);
        let end = prop_oneof![
            Just(EndCause::Closed(PeerOrder::First)),
            Just(EndCause::Reset(PeerOrder::Second)),
            Just(EndCause::Idle),
            Just(EndCause::Router),
            Just(EndCause::Error),
        ];
        prop_oneof![
            2 => Just(Step::LinkUp),
            1 => Just(Step::LinkLost),
            6 => Just(Step::Fill),
            1 => (1_usize..8).prop_map(Step::Capacity),
            1 => (0_u32..4, 0_u32..4)
                .prop_map(|(per_user, per_host)| Step::Limits { per_user, per_host }),
            6 => key.clone().prop_map(Step::KeyUsed),
            20 => (key.clone(), 0_u8..40, 0_u8..3)
                .prop_map(|(key, message, secret)| Step::Ready { key, message, secret }),
            1 => key.prop_map(Step::Flood),
            3 => peer.clone().prop_map(Step::Leave),
            5 => (peer, end).prop_map(|(peer, end)| Step::End(peer, end)),
            4 => (1_u64..20_000).prop_map(|ms| Step::Pass(Duration::from_millis(ms))),
        ]
        .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        state.answer = match *step {
            Step::LinkUp => {
                // If the link replaces another one, the keys of that one are withdrawn.
                state.drop_offered();
                state.is_linked = true;
                Answer::None
            }
            Step::LinkLost => {
                state.drop_offered();
                state.is_linked = false;
                Answer::None
            }
            Step::Fill => {
                state.fill();
                Answer::None
            }
            Step::Capacity(capacity) => {
                state.capacity = capacity;
                Answer::None
            }
            Step::Limits { per_user, per_host } => {
                state.limits = limits(per_user, per_host);
                Answer::None
            }
            Step::KeyUsed(key) => {
                let used = if state.offered.contains(&key) {
                    KeyUse::HandedOut
                } else if state.handed_out.contains_key(&key) {
                    KeyUse::AlreadyHandedOut
                } else {
                    KeyUse::Unknown
                };
                state.hand_out(key);
                Answer::Used(used)
            }
            Step::Ready { key, message, secret } => {
                let answer = state.ready(key, message, secret);
                state.peers += 1;
                answer
            }
            Step::Flood(key) => {
                let mut answer = Answer::None;
                for message in FLOOD {
                    answer = state.ready(key, message, message);
                    state.peers += 1;
                }
                answer
            }
            Step::Leave(peer) => {
                let before = state.waiting.len();
                state.waiting.retain(|_, waiting| waiting.peer != peer);
                Answer::Left(state.waiting.len() < before)
            }
            Step::End(peer, end) => {
                if state.sessions.remove(&peer).is_some() {
                    *state.ends.entry(end_name(end)).or_default() += 1;
                }
                Answer::None
            }
            Step::Pass(time) => {
                state.pass(time);
                Answer::None
            }
        };
        state
    }
}

/// The user whom a secret names. Secret 0 and 2 name the same.
fn user(secret: u8) -> u8 {
    secret % 2
}

/// The host that a secret names. Secret 0 and 1 name the same.
fn host(secret: u8) -> u8 {
    secret / 2
}

fn limits(per_user: u32, per_host: u32) -> IdentityLimits {
    IdentityLimits { per_user: NonZero::new(per_user), per_host: NonZero::new(per_host) }
}

fn end_name(end: EndCause) -> &'static str {
    match end {
        EndCause::Closed(_) => "closed",
        EndCause::Reset(_) => "reset",
        EndCause::Idle => "idle",
        EndCause::Router => "disconnected",
        _ => "error",
    }
}

/// What the state keeps for a waiting peer: its number, and a reference that shows whether the state still keeps it.
type HeldPeer = (PeerNumber, Arc<()>);

/// The implementation under test.
struct Real {
    runtime: Runtime,
    rendezvous: Rendezvous<HeldPeer>,
    state: SharedState,
    registry: Registry,
    keys: Vec<KeyId>,
    tickets: BTreeMap<PeerNumber, WaitingTicket<HeldPeer>>,
    sessions: BTreeMap<PeerNumber, ActiveSession>,
    peers: usize,
    /// Referenced by each peer that the state holds.
    held: Arc<()>,
}

impl Real {
    fn fill(&mut self) {
        while let Some(order) = self.state.order(2, usize::MAX) {
            let keys = order.generate().unwrap();
            let ids: Vec<KeyId> = keys.iter().map(|key| key.id).collect();
            assert!(ids.iter().all(|id| !self.keys.contains(id)), "a key number was used twice");
            assert!(self.state.offer(&order, keys));
            self.keys.extend(ids);
        }
    }

    fn ready(&mut self, key: KeyNumber, message: u8, secret: u8, now: Instant) -> Answer {
        let peer = self.peers;
        self.peers += 1;
        let mut session_key = [0; 32];
        session_key[0] = message;
        let Some(key) = self.keys.get(key) else {
            return Answer::Refused(Refusal::UnknownKey);
        };
        let ready = ReadyPeer {
            key: *key,
            session_key: SessionKey::from_bytes(session_key),
            secret: Secret::new(vec![secret]),
            identity: PeerIdentity::new(
                "",
                &user(secret).to_string(),
                "",
                1 + u64::from(host(secret)),
            ),
            address: ([192, 0, 2, 1], 7).into(),
        };
        match self.rendezvous.peer_ready(ready, (peer, self.held.clone()), now) {
            Ok(PairingOutcome::Waiting(ticket)) => {
                self.tickets.insert(peer, ticket);
                Answer::Waits
            }
            Ok(PairingOutcome::Paired { partner: (first, _), session }) => {
                // The first peer no longer waits.
                assert!(!self.tickets.remove(&first).unwrap().leave());
                self.sessions.insert(first, session);
                Answer::Paired(first)
            }
            Ok(PairingOutcome::OverLimit { partner: (first, _), why }) => {
                assert!(!self.tickets.remove(&first).unwrap().leave());
                Answer::OverLimit(first, why.limit)
            }
            Err(refusal) => Answer::Refused(refusal),
        }
    }
}

struct Machine;

impl StateMachineTest for Machine {
    type SystemUnderTest = Real;
    type Reference = Model;

    fn init_test(model: &Model) -> Real {
        let runtime =
            Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let registry = Registry::new();
        let metrics = StateMetrics::new(&registry).unwrap();
        let state = SharedState::new(model.capacity, u32::MAX - 3, metrics);
        let rendezvous = Rendezvous::new(state.clone());
        runtime.spawn({
            let rendezvous = rendezvous.clone();
            async move { expire_keys(&rendezvous).await }
        });
        Real {
            runtime,
            rendezvous,
            state,
            registry,
            keys: Vec::new(),
            tickets: BTreeMap::new(),
            sessions: BTreeMap::new(),
            peers: 0,
            held: Arc::new(()),
        }
    }

    fn apply(mut real: Real, model: &Model, step: Step) -> Real {
        let now = real.runtime.block_on(async { Instant::now() });
        let answer = match step {
            Step::LinkUp => {
                real.state.link_lost();
                real.state.link_up();
                Answer::None
            }
            Step::LinkLost => {
                real.state.link_lost();
                Answer::None
            }
            Step::Fill => {
                real.fill();
                Answer::None
            }
            Step::Capacity(capacity) => {
                real.state.set_capacity(capacity);
                Answer::None
            }
            Step::Limits { per_user, per_host } => {
                real.state.set_identity_limits(limits(per_user, per_host));
                Answer::None
            }
            Step::KeyUsed(key) => Answer::Used(match real.keys.get(key) {
                Some(id) => real.state.key_used(*id, now),
                None => KeyUse::Unknown,
            }),
            Step::Ready { key, message, secret } => real.ready(key, message, secret, now),
            Step::Flood(key) => {
                let mut answer = Answer::None;
                for message in FLOOD {
                    answer = real.ready(key, message, message, now);
                }
                answer
            }
            Step::Leave(peer) => {
                Answer::Left(real.tickets.remove(&peer).is_some_and(|ticket| ticket.leave()))
            }
            Step::End(peer, end) => {
                if let Some(session) = real.sessions.remove(&peer) {
                    session.finish(end);
                }
                Answer::None
            }
            Step::Pass(time) => {
                real.runtime.block_on(async {
                    // The expiry task must first notice that keys were handed out.
                    tokio::task::yield_now().await;
                    tokio::time::sleep(time).await;
                    tokio::task::yield_now().await;
                });
                Answer::None
            }
        };
        assert_eq!(answer, model.answer);
        real
    }

    fn check_invariants(real: &Real, model: &Model) {
        let counts = real.state.counts();
        assert_eq!(counts.offered, model.offered.len());
        assert_eq!(counts.handed_out, model.handed_out.len());
        assert_eq!(counts.active, model.sessions.len());
        assert_eq!(counts.ordered, 0);
        // There are exactly the sessions that were paired, and only waiting peers are held.
        assert_eq!(real.state.sessions().len(), real.sessions.len());
        assert_eq!(Arc::strong_count(&real.held), 1 + model.waiting.len());
        let valid = real.keys.iter().enumerate().filter(|(_, id)| {
            let now = real.runtime.block_on(async { Instant::now() });
            real.state.key(**id, now).is_some()
        });
        let valid: BTreeSet<KeyNumber> = valid.map(|(number, _)| number).collect();
        let expected: BTreeSet<KeyNumber> =
            (0..model.keys).filter(|key| model.is_valid(*key)).collect();
        assert_eq!(valid, expected);
        // The metrics agree.
        real.state.refresh_metrics();
        let text = TextEncoder::new().encode_to_string(&real.registry.gather()).unwrap();
        let mut lines = vec![
            format!("aspia_relay_keys{{state=\"offered\"}} {}", model.offered.len()),
            format!("aspia_relay_keys{{state=\"handed_out\"}} {}", model.handed_out.len()),
            format!("aspia_relay_key_events_total{{event=\"issued\"}} {}", model.issued),
            format!("aspia_relay_key_events_total{{event=\"paired\"}} {}", model.paired),
            format!("aspia_relay_key_events_total{{event=\"refused\"}} {}", model.refused),
            format!("aspia_relay_key_events_total{{event=\"expired\"}} {}", model.expired),
            format!("aspia_relay_key_events_total{{event=\"dropped\"}} {}", model.dropped),
            format!("aspia_relay_sessions_active {}", model.sessions.len()),
            format!("aspia_relay_sessions_limit {}", model.capacity),
        ];
        for (end, count) in &model.ends {
            lines.push(format!("aspia_relay_sessions_total{{end=\"{end}\"}} {count}"));
        }
        for line in lines {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    fn teardown(mut real: Real, _model: Model) {
        // In the end, no peer is held and the whole capacity is free.
        real.sessions.clear();
        real.tickets.clear();
        real.state.link_lost();
        real.runtime.block_on(async {
            tokio::task::yield_now().await;
            tokio::time::sleep(2 * KEY_LIFETIME).await;
        });
        assert!(real.state.is_empty());
        assert_eq!(Arc::strong_count(&real.held), 1);
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn state_behaves_like_the_model(sequential 1..120 => Machine);
}
