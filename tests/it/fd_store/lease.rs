//! Who owns the store: one relay at a time, until it hands over or no longer exists.

use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use aspia_relay::fd_store::client::{Acquired, StoreChange, StoreClient};
use aspia_relay::fd_store::error::StoreError;
use aspia_relay::fd_store::owner::OwnerId;

use super::{FOREVER, LocalStore, PATIENCE, connection, nothing, put};

#[test]
fn second_relay_is_told_who_owns_the_store() {
    let store = LocalStore::start(None, FOREVER);
    let id = OwnerId::generate().unwrap();
    let (first, _) = store.owner(&id);
    let (mut second, other) = (store.client(), OwnerId::generate().unwrap());
    let error = second.acquire(&other, Duration::from_millis(1)).unwrap_err();
    let StoreError::Owned(owner) = &error else { panic!("{error}") };
    assert_eq!((owner.process, owner.is_connected), (Some(std::process::id()), true));
    assert!(error.is_refusal() && error.to_string().contains("process"), "{error}");
    // It may look, and ask again.
    assert!(second.status().unwrap().owner.is_some());
    assert!(matches!(second.take(), Err(StoreError::NotOwner)));
    assert!(matches!(second.apply(&[put("a", "", &[])]), Err(StoreError::NotOwner)));
    assert!(matches!(second.clear(), Err(StoreError::NotOwner)));
    assert!(matches!(second.commit(), Err(StoreError::NotOwner)));
    drop((first, id));
    assert_eq!(second.acquire(&other, PATIENCE).unwrap().entries, 0);
}

#[test]
fn relays_that_put_nothing_do_not_keep_sessions_waiting_for_ever() {
    let store = LocalStore::start(None, FOREVER);
    let expires_in = || {
        store.wait_for(|status| status.owner.is_none());
        StoreClient::query_status(&store.address, PATIENCE).unwrap().expires_in.unwrap()
    };
    let (mut first, _) = store.owner(&OwnerId::generate().unwrap());
    first.apply(&[put("a", "1", &[]), put("b", "2", &[])]).unwrap();
    first.commit().unwrap();
    drop(first);
    let mut before = expires_in();
    // They take what is there, delete what they cannot use, and fail before they run.
    for deletes in [false, true, false] {
        let (mut next, acquired) = store.owner(&OwnerId::generate().unwrap());
        assert!(acquired.entries > 0);
        next.take().unwrap();
        if deletes {
            next.apply(&[StoreChange::Delete { key: b"a".to_vec() }]).unwrap();
        }
        drop(next);
        let after = expires_in();
        assert!(after <= before, "{after:?} after {before:?}");
        before = after;
    }
}

#[test]
fn waiting_relay_gets_the_store_at_the_hand_over() {
    let store = LocalStore::start(None, FOREVER);
    let id = OwnerId::generate().unwrap();
    let (mut first, _) = store.owner(&id);
    first.apply(&[put("a", "1", &[])]).unwrap();
    let mut second = store.client();
    let waiting = thread::spawn(move || {
        let acquired = second.acquire(&OwnerId::generate().unwrap(), PATIENCE);
        (second, acquired.unwrap())
    });
    // The first relay still exists, and is connected.
    first.commit().unwrap();
    let (mut second, acquired) = waiting.join().unwrap();
    assert_eq!(acquired, Acquired { entries: 1, was_committed: true, is_own: false });
    assert_eq!(second.take().unwrap().len(), 1);
    assert!(matches!(first.apply(&[put("b", "", &[])]), Err(StoreError::NotOwner)));
}

#[test]
fn relay_that_lost_contact_remains_the_owner_while_it_exists() {
    let store = LocalStore::start(None, FOREVER);
    let id = OwnerId::generate().unwrap();
    let (mut first, _) = store.owner(&id);
    first.apply(&[put("a", "1", &[])]).unwrap();
    drop(first);
    store.wait_for(|status| status.owner.is_some_and(|owner| !owner.is_connected));
    let (mut second, other) = (store.client(), OwnerId::generate().unwrap());
    let error = second.acquire(&other, Duration::from_millis(1)).unwrap_err();
    assert!(matches!(&error, StoreError::Owned(owner) if !owner.is_connected), "{error}");
    let (first, acquired) = store.owner(&id);
    assert_eq!(acquired, Acquired { entries: 1, was_committed: false, is_own: true });
    // Now it ends without a word, as after a crash.
    drop((first, id));
    let acquired = second.acquire(&other, PATIENCE).unwrap();
    assert_eq!(acquired, Acquired { entries: 1, was_committed: false, is_own: false });
}

#[test]
fn connecting_again_replaces_the_old_connection() {
    let store = LocalStore::start(None, FOREVER);
    let id = OwnerId::generate().unwrap();
    let (mut old, _) = store.owner(&id);
    old.apply(&[put("a", "1", &[])]).unwrap();
    let (mut new, acquired) = store.owner(&id);
    assert!(acquired.is_own);
    assert!(matches!(old.take(), Err(StoreError::Closed)));
    assert_eq!(new.take().unwrap().len(), 1);
}

#[test]
fn relay_that_lost_contact_for_long_keeps_its_connections() {
    let store = LocalStore::start(None, Duration::from_millis(200));
    let (peer, socket) = connection();
    let id = OwnerId::generate().unwrap();
    let (mut client, _) = store.owner(&id);
    client.apply(&[put("s1", "", &[socket.as_fd()])]).unwrap();
    drop(client);
    store.wait_for(|status| status.entries == 0 && status.owner.is_none());
    // The store has closed its duplicate and not shut the connection down.
    std::io::Write::write_all(&mut &socket, b"on").unwrap();
    std::io::Read::read_exact(&mut &peer, &mut [0; 2]).unwrap();
    let (_, acquired) = store.owner(&id);
    assert_eq!(acquired, Acquired { entries: 0, was_committed: false, is_own: false });
}

#[test]
fn commit_holds_until_the_next_owner_changes_something() {
    let store = LocalStore::start(None, FOREVER);
    let id = OwnerId::generate().unwrap();
    let (mut client, _) = store.owner(&id);
    let descriptor = nothing();
    client.apply(&[put("a", "1", &[descriptor.as_fd()])]).unwrap();
    client.commit().unwrap();
    for _ in 0..2 {
        let (mut client, acquired) = store.owner(&OwnerId::generate().unwrap());
        assert!(acquired.was_committed && !acquired.is_own);
        assert_eq!(client.take().unwrap().len(), 1);
    }
    let (mut client, _) = store.owner(&OwnerId::generate().unwrap());
    client.apply(&[put("b", "2", &[])]).unwrap();
    drop(client);
    let (_, acquired) = store.owner(&OwnerId::generate().unwrap());
    assert_eq!(acquired, Acquired { entries: 2, was_committed: false, is_own: false });
}

/// A relay that does not know that its commit has arrived goes on, and what it had committed is soon no longer true.
#[test]
fn commit_without_release_does_not_count_once_the_relay_has_died() {
    let store = LocalStore::start(None, FOREVER);
    let (client, id) = {
        let id = OwnerId::generate().unwrap();
        let (mut client, _) = store.owner(&id);
        client.apply(&[put("a", "1", &[])]).unwrap();
        client.commit_without_release().unwrap();
        (client, id)
    };
    drop((client, id));
    let (_, acquired) = store.owner(&OwnerId::generate().unwrap());
    assert_eq!(acquired, Acquired { entries: 1, was_committed: false, is_own: false });
}
