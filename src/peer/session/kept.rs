//! The sessions whose sockets a store outside of this process keeps, so that they outlive the process.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use socket2::SockRef;

use crate::forward::Sockets;
use crate::forward::balance::Balances;
use crate::state::sessions::{Session, SessionId};
use crate::trace::session::SessionTrace;

/// A session that has begun, with duplicates of its sockets.
#[derive(Debug)]
pub struct KeptSession {
    /// The session.
    pub session: Arc<Session>,
    /// Duplicates of the sockets of its peers, in the order in which they arrived. Nobody may read from or write to them.
    pub sockets: [TcpStream; 2],
    /// Its balances, if the kernel reports them.
    pub balances: Option<Balances>,
    /// The context of its trace, as in the header `traceparent`. `None` if traces are off.
    pub traceparent: Option<String>,
}

/// What has changed since the last look.
#[derive(Debug, Default)]
pub struct KeptChanges {
    /// Sessions that have ended and may still be in the store. They come before those that have begun.
    pub ended: Vec<SessionId>,
    /// Sessions that have begun.
    pub begun: Vec<KeptSession>,
    /// Whether more have begun than were asked for.
    pub has_more: bool,
    /// Whether none that has begun is missing here. One that moves from one thread to another comes later.
    pub is_complete: bool,
}

/// The sessions that a store should keep. Session tasks report to it, and the keeper of the store takes the changes from it.
/// Cheap to clone. By default there is no store, and nothing is reported.
///
/// A session that begins and ends between two looks leaves nothing behind. There is never more than one entry for an active
/// session, and one for each session that has ended and is in the store.
#[derive(Debug, Clone, Default)]
pub struct KeptSessions(Option<Arc<KeptTable>>);

#[derive(Debug, Default)]
struct KeptTable {
    slots: Mutex<KeptSlots>,
    /// Whether the store keeps everything as it is.
    is_frozen: AtomicBool,
}

/// Slots are boxed, since the nodes of a map have room for more entries than there are.
#[derive(Debug, Default)]
struct KeptSlots {
    /// Sessions that the store is to get.
    new: BTreeMap<SessionId, Box<KeptSlot>>,
    /// Sessions that the store has, or is about to get.
    known: BTreeMap<SessionId, Box<KeptSlot>>,
    /// Sessions that the store has to delete.
    ended: Vec<SessionId>,
}

#[derive(Debug)]
struct KeptSlot {
    session: Arc<Session>,
    /// Weak, so that the session can leave its thread. Dead while it moves from one thread to another.
    sockets: Weak<Sockets>,
    balances: Option<Balances>,
    traceparent: Option<Box<str>>,
    /// Whether the store may have the sockets, so that closing them here does not end their connections.
    is_stored: bool,
}

/// What the table knew about a session that is detached.
#[derive(Debug, Default)]
pub(super) struct KeptFacts {
    pub(super) balances: Option<Balances>,
    pub(super) is_stored: bool,
}

impl KeptSlots {
    fn slot(&mut self, id: SessionId) -> Option<&mut Box<KeptSlot>> {
        self.new.get_mut(&id).or_else(|| self.known.get_mut(&id))
    }

    fn remove(&mut self, id: SessionId) -> Option<Box<KeptSlot>> {
        self.new.remove(&id).or_else(|| self.known.remove(&id))
    }
}

impl KeptSessions {
    /// Creates a table of the sessions that a store keeps.
    pub fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// Takes the changes since the last look, with at most `limit` sessions that have begun. Their sockets are duplicated only
    /// now, since most sessions end before the next look.
    pub fn take_changes(&self, limit: usize) -> KeptChanges {
        let Some(table) = &self.0 else {
            return KeptChanges::default();
        };
        let (ended, ids, has_more) = {
            let mut slots = table.slots.lock();
            let ids: Vec<_> = slots.new.keys().copied().take(limit).collect();
            (std::mem::take(&mut slots.ended), ids, slots.new.len() > limit)
        };
        let count = ids.len();
        let begun: Vec<_> = ids.into_iter().filter_map(|id| table.take_new(id)).collect();
        let is_complete = !has_more && begun.len() == count;
        KeptChanges { ended, begun, has_more, is_complete }
    }

    /// Reports all sessions again as having begun. Those that have ended are not reported any more: who asks for this knows what
    /// the store has. `has_none` says that it has none of these sessions.
    pub fn report_all_again(&self, has_none: bool) {
        if let Some(table) = &self.0 {
            let slots = &mut *table.slots.lock();
            slots.new.append(&mut slots.known);
            slots.ended.clear();
            if has_none {
                slots.new.values_mut().for_each(|slot| slot.is_stored = false);
            }
        }
    }

    /// Leaves everything in the store as it is: from now on, sessions that end do so only for this process, because it has
    /// failed or because another one has taken them over.
    pub fn freeze(&self) {
        if let Some(table) = &self.0 {
            table.is_frozen.store(true, Ordering::Relaxed);
        }
    }

