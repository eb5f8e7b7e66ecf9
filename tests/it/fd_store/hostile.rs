//! Clients that send anything, flood, stop reading or end in the middle; and stores that do the same to a client.

use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use aspia_relay::fd_store::address::StoreAddress;
use aspia_relay::fd_store::client::{StoreChange, StoreClient};
use aspia_relay::fd_store::error::StoreError;
use aspia_relay::fd_store::owner::OwnerId;
use aspia_relay::fd_store::protocol::{
    AcquireRequest, AcquiredAnswer, AnswerKind, ApplyRequest, ChangeKind, ChangeMessage,
    EmptyMessage, EntriesAnswer, EntryMessage, HelloRequest, MAX_MESSAGE, ProveRequest,
    RefusalReason, RequestKind, StoreAnswer, StoreRequest, TakeRequest, WelcomeAnswer,
};
use proptest::prelude::*;
use prost::Message;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, recvmsg, sendmsg, sockopt,
};

use super::{FOREVER, LocalStore, PATIENCE, contents, fill, note, nothing, unused_address};

/// A socket that sends what no client would.
pub(super) struct RawSocket(pub(super) OwnedFd);

fn system_address(address: &StoreAddress) -> SocketAddrUnix {
    let StoreAddress::Abstract(name) = address else { panic!("{address}") };
    SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()
}

pub(super) fn answer(kind: AnswerKind) -> Vec<u8> {
    StoreAnswer { kind: Some(kind) }.encode_to_vec()
}

fn request(kind: RequestKind) -> Vec<u8> {
    StoreRequest { kind: Some(kind) }.encode_to_vec()
}

fn hello() -> RequestKind {
    let nonce = vec![0; 32];
    RequestKind::Hello(HelloRequest { version: 1, nonce, has_token: false, is_status_only: false })
}

fn acquire(id: u8) -> RequestKind {
    RequestKind::Acquire(AcquireRequest { owner: vec![id; 16], wait_milliseconds: 60_000 })
}

impl RawSocket {
    fn create() -> OwnedFd {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        for direction in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&socket, direction, Some(PATIENCE)).unwrap();
        }
        socket
    }

    pub(super) fn connect(address: &StoreAddress) -> Self {
        let socket = Self::create();
        rustix::net::connect(&socket, &system_address(address)).unwrap();
        Self(socket)
    }

    pub(super) fn listen(address: &StoreAddress) -> OwnedFd {
        let socket = Self::create();
        rustix::net::bind(&socket, &system_address(address)).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        socket
    }

    /// Sends a packet; the store may have closed the connection.
    pub(super) fn send(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> bool {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        sendmsg(&self.0, &[IoSlice::new(packet)], &mut ancillary, SendFlags::NOSIGNAL).is_ok()
    }

    /// Receives an answer; `None` if the connection has been closed.
    fn try_receive(&self) -> Option<(AnswerKind, Vec<OwnedFd>)> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut buffer)];
        let length = match recvmsg(&self.0, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => panic!("{error}"),
        };
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let answer = (length > 0).then(|| StoreAnswer::decode(&buffer[..length]).unwrap());
        answer.map(|answer| (answer.kind.unwrap(), descriptors))
    }

    /// Receives a packet and ignores its content.
    pub(super) fn receive(&self) {
        let mut buffer = vec![0; MAX_MESSAGE];
        rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()).unwrap();
    }

    pub(super) fn ask(&mut self, kind: RequestKind) -> AnswerKind {
        assert!(self.send(&request(kind), &[]));
        self.try_receive().unwrap().0
    }

    pub(super) fn receive_refusal(&self) -> RefusalReason {
        let Some((AnswerKind::Refused(refused), _)) = self.try_receive() else {
            panic!("not refused");
        };
        refused.reason()
    }

    pub(super) fn refusal(&mut self, kind: RequestKind) -> RefusalReason {
        self.send(&request(kind), &[]);
        self.receive_refusal()
    }
}

