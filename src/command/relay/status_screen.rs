//! `--status`: the state of the relay on one screen.

use std::fmt::Write;

use serde_json::Value;

use crate::admin::client::AdminRequest;
use crate::admin::status::{FdStoreStatus, LastError, RouterStatus, Status};
use crate::cli::OutputFormat;
use crate::printable;

use super::client::RelayClient;
use super::units::{format_bytes, format_seconds};

/// Asks for the state, and returns what to print.
pub(super) async fn show(client: &RelayClient, format: OutputFormat) -> Result<String, String> {
    let body = client.send(&AdminRequest::get("/status")).await?;
    let not_understood = |error| {
        format!("the status of the relay cannot be understood: {error}; is it an earlier version?")
    };
    Ok(match format {
        OutputFormat::Json => {
            let status: Value = serde_json::from_slice(&body).map_err(not_understood)?;
            printable::escape_json(&format!("{status:#}\n"))
        }
        OutputFormat::Text => {
            let status: Status = serde_json::from_slice(&body).map_err(not_understood)?;
            render(&status)
        }
    })
}

fn render(status: &Status) -> String {
    let mut screen = String::new();
    for (name, value) in lines(status) {
        // The relay repeats what others told it: errors and names.
        let _ = writeln!(screen, "{name:<9} {}", printable::escape_line(&value));
    }
    screen
}

/// The lines of the screen: what each is about, and what there is to say.
fn lines(status: &Status) -> Vec<(&'static str, String)> {
    let Status { peers, keys, sessions, .. } = status;
    let mut lines = vec![
        ("relay", describe_relay(status)),
        ("state", describe_state(status)),
        ("router", describe_router(&status.router)),
    ];
    if !status.display_name.is_empty() {
        lines.insert(0, ("name", status.display_name.clone()));
    }
    push_error(&mut lines, status.router.last_error.as_ref());
    lines.push((
        "peers",
        format!(
            "dial {}; the relay listens on {}; {} of at most {} not paired yet",
            peers.dial, peers.listen, peers.pending, peers.pending_limit
        ),
    ));
    lines.push(("keys", format!("{} offered, {} handed out", keys.offered, keys.handed_out)));
    lines.push(("sessions", format!("{} of at most {}", sessions.active, sessions.limit)));
    lines.push(("traffic", describe_traffic(status)));
    let refused: Vec<_> = status.recent.refusals.iter().filter(|(_, count)| **count > 0).collect();
    if !refused.is_empty() {
        let refused = refused.iter().map(|(outcome, count)| format!("{count} {outcome}"));
        lines.push(("refused", refused.collect::<Vec<_>>().join(", ") + " in the last minutes"));
    }
    if status.fd_store.configured {
        lines.push(("store", describe_store(&status.fd_store)));
        push_error(&mut lines, status.fd_store.last_error.as_ref());
    }
    if !status.config.last_reload_successful {
        lines.push(("config", "the last one read is invalid and was not applied".to_owned()));
        push_error(&mut lines, status.config.last_error.as_ref());
    }
    lines.push(("log", status.log_level.clone()));
    if !status.waiting_for_restart.is_empty() {
        lines.push(("restart", format!("needed for {}", status.waiting_for_restart.join(", "))));
    }
    lines
}

fn describe_relay(status: &Status) -> String {
    let started = status.started.as_ref().map_or(String::new(), |at| format!(", since {at}"));
    format!(
        "aspia_relay {} ({}), up {}{started}",
        status.version,
        status.revision,
        format_seconds(status.uptime_seconds)
    )
}

fn describe_state(status: &Status) -> String {
    if status.draining {
        return format!(
            "draining: ends as soon as no peers are left, {} after the beginning at the latest (DrainTimeout)",
            format_seconds(status.drain_timeout_seconds)
        );
    }
    match status.missing.as_slice() {
        [] => "ready".to_owned(),
        missing => format!("not ready: {}", missing.join(", ")),
    }
}

fn describe_router(router: &RouterStatus) -> String {
    let since = router.since.as_ref().map_or(String::new(), |at| format!(" since {at}"));
    if !router.connected {
        let failures = match router.failures {
            1 => "1 attempt has failed".to_owned(),
            failures => format!("{failures} attempts in a row have failed"),
        };
        return format!("{}, not connected{since}; {failures}", router.address);
    }
    let confirmed = if router.confirmed { "" } else { ", not confirmed yet" };
    let details = [
        ("", &router.peer_address),
        ("Router ", &router.version),
        ("dialect ", &router.dialect),
        ("", &router.cipher),
    ];
    let details = details
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}{}", value.as_ref()?)))
        .collect::<Vec<_>>()
        .join(", ");
    format!("{}, connected{since}{confirmed} ({details})", router.address)
}

