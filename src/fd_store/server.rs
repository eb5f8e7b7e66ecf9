//! The descriptor store: one thread that serves its connections in turn and never waits for any of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::log::limit::LineLimit;
use crate::secret::Secret;

use super::address::StoreAddress;
use super::client::StoreStatus;
use super::connection::{ConnectionStage, StoreConnection, decode};
use super::credentials::{SocketCredentials, own_user};
use super::entries::{EntryMap, raise_open_files, refusal};
use super::lease::{StoreLease, StoreOwnerRecord};
use super::listener::{StoreBindError, StoreListener};
use super::packet;
use super::proof::{self, ProofContext, ProvingSide};
use super::protocol::{
    AcquireRequest, AcquiredAnswer, AnswerKind, ChangeKind, EmptyMessage, HelloRequest,
    MAX_MESSAGE, MAX_MESSAGE_DESCRIPTORS, OLDEST_VERSION, PROTOCOL_VERSION, RefusalReason,
    RefusedAnswer, RequestKind, StatusAnswer, TakeRequest, WelcomeAnswer,
};
use super::settings::{AbandonedEntry, AbandonmentHandler, CurrentToken, StoreSettings};

/// The most connections at once. A new one replaces the one that would be closed next, of those that have proven
/// nothing first.
const MAX_CONNECTIONS: usize = 32;
/// Descriptors for everything but what is kept: connections, those of a message that arrives, the log.
const RESERVED: u64 = MAX_CONNECTIONS as u64 + MAX_MESSAGE_DESCRIPTORS as u64 + 64;
/// How long a new connection may take to prove itself.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that does not own the store may be silent.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest wait for the lease.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// The shortest time between two reports to the service manager, and the pause after a failure to accept.
const PAUSE: Duration = Duration::from_secs(1);

/// The store.
pub struct DescriptorStore {
    address: StoreAddress,
    timeout: Duration,
    token: CurrentToken,
    on_abandonment: AbandonmentHandler,
    listener: StoreListener,
    accept_after: Option<Instant>,
    entries: EntryMap,
    lease: StoreLease,
    connections: Vec<StoreConnection>,
    next_number: u64,
    buffer: Zeroizing<Vec<u8>>,
    refusals: LineLimit,
}

impl DescriptorStore {
    /// Listens.
    ///
    /// # Errors
    /// Says why not.
    pub fn bind(settings: StoreSettings) -> Result<Self, StoreBindError> {
        let room = raise_open_files().saturating_sub(RESERVED);
        let StoreSettings { address, token, timeout, on_abandonment } = settings;
        Ok(Self {
            listener: StoreListener::bind(&address)?,
            address,
            timeout,
            token: CurrentToken::new(token),
            on_abandonment,
            accept_after: None,
            entries: EntryMap::new(usize::try_from(room).unwrap_or(usize::MAX)),
            lease: StoreLease::default(),
            connections: Vec::new(),
            next_number: 0,
            buffer: Zeroizing::new(vec![0; MAX_MESSAGE]),
            refusals: LineLimit::new(std::num::NonZero::<u32>::MIN, Duration::from_secs(10)),
        })
    }

    /// Returns what the store keeps, and for whom.
    pub fn status(&self) -> StoreStatus {
        self.status_message().into()
    }

    /// Serves until `stop` is readable. Then, unless a relay owns what is kept, ends all of it. `report` is called at the
    /// beginning and after changes, at most once a second.
    ///
    /// # Errors
    /// The system's error; what is kept is closed.
    pub fn run(
        mut self,
        stop: BorrowedFd<'_>,
        report: &mut dyn FnMut(&StoreStatus),
    ) -> io::Result<()> {
        let mut reported = (self.summary(), Instant::now());
        report(&self.status());
        loop {
            let report_at = Some(reported.1 + PAUSE).filter(|_| self.summary() != reported.0);
            if self.serve_once(stop, report_at)? {
                self.finish();
                return Ok(());
            }
            if self.summary() != reported.0 && reported.1.elapsed() >= PAUSE {
                reported = (self.summary(), Instant::now());
                report(&self.status());
            }
        }
    }

