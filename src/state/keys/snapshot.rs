//! The keys as plain data, so that another process can continue with them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{HandedOutKey, KEY_LIFETIME, KeyId, KeyTable, OneTimeKey};

/// A key that the Router has given to peers, and how much longer it is valid.
#[derive(Debug, Clone)]
pub struct HandedOutSnapshot {
    /// The key.
    pub key: Arc<OneTimeKey>,
    /// How much longer it is valid, in running time ([`crate::state::pauses`]).
    pub remaining: Duration,
}

/// Which key numbers were issued. A process that continues with it never uses one of them again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyNumbering {
    /// The first number.
    pub base: u32,
    /// How many numbers were issued.
    pub issued: u64,
}

/// Numbers that are this close to the number of a restored key are not issued. A restored key lives for [`KEY_LIFETIME`] at
/// most, in which a relay cannot issue that many.
const NUMBERS_IN_A_LIFETIME: u32 = 1 << 24;

impl KeyTable {
    /// Notes that another process may continue with the link: the keys stay on offer. Keys that were ordered and are not on
    /// offer yet are no longer ordered.
    pub fn suspend_link(&mut self) {
        self.link = None;
        self.ordered = 0;
    }

    /// Notes that a link is up whose Router knows the keys on offer, because another process offered them on it, or this one
    /// before it was suspended.
    pub fn resume_link(&mut self) {
        self.links += 1;
        self.link = Some(self.links);
        self.ordered = 0;
    }

    /// Returns the keys on offer.
    pub fn offered_keys(&self) -> Vec<Arc<OneTimeKey>> {
        self.offered.values().cloned().collect()
    }

    /// Returns the keys that were handed out and are valid at `now`.
    pub fn handed_out_keys(&self, now: Instant) -> Vec<HandedOutSnapshot> {
        let valid = self.handed_out.values().filter(|handed_out| handed_out.expires > now);
        let snapshot = |handed_out: &HandedOutKey| HandedOutSnapshot {
            key: handed_out.key.clone(),
            remaining: handed_out.expires - now,
        };
        valid.map(snapshot).collect()
    }

    /// Puts keys on offer that another process offered on a link that is resumed later. The number of keys may exceed the
    /// capacity, which [`super::StateCounts::has_excess_offers`] then tells.
    pub fn restore_offered(&mut self, keys: Vec<OneTimeKey>) {
        let is_new = |key: &OneTimeKey| !self.handed_out.contains_key(&key.id);
        let keys: Vec<_> = keys.into_iter().filter(is_new).collect();
        self.offered.extend(keys.into_iter().map(|key| (key.id, Arc::new(key))));
    }

    /// Restores keys that another process handed out; `now` is the time from which they live on.
    pub fn restore_handed_out(&mut self, keys: Vec<HandedOutSnapshot>, now: Instant) {
        for HandedOutSnapshot { key, remaining } in keys {
            let id = key.id;
            self.skip_numbers_up_to(id);
            self.offered.remove(&id);
            let expires = now + remaining.min(KEY_LIFETIME);
            if self.handed_out.insert(id, HandedOutKey { key, expires }).is_none() {
                self.expiry.push_back((expires, id));
            }
        }
        self.expiry.make_contiguous().sort_unstable_by_key(|(expires, _)| *expires);
    }

    /// Makes sure that a key that is issued soon does not get the number of a restored one. That can happen only if the other
    /// process issued numbers that its last snapshot does not tell of.
    fn skip_numbers_up_to(&mut self, id: KeyId) {
        let next = self.numbering().next();
        let ahead = id.0.wrapping_sub(next);
        if ahead < NUMBERS_IN_A_LIFETIME {
            self.issued = (self.issued + u64::from(ahead) + 1).min(1 << 32);
        }
    }

    /// Returns which key numbers were issued.
    pub fn numbering(&self) -> KeyNumbering {
        KeyNumbering { base: self.base, issued: self.issued }
    }

    /// Continues with the key numbers of another process. Must come before any key is ordered or restored.
    pub fn restore_numbering(&mut self, numbering: KeyNumbering) {
        self.base = numbering.base;
        self.issued = numbering.issued.min(1 << 32);
    }
}

