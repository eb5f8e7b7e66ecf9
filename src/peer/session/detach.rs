//! Sessions that are detached, to continue elsewhere.

use crate::forward::balance::Balances;
use crate::state::sessions::SessionRecord;

/// A detached session: everything that is needed to continue it, even in another relay or process.
#[derive(Debug)]
pub struct DetachedSession {
    /// Who the peers are, and what the session has done.
    pub record: SessionRecord,
    /// The connections of the two peers, in the order in which they arrived.
    pub sockets: [std::net::TcpStream; 2],
    /// What was received from each peer and has not been sent to the other.
    pub in_flight: [Vec<u8>; 2],
    /// Its balances, if a store keeps sessions and the kernel reports them.
    pub balances: Option<Balances>,
    /// Whether the store may have an entry of it. The entry stays until a relay that has attached the session ends it.
    pub is_stored: bool,
    /// Whether everything was forwarded, and only the delivery by the kernel was waited for. Then nothing is in flight.
    pub is_lingering: bool,
    /// The context of the trace of this part of it, as in the header `traceparent`. `None` if traces are off.
    pub traceparent: Option<String>,
}

impl DetachedSession {
    /// Returns how many bytes are in flight in each direction.
    pub fn count_in_flight(&self) -> [usize; 2] {
        self.in_flight.each_ref().map(Vec::len)
    }
}
