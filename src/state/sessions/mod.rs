//! Sessions: what the relay knows about each one, and the table of active sessions.

mod cause;
mod end;
mod ended;
mod id;
mod identity;
mod identity_limits;
mod path;
mod record;
mod session;
mod signal;
mod table;
mod traffic;

pub use cause::{EndCause, PeerOrder};
pub use end::End;
pub use ended::EndedSession;
pub use id::SessionId;
pub use identity::PeerIdentity;
pub use identity_limits::{IdentityLimit, IdentityLimits, OverLimit};
pub use path::PeerPath;
pub use record::SessionRecord;
pub use session::Session;
pub use signal::SessionSignal;
pub use table::SessionTable;
pub use traffic::Traffic;
