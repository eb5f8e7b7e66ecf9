//! The connection of a relay to the descriptor store: made at the start, and again whenever it is lost.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::Config;
use crate::config::parse::Token;
use crate::fd_store::address::StoreAddress;
use crate::fd_store::client::{Acquired, StoreChange, StoreClient};
use crate::fd_store::error::StoreError;
use crate::fd_store::owner::OwnerId;

use super::entry_key::EntryKey;

/// The deadline of each exchange with the store. A relay that is asked to stop waits no longer for a store that hangs.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How soon the first attempt to connect again comes, and the longest time between two attempts.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The connection of a relay to the descriptor store. The relay is its owner as long as there is one.
#[derive(Debug)]
pub struct StoreLink {
    address: StoreAddress,
    owner: OwnerId,
    client: Option<StoreClient>,
    /// The token with which the connection was made.
    token: Option<Token>,
    /// Whether what the store keeps for this owner was taken, or put, by this relay. If it died at the last message of a take,
    /// the store counts entries as this owner's that it never received.
    has_taken: bool,
    backoff: ExponentialBackoff,
    next_attempt: Instant,
}

impl StoreLink {
    /// Creates the link to the store at `address`, without connecting.
    ///
    /// # Errors
    /// There are no random numbers, or no descriptor is left.
    pub fn new(address: StoreAddress) -> io::Result<Self> {
        Ok(Self {
            address,
            owner: OwnerId::generate()?,
            client: None,
            token: None,
            has_taken: false,
            backoff: new_backoff(),
            next_attempt: Instant::now(),
        })
    }

    /// Connects with the token of the settings and becomes the owner; waits at most `wait` for another owner to go away.
    ///
    /// # Errors
    /// [`StoreError`]; [`Self::is_attempt_due`] says when the next attempt should be made.
    pub fn connect(&mut self, config: &Config, wait: Duration) -> Result<Acquired, StoreError> {
        self.token = config.admin_token.clone();
        let token = self.token.as_ref().map(Token::secret);
        let connected = StoreClient::connect(&self.address, token, TIMEOUT);
        let acquired = connected.and_then(|mut client| {
            let acquired = client.acquire(&self.owner, wait)?;
            Ok((client, acquired))
        });
        match acquired {
            Ok((client, acquired)) => {
                self.client = Some(client);
                self.has_taken = acquired.entries == 0 || (acquired.is_own && self.has_taken);
                Ok(acquired)
            }
            Err(error) => {
                self.disconnect();
                Err(error)
            }
        }
    }

    /// Makes the connection anew if the settings have another token than it was made with, so that the next relay, which has that
    /// token, can use the store. What the store keeps remains this relay's. Returns whether that was done.
    ///
    /// # Errors
    /// The store does not have that token, perhaps not yet: the connection remains, and the next attempt comes after a pause.
    pub fn follow_token(&mut self, config: &Config) -> Result<bool, StoreError> {
        let token = &config.admin_token;
        if self.token == *token || self.client.is_none() || self.next_attempt > Instant::now() {
            return Ok(false);
        }
        // The store closes the old connection once this one is the owner's.
        let secret = token.as_ref().map(Token::secret);
        let connected = StoreClient::connect(&self.address, secret, TIMEOUT)
            .and_then(|mut client| client.acquire(&self.owner, Duration::ZERO).map(|_| client));
        match connected {
            Ok(client) => {
                (self.client, self.token) = (Some(client), token.clone());
                Ok(true)
            }
            Err(error) => {
                // The store may get the token only minutes later, and reads its settings at each attempt.
                self.pause(RETRY.1);
                Err(error)
            }
        }
    }

    /// Whether the store keeps nothing that this relay would still have to take.
    pub fn has_taken(&self) -> bool {
        self.has_taken
    }

    /// Notes that everything in the store was taken, and that the store counts it as this relay's.
    pub fn note_taken(&mut self) {
        self.has_taken = true;
    }

    /// Notes that the store has what it should have: if the connection fails, the next attempt comes soon.
    pub fn note_success(&mut self) {
        self.backoff = new_backoff();
    }

    /// Remains the owner until the process has ended, whatever becomes of this link: sessions run on other threads.
    pub fn own_for_process(&self) {
        std::mem::forget(self.owner.clone());
    }

    /// Returns the address of the store.
    pub fn address(&self) -> &StoreAddress {
        &self.address
    }

    /// Returns the connection, if there is one.
    pub fn client(&mut self) -> Option<&mut StoreClient> {
        self.client.as_mut()
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    /// Deletes a listening socket. If that fails, the store closes it later.
    pub fn delete_listener(&mut self, name: &str) {
        let key = EntryKey::Listener(name.to_owned()).to_bytes();
        if let Some(client) = &mut self.client
            && client.apply(&[StoreChange::Delete { key }]).is_err()
        {
            self.disconnect();
        }
    }

    /// Drops the connection, which has failed. The next attempt comes after a pause, since a store that is full, for example, fails
    /// again.
    pub fn disconnect(&mut self) {
        self.client = None;
        self.next_attempt = Instant::now() + self.backoff.next().unwrap_or(RETRY.1);
    }

    /// Makes no attempt to connect for this time.
    pub fn pause(&mut self, time: Duration) {
        self.next_attempt = Instant::now() + time;
    }

    /// Whether there is no connection, and it is time to try again.
    pub fn is_attempt_due(&self) -> bool {
        self.client.is_none() && self.next_attempt <= Instant::now()
    }

    /// Whether the store has closed the connection. It never sends anything unasked.
    pub fn is_closed(&self) -> bool {
        let Some(client) = &self.client else { return false };
        let mut descriptors = [PollFd::from_borrowed_fd(client.as_fd(), PollFlags::IN)];
        poll(&mut descriptors, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

fn new_backoff() -> ExponentialBackoff {
    let (min, max) = RETRY;
    ExponentialBuilder::new()
        .with_min_delay(min)
        // Jitter adds up to the delay itself, hence the half.
        .with_max_delay(max / 2)
        .with_jitter()
        .without_max_times()
        .build()
}
