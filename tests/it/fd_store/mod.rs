//! The descriptor store: what it keeps and for how long, through its client, with the store in this process.
#![cfg(target_os = "linux")]

mod expired;
mod hostile;
mod lease;
mod program;
mod security;
mod socket_file;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aspia_relay::fd_store::address::StoreAddress;
use aspia_relay::fd_store::client::{Acquired, StoreChange, StoreClient, StoredEntry};
use aspia_relay::fd_store::error::StoreError;
use aspia_relay::fd_store::owner::OwnerId;
use aspia_relay::fd_store::protocol::{MAX_KEY, MAX_NOTE};
use aspia_relay::fd_store::server::DescriptorStore;
use aspia_relay::fd_store::settings::{AbandonedEntry, StoreSettings};
use aspia_relay::secret::Secret;

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// A timeout of the store that no test reaches.
const FOREVER: Duration = Duration::from_secs(3600);

/// An address that no other test uses.
fn unused_address() -> StoreAddress {
    static NEXT: AtomicU32 = AtomicU32::new(0);

    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("@aspia-relay-test-{}-{number}", std::process::id()).parse().unwrap()
}

/// A store on a thread of this process.
struct LocalStore {
    address: StoreAddress,
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl LocalStore {
    fn start(token: Option<&str>, timeout: Duration) -> Self {
        Self::start_at(unused_address(), token, timeout)
    }

    fn start_at(address: StoreAddress, token: Option<&str>, timeout: Duration) -> Self {
        let token = token.map(str::to_owned);
        let token = Box::new(move || token.as_deref().map(secret).map(Arc::new));
        let on_abandonment = Box::new(|_: &AbandonedEntry<'_>| {});
        let settings = StoreSettings { address: address.clone(), token, timeout, on_abandonment };
        let store = DescriptorStore::bind(settings).unwrap();
        let (stopped, stop) = io::pipe().unwrap();
        let run = move || store.run(stopped.as_fd(), &mut |_| {});
        Self { address, stop: Some(stop), thread: Some(thread::spawn(run)) }
    }

    fn client(&self) -> StoreClient {
        StoreClient::connect(&self.address, None, PATIENCE).unwrap()
    }

    /// A client that owns the store.
    fn owner(&self, id: &OwnerId) -> (StoreClient, Acquired) {
        let mut client = self.client();
        let acquired = client.acquire(id, PATIENCE).unwrap();
        (client, acquired)
    }

    fn stop(mut self) {
        self.end().unwrap();
    }

    fn end(&mut self) -> io::Result<()> {
        self.stop = None;
        self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap())
    }

    /// Waits until a status has what is asked.
    fn wait_for(&self, what: impl Fn(&aspia_relay::fd_store::client::StoreStatus) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !what(&StoreClient::query_status(&self.address, PATIENCE).unwrap()) {
            assert!(Instant::now() < until, "the store does not come to this state");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        let ended = self.end();
        assert!(ended.is_ok() || thread::panicking(), "{ended:?}");
    }
}

fn secret(text: &str) -> Secret<String> {
    Secret::new(text.to_owned())
}

fn note(text: &str) -> Secret<Vec<u8>> {
    Secret::new(text.as_bytes().to_vec())
}

fn put<'a>(key: &str, text: &str, descriptors: &[BorrowedFd<'a>]) -> StoreChange<'a> {
    StoreChange::Put {
        key: key.as_bytes().to_vec(),
        note: note(text),
        descriptors: descriptors.to_vec(),
    }
}

/// Two ends of a TCP connection.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    for end in [&one, &other] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (one, other)
}

/// Something to keep that costs nothing.
fn nothing() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

/// Keys, notes and numbers of descriptors.
fn contents(entries: &[StoredEntry]) -> Vec<(String, String, usize)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let content = |entry: &StoredEntry| {
        (text(&entry.key), text(entry.note.expose()), entry.descriptors.len())
    };
    entries.iter().map(content).collect()
}

/// Fills the store with this number of entries, with two descriptors each.
fn fill(client: &mut StoreClient, count: usize) {
    let (one, other) = (nothing(), nothing());
    let descriptors = [one.as_fd(), other.as_fd()];
    let text = "x".repeat(200);
    let changes: Vec<_> =
        (0..count).map(|number| put(&format!("s{number:07}"), &text, &descriptors)).collect();
    client.apply(&changes).unwrap();
}

#[test]
fn kept_connection_goes_on_in_the_next_relay() {
    let store = LocalStore::start(None, FOREVER);
    let (mut peer, socket) = connection();
    let id = OwnerId::generate().unwrap();
    let (mut first, acquired) = store.owner(&id);
    assert_eq!(acquired, Acquired { entries: 0, was_committed: false, is_own: false });
    first.apply(&[put("s1", "a session", &[socket.as_fd()])]).unwrap();
    first.commit().unwrap();
    drop((first, socket, id));
    let (mut second, acquired) = store.owner(&OwnerId::generate().unwrap());
    assert_eq!(acquired, Acquired { entries: 1, was_committed: true, is_own: false });
    let taken = second.take().unwrap();
    assert_eq!(contents(&taken), [("s1".to_owned(), "a session".to_owned(), 1)]);
    let [entry] = <[StoredEntry; 1]>::try_from(taken).unwrap();
    let mut socket = TcpStream::from(entry.descriptors.into_iter().next().unwrap());
    peer.write_all(b"question").unwrap();
    let mut buffer = [0; 8];
    socket.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"question");
    socket.write_all(b"answer").unwrap();
    peer.read_exact(&mut buffer[..6]).unwrap();
    assert_eq!(&buffer[..6], b"answer");
    // The store still has it.
    assert_eq!(second.take().unwrap().len(), 1);
}

