//! Where requests arrive: the two HTTP listeners and the command socket.

use crate::config::settings::SettingKey;
use crate::listen::bind::Purpose;

/// One of the two HTTP listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpListener {
    /// Serves everything.
    Admin,
    /// Serves only `/metrics`, `/livez` and `/readyz`.
    Metrics,
}

impl HttpListener {
    /// What its socket is for.
    pub const fn purpose(self) -> Purpose {
        match self {
            Self::Admin => Purpose {
                callers: "administrators",
                address_setting: SettingKey::AdminListen.name(),
                port_setting: SettingKey::AdminListen.name(),
            },
            Self::Metrics => Purpose {
                callers: "metrics",
                address_setting: SettingKey::MetricsListen.name(),
                port_setting: SettingKey::MetricsListen.name(),
            },
        }
    }
}

/// Where a request arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "only Linux has the command socket")
)]
pub(super) enum Endpoint {
    /// An HTTP listener.
    Listener(HttpListener),
    /// The socket for commands on this machine.
    CommandSocket(CommandCaller),
}

/// Who has connected to the command socket. The kernel says so, which makes a token unnecessary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "only Linux has the command socket")
)]
pub(super) enum CommandCaller {
    /// Root, or the user that the relay runs as: may ask and change everything. Such a process can also read the
    /// configuration of the relay, with the token, and send it signals.
    Trusted,
    /// Anybody else: only `/livez`, `/readyz` and `/instance` are answered.
    Other,
}
