//! What a probe can see at an address, and what to do about it.

use std::fmt;
use std::time::Duration;

use crate::printable;

/// How long a service has to close after the message is complete. A relay closes at once.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// What was seen at an address, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// It behaves as an Aspia relay does.
    Relay,
    /// It accepted the connection and never reacted.
    Silent,
    /// It closed the connection before anything was sent.
    ClosedAtOnce,
    /// It reset the connection before anything was sent.
    ResetAtOnce,
    /// It closed or reset the connection before the message was complete.
    ClosedEarly,
    /// It speaks HTTP.
    Http,
    /// It speaks TLS.
    Tls,
    /// It speaks SSH.
    Ssh,
    /// It sent other bytes; with the first of them.
    OtherProtocol(Vec<u8>),
    /// It refused the connection.
    Refused,
    /// There was no answer to the attempt to connect.
    TimedOut,
    /// This machine has no route to the address.
    NoRoute,
    /// The network reports that the machine cannot be reached.
    Unreachable,
    /// This machine could not connect for another reason; with the error.
    ConnectFailed(String),
    /// The name does not resolve; with the error.
    NameNotFound(String),
    /// The lookup of the name took too long.
    LookupTimedOut,
}

impl ProbeOutcome {
    /// Recognises a protocol by the first bytes that a server sent.
    pub(super) fn of_bytes(head: &[u8]) -> Self {
        match head {
            [b'H', b'T', b'T', b'P', b'/', ..] => Self::Http,
            [b'S', b'S', b'H', b'-', ..] => Self::Ssh,
            // An alert or a handshake record of any version.
            [0x15 | 0x16, 3, 0..=4, ..] => Self::Tls,
            _ => Self::OtherProtocol(head.to_vec()),
        }
    }

    /// Whether a relay answers.
    pub fn is_relay(&self) -> bool {
        *self == Self::Relay
    }

    /// Whether it says something about this machine only, and nothing about the address.
    pub fn is_local(&self) -> bool {
        *self == Self::NoRoute
    }

    /// The name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Silent => "silent",
            Self::ClosedAtOnce => "closed_at_once",
            Self::ResetAtOnce => "reset_at_once",
            Self::ClosedEarly => "closed_early",
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Ssh => "ssh",
            Self::OtherProtocol(_) => "other_protocol",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::NoRoute => "no_route",
            Self::Unreachable => "unreachable",
            Self::ConnectFailed(_) => "connect_failed",
            Self::NameNotFound(_) => "name_not_found",
            Self::LookupTimedOut => "lookup_timed_out",
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Relay => {
                "if peers do not come through all the same: probe from their network, compare this address with PeerAddress \
                 and PeerPort, and run aspia_relay --doctor on the relay's machine"
            }
            Self::Silent => {
                "a firewall, proxy or load balancer that accepts connections for a relay it does not reach; a relay whose \
                 process hangs or has no descriptors left; or another service: see what listens there"
            }
            Self::ClosedAtOnce | Self::ResetAtOnce => {
                "a load balancer or a port forwarding without a relay behind it; or a relay that refuses this machine \
                 (AllowPeers, DenyPeers, PeerConnectRate, MaxPendingPeersPerAddress): its log says so"
            }
            Self::ClosedEarly => {
                "another service, or a relay whose ProxyProtocolFrom contains the address of this machine: there every \
                 connection must begin with a PROXY header, so probe the address of the proxy instead"
            }
            Self::Http => {
                "a web server or an HTTP proxy: PeerPort is the port for peers, not that of AdminListen or MetricsListen, \
                 and a proxy in front must forward plain TCP"
            }
            Self::Tls => {
                "a proxy in front must forward plain TCP, without TLS; or the port is that of another service"
            }
            Self::Ssh => {
                "the port is that of an SSH server: correct the port or the port forwarding"
            }
            Self::OtherProtocol(_) => {
                "the port is that of another service, since a relay never speaks first: correct the port or the port \
                 forwarding"
            }
            Self::Refused => {
                "the machine is there, but nothing listens on the port: start the relay, compare the port with ListenPort, \
                 and check the port forwarding; some firewalls refuse as well"
            }
            Self::TimedOut => {
                "a firewall drops the packets, or the address is wrong: open the port in the firewall of the machine and of \
                 its provider, and check the port forwarding. A probe from the relay's own network also fails if its router \
                 does not send it back (hairpin NAT)"
            }
            Self::NoRoute => {
                "this says nothing about the relay: probe from a machine that has this address family (IPv4 or IPv6)"
            }
            Self::Unreachable => {
                "the machine is down, the address is wrong, or a firewall rejects the packets"
            }
            Self::ConnectFailed(_) => {
                "see whether a firewall or a security policy of this machine forbids the connection"
            }
            Self::NameNotFound(_) => {
                "check the spelling and the DNS: peers would not find the relay either"
            }
            Self::LookupTimedOut => "check the name servers of this machine",
        }
    }
}

impl fmt::Display for ProbeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relay => {
                "closed the connection on an unknown key as an Aspia relay does, after it had waited for the end of the \
                 message"
            }
            Self::Silent => {
                return write!(
                    f,
                    "accepts connections, but kept silent for {} s after a message with an unknown key, which an Aspia \
                     relay closes at once",
                    CLOSE_TIMEOUT.as_secs()
                );
            }
            Self::ClosedAtOnce => "accepted the connection, and closed it before anything was sent",
            Self::ResetAtOnce => "accepted the connection, and reset it before anything was sent",
            Self::ClosedEarly => {
                "closed the connection before the message was complete; an Aspia relay waits for the rest"
            }
            Self::Http => "answers in HTTP",
            Self::Tls => "speaks TLS",
            Self::Ssh => "an SSH server",
            Self::OtherProtocol(head) => {
                let head = printable::escape_line(&String::from_utf8_lossy(head));
                return write!(f, "another service, which sent {head:?}");
            }
            Self::Refused => "connection refused",
            Self::TimedOut => "timed out: no answer to the attempt to connect",
            Self::NoRoute => "no route from this machine to this address",
            Self::Unreachable => "host unreachable, as the network reports",
            Self::ConnectFailed(error) => return write!(f, "cannot connect: {error}"),
            Self::NameNotFound(error) => return write!(f, "name not found: {error}"),
            Self::LookupTimedOut => "the lookup of the name timed out",
        })
    }
}