    /// What a report is about.
    fn summary(&self) -> (usize, Option<u64>, bool) {
        let holder = self.lease.holder.as_ref();
        (self.entries.len(), holder.and_then(|holder| holder.connection), holder.is_some())
    }

    /// Waits for something to do and does it; returns whether to stop.
    fn serve_once(&mut self, stop: BorrowedFd<'_>, report_at: Option<Instant>) -> io::Result<bool> {
        let now = Instant::now();
        self.accept_after = self.accept_after.filter(|after| *after > now);
        let times = self.connections.iter().filter_map(|connection| connection.deadline);
        let others = [self.lease.expiry, self.accept_after, report_at];
        let next = times.chain(others.into_iter().flatten()).min();
        let timeout = next.map(|next| next.saturating_duration_since(now));
        let timeout = timeout.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        // Whatever is not to be asked is replaced by `stop`, which keeps the places.
        let accepting = Some(&self.listener.socket).filter(|_| self.accept_after.is_none());
        let life_line = self.lease.life_line();
        let mut asked = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        asked.push(PollFd::from_borrowed_fd(accepting.map_or(stop, AsFd::as_fd), PollFlags::IN));
        asked.push(PollFd::from_borrowed_fd(
            life_line.map_or(stop, AsFd::as_fd),
            PollFlags::empty(),
        ));
        asked.extend(self.connections.iter().map(|it| PollFd::new(&it.socket, PollFlags::IN)));
        match poll(&mut asked, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready: Vec<bool> = asked.iter().map(|asked| !asked.revents().is_empty()).collect();
        let numbers: Vec<u64> = self.connections.iter().map(|it| it.number).collect();
        if is_ready[0] {
            return Ok(true);
        }
        if is_ready[2] {
            self.lease.release(Instant::now() + self.timeout);
            self.log_release("the relay has ended");
        }
        for (number, _) in numbers.iter().zip(&is_ready[3..]).filter(|(_, is_ready)| **is_ready) {
            self.serve(*number);
        }
        if is_ready[1] {
            self.accept();
        }
        self.expire(Instant::now());
        self.grant_to_waiting();
        Ok(false)
    }

    fn finish(mut self) {
        let count = self.entries.len();
        if self.lease.holder.is_some() {
            info!("a relay owns the store: its connections go on without it");
        } else if count > 0 {
            self.abandon_all();
            warn!("no relay owns the store: the connections of {count} entries end with it");
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = match accept_with(&self.listener.socket, flags) {
            Ok(socket) => SocketCredentials::of_peer(socket.as_fd()).map(|from| (socket, from)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(error) => Err(error.into()),
        };
        let (socket, credentials) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                self.accept_after = Some(Instant::now() + PAUSE);
                return;
            }
        };
        self.next_number += 1;
        let deadline = Some(Instant::now() + GREETING_TIMEOUT);
        let (number, stage) = (self.next_number, ConnectionStage::Greeting);
        let connection = StoreConnection { number, socket, credentials, stage, deadline };
        // Of other users, root alone may ask for the status.
        if ![own_user(), 0].contains(&credentials.user) {
            self.refuse(&connection, other_user());
            return;
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            let with_deadline = self.connections.iter().filter(|it| it.deadline.is_some());
            let Some(first) = with_deadline.min_by_key(|it| (it.has_proven(), it.deadline)) else {
                return;
            };
            self.refuse(first, refusal(RefusalReason::Busy, MAX_CONNECTIONS));
            self.close(first.number);
        }
        self.connections.push(connection);
    }

    /// Sends a refusal and logs it, within a limit, since others can cause it. Returns whether it was sent.
    fn refuse(&self, connection: &StoreConnection, refused: RefusedAnswer) -> bool {
        let SocketCredentials { user, process } = connection.credentials;
        let reason = refused.reason();
        if reason != RefusalReason::Owned && self.refusals.allows() {
            warn!("refused process {process} of the user with id {user}: {reason:?}");
        }
        connection.send(AnswerKind::Refused(refused), &[])
    }

    fn index(&self, number: u64) -> Option<usize> {
        self.connections.iter().position(|connection| connection.number == number)
    }

    fn close(&mut self, number: u64) {
        self.connections.retain(|connection| connection.number != number);
        if self.lease.disconnect(number, Instant::now() + self.timeout) {
            info!(
                "the connection of the owner has ended; {} entries are kept for up to {} s",
                self.entries.len(),
                self.timeout.as_secs()
            );
        }
    }

    /// Receives a message and answers it.
    fn serve(&mut self, number: u64) {
        let Some(index) = self.index(number) else { return };
        let received = packet::receive(self.connections[index].socket.as_fd(), &mut self.buffer);
        let packet = match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(packet) if packet.length > 0 => packet,
            Ok(_) | Err(_) => return self.close(number),
        };
        let decoded = decode(&packet, &mut self.buffer[..packet.length]);
        let answer = decoded.and_then(|request| self.handle(index, request, packet.descriptors));
        let connection = &self.connections[index];
        let is_good = match answer {
            Ok(Some(answer)) => connection.send(answer, &[]),
            Ok(None) => true,
            Err(refused) => {
                let reason = refused.reason();
                let goes_on = [RefusalReason::NotOwner, RefusalReason::Full].contains(&reason);
                self.refuse(connection, refused) && goes_on
            }
        };
        if !is_good {
            self.close(number);
        }
    }

