//! The messages between a relay and the descriptor store: prost messages over `SOCK_SEQPACKET`, one in each packet, with
//! descriptors beside them (`SCM_RIGHTS`).
//!
//! The client asks and the store answers, one request at a time. Fields and variants are only ever added, so that a relay and
//! a store of different versions understand each other.

use std::fmt;

use prost::{Enumeration, Message, Oneof};
use zeroize::Zeroize;

/// The newest version of the protocol that this program speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// The oldest version that it still speaks.
pub const OLDEST_VERSION: u32 = 1;
/// The largest message, in bytes. It must stay below the usual limit on the send buffer of a socket (`wmem_default`, 208 KiB).
pub const MAX_MESSAGE: usize = 128 * 1024;
/// The most descriptors that one message carries: the kernel's own limit (`SCM_MAX_FD`).
pub const MAX_MESSAGE_DESCRIPTORS: usize = 253;
/// The longest key, in bytes.
pub const MAX_KEY: usize = 255;
/// The longest note, in bytes.
pub const MAX_NOTE: usize = 64 * 1024;
/// The most descriptors of one entry.
pub const MAX_ENTRY_DESCRIPTORS: usize = 4;
/// The most entries of a store, so that its memory is bounded: 100 000 sessions and as many keys, and as many again.
pub const MAX_ENTRIES: usize = 400_000;
/// Length of a nonce, in bytes.
pub const NONCE_LEN: usize = 32;
/// Length of the id of an owner, in bytes.
pub const OWNER_ID_LEN: usize = 16;
/// What a message needs at most besides the keys and notes in it.
pub(super) const MESSAGE_OVERHEAD: usize = 32;
/// What an entry or a change needs at most besides its key and its note.
pub(super) const ENTRY_OVERHEAD: usize = 32;

/// What a client sends.
#[derive(Clone, PartialEq, Message)]
pub struct StoreRequest {
    /// The request. `None` if it is of a newer version.
    #[prost(oneof = "RequestKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub kind: Option<RequestKind>,
}

/// The requests.
#[derive(Clone, PartialEq, Oneof)]
pub enum RequestKind {
    /// The first message of every connection.
    #[prost(message, tag = "1")]
    Hello(HelloRequest),
    /// Proves that the client knows the token.
    #[prost(message, tag = "2")]
    Prove(ProveRequest),
    /// Asks for the lease; one descriptor comes with it, the reading end of the owner's life line.
    #[prost(message, tag = "3")]
    Acquire(AcquireRequest),
    /// Asks for the next entries.
    #[prost(message, tag = "4")]
    Take(TakeRequest),
    /// Changes entries; the descriptors of all of them come with it.
    #[prost(message, tag = "5")]
    Apply(ApplyRequest),
    /// Removes all entries.
    #[prost(message, tag = "6")]
    Clear(EmptyMessage),
    /// Marks the entries as complete.
    #[prost(message, tag = "7")]
    Commit(EmptyMessage),
    /// Gives the lease back. The owner has received the answer to its commit and touches nothing any more.
    #[prost(message, tag = "8")]
    Release(EmptyMessage),
    /// Asks for counts.
    #[prost(message, tag = "9")]
    Status(EmptyMessage),
}

/// A message without content.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct EmptyMessage {}

/// The first message of a client.
#[derive(Clone, PartialEq, Message)]
pub struct HelloRequest {
    /// The newest version that the client speaks.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Random bytes that the store's proof is bound to.
    #[prost(bytes = "vec", tag = "2")]
    pub nonce: Vec<u8>,
    /// Whether the client has a token.
    #[prost(bool, tag = "3")]
    pub has_token: bool,
    /// Whether the client asks for nothing but the status, for which it needs no token.
    #[prost(bool, tag = "4")]
    pub is_status_only: bool,
}

/// The client's proof.
#[derive(Clone, PartialEq, Message)]
pub struct ProveRequest {
    /// The HMAC.
    #[prost(bytes = "vec", tag = "1")]
    pub proof: Vec<u8>,
}

/// Asks for the lease.
#[derive(Clone, PartialEq, Message)]
pub struct AcquireRequest {
    /// Who asks.
    #[prost(bytes = "vec", tag = "1")]
    pub owner: Vec<u8>,
    /// How long to wait for another owner to go away.
    #[prost(uint64, tag = "2")]
    pub wait_milliseconds: u64,
}

/// Asks for entries in the order of their keys.
#[derive(Clone, PartialEq, Message)]
pub struct TakeRequest {
    /// The last key that has been received; empty for the beginning.
    #[prost(bytes = "vec", tag = "1")]
    pub after: Vec<u8>,
}

/// Changes that are made together or, if the store refuses them, not at all.
#[derive(Clone, PartialEq, Message)]
pub struct ApplyRequest {
    /// The changes, in order.
    #[prost(message, repeated, tag = "1")]
    pub changes: Vec<ChangeMessage>,
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum ChangeKind {
    /// A kind of a newer version.
    Unknown = 0,
    /// Replaces note and descriptors.
    Put = 1,
    /// Replaces the note, if there is such an entry.
    Annotate = 2,
    /// Deletes the entry, if there is one.
    Delete = 3,
}

/// One change.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct ChangeMessage {
    /// What to do.
    #[prost(enumeration = "ChangeKind", tag = "1")]
    pub kind: i32,
    /// The key of the entry.
    #[prost(bytes = "vec", tag = "2")]
    pub key: Vec<u8>,
    /// The new note.
    #[prost(bytes = "vec", tag = "3")]
    pub note: Vec<u8>,
    /// How many of the descriptors beside the message belong to the entry.
    #[prost(uint32, tag = "4")]
    pub descriptors: u32,
}

