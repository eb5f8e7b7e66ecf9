//! What the machine gives: time, files, memory, ports for HTTP.

use std::time::SystemTime;

use crate::admin::kind::Kind;
use crate::clock;
use crate::config::{Config, tls_key};
use crate::listen::bind;
use crate::memory;
use crate::open_files::{self, Limit};

use super::peers::Port;
use super::report::Step;

pub(super) fn clock(now: SystemTime) -> Step {
    const STEP: &str = "clock";
    match clock::warning(now) {
        Some(warning) => Step::failed(STEP, warning),
        None => Step::ok(STEP, format!("it says {}", clock::shown(now))),
    }
}

/// Whether a listener for HTTP can be had; `port` says whether a relay runs already.
pub(super) fn http(config: &Config, kind: Kind, port: &Port) -> Step {
    let (step, listen) = match kind {
        Kind::Admin => ("AdminListen", config.startup.admin_listen),
        Kind::Metrics => ("MetricsListen", config.startup.metrics_listen),
    };
    let Some(listen) = listen else {
        return Step::skipped(step, "off");
    };
    match bind::bind(kind.purpose(), listen.interface, listen.port) {
        Ok(_) => Step::ok(step, format!("{listen} is free")),
        Err(error) if error.is_taken() && port.is_relay() => {
            Step::ok(step, format!("{listen} is taken, presumably by the relay that runs"))
        }
        Err(error) => Step::failed(step, error.to_string()),
    }
}

pub(super) fn tls(config: &Config) -> Step {
    const STEP: &str = "TLS of the metrics listener";
    let Some(files) = &config.metrics_tls else {
        return Step::skipped(STEP, "off (MetricsTlsCertificate is not set)");
    };
    match files.load() {
        Err(error) => {
            Step::failed(STEP, format!("{}: expected {}", tls_key(error.part), error.expected))
        }
        Ok(server) => match server.valid.complaint(SystemTime::now()) {
            Some(complaint) => Step::failed(STEP, format!("MetricsTlsCertificate {complaint}")),
            None => {
                let until = SystemTime::UNIX_EPOCH + server.valid.not_after;
                let until = humantime::format_rfc3339_seconds(until);
                Step::ok(STEP, format!("the certificate is good until {until}"))
            }
        },
    }
}

pub(super) fn open_files(config: &Config) -> Step {
    const STEP: &str = "open files";
    let needed = open_files::needed(config);
    match open_files::limit() {
        Some(Limit { hard: Some(hard), .. }) if hard < needed => {
            Step::failed(STEP, open_files::warning(config, hard))
        }
        Some(Limit { hard, .. }) => Step::ok(
            STEP,
            format!(
                "{needed} are enough for MaxPeerCount {} and MaxPendingPeers {}; {} may be open",
                config.max_sessions,
                config.max_pending_peers,
                hard.map_or_else(|| "any number".to_owned(), |hard| hard.to_string())
            ),
        ),
        None => Step::skipped(STEP, "this system has no such limit"),
    }
}

/// Whether the memory that is `available`, in bytes, is enough.
pub(super) fn memory(config: &Config, available: Option<u64>) -> Step {
    const STEP: &str = "memory";
    let Some(available) = available else {
        return Step::skipped(STEP, "this system does not say how much there is");
    };
    match memory::warning(config, available) {
        Some(warning) => Step::hint(STEP, warning),
        None => Step::ok(STEP, memory::comparison(config, available)),
    }
}

pub(super) fn pipes() -> Step {
    const STEP: &str = "pipes";
    const LIMIT: &str = "/proc/sys/fs/pipe-user-pages-soft";
    match std::fs::read_to_string(LIMIT) {
        Ok(pages) => Step::ok(
            STEP,
            format!(
                "{} pages for one user ({LIMIT}); this version copies and needs none",
                pages.trim()
            ),
        ),
        Err(_) => Step::skipped(STEP, "this version copies and needs none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::config::sources::Sources;
    use crate::doctor::report::Outcome;

    fn config(settings: &[(&str, &str)]) -> Config {
        let key = include_str!("../../tests/vectors/router.pub");
        let required = [
            ("ROUTER_ADDRESS", "r.example"),
            ("ROUTER_PUBLIC_KEY", key),
            ("PEER_ADDRESS", "p.example"),
        ];
        let environment = required
            .iter()
            .chain(settings)
            .map(|(name, value)| (format!("ASPIA_RELAY_{name}"), (*value).to_owned()))
            .collect();
        let sources = Sources { path: "none".into(), path_is_explicit: false, environment };
        config::load(&sources).unwrap().config
    }

    #[test]
    fn memory_is_compared_with_the_limits() {
        let config = config(&[("MAX_PEER_COUNT", "10000"), ("MAX_PENDING_PEERS", "1000")]);
        let needed = memory::needed(&config);
        // 10 000 sessions with 64 KiB each way, at least.
        assert!(needed > 10_000 * 128 * 1024);
        assert_eq!(memory(&config, Some(needed)).outcome, Outcome::Ok);
        let short = memory(&config, Some(needed - 1));
        assert_eq!(short.outcome, Outcome::Hint);
        assert!(
            short.seen.contains("MaxPeerCount 10000") && short.seen.contains("lower"),
            "{short}"
        );
        assert_eq!(memory(&config, None).outcome, Outcome::Skipped);
        assert!(
            cfg!(not(target_os = "linux")) || memory::available().is_some_and(|bytes| bytes > 0)
        );
    }
}
