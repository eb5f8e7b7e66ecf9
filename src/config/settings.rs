//! The table of settings. A setting is one row here and one field of [`Config`]; the row says everything else.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZero;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::crypto::PublicKey;
use crate::fd_store::address::StoreAddress;
use crate::tls::PemSource;

use super::admin_hosts::AdminHosts;
use super::networks::Networks;
use super::parse::{Bandwidth, HostName, ListenAddress, RouterProtocol, Token};
use super::parse::{
    bandwidth, boolean, duration, duration_limit, host, interface, listen_address, minutes, number,
    number_limit, optional, or_default, original_boolean, peer_address, pem, port, protocol,
    public_key, seconds, text, token,
};
use super::store;
use super::types::{Config, RouterConfig, StartupConfig};

/// Stands in a report for a secret.
pub const REDACTED: &str = "(redacted)";

/// Generates everything that depends on the whole table: [`SettingKey`], [`SETTINGS`] and [`Draft`].
///
/// A row reads `Key: Type => field, parser, reload class, [attributes]`. The field is `router.…` or `startup.…` in the
/// struct of that name, or `config.…` in [`Config`] itself. The attributes are methods of [`Setting`].
macro_rules! settings {
    ($(
        $key:ident: $type:ty =>
            $(router.$router:ident)? $(startup.$startup:ident)? $(config.$field:ident)?,
            $parse:expr, $reload:ident, [$($attribute:ident $(($argument:expr))?),*];
    )*) => {
        /// The key of a setting in `relay.json`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum SettingKey {
            $( #[doc = concat!("`", stringify!($key), "`")] $key, )*
        }

        impl SettingKey {
            /// The key as it is spelled in `relay.json`.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$key => stringify!($key), )* }
            }
        }

        /// Every setting that this version knows, in the order of [`SettingKey`]. The first ten are the original
        /// relay's.
        pub const SETTINGS: &[Setting] = &[ $(
            Setting::new(
                SettingKey::$key,
                ReloadClass::$reload,
                |old, new| {
                    old $(.router.$router)? $(.startup.$startup)? $(.$field)?
                        != new $(.router.$router)? $(.startup.$startup)? $(.$field)?
                },
                |from, to| {
                    to $(.router.$router)? $(.startup.$startup)? $(.$field)?
                        .clone_from(&from $(.router.$router)? $(.startup.$startup)? $(.$field)?);
                },
                |config| {
                    format!("{:?}", config $(.router.$router)? $(.startup.$startup)? $(.$field)?)
                },
            ) $( .$attribute($($argument)?) )*,
        )* ];

        /// A [`Config`] in the making: a field is `None` until its value is known to be valid.
        #[derive(Debug, Default)]
        pub(super) struct Draft {
            pub(super) router: RouterDraft,
            pub(super) startup: StartupDraft,
            $( $( pub(super) $field: Option<$type>, )? )*
        }

        /// A [`RouterConfig`] in the making.
        #[derive(Debug, Default)]
        pub(super) struct RouterDraft {
            $( $( pub(super) $router: Option<$type>, )? )*
        }

        /// A [`StartupConfig`] in the making.
        #[derive(Debug, Default)]
        pub(super) struct StartupDraft {
            $( $( pub(super) $startup: Option<$type>, )? )*
        }

        impl Draft {
            /// Reads every setting, in the order of the table.
            pub(super) fn read(reader: &mut impl ReadSetting) -> Self {
                let mut draft = Self::default();
                $(
                    draft $(.router.$router)? $(.startup.$startup)? $(.$field)? =
                        reader.read(SettingKey::$key, $parse);
                )*
                draft
            }

            /// The configuration, if every setting is valid.
            pub(super) fn finish(self) -> Option<Config> {
                Some(Config {
                    router: RouterConfig { $( $( $router: self.router.$router?, )? )* },
                    startup: StartupConfig { $( $( $startup: self.startup.$startup?, )? )* },
                    $( $( $field: self.$field?, )? )*
                })
            }
        }
    };
}

