//! The note of a session.
//!
//! A session whose bytes in flight are too many for a note has further entries with the rest, its *pieces*. They are put before
//! its note, and carry the same number as the note, so that pieces of an earlier or of an unfinished hand-over are not taken
//! for those of this note.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use prost::Message;

use crate::forward::balance::Balances;
use crate::handover::entry_key::EntryKey;
use crate::peer::session::DetachedSession;
use crate::secret::Secret;
use crate::state::sessions::{PeerIdentity, SessionId, SessionRecord};

use super::clock::NoteClock;
use super::{NoteError, decode, encode, plausible};

/// How many bytes in flight a note holds at most; the store takes notes of 64 KiB.
const MAX_INLINE: usize = 48 * 1024;
/// How many bytes a piece holds at most.
const PIECE: usize = 60 * 1024;
/// How many bytes in flight are believed to belong to one session: more than two pipes of the largest size hold.
const MAX_IN_FLIGHT: u64 = 8 * 1024 * 1024;

/// Everything that another relay needs to continue a session, besides its sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionNote {
    /// Who the peers are, and what the session has done.
    pub record: SessionRecord,
    /// The figures of the kernel from which the next relay can tell whether bytes are lost.
    pub balances: Balances,
    /// What had been received from each peer and not been sent to the other when the balances were taken.
    pub in_flight: [Vec<u8>; 2],
    /// Whether it was written at a planned hand-over. If not, the session has gone on since.
    pub is_final: bool,
    /// The context of its trace, as in the header `traceparent`.
    pub traceparent: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionMessage {
    #[prost(uint64, optional, tag = "1")]
    id: Option<u64>,
    /// Times are nanoseconds of CLOCK_BOOTTIME.
    #[prost(uint64, optional, tag = "2")]
    started: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    last_moved: Option<u64>,
    /// How many bytes the session had moved when the balances were taken.
    #[prost(uint64, optional, tag = "4")]
    bytes: Option<u64>,
    #[prost(message, optional, tag = "5")]
    identity: Option<IdentityMessage>,
    #[prost(message, repeated, tag = "6")]
    peers: Vec<SessionPeerMessage>,
    #[prost(bool, tag = "7")]
    is_final: bool,
    #[prost(string, optional, tag = "8")]
    traceparent: Option<String>,
    /// How many pieces there are.
    #[prost(uint32, tag = "9")]
    pieces: u32,
    /// The number that these pieces carry.
    #[prost(fixed64, tag = "10")]
    piece_set: u64,
}

#[derive(Clone, PartialEq, Message)]
struct IdentityMessage {
    #[prost(string, tag = "1")]
    client_address: String,
    #[prost(string, tag = "2")]
    client_user_name: String,
    #[prost(string, tag = "3")]
    host_address: String,
    #[prost(uint64, tag = "4")]
    host_id: u64,
}

/// One peer: its connection, and the direction from it to the other peer.
#[derive(Clone, PartialEq, Message)]
struct SessionPeerMessage {
    /// 4 or 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    ip: Vec<u8>,
    #[prost(uint32, tag = "2")]
    port: u32,
    #[prost(uint32, tag = "3")]
    scope: u32,
    #[prost(sint64, optional, tag = "4")]
    balance: Option<i64>,
    #[prost(uint64, optional, tag = "5")]
    consumed: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    written: Option<u64>,
    #[prost(bool, tag = "7")]
    was_closed: bool,
    /// How many bytes are in flight, here or in pieces.
    #[prost(uint64, tag = "8")]
    in_flight_length: u64,
    #[prost(bytes = "vec", tag = "9")]
    in_flight: Vec<u8>,
    /// Of the bytes of the session, those from this peer. Earlier versions of this program do not tell.
    #[prost(uint64, optional, tag = "10")]
    bytes: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct PieceMessage {
    #[prost(fixed64, tag = "1")]
    piece_set: u64,
    #[prost(bytes = "vec", tag = "2")]
    bytes: Vec<u8>,
}

impl SessionNote {
    /// Writes the note of a session that was detached to continue in the next relay. `None` if the kernel does not report the
    /// figures: then the next relay could not tell whether bytes are lost.
    pub fn of_detached(session: &DetachedSession, traceparent: Option<String>) -> Option<Self> {
        let DetachedSession { record, sockets, in_flight, .. } = session;
        Some(Self {
            record: record.clone(),
            balances: Balances::take(sockets, in_flight.each_ref().map(Vec::len), record.bytes)?,
            in_flight: in_flight.clone(),
            is_final: true,
            traceparent,
        })
    }

    /// Encodes the note into the entries of the session, to be put in this order: pieces, if it needs any, and the note itself.
    pub fn encode(&self, clock: NoteClock) -> Vec<(EntryKey, Secret<Vec<u8>>)> {
        let id = self.record.id;
        let now = clock.to_note(clock.instant());
        let mut entries = Vec::new();
        if self.in_flight.iter().map(Vec::len).sum::<usize>() > MAX_INLINE {
            let bytes = self.in_flight.concat();
            for (number, piece) in (0..u16::MAX).zip(bytes.chunks(PIECE)) {
                let piece = PieceMessage { piece_set: now, bytes: piece.to_vec() };
                entries.push((EntryKey::SessionBytes(id, number), encode(&piece)));
            }
        }
        let pieces = entries.len();
        let before =
            |age: Duration| now.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        let identity = &self.record.identity;
        let message = SessionMessage {
            id: Some(id.0),
            started: Some(before(self.record.age)),
            last_moved: Some(before(self.record.idle)),
            bytes: Some(self.balances.bytes.iter().sum()),
            identity: Some(IdentityMessage {
                client_address: identity.client_address().to_owned(),
                client_user_name: identity.client_user_name().to_owned(),
                host_address: identity.host_address().to_owned(),
                host_id: identity.host_id,
            }),
            peers: vec![self.peer(0, pieces == 0), self.peer(1, pieces == 0)],
            is_final: self.is_final,
            traceparent: self.traceparent.clone(),
            pieces: u32::try_from(pieces).unwrap_or(u32::MAX),
            piece_set: if pieces == 0 { 0 } else { now },
        };
        entries.push((EntryKey::Session(id), encode(&message)));
        entries
    }