    /// Takes the balances of a session that begins, while nothing has been read from its sockets. `None` if the session is known
    /// already, or there is no store.
    pub(super) fn take_balances(
        &self,
        session: &Session,
        sockets: &[TcpStream; 2],
    ) -> Option<Balances> {
        let is_known = self.0.as_ref()?.slots.lock().slot(session.id).is_some();
        if is_known {
            None
        } else {
            Balances::take(sockets, [0, 0], session.traffic.bytes_from_each())
        }
    }

    /// Reports a session that begins on a thread, perhaps after it has moved there from another one. The part after a crash
    /// refers to `trace`.
    pub(super) fn begin(
        &self,
        session: &Arc<Session>,
        sockets: &Arc<Sockets>,
        balances: Option<Balances>,
        trace: &SessionTrace,
    ) {
        if let Some(table) = &self.0 {
            let (sockets, mut slots) = (Arc::downgrade(sockets), table.slots.lock());
            let id = session.id;
            match slots.slot(id) {
                Some(slot) => slot.sockets = sockets,
                None => {
                    let (session, traceparent) = (session.clone(), trace.traceparent());
                    let is_stored = false;
                    let traceparent = traceparent.map(String::into_boxed_str);
                    let slot =
                        Box::new(KeptSlot { session, sockets, balances, traceparent, is_stored });
                    slots.new.insert(id, slot);
                }
            }
        }
    }

    /// Reports a session that was detached and continues here, before it begins. If the store has it, it is not put there again:
    /// its note is still true. `number` is the number of the session in the store.
    pub(super) fn adopt(
        &self,
        session: &Arc<Session>,
        number: SessionId,
        balances: impl FnOnce() -> Option<Balances>,
        is_stored: bool,
        trace: &SessionTrace,
    ) {
        if let Some(table) = &self.0 {
            let (session, sockets) = (session.clone(), Weak::new());
            let id = session.id;
            let (balances, traceparent) = (balances(), trace.traceparent());
            let mut slots = table.slots.lock();
            let is_renumbered = id != number;
            if is_stored && is_renumbered {
                slots.ended.push(number);
            }
            let traceparent = traceparent.map(String::into_boxed_str);
            let slot = Box::new(KeptSlot { session, sockets, balances, traceparent, is_stored });
            let slots = if is_stored && !is_renumbered { &mut slots.known } else { &mut slots.new };
            slots.insert(id, slot);
        }
    }

    /// Reports a session that ends. Returns whether the store may have its sockets, so that they must be shut down: closing them
    /// would not end the connections.
    pub(super) fn end(&self, id: SessionId) -> bool {
        let Some(table) = &self.0 else {
            return false;
        };
        if table.is_frozen.load(Ordering::Relaxed) {
            return false;
        }
        let mut slots = table.slots.lock();
        let is_stored = slots.remove(id).is_some_and(|slot| slot.is_stored);
        if is_stored {
            slots.ended.push(id);
        }
        is_stored
    }

    /// Whether the store has a session.
    pub(super) fn is_stored(&self, id: SessionId) -> bool {
        self.0.as_ref().is_some_and(|table| table.slots.lock().known.contains_key(&id))
    }

    /// Whether a session that ends here goes on in another process, since the store leaves everything as it is.
    pub(super) fn outlives_process(&self, id: SessionId) -> bool {
        let is_frozen = |table: &Arc<KeptTable>| table.is_frozen.load(Ordering::Relaxed);
        self.0.as_ref().is_some_and(is_frozen) && self.is_stored(id)
    }

    /// Forgets a session that is detached. The store keeps it.
    pub(super) fn detach(&self, id: SessionId) -> KeptFacts {
        let Some(table) = &self.0 else {
            return KeptFacts::default();
        };
        let mut slots = table.slots.lock();
        let slot = slots.remove(id);
        slot.map_or_else(KeptFacts::default, |slot| KeptFacts {
            balances: slot.balances,
            is_stored: slot.is_stored,
        })
    }
}

