//! Who may talk to the store, and whom the client trusts.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};

use aspia_relay::fd_store::address::StoreAddress;
use aspia_relay::fd_store::client::StoreClient;
use aspia_relay::fd_store::error::StoreError;
use aspia_relay::fd_store::owner::OwnerId;
use aspia_relay::fd_store::protocol::{
    AnswerKind, HelloRequest, ProveRequest, RefusalReason, RequestKind, WelcomeAnswer,
};
use rustix::thread::set_thread_res_uid;

use super::hostile::{RawSocket, answer};
use super::{FOREVER, LocalStore, PATIENCE, put, secret, unused_address};

/// A user that owns nothing here.
const NOBODY: u32 = 65534;

#[test]
fn relay_and_store_must_have_the_same_token() {
    let connect = |store: &LocalStore, token: Option<&str>| {
        StoreClient::connect(&store.address, token.map(secret).as_ref(), PATIENCE)
    };
    let (with, without) =
        (LocalStore::start(Some("token"), FOREVER), LocalStore::start(None, FOREVER));
    assert!(matches!(connect(&with, None), Err(StoreError::TokenMissing)));
    assert!(matches!(connect(&with, Some("other")), Err(StoreError::TokenDiffers)));
    assert!(matches!(connect(&without, Some("token")), Err(StoreError::TokenUnexpected)));
    let mut client = connect(&with, Some("token")).unwrap();
    client.acquire(&OwnerId::generate().unwrap(), PATIENCE).unwrap();
    client.apply(&[put("a", "1", &[])]).unwrap();
    // Counts are for everybody of the same user.
    assert_eq!(StoreClient::query_status(&with.address, PATIENCE).unwrap().entries, 1);
    for error in [connect(&with, None), connect(&with, Some("other"))] {
        assert!(error.unwrap_err().to_string().contains("same AdminToken for both"));
    }
}

#[test]
fn client_without_the_token_gets_nothing_from_the_store() {
    let store = LocalStore::start(Some("token"), FOREVER);
    let hello =
        HelloRequest { version: 1, nonce: vec![7; 32], has_token: true, is_status_only: false };
    let mut raw = RawSocket::connect(&store.address);
    let AnswerKind::Welcome(welcome) = raw.ask(RequestKind::Hello(hello.clone())) else {
        panic!("no welcome");
    };
    // The proof of the store is no proof of the client.
    let reflected = ProveRequest { proof: welcome.proof };
    assert_eq!(raw.refusal(RequestKind::Prove(reflected)), RefusalReason::TokenWrong);
    // Without a proof nothing is possible.
    let mut raw = RawSocket::connect(&store.address);
    raw.ask(RequestKind::Hello(hello));
    assert_eq!(raw.refusal(RequestKind::Take(Default::default())), RefusalReason::Malformed);
    // A connection for the status is for nothing else.
    let mut raw = RawSocket::connect(&store.address);
    let hello =
        HelloRequest { version: 1, nonce: vec![7; 32], has_token: false, is_status_only: true };
    raw.ask(RequestKind::Hello(hello));
    assert!(matches!(raw.ask(RequestKind::Status(Default::default())), AnswerKind::Status(_)));
    assert_eq!(raw.refusal(RequestKind::Take(Default::default())), RefusalReason::Malformed);
}

/// A process that has taken the name of the store, and answers the first message.
fn squatter(address: &StoreAddress, welcome: WelcomeAnswer) -> JoinHandle<OwnedFd> {
    let listener = RawSocket::listen(address);
    thread::spawn(move || {
        let connection = RawSocket(rustix::net::accept(&listener).unwrap());
        connection.receive();
        connection.send(&answer(AnswerKind::Welcome(welcome)), &[]);
        connection.0
    })
}

