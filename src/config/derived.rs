//! Defaults that follow from other settings or from the machine, and values that are shown as the relay uses them.

use super::parse::{self, RouterProtocol};
use super::provenance::Provenance;
use super::raw::RawSettings;
use super::report::ConfigReport;
use super::settings::SettingKey;

/// Adds the defaults that follow from other settings.
pub(super) fn derive(raw: &mut RawSettings, host_name: &str, report: &mut ConfigReport) {
    derive_listen_port(raw);
    derive_router_port(raw);
    derive_display_name(raw, host_name);
    derive_admin_listen(raw, report);
}

/// Sets `ListenPort` to the port that peers dial, if it is not set.
pub(super) fn derive_listen_port(raw: &mut RawSettings) {
    if is_empty(raw, SettingKey::ListenPort)
        && let Some(port) = raw.parsed(SettingKey::PeerPort, parse::port)
    {
        raw.derive(SettingKey::ListenPort, port.to_string(), SettingKey::PeerPort.name());
    }
}

/// Sets `RouterPort` to the default port of `RouterProtocol`, if it is not set.
fn derive_router_port(raw: &mut RawSettings) {
    let port = raw.parsed(SettingKey::RouterPort, parse::port);
    if let Some(RouterProtocol::Only(generation)) =
        raw.parsed(SettingKey::RouterProtocol, parse::protocol)
        && is_default(raw, SettingKey::RouterPort)
        && port != Some(generation.port)
    {
        let from = format!("RouterProtocol is {}", generation.number);
        raw.derive(SettingKey::RouterPort, generation.port.to_string(), &from);
    }
}

/// Makes `DisplayName` one that a Router accepts; the default is the host name.
fn derive_display_name(raw: &mut RawSettings, host_name: &str) {
    match raw.get(SettingKey::DisplayName).filter(|value| !value.text.is_empty()) {
        Some(value) => {
            let name = parse::computer_name(&value.text);
            raw.rewrite(SettingKey::DisplayName, name);
        }
        None => raw.derive(SettingKey::DisplayName, parse::computer_name(host_name), "host name"),
    }
}

/// Switches the admin listener off if peers dial its default port: a file of the original relay may set that port for
/// peers, and knows nothing of an admin listener.
fn derive_admin_listen(raw: &mut RawSettings, report: &mut ConfigReport) {
    let port = |key| raw.parsed(key, parse::port);
    let peers = port(SettingKey::ListenPort).or_else(|| port(SettingKey::PeerPort));
    if let Some(Some(listen)) = raw.parsed(SettingKey::AdminListen, parse::listen_address)
        && is_default(raw, SettingKey::AdminListen)
        && Some(listen.port) == peers
    {
        raw.derive(SettingKey::AdminListen, "off".to_owned(), "peers dial its port");
        report.add_warning(&format!(
            "AdminListen is off because peers dial the port of its default, {listen}: set it to another port"
        ));
    }
}

fn is_empty(raw: &RawSettings, key: SettingKey) -> bool {
    raw.get(key).is_none_or(|value| value.text.is_empty())
}

fn is_default(raw: &RawSettings, key: SettingKey) -> bool {
    raw.get(key).is_some_and(|value| value.source == Provenance::Default)
}