#[test]
fn relay_that_dies_at_any_message_of_the_take_loses_nothing() {
    const ENTRIES: usize = 600;
    let store = LocalStore::start(None, FOREVER);
    let id = OwnerId::generate().unwrap();
    let (mut client, _) = store.owner(&id);
    fill(&mut client, ENTRIES);
    let expected = contents(&client.take().unwrap());
    client.commit().unwrap();
    drop((client, id));
    let mut has_taken_all = false;
    // Hello, acquire, and as many pages as there are.
    for messages in 1.. {
        for reads_last_answer in [false, true] {
            has_taken_all |= take_and_die(&store, messages, reads_last_answer);
            let (mut next, acquired) = store.owner(&OwnerId::generate().unwrap());
            assert!(acquired.was_committed && !acquired.is_own, "{messages}");
            assert_eq!(acquired.entries, ENTRIES);
            assert_eq!(contents(&next.take().unwrap()), expected, "{messages}");
            let descriptors = next.status().unwrap().descriptors;
            assert_eq!(descriptors, 2 * ENTRIES as u64, "{messages}");
        }
        if has_taken_all {
            assert!(messages > 5, "{messages}");
            return;
        }
    }
}

/// Plays a relay that takes everything and dies after this number of messages; returns whether it had everything.
fn take_and_die(store: &LocalStore, messages: usize, reads_last_answer: bool) -> bool {
    let raw = RawSocket::connect(&store.address);
    let life_line = OwnerLifeLine::new();
    let mut after = Vec::new();
    let mut is_last = false;
    for number in 0..messages {
        let kind = match number {
            0 => hello(),
            1 => acquire(9),
            _ => RequestKind::Take(TakeRequest { after: after.clone() }),
        };
        let descriptors = if number == 1 { vec![life_line.0.as_fd()] } else { Vec::new() };
        assert!(raw.send(&request(kind), &descriptors));
        if number + 1 == messages && !reads_last_answer {
            break;
        }
        if let AnswerKind::Entries(page) = raw.try_receive().unwrap().0 {
            is_last = page.is_last;
            after.clone_from(&page.entries.last().unwrap().key);
        }
    }
    is_last
}

/// What a relay gives the store to see that it exists.
struct OwnerLifeLine(OwnedFd, #[expect(dead_code, reason = "kept open")] OwnedFd);

impl OwnerLifeLine {
    fn new() -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        Self(reader.into(), writer.into())
    }
}

/// An owner and the entries that nothing may change.
fn owner_with_entries(store: &LocalStore) -> (OwnerId, StoreClient) {
    let id = OwnerId::generate().unwrap();
    let (mut client, _) = store.owner(&id);
    fill(&mut client, 3);
    (id, client)
}

fn assert_unharmed(client: &mut StoreClient) {
    let status = client.status().unwrap();
    assert_eq!((status.entries, status.descriptors), (3, 6));
}

#[test]
fn malformed_messages_are_refused_and_the_owner_is_served_on() {
    let store = LocalStore::start(None, FOREVER);
    let (_id, mut client) = owner_with_entries(&store);
    let descriptor = nothing();
    let oversized = vec![0x0a; MAX_MESSAGE + 1];
    // A field with the number 2047.
    let unknown = vec![0xfa, 0x7f, 2, 0xff, 0xff];
    for (greets, packet, count, reason) in [
        (false, b"\xff\xff\xff garbage".to_vec(), 0, RefusalReason::Malformed),
        (true, b"\xff\xff\xff garbage".to_vec(), 3, RefusalReason::Malformed),
        (true, oversized, 1, RefusalReason::Malformed),
        (true, unknown, 0, RefusalReason::UnknownRequest),
        (false, request(RequestKind::Status(EmptyMessage {})), 0, RefusalReason::Malformed),
        (true, request(hello()), 0, RefusalReason::Malformed),
        (true, request(RequestKind::Take(TakeRequest::default())), 253, RefusalReason::Malformed),
        (true, request(acquire(1)), 0, RefusalReason::Malformed),
        (true, request(RequestKind::Prove(ProveRequest::default())), 0, RefusalReason::Malformed),
    ] {
        let mut raw = RawSocket::connect(&store.address);
        if greets {
            raw.ask(hello());
        }
        assert!(raw.send(&packet, &vec![descriptor.as_fd(); count]));
        assert_eq!(raw.receive_refusal(), reason);
        assert!(raw.try_receive().is_none(), "the connection remains");
        assert_unharmed(&mut client);
    }
    // A packet without content is the same as the end.
    let raw = RawSocket::connect(&store.address);
    assert!(raw.send(b"", &[]));
    assert!(raw.try_receive().is_none());
    assert_unharmed(&mut client);
}