settings! {
    RouterAddress: HostName => router.address, host, NewLink,
        [original, required("the Router's host name or address")];
    RouterPort: u16 => router.port, port, NewLink, [original, default("8060")];
    RouterPublicKey: PublicKey => router.public_key, public_key, NewLink,
        [original, required("the content of the Router's router.pub (of a Router that was set up as 3.x: relay.pub)")];
    ListenInterface: Option<IpAddr> => startup.listen_interface, or_default(interface), Restart, [original];
    PeerAddress: HostName => router.peer_address, peer_address, NewLink,
        [original, required("the host name or address that Clients and Hosts dial")];
    PeerPort: u16 => router.peer_port, port, NewLink, [original, default("8070")];
    PeerIdleTimeout: Duration => config.peer_idle_timeout, minutes(1, 60), Now, [original, default("5")];
    // A lower one needs a new link if more keys are on offer than it allows: `StateCounts::has_excess_offers`.
    MaxPeerCount: usize => config.max_sessions, number(1, 100_000), Now, [original, default("100")];
    StatisticsEnabled: bool => config.statistics_enabled, original_boolean, Now, [original, default("false")];
    StatisticsInterval: Duration => config.statistics_interval, seconds(1, 3600), Now, [original, default("5")];
    ListenPort: u16 => startup.listen_port, port, Restart, [derived];
    DisplayName: String => router.display_name, text, NewLink, [derived];
    RouterProtocol: RouterProtocol => router.protocol, protocol, NewLink, [default("auto")];
    DrainTimeout: Duration => config.drain_timeout, duration, Now, [default("25s")];
    MaxSessionDuration: Option<Duration> => config.max_session_duration, duration_limit, Now, [default("0s")];
    MaxPendingPeers: usize => config.max_pending_peers, number(1, 1_000_000), Now, [default("1024")];
    MaxPendingPeersPerAddress: usize => config.max_pending_peers_per_address, number(1, 1_000_000), Now, [default("64")];
    PeerConnectRate: Option<NonZero<u32>> => config.peer_connect_rate, number_limit, Now, [default("300")];
    MaxSessionsPerUser: Option<NonZero<u32>> => config.max_sessions_per_user, number_limit, Now, [default("0")];
    MaxSessionsPerHost: Option<NonZero<u32>> => config.max_sessions_per_host, number_limit, Now, [default("0")];
    AllowPeers: Networks => config.allow_peers, or_default(Networks::parse), Now, [list];
    DenyPeers: Networks => config.deny_peers, or_default(Networks::parse), Now, [list];
    ProxyProtocolFrom: Networks => config.proxy_protocol_from, or_default(Networks::parse), Now, [list];
    SessionBandwidth: Option<Bandwidth> => config.session_bandwidth, optional(bandwidth), Now, [];
    TotalBandwidth: Option<Bandwidth> => config.total_bandwidth, optional(bandwidth), Now, [];
    OfferByLoad: bool => config.offer_by_load, boolean, Now, [default("true")];
    AdminListen: Option<ListenAddress> => startup.admin_listen, or_default(listen_address), Restart,
        [default("127.0.0.1:8071")];
    AdminToken: Option<Token> => config.admin_token, optional(token), Now, [secret];
    AdminHosts: AdminHosts => config.admin_hosts, or_default(AdminHosts::parse), Now, [list];
    MetricsListen: Option<ListenAddress> => startup.metrics_listen, or_default(listen_address), Restart,
        [default("off")];
    MetricsToken: Option<Token> => config.metrics_token, optional(token), Now, [secret];
    MetricsTlsCertificate: Option<PemSource> => config.metrics_tls_certificate, pem, Now, [pem];
    MetricsTlsPrivateKey: Option<PemSource> => config.metrics_tls_private_key, pem, Now, [pem, secret];
    MetricsTlsClientCa: Option<PemSource> => config.metrics_tls_client_ca, pem, Now, [pem];
    WatchConfig: bool => config.watch_config, boolean, Now, [default("false")];
    FdStore: Option<StoreAddress> => startup.fd_store, or_default(store::address), Restart, [default("off")];
    FdStoreTimeout: Duration => startup.fd_store_timeout, duration, Restart, [default("60s")];
    WorkerThreads: usize => startup.worker_threads, number(0, 256), Restart, [default("0")];
    TracePeerIdentity: bool => config.trace_peer_identity, boolean, Now, [default("false")];
    LogPeerIdentity: bool => config.log_peer_identity, boolean, Now, [default("false")];
}

