//! The one-time keys, each of which stands for one session of the capacity (docs/protocol.md, "Life of a one-time key").
//!
//! ```text
//!            order            offer             RelayKeyUsed, or a first message opens
//! (missing) ───────▶ ordered ───────▶ offered ──────────────▶ handed out ──pair──▶ (active session)
//!     ▲                                  │                        │ KEY_LIFETIME        │ ends
//!     └────────── link lost ◀────────────┴───────── expired ◀─────┘◀────────────────────┘
//! ```
//!
//! While the link is up and all orders are filled, `offered + handed out + active = capacity`, unless the number of keys on
//! offer is limited: [`KeyTable::order`] takes a limit, because a 3.0 Router keeps at most 1 000 keys of a link, and
//! [`KeyTable::set_offer_plan`] makes the number follow the load of the machine.

pub mod snapshot;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::crypto::{CryptoError, Iv, PrivateKey, PublicKey};

use super::offer::{OfferPlan, Places};

/// How long two peers have to connect once the Router gave them a key.
pub const KEY_LIFETIME: Duration = Duration::from_secs(30);

/// The relay's number for a key. A process never uses a number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u32);

/// A one-time key. The private half leaves the relay only at a hand-over.
#[derive(Debug)]
pub struct OneTimeKey {
    /// Its number.
    pub id: KeyId,
    /// The X25519 key.
    pub private: PrivateKey,
    /// The IV of the peers' first messages.
    pub iv: Iv,
}

impl OneTimeKey {
    /// Generates a key, which costs one X25519 operation.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the system provides no randomness.
    pub fn generate(id: KeyId) -> Result<Self, CryptoError> {
        Ok(Self { id, private: PrivateKey::generate()?, iv: Iv::random()? })
    }