impl fmt::Debug for ChangeMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChangeMessage({:?}, [redacted])", self.kind())
    }
}

impl Drop for ChangeMessage {
    fn drop(&mut self) {
        self.note.zeroize();
    }
}

/// What the store answers.
#[derive(Clone, PartialEq, Message)]
pub struct StoreAnswer {
    /// The answer. `None` if it is of a newer version.
    #[prost(oneof = "AnswerKind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<AnswerKind>,
}

/// The answers.
#[derive(Clone, PartialEq, Oneof)]
pub enum AnswerKind {
    /// To a hello.
    #[prost(message, tag = "1")]
    Welcome(WelcomeAnswer),
    /// The request has been carried out.
    #[prost(message, tag = "2")]
    Done(EmptyMessage),
    /// The request is refused.
    #[prost(message, tag = "3")]
    Refused(RefusedAnswer),
    /// The client is the owner now.
    #[prost(message, tag = "4")]
    Acquired(AcquiredAnswer),
    /// The next entries, with their descriptors beside the message.
    #[prost(message, tag = "5")]
    Entries(EntriesAnswer),
    /// Counts.
    #[prost(message, tag = "6")]
    Status(StatusAnswer),
}

/// The answer to a hello.
#[derive(Clone, PartialEq, Message)]
pub struct WelcomeAnswer {
    /// The version that both speak.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Random bytes that the client's proof is bound to.
    #[prost(bytes = "vec", tag = "2")]
    pub nonce: Vec<u8>,
    /// The store's proof, if there is a token.
    #[prost(bytes = "vec", tag = "3")]
    pub proof: Vec<u8>,
}

/// Why the store refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum RefusalReason {
    /// A reason of a newer version.
    Unknown = 0,
    /// The client belongs to another user.
    OtherUser = 1,
    /// The store speaks no version that the client speaks.
    Version = 2,
    /// The store has a token, the client has none.
    TokenMissing = 3,
    /// The client has a token, the store has none.
    TokenUnexpected = 4,
    /// The client has another token.
    TokenWrong = 5,
    /// Another relay owns the store.
    Owned = 6,
    /// The client does not own the store.
    NotOwner = 7,
    /// The store cannot keep more.
    Full = 8,
    /// The store has too many connections.
    Busy = 9,
    /// The message cannot be understood, or is not allowed here.
    Malformed = 10,
    /// The request is of a newer version.
    UnknownRequest = 11,
    /// Descriptors did not arrive: too many open files, or a security policy forbids passing them.
    DescriptorsLost = 12,
}

/// A refusal.
#[derive(Clone, PartialEq, Message)]
pub struct RefusedAnswer {
    /// Why.
    #[prost(enumeration = "RefusalReason", tag = "1")]
    pub reason: i32,
    /// The user or the version of the store, or how many entries or descriptors it keeps at most.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// The present owner, if that is the reason.
    #[prost(message, optional, tag = "3")]
    pub owner: Option<OwnerMessage>,
}

/// The present owner.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct OwnerMessage {
    /// Its process id as the store sees it; 0 if it runs in another PID namespace.
    #[prost(uint32, tag = "1")]
    pub process: u32,
    /// For how long it has been the owner.
    #[prost(uint64, tag = "2")]
    pub milliseconds: u64,
    /// Whether it is connected now.
    #[prost(bool, tag = "3")]
    pub is_connected: bool,
}

/// The answer to a request for the lease.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct AcquiredAnswer {
    /// How many entries there are.
    #[prost(uint64, tag = "1")]
    pub entries: u64,
    /// Whether their owner committed them.
    #[prost(bool, tag = "2")]
    pub was_committed: bool,
    /// Whether they are this owner's.
    #[prost(bool, tag = "3")]
    pub is_own: bool,
}

/// Some entries.
#[derive(Clone, PartialEq, Message)]
pub struct EntriesAnswer {
    /// The entries, in the order of their keys.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<EntryMessage>,
    /// Whether there are no more.
    #[prost(bool, tag = "2")]
    pub is_last: bool,
}

/// One entry.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct EntryMessage {
    /// Its key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Its note.
    #[prost(bytes = "vec", tag = "2")]
    pub note: Vec<u8>,
    /// How many of the descriptors beside the message belong to it.
    #[prost(uint32, tag = "3")]
    pub descriptors: u32,
}

impl fmt::Debug for EntryMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EntryMessage([redacted])")
    }
}

impl Drop for EntryMessage {
    fn drop(&mut self) {
        self.note.zeroize();
    }
}

/// What the store says about itself.
#[derive(Clone, PartialEq, Message)]
pub struct StatusAnswer {
    /// How many entries it keeps.
    #[prost(uint64, tag = "1")]
    pub entries: u64,
    /// How many descriptors.
    #[prost(uint64, tag = "2")]
    pub descriptors: u64,
    /// How many descriptors it can keep.
    #[prost(uint64, tag = "3")]
    pub max_descriptors: u64,
    /// The present owner.
    #[prost(message, optional, tag = "4")]
    pub owner: Option<OwnerMessage>,
    /// `FdStoreTimeout`.
    #[prost(uint64, tag = "5")]
    pub timeout_milliseconds: u64,
    /// When everything is closed unless a relay comes.
    #[prost(uint64, optional, tag = "6")]
    pub expires_in_milliseconds: Option<u64>,
    /// Whether the entries are committed.
    #[prost(bool, tag = "7")]
    pub is_committed: bool,
    /// The version of the program.
    #[prost(string, tag = "8")]
    pub program_version: String,
    /// The newest version of the protocol that the store speaks.
    #[prost(uint32, tag = "9")]
    pub protocol_version: u32,
}
