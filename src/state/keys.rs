//! The one-time keys and the room they stand for (section 4 of the protocol notes, "A key's life").
//!
//! ```text
//!            order            offer             RelayKeyUsed, or a first message opens
//! (missing) ───────▶ ordered ───────▶ offered ──────────────▶ handed out ──pair──▶ (active session)
//!     ▲                                  │                        │ 30 s                │ ends
//!     └────────── link lost ◀────────────┴───────── expired ◀─────┘◀────────────────────┘
//! ```
//!
//! While the link is up and all orders are filled, `offered + handed out + active = capacity`; no event may
//! break that. Offering is kept apart from capacity: [`Keys::order`] takes a bound on what may be on
//! offer at once, because a 3.0 Router keeps 1 000 keys of a link at most.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::crypto::{CryptoError, Iv, PrivateKey, PublicKey};

/// How long two peers have to come once the Router gave them a key.
pub const KEY_LIFETIME: Duration = Duration::from_secs(30);

/// The relay's number for a key, never used twice in the life of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u32);

/// A one-time key: the private half stays here.
#[derive(Debug)]
pub struct OneTimeKey {
    /// Its number.
    pub id: KeyId,
    /// The X25519 key.
    pub private: PrivateKey,
    /// The iv of the peers' first message.
    pub iv: Iv,
}

impl OneTimeKey {
    /// Makes a key; costs one X25519 operation.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the system has no randomness to give.
    pub fn generate(id: KeyId) -> Result<Self, CryptoError> {
        Ok(Self { id, private: PrivateKey::generate()?, iv: Iv::random()? })
    }

    /// The half that goes to the Router.
    pub fn public(&self) -> PublicKey {
        self.private.public()
    }
}

/// Keys that are to be made for the link that was up when they were ordered.
#[derive(Debug)]
#[must_use = "an order that is not filled keeps its room reserved"]
pub struct Order {
    first: u32,
    count: u32,
    link: u64,
}

impl Order {
    /// Makes the keys. Meant for a thread that may be busy for a while.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] when the system has no randomness to give.
    pub fn make(&self) -> Result<Vec<OneTimeKey>, CryptoError> {
        (0..self.count).map(|n| OneTimeKey::generate(KeyId(self.first.wrapping_add(n)))).collect()
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether nothing is ordered; never so for an order that [`Keys::order`] gave.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What a `RelayKeyUsed` meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    /// The key went from offered to handed out.
    HandedOut,
    /// The key was handed out before: a peer was faster than the Router's message, or it came twice.
    Already,
    /// No such key: never offered on this link, or used up.
    Unknown,
}

/// How many places of the capacity are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Keys that are being made.
    pub ordered: usize,
    /// Keys at the Router.
    pub offered: usize,
    /// Keys that the Router gave to peers.
    pub handed_out: usize,
    /// Active sessions.
    pub active: usize,
    /// `MaxPeerCount`.
    pub capacity: usize,
}

impl Counts {
    /// Whether more is on offer than there is room for, as after a lower `MaxPeerCount`. Only a new link takes
    /// keys back.
    pub fn too_much_on_offer(&self) -> bool {
        let on_offer = self.ordered + self.offered;
        on_offer > 0 && on_offer + self.handed_out + self.active > self.capacity
    }
}

/// Keys that were on offer and are no longer known; to be dropped.
#[derive(Debug)]
pub struct Withdrawn(HashMap<KeyId, Arc<OneTimeKey>>);

impl Withdrawn {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops them, `batch` at a time, and calls `pause` after each batch: whoever frees memory without a pause keeps other
    /// threads from the heap.
    pub fn wipe(self, batch: usize, mut pause: impl FnMut()) {
        let mut keys = self.0.into_values();
        while keys.by_ref().take(batch).map(drop).count() > 0 {
            pause();
        }
    }
}

#[derive(Debug)]
struct HandedOut {
    key: Arc<OneTimeKey>,
    expires: Instant,
}

/// All keys of the relay. Every operation but expiry costs O(1).
#[derive(Debug)]
pub struct Keys {
    capacity: usize,
    /// Counts the links; keys ordered for one are not offered on another. `None` while there is none.
    link: Option<u64>,
    links: u64,
    base: u32,
    issued: u64,
    ordered: usize,
    offered: HashMap<KeyId, Arc<OneTimeKey>>,
    handed_out: HashMap<KeyId, HandedOut>,
    /// Handed-out keys in the order of their expiry, which is that of their handing out.
    expiry: VecDeque<(Instant, KeyId)>,
    active: usize,
}

impl Keys {
    /// No keys yet, room for `capacity` sessions. Key numbers start at `base`, which should be random, so
    /// that two processes that share a port do not give out the same ones.
    pub fn new(capacity: usize, base: u32) -> Self {
        Self {
            capacity,
            link: None,
            links: 0,
            base,
            issued: 0,
            ordered: 0,
            offered: HashMap::new(),
            handed_out: HashMap::new(),
            expiry: VecDeque::new(),
            active: 0,
        }
    }