/// Reads the value of one setting.
pub(super) trait ReadSetting {
    /// Returns the value, or notes a problem and returns `None`.
    fn read<T>(&mut self, key: SettingKey, parse: impl Fn(&str) -> Result<T, String>) -> Option<T>;
}

/// When a changed setting takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadClass {
    /// At once.
    Now,
    /// With a new link to the Router.
    NewLink,
    /// After a restart.
    Restart,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The key of the setting.
    pub key: SettingKey,
    /// The value if nobody sets it; `None` if it must be set, may be empty, or follows from something else.
    pub default: Option<&'static str>,
    /// When a change takes effect.
    pub reload: ReloadClass,
    /// Whether the value is a secret, which is never shown.
    pub is_secret: bool,
    /// Whether the value may be a JSON array, which means the same as its items joined with commas.
    pub is_list: bool,
    /// Whether the original relay has this setting. Files of the original leave values empty and write `1` and `0` for
    /// booleans.
    pub is_original: bool,
    /// A description of the value, if it must be set.
    pub required: Option<&'static str>,
    /// Whether the value is PEM, or the path of a file with PEM.
    pub is_pem: bool,
    /// Whether the default follows from something else.
    pub(super) is_derived: bool,
    pub(super) differs: fn(&Config, &Config) -> bool,
    /// Copies the value from the first configuration to the second.
    pub(super) copy: fn(&Config, &mut Config),
    /// Describes the value unambiguously, unless it is a secret, whose description is redacted.
    pub(super) describe: fn(&Config) -> String,
}

/// The attributes of a row.
impl Setting {
    const fn new(
        key: SettingKey,
        reload: ReloadClass,
        differs: fn(&Config, &Config) -> bool,
        copy: fn(&Config, &mut Config),
        describe: fn(&Config) -> String,
    ) -> Self {
        Self {
            key,
            default: None,
            reload,
            is_secret: false,
            is_list: false,
            is_original: false,
            required: None,
            is_pem: false,
            is_derived: false,
            differs,
            copy,
            describe,
        }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    const fn required(self, what: &'static str) -> Self {
        Self { required: Some(what), ..self }
    }

    const fn original(self) -> Self {
        Self { is_original: true, ..self }
    }

    const fn derived(self) -> Self {
        Self { is_derived: true, ..self }
    }

    const fn secret(self) -> Self {
        Self { is_secret: true, ..self }
    }

    const fn list(self) -> Self {
        Self { is_list: true, ..self }
    }

    const fn pem(self) -> Self {
        Self { is_pem: true, ..self }
    }
}

impl Setting {
    /// How a value is shown in a report.
    pub(super) fn shown<'a>(&self, value: &'a str) -> &'a str {
        if value.trim().is_empty() {
            return "";
        }
        match (self.is_pem, self.is_secret) {
            (false, false) => value,
            (false, true) => REDACTED,
            (true, secret) => shown_pem(value, secret).unwrap_or(REDACTED),
        }
    }
}

/// How PEM, or its path, is shown; `None` if it must not be.
pub(super) fn shown_pem(value: &str, secret: bool) -> Option<&str> {
    match (PemSource::new(value), secret) {
        // Part of a key, such as its base64 alone, must not be shown as a path. No base64 is an absolute path or begins
        // with a dot.
        (PemSource::File(path), true) => {
            (path.is_absolute() || value.starts_with('.')).then_some(value)
        }
        (PemSource::File(_), false) => Some(value),
        (PemSource::Inline(_), true) => None,
        (PemSource::Inline(_), false) => Some("(PEM)"),
    }
}

