//! Why the descriptor store cannot be used.

use std::io;
use std::time::Duration;

use super::address::StoreAddress;
use super::protocol::{OwnerMessage, RefusalReason, RefusedAnswer};

/// The relay that owns the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOwner {
    /// Its process id; `None` if it runs in another PID namespace, such as another container.
    pub process: Option<u32>,
    /// For how long it has been the owner.
    pub since: Duration,
    /// Whether it is connected now. A relay that lost its connection remains the owner for a while.
    pub is_connected: bool,
}

impl From<OwnerMessage> for StoreOwner {
    fn from(owner: OwnerMessage) -> Self {
        Self {
            process: Some(owner.process).filter(|process| *process != 0),
            since: Duration::from_millis(owner.milliseconds),
            is_connected: owner.is_connected,
        }
    }
}

impl std::fmt::Display for StoreOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.process {
            Some(process) => write!(f, "process {process}")?,
            None => f.write_str("a process of another container")?,
        }
        write!(f, ", for {} s", self.since.as_secs())?;
        if self.is_connected { Ok(()) } else { f.write_str(", which lost its connection") }
    }
}

/// Why a call to the store failed. After an error other than a [refusal](Self::is_refusal) the client is unusable.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No process listens, or the system does not allow the connection.
    #[error(
        "no descriptor store can be reached at {address}: {error}. Start one (aspia_relay --fd-store) with the same FdStore, \
         or set FdStore to off"
    )]
    Connect {
        /// Where.
        address: StoreAddress,
        /// The system's error.
        error: io::Error,
    },
    /// The process that listens belongs to another user.
    #[error(
        "the process that listens at {address} belongs to the user with id {theirs}, this one to {ours}: it gets nothing. Run \
         the store as the same user, or choose another FdStore"
    )]
    OtherUser {
        /// Where.
        address: StoreAddress,
        /// The user of the process that listens.
        theirs: u32,
        /// The user of this process.
        ours: u32,
    },
    /// The store belongs to another user and refuses this one.
    #[error(
        "the descriptor store belongs to the user with id {store} and refuses others: run relay and store as the same user"
    )]
    UserRefused {
        /// The user of the store.
        store: u64,
    },
    /// Only the store has a token.
    #[error(
        "the descriptor store requires an AdminToken, and none is set here: set the same AdminToken for both"
    )]
    TokenMissing,
    /// Only this side has a token.
    #[error(
        "an AdminToken is set here, but the descriptor store has none: set the same AdminToken for both; if the store has \
         it from its environment, restart the store"
    )]
    TokenUnexpected,
    /// Both have a token, and they differ.
    #[error(
        "the descriptor store has another AdminToken: set the same AdminToken for both; if the store has it from its environment, \
         restart the store"
    )]
    TokenDiffers,
    /// There is no version of the protocol that both speak.
    #[error(
        "the descriptor store speaks version {0} of its protocol, which this program does not: run the same version of both"
    )]
    Version(u64),
    /// Another relay owns the store.
    #[error(
        "another relay owns the descriptor store: {0}. Stop it, or set another FdStore for this one"
    )]
    Owned(StoreOwner),
    /// This client does not own the store.
    #[error("this relay does not own the descriptor store, or not any more")]
    NotOwner,
    /// The store cannot keep more.
    #[error(
        "the descriptor store is full, its limit is {0}: if that is its limit on open files, raise it (ulimit -n, LimitNOFILE, \
         ulimits of the container); otherwise lower MaxPeerCount"
    )]
    Full(u64),
    /// The store has too many connections.
    #[error("the descriptor store has too many connections")]
    Busy,
    /// The store did not understand.
    #[error("the descriptor store did not understand a message: run the same version of both")]
    Misunderstood,
    /// Descriptors did not reach the store.
    #[error(
        "descriptors did not reach the descriptor store: it may not open so many files, or a security policy such as SELinux \
         forbids passing them (give both containers the same seLinuxOptions.level)"
    )]
    DescriptorsLost,
    /// Descriptors did not reach this process.
    #[error(
        "descriptors did not arrive from the descriptor store: this process may not open so many files, or a security policy \
         such as SELinux forbids passing them (give both containers the same seLinuxOptions.level)"
    )]
    DescriptorsNotReceived,
    /// A key, a note or the descriptors of an entry exceed what the store accepts.
    #[error("{size} {what} exceed the {limit} that the descriptor store accepts for one entry")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// How much it is.
        size: usize,
        /// How much is accepted.
        limit: usize,
    },
    /// There was no answer in time.
    #[error(
        "the descriptor store did not answer within {}: it hangs or is stopped; restart it",
        humantime::format_duration(*.0)
    )]
    TimedOut(Duration),
    /// The store closed the connection.
    #[error("the descriptor store closed the connection: it has ended or is being replaced")]
    Closed,
    /// The store does not keep to the protocol.
    #[error("the descriptor store answered with {0}: it is not a store, or of another version")]
    Unexpected(&'static str),
    /// An earlier call failed.
    #[error("an earlier call to the descriptor store failed: connect again")]
    Unusable,
    /// The system's error.
    #[error("the descriptor store cannot be used: {0}")]
    System(#[from] io::Error),
}

impl StoreError {
    /// Whether the store refused a request as a whole and the connection is still good.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Owned(_) | Self::NotOwner | Self::Full(_) | Self::TooLarge { .. })
    }
}

impl From<RefusedAnswer> for StoreError {
    fn from(refused: RefusedAnswer) -> Self {
        let number = refused.number;
        match refused.reason() {
            RefusalReason::OtherUser => Self::UserRefused { store: number },
            RefusalReason::Version => Self::Version(number),
            RefusalReason::TokenMissing => Self::TokenMissing,
            RefusalReason::TokenUnexpected => Self::TokenUnexpected,
            RefusalReason::TokenWrong => Self::TokenDiffers,
            RefusalReason::Owned => Self::Owned(refused.owner.unwrap_or_default().into()),
            RefusalReason::NotOwner => Self::NotOwner,
            RefusalReason::Full => Self::Full(number),
            RefusalReason::Busy => Self::Busy,
            RefusalReason::DescriptorsLost => Self::DescriptorsLost,
            RefusalReason::Malformed | RefusalReason::UnknownRequest => Self::Misunderstood,
            RefusalReason::Unknown => Self::Unexpected("an unknown refusal"),
        }
    }
}
