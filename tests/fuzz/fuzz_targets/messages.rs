//! Any opened messages of a Router in either dialect, and their effect on the state.
#![no_main]

use std::sync::LazyLock;

use aspia_relay::link::dialect::Notice;
use aspia_relay::state::keys::KeyId;
use aspia_relay::state::metrics::StateMetrics;
use aspia_relay::state::sessions::{EndCause, SessionId};
use aspia_relay::state::shared::SharedState;
use aspia_relay_fuzz::{choice, dialect, part};
use libfuzzer_sys::fuzz_target;
use prometheus::Registry;
use tokio::time::Instant;

/// Capacity of the state: small, so that keys run out.
const CAPACITY: usize = 4;

/// Made once, since registering them takes longer than a run.
static METRICS: LazyLock<StateMetrics> =
    LazyLock::new(|| StateMetrics::new(&Registry::new()).expect("a registry of their own"));

fuzz_target!(|data: &[u8]| {
    let (choice, mut data) = choice(data);
    let dialect = dialect(choice);
    let state = SharedState::new(CAPACITY, 0, METRICS.clone());
    state.link_up();
    let order = state.order(CAPACITY, CAPACITY).expect("there is room");
    let keys = order.generate().expect("there is randomness");
    state.offer(&order, keys);
    let now = Instant::now();
    while !data.is_empty() {
        let Ok(notices) = dialect.parse_notices(part(&mut data)) else {
            continue;
        };
        for notice in notices {
            match notice {
                Notice::KeyUsed(id) => {
                    let _ = state.key_used(KeyId(id), now);
                }
                Notice::Disconnect(id) => {
                    let _ = state.stop_session(SessionId(id), EndCause::Router);
                }
                _ => {}
            }
        }
        let counts = state.counts();
        assert_eq!(counts.offered + counts.handed_out + counts.active, CAPACITY);
    }
});
