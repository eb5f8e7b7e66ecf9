//! The channel through which the second peer of a pair reaches the task of the first.

use tokio::sync::oneshot;

use crate::state::active_session::ActiveSession;
use crate::state::sessions::{EndCause, OverLimit};
use crate::trace::session::PeerFacts;

/// Sends the second peer to the task of the first, or why the two may not have a session.
pub type PartnerSender = oneshot::Sender<Result<Partner, OverLimit>>;

/// What the second peer brings to the first.
#[derive(Debug)]
pub struct Partner {
    /// Its connection.
    pub stream: std::net::TcpStream,
    /// When it arrived, and from where.
    pub facts: PeerFacts,
    /// The session that has begun.
    pub session: ActiveSession,
}

/// Receives the partner of a first peer.
#[derive(Debug)]
pub(in crate::peer) struct PartnerReceiver(
    pub(in crate::peer) oneshot::Receiver<Result<Partner, OverLimit>>,
);

impl Drop for PartnerReceiver {
    fn drop(&mut self) {
        // Only a stop cuts the wait short. It also ends the session of a partner that was sent and not received yet, which
        // therefore does not count as an error.
        self.0.close();
        if let Ok(Ok(partner)) = self.0.try_recv() {
            partner.session.finish(EndCause::Drain);
        }
    }
}
