//! The proofs by which relay and store convince each other that both know `AdminToken`.
//!
//! An abstract name can be taken by anybody in the network namespace, and containers of other projects may run under the
//! same user id. Each side sends a nonce and the HMAC of both nonces under the token. Labels for the direction keep an
//! attacker from sending a proof back to the side that made it.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};

use crate::secret::Secret;

use super::address::StoreAddress;
use super::protocol::NONCE_LEN;

/// A random number that is used once.
pub(super) type StoreNonce = [u8; NONCE_LEN];

/// Which side proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProvingSide {
    Store,
    Client,
}

impl ProvingSide {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Store => b"aspia-relay fd-store: the store proves",
            Self::Client => b"aspia-relay fd-store: the client proves",
        }
    }
}

/// What both proofs of a connection are bound to.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProofContext {
    /// The version on which both agreed, so that an attacker in between cannot force an older one.
    pub(super) version: u32,
    pub(super) client_nonce: StoreNonce,
    pub(super) store_nonce: StoreNonce,
    /// [`bound_address`]: a process that listens at one address cannot pass proofs on to the store of another relay.
    pub(super) address: AddressDigest,
}

/// The SHA-256 digest of an address.
pub(super) type AddressDigest = [u8; 32];

/// Returns what a proof says about the address: the name, if it is abstract. Who may listen at a path is a matter of the
/// directory, and both sides may know it by different paths.
pub(super) fn bound_address(address: &StoreAddress) -> AddressDigest {
    let name = match address {
        StoreAddress::Abstract(name) => name.as_bytes(),
        StoreAddress::Path(_) => b"",
    };
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, name).as_ref());
    bytes
}

impl ProofContext {
    fn message(&self, side: ProvingSide) -> Vec<u8> {
        let version = self.version.to_be_bytes();
        let nonces: [&[u8]; 2] = [&self.client_nonce, &self.store_nonce];
        [side.label(), &[0], &version, nonces[0], nonces[1], &self.address].concat()
    }

    /// Makes the proof of one side.
    pub(super) fn prove(&self, token: &Secret<String>, side: ProvingSide) -> Vec<u8> {
        hmac::sign(&key(token), &self.message(side)).as_ref().to_vec()
    }

    /// Whether `proof` is that of the other side; takes constant time.
    pub(super) fn verifies(&self, token: &Secret<String>, side: ProvingSide, proof: &[u8]) -> bool {
        hmac::verify(&key(token), &self.message(side), proof).is_ok()
    }
}

fn key(token: &Secret<String>) -> Key {
    Key::new(HMAC_SHA256, token.expose().as_bytes())
}

/// Makes a nonce; `None` if the system has no random numbers.
pub(super) fn nonce() -> Option<StoreNonce> {
    let mut nonce = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut nonce).ok().map(|()| nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_hold_for_one_side_one_token_and_one_connection() {
        let token = Secret::new("token".to_owned());
        let context = ProofContext {
            version: 1,
            client_nonce: nonce().unwrap(),
            store_nonce: nonce().unwrap(),
            address: bound_address(&StoreAddress::of_relay(8070)),
        };
        let proof = context.prove(&token, ProvingSide::Store);
        assert!(context.verifies(&token, ProvingSide::Store, &proof));
        assert!(!context.verifies(&token, ProvingSide::Client, &proof));
        assert!(!context.verifies(&Secret::new("other".into()), ProvingSide::Store, &proof));
        assert!(!context.verifies(&token, ProvingSide::Store, &proof[1..]));
        assert!(!context.verifies(&token, ProvingSide::Store, b""));
        let swapped = ProofContext {
            client_nonce: context.store_nonce,
            store_nonce: context.client_nonce,
            ..context
        };
        assert!(!swapped.verifies(&token, ProvingSide::Store, &proof));
        let elsewhere =
            ProofContext { address: bound_address(&StoreAddress::of_relay(8071)), ..context };
        assert!(!elsewhere.verifies(&token, ProvingSide::Store, &proof));
        let downgraded = ProofContext { version: 0, ..context };
        assert!(!downgraded.verifies(&token, ProvingSide::Store, &proof));
    }
}