impl KeyNumbering {
    /// The number that is issued next.
    fn next(self) -> u32 {
        // The numbers wrap around, so only the low 32 bits count.
        let issued = u32::try_from(self.issued & u64::from(u32::MAX)).unwrap_or_default();
        self.base.wrapping_add(issued)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::keys::KeyUse;

    const ALL: usize = usize::MAX;

    fn copy(key: &OneTimeKey) -> OneTimeKey {
        let private = key.private.to_secret().unwrap();
        OneTimeKey::from_raw(key.id, private.expose(), key.iv).unwrap()
    }

    /// Returns another table that continues with the keys of this one, as another process would.
    fn restored(table: &KeyTable, now: Instant, capacity: usize) -> KeyTable {
        let mut other = KeyTable::new(capacity, 77);
        other.restore_numbering(table.numbering());
        let raw = |snapshot: &HandedOutSnapshot| HandedOutSnapshot {
            key: Arc::new(copy(&snapshot.key)),
            remaining: snapshot.remaining,
        };
        other.restore_handed_out(table.handed_out_keys(now).iter().map(raw).collect(), now);
        other.restore_offered(table.offered_keys().iter().map(|key| copy(key)).collect());
        (0..table.counts().active).for_each(|_| other.count_adopted_session());
        if table.link.is_some() {
            other.resume_link();
        }
        other
    }

    #[derive(Debug, Clone)]
    enum Event {
        LinkUp,
        LinkLost,
        Fill { batch: usize, on_offer: usize },
        Capacity(usize),
        Use(u32),
        Pair(u32),
        Free,
        Pass(u64),
        Expire,
        Continue,
    }

    fn event() -> impl Strategy<Value = Event> {
        let limit = prop_oneof![Just(ALL), 0usize..9];
        prop_oneof![
            1 => Just(Event::LinkUp),
            1 => Just(Event::LinkLost),
            6 => (1usize..6, limit).prop_map(|(batch, on_offer)| Event::Fill { batch, on_offer }),
            1 => (1usize..9).prop_map(Event::Capacity),
            6 => (0u32..40).prop_map(Event::Use),
            4 => (0u32..40).prop_map(Event::Pair),
            3 => Just(Event::Free),
            3 => (1u64..20_000).prop_map(Event::Pass),
            2 => Just(Event::Expire),
            4 => Just(Event::Continue),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// One table goes on, the other is replaced again and again by one that continues with its keys.
        #[test]
        fn table_that_is_restored_at_any_time_behaves_like_one_that_goes_on(
            base in prop_oneof![Just(0u32), Just(u32::MAX - 5), any::<u32>()],
            events in proptest::collection::vec(event(), 1..100),
        ) {
            let mut now = Instant::now();
            let (mut one, mut other) = (KeyTable::new(5, base), KeyTable::new(5, base));
            for event in events {
                match event {
                    Event::LinkUp => {
                        prop_assert_eq!(one.link_up().len(), other.link_up().len());
                    }
                    Event::LinkLost => {
                        prop_assert_eq!(one.link_lost().len(), other.link_lost().len());
                    }
                    Event::Fill { batch, on_offer } => {
                        let orders = (one.order(batch, on_offer), other.order(batch, on_offer));
                        if let (Some(order), Some(same)) = orders {
                            prop_assert_eq!((order.first, order.count), (same.first, same.count));
                            let keys = order.generate().unwrap();
                            prop_assert!(other.offer(&same, keys.iter().map(copy).collect()));
                            prop_assert!(one.offer(&order, keys));
                        } else {
                            prop_assert_eq!(one.counts(), other.counts());
                        }
                    }
                    Event::Capacity(capacity) => {
                        one.set_capacity(capacity);
                        other.set_capacity(capacity);
                    }
                    Event::Use(number) => {
                        let id = KeyId(base.wrapping_add(number));
                        prop_assert_eq!(one.hand_out(id, now), other.hand_out(id, now));
                    }
                    Event::Pair(number) => {
                        let id = KeyId(base.wrapping_add(number));
                        prop_assert_eq!(one.pair(id, now), other.pair(id, now));
                    }
                    Event::Free if one.counts().active > 0 => {
                        one.free_session();
                        other.free_session();
                    }
                    Event::Free => {}
                    Event::Pass(milliseconds) => now += Duration::from_millis(milliseconds),
                    Event::Expire => {
                        let sorted = |mut ids: Vec<KeyId>| {
                            ids.sort_unstable();
                            ids
                        };
                        prop_assert_eq!(
                            sorted(one.expire(now, ALL)),
                            sorted(other.expire(now, ALL))
                        );
                    }
                    Event::Continue => {
                        // An expired key that has not been removed yet is not restored.
                        one.expire(now, ALL);
                        let capacity = other.counts().capacity;
                        other = restored(&other, now, capacity);
                    }
                }
                prop_assert_eq!(one.counts(), other.counts());
                for number in 0..40 {
                    let id = KeyId(base.wrapping_add(number));
                    let public = |table: &KeyTable| {
                        table.find(id, now).map(|key| (key.public(), key.iv))
                    };
                    prop_assert_eq!(public(&one), public(&other));
                }
            }
        }
    }

    fn filled(capacity: usize, base: u32) -> KeyTable {
        let mut table = KeyTable::new(capacity, base);
        drop(table.link_up());
        let order = table.order(ALL, ALL).unwrap();
        let keys = order.generate().unwrap();
        assert!(table.offer(&order, keys));
        table
    }

    #[test]
    fn restored_keys_count_against_another_capacity() {
        let now = Instant::now();
        let mut table = filled(6, 0);
        assert_eq!(table.hand_out(KeyId(0), now), KeyUse::HandedOut);
        let mut higher = restored(&table, now, 10);
        assert_eq!(higher.order(ALL, ALL).unwrap().len(), 4);
        assert!(!higher.counts().has_excess_offers());
        let mut lower = restored(&table, now, 3);
        assert!(lower.counts().has_excess_offers());
        assert!(lower.order(ALL, ALL).is_none());
        // A new link withdraws them, and offers as many as there is capacity for.
        assert_eq!(lower.link_up().len(), 5);
        assert_eq!(lower.order(ALL, ALL).unwrap().len(), 2);
    }

    #[test]
    fn keys_that_were_only_ordered_are_ordered_again() {
        let mut table = filled(3, 0);
        table.set_capacity(5);
        let order = table.order(ALL, ALL).unwrap();
        table.suspend_link();
        table.resume_link();
        assert!(!table.offer(&order, order.generate().unwrap()));
        let again = table.order(ALL, ALL).unwrap();
        assert_eq!((again.len(), again.first), (2, 5));
        assert_eq!(table.counts().offered, 3);
    }

    #[test]
    fn restored_keys_expire_in_order_and_never_live_longer_than_a_new_one() {
        let now = Instant::now();
        let key = |number| Arc::new(OneTimeKey::generate(KeyId(number)).unwrap());
        let mut table = KeyTable::new(9, 1000);
        let restore = [(1, 20), (2, 5), (3, 900)].map(|(number, seconds)| HandedOutSnapshot {
            key: key(number),
            remaining: Duration::from_secs(seconds),
        });
        table.restore_handed_out(restore.to_vec(), now);
        let expired =
            |table: &mut KeyTable, seconds| table.expire(now + Duration::from_secs(seconds), ALL);
        assert_eq!(expired(&mut table, 6), [KeyId(2)]);
        assert_eq!(expired(&mut table, 30), [KeyId(1), KeyId(3)]);
        assert_eq!(table.next_expiry(), None);
    }

    #[test]
    fn number_of_a_restored_key_is_not_issued_again_even_if_the_numbering_is_out_of_date() {
        let now = Instant::now();
        let mut before = filled(10, 5);
        before.hand_out(KeyId(14), now);
        let mut after = KeyTable::new(3, 0);
        after.restore_numbering(KeyNumbering { base: 5, issued: 2 });
        after.restore_handed_out(before.handed_out_keys(now), now);
        drop(after.link_up());
        assert_eq!(after.order(ALL, ALL).unwrap().first, 15);
    }
}
