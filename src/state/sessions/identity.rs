//! The identity of the two peers of a session, as the Router reports it.

use std::fmt;

use crate::wire;

/// The maximum length of a text from the Router about a peer, in bytes; longer texts are cut. This bounds the memory of a
/// session and the length of a statistics message. Real names and addresses are far shorter.
const MAX_TEXT: usize = 256;

/// Who the peers are, as the Router describes them. Used for its statistics, and in logs only if the settings ask for it.
///
/// All texts share one allocation, since there are thousands of identities.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    texts: Box<str>,
    /// Where the first two texts end.
    ends: [u16; 2],
    /// The number of the remote machine.
    pub host_id: u64,
}

impl PeerIdentity {
    /// Keeps the operator's address and name, and the remote machine's address and number. Texts are cut to 256 bytes.
    pub fn new(client_address: &str, user_name: &str, host_address: &str, host_id: u64) -> Self {
        let [client, user, host] = [client_address, user_name, host_address].map(shorten);
        let texts = [client, user, host].concat().into();
        let end = |end: usize| u16::try_from(end).unwrap_or(u16::MAX);
        Self { texts, ends: [end(client.len()), end(client.len() + user.len())], host_id }
    }

    fn text(&self, from: u16, to: Option<u16>) -> &str {
        let to = to.map_or(self.texts.len(), usize::from);
        self.texts.get(from.into()..to).unwrap_or_default()
    }

    /// Returns the operator's address, as the Router saw it.
    pub fn client_address(&self) -> &str {
        self.text(0, Some(self.ends[0]))
    }

    /// Returns the operator's name.
    pub fn client_user_name(&self) -> &str {
        self.text(self.ends[0], Some(self.ends[1]))
    }

    /// Returns the remote machine's address, as the Router saw it.
    pub fn host_address(&self) -> &str {
        self.text(self.ends[1], None)
    }
}

impl fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerIdentity([redacted])")
    }
}

impl From<&wire::peer::PeerSecret> for PeerIdentity {
    fn from(secret: &wire::peer::PeerSecret) -> Self {
        let wire::peer::PeerSecret { client_address, client_user_name, host_address, .. } = secret;
        Self::new(client_address, client_user_name, host_address, secret.host_id)
    }
}

/// Returns the beginning of a text, at most [`MAX_TEXT`] bytes, cut between characters.
fn shorten(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_of_an_identity_is_returned_separately() {
        let identity = PeerIdentity::new("192.0.2.1", "й", "2001:db8::1", 7);
        assert_eq!(identity.client_address(), "192.0.2.1");
        assert_eq!(identity.client_user_name(), "й");
        assert_eq!(identity.host_address(), "2001:db8::1");
        let nobody = PeerIdentity::default();
        assert_eq!(nobody.client_address().len() + nobody.host_address().len(), 0);
    }

    #[test]
    fn long_texts_are_cut_at_a_character_boundary() {
        let secret =
            wire::peer::PeerSecret { client_user_name: "й".repeat(200), ..Default::default() };
        let identity = PeerIdentity::from(&secret);
        assert_eq!(identity.client_user_name(), "й".repeat(MAX_TEXT / 2));
        let odd =
            wire::peer::PeerSecret { client_user_name: format!("a{}", "й".repeat(200)), ..secret };
        assert_eq!(PeerIdentity::from(&odd).client_user_name().len(), MAX_TEXT - 1);
    }
}
