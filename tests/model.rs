//! All that the relay knows (the link's keys, those who wait, sessions) as a state machine, against a model that is simple
//! enough to be seen to be right. Time is that of a clock which stands unless it is told to go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aspia_relay::crypto::SessionKey;
use aspia_relay::secret::Secret;
use aspia_relay::state::keys::{KEY_LIFETIME, KeyId, Used};
use aspia_relay::state::metrics::StateMetrics;
use aspia_relay::state::pairing::{MAX_MESSAGES_PER_KEY, PairingError};
use aspia_relay::state::sessions::{End, Identity};
use aspia_relay::state::shared::{ActiveSession, Admitted, SharedState, WaitingPlace};
use aspia_relay::state::{ReadyPeer, Refusal};
use prometheus::{Registry, TextEncoder};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

/// The n-th key that was ever on offer.
type Key = usize;
/// The n-th connection that said who it is.
type Peer = usize;

/// Messages of a flood; no other step has them.
const FLOOD: std::ops::Range<u8> = 100..117;

#[derive(Debug, Clone)]
enum Step {
    LinkUp,
    LinkLost,
    /// The link offers what is missing.
    Fill,
    Capacity(usize),
    /// The Router says that it gave a key away.
    KeyUsed(Key),
    /// A message opens with a key: which message of those that there are, and which secret is in it.
    Ready {
        key: Key,
        message: u8,
        secret: u8,
    },
    /// More messages with a key than are taken, each with a secret that nobody else has.
    Flood(Key),
    /// A connection that may be waiting goes.
    Leave(Peer),
    /// A session that may be there ends.
    End(Peer, End),
    Pass(Duration),
}

/// What is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    None,
    Used(Used),
    Waits,
    /// With this one.
    Paired(Peer),
    Refused(Refusal),
    Left(bool),
}

#[derive(Debug, Clone, Default)]
struct Waiting {
    peer: Peer,
    secret: u8,
}

/// The model.
#[derive(Debug, Clone)]
struct Model {
    capacity: usize,
    linked: bool,
    now: Duration,
    keys: usize,
    offered: BTreeSet<Key>,
    /// Until when.
    handed_out: BTreeMap<Key, Duration>,
    seen: BTreeMap<Key, BTreeSet<u8>>,
    waiting: BTreeMap<Key, Waiting>,
    /// By the first of the two.
    sessions: BTreeSet<Peer>,
    peers: usize,
    issued: usize,
    paired: usize,
    expired: usize,
    dropped: usize,
    ends: BTreeMap<&'static str, usize>,
    /// What the latest step is answered with.
    answer: Answer,
}

impl Model {
    fn is_good(&self, key: Key) -> bool {
        self.offered.contains(&key)
            || self.handed_out.get(&key).is_some_and(|until| *until > self.now)
    }

    fn hand_out(&mut self, key: Key) {
        if self.offered.remove(&key) {
            self.handed_out.insert(key, self.now + KEY_LIFETIME);
        }
    }

    fn ready(&mut self, key: Key, message: u8, secret: u8) -> Answer {
        if !self.is_good(key) {
            return Answer::Refused(Refusal::UnknownKey);
        }
        let seen = self.seen.entry(key).or_default();
        if seen.contains(&message) {
            return Answer::Refused(PairingError::Replay.into());
        }
        if seen.len() >= MAX_MESSAGES_PER_KEY {
            return Answer::Refused(PairingError::TooMany.into());
        }
        seen.insert(message);
        match self.waiting.get(&key) {
            Some(first) if first.secret != secret => {
                Answer::Refused(PairingError::OtherSecret.into())
            }
            Some(first) => {
                let first = first.peer;
                self.waiting.remove(&key);
                self.handed_out.remove(&key);
                self.sessions.insert(first);
                self.paired += 1;
                Answer::Paired(first)
            }
            None => {
                self.hand_out(key);
                self.waiting.insert(key, Waiting { peer: self.peers, secret });
                Answer::Waits
            }
        }
    }

