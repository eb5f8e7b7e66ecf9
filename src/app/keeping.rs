//! The relay's side of a hand-over: starts the keeper of the descriptor store, and says what becomes of a hand-over.

#[cfg(target_os = "linux")]
use crate::handover::contents::StoreContents;
#[cfg(target_os = "linux")]
use crate::handover::keeper::{FailedHandOver, Keeper};
#[cfg(target_os = "linux")]
use crate::handover::relay::{KeptListener, KeptRelay};
#[cfg(target_os = "linux")]
use crate::handover::store_link::StoreLink;
use crate::handover::suspended::Suspended;
use crate::handover::takeover::Takeover;

use super::listeners::BoundListeners;
use super::parts::RelayParts;

/// The descriptor store of a running relay, if it has one.
pub(super) struct Keeping {
    #[cfg(target_os = "linux")]
    keeper: Option<Keeper>,
}

/// What is needed to start the keeper, once the sessions are attached.
pub(super) struct PreparedKeeping {
    #[cfg(target_os = "linux")]
    keeper: Option<(StoreLink, KeptRelay, StoreContents)>,
}

impl PreparedKeeping {
    /// Starts the keeper, if there is a store.
    pub(super) fn spawn(self) -> std::io::Result<Keeping> {
        #[cfg(target_os = "linux")]
        let keeper = self
            .keeper
            .map(|(link, relay, contents)| Keeper::start(link, relay, contents))
            .transpose()?;
        Ok(Keeping {
            #[cfg(target_os = "linux")]
            keeper,
        })
    }
}

#[cfg(target_os = "linux")]
impl Keeping {
    /// Prepares the keeper, if there is a store, and returns what was suspended by the previous relay.
    pub(super) fn prepare(
        parts: &RelayParts,
        listeners: &BoundListeners,
        takeover: Takeover,
    ) -> std::io::Result<(PreparedKeeping, Suspended)> {
        let Takeover { link, taken, .. } = takeover;
        let contents = taken.contents();
        let keeper = match link {
            None => None,
            Some(link) => {
                let sockets = listeners.duplicate_all()?.into_iter();
                let listeners = sockets.map(|(name, socket)| KeptListener { name, socket });
                Some((link, parts.kept_relay(listeners.collect()), contents))
            }
        };
        Ok((PreparedKeeping { keeper }, taken.suspended))
    }

    /// Asks whether a hand-over is possible; if not, returns why.
    pub(super) async fn check(&self) -> Result<(), String> {
        match &self.keeper {
            None => Err("there is no descriptor store".to_owned()),
            Some(keeper) => keeper.check().await.map_err(|error| error.to_string()),
        }
    }

    /// Hands everything over. If that fails, returns why, and everything.
    pub(super) async fn hand_over(&self, suspended: Suspended) -> Result<(), (String, Suspended)> {
        match &self.keeper {
            None => Err(("there is no descriptor store".to_owned(), suspended)),
            Some(keeper) => keeper.hand_over(suspended).await.map_err(|failed| {
                let FailedHandOver { error, suspended } = *failed;
                (error.to_string(), suspended)
            }),
        }
    }

    /// Removes everything from the store, since no relay follows.
    pub(super) async fn release(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.release().await;
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Keeping {
    /// There is no store on this system.
    pub(super) fn prepare(
        _parts: &RelayParts,
        _listeners: &BoundListeners,
        _takeover: Takeover,
    ) -> std::io::Result<(PreparedKeeping, Suspended)> {
        Ok((PreparedKeeping {}, Suspended::default()))
    }

    /// Fails: there is no store on this system.
    pub(super) async fn check(&self) -> Result<(), String> {
        Err("there is no descriptor store on this system".to_owned())
    }

    /// Fails: there is no store on this system.
    pub(super) async fn hand_over(&self, suspended: Suspended) -> Result<(), (String, Suspended)> {
        Err(("there is no descriptor store on this system".to_owned(), suspended))
    }

    /// Does nothing: there is no store on this system.
    pub(super) async fn release(&self) {}
}
