//! The client of the descriptor store.
//!
//! It blocks, and every exchange with the store has a deadline: a store that hangs is an error after that time, not a relay
//! that hangs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SocketFlags, connect};
use zeroize::{Zeroize, Zeroizing};

use crate::secret::Secret;

use super::address::StoreAddress;
use super::change::{ChangeBatch, check_limits};
use super::credentials::{SocketCredentials, own_user};
use super::error::{StoreError, StoreOwner};
use super::owner::OwnerId;
use super::packet;
use super::proof::{self, ProofContext, ProvingSide};
use super::protocol::{
    AcquireRequest, AnswerKind, EmptyMessage, EntryMessage, HelloRequest, MAX_ENTRIES, MAX_MESSAGE,
    NONCE_LEN, OLDEST_VERSION, PROTOCOL_VERSION, ProveRequest, RequestKind, StatusAnswer,
    StoreAnswer, StoreRequest, TakeRequest, WelcomeAnswer,
};

pub use super::change::StoreChange;

/// How long a client takes everything at most. 100 000 sessions take a few seconds.
const TAKE_TIME: Duration = Duration::from_secs(30);

/// An entry that was taken from the store.
#[derive(Debug)]
pub struct StoredEntry {
    /// Its key.
    pub key: Vec<u8>,
    /// What its owner wrote about it.
    pub note: Secret<Vec<u8>>,
    /// Duplicates of its descriptors, in the order in which they were put.
    pub descriptors: Vec<OwnedFd>,
}

/// What a relay finds when it becomes the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acquired {
    /// How many entries the store keeps.
    pub entries: usize,
    /// Whether the relay that left them committed them: they are complete, and it has ended.
    pub was_committed: bool,
    /// Whether they are of this very owner, which connects again.
    pub is_own: bool,
}

/// What the store says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    /// How many entries it keeps.
    pub entries: u64,
    /// How many descriptors.
    pub descriptors: u64,
    /// How many descriptors it can keep.
    pub max_descriptors: u64,
    /// The relay that owns it.
    pub owner: Option<StoreOwner>,
    /// Whether the entries are committed and wait for the next relay.
    pub is_committed: bool,
    /// How long it keeps everything without a relay (`FdStoreTimeout`).
    pub timeout: Duration,
    /// When everything is closed unless a relay comes.
    pub expires_in: Option<Duration>,
    /// The version of the program.
    pub version: String,
}

impl From<StatusAnswer> for StoreStatus {
    fn from(status: StatusAnswer) -> Self {
        Self {
            entries: status.entries,
            descriptors: status.descriptors,
            max_descriptors: status.max_descriptors,
            owner: status.owner.map(StoreOwner::from),
            is_committed: status.is_committed,
            timeout: Duration::from_millis(status.timeout_milliseconds),
            expires_in: status.expires_in_milliseconds.map(Duration::from_millis),
            version: status.program_version,
        }
    }
}

/// A connection to the store. Dropping it does not end the lease as long as a clone of the [`OwnerId`] exists.
#[derive(Debug)]
pub struct StoreClient {
    socket: OwnedFd,
    timeout: Duration,
    /// When calls have to be over, whatever their number, and how long they had in all.
    limit: Option<(Instant, Duration)>,
    /// Whether a call has failed, so that an answer to it may still be on its way.
    has_failed: bool,
    buffer: Zeroizing<Vec<u8>>,
}

impl StoreClient {
    /// Connects to the store, checks that it belongs to the same user, and that both know the same token or neither has one.
    /// `timeout` applies to each exchange with the store, now and later.
    ///
    /// # Errors
    /// There is no store, or it is not the right one.
    pub fn connect(
        address: &StoreAddress,
        token: Option<&Secret<String>>,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        let mut client = Self::open(address, timeout, |store| store == own_user())?;
        client.greet(address, token)?;
        Ok(client)
    }

    /// Asks the store at `address` for its status, without a token and without becoming the owner. Root may ask a store of
    /// any user.
    ///
    /// # Errors
    /// There is no store, or it does not answer.
    pub fn query_status(
        address: &StoreAddress,
        timeout: Duration,
    ) -> Result<StoreStatus, StoreError> {
        let user = own_user();
        let mut client = Self::open(address, timeout, |store| store == user || user == 0)?;
        let nonce = client.nonce()?;
        client.say_hello(&nonce, false, true)?;
        client.status()
    }

