//! Any message of a Router, opened, in either dialect, and what it does to the state.
#![no_main]

use aspia_relay::link::dialect::Notice;
use aspia_relay::state::State;
use aspia_relay::state::keys::KeyId;
use aspia_relay::state::sessions::{End, SessionId};
use aspia_relay_fuzz::{choice, dialect, part};
use libfuzzer_sys::fuzz_target;
use tokio::time::Instant;

/// Places of the state; a few, so that keys run out.
const CAPACITY: usize = 4;

fuzz_target!(|data: &[u8]| {
    let (choice, mut data) = choice(data);
    let dialect = dialect(choice);
    let mut state: State<()> = State::new(CAPACITY, 0);
    state.link_up();
    let order = state.order(CAPACITY, CAPACITY).expect("there is room");
    let keys = order.make().expect("there is randomness");
    state.offer(&order, keys);
    let now = Instant::now();
    while !data.is_empty() {
        let Ok(notices) = dialect.notices(part(&mut data)) else {
            continue;
        };
        for notice in notices {
            match notice {
                Notice::KeyUsed(id) => drop(state.key_used(KeyId(id), now)),
                Notice::Disconnect(id) => drop(state.stop_session(SessionId(id), End::Disconnected)),
                _ => {}
            }
        }
        let counts = state.counts();
        assert_eq!(counts.offered + counts.handed_out + counts.active, CAPACITY);
    }
});