    /// Where the places of the capacity are.
    pub fn counts(&self) -> Counts {
        Counts {
            ordered: self.ordered,
            offered: self.offered.len(),
            handed_out: self.handed_out.len(),
            active: self.active,
            capacity: self.capacity,
        }
    }

    /// Changes the capacity. A lower one withdraws nothing that is on offer: only a new link does.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// A link to the Router is authenticated. Gives what was still on offer; see [`Self::link_lost`].
    pub fn link_up(&mut self) -> Withdrawn {
        let withdrawn = self.link_lost();
        self.links += 1;
        self.link = Some(self.links);
        withdrawn
    }

    /// The link is gone, and the Router has forgotten what was on offer. Keys handed out stay valid.
    /// Gives what was on offer: wiping 100 000 keys takes a while, and the caller may hold a lock now.
    pub fn link_lost(&mut self) -> Withdrawn {
        self.link = None;
        self.ordered = 0;
        Withdrawn(std::mem::take(&mut self.offered))
    }

    /// Orders what is missing, at most `batch` keys, with at most `on_offer` ordered or offered at once.
    /// `None` when nothing is missing, or no link is up.
    pub fn order(&mut self, batch: usize, on_offer: usize) -> Option<Order> {
        let link = self.link?;
        let on_the_way = self.ordered + self.offered.len();
        let missing =
            self.capacity.saturating_sub(on_the_way + self.handed_out.len() + self.active);
        // Numbers are never used twice; a process that has given out all 2^32 offers no more.
        let left = usize::try_from((1 << 32) - self.issued).unwrap_or(usize::MAX);
        let count = missing.min(on_offer.saturating_sub(on_the_way)).min(batch).min(left);
        let count = u32::try_from(count).ok().filter(|&count| count > 0)?;
        let first = self.base.wrapping_add(u32::try_from(self.issued).unwrap_or(u32::MAX));
        self.issued += u64::from(count);
        self.ordered += count as usize;
        Some(Order { first, count, link })
    }

    /// Offers the keys of an order. Those made for a link that is gone are dropped: `false`.
    pub fn offer(&mut self, order: &Order, keys: Vec<OneTimeKey>) -> bool {
        if self.link != Some(order.link) {
            return false;
        }
        self.ordered -= order.len();
        self.offered.extend(keys.into_iter().map(|key| (key.id, Arc::new(key))));
        true
    }

    /// The Router gave a key to two peers.
    pub fn used(&mut self, id: KeyId, now: Instant) -> Used {
        if self.handed_out.contains_key(&id) {
            return Used::Already;
        }
        match self.offered.remove(&id) {
            None => Used::Unknown,
            Some(key) => {
                let expires = now + KEY_LIFETIME;
                self.handed_out.insert(id, HandedOut { key, expires });
                self.expiry.push_back((expires, id));
                Used::HandedOut
            }
        }
    }

    /// The key that a peer names, as long as it is good.
    pub fn find(&self, id: KeyId, now: Instant) -> Option<Arc<OneTimeKey>> {
        match self.handed_out.get(&id) {
            Some(held) => (held.expires > now).then(|| held.key.clone()),
            None => self.offered.get(&id).cloned(),
        }
    }

    /// Both peers came: the key is used up and its place belongs to a session. `false`, and nothing
    /// happens, unless the key is handed out and still good.
    pub fn pair(&mut self, id: KeyId, now: Instant) -> bool {
        if self.handed_out.get(&id).is_none_or(|held| held.expires <= now) {
            return false;
        }
        self.handed_out.remove(&id);
        self.active += 1;
        true
    }

    /// A session came without a key; it takes a place.
    pub fn occupy(&mut self) {
        self.active += 1;
    }

    /// A session ended; its place is free.
    pub fn release(&mut self) {
        debug_assert!(self.active > 0, "a session ended twice");
        self.active = self.active.saturating_sub(1);
    }

    /// Removes keys whose time is over at `now` and names them. Looks at `most` keys: there may be more, which
    /// [`Self::next_expiry`] tells.
    pub fn expire(&mut self, now: Instant, most: usize) -> Vec<KeyId> {
        let mut expired = Vec::new();
        for _ in 0..most {
            let Some(&(expires, id)) = self.expiry.front() else { break };
            if expires > now {
                break;
            }
            self.expiry.pop_front();
            // A key that was paired meanwhile is no longer here.
            if self.handed_out.remove(&id).is_some() {
                expired.push(id);
            }
        }
        expired
    }

    /// When [`Self::expire`] has something to do next; paired keys may make it too early.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.expiry.front().map(|&(expires, _)| expires)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = usize::MAX;

    fn fill(keys: &mut Keys) -> Vec<KeyId> {
        let mut ids = Vec::new();
        while let Some(order) = keys.order(7, ALL) {
            let made = order.make().unwrap();
            ids.extend(made.iter().map(|key| key.id));
            assert!(keys.offer(&order, made));
        }
        ids
    }

    #[test]
    fn nothing_is_ordered_without_a_link() {
        let mut keys = Keys::new(5, 0);
        assert!(keys.order(5, ALL).is_none());
        drop(keys.link_up());
        assert_eq!(fill(&mut keys).len(), 5);
        assert_eq!(keys.link_lost().len(), 5);
        assert!(keys.order(5, ALL).is_none());
    }

