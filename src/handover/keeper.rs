//! The thread that keeps the descriptor store up to date, and hands everything over to it when the relay is replaced.
//!
//! It looks every [`TICK`] at what has changed, so that sessions that last less than that never reach the store and cost
//! nothing. A store that dies or hangs costs the relay nothing but the protection of its sessions: the thread connects to the
//! next one and puts everything into it.

use std::collections::BTreeSet;
use std::io;
use std::mem::{Discriminant, discriminant};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::exit::abort_on_panic;
use crate::fd_store::client::{StoreChange, StoreClient};
use crate::fd_store::error::StoreError;
use crate::peer::Peers;
use crate::peer::session::KeptChanges;
use crate::state::shared::SharedState;

use super::contents::StoreContents;
use super::error::HandOverError;
use super::notes::keys::HandedOutRecord;
use super::relay::KeptRelay;
use super::store_link::StoreLink;
use super::suspended::Suspended;
use super::taking::{self, Taken};

/// How often changes are sent to the store. A session, or a key that was handed out, survives a crash from then on.
const TICK: Duration = Duration::from_millis(100);
/// How often counters are sent to the store: as much of them is lost by a crash.
const COUNTERS_PERIOD: Duration = Duration::from_secs(10);

/// How long to wait before everything is put into a store again that was full. Until then it keeps what it has.
const FULL_PAUSE: Duration = Duration::from_secs(30);
/// How long a store that starts together with the relay may take, at a boot for example.
const STARTING_TIME: Duration = Duration::from_secs(5);
/// How long a hand-over may take. Sessions stand still meanwhile; 100 000 of them take a few seconds.
const HAND_OVER_TIME: Duration = Duration::from_secs(10);
/// How many sessions are put at each tick. Their sockets are duplicated meanwhile, which takes twice as many descriptors.
const MAX_BEGUN: usize = 256;

/// A hand-over that failed, with everything that was to be handed over.
#[derive(Debug)]
pub struct FailedHandOver {
    /// Why.
    pub error: HandOverError,
    /// What the relay continues with.
    pub suspended: Suspended,
}

/// The result of a hand-over.
pub type HandOverResult = Result<(), Box<FailedHandOver>>;

enum KeeperCommand {
    Check(oneshot::Sender<Result<(), HandOverError>>),
    HandOver(Box<Suspended>, oneshot::Sender<HandOverResult>),
    Release(oneshot::Sender<()>),
}

/// Controls the thread. Dropping it ends the thread; the store then treats the relay as one that has crashed, unless it was
/// released or everything was handed over.
#[derive(Debug)]
pub struct Keeper {
    commands: Option<Sender<KeeperCommand>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread. `contents` is what the store keeps if `link` is connected.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(link: StoreLink, relay: KeptRelay, contents: StoreContents) -> io::Result<Self> {
        let (sender, commands) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name("fd-store".into()).spawn(move || {
            // Without this thread, nobody would know what the store keeps.
            abort_on_panic(|| KeeperThread::new(link, relay, contents).run(&commands));
        })?;
        Ok(Self { commands: Some(sender), thread: Some(thread) })
    }

    /// Asks the store whether it works, before everything stands still for a hand-over.
    ///
    /// # Errors
    /// There is no store, or it does not answer: a hand-over would fail.
    pub async fn check(&self) -> Result<(), HandOverError> {
        let (reply, result) = oneshot::channel();
        match self.send(KeeperCommand::Check(reply)) {
            Some(_) => Err(HandOverError::ThreadEnded),
            None => result.await.unwrap_or(Err(HandOverError::ThreadEnded)),
        }
    }

    /// Hands everything over to the store. If this succeeds, the next relay may continue with it at any moment.
    ///
    /// # Errors
    /// [`FailedHandOver`]: the relay is still responsible for everything.
    pub async fn hand_over(&self, suspended: Suspended) -> HandOverResult {
        let (reply, result) = oneshot::channel();
        let failed = |suspended| FailedHandOver { error: HandOverError::ThreadEnded, suspended };
        match self.send(KeeperCommand::HandOver(Box::new(suspended), reply)) {
            Some(KeeperCommand::HandOver(suspended, _)) => Err(Box::new(failed(*suspended))),
            _ => result.await.unwrap_or_else(|_| Err(Box::new(failed(Suspended::default())))),
        }
    }

    /// Removes everything from the store, for a relay that stops without a successor.
    pub async fn release(&self) {
        let (reply, done) = oneshot::channel();
        if self.send(KeeperCommand::Release(reply)).is_none() {
            let _ = done.await;
        }
    }

    /// Sends a command to the thread, and returns it if the thread has ended.
    fn send(&self, command: KeeperCommand) -> Option<KeeperCommand> {
        match &self.commands {
            Some(commands) => commands.send(command).err().map(|error| error.0),
            None => Some(command),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // Every call to the store has a deadline, and so has this.
            let _ = thread.join();
        }
    }
}