impl KeptTable {
    /// Takes a session that no look has found yet. It stays, for the next look, if it is moving to another thread or no
    /// descriptor is left.
    fn take_new(&self, id: SessionId) -> Option<KeptSession> {
        let (session, sockets, balances, traceparent, was_stored) = {
            let mut slots = self.slots.lock();
            let sockets = slots.new.get(&id)?.sockets.upgrade()?;
            let mut slot = slots.new.remove(&id)?;
            // From now on, the end of the session shuts its sockets down.
            let was_stored = std::mem::replace(&mut slot.is_stored, true);
            let traceparent = slot.traceparent.as_deref().map(str::to_owned);
            let session = slot.session.clone();
            let balances = slot.balances;
            slots.known.insert(id, slot);
            (session, sockets, balances, traceparent, was_stored)
        };
        // The sockets are held only for these two calls: a session that wants to leave its thread waits for that.
        let duplicates =
            sockets.each_ref().map(|socket| SockRef::from(socket).try_clone().map(TcpStream::from));
        drop(sockets);
        let [Ok(first), Ok(second)] = duplicates else {
            let mut slots = self.slots.lock();
            if let Some(mut slot) = slots.known.remove(&id) {
                slot.is_stored = was_stored;
                slots.new.insert(id, slot);
            }
            return None;
        };
        Some(KeptSession { session, sockets: [first, second], balances, traceparent })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::time::Instant;

    use super::*;
    use crate::state::sessions::{PeerIdentity, SessionTable};
    use relay_lab::sockets::connected_pair;

    /// Sessions whose sockets exist.
    struct Fixture {
        table: SessionTable,
        kept: KeptSessions,
        sockets: Arc<Sockets>,
        _peers: [tokio::net::TcpStream; 2],
    }

    impl Fixture {
        async fn new(kept: KeptSessions) -> Self {
            let (first, peer) = connected_pair().await.unwrap();
            let (second, partner) = connected_pair().await.unwrap();
            let (sockets, table) = (Arc::new([first, second]), SessionTable::default());
            Self { table, kept, sockets, _peers: [peer, partner] }
        }

        fn begin(&mut self) -> Arc<Session> {
            let addresses: [SocketAddr; 2] = [([127, 0, 0, 1], 1).into(); 2];
            let session = self.table.start(PeerIdentity::default(), addresses, Instant::now());
            self.kept.begin(&session, &self.sockets, None, &SessionTrace::default());
            session
        }

        fn look(&self) -> (Vec<u64>, Vec<u64>) {
            let KeptChanges { ended, begun, .. } = self.kept.take_changes(100);
            let begun = begun.iter().map(|session| session.session.id.0).collect();
            (ended.iter().map(|id| id.0).collect(), begun)
        }
    }

    #[tokio::test]
    async fn short_session_leaves_nothing() {
        let mut fixture = Fixture::new(KeptSessions::new()).await;
        for _ in 0..1000 {
            let session = fixture.begin();
            assert!(!fixture.kept.end(session.id));
        }
        let long = fixture.begin();
        assert_eq!(fixture.look(), (vec![], vec![1001]));
        assert_eq!(fixture.look(), (vec![], vec![]));
        assert!(fixture.kept.end(long.id));
        // It ends only once.
        assert!(!fixture.kept.end(long.id));
        assert_eq!(fixture.look(), (vec![1001], vec![]));
        let slots = fixture.kept.0.as_ref().unwrap().slots.lock();
        assert_eq!(slots.new.len() + slots.known.len() + slots.ended.len(), 0);
    }

    #[tokio::test]
    async fn without_a_store_nothing_is_reported() {
        let mut fixture = Fixture::new(KeptSessions::default()).await;
        let session = fixture.begin();
        assert!(!fixture.kept.end(session.id));
        fixture.kept.report_all_again(true);
        assert_eq!(fixture.look(), (vec![], vec![]));
        assert_eq!(Arc::weak_count(&fixture.sockets), 0);
    }

    #[tokio::test]
    async fn session_that_is_reported_again_still_has_its_sockets_in_the_store() {
        let mut fixture = Fixture::new(KeptSessions::new()).await;
        let sessions = [fixture.begin(), fixture.begin(), fixture.begin()];
        assert_eq!(fixture.look(), (vec![], vec![1, 2, 3]));
        fixture.kept.report_all_again(false);
        assert!(fixture.kept.end(sessions[0].id));
        assert_eq!(fixture.look(), (vec![1], vec![2, 3]));
        assert!(fixture.kept.end(sessions[1].id));
        // What has ended is of no interest to a store that is empty.
        fixture.kept.report_all_again(true);
        assert!(!fixture.kept.end(sessions[2].id));
        assert_eq!(fixture.look(), (vec![], vec![]));
    }

    #[tokio::test]
    async fn session_that_moves_between_threads_is_found_later() {
        let mut fixture = Fixture::new(KeptSessions::new()).await;
        let session = fixture.begin();
        let sockets = std::mem::replace(
            &mut fixture.sockets,
            Fixture::new(KeptSessions::default()).await.sockets,
        );
        drop(sockets);
        assert_eq!(fixture.look(), (vec![], vec![]));
        fixture.kept.begin(&session, &fixture.sockets, None, &SessionTrace::default());
        assert_eq!(fixture.look(), (vec![], vec![1]));
    }

    #[tokio::test]
    async fn session_that_gets_another_number_is_deleted_under_the_old_one() {
        let mut fixture = Fixture::new(KeptSessions::new()).await;
        let session = fixture.begin();
        assert!(!fixture.kept.detach(session.id).is_stored);
        fixture.kept.adopt(&session, SessionId(9), || None, true, &SessionTrace::default());
        fixture.kept.begin(&session, &fixture.sockets, None, &SessionTrace::default());
        assert_eq!(fixture.look(), (vec![9], vec![1]));
    }
}
