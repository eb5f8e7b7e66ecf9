//! The relay's forwarding.
#![allow(dead_code, reason = "the time after the end of a session is not tested here")]

#[path = "../../../src/forward/backlog.rs"]
mod backlog;
#[path = "../../../src/forward/bidirectional.rs"]
pub(crate) mod bidirectional;
#[path = "../../../src/forward/direction.rs"]
pub(crate) mod direction;
#[path = "../../../src/forward/discard.rs"]
mod discard;
#[path = "../../../src/forward/failure.rs"]
mod failure;
#[path = "../../../src/forward/half_closed.rs"]
mod half_closed;
#[path = "../../../src/forward/pipe.rs"]
pub(crate) mod pipe;
#[path = "../../../src/forward/pool.rs"]
mod pool;
#[path = "../../../src/forward/readiness.rs"]
mod readiness;
#[path = "../../../src/forward/socket.rs"]
mod socket;
#[path = "../../../src/forward/throttle.rs"]
pub(crate) mod throttle;

pub(crate) mod metrics {
    use prometheus::{IntCounter, IntGauge};

    /// The metrics of forwarding.
    #[derive(Debug, Clone)]
    pub struct ForwardMetrics {
        pub(crate) pipes: IntGauge,
        pub(crate) fallbacks: IntCounter,
    }

    impl ForwardMetrics {
        pub(crate) fn new() -> Self {
            Self {
                pipes: IntGauge::new("pipes", "Open pipes.").unwrap(),
                fallbacks: IntCounter::new("fallbacks", "Copies.").unwrap(),
            }
        }
    }
}