    #[test]
    fn numbers_go_on_over_links_and_wrap() {
        let mut keys = Keys::new(3, u32::MAX - 1);
        drop(keys.link_up());
        let first = fill(&mut keys);
        assert_eq!(first, [KeyId(u32::MAX - 1), KeyId(u32::MAX), KeyId(0)]);
        drop(keys.link_up());
        assert_eq!(fill(&mut keys), [KeyId(1), KeyId(2), KeyId(3)]);
    }

    #[test]
    fn numbers_run_out_rather_than_repeat() {
        let mut keys = Keys::new(3, 9);
        keys.issued = (1 << 32) - 1;
        drop(keys.link_up());
        assert_eq!(fill(&mut keys), [KeyId(8)]);
    }

    #[test]
    fn what_is_on_offer_can_be_capped() {
        let mut keys = Keys::new(100, 0);
        drop(keys.link_up());
        let order = keys.order(1000, 10).unwrap();
        assert_eq!(order.len(), 10);
        assert!(keys.order(1000, 10).is_none());
        let made = order.make().unwrap();
        keys.offer(&order, made);
        assert_eq!(keys.used(KeyId(3), Instant::now()), Used::HandedOut);
        assert_eq!(keys.order(1000, 10).unwrap().len(), 1);
    }

    #[test]
    fn an_order_for_a_lost_link_is_not_offered_on_the_next() {
        let mut keys = Keys::new(4, 0);
        drop(keys.link_up());
        let old = keys.order(4, ALL).unwrap();
        drop(keys.link_up());
        let new = keys.order(4, ALL).unwrap();
        assert!(!keys.offer(&old, old.make().unwrap()));
        assert!(keys.offer(&new, new.make().unwrap()));
        assert_eq!(keys.counts().offered, 4);
        assert!(keys.find(KeyId(0), Instant::now()).is_none());
    }

    #[test]
    fn a_key_lives_30_s_from_its_handing_out() {
        let now = Instant::now();
        let mut keys = Keys::new(2, 0);
        drop(keys.link_up());
        fill(&mut keys);
        assert_eq!(keys.used(KeyId(0), now), Used::HandedOut);
        // A second notice does not lengthen its life.
        assert_eq!(keys.used(KeyId(0), now + Duration::from_secs(20)), Used::Already);
        let last = now + KEY_LIFETIME - Duration::from_nanos(1);
        assert!(keys.find(KeyId(0), last).is_some());
        assert!(keys.find(KeyId(0), now + KEY_LIFETIME).is_none());
        assert!(!keys.pair(KeyId(0), now + KEY_LIFETIME));
        assert_eq!(keys.next_expiry(), Some(now + KEY_LIFETIME));
        assert_eq!(keys.expire(last, ALL), []);
        assert_eq!(keys.expire(now + KEY_LIFETIME, ALL), [KeyId(0)]);
        assert_eq!(keys.used(KeyId(0), now), Used::Unknown);
        assert_eq!(keys.order(9, ALL).unwrap().len(), 1);
    }

    #[test]
    fn withdrawn_keys_are_wiped_with_pauses() {
        let mut keys = Keys::new(10, 0);
        drop(keys.link_up());
        let ids = fill(&mut keys);
        let held: Vec<_> =
            ids.iter().map(|id| Arc::downgrade(&keys.find(*id, Instant::now()).unwrap())).collect();
        let left = || held.iter().filter(|key| key.strong_count() > 0).count();
        let mut seen = Vec::new();
        keys.link_lost().wipe(4, || seen.push(left()));
        assert_eq!(seen, [6, 2, 0]);
    }

    #[test]
    fn keys_that_expire_together_are_removed_a_few_at_a_time() {
        let now = Instant::now();
        let mut keys = Keys::new(10, 0);
        drop(keys.link_up());
        for id in fill(&mut keys) {
            keys.used(id, now);
        }
        assert!(keys.pair(KeyId(1), now));
        let over = now + KEY_LIFETIME;
        assert_eq!(keys.expire(over, 4).len(), 3);
        assert_eq!((keys.next_expiry(), keys.counts().handed_out), (Some(over), 6));
        assert_eq!(keys.expire(over, 4).len(), 4);
        assert_eq!(keys.expire(over, 4).len(), 2);
        assert_eq!((keys.next_expiry(), keys.counts().handed_out), (None, 0));
    }

    #[test]
    fn handed_out_keys_survive_a_lost_link() {
        let now = Instant::now();
        let mut keys = Keys::new(3, 0);
        drop(keys.link_up());
        fill(&mut keys);
        keys.used(KeyId(1), now);
        drop(keys.link_lost());
        assert!(keys.find(KeyId(0), now).is_none());
        assert!(keys.find(KeyId(1), now).is_some());
        drop(keys.link_up());
        assert_eq!(fill(&mut keys).len(), 2);
        assert!(keys.pair(KeyId(1), now));
        assert!(!keys.pair(KeyId(1), now));
    }
}