#[test]
fn owner_that_sends_invalid_changes_changes_nothing() {
    let store = LocalStore::start(None, FOREVER);
    let (one, other) = (nothing(), nothing());
    let change = |kind: i32, key: usize, note: usize, descriptors: u32| ChangeMessage {
        kind,
        key: vec![b'k'; key],
        note: vec![0; note],
        descriptors,
    };
    let (put, annotate) = (ChangeKind::Put as i32, ChangeKind::Annotate as i32);
    for (id, (changes, count, reason)) in [
        (vec![change(put, 1, 0, 2)], 1, RefusalReason::DescriptorsLost),
        (vec![change(put, 1, 0, 1)], 2, RefusalReason::Malformed),
        (vec![change(put, 1, 0, 5)], 5, RefusalReason::Malformed),
        (vec![change(put, 1, 0, u32::MAX)], 1, RefusalReason::Malformed),
        (vec![change(put, 0, 0, 0)], 0, RefusalReason::Malformed),
        (vec![change(put, 256, 0, 0)], 0, RefusalReason::Malformed),
        (vec![change(put, 1, 65_537, 0)], 0, RefusalReason::Malformed),
        (vec![change(annotate, 1, 0, 1)], 1, RefusalReason::Malformed),
        (vec![change(put, 1, 0, 0), change(77, 1, 0, 0)], 0, RefusalReason::UnknownRequest),
    ]
    .into_iter()
    .enumerate()
    {
        let mut raw = RawSocket::connect(&store.address);
        let life_line = OwnerLifeLine::new();
        raw.ask(hello());
        raw.send(&request(acquire(u8::try_from(id).unwrap())), &[life_line.0.as_fd()]);
        assert!(matches!(raw.try_receive(), Some((AnswerKind::Acquired(_), _))));
        let descriptors: Vec<_> =
            [one.as_fd(), other.as_fd()].into_iter().cycle().take(count).collect();
        raw.send(&request(RequestKind::Apply(ApplyRequest { changes })), &descriptors);
        assert_eq!(raw.receive_refusal(), reason, "{id}");
        drop((raw, life_line));
        let status = StoreClient::query_status(&store.address, PATIENCE).unwrap();
        assert_eq!((status.entries, status.descriptors), (0, 0), "{id}");
    }
}

#[test]
fn clients_that_flood_or_do_not_read_cannot_keep_the_owner_waiting() {
    let store = LocalStore::start(None, FOREVER);
    let (_id, mut client) = owner_with_entries(&store);
    // Silent connections, more than the store has room for.
    let silent: Vec<_> = (0..100).map(|_| RawSocket::connect(&store.address)).collect();
    assert_unharmed(&mut client);
    // One that asks without end and never reads: it is given up once the kernel keeps no more answers for it.
    let flood = RawSocket::connect(&store.address);
    assert!(flood.send(&request(hello()), &[]));
    let status = request(RequestKind::Status(EmptyMessage {}));
    let until = Instant::now() + PATIENCE;
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    // Sending fails for a moment while the store has not read, and for good when it has closed the connection.
    while rustix::net::send(&flood.0, &status, flags) != Err(rustix::io::Errno::PIPE) {
        assert!(Instant::now() < until, "the store keeps what is never read");
    }
    assert_unharmed(&mut client);
    // New clients still get in.
    assert_eq!(store.client().status().unwrap().entries, 3);
    drop(silent);
}

