//! Rules that involve several settings, and warnings. They look at values and their sources only, never at the machine.

use std::time::Duration;

use crate::fd_store::address::StoreAddress;

use super::networks::Networks;
use super::parse::{HostName, ListenAddress};
use super::provenance::{ProblemSource, Provenance};
use super::report::ConfigReport;
use super::settings::{Draft, SettingKey};

/// The shortest `FdStoreTimeout` within which a relay surely starts again.
const MIN_STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks everything that concerns more than one setting, or that works but deserves a warning. Rules about an
/// invalid setting are skipped.
pub(super) fn check(draft: &Draft, is_in_container: bool, report: &mut ConfigReport) {
    check_admin_access(draft, report);
    check_ports_differ(draft, report);
    check_token_encryption(draft, report);
    check_unused_http_settings(draft, report);
    check_metrics_tls(draft, report);
    check_statistics(draft, report);
    check_fd_store(draft, is_in_container, report);
    check_peers(draft, report);
    check_identity_limits(draft, report);
}

/// Requires a token if other machines can reach the admin listener.
fn check_admin_access(draft: &Draft, report: &mut ConfigReport) {
    if let (Some(Some(listen)), Some(None)) = (draft.startup.admin_listen, &draft.admin_token)
        && !listen.is_loopback()
    {
        let expected = format!(
            "a token, since AdminListen {listen} can be reached from other machines; \
             otherwise set AdminListen to 127.0.0.1:PORT or off"
        );
        report.add_problem(SettingKey::AdminToken, None, Provenance::NotSet, expected);
    }
    if let (Some(hosts), Some(None)) = (&draft.admin_hosts, &draft.admin_token)
        && !hosts.is_empty()
    {
        report.add_warning(
            "AdminHosts is set without AdminToken: anybody who can reach the proxy can see and stop everything, unless \
             the proxy asks for a password itself",
        );
    }
}

/// Requires a port of its own for each listener.
fn check_ports_differ(draft: &Draft, report: &mut ConfigReport) {
    let (admin, metrics) = (draft.startup.admin_listen, draft.startup.metrics_listen);
    if let (Some(Some(admin)), Some(Some(metrics))) = (admin, metrics)
        && admin.port == metrics.port
    {
        report.add_problem(
            SettingKey::MetricsListen,
            Some(metrics.to_string()),
            ProblemSource::Conflict(SettingKey::AdminListen),
            "a port other than that of AdminListen (which also serves /metrics)".into(),
        );
    }
    let peers = draft.startup.listen_port.or(draft.router.peer_port);
    for (key, listen) in [(SettingKey::AdminListen, admin), (SettingKey::MetricsListen, metrics)] {
        if let Some(Some(listen)) = listen
            && Some(listen.port) == peers
        {
            report.add_problem(
                key,
                Some(listen.to_string()),
                ProblemSource::ConflictWithPeers,
                "a port other than the one that the relay listens on for peers, or off".into(),
            );
        }
    }
}

/// Warns about tokens that cross the network without TLS.
fn check_token_encryption(draft: &Draft, report: &mut ConfigReport) {
    let mut warn = |key: SettingKey, listen: ListenAddress, remedy: &str| {
        if !listen.is_loopback() {
            report.add_warning(&format!(
                "{key} is sent to {listen} without TLS: anybody on the path can read it; {remedy}"
            ));
        }
    };
    if let (Some(Some(listen)), Some(Some(_))) = (draft.startup.admin_listen, &draft.admin_token) {
        let remedy = "put a proxy with TLS in front, or set AdminListen to 127.0.0.1:PORT";
        warn(SettingKey::AdminToken, listen, remedy);
    }
    if let (Some(Some(listen)), Some(Some(_)), Some(None)) =
        (draft.startup.metrics_listen, &draft.metrics_token, &draft.metrics_tls_certificate)
    {
        let remedy = "set MetricsTlsCertificate and MetricsTlsPrivateKey";
        warn(SettingKey::MetricsToken, listen, remedy);
    }
}

/// Warns about settings of a listener that is off.
fn check_unused_http_settings(draft: &Draft, report: &mut ConfigReport) {
    if draft.startup.metrics_listen != Some(None) {
        return;
    }
    if let Some(Some(_)) = draft.metrics_token {
        report.add_warning("MetricsToken is set, but MetricsListen is off");
    }
    if let Some(Some(_)) = draft.metrics_tls_certificate {
        report.add_warning("MetricsTlsCertificate is set, but MetricsListen is off");
    }
}

