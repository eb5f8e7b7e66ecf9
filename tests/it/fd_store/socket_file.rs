//! The store at a path of the file system.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use aspia_relay::fd_store::address::StoreAddress;
use aspia_relay::fd_store::client::StoreClient;
use aspia_relay::fd_store::error::StoreError;
use aspia_relay::fd_store::listener::StoreBindError;
use aspia_relay::fd_store::server::DescriptorStore;
use aspia_relay::fd_store::settings::StoreSettings;

use super::{FOREVER, LocalStore, PATIENCE};

fn address(path: &Path) -> StoreAddress {
    path.to_str().unwrap().parse().unwrap()
}

fn bind_error(path: &Path) -> StoreBindError {
    let settings = StoreSettings {
        address: address(path),
        token: Box::new(|| None),
        timeout: FOREVER,
        on_abandonment: Box::new(|_| {}),
    };
    DescriptorStore::bind(settings).err().unwrap()
}

#[test]
fn socket_file_is_for_its_owner_and_vanishes_with_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sock");
    let store = LocalStore::start_at(address(&path), None, FOREVER);
    let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(store.client().status().unwrap().entries, 0);
    store.stop();
    assert!(!path.exists());
    let error = StoreClient::connect(&address(&path), None, PATIENCE).unwrap_err();
    assert!(matches!(&error, StoreError::Connect { .. }), "{error}");
    assert!(error.to_string().contains("--fd-store"), "{error}");
}

#[test]
fn only_the_file_of_a_dead_store_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sock");
    let store = LocalStore::start_at(address(&path), None, FOREVER);
    assert!(matches!(bind_error(&path), StoreBindError::InUse { .. }));
    assert_eq!(store.client().status().unwrap().entries, 0);
    store.stop();
    // A socket whose process has ended.
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        None,
    );
    let socket = socket.unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    drop(socket);
    assert!(path.exists());
    let store = LocalStore::start_at(address(&path), None, FOREVER);
    assert_eq!(store.client().status().unwrap().entries, 0);
}

#[test]
fn what_is_not_a_store_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "content").unwrap();
    assert!(matches!(bind_error(&file), StoreBindError::NotAStore(_)));
    assert_eq!(std::fs::read(&file).unwrap(), b"content");
    let stream = directory.path().join("stream.sock");
    let _listener = UnixListener::bind(&stream).unwrap();
    assert!(matches!(bind_error(&stream), StoreBindError::NotAStore(_)));
    assert!(stream.exists());
    let missing = directory.path().join("none/store.sock");
    let error = bind_error(&missing).to_string();
    assert!(error.contains("The directory must exist"), "{error}");
}