#[test]
fn connections_that_prove_nothing_do_not_displace_a_relay_that_waits() {
    let store = LocalStore::start(None, FOREVER);
    let (_id, mut client) = owner_with_entries(&store);
    let mut waiting = RawSocket::connect(&store.address);
    waiting.ask(hello());
    let life_line = OwnerLifeLine::new();
    assert!(waiting.send(&request(acquire(1)), &[life_line.0.as_fd()]));
    // More than the store has room for, each of which may stay for longer than the relay waits.
    let ask_for_status = || {
        let mut raw = RawSocket::connect(&store.address);
        let nonce = vec![0; 32];
        let is_status_only = true;
        let hello = HelloRequest { version: 1, nonce, has_token: false, is_status_only };
        assert!(matches!(raw.ask(RequestKind::Hello(hello)), AnswerKind::Welcome(_)));
        raw
    };
    let others: Vec<_> = (0..64).map(|_| ask_for_status()).collect();
    client.commit().unwrap();
    assert!(matches!(waiting.try_receive(), Some((AnswerKind::Acquired(_), _))));
    drop(others);
}

fn any_packet() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let small = || prop::collection::vec(any::<u8>(), 0..40);
    let change = (0..5i32, small(), small(), 0..6u32)
        .prop_map(|(kind, key, note, descriptors)| ChangeMessage { kind, key, note, descriptors });
    let changes = prop::collection::vec(change, 0..4);
    let kind = prop_oneof![
        (any::<u32>(), small(), any::<bool>(), any::<bool>()).prop_map(
            |(version, nonce, has_token, is_status_only)| RequestKind::Hello(HelloRequest {
                version,
                nonce,
                has_token,
                is_status_only
            })
        ),
        Just(hello()),
        small().prop_map(|proof| RequestKind::Prove(ProveRequest { proof })),
        small().prop_map(|after| RequestKind::Take(TakeRequest { after })),
        changes.prop_map(|changes| RequestKind::Apply(ApplyRequest { changes })),
        (small(), 0..3u64).prop_map(|(owner, wait_milliseconds)| {
            RequestKind::Acquire(AcquireRequest { owner, wait_milliseconds })
        }),
        Just(acquire(3)),
        Just(RequestKind::Clear(EmptyMessage {})),
        Just(RequestKind::Commit(EmptyMessage {})),
        Just(RequestKind::Release(EmptyMessage {})),
        Just(RequestKind::Status(EmptyMessage {})),
    ];
    let packet =
        prop_oneof![4 => kind.prop_map(request), 1 => prop::collection::vec(any::<u8>(), 1..300)];
    (packet, prop_oneof![4 => Just(0usize), 1 => 1..6usize])
}

#[test]
fn no_sequence_of_messages_harms_the_store_or_its_owner() {
    let store = LocalStore::start(None, FOREVER);
    let (_id, client) = owner_with_entries(&store);
    let client = RefCell::new(client);
    let descriptor = nothing();
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    proptest!(config, |(packets in prop::collection::vec(any_packet(), 1..12))| {
        let raw = RawSocket::connect(&store.address);
        for (packet, count) in packets {
            raw.send(&packet, &vec![descriptor.as_fd(); count]);
        }
        assert_unharmed(&mut client.borrow_mut());
    });
}

#[test]
fn store_that_says_nothing_is_an_error_after_the_timeout() {
    let address = unused_address();
    let _listener = RawSocket::listen(&address);
    let timeout = Duration::from_millis(100);
    // The first is accepted by the kernel alone, later ones do not even get that far.
    for _ in 0..4 {
        let error = StoreClient::connect(&address, None, timeout).unwrap_err();
        assert!(matches!(error, StoreError::TimedOut(after) if after == timeout), "{error}");
    }
}