#[test]
fn entries_are_put_annotated_deleted_and_cleared() {
    let store = LocalStore::start(None, FOREVER);
    let (mut client, _) = store.owner(&OwnerId::generate().unwrap());
    let (one, other) = (nothing(), nothing());
    let key = |text: &str| text.as_bytes().to_vec();
    client
        .apply(&[
            put("a", "1", &[one.as_fd(), other.as_fd()]),
            put("b", "2", &[one.as_fd(); 4]),
            put("c", "3", &[]),
            put("b", "4", &[other.as_fd()]),
            StoreChange::Annotate { key: key("a"), note: note("5") },
            StoreChange::Annotate { key: key("none"), note: note("6") },
            StoreChange::Delete { key: key("c") },
            StoreChange::Delete { key: key("none") },
        ])
        .unwrap();
    let expected = [("a".to_owned(), "5".to_owned(), 2), ("b".to_owned(), "4".to_owned(), 1)];
    assert_eq!(contents(&client.take().unwrap()), expected);
    let status = client.status().unwrap();
    assert_eq!((status.entries, status.descriptors), (2, 3));
    client.clear().unwrap();
    assert!(client.take().unwrap().is_empty());
    assert_eq!(client.status().unwrap().descriptors, 0);
    client.apply(&[]).unwrap();
}

#[test]
fn more_than_one_message_holds_arrives_whole_and_in_order() {
    let store = LocalStore::start(None, FOREVER);
    let (mut client, _) = store.owner(&OwnerId::generate().unwrap());
    let descriptor = nothing();
    let number = |number: usize| format!("s{number:04}");
    let text = |number: usize| format!("{number} {}", "n".repeat(number % 7 * 1000));
    let changes: Vec<_> =
        (0..600).map(|n| put(&number(n), &text(n), &vec![descriptor.as_fd(); n % 5])).collect();
    client.apply(&changes).unwrap();
    let expected: Vec<_> = (0..600).map(|n| (number(n), text(n), n % 5)).collect();
    assert_eq!(contents(&client.take().unwrap()), expected);
}

#[test]
fn limits_of_an_entry_are_checked_before_anything_is_sent() {
    let store = LocalStore::start(None, FOREVER);
    let (mut client, _) = store.owner(&OwnerId::generate().unwrap());
    let descriptor = nothing();
    let (longest_key, longest_note) = ("k".repeat(MAX_KEY), "n".repeat(MAX_NOTE));
    client.apply(&[put(&longest_key, &longest_note, &[descriptor.as_fd(); 4])]).unwrap();
    for change in [
        put(&format!("{longest_key}k"), "", &[]),
        put("a", &format!("{longest_note}n"), &[]),
        put("a", "", &[descriptor.as_fd(); 5]),
    ] {
        let error = client.apply(&[put("b", "", &[]), change]).unwrap_err();
        assert!(error.is_refusal() && matches!(error, StoreError::TooLarge { .. }), "{error}");
    }
    let taken = contents(&client.take().unwrap());
    assert_eq!(taken, [(longest_key, longest_note, 4)]);
}

#[test]
fn peers_see_an_ordinary_end_when_no_relay_comes() {
    let store = LocalStore::start(None, Duration::from_millis(300));
    let (mut peer, mut socket) = connection();
    // A reset would be the answer to bytes that nobody reads.
    peer.write_all(b"unread").unwrap();
    socket.write_all(b"last words").unwrap();
    let id = OwnerId::generate().unwrap();
    let (mut client, _) = store.owner(&id);
    client.apply(&[put("s1", "", &[socket.as_fd()])]).unwrap();
    drop((client, id, socket));
    let mut received = Vec::new();
    peer.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"last words");
    store.wait_for(|status| status.entries == 0 && status.descriptors == 0);
    let (_, acquired) = store.owner(&OwnerId::generate().unwrap());
    assert_eq!(acquired, Acquired { entries: 0, was_committed: false, is_own: false });
}

/// The service manager listens on it, too, and starts a relay at the next connection.
#[test]
fn listening_socket_of_the_service_manager_outlives_what_is_kept() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    for stops in [false, true] {
        let timeout = if stops { FOREVER } else { Duration::from_millis(100) };
        let store = LocalStore::start(None, timeout);
        let (mut client, _) = store.owner(&OwnerId::generate().unwrap());
        client.apply(&[put("l", "", &[listener.as_fd()])]).unwrap();
        drop(client);
        if stops {
            store.wait_for(|status| status.owner.is_none());
            store.stop();
        } else {
            store.wait_for(|status| status.entries == 0);
        }
        let connected = TcpStream::connect(address).unwrap();
        assert_eq!(listener.accept().unwrap().1, connected.local_addr().unwrap());
    }
}

#[test]
fn store_that_stops_leaves_connections_to_their_owner_and_ends_those_without() {
    for has_owner in [true, false] {
        let store = LocalStore::start(None, FOREVER);
        let (mut peer, socket) = connection();
        let id = OwnerId::generate().unwrap();
        let (mut client, _) = store.owner(&id);
        client.apply(&[put("s1", "", &[socket.as_fd()])]).unwrap();
        if has_owner {
            store.stop();
            (&socket).write_all(b"on").unwrap();
            let mut buffer = [0; 2];
            peer.read_exact(&mut buffer).unwrap();
            assert!(matches!(client.status(), Err(StoreError::Closed)));
            assert!(matches!(client.status(), Err(StoreError::Unusable)));
        } else {
            drop((client, id, socket));
            store.wait_for(|status| status.owner.is_none());
            store.stop();
            assert_eq!(peer.read_to_end(&mut Vec::new()).unwrap(), 0);
        }
    }
}
