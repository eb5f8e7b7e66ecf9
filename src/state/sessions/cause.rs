//! What ended a session: the reason that metrics count, and who caused it.

use std::fmt;
use std::net::IpAddr;

use super::end::End;

/// One of the two peers of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerOrder {
    /// The peer that connected first.
    First,
    /// The peer that connected second.
    Second,
}

impl PeerOrder {
    /// Returns the peer whose socket has this index.
    pub fn of_index(index: usize) -> Self {
        if index == 0 { Self::First } else { Self::Second }
    }
}

/// What ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// Both peers finished, this one before the other.
    Closed(PeerOrder),
    /// The connection of this peer was reset or timed out.
    Reset(PeerOrder),
    /// No bytes moved for `PeerIdleTimeout`.
    Idle,
    /// The Router asked for it.
    Router,
    /// An administrator asked for it, from this address; `None` if the request did not come over a network.
    Administrator(Option<IpAddr>),
    /// The session reached `MaxSessionDuration`.
    MaxDuration,
    /// The relay is stopping.
    Drain,
    /// The relay failed.
    Error,
    /// A relay died while it held bytes of the session, or no relay took the session over from one that died.
    Crash,
}

impl EndCause {
    /// Returns the reason, as metrics count it.
    pub fn reason(self) -> End {
        match self {
            Self::Closed(_) => End::Closed,
            Self::Reset(_) => End::Reset,
            Self::Idle => End::Idle,
            Self::Router | Self::Administrator(_) => End::Disconnected,
            Self::MaxDuration => End::MaxDuration,
            Self::Drain => End::Drain,
            Self::Error => End::Error,
            Self::Crash => End::Crash,
        }
    }

    /// Returns who ended the session, in one word.
    pub fn actor(self) -> &'static str {
        match self {
            Self::Closed(PeerOrder::First) | Self::Reset(PeerOrder::First) => "first",
            Self::Closed(PeerOrder::Second) | Self::Reset(PeerOrder::Second) => "second",
            Self::Idle | Self::MaxDuration => "limit",
            Self::Router => "router",
            Self::Administrator(_) => "administrator",
            Self::Drain | Self::Error | Self::Crash => "relay",
        }
    }

    /// Returns the address of the administrator who ended the session, if one did over a network.
    pub fn administrator(self) -> Option<IpAddr> {
        match self {
            Self::Administrator(address) => address,
            _ => None,
        }
    }
}

impl fmt::Display for EndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason().fmt(f)
    }
}