    /// Carries out a request. Without an answer, the answer has been sent or comes later.
    fn handle(
        &mut self,
        index: usize,
        request: RequestKind,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Option<AnswerKind>, RefusedAnswer> {
        use ConnectionStage::{Greeting, Owner, Proving, StatusOnly, Trusted};
        use RequestKind::{Acquire, Apply, Clear, Commit, Hello, Prove, Release, Status, Take};

        let allows_descriptors = matches!(request, Apply(_) | Acquire(_));
        if !descriptors.is_empty() && !allows_descriptors {
            return Err(refusal(RefusalReason::Malformed, 0));
        }
        let done = Ok(Some(AnswerKind::Done(EmptyMessage {})));
        match (&self.connections[index].stage, request) {
            (Greeting, Hello(hello)) => self.welcome(index, &hello).map(Some),
            (Proving(context, token), Prove(prove)) => {
                if !context.verifies(token, ProvingSide::Client, &prove.proof) {
                    return Err(refusal(RefusalReason::TokenWrong, 0));
                }
                self.connections[index].enter(Trusted, Some(SILENCE_TIMEOUT));
                done
            }
            (StatusOnly | Trusted | Owner, Status(_)) => {
                Ok(Some(AnswerKind::Status(self.status_message())))
            }
            (Trusted, Acquire(request)) => self.queue(index, &request, descriptors.pop()),
            (Trusted, Take(_) | Apply(_) | Clear(_) | Commit(_) | Release(_)) => {
                Err(refusal(RefusalReason::NotOwner, 0))
            }
            (Owner, Take(request)) => self.send_page(index, &request),
            (Owner, Apply(request)) => {
                let has_put = request.changes.iter().any(|it| it.kind() == ChangeKind::Put);
                self.entries.apply(request, descriptors)?;
                self.lease.note_change(has_put);
                done
            }
            (Owner, Clear(_)) => {
                self.entries.clear();
                self.lease.note_change(false);
                done
            }
            (Owner, Commit(_)) => {
                self.lease.commit();
                done
            }
            (Owner, Release(_)) => {
                self.connections[index].enter(Trusted, Some(SILENCE_TIMEOUT));
                self.lease.give_back(Instant::now() + self.timeout);
                self.log_release("the relay has handed over");
                done
            }
            _ => Err(refusal(RefusalReason::Malformed, 0)),
        }
    }

    /// Reads the token. If it is another one than before, those who proved that they know the old one have to connect again.
    fn read_token(&mut self) -> Option<Arc<Secret<String>>> {
        let (token, has_changed) = self.token.read();
        let knows_last_token = |connection: &&mut StoreConnection| {
            matches!(connection.stage, ConnectionStage::Trusted | ConnectionStage::Waiting(_))
        };
        for connection in
            self.connections.iter_mut().filter(knows_last_token).filter(|_| has_changed)
        {
            connection.enter(ConnectionStage::StatusOnly, Some(Duration::ZERO));
        }
        token
    }

    fn welcome(&mut self, index: usize, hello: &HelloRequest) -> Result<AnswerKind, RefusedAnswer> {
        let version = hello.version.min(PROTOCOL_VERSION);
        let nonces = hello.nonce.as_slice().try_into().ok().zip(proof::nonce());
        let is_own = self.connections[index].credentials.user == own_user();
        let is_token_needed = is_own && !hello.is_status_only;
        let token = if is_token_needed { self.read_token() } else { None };
        let reason = match (nonces, &token) {
            _ if version < OLDEST_VERSION => RefusalReason::Version,
            (None, _) => RefusalReason::Malformed,
            _ if hello.is_status_only => RefusalReason::Unknown,
            _ if !is_own => return Err(other_user()),
            (_, Some(_)) if !hello.has_token => RefusalReason::TokenMissing,
            (_, None) if hello.has_token => RefusalReason::TokenUnexpected,
            _ => RefusalReason::Unknown,
        };
        let Some((client_nonce, store_nonce)) = nonces.filter(|_| reason == RefusalReason::Unknown)
        else {
            return Err(refusal(reason, usize::try_from(PROTOCOL_VERSION).unwrap_or(0)));
        };
        let address = &self.address;
        let context = ProofContext {
            version,
            client_nonce,
            store_nonce,
            address: proof::bound_address(address),
        };
        let prove = |token| context.prove(token, ProvingSide::Store);
        let proof = token.as_deref().map(prove).unwrap_or_default();
        let connection = &mut self.connections[index];
        match token {
            // The deadline remains.
            Some(token) => connection.stage = ConnectionStage::Proving(context, token),
            None if hello.is_status_only => {
                connection.enter(ConnectionStage::StatusOnly, Some(SILENCE_TIMEOUT));
            }
            None => connection.enter(ConnectionStage::Trusted, Some(SILENCE_TIMEOUT)),
        }
        let nonce = store_nonce.to_vec();
        Ok(AnswerKind::Welcome(WelcomeAnswer { version, nonce, proof }))
    }

    /// Lets a relay wait for the lease, which it gets at once if nobody has it.
    fn queue(
        &mut self,
        index: usize,
        request: &AcquireRequest,
        life_line: Option<OwnedFd>,
    ) -> Result<Option<AnswerKind>, RefusedAnswer> {
        let (Ok(id), Some(life_line)) = (request.owner.as_slice().try_into(), life_line) else {
            return Err(refusal(RefusalReason::Malformed, 0));
        };
        let wait = Duration::from_millis(request.wait_milliseconds).min(MAX_WAIT);
        let connection = &mut self.connections[index];
        let process = connection.credentials.process;
        let record = StoreOwnerRecord { id, life_line, process };
        let is_free = self.lease.is_free_for(&record);
        // `grant_to_waiting` comes after the deadlines, which must not refuse what can be granted.
        let wait = if is_free { MAX_WAIT } else { wait };
        connection.enter(ConnectionStage::Waiting(record), Some(wait));
        Ok(None)
    }

    fn grant_to_waiting(&mut self) {
        let lease = &self.lease;
        let is_next = |connection: &StoreConnection| match &connection.stage {
            ConnectionStage::Waiting(record) => lease.is_free_for(record),
            _ => false,
        };
        let Some(index) = self.connections.iter().position(is_next) else { return };
        let connection = &mut self.connections[index];
        let stage = std::mem::replace(&mut connection.stage, ConnectionStage::Owner);
        let ConnectionStage::Waiting(record) = stage else { return };
        connection.deadline = None;
        let (number, process) = (connection.number, record.process);
        let before = self.lease.holder.as_ref().and_then(|holder| holder.connection);
        let is_own = self.lease.grant(record, number, Instant::now());
        let (entries, was_committed) = (self.entries.len() as u64, self.lease.is_committed);
        info!("a relay (process {process}) owns the store, which keeps {entries} entries");
        let answer = AcquiredAnswer { entries, was_committed, is_own };
        let is_sent = self.connections[index].send(AnswerKind::Acquired(answer), &[]);
        // The relay has connected again before its old connection was seen to end.
        for number in before.into_iter().chain((!is_sent).then_some(number)) {
            self.close(number);
        }
    }

    fn send_page(
        &self,
        index: usize,
        request: &TakeRequest,
    ) -> Result<Option<AnswerKind>, RefusedAnswer> {
        let (page, descriptors) = self.entries.page_after(&request.after);
        if self.connections[index].send(AnswerKind::Entries(page), &descriptors) {
            return Ok(None);
        }
        Err(refusal(RefusalReason::DescriptorsLost, 0))
    }

    fn log_release(&self, why: &str) {
        info!("{why}; {} entries wait for the next one", self.entries.len());
    }

    /// Does what is due: refuses who waited long enough, closes silent connections and, if no relay came, what is kept.
    fn expire(&mut self, now: Instant) {
        let due = self.connections.iter().filter(|it| it.deadline.is_some_and(|due| due <= now));
        for number in due.map(|connection| connection.number).collect::<Vec<_>>() {
            let Some(index) = self.index(number) else { continue };
            if !matches!(self.connections[index].stage, ConnectionStage::Waiting(_)) {
                self.close(number);
                continue;
            }
            let owner = self.lease.owner_message(now);
            let refused = RefusedAnswer { owner, ..refusal(RefusalReason::Owned, 0) };
            self.refuse(&self.connections[index], refused);
            self.connections[index].enter(ConnectionStage::Trusted, Some(SILENCE_TIMEOUT));
        }
        if self.lease.expiry.is_none_or(|expiry| expiry > now) {
            return;
        }
        let (count, seconds) = (self.entries.len(), self.timeout.as_secs());
        // A relay that lost contact still uses its connections, which must not be shut down under it.
        if self.lease.holder.is_none() {
            self.abandon_all();
        }
        self.entries.clear();
        self.lease = StoreLease::default();
        if count > 0 {
            warn!(
                "no relay came within {seconds} s: the descriptors of {count} entries are closed"
            );
        }
    }

    /// Ends all connections. Nobody uses them any more.
    fn abandon_all(&mut self) {
        let was_committed = self.lease.is_committed;
        for (key, note, descriptors) in self.entries.iter() {
            let entry = AbandonedEntry { key, note, descriptors, was_committed };
            (self.on_abandonment)(&entry);
        }
        self.entries.shut_down_all();
    }

    fn status_message(&self) -> StatusAnswer {
        let now = Instant::now();
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let left = self.lease.expiry.map(|expiry| expiry.saturating_duration_since(now));
        StatusAnswer {
            entries: self.entries.len() as u64,
            descriptors: self.entries.descriptors() as u64,
            max_descriptors: self.entries.max_descriptors() as u64,
            owner: self.lease.owner_message(now),
            timeout_milliseconds: milliseconds(self.timeout),
            expires_in_milliseconds: left.map(milliseconds),
            is_committed: self.lease.is_committed,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol_version: PROTOCOL_VERSION,
        }
    }
}

fn other_user() -> RefusedAnswer {
    let own = usize::try_from(own_user()).unwrap_or(usize::MAX);
    refusal(RefusalReason::OtherUser, own)
}