    /// Creates a key from its raw private half.
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`] if the private half does not have 32 bytes.
    pub fn from_raw(id: KeyId, private: &[u8], iv: Iv) -> Result<Self, CryptoError> {
        Ok(Self { id, private: PrivateKey::from_slice(private)?, iv })
    }

    /// Returns the public half, which goes to the Router.
    pub fn public(&self) -> PublicKey {
        self.private.public()
    }
}

/// Keys that are to be generated for the link that was up when they were ordered.
#[derive(Debug)]
#[must_use = "an order that is not filled keeps its share of the capacity reserved"]
pub struct KeyOrder {
    first: u32,
    count: u32,
    link: u64,
}

impl KeyOrder {
    /// Generates the keys. Call it on a thread that may be busy for a while.
    ///
    /// # Errors
    /// [`CryptoError::Provider`] if the system provides no randomness.
    pub fn generate(&self) -> Result<Vec<OneTimeKey>, CryptoError> {
        (0..self.count).map(|n| OneTimeKey::generate(KeyId(self.first.wrapping_add(n)))).collect()
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether nothing is ordered, which is never the case for an order from [`KeyTable::order`].
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What a `RelayKeyUsed` of the Router changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyUse {
    /// The key went from offered to handed out.
    HandedOut,
    /// The key was handed out before: a peer was faster than the Router's message, or the message came twice.
    AlreadyHandedOut,
    /// There is no such key: it was never offered on this link, or it is used up.
    Unknown,
}

/// How the capacity is divided among keys and sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateCounts {
    /// Keys that are being generated.
    pub ordered: usize,
    /// Keys at the Router.
    pub offered: usize,
    /// Keys that the Router has given to peers.
    pub handed_out: usize,
    /// Active sessions.
    pub active: usize,
    /// `MaxPeerCount`.
    pub capacity: usize,
}

impl StateCounts {
    /// Whether more keys are on offer than the capacity allows, for example after `MaxPeerCount` was lowered. Only a new link
    /// withdraws keys.
    pub fn has_excess_offers(&self) -> bool {
        let on_offer = self.ordered + self.offered;
        on_offer > 0 && on_offer + self.handed_out + self.active > self.capacity
    }

    /// Returns how the capacity is used.
    pub fn places(&self) -> Places {
        Places { capacity: self.capacity, used: self.handed_out + self.active }
    }
}

/// Keys that were on offer and have been withdrawn; the caller drops them.
#[derive(Debug)]
pub struct WithdrawnKeys(HashMap<KeyId, Arc<OneTimeKey>>);

impl WithdrawnKeys {
    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops the keys in batches and calls `pause` after each batch: freeing memory without a pause would keep other
    /// threads from the heap.
    pub fn wipe(self, batch: usize, mut pause: impl FnMut()) {
        let mut keys = self.0.into_values();
        while keys.by_ref().take(batch).map(drop).count() > 0 {
            pause();
        }
    }
}

#[derive(Debug)]
struct HandedOutKey {
    key: Arc<OneTimeKey>,
    expires: Instant,
}

/// All keys of the relay, and how many sessions are active. Every operation on one key costs O(1), and so does losing the link.
#[derive(Debug)]
pub struct KeyTable {
    capacity: usize,
    /// The number of the current link, if any; keys ordered for one link are not offered on another.
    link: Option<u64>,
    links: u64,
    base: u32,
    issued: u64,
    ordered: usize,
    offered: HashMap<KeyId, Arc<OneTimeKey>>,
    handed_out: HashMap<KeyId, HandedOutKey>,
    /// Handed-out keys in the order in which they expire, which is the order in which they were handed out.
    expiry: VecDeque<(Instant, KeyId)>,
    active: usize,
    /// How the keys on offer follow the load; `None` if they do not.
    offer_plan: Option<OfferPlan>,
}

impl KeyTable {
    /// Creates a table without keys for `capacity` sessions. Key numbers start at `base`, which should be random, so that two
    /// processes that share a port do not use the same numbers.
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
            offer_plan: None,
        }
    }

    /// Returns how the capacity is divided.
    pub fn counts(&self) -> StateCounts {
        StateCounts {
            ordered: self.ordered,
            offered: self.offered.len(),
            handed_out: self.handed_out.len(),
            active: self.active,
            capacity: self.capacity,
        }
    }

    /// Changes the capacity. A lower one withdraws no key that is on offer; only a new link does.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// Changes how many keys are kept on offer; `None` means one for each free place. A lower number withdraws no key.
    pub fn set_offer_plan(&mut self, plan: Option<OfferPlan>) {
        self.offer_plan = plan;
    }

    /// Notes that a link to the Router is authenticated. Returns the keys that were still on offer; see [`Self::link_lost`].
    pub fn link_up(&mut self) -> WithdrawnKeys {
        let withdrawn = self.link_lost();
        self.links += 1;
        self.link = Some(self.links);
        withdrawn
    }

    /// Notes that the link is lost, and that the Router has forgotten the keys on offer. Keys that were handed out stay valid.
    /// Returns the withdrawn keys: wiping 100 000 of them takes a while, and the caller may be holding a lock.
    pub fn link_lost(&mut self) -> WithdrawnKeys {
        self.link = None;
        self.ordered = 0;
        WithdrawnKeys(std::mem::take(&mut self.offered))
    }

    /// Orders missing keys: at most `batch` of them, and no more than keep the ordered and offered keys within `max_on_offer`
    /// and within what the plan says. Returns `None` if no key is missing, or no link is up.
    pub fn order(&mut self, batch: usize, max_on_offer: usize) -> Option<KeyOrder> {
        let link = self.link?;
        let on_offer = self.ordered + self.offered.len();
        let places = self.counts().places();
        let missing = places.free().saturating_sub(on_offer);
        let max_on_offer =
            self.offer_plan.map_or(max_on_offer, |plan| plan.target(places, max_on_offer));
        // Numbers are never used twice: a process that has issued all 2^32 of them offers no more keys.
        let unused = usize::try_from((1 << 32) - self.issued).unwrap_or(usize::MAX);
        let count = missing.min(max_on_offer.saturating_sub(on_offer)).min(batch).min(unused);
        let count = u32::try_from(count).ok().filter(|&count| count > 0)?;
        let first = self.base.wrapping_add(u32::try_from(self.issued).unwrap_or(u32::MAX));
        self.issued += u64::from(count);
        self.ordered += count as usize;
        Some(KeyOrder { first, count, link })
    }

    /// Puts the keys of an order on offer. If they were ordered for an earlier link, drops them and returns `false`.
    pub fn offer(&mut self, order: &KeyOrder, keys: Vec<OneTimeKey>) -> bool {
        if self.link != Some(order.link) {
            return false;
        }
        self.ordered -= order.len();
        self.offered.extend(keys.into_iter().map(|key| (key.id, Arc::new(key))));
        true
    }

    /// Notes that the Router gave a key to two peers, and begins the lifetime of the key.
    pub fn hand_out(&mut self, id: KeyId, now: Instant) -> KeyUse {
        if self.handed_out.contains_key(&id) {
            return KeyUse::AlreadyHandedOut;
        }
        match self.offered.remove(&id) {
            None => KeyUse::Unknown,
            Some(key) => {
                let expires = now + KEY_LIFETIME;
                self.handed_out.insert(id, HandedOutKey { key, expires });
                self.expiry.push_back((expires, id));
                KeyUse::HandedOut
            }
        }
    }

    /// Returns the key with this number, if it is valid.
    pub fn find(&self, id: KeyId, now: Instant) -> Option<Arc<OneTimeKey>> {
        match self.handed_out.get(&id) {
            Some(handed_out) => (handed_out.expires > now).then(|| handed_out.key.clone()),
            None => self.offered.get(&id).cloned(),
        }
    }

    /// Uses up a key whose two peers have arrived; its share of the capacity then belongs to a session. Changes nothing and
    /// returns `false` unless the key is handed out and still valid.
    pub fn pair(&mut self, id: KeyId, now: Instant) -> bool {
        if self.handed_out.get(&id).is_none_or(|handed_out| handed_out.expires <= now) {
            return false;
        }
        self.handed_out.remove(&id);
        self.active += 1;
        true
    }

    /// Uses up a key whose two peers may not have a session; its share of the capacity is free again.
    pub fn use_up(&mut self, id: KeyId) {
        self.handed_out.remove(&id);
    }

    /// Counts a session that was adopted and therefore has no key.
    pub fn count_adopted_session(&mut self) {
        self.active += 1;
    }

    /// Notes that a session ended, so that a key can be offered in its place.
    pub fn free_session(&mut self) {
        debug_assert!(self.active > 0, "a session ended twice");
        self.active = self.active.saturating_sub(1);
    }

    /// Removes the keys that have expired at `now` and returns their numbers. Examines at most `limit` keys;
    /// [`Self::next_expiry`] tells whether there are more.
    pub fn expire(&mut self, now: Instant, limit: usize) -> Vec<KeyId> {
        let mut expired = Vec::new();
        for _ in 0..limit {
            let Some(&(expires, id)) = self.expiry.front() else { break };
            if expires > now {
                break;
            }
            self.expiry.pop_front();
            // A key that was paired meanwhile is no longer in the table.
            if self.handed_out.remove(&id).is_some() {
                expired.push(id);
            }
        }
        expired
    }

    /// Returns when [`Self::expire`] should run next. This may be too early, because of keys that were paired.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.expiry.front().map(|&(expires, _)| expires)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = usize::MAX;

    fn fill(keys: &mut KeyTable) -> Vec<KeyId> {
        let mut ids = Vec::new();
        while let Some(order) = keys.order(7, ALL) {
            let generated = order.generate().unwrap();
            ids.extend(generated.iter().map(|key| key.id));
            assert!(keys.offer(&order, generated));
        }
        ids
    }

    #[test]
    fn no_key_is_ordered_without_a_link() {
        let mut keys = KeyTable::new(5, 0);
        assert!(keys.order(5, ALL).is_none());
        drop(keys.link_up());
        assert_eq!(fill(&mut keys).len(), 5);
        assert_eq!(keys.link_lost().len(), 5);
        assert!(keys.order(5, ALL).is_none());
    }

    #[test]
    fn key_numbers_continue_across_links_and_wrap_around() {
        let mut keys = KeyTable::new(3, u32::MAX - 1);
        drop(keys.link_up());
        let first = fill(&mut keys);
        assert_eq!(first, [KeyId(u32::MAX - 1), KeyId(u32::MAX), KeyId(0)]);
        drop(keys.link_up());
        assert_eq!(fill(&mut keys), [KeyId(1), KeyId(2), KeyId(3)]);
    }

    #[test]
    fn key_numbers_run_out_rather_than_repeat() {
        let mut keys = KeyTable::new(3, 9);
        keys.issued = (1 << 32) - 1;
        drop(keys.link_up());
        assert_eq!(fill(&mut keys), [KeyId(8)]);
    }

    #[test]
    fn number_of_keys_on_offer_can_be_limited() {
        let mut keys = KeyTable::new(100, 0);
        drop(keys.link_up());
        let order = keys.order(1000, 10).unwrap();
        assert_eq!(order.len(), 10);
        assert!(keys.order(1000, 10).is_none());
        let generated = order.generate().unwrap();
        keys.offer(&order, generated);
        assert_eq!(keys.hand_out(KeyId(3), Instant::now()), KeyUse::HandedOut);
        assert_eq!(keys.order(1000, 10).unwrap().len(), 1);
    }

    #[test]
    fn keys_ordered_for_a_lost_link_are_not_offered_on_the_next() {
        let mut keys = KeyTable::new(4, 0);
        drop(keys.link_up());
        let old = keys.order(4, ALL).unwrap();
        drop(keys.link_up());
        let new = keys.order(4, ALL).unwrap();
        assert!(!keys.offer(&old, old.generate().unwrap()));
        assert!(keys.offer(&new, new.generate().unwrap()));
        assert_eq!(keys.counts().offered, 4);
        assert!(keys.find(KeyId(0), Instant::now()).is_none());
    }

    #[test]
    fn key_expires_one_lifetime_after_it_was_handed_out() {
        let now = Instant::now();
        let mut keys = KeyTable::new(2, 0);
        drop(keys.link_up());
        fill(&mut keys);
        assert_eq!(keys.hand_out(KeyId(0), now), KeyUse::HandedOut);
        // A second notice does not lengthen its life.
        assert_eq!(
            keys.hand_out(KeyId(0), now + Duration::from_secs(20)),
            KeyUse::AlreadyHandedOut
        );
        let last = now + KEY_LIFETIME - Duration::from_nanos(1);
        assert!(keys.find(KeyId(0), last).is_some());
        assert!(keys.find(KeyId(0), now + KEY_LIFETIME).is_none());
        assert!(!keys.pair(KeyId(0), now + KEY_LIFETIME));
        assert_eq!(keys.next_expiry(), Some(now + KEY_LIFETIME));
        assert_eq!(keys.expire(last, ALL), []);
        assert_eq!(keys.expire(now + KEY_LIFETIME, ALL), [KeyId(0)]);
        assert_eq!(keys.hand_out(KeyId(0), now), KeyUse::Unknown);
        assert_eq!(keys.order(9, ALL).unwrap().len(), 1);
    }

    #[test]
    fn withdrawn_keys_are_wiped_in_batches_with_pauses() {
        let mut keys = KeyTable::new(10, 0);
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
    fn keys_that_expire_together_are_removed_in_batches() {
        let now = Instant::now();
        let mut keys = KeyTable::new(10, 0);
        drop(keys.link_up());
        for id in fill(&mut keys) {
            keys.hand_out(id, now);
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
        let mut keys = KeyTable::new(3, 0);
        drop(keys.link_up());
        fill(&mut keys);
        keys.hand_out(KeyId(1), now);
        drop(keys.link_lost());
        assert!(keys.find(KeyId(0), now).is_none());
        assert!(keys.find(KeyId(1), now).is_some());
        drop(keys.link_up());
        assert_eq!(fill(&mut keys).len(), 2);
        assert!(keys.pair(KeyId(1), now));
        assert!(!keys.pair(KeyId(1), now));
    }
}
