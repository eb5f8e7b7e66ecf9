//! What a reload changes: the reload class of each setting decides, and a few rules keep open sockets safe.

use crate::crypto;

use super::settings::{ReloadClass, SETTINGS, SettingKey};
use super::types::Config;

impl Config {
    /// The keys of all settings whose values differ.
    pub fn differences(&self, other: &Self) -> Vec<SettingKey> {
        let differing = SETTINGS.iter().filter(|setting| (setting.differs)(self, other));
        differing.map(|setting| setting.key).collect()
    }

    /// Applies `new` as far as a relay that runs with `self` can without a restart. Returns the configuration that is in
    /// force afterwards, and the keys of the settings that wait for a restart.
    pub fn apply_reload(&self, new: &Self) -> (Self, Vec<SettingKey>) {
        let mut applied = new.clone();
        for setting in SETTINGS.iter().filter(|setting| setting.reload == ReloadClass::Restart) {
            (setting.copy)(self, &mut applied);
        }
        let mut keep = |key: SettingKey| (key.setting().copy)(self, &mut applied);
        let (old_sockets, new_sockets) = (&self.startup, &new.startup);
        if new_sockets.listen_port != old_sockets.listen_port
            && new_sockets.listen_port == new.router.peer_port
        {
            // Peers must not be sent to a port on which the relay does not listen yet.
            keep(SettingKey::PeerPort);
        }
        // A socket that stays open until the restart keeps its token: without a token, it would be open to everybody.
        if new_sockets.admin_listen != old_sockets.admin_listen && new.admin_token.is_none() {
            keep(SettingKey::AdminToken);
        }
        if new_sockets.metrics_listen != old_sockets.metrics_listen {
            if new.metrics_token.is_none() {
                keep(SettingKey::MetricsToken);
            }
            // The same goes for TLS, and for the certificates that clients must show.
            keep(SettingKey::MetricsTlsCertificate);
            keep(SettingKey::MetricsTlsPrivateKey);
            keep(SettingKey::MetricsTlsClientCa);
        }
        let waiting = new.differences(&applied);
        (applied, waiting)
    }

    /// Whether a change from `self` to `new` needs a new link to the Router. A lower `MaxPeerCount` also needs one if
    /// more keys are on offer than there is capacity for, which only the state knows: `StateCounts::has_excess_offers`.
    pub fn needs_new_link(&self, new: &Self) -> bool {
        let needs_link = |key: &SettingKey| key.setting().reload == ReloadClass::NewLink;
        self.differences(new).iter().any(needs_link)
    }

    /// The fingerprint of the settings that a link to the Router is made with: those whose change needs a new link
    /// ([`Self::needs_new_link`]). Another process can thus tell whether it can continue with a link of this one.
    pub fn link_fingerprint(&self) -> [u8; 32] {
        let settings = SETTINGS.iter().filter(|setting| setting.reload == ReloadClass::NewLink);
        // In quotes and with the escapes of the debug format, so that no two lists of values look the same.
        let described: Vec<_> =
            settings.map(|setting| (setting.key.name(), (setting.describe)(self))).collect();
        crypto::sha256(format!("{described:?}").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A secret is described as redacted, so a change of it would not change the fingerprint.
    #[test]
    fn no_secret_is_part_of_the_fingerprint_of_a_link() {
        let of_link = SETTINGS.iter().filter(|setting| setting.reload == ReloadClass::NewLink);
        assert!(of_link.clone().count() > 5);
        for setting in of_link {
            assert!(!setting.is_secret, "{}", setting.key);
        }
    }
}
