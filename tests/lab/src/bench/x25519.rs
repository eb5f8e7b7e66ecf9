//! What the cryptography of a session costs on this machine.

use std::time::Instant;

use aspia_relay::crypto::PrivateKey;

/// Times that it is done; some tens of milliseconds.
const OPERATIONS: u32 = 500;

/// The time of the three X25519 operations of a session on this machine, in microseconds: one key made, two agreements. It is that
/// of the fastest operations, since others may have been interrupted.
pub(super) fn x25519() -> f64 {
    let pair = fastest(|| {
        if let (Ok(one), Ok(other)) = (PrivateKey::generate(), PrivateKey::generate()) {
            // Both directions of the agreement; the second key generated is the peer's.
            let _ = (one.agree(&other.public()), other.agree(&one.public()));
        }
    });
    pair - fastest(|| drop(PrivateKey::generate()))
}

/// The time of the fastest of many operations, in microseconds.
fn fastest(mut operation: impl FnMut()) -> f64 {
    let times = (0..OPERATIONS).map(|_| {
        let began = Instant::now();
        operation();
        began.elapsed().as_secs_f64() * 1e6
    });
    times.fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_takes_some_time() {
        assert!(super::x25519() > 0.0);
    }
}