/// Requires a certificate and its private key together, and both of them for client certificates.
fn check_metrics_tls(draft: &Draft, report: &mut ConfigReport) {
    let (Some(certificate), Some(private_key), Some(client_ca)) = (
        &draft.metrics_tls_certificate,
        &draft.metrics_tls_private_key,
        &draft.metrics_tls_client_ca,
    ) else {
        return;
    };
    let missing = match (certificate, private_key) {
        (Some(_), Some(_)) => return,
        (None, None) if client_ca.is_none() => return,
        (None, _) => SettingKey::MetricsTlsCertificate,
        (Some(_), None) => SettingKey::MetricsTlsPrivateKey,
    };
    let expected = format!(
        "a PEM file, since other TLS settings are set; MetricsTlsCertificate and \
         MetricsTlsPrivateKey go together ({})",
        missing.variable()
    );
    report.add_problem(missing, None, Provenance::NotSet, expected);
}

fn check_statistics(draft: &Draft, report: &mut ConfigReport) {
    if let Some(interval) = draft.statistics_interval.map(|interval| interval.as_secs())
        && interval > 60
    {
        report.add_warning(&format!(
            "StatisticsInterval is documented for up to 60 s; {interval} s is accepted, as by the original"
        ));
    }
}

/// Warns about a descriptor store whose place another process can take, or that gives up too early. Packages create a
/// user for the relay alone, but containers of other programs often have the same user.
fn check_fd_store(draft: &Draft, is_in_container: bool, report: &mut ConfigReport) {
    let Some(Some(address)) = &draft.startup.fd_store else { return };
    if let (StoreAddress::Abstract(_), Some(None), true) =
        (address, &draft.admin_token, is_in_container)
    {
        report.add_warning(&format!(
            "FdStore {address} is an abstract name, and AdminToken is not set: a container on the same network whose \
             process has the same user id can take the name and get the sockets of all sessions; set AdminToken, which \
             relay and store then prove to each other"
        ));
    }
    if let Some(timeout) = draft.startup.fd_store_timeout
        && timeout < MIN_STORE_TIMEOUT
    {
        report.add_warning(&format!(
            "FdStoreTimeout {} is short: sessions are lost if a new relay takes longer to start; {} or more is safe",
            humantime::format_duration(timeout),
            humantime::format_duration(MIN_STORE_TIMEOUT),
        ));
    }
}

/// Warns if no peer can reach the relay or none is admitted.
fn check_peers(draft: &Draft, report: &mut ConfigReport) {
    if let (Some(allow), Some(deny)) = (&draft.allow_peers, &draft.deny_peers)
        && !allow.is_empty()
        && allow.is_within(deny)
    {
        report.add_warning(&format!(
            "DenyPeers {deny} covers all of AllowPeers {allow}: no peer is admitted, since DenyPeers takes precedence"
        ));
    }
    if let Some(network) = draft.proxy_protocol_from.as_ref().and_then(Networks::universal) {
        report.add_warning(&format!(
            "ProxyProtocolFrom contains {network}: anyone can claim any address, and pass AllowPeers, DenyPeers and the limits for \
             each address. List only the addresses of the proxies in front"
        ));
    }
    if draft.router.peer_address.as_ref().is_some_and(HostName::is_loopback) {
        report.add_warning(
            "PeerAddress is a loopback address: only peers on this machine can reach the relay. \
             Set it to the address that Clients and Hosts dial",
        );
    }
}

/// Warns of limits that are never reached.
fn check_identity_limits(draft: &Draft, report: &mut ConfigReport) {
    let limits = [
        (SettingKey::MaxSessionsPerUser, draft.max_sessions_per_user),
        (SettingKey::MaxSessionsPerHost, draft.max_sessions_per_host),
    ];
    for (key, limit) in limits {
        if let (Some(Some(limit)), Some(all)) = (limit, draft.max_sessions)
            && limit.get() as usize >= all
        {
            report.add_warning(&format!(
                "{key} {limit} is never reached, since MaxPeerCount allows {all} sessions in all: set a lower number, or 0 \
                 for no limit"
            ));
        }
    }
}
