//! The settings of the descriptor store. It reads the same sources as the relay, but only what it needs: in its container
//! nothing else has to be set.

use std::time::Duration;

use crate::fd_store::address::StoreAddress;

use super::derived;
use super::load::InvalidConfig;
use super::parse::Token;
use super::raw::RawSettings;
use super::reader::Reader;
use super::report::ConfigReport;
use super::settings::{Draft, SettingKey};
use super::sources::Sources;

/// The settings that the store reads; `ListenPort` is part of its default address.
const SETTINGS_OF_STORE: [SettingKey; 6] = [
    SettingKey::FdStore,
    SettingKey::FdStoreTimeout,
    SettingKey::AdminToken,
    SettingKey::LogPeerIdentity,
    SettingKey::ListenPort,
    SettingKey::PeerPort,
];

/// What the descriptor store runs with.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `FdStore`; if it is off, the address that belongs to `ListenPort`.
    pub address: StoreAddress,
    /// `FdStoreTimeout`.
    pub timeout: Duration,
    /// `AdminToken`.
    pub token: Option<Token>,
    /// `LogPeerIdentity`.
    pub log_peer_identity: bool,
    /// Every value with its source.
    pub report: ConfigReport,
}

/// Reads the settings of the store. `in_force` is the report of an earlier read, if they are read again: a file that was
/// read for it must still exist, since its absence does not withdraw the settings in it, and pipes and devices are not
/// read again. Blocks.
///
/// # Errors
/// [`InvalidConfig`] with every problem that concerns the store.
pub fn load_store_config(
    sources: &Sources,
    in_force: Option<&ConfigReport>,
) -> Result<StoreConfig, Box<InvalidConfig>> {
    let mut report = ConfigReport::default();
    let mut raw = RawSettings::collect(sources, in_force, &mut report);
    derived::derive_listen_port(&mut raw);
    let draft = Draft::read(&mut Reader {
        raw: &raw,
        path: &sources.path,
        missing_file_advice: "",
        report: &mut report,
    });
    let is_relevant = |key: &str| SETTINGS_OF_STORE.iter().any(|setting| *setting == *key);
    // A problem without a key concerns the whole file, or several variables.
    report.problems.retain(|problem| problem.key.is_empty() || is_relevant(&problem.key));
    let startup = draft.startup;
    let known = startup.fd_store.zip(startup.fd_store_timeout).zip(startup.listen_port);
    match (known, draft.admin_token.zip(draft.log_peer_identity)) {
        (Some(((address, timeout), port)), Some((token, log_peer_identity)))
            if report.problems.is_empty() =>
        {
            let address = address.unwrap_or_else(|| StoreAddress::of_relay(port));
            Ok(StoreConfig { address, timeout, token, log_peer_identity, report })
        }
        _ => Err(Box::new(InvalidConfig(report))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::report::FileState;

    fn load(environment: &[(&str, &str)]) -> Result<StoreConfig, Vec<String>> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment = environment.iter().map(owned).collect();
        let sources = Sources { path: "none".into(), is_path_explicit: false, environment };
        let problems = |invalid: Box<InvalidConfig>| {
            invalid.0.problems.iter().map(ToString::to_string).collect()
        };
        load_store_config(&sources, None).map_err(problems)
    }

    #[test]
    fn nothing_has_to_be_set() {
        let config = load(&[]).unwrap();
        assert_eq!(config.address, StoreAddress::of_relay(8070));
        assert_eq!(config.timeout, Duration::from_secs(60));
        assert_eq!(config.token, None);
    }

    #[test]
    fn file_that_is_away_for_a_moment_withdraws_nothing() {
        let sources =
            Sources { path: "none".into(), is_path_explicit: false, environment: Vec::new() };
        let mut report = load_store_config(&sources, None).unwrap().report;
        assert_eq!(report.file, FileState::Absent);
        assert!(load_store_config(&sources, Some(&report)).is_ok());
        report.file = FileState::Read;
        let problems = load_store_config(&sources, Some(&report)).unwrap_err().0.problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
    }

    #[cfg(unix)]
    #[test]
    fn token_from_a_pipe_is_read_once() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("token");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let variable = ("ASPIA_RELAY_ADMIN_TOKEN_FILE".to_owned(), pipe.display().to_string());
        let path = directory.path().join("relay.json");
        let sources = Sources { path, is_path_explicit: false, environment: vec![variable] };
        let writer = std::thread::spawn(move || std::fs::write(pipe, "s3cret").unwrap());
        let first = load_store_config(&sources, None).unwrap();
        writer.join().unwrap();
        let again = load_store_config(&sources, Some(&first.report)).unwrap();
        assert!(first.token.is_some() && again.token == first.token);
    }

    #[test]
    fn default_address_follows_the_port_on_which_the_relay_listens() {
        let address = |environment: &[(&str, &str)]| load(environment).unwrap().address;
        let (peers, listen) =
            (("ASPIA_RELAY_PEER_PORT", "443"), ("ASPIA_RELAY_LISTEN_PORT", "8443"));
        assert_eq!(address(&[peers]), StoreAddress::of_relay(443));
        assert_eq!(address(&[peers, listen]), StoreAddress::of_relay(8443));
        let off = ("ASPIA_RELAY_FD_STORE", "off");
        assert_eq!(address(&[off, listen]), StoreAddress::of_relay(8443));
        #[cfg(target_os = "linux")]
        assert_eq!(address(&[("ASPIA_RELAY_FD_STORE", "@x"), listen]), "@x".parse().unwrap());
    }

    #[test]
    fn only_problems_that_concern_the_store_are_reported() {
        let other = ("ASPIA_RELAY_ROUTER_PORT", "none");
        assert!(load(&[other]).is_ok());
        let problems =
            load(&[other, ("ASPIA_RELAY_FD_STORE", "x"), ("ASPIA_RELAY_FD_STORE_TIMEOUT", "1")]);
        let problems = problems.unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("FdStore = \"x\""), "{problems:?}");
        assert!(problems[1].starts_with("FdStoreTimeout"), "{problems:?}");
    }
}