impl SettingKey {
    /// The row of this key.
    pub fn setting(self) -> &'static Setting {
        &SETTINGS[self as usize]
    }

    /// The environment variable of this key.
    pub fn variable(self) -> String {
        variable(self.name())
    }

    /// Finds a key by its exact spelling.
    pub fn find(name: &str) -> Option<Self> {
        SETTINGS.iter().map(|setting| setting.key).find(|key| key.name() == name)
    }
}

impl fmt::Display for SettingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for SettingKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl PartialEq<str> for SettingKey {
    fn eq(&self, name: &str) -> bool {
        self.name() == name
    }
}

impl PartialEq<&str> for SettingKey {
    fn eq(&self, name: &&str) -> bool {
        self.name() == *name
    }
}

/// The names of keys, separated by commas.
pub fn join_names(keys: &[SettingKey]) -> String {
    let names: Vec<_> = keys.iter().map(|key| key.name()).collect();
    names.join(", ")
}

/// The known key that is most similar to `key`, if any is similar.
pub fn find_closest_key(key: &str) -> Option<&'static str> {
    find_most_similar(key, SETTINGS.iter().map(|setting| setting.key.name()))
}

/// The name in `known` that is most similar to `name`, if any is similar. Case and underscores do not matter.
pub(super) fn find_most_similar<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let plain = |name: &str| name.replace('_', "").to_lowercase();
    let name = plain(name);
    known
        .map(|known| (strsim::jaro_winkler(&plain(known), &name), known))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// The environment variable of a key: `ASPIA_RELAY_` and the key in `SCREAMING_SNAKE_CASE`.
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
        assert_eq!(SettingKey::RouterPublicKey.variable(), "ASPIA_RELAY_ROUTER_PUBLIC_KEY");
        assert_eq!(SettingKey::MaxPeerCount.variable(), "ASPIA_RELAY_MAX_PEER_COUNT");
    }

    #[test]
    fn similar_keys_are_suggested() {
        assert_eq!(find_closest_key("RouterPubKey"), Some("RouterPublicKey"));
        assert_eq!(find_closest_key("peerport"), Some("PeerPort"));
        assert_eq!(find_closest_key("MaxPeersCount"), Some("MaxPeerCount"));
        assert_eq!(find_closest_key("Zebra"), None);
    }

    #[test]
    fn a_key_finds_its_row() {
        for setting in SETTINGS {
            assert_eq!(setting.key.setting().key, setting.key);
            assert_eq!(SettingKey::find(setting.key.name()), Some(setting.key));
        }
    }

    /// The code of this directory without comments and tests.
    fn code() -> Vec<(String, String)> {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config");
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            files.push((name, lines.collect::<Vec<_>>().join("\n")));
        }
        files
    }

    fn places(word: &str) -> Vec<String> {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let mut places = Vec::new();
        for (name, code) in code() {
            let words = code.split(|c| !is_part(c)).filter(|part| *part == word);
            places.extend(words.map(|_| name.clone()));
        }
        places.sort();
        places
    }

    #[test]
    fn a_setting_is_one_row_and_one_field() {
        // Settings that no rule connects with another one.
        for (key, field) in [
            ("DrainTimeout", "drain_timeout"),
            ("MaxPendingPeersPerAddress", "max_pending_peers_per_address"),
            ("MaxSessionDuration", "max_session_duration"),
            ("SessionBandwidth", "session_bandwidth"),
            ("TracePeerIdentity", "trace_peer_identity"),
        ] {
            assert_eq!(places(key), ["settings.rs"], "{key}");
            assert_eq!(places(field), ["settings.rs", "types.rs"], "{field}");
        }
    }

    #[test]
    fn no_key_is_written_as_a_string() {
        for (name, code) in code() {
            for setting in SETTINGS {
                // A key of JSON, as in the default file, is followed by a colon.
                let quoted = format!("\"{}\"", setting.key);
                let mut after = code.split(&quoted).skip(1);
                assert!(after.all(|rest| rest.starts_with(':')), "{name}: {quoted}");
            }
        }
    }
}
