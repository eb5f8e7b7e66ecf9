//! What the cryptography of a session costs on this machine.

use std::time::Instant;

use aspia_relay::crypto::PrivateKey;

/// Times that it is done; some tens of milliseconds.
const OPERATIONS: u32 = 500;

/// The time of the three X25519 operations of a session on this machine, in microseconds: one key made, two agreements.
pub(super) fn x25519() -> f64 {
    let began = Instant::now();
    for _ in 0..OPERATIONS {
        let (Ok(one), Ok(other)) = (PrivateKey::generate(), PrivateKey::generate()) else {
            return 0.0;
        };
        // Both directions of the agreement; the second key generated is the peer's.
        let _ = (one.agree(&other.public()), other.agree(&one.public()));
    }
    let pair = began.elapsed().as_secs_f64() * 1e6 / f64::from(OPERATIONS);
    let began = Instant::now();
    for _ in 0..OPERATIONS {
        let _ = PrivateKey::generate();
    }
    pair - began.elapsed().as_secs_f64() * 1e6 / f64::from(OPERATIONS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_takes_some_time() {
        assert!(super::x25519() > 0.0);
    }
}