#[test]
fn store_that_answers_nonsense_is_an_error() {
    type Check = fn(&StoreError) -> bool;
    let is_unexpected: Check = |error| matches!(error, StoreError::Unexpected(_));
    let scripts = [
        (vec![], (|error| matches!(error, StoreError::Closed)) as Check),
        (b"\xff\xff".to_vec(), is_unexpected),
        (answer(AnswerKind::Done(EmptyMessage {})), is_unexpected),
    ];
    for (packet, is_expected) in scripts {
        let address = unused_address();
        let listener = RawSocket::listen(&address);
        let store = std::thread::spawn(move || {
            let connection = RawSocket(rustix::net::accept(&listener).unwrap());
            connection.receive();
            connection.send(&packet, &[]);
        });
        let error = StoreClient::connect(&address, None, PATIENCE).unwrap_err();
        assert!(is_expected(&error), "{error}");
        store.join().unwrap();
    }
}

/// Plays a store whose pages have these keys, the last of them again and again.
fn take_from(pages: Vec<Vec<&'static str>>) -> StoreError {
    let address = unused_address();
    let listener = RawSocket::listen(&address);
    let store = std::thread::spawn(move || {
        let connection = RawSocket(rustix::net::accept(&listener).unwrap());
        let nonce = vec![0; 32];
        let welcome = WelcomeAnswer { version: 1, nonce, proof: Vec::new() };
        connection.receive();
        connection.send(&answer(AnswerKind::Welcome(welcome)), &[]);
        connection.receive();
        connection.send(&answer(AnswerKind::Acquired(AcquiredAnswer::default())), &[]);
        let entry = |key: &&str| {
            let (key, note) = (key.as_bytes().to_vec(), Vec::new());
            EntryMessage { key, note, descriptors: 0 }
        };
        let last = pages.last().cloned().unwrap();
        for keys in pages.into_iter().chain(std::iter::repeat(last)) {
            connection.receive();
            let entries = keys.iter().map(entry).collect();
            let page = EntriesAnswer { entries, is_last: false };
            if !connection.send(&answer(AnswerKind::Entries(page)), &[]) {
                return;
            }
        }
    });
    let mut client = StoreClient::connect(&address, None, PATIENCE).unwrap();
    client.acquire(&OwnerId::generate().unwrap(), PATIENCE).unwrap();
    let error = client.take().unwrap_err();
    drop(client);
    // It has nobody to send to any more.
    drop(store);
    error
}

#[test]
fn store_that_never_comes_to_an_end_is_an_error() {
    for pages in [
        vec![vec![]],
        vec![vec!["a"]],
        vec![vec!["a", "b"], vec!["b", "c"]],
        vec![vec!["b", "a"]],
        vec![vec!["a", "c"], vec!["d", "b"]],
        vec![vec![""]],
    ] {
        let error = take_from(pages.clone());
        assert!(matches!(error, StoreError::Unexpected(_)), "{pages:?}: {error}");
    }
}

#[test]
fn full_store_refuses_more_and_stays_usable() {
    let (mut store, _) = super::program::StoreProgram::start_with("ulimit -n 500;", &[]);
    let mut client = store.client();
    client.acquire(&OwnerId::generate().unwrap(), PATIENCE).unwrap();
    let room = client.status().unwrap().max_descriptors;
    assert!((100..400).contains(&room), "{room}");
    let descriptor = nothing();
    let put = |number: u64| super::put(&format!("s{number}"), "", &[descriptor.as_fd()]);
    let fitting: Vec<_> = (0..room).map(put).collect();
    client.apply(&fitting).unwrap();
    let error = client.apply(&[put(room)]).unwrap_err();
    assert!(error.is_refusal() && matches!(error, StoreError::Full(limit) if limit == room));
    assert!(error.to_string().contains("LimitNOFILE"), "{error}");
    // What is there can be put again, and what is deleted makes room.
    client.apply(&fitting).unwrap();
    client.apply(&[StoreChange::Delete { key: b"s0".to_vec() }, put(room)]).unwrap();
    client.apply(&[StoreChange::Annotate { key: b"s1".to_vec(), note: note("x") }]).unwrap();
    assert_eq!(client.status().unwrap().descriptors, room);
    store.terminate();
}
