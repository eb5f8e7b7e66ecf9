//! What a relay that takes over does with keys that expired while no relay ran.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aspia_relay::fd_store::client::StoreChange;
use aspia_relay::fd_store::owner::OwnerId;
use aspia_relay::handover::entry_key::EntryKey;
use aspia_relay::handover::notes::clock::NoteClock;
use aspia_relay::handover::notes::keys::encode_handed_out_key;
use aspia_relay::state::keys::snapshot::HandedOutSnapshot;
use aspia_relay::state::keys::{KeyId, OneTimeKey};

use super::{FOREVER, LocalStore};

/// Keys that expired.
const KEYS: u32 = 8;
/// What a relay without sessions keeps: the listener for peers and the counters.
const ENTRIES: u64 = 2;

struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn expired_key(number: u32) -> StoreChange<'static> {
    let id = KeyId(number);
    let key = Arc::new(OneTimeKey::generate(id).unwrap());
    let snapshot = HandedOutSnapshot { key, remaining: Duration::ZERO };
    let note = encode_handed_out_key(&snapshot, &[], NoteClock::now()).unwrap();
    StoreChange::Put { key: EntryKey::HandedOutKey(id).to_bytes(), note, descriptors: Vec::new() }
}

#[test]
fn keys_that_expired_without_a_relay_leave_the_store() {
    let store = LocalStore::start(None, FOREVER);
    let (mut client, _) = store.owner(&OwnerId::generate().unwrap());
    client.apply(&(0..KEYS).map(expired_key).collect::<Vec<_>>()).unwrap();
    drop(client);
    let [port, router] = [(); 2].map(|()| relay_lab::port::free_port().unwrap().to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_aspia_relay"));
    let settings = [
        ("ASPIA_RELAY_ROUTER_ADDRESS", "127.0.0.1"),
        ("ASPIA_RELAY_ROUTER_PORT", &router),
        ("ASPIA_RELAY_ROUTER_PUBLIC_KEY", &"7".repeat(64)),
        ("ASPIA_RELAY_PEER_ADDRESS", "127.0.0.1"),
        ("ASPIA_RELAY_PEER_PORT", &port),
        ("ASPIA_RELAY_LISTEN_INTERFACE", "127.0.0.1"),
        ("ASPIA_RELAY_ADMIN_LISTEN", "off"),
        ("ASPIA_RELAY_FD_STORE", &store.address.to_string()),
    ];
    command.env_clear().envs(settings).stdin(Stdio::null()).stdout(Stdio::null());
    let _relay = Relay(command.stderr(Stdio::null()).spawn().unwrap());
    store.wait_for(|status| status.owner.is_some() && status.entries == ENTRIES);
}