    fn drop_offered(&mut self) {
        self.dropped += self.offered.len();
        self.offered.clear();
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        (1_usize..6)
            .prop_map(|capacity| Self {
                capacity,
                linked: false,
                now: Duration::ZERO,
                keys: 0,
                offered: BTreeSet::new(),
                handed_out: BTreeMap::new(),
                seen: BTreeMap::new(),
                waiting: BTreeMap::new(),
                sessions: BTreeSet::new(),
                peers: 0,
                issued: 0,
                paired: 0,
                expired: 0,
                dropped: 0,
                ends: BTreeMap::new(),
                answer: Answer::None,
            })
            .boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Step> {
        // The latest keys are those that may be good.
        let key = state.keys.saturating_sub(10)..state.keys.max(1);
        let peer = state.peers.saturating_sub(10)..state.peers.max(1);
        let end = prop_oneof![
            Just(End::Closed),
            Just(End::Reset),
            Just(End::Idle),
            Just(End::Disconnected),
            Just(End::Error),
        ];
        prop_oneof![
            2 => Just(Step::LinkUp),
            1 => Just(Step::LinkLost),
            6 => Just(Step::Fill),
            1 => (1_usize..8).prop_map(Step::Capacity),
            6 => key.clone().prop_map(Step::KeyUsed),
            20 => (key.clone(), 0_u8..40, 0_u8..2)
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
                // A link that replaces another one: the keys of that are worth nothing any more.
                state.drop_offered();
                state.linked = true;
                Answer::None
            }
            Step::LinkLost => {
                state.drop_offered();
                state.linked = false;
                Answer::None
            }
            Step::Fill => {
                let taken = state.offered.len() + state.handed_out.len() + state.sessions.len();
                let missing = if state.linked { state.capacity.saturating_sub(taken) } else { 0 };
                for _ in 0..missing {
                    state.offered.insert(state.keys);
                    state.keys += 1;
                }
                state.issued += missing;
                Answer::None
            }
            Step::Capacity(capacity) => {
                state.capacity = capacity;
                Answer::None
            }
            Step::KeyUsed(key) => {
                let used = if state.offered.contains(&key) {
                    Used::HandedOut
                } else if state.handed_out.contains_key(&key) {
                    Used::Already
                } else {
                    Used::Unknown
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
                if state.sessions.remove(&peer) {
                    *state.ends.entry(end_name(end)).or_default() += 1;
                }
                Answer::None
            }
            Step::Pass(time) => {
                state.now += time;
                let all = state.handed_out.len();
                let now = state.now;
                state.handed_out.retain(|_, until| *until > now);
                state.expired += all - state.handed_out.len();
                // Who waited with one that is over is let go.
                let good = state.handed_out.clone();
                state.waiting.retain(|key, _| good.contains_key(key));
                Answer::None
            }
        };
        state
    }
}

fn end_name(end: End) -> &'static str {
    match end {
        End::Closed => "closed",
        End::Reset => "reset",
        End::Idle => "idle",
        End::Disconnected => "disconnected",
        _ => "error",
    }
}

/// A peer's connection, as the state holds it: its number, and whether it still is held.
type Way = (Peer, Arc<()>);

/// The real thing.
struct Real {
    runtime: Runtime,
    state: SharedState<Way>,
    registry: Registry,
    keys: Vec<KeyId>,
    places: BTreeMap<Peer, WaitingPlace<Way>>,
    sessions: BTreeMap<Peer, ActiveSession<Way>>,
    peers: usize,
    /// Held by each way that there is.
    held: Arc<()>,
}

impl Real {
    fn ready(&mut self, key: Key, message: u8, secret: u8, now: Instant) -> Answer {
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
            identity: Identity::default(),
            address: ([192, 0, 2, 1], 7).into(),
        };
        match self.state.peer_ready(ready, (peer, self.held.clone()), now) {
            Ok(Admitted::Wait(place)) => {
                self.places.insert(peer, place);
                Answer::Waits
            }
            Ok(Admitted::Paired { first: (first, _), session }) => {
                // The first no longer waits.
                assert!(!self.places.remove(&first).unwrap().leave());
                self.sessions.insert(first, session);
                Answer::Paired(first)
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
        runtime.spawn({
            let state = state.clone();
            async move { state.expire_keys().await }
        });
        Real {
            runtime,
            state,
            registry,
            keys: Vec::new(),
            places: BTreeMap::new(),
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
                while let Some(order) = real.state.order(2, usize::MAX) {
                    let keys = order.make().unwrap();
                    let ids: Vec<KeyId> = keys.iter().map(|key| key.id).collect();
                    assert!(ids.iter().all(|id| !real.keys.contains(id)), "a key twice");
                    assert!(real.state.offer(&order, keys));
                    real.keys.extend(ids);
                }
                Answer::None
            }
            Step::Capacity(capacity) => {
                real.state.set_capacity(capacity);
                Answer::None
            }
            Step::KeyUsed(key) => Answer::Used(match real.keys.get(key) {
                Some(id) => real.state.key_used(*id, now),
                None => Used::Unknown,
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
                Answer::Left(real.places.remove(&peer).is_some_and(|place| place.leave()))
            }
            Step::End(peer, end) => {
                if let Some(session) = real.sessions.remove(&peer) {
                    session.finish(end);
                }
                Answer::None
            }
            Step::Pass(time) => {
                real.runtime.block_on(async {
                    // What is to be noticed first: that there are keys to wait for.
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
        // Sessions are those that were paired, and no socket is held but of those who wait.
        assert_eq!(real.state.sessions().len(), real.sessions.len());
        assert_eq!(Arc::strong_count(&real.held), 1 + model.waiting.len());
        let good = real.keys.iter().enumerate().filter(|(_, id)| {
            let now = real.runtime.block_on(async { Instant::now() });
            real.state.key(**id, now).is_some()
        });
        let good: BTreeSet<Key> = good.map(|(number, _)| number).collect();
        let expected: BTreeSet<Key> = (0..model.keys).filter(|key| model.is_good(*key)).collect();
        assert_eq!(good, expected);
        // The metrics say the same.
        real.state.refresh_metrics();
        let text = TextEncoder::new().encode_to_string(&real.registry.gather()).unwrap();
        let mut lines = vec![
            format!("aspia_relay_keys{{state=\"offered\"}} {}", model.offered.len()),
            format!("aspia_relay_keys{{state=\"handed_out\"}} {}", model.handed_out.len()),
            format!("aspia_relay_key_events_total{{event=\"issued\"}} {}", model.issued),
            format!("aspia_relay_key_events_total{{event=\"paired\"}} {}", model.paired),
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
        // In the end, nothing is held and every place is free.
        real.sessions.clear();
        real.places.clear();
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
    fn the_state_is_what_the_model_says(sequential 1..120 => Machine);
}
