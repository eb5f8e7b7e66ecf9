//! One connection of a probe: a first message in two parts, and how the other side reacts to each.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::deadline;
use crate::wire::peer::{self, PROBE_KEY_ID, PeerToRelay};

use super::outcome::{CLOSE_TIMEOUT, ProbeOutcome};

/// How long to wait for a greeting, or for a load balancer that closes since it has no backend.
const GREETING_TIME: Duration = Duration::from_secs(1);
/// How long to see whether it waits for the rest of the message. Long enough for `HAProxy`, which closes after three attempts
/// to reach a backend, a second apart; and together with [`GREETING_TIME`] short enough for the original 3.0 relay, which
/// gives a peer 5 s for its first message.
const REST_TIME: Duration = Duration::from_millis(2500);
/// The maximum number of bytes that are read from a service that speaks.
const MAX_HEAD: usize = 64;

/// In place of a public key, so that a packet capture shows where the message comes from.
const PUBLIC_KEY: &[u8; 32] = b"aspia_relay --probe has no key!!";
/// The length of a sealed secret.
const DATA_LEN: usize = 76;

/// How the other side reacted.
enum Reaction {
    None,
    Closed,
    Reset,
    Sent(Vec<u8>),
}

/// Finds out what answers on a connection.
pub(super) async fn examine<C>(connection: &mut C) -> ProbeOutcome
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    match wait(connection, GREETING_TIME).await {
        Reaction::None => {}
        Reaction::Closed => return ProbeOutcome::ClosedAtOnce,
        Reaction::Reset => return ProbeOutcome::ResetAtOnce,
        Reaction::Sent(head) => return ProbeOutcome::of_bytes(&head),
    }
    let message = first_message();
    let (last, begin) = message.split_last().unwrap_or((&0, &[]));
    match send(connection, begin, REST_TIME).await {
        Reaction::None => {}
        Reaction::Closed | Reaction::Reset => return ProbeOutcome::ClosedEarly,
        Reaction::Sent(head) => return ProbeOutcome::of_bytes(&head),
    }
    match send(connection, &[*last], CLOSE_TIMEOUT).await {
        Reaction::None => ProbeOutcome::Silent,
        Reaction::Closed | Reaction::Reset => ProbeOutcome::Relay,
        Reaction::Sent(head) => ProbeOutcome::of_bytes(&head),
    }
}

/// A first message as a peer of either dialect sends it, with a key that no relay has handed out.
fn first_message() -> Vec<u8> {
    let message = PeerToRelay {
        key_id: PROBE_KEY_ID,
        public_key: PUBLIC_KEY.to_vec(),
        data: vec![0; DATA_LEN],
        encryption: 0,
    };
    peer::encode_first_message(&message).unwrap_or_default()
}

/// Sends bytes, and waits for a reaction.
async fn send<C>(connection: &mut C, bytes: &[u8], limit: Duration) -> Reaction
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let sent = async {
        connection.write_all(bytes).await?;
        connection.flush().await
    };
    // What it sent before it closed is still there to be read.
    match deadline::timeout(limit, sent).await {
        Ok(_) => wait(connection, limit).await,
        Err(_) => Reaction::None,
    }
}

/// Waits for the other side to send something or to close.
async fn wait<C: AsyncRead + Unpin>(connection: &mut C, limit: Duration) -> Reaction {
    let mut head = vec![0; MAX_HEAD];
    match deadline::timeout(limit, connection.read(&mut head)).await {
        Err(_) => Reaction::None,
        Ok(Ok(0)) => Reaction::Closed,
        Ok(Ok(read)) => {
            head.truncate(read);
            Reaction::Sent(head)
        }
        Ok(Err(_)) => Reaction::Reset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_message_is_one_that_a_relay_reads() {
        let message = first_message();
        let (prefix, body) = message.split_at(peer::PREFIX_LEN);
        assert_eq!(peer::decode_length(prefix.try_into().unwrap()), Ok(body.len()));
        let read: PeerToRelay = prost::Message::decode(body).unwrap();
        assert_eq!((read.key_id, read.public_key.len()), (PROBE_KEY_ID, PUBLIC_KEY.len()));
    }
}
