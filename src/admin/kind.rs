//! The two listeners, and the socket of commands.

use crate::listen::bind::Purpose;

/// Which of the two listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Everything.
    Admin,
    /// `/metrics`, `/livez` and `/readyz`.
    Metrics,
}

impl Kind {
    /// What its socket is for.
    pub const fn purpose(self) -> Purpose {
        match self {
            Self::Admin => Purpose {
                callers: "administrators",
                address_setting: "AdminListen",
                port_setting: "AdminListen",
            },
            Self::Metrics => Purpose {
                callers: "metrics",
                address_setting: "MetricsListen",
                port_setting: "MetricsListen",
            },
        }
    }
}

/// Where a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "only Linux has the socket of commands")
)]
pub(super) enum Interface {
    /// At a listener.
    Listener(Kind),
    /// At the socket of commands on this machine: `/livez`, `/readyz` and `/instance`.
    Commands,
}
