//! The table of settings: every key, its default, and what a reload does with it.

/// What a changed setting takes effect with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// At once.
    Now,
    /// A new link to the Router.
    NewLink,
    /// A restart.
    Restart,
}

/// One key of `relay.json`.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name.
    pub key: &'static str,
    /// What holds where nobody sets it; `None` where it must be set or may be empty.
    pub default: Option<&'static str>,
    /// When a change applies.
    pub reload: Reload,
    /// Whether its value is a secret, which is never shown.
    pub secret: bool,
    /// Whether its value may be a JSON array, which means the same as its items with commas between.
    pub list: bool,
    /// Whether it is one of the original's, whose files leave values empty and write `1` and `0` for booleans.
    pub original: bool,
}

const fn setting(key: &'static str, default: Option<&'static str>, reload: Reload) -> Setting {
    Setting { key, default, reload, secret: false, list: false, original: false }
}

const fn original(key: &'static str, default: Option<&'static str>, reload: Reload) -> Setting {
    Setting { original: true, ..setting(key, default, reload) }
}

const fn secret(key: &'static str, reload: Reload) -> Setting {
    Setting { secret: true, ..setting(key, None, reload) }
}

const fn list(key: &'static str) -> Setting {
    Setting { list: true, ..setting(key, None, Reload::Now) }
}

/// All settings that this version knows. The first ten are the original's.
pub const SETTINGS: &[Setting] = &[
    original("RouterAddress", None, Reload::NewLink),
    original("RouterPort", Some("8060"), Reload::NewLink),
    original("RouterPublicKey", None, Reload::NewLink),
    original("ListenInterface", None, Reload::Restart),
    original("PeerAddress", None, Reload::NewLink),
    original("PeerPort", Some("8070"), Reload::NewLink),
    original("PeerIdleTimeout", Some("5"), Reload::Now),
    // A lower one needs a new link where too much is on offer: `Counts::too_much_on_offer`.
    original("MaxPeerCount", Some("100"), Reload::Now),
    original("StatisticsEnabled", Some("false"), Reload::Now),
    original("StatisticsInterval", Some("5"), Reload::Now),
    setting("ListenPort", None, Reload::Restart),
    setting("DisplayName", None, Reload::NewLink),
    setting("RouterProtocol", Some("auto"), Reload::NewLink),
    setting("DrainTimeout", Some("25s"), Reload::Now),
    setting("MaxSessionDuration", Some("0s"), Reload::Now),
    setting("MaxPendingPeers", Some("1024"), Reload::Now),
    setting("MaxPendingPeersPerAddress", Some("64"), Reload::Now),
    setting("PeerConnectRate", Some("300"), Reload::Now),
    list("AllowPeers"),
    list("DenyPeers"),
    setting("SessionBandwidth", None, Reload::Now),
    setting("TotalBandwidth", None, Reload::Now),
    setting("AdminListen", Some("127.0.0.1:8071"), Reload::Restart),
    secret("AdminToken", Reload::Now),
    list("AdminHosts"),
    setting("MetricsListen", Some("off"), Reload::Restart),
    secret("MetricsToken", Reload::Now),
    setting("MetricsTlsCertificate", None, Reload::Now),
    secret("MetricsTlsPrivateKey", Reload::Now),
    setting("MetricsTlsClientCa", None, Reload::Now),
    setting("WorkerThreads", Some("0"), Reload::Restart),
    setting("TracePeerIdentity", Some("false"), Reload::Now),
    setting("LogPeerIdentity", Some("false"), Reload::Now),
];

/// Finds a setting by its key, which is spelled exactly so.
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// The known key that `key` is most like, if it is like any.
pub fn closest(key: &str) -> Option<&'static str> {
    most_alike(key, SETTINGS.iter().map(|setting| setting.key))
}

/// Of `known` the one that `name` is most like, if it is like any. Capitals and underscores make no difference.
pub(super) fn most_alike<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |name: &str| name.replace('_', "").to_lowercase();
    let name = plain(name);
    known
        .map(|known| (strsim::jaro_winkler(&plain(known), &name), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// The variable of a key: `ASPIA_RELAY_` and the key in `SCREAMING_SNAKE_CASE`.
pub fn variable(key: &str) -> String {
    let mut name = String::from("ASPIA_RELAY");
    for letter in key.chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_spelled_as_documented() {
        assert_eq!(variable("RouterPublicKey"), "ASPIA_RELAY_ROUTER_PUBLIC_KEY");
        assert_eq!(variable("MaxPeerCount"), "ASPIA_RELAY_MAX_PEER_COUNT");
    }

    #[test]
    fn suggestions_are_close_or_absent() {
        assert_eq!(closest("RouterPubKey"), Some("RouterPublicKey"));
        assert_eq!(closest("peerport"), Some("PeerPort"));
        assert_eq!(closest("MaxPeersCount"), Some("MaxPeerCount"));
        assert_eq!(closest("Zebra"), None);
    }
}