    fn peer(&self, number: usize, is_inline: bool) -> SessionPeerMessage {
        let (address, in_flight) = (self.record.addresses[number], &self.in_flight[number]);
        SessionPeerMessage {
            ip: match address.ip() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            },
            port: address.port().into(),
            scope: match address {
                SocketAddr::V4(_) => 0,
                SocketAddr::V6(address) => address.scope_id(),
            },
            balance: Some(self.balances.constants[number]),
            consumed: Some(self.balances.consumed[number]),
            written: Some(self.balances.written[number]),
            was_closed: self.balances.was_closed[number],
            in_flight_length: in_flight.len() as u64,
            in_flight: if is_inline { in_flight.clone() } else { Vec::new() },
            bytes: Some(self.balances.bytes[number]),
        }
    }

    /// Decodes a note as of the time of `clock`. `find_piece` returns the note of the piece with a number, if the store has it.
    /// If pieces are missing or belong to another note, nothing is in flight according to the decoded note, and verification
    /// tells whether bytes are lost.
    ///
    /// # Errors
    /// What the note lacks.
    pub fn decode<'a>(
        note: &[u8],
        clock: NoteClock,
        find_piece: impl FnMut(u16) -> Option<&'a [u8]>,
    ) -> Result<Self, NoteError> {
        let message: SessionMessage = decode(note)?;
        let identity = message.identity.clone().ok_or(NoteError::Field("identity"))?;
        let [first, second] = &message.peers[..] else {
            return Err(NoteError::Field("pair of peers"));
        };
        let peers = [first, second];
        let age = |time| Ok(clock.age(time));
        let missing = NoteError::Field;
        let bytes = split_bytes(plausible(message.bytes, "number of bytes")?, peers);
        let record = SessionRecord {
            id: SessionId(plausible(message.id, "number of the session")?),
            age: message.started.ok_or(missing("start")).and_then(age)?,
            idle: message.last_moved.ok_or(missing("time of the last byte")).and_then(age)?,
            bytes,
            identity: PeerIdentity::new(
                &identity.client_address,
                &identity.client_user_name,
                &identity.host_address,
                identity.host_id,
            ),
            addresses: both(peers.map(address))?,
        };
        let balances = Balances {
            constants: both(peers.map(|peer| peer.balance.ok_or(missing("balance"))))?,
            consumed: both(peers.map(|peer| peer.consumed.ok_or(missing("number of bytes read"))))?,
            written: both(
                peers.map(|peer| peer.written.ok_or(missing("number of bytes written"))),
            )?,
            was_closed: peers.map(|peer| peer.was_closed),
            bytes,
        };
        let in_flight = in_flight(&message, peers, find_piece).unwrap_or_default();
        let SessionMessage { is_final, traceparent, .. } = message;
        Ok(Self { record, balances, in_flight, is_final, traceparent })
    }
}

fn both<T>([first, second]: [Result<T, NoteError>; 2]) -> Result<[T; 2], NoteError> {
    Ok([first?, second?])
}

/// Returns how many bytes moved from each peer, of `total`. If the note does not tell, the kernel's figures do: the relay wrote
/// to each peer what the other had sent.
fn split_bytes(total: u64, [first, second]: [&SessionPeerMessage; 2]) -> [u64; 2] {
    let from_first = first.bytes.or(second.written).unwrap_or(total).min(total);
    [from_first, total - from_first]
}

fn address(peer: &SessionPeerMessage) -> Result<SocketAddr, NoteError> {
    let missing = NoteError::Field("address of a peer");
    let port = u16::try_from(peer.port).map_err(|_| missing.clone())?;
    if let Ok(ip) = <[u8; 4]>::try_from(&peer.ip[..]) {
        return Ok((ip, port).into());
    }
    let ip = <[u8; 16]>::try_from(&peer.ip[..]).map_err(|_| missing)?;
    Ok(SocketAddrV6::new(ip.into(), port, 0, peer.scope).into())
}

/// Returns the bytes in flight; `None` if not all of them are there.
fn in_flight<'a>(
    message: &SessionMessage,
    peers: [&SessionPeerMessage; 2],
    mut find_piece: impl FnMut(u16) -> Option<&'a [u8]>,
) -> Option<[Vec<u8>; 2]> {
    let lengths = peers.map(|peer| peer.in_flight_length);
    let all = lengths[0].checked_add(lengths[1]).filter(|all| *all <= MAX_IN_FLIGHT)?;
    let mut bytes = Vec::with_capacity(usize::try_from(all).ok()?);
    if message.pieces == 0 {
        bytes.extend(peers.iter().flat_map(|peer| &peer.in_flight));
    }
    for number in 0..u16::try_from(message.pieces).ok()? {
        let piece: PieceMessage = decode(find_piece(number)?).ok()?;
        if piece.piece_set != message.piece_set {
            return None;
        }
        bytes.extend(piece.bytes);
    }
    if bytes.len() as u64 != all {
        return None;
    }
    let second = bytes.split_off(usize::try_from(lengths[0]).ok()?);
    Some([bytes, second])
}