fn describe_traffic(status: &Status) -> String {
    let total = format!("{} since the start", format_bytes(status.bytes_total));
    let Some(last) = status.recent.bytes.last() else {
        return total;
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast to an integer saturates"
    )]
    let seconds = (status.recent.interval_seconds as u64).max(1);
    format!("{total}, {}/s now", format_bytes(last / seconds))
}

fn describe_store(store: &FdStoreStatus) -> String {
    let address = store.address.as_deref().unwrap_or("FdStore");
    let since = store.since.as_ref().map_or(String::new(), |at| format!(" since {at}"));
    match (store.connected, store.sessions_kept) {
        (true, Some(kept)) => format!("{address}, connected{since}, keeps {kept} sessions"),
        (true, None) => format!("{address}, connected{since}"),
        (false, _) => format!("{address}, not connected{since}: sessions end with this process"),
    }
}

fn push_error(lines: &mut Vec<(&'static str, String)>, error: Option<&LastError>) {
    if let Some(LastError { at, message }) = error {
        let at = at.as_ref().map_or(String::new(), |at| format!(" ({at})"));
        let message = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        lines.push(("", format!("last error{at}: {message}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> Status {
        let answer = json!({
            "version": "1.2.3", "revision": "abc", "started": "2026-12-01T00:00:00Z", "uptime_seconds": 90.0,
            "draining": false, "drain_timeout_seconds": 25.0, "ready": true, "missing": [],
            "router": {
                "address": "router.example:8060", "connected": true, "confirmed": true, "since": null,
                "peer_address": "192.0.2.1:8060", "version": "2.7.0", "dialect": "2", "cipher": null,
                "failures": 0, "last_error": null,
            },
            "peers": { "dial": "r.example:8070", "listen": "[::]:8070", "pending": 2, "pending_limit": 1024 },
            "keys": { "offered": 88, "handed_out": 2 },
            "sessions": { "active": 10, "limit": 100 },
            "bytes_total": 2048, "connections": {},
            "recent": { "interval_seconds": 5.0, "bytes": [0, 10240], "refusals": { "denied": 0, "timeout": 3 } },
            "log_level": "info", "waiting_for_restart": [],
        });
        serde_json::from_value(answer).unwrap()
    }

    #[test]
    fn healthy_relay_is_described() {
        let expected = "\
            relay     aspia_relay 1.2.3 (abc), up 1m 30s, since 2026-12-01T00:00:00Z\n\
            state     ready\n\
            router    router.example:8060, connected (192.0.2.1:8060, Router 2.7.0, dialect 2)\n\
            peers     dial r.example:8070; the relay listens on [::]:8070; 2 of at most 1024 not paired yet\n\
            keys      88 offered, 2 handed out\n\
            sessions  10 of at most 100\n\
            traffic   2.0 KiB since the start, 2.0 KiB/s now\n\
            refused   3 timeout in the last minutes\n\
            log       info\n";
        assert_eq!(render(&status()), expected);
    }

    #[test]
    fn faults_are_described_and_harmless() {
        let mut faulty = status();
        let error = |message: &str| Some(LastError { at: None, message: message.to_owned() });
        faulty.display_name = "Frankfurt\u{1b}1".into();
        faulty.missing = vec!["router-link".into()];
        faulty.router.connected = false;
        faulty.router.failures = 1;
        faulty.router.last_error = error("\u{1b}[2Jrefused");
        faulty.config.last_reload_successful = false;
        faulty.config.last_error = error("2 problems:\n  one\n  two");
        faulty.fd_store.configured = true;
        faulty.waiting_for_restart = vec!["WorkerThreads".into()];
        let screen = render(&faulty);
        for line in [
            r"name      Frankfurt\u{1b}1",
            "state     not ready: router-link",
            "router    router.example:8060, not connected; 1 attempt has failed",
            r"          last error: \u{1b}[2Jrefused",
            "store     FdStore, not connected: sessions end with this process",
            "config    the last one read is invalid and was not applied",
            "          last error: 2 problems: one two",
            "restart   needed for WorkerThreads",
        ] {
            assert!(screen.lines().any(|shown| shown == line), "{line} is not in {screen}");
        }
        faulty.draining = true;
        assert!(render(&faulty).contains("state     draining: "));
    }
}
