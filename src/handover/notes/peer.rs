//! The note of a connection that was suspended before it was paired.

use std::net::{SocketAddr, TcpStream};

use prost::Message;
use zeroize::Zeroize;

use crate::peer::SuspendedPeer;
use crate::secret::Secret;

use super::clock::NoteClock;
use super::{NoteError, decode, encode};

/// A suspended connection, without its socket.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct PeerNote {
    /// Where it connects from: an address with its port, in words.
    #[prost(string, tag = "1")]
    address: String,
    /// What was read from it.
    #[prost(bytes = "vec", tag = "2")]
    received: Vec<u8>,
    /// When it was accepted.
    #[prost(uint64, tag = "3")]
    accepted: u64,
    /// Whether its PROXY header comes first, of which `received` is a part.
    #[prost(bool, tag = "4")]
    awaits_proxy_header: bool,
}

/// Encodes the note of a suspended connection.
pub fn encode_peer(peer: &SuspendedPeer, clock: NoteClock) -> Secret<Vec<u8>> {
    let accepted = clock.instant().checked_sub(peer.age).unwrap_or(clock.instant());
    let mut note = PeerNote {
        address: peer.address.to_string(),
        received: peer.received.expose().clone(),
        accepted: clock.to_note(accepted),
        awaits_proxy_header: peer.awaits_proxy_header,
    };
    let encoded = encode(&note);
    note.received.zeroize();
    encoded
}

/// Decodes the note of a suspended connection with this socket.
///
/// # Errors
/// [`NoteError`].
pub fn decode_peer(
    note: &[u8],
    socket: TcpStream,
    clock: NoteClock,
) -> Result<SuspendedPeer, NoteError> {
    let note: PeerNote = decode(note)?;
    let received = Secret::new(note.received);
    let address: SocketAddr = note.address.parse().map_err(|_| NoteError::Field("address"))?;
    let (awaits_proxy_header, age) = (note.awaits_proxy_header, clock.age(note.accepted));
    Ok(SuspendedPeer { socket, address, awaits_proxy_header, received, age })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    fn socket() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    #[test]
    fn suspended_peer_is_decoded_again() {
        let clock = NoteClock::now();
        for (address, awaits_proxy_header) in
            [("192.0.2.1:7", false), ("[2001:db8::1]:65535", true)]
        {
            let (address, age) = (address.parse().unwrap(), Duration::from_millis(1500));
            let received = Secret::new(vec![0, 0, 1, 7]);
            let peer =
                SuspendedPeer { socket: socket(), address, awaits_proxy_header, received, age };
            let note = encode_peer(&peer, clock);
            let decoded = decode_peer(note.expose(), socket(), clock).unwrap();
            assert_eq!((decoded.address, decoded.age), (address, age));
            assert_eq!(decoded.awaits_proxy_header, awaits_proxy_header);
            assert!(decoded.received.is_same_as(&peer.received));
        }
    }

    #[test]
    fn note_without_an_address_is_refused() {
        let clock = NoteClock::now();
        let error = decode_peer(encode(&PeerNote::default()).expose(), socket(), clock);
        assert_eq!(error.unwrap_err(), NoteError::Field("address"));
    }
}
