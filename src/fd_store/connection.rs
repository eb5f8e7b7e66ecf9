//! One connection to the store.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use crate::secret::Secret;

use super::credentials::SocketCredentials;
use super::entries::refusal;
use super::lease::StoreOwnerRecord;
use super::packet::{self, ReceivedPacket};
use super::proof::ProofContext;
use super::protocol::{
    AnswerKind, RefusalReason, RefusedAnswer, RequestKind, StoreAnswer, StoreRequest,
};

/// How far a connection has come.
pub(super) enum ConnectionStage {
    Greeting,
    Proving(ProofContext, Arc<Secret<String>>),
    StatusOnly,
    Trusted,
    Waiting(StoreOwnerRecord),
    Owner,
}

pub(super) struct StoreConnection {
    pub(super) number: u64,
    pub(super) socket: OwnedFd,
    pub(super) credentials: SocketCredentials,
    pub(super) stage: ConnectionStage,
    /// When it is closed or, if it waits for the lease, refused.
    pub(super) deadline: Option<Instant>,
}

impl StoreConnection {
    /// Sends an answer. A client that reads its answers always has room for the next, so one that has no room is given up.
    pub(super) fn send(&self, answer: AnswerKind, descriptors: &[BorrowedFd<'_>]) -> bool {
        let answer = StoreAnswer { kind: Some(answer) };
        let message = Zeroizing::new(answer.encode_to_vec());
        packet::send(self.socket.as_fd(), &message, descriptors).is_ok()
    }

    /// Whether the other side is a relay with the right token, as far as there is one.
    pub(super) fn has_proven(&self) -> bool {
        use ConnectionStage::{Greeting, Owner, Proving, StatusOnly, Trusted, Waiting};

        match self.stage {
            Greeting | Proving(..) | StatusOnly => false,
            Trusted | Waiting(_) | Owner => true,
        }
    }

    pub(super) fn enter(&mut self, stage: ConnectionStage, timeout: Option<Duration>) {
        self.stage = stage;
        self.deadline = timeout.map(|timeout| Instant::now() + timeout);
    }
}

/// Decodes a request and wipes it.
pub(super) fn decode(
    packet: &ReceivedPacket,
    bytes: &mut [u8],
) -> Result<RequestKind, RefusedAnswer> {
    let request = StoreRequest::decode(&*bytes);
    bytes.zeroize();
    let reason = match request {
        _ if packet.has_lost_descriptors => RefusalReason::DescriptorsLost,
        Ok(StoreRequest { kind: Some(kind) }) if !packet.is_too_long => return Ok(kind),
        Ok(_) if !packet.is_too_long => RefusalReason::UnknownRequest,
        _ => RefusalReason::Malformed,
    };
    Err(refusal(reason, 0))
}
