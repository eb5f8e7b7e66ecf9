//! Sessions from pairing to their end.

mod context;
mod detach;
mod kept;
mod manager;
mod partner;
mod requests;
mod stage;
mod task;

pub use detach::DetachedSession;
pub use kept::{KeptChanges, KeptSession, KeptSessions};
pub use manager::SessionManager;
pub use partner::{Partner, PartnerSender};

pub(super) use partner::PartnerReceiver;
pub(super) use stage::RunnableSession;