#[test]
fn squatter_on_the_name_without_the_token_is_refused() {
    for proof in [vec![], vec![0; 32]] {
        let address = unused_address();
        let welcome = WelcomeAnswer { version: 1, nonce: vec![1; 32], proof };
        let squatter = squatter(&address, welcome);
        let token = secret("token");
        let connected = StoreClient::connect(&address, Some(&token), PATIENCE);
        assert!(matches!(connected, Err(StoreError::TokenDiffers)));
        squatter.join().unwrap();
    }
    // A store of a later version that no longer speaks ours.
    let address = unused_address();
    let squatter = squatter(&address, WelcomeAnswer { version: 9, ..Default::default() });
    let connected = StoreClient::connect(&address, None, PATIENCE);
    assert!(matches!(connected, Err(StoreError::Version(9))));
    squatter.join().unwrap();
}

#[test]
fn too_old_client_is_told_the_version() {
    let store = LocalStore::start(None, FOREVER);
    let mut raw = RawSocket::connect(&store.address);
    let hello =
        HelloRequest { version: 0, nonce: vec![0; 32], has_token: false, is_status_only: false };
    assert_eq!(raw.refusal(RequestKind::Hello(hello)), RefusalReason::Version);
}

#[test]
fn later_client_speaks_the_version_of_the_store() {
    let store = LocalStore::start(None, FOREVER);
    let mut raw = RawSocket::connect(&store.address);
    let hello =
        HelloRequest { version: 99, nonce: vec![0; 32], has_token: false, is_status_only: false };
    let welcome = raw.ask(RequestKind::Hello(hello));
    assert!(matches!(welcome, AnswerKind::Welcome(WelcomeAnswer { version: 1, .. })));
}

/// Runs something as another user, in a thread.
fn as_nobody<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(NOBODY);
        set_thread_res_uid(nobody, nobody, nobody).unwrap();
        work()
    })
}

#[test]
#[ignore = "needs root"]
fn other_users_are_refused_by_store_and_client() {
    let store = LocalStore::start(None, FOREVER);
    let address = store.address.clone();
    let refused = as_nobody(move || {
        let own = StoreClient::connect(&address, None, PATIENCE).unwrap_err();
        let status = StoreClient::query_status(&address, PATIENCE).unwrap_err();
        for error in [own, status] {
            let is_refused = matches!(error, StoreError::OtherUser { theirs: 0, ours: NOBODY, .. });
            assert!(is_refused, "{error}");
        }
        // A client that does not look is refused all the same.
        let raw = RawSocket::connect(&address);
        raw.receive_refusal()
    });
    assert_eq!(refused.join().unwrap(), RefusalReason::OtherUser);
    assert_eq!(store.client().status().unwrap().entries, 0);
}

#[test]
#[ignore = "needs root"]
fn root_may_ask_the_store_of_another_user_for_nothing_but_its_status() {
    let address = unused_address();
    let listening = address.clone();
    let (stopped, stop) = std::io::pipe().unwrap();
    let (ready, wait) = std::sync::mpsc::channel();
    let store = as_nobody(move || {
        use aspia_relay::fd_store::server::DescriptorStore;
        use aspia_relay::fd_store::settings::StoreSettings;

        let settings = StoreSettings {
            address: listening,
            token: Box::new(|| None),
            timeout: FOREVER,
            on_abandonment: Box::new(|_| {}),
        };
        let store = DescriptorStore::bind(settings).unwrap();
        ready.send(()).unwrap();
        store.run(stopped.as_fd(), &mut |_| {}).unwrap();
    });
    wait.recv().unwrap();
    let error = StoreClient::connect(&address, None, PATIENCE).unwrap_err();
    let is_refused = matches!(error, StoreError::OtherUser { theirs: NOBODY, ours: 0, .. });
    assert!(is_refused, "{error}");
    assert_eq!(StoreClient::query_status(&address, PATIENCE).unwrap().entries, 0);
    let mut raw = RawSocket::connect(&address);
    let hello =
        HelloRequest { version: 1, nonce: vec![0; 32], has_token: false, is_status_only: false };
    assert_eq!(raw.refusal(RequestKind::Hello(hello)), RefusalReason::OtherUser);
    drop(stop);
    store.join().unwrap();
}