    fn open(
        address: &StoreAddress,
        timeout: Duration,
        is_allowed: impl Fn(u32) -> bool,
    ) -> Result<Self, StoreError> {
        let failed = |error| StoreError::Connect { address: address.clone(), error };
        let socket = packet::create_socket(SocketFlags::empty()).map_err(failed)?;
        // A store that hangs has a full queue of connections, which blocks `connect` for as long.
        let wait = timeout.max(Duration::from_millis(1));
        set_socket_timeout(&socket, Timeout::Send, Some(wait))
            .map_err(|error| failed(error.into()))?;
        let system_address = packet::system_address(address).map_err(failed)?;
        match connect(&socket, &system_address) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return Err(StoreError::TimedOut(timeout)),
            Err(error) => return Err(failed(error.into())),
        }
        let theirs = SocketCredentials::of_peer(socket.as_fd()).map_err(failed)?.user;
        if !is_allowed(theirs) {
            let (address, ours) = (address.clone(), own_user());
            return Err(StoreError::OtherUser { address, theirs, ours });
        }
        let buffer = Zeroizing::new(vec![0; MAX_MESSAGE]);
        Ok(Self { socket, timeout, limit: None, has_failed: false, buffer })
    }

    /// Exchanges hello and proofs.
    fn greet(
        &mut self,
        address: &StoreAddress,
        token: Option<&Secret<String>>,
    ) -> Result<(), StoreError> {
        let client_nonce = self.nonce()?;
        let welcome = self.say_hello(&client_nonce, token.is_some(), false)?;
        let Some(token) = token else { return Ok(()) };
        let store_nonce: [u8; NONCE_LEN] = welcome
            .nonce
            .as_slice()
            .try_into()
            .map_err(|_| StoreError::Unexpected("an invalid nonce"))?;
        let context = ProofContext {
            version: welcome.version,
            client_nonce,
            store_nonce,
            address: proof::bound_address(address),
        };
        if !context.verifies(token, ProvingSide::Store, &welcome.proof) {
            self.has_failed = true;
            return Err(StoreError::TokenDiffers);
        }
        let proof = context.prove(token, ProvingSide::Client);
        self.expect_done(RequestKind::Prove(ProveRequest { proof }))
    }

    fn nonce(&self) -> Result<[u8; NONCE_LEN], StoreError> {
        proof::nonce().ok_or_else(|| io::Error::other("the system has no random numbers").into())
    }

    fn say_hello(
        &mut self,
        nonce: &[u8],
        has_token: bool,
        is_status_only: bool,
    ) -> Result<WelcomeAnswer, StoreError> {
        let (version, nonce) = (PROTOCOL_VERSION, nonce.to_vec());
        let hello = HelloRequest { version, nonce, has_token, is_status_only };
        match self.ask(RequestKind::Hello(hello))? {
            AnswerKind::Welcome(welcome)
                if !(OLDEST_VERSION..=PROTOCOL_VERSION).contains(&welcome.version) =>
            {
                Err(StoreError::Version(welcome.version.into()))
            }
            AnswerKind::Welcome(welcome) => Ok(welcome),
            _ => self.unexpected(),
        }
    }

    /// Lets all calls from now on take no longer than `time` together, besides the timeout of each; `None` removes the limit.
    pub fn limit(&mut self, time: Option<Duration>) {
        self.limit = time.map(|time| (Instant::now() + time, time));
    }

    /// Becomes the owner of the store, and waits at most `wait` for another owner to go away.
    ///
    /// # Errors
    /// [`StoreError::Owned`] if another relay still owns it after that time, or another failure.
    pub fn acquire(&mut self, owner: &OwnerId, wait: Duration) -> Result<Acquired, StoreError> {
        let wait_milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let request = AcquireRequest { owner: owner.bytes().to_vec(), wait_milliseconds };
        let request = RequestKind::Acquire(request);
        let (answer, _) = self.exchange(request, &[owner.life_line()], wait)?;
        match answer {
            AnswerKind::Acquired(acquired) => Ok(Acquired {
                entries: usize::try_from(acquired.entries).unwrap_or(usize::MAX),
                was_committed: acquired.was_committed,
                is_own: acquired.is_own,
            }),
            _ => self.unexpected(),
        }
    }

    /// Receives duplicates of everything. The store keeps all of it. This takes at most 30 s (`TAKE_TIME`), also if the store never
    /// comes to an end.
    ///
    /// # Errors
    /// This client is not the owner, or another failure.
    pub fn take(&mut self) -> Result<Vec<StoredEntry>, StoreError> {
        self.limit(Some(TAKE_TIME));
        let taken = self.take_pages();
        self.limit(None);
        taken
    }

    fn take_pages(&mut self) -> Result<Vec<StoredEntry>, StoreError> {
        let mut taken: Vec<StoredEntry> = Vec::new();
        loop {
            // The next request acknowledges this answer, so that few descriptors are on their way at once: the kernel counts
            // them against the limit on open files of the sender.
            let last_key = taken.last().map(|entry| entry.key.clone()).unwrap_or_default();
            let request = RequestKind::Take(TakeRequest { after: last_key.clone() });
            let (answer, descriptors) = self.exchange(request, &[], Duration::ZERO)?;
            let AnswerKind::Entries(mut page) = answer else { return self.unexpected() };
            let promised: u64 = page.entries.iter().map(|entry| u64::from(entry.descriptors)).sum();
            // A store that repeats itself would never come to an end, and one with more than any store keeps would take all memory.
            let keys =
                std::iter::once(&last_key).chain(page.entries.iter().map(|entry| &entry.key));
            let is_ascending = keys.is_sorted_by(|one, next| one < next);
            let is_too_much = taken.len() + page.entries.len() > MAX_ENTRIES;
            if !is_ascending || is_too_much || (!page.is_last && page.entries.is_empty()) {
                return self.unexpected();
            }
            if descriptors.len() as u64 != promised {
                self.has_failed = true;
                return Err(StoreError::DescriptorsNotReceived);
            }
            let mut descriptors = descriptors.into_iter();
            taken.extend(page.entries.iter_mut().map(|entry| stored(entry, &mut descriptors)));
            if page.is_last {
                return Ok(taken);
            }
        }
    }

    /// Makes the changes, in order, in batches that the store acknowledges one by one. If the store is full, the batches before
    /// are made and the others are not.
    ///
    /// # Errors
    /// This client is not the owner, the store is full, or another failure.
    pub fn apply(&mut self, changes: &[StoreChange<'_>]) -> Result<(), StoreError> {
        changes.iter().try_for_each(check_limits)?;
        let mut batch = ChangeBatch::default();
        for change in changes {
            if !batch.has_room_for(change) {
                self.send_batch(std::mem::take(&mut batch))?;
            }
            batch.push(change);
        }
        if batch.request.changes.is_empty() { Ok(()) } else { self.send_batch(batch) }
    }

    fn send_batch(&mut self, batch: ChangeBatch<'_>) -> Result<(), StoreError> {
        let request = RequestKind::Apply(batch.request);
        match self.exchange(request, &batch.descriptors, Duration::ZERO)?.0 {
            AnswerKind::Done(_) => Ok(()),
            _ => self.unexpected(),
        }
    }

    /// Removes everything from the store.
    ///
    /// # Errors
    /// This client is not the owner, or another failure.
    pub fn clear(&mut self) -> Result<(), StoreError> {
        self.expect_done(RequestKind::Clear(EmptyMessage {}))
    }

    /// Marks the entries as complete and gives the lease back: the next relay may continue with them. This relay must not touch
    /// any of the sockets after that. If this fails, the relay remains the owner and the sessions remain its own.
    ///
    /// # Errors
    /// This client is not the owner, or another failure.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        self.commit_without_release()?;
        // Without it the store would wait for the end of this process before another relay becomes the owner, since it cannot
        // know whether the answer above has arrived. A failure therefore costs time, and nothing else.
        let _ = self.expect_done(RequestKind::Release(EmptyMessage {}));
        Ok(())
    }

    /// Marks the entries as complete, and remains the owner. This does not count if the process ends before it has released the
    /// lease: it may not have learnt that the commit has arrived.
    ///
    /// # Errors
    /// This client is not the owner, or another failure.
    pub fn commit_without_release(&mut self) -> Result<(), StoreError> {
        self.expect_done(RequestKind::Commit(EmptyMessage {}))
    }

    /// Asks for counts.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn status(&mut self) -> Result<StoreStatus, StoreError> {
        match self.ask(RequestKind::Status(EmptyMessage {}))? {
            AnswerKind::Status(status) => Ok(status.into()),
            _ => self.unexpected(),
        }
    }

    fn expect_done(&mut self, request: RequestKind) -> Result<(), StoreError> {
        match self.ask(request)? {
            AnswerKind::Done(_) => Ok(()),
            _ => self.unexpected(),
        }
    }

    fn unexpected<T>(&mut self) -> Result<T, StoreError> {
        self.has_failed = true;
        Err(StoreError::Unexpected("another message than expected"))
    }

    fn ask(&mut self, request: RequestKind) -> Result<AnswerKind, StoreError> {
        self.exchange(request, &[], Duration::ZERO).map(|(answer, _)| answer)
    }

    /// Sends a request and receives the answer, for which the store may need `wait` on top of the timeout.
    fn exchange(
        &mut self,
        request: RequestKind,
        descriptors: &[BorrowedFd<'_>],
        wait: Duration,
    ) -> Result<(AnswerKind, Vec<OwnedFd>), StoreError> {
        if self.has_failed {
            return Err(StoreError::Unusable);
        }
        // Unless everything below succeeds, the next answer might be that to this request.
        self.has_failed = true;
        let deadline = self.deadline();
        let request = StoreRequest { kind: Some(request) };
        let message = Zeroizing::new(request.encode_to_vec());
        self.send(&message, descriptors, deadline)?;
        // Far enough for any wait, and near enough for any clock.
        let wait = wait.min(Duration::from_secs(24 * 3600));
        let (answer, received) = self.receive((deadline.0 + wait, deadline.1))?;
        let answer = answer.kind.ok_or(StoreError::Unexpected("an unknown message"))?;
        if let AnswerKind::Refused(refused) = answer {
            let error = StoreError::from(refused);
            self.has_failed = !error.is_refusal();
            return Err(error);
        }
        self.has_failed = false;
        Ok((answer, received))
    }

    /// When a call has to be over that begins now, and what an error says about that.
    fn deadline(&self) -> (Instant, Duration) {
        let own = (Instant::now() + self.timeout, self.timeout);
        self.limit.map_or(own, |limit| limit.min(own))
    }

    fn send(
        &self,
        message: &[u8],
        descriptors: &[BorrowedFd<'_>],
        deadline: (Instant, Duration),
    ) -> Result<(), StoreError> {
        loop {
            match packet::send(self.socket.as_fd(), message, descriptors) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::OUT, deadline)?;
                }
                // What the store said before it closed the connection says more.
                Err(error) if is_closed(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive(
        &mut self,
        deadline: (Instant, Duration),
    ) -> Result<(StoreAnswer, Vec<OwnedFd>), StoreError> {
        let received = loop {
            match packet::receive(self.socket.as_fd(), &mut self.buffer) {
                Ok(received) => break received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::IN, deadline)?;
                }
                Err(error) if is_closed(&error) => return Err(StoreError::Closed),
                Err(error) => return Err(error.into()),
            }
        };
        if received.length == 0 {
            return Err(StoreError::Closed);
        }
        let bytes = &mut self.buffer[..received.length];
        let answer = StoreAnswer::decode(&*bytes);
        bytes.zeroize();
        if received.is_too_long {
            return Err(StoreError::Unexpected("a message that is too long"));
        }
        if received.has_lost_descriptors {
            return Err(StoreError::DescriptorsNotReceived);
        }
        let answer =
            answer.map_err(|_| StoreError::Unexpected("a message that cannot be decoded"))?;
        Ok((answer, received.descriptors))
    }

    /// Waits until the socket is ready or closed.
    fn wait(
        &self,
        events: PollFlags,
        (deadline, time): (Instant, Duration),
    ) -> Result<(), StoreError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(StoreError::TimedOut(time));
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.socket, events)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }
}

/// The connection, readable when the store is gone.
impl AsFd for StoreClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

fn stored(
    entry: &mut EntryMessage,
    descriptors: &mut impl Iterator<Item = OwnedFd>,
) -> StoredEntry {
    let count = usize::try_from(entry.descriptors).unwrap_or(usize::MAX);
    StoredEntry {
        key: std::mem::take(&mut entry.key),
        note: Secret::new(std::mem::take(&mut entry.note)),
        descriptors: descriptors.take(count).collect(),
    }
}