struct KeeperThread {
    link: StoreLink,
    relay: KeptRelay,
    contents: StoreContents,
    next_counters: Instant,
    /// Entries that the store may have from before the connection was lost. Whatever is not put anew is deleted in the end.
    outdated: BTreeSet<Vec<u8>>,
    /// Whether something is still to be put that the store should have, after the connection was made.
    is_filling: bool,
    /// Whether the store has the listening sockets, which never change.
    has_listeners: bool,
    /// Whether the relay has handed over or released everything, after which the store is left alone.
    is_over: bool,
    /// The kind of the failure that was logged last, so that it is not logged at each attempt. Its text may tell the time.
    logged: Option<Discriminant<StoreError>>,
    /// Until then, a store that cannot be reached is not worth a warning.
    starting_until: Instant,
}

impl KeeperThread {
    fn new(link: StoreLink, relay: KeptRelay, contents: StoreContents) -> Self {
        Self {
            link,
            relay,
            contents,
            next_counters: Instant::now(),
            outdated: BTreeSet::new(),
            is_filling: false,
            has_listeners: false,
            is_over: false,
            logged: None,
            starting_until: Instant::now() + STARTING_TIME,
        }
    }

    fn run(mut self, commands: &Receiver<KeeperCommand>) {
        let mut next_tick = Instant::now();
        loop {
            match commands.recv_deadline(next_tick) {
                Ok(KeeperCommand::Check(reply)) => {
                    let _ = reply.send(self.check());
                }
                Ok(KeeperCommand::HandOver(suspended, reply)) => {
                    // The receiver waits until it is answered, unless the relay stops at once.
                    let _ = reply.send(self.hand_over(*suspended));
                }
                Ok(KeeperCommand::Release(reply)) => {
                    self.release();
                    let _ = reply.send(());
                }
                Err(RecvTimeoutError::Timeout) => {
                    let has_more = self.tick();
                    next_tick = Instant::now() + if has_more { Duration::ZERO } else { TICK };
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Does what is due. Returns whether there is more to do at once.
    fn tick(&mut self) -> bool {
        if self.is_over {
            return false;
        }
        if self.link.is_closed() {
            self.lose(&StoreError::Closed);
        }
        self.follow_token();
        let result = if self.link.is_attempt_due() { self.connect() } else { self.update() };
        match result {
            Ok(has_more) => {
                if self.link.is_connected() && !self.is_filling {
                    self.show_connected();
                }
                has_more
            }
            Err(error) => {
                self.lose(&error);
                if let StoreError::Full(_) = error {
                    self.link.pause(FULL_PAUSE);
                }
                false
            }
        }
    }

    /// Shows the store the token that is in force by now.
    fn follow_token(&mut self) {
        let config = self.relay.config.borrow().clone();
        match self.link.follow_token(&config) {
            Ok(false) => {}
            Ok(true) => {
                info!("the descriptor store has the new AdminToken, too");
                self.logged = None;
            }
            Err(error) => {
                let kind = Some(discriminant(&error));
                if self.logged != kind {
                    warn!(
                        "AdminToken has changed, and a relay that starts now cannot use the descriptor store: {error}"
                    );
                    self.logged = kind;
                }
            }
        }
    }

    /// Sends what has changed since the last time. Returns whether there is more.
    fn update(&mut self) -> Result<bool, StoreError> {
        let Some(client) = self.link.client() else { return Ok(false) };
        let KeptChanges { begun, ended, has_more, is_complete } =
            self.relay.sessions.kept().take_changes(MAX_BEGUN);
        let mut changes = Vec::new();
        if !self.has_listeners {
            changes.extend(StoreContents::put_listeners(&self.relay));
        }
        changes.extend(self.contents.update(&self.relay, &begun, &ended));
        if self.next_counters <= Instant::now() {
            self.next_counters = Instant::now() + COUNTERS_PERIOD;
            changes.push(StoreContents::put_counters(&self.relay, None));
        }
        apply(client, &changes, &mut self.outdated)?;
        self.has_listeners = true;
        if self.is_filling && is_complete {
            client.apply(&deletions(&self.outdated))?;
            self.outdated.clear();
            self.is_filling = false;
        }
        // Sockets that could not be duplicated wait for the next tick.
        Ok(has_more && !begun.is_empty())
    }

    /// Connects, and puts everything into the store. It keeps what it has until everything is there anew.
    fn connect(&mut self) -> Result<bool, StoreError> {
        let config = self.relay.config.borrow().clone();
        let acquired = self.link.connect(&config, Duration::ZERO)?;
        self.is_filling = true;
        self.relay.sessions.kept().report_all_again(!acquired.is_own);
        self.outdated.extend(std::mem::take(&mut self.contents).into_entry_keys());
        if acquired.entries == 0 || !self.link.has_taken() {
            self.outdated.clear();
        }
        if !self.link.has_taken() {
            let taken =
                taking::take(&mut self.link, acquired.was_committed, config.log_peer_identity)?;
            self.contents = taken.contents();
            self.adopt(taken);
        }
        self.has_listeners = false;
        self.next_counters = Instant::now();
        self.update()
    }

    /// Continues the sessions of a relay that ended while this one had no store. This one has its own listeners and link.
    fn adopt(&mut self, taken: Taken) {
        info!(
            sessions = taken.suspended.sessions.len(),
            lost = taken.lost,
            "sessions of another relay, which has ended, are taken over from the descriptor store"
        );
        taken.count(&self.relay.metrics, &self.relay.state);
        if let Some(counters) = taken.counters {
            self.relay.handle.carry_over(counters.carried.metrics);
        }
        for (name, _) in &taken.listeners {
            if self.relay.listeners.iter().all(|listener| listener.name != name) {
                self.link.delete_listener(name);
            }
        }
        for session in taken.suspended.sessions {
            self.relay.sessions.attach(session);
        }
        if let Some(link) = taken.suspended.link {
            link.close();
        }
        restore_handed_out(&self.relay.state, &self.relay.peers, taken.handed_out);
    }

    fn hand_over(&mut self, suspended: Suspended) -> HandOverResult {
        match self.try_hand_over(&suspended) {
            Ok(()) => {
                self.is_over = true;
                self.contents.record_ends(&self.relay.state, &suspended);
                Ok(())
            }
            Err(error) => {
                // After the next connection, the store gets rid of what was put there by now.
                self.link.disconnect();
                Err(Box::new(FailedHandOver { error, suspended }))
            }
        }
    }

    fn try_hand_over(&mut self, suspended: &Suspended) -> Result<(), HandOverError> {
        // Sessions that began are among those that are handed over.
        let KeptChanges { ended, .. } = self.relay.sessions.kept().take_changes(0);
        let mut changes = self.contents.update(&self.relay, &[], &ended);
        if !self.has_listeners {
            changes.extend(StoreContents::put_listeners(&self.relay));
        }
        let rest = self.contents.hand_over(&self.relay, suspended);
        let result = rest.and_then(|rest| {
            changes.extend(rest);
            let client = self.link.client().ok_or(HandOverError::NotConnected)?;
            client.limit(Some(HAND_OVER_TIME));
            apply(client, &changes, &mut self.outdated)?;
            client.apply(&deletions(&self.outdated))?;
            Ok(client.commit()?)
        });
        if result.is_err() {
            // Everything continues here, the link included.
            self.outdated.extend(changes.iter().map(|change| change.key().to_vec()));
        }
        result
    }

    /// Asks the store whether it works.
    fn check(&mut self) -> Result<(), HandOverError> {
        let client = self.link.client().ok_or(HandOverError::NotConnected)?;
        let answer = client.status();
        if let Err(error) = &answer {
            self.lose(error);
        }
        Ok(answer.map(drop)?)
    }

    fn release(&mut self) {
        self.is_over = true;
        if let Some(client) = self.link.client()
            && let Err(error) = client.clear()
        {
            warn!("the descriptor store keeps the sockets of this relay for a while: {error}");
        }
    }

    fn show_connected(&mut self) {
        let sessions = self.contents.session_count();
        self.relay.metrics.set_connected(true);
        self.link.note_success();
        if !self.relay.status.borrow().is_connected() {
            info!(
                sessions,
                "connected to the descriptor store at {}: sessions outlive this relay",
                self.link.address()
            );
            self.logged = None;
        }
        self.relay.status.send_if_modified(|status| {
            let has_changed = status.kept_sessions != Some(sessions);
            status.set_kept(sessions);
            has_changed
        });
    }

    fn lose(&mut self, error: &StoreError) {
        self.link.disconnect();
        self.relay.metrics.set_connected(false);
        let kind = Some(discriminant(error));
        if self.logged != kind && self.starting_until <= Instant::now() {
            warn!(
                "the descriptor store cannot be used, so sessions will not survive this relay: {error}"
            );
            self.logged = kind;
        }
        self.relay.status.send_modify(|status| status.set_failed(error.to_string()));
    }
}

fn deletions(keys: &BTreeSet<Vec<u8>>) -> Vec<StoreChange<'static>> {
    keys.iter().map(|key| StoreChange::Delete { key: key.clone() }).collect()
}

/// Makes changes, and keeps track of what is outdated: nothing that was put, and, if this fails, all of it.
fn apply(
    client: &mut StoreClient,
    changes: &[StoreChange<'_>],
    outdated: &mut BTreeSet<Vec<u8>>,
) -> Result<(), StoreError> {
    let result = client.apply(changes);
    for change in changes {
        if result.is_err() {
            outdated.insert(change.key().to_vec());
        } else {
            outdated.remove(change.key());
        }
    }
    result
}

/// Restores keys that another relay handed out, with the first messages that it has seen.
pub fn restore_handed_out(state: &SharedState, peers: &Peers, records: Vec<HandedOutRecord>) {
    let (keys, seen): (Vec<_>, Vec<_>) = records
        .into_iter()
        .map(|record| (record.key.clone(), (record.key.key.id, record.seen)))
        .unzip();
    state.restore_handed_out(keys, tokio::time::Instant::now());
    for (key, seen) in seen {
        peers.restore_seen(key, seen);
    }
}
