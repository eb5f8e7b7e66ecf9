//! What the machine gives: time, files, memory, ports for HTTP.

use std::time::SystemTime;

use crate::admin::kind::Kind;
use crate::clock;
use crate::config::{Config, tls_key};
use crate::listen::bind;
use crate::listen::port_holder;
use crate::memory;
use crate::open_files::{self, Limit};

use super::holders;
use super::report::{
    ADMIN_LISTEN, CLOCK, MEMORY, METRICS_LISTEN, METRICS_TLS, OPEN_FILES, PIPES, Step,
};
use super::running::Running;
use super::site::Site;

pub(super) fn clock(now: SystemTime) -> Step {
    match clock::warning(now) {
        Some(warning) => Step::failed(CLOCK, warning),
        None => Step::ok(CLOCK, format!("it says {}", clock::shown(now))),
    }
}

/// Whether a listener for HTTP can be had, or the relay that runs, with this process where that is known, has it.
pub(super) fn http(
    config: &Config,
    kind: Kind,
    relay: Option<i32>,
    running: &Running,
    site: Site,
) -> Step {
    let (step, listen) = match kind {
        Kind::Admin => (ADMIN_LISTEN, config.startup.admin_listen),
        Kind::Metrics => (METRICS_LISTEN, config.startup.metrics_listen),
    };
    let Some(listen) = listen else {
        return Step::skipped(step, "off");
    };
    let error = match bind::bind(kind.purpose(), listen.interface, listen.port) {
        Ok(_) if running.relay().is_some() => {
            let seen = format!(
                "{listen} is free, so the relay that runs does not listen there: it runs with another {step}, which \
                 only {} changes",
                site.restart()
            );
            return Step::hint(step, seen);
        }
        Ok(_) => return Step::ok(step, format!("{listen} is free")),
        Err(error) => error,
    };
    if !error.is_taken() {
        return Step::failed(step, site.cannot_listen(&error));
    }
    if kind == Kind::Admin && running.relay().is_some() {
        return Step::ok(step, format!("the relay that runs answers on {listen}"));
    }
    let holders = error.holders();
    if holders.iter().any(|holder| Some(holder.pid) == relay) {
        let holders = port_holder::list(holders);
        return Step::ok(step, format!("{listen} is held by the relay that runs ({holders})"));
    }
    let (what, why) = (listen.to_string(), running.why_unknown());
    let mut unknown = holders::unknown(&what, holders, &why, site);
    // A relay that cannot be asked has metrics all the same; one that can would have been seen.
    if kind == Kind::Metrics && running.relay().is_none() {
        unknown = unknown.or_else(|| holders::namesake(&what, holders, &why));
    }
    match unknown {
        Some(seen) => Step::hint(step, seen),
        None => Step::failed(step, error.to_string()),
    }
}

pub(super) fn tls(config: &Config, now: SystemTime) -> Step {
    let Some(files) = &config.metrics_tls else {
        return Step::skipped(METRICS_TLS, "off (MetricsTlsCertificate is not set)");
    };
    match files.load() {
        Err(error) => Step::failed(
            METRICS_TLS,
            format!("{}: expected {}", tls_key(error.part), error.expected),
        ),
        Ok(server) => match server.valid.complaint(now) {
            Some(complaint) => {
                Step::failed(METRICS_TLS, format!("MetricsTlsCertificate {complaint}"))
            }
            None => {
                let until = SystemTime::UNIX_EPOCH + server.valid.not_after;
                let until = humantime::format_rfc3339_seconds(until);
                Step::ok(METRICS_TLS, format!("the certificate is good until {until}"))
            }
        },
    }
}

/// The limit on open files: of the relay that runs where its process is known, otherwise of the doctor itself.
pub(super) fn open_files(config: &Config, relay: Option<i32>, site: Site) -> Step {
    let needed = open_files::needed(config);
    // The relay raises the soft limit by itself, at its start and when it reads the configuration again.
    let of_relay = relay.and_then(|pid| Some((pid, hard_limit_of(pid)?)));
    let (limit, whose) = match (of_relay, open_files::limit()) {
        (Some((pid, hard)), _) => {
            (hard, format!("the limit is that of the relay that runs (process {pid})"))
        }
        (None, Some(Limit { hard, .. })) => (
            hard,
            "the limit is the doctor's own; a relay that a service manager or another user starts may have another"
                .to_owned(),
        ),
        (None, None) => return Step::skipped(OPEN_FILES, "this system has no such limit"),
    };
    let step = match limit {
        Some(limit) if limit < needed => {
            let seen = open_files::warning_with(config, limit, site.more_open_files());
            Step::failed(OPEN_FILES, seen)
        }
        limit => Step::ok(
            OPEN_FILES,
            format!(
                "{needed} are enough for MaxPeerCount {} and MaxPendingPeers {}; {} may be open",
                config.max_sessions,
                config.max_pending_peers,
                limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string())
            ),
        ),
    };
    Step { details: vec![whose], ..step }
}

/// The hard limit of another process, `None` in it for no limit; `None` where it cannot be seen.
#[cfg(target_os = "linux")]
fn hard_limit_of(pid: i32) -> Option<Option<u64>> {
    use procfs::process::{LimitValue, Process};

    Some(match Process::new(pid).ok()?.limits().ok()?.max_open_files.hard_limit {
        LimitValue::Unlimited => None,
        LimitValue::Value(limit) => Some(limit),
    })
}

/// The hard limit of another process, which cannot be seen here.
#[cfg(not(target_os = "linux"))]
fn hard_limit_of(_pid: i32) -> Option<Option<u64>> {
    None
}

/// Bytes of memory that the relay with this process may take; where that is not known or has gone, this one.
pub(super) fn available(relay: Option<i32>) -> Option<u64> {
    relay.and_then(|pid| memory::available_to(Some(pid))).or_else(memory::available)
}

/// Whether the memory that is `available`, in bytes, is enough.
pub(super) fn memory(config: &Config, available: Option<u64>) -> Step {
    let Some(available) = available else {
        return Step::skipped(MEMORY, "this system does not say how much there is");
    };
    match memory::warning(config, available) {
        Some(warning) => Step::hint(MEMORY, warning),
        None => Step::ok(MEMORY, memory::comparison(config, available)),
    }
}

/// Whether bulk can go through pipes. Where it cannot, it is copied: that costs CPU and nothing else.
pub(super) fn pipes(probed: Result<usize, String>) -> Step {
    match probed {
        Ok(size) => Step::ok(
            PIPES,
            format!(
                "one has {} KiB; up to {} at once carry bulk without copying",
                size / 1024,
                open_files::MAX_PIPES
            ),
        ),
        Err(why) => Step::hint(PIPES, format!("bulk will be copied, which takes more CPU: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::Outcome;
    use crate::doctor::site::tests::is_for_a_pod;
    use crate::doctor::testing::config;

    #[test]
    fn pipes_that_are_too_small_are_a_hint() {
        assert!(pipes(Ok(512 * 1024)).seen.contains("512 KiB"));
        let small = pipes(Err("a pipe has only 8192 bytes".into()));
        assert_eq!(small.outcome, Outcome::Hint);
        assert!(small.seen.contains("8192"), "{small}");
        if cfg!(target_os = "linux") {
            assert_eq!(pipes(crate::forward::pipe::probe()).outcome, Outcome::Ok);
        }
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

    #[test]
    fn without_the_relay_the_memory_is_the_doctors() {
        assert_eq!(available(Some(i32::MAX)).is_some(), cfg!(target_os = "linux"), "it has gone");
    }

    fn answering() -> Running {
        Running::Relay(Box::new(crate::doctor::running::Relay {
            missing: Vec::new(),
            status: Err("401".to_owned()),
            settings: Vec::new(),
            listens_on: None,
            holders: Vec::new(),
        }))
    }

    #[test]
    fn a_free_metrics_listener_beside_a_relay_is_not_good() {
        // An address of loopback that is nobody else's, so that nobody gets the port when it is free.
        let listener = std::net::TcpListener::bind("127.80.71.1:0").unwrap();
        let config = config(&[("METRICS_LISTEN", &listener.local_addr().unwrap().to_string())]);
        let pid = i32::try_from(std::process::id()).unwrap();
        if cfg!(target_os = "linux") {
            let held = http(&config, Kind::Metrics, Some(pid), &answering(), Site::Machine);
            assert_eq!(held.outcome, Outcome::Ok, "{held}");
        }
        let other = http(&config, Kind::Metrics, None, &answering(), Site::Machine);
        assert_eq!(other.outcome == Outcome::Failed, cfg!(target_os = "linux"), "{other}");
        drop(listener);
        let nobody = http(&config, Kind::Metrics, None, &Running::Off, Site::Machine);
        assert_eq!(nobody.outcome, Outcome::Ok);
        let free = http(&config, Kind::Metrics, None, &answering(), Site::Machine);
        assert_eq!(free.outcome, Outcome::Hint, "{free}");
        assert!(free.seen.contains("another MetricsListen, which only a restart"), "{free}");
        let in_pod = http(&config, Kind::Metrics, None, &answering(), Site::Pod).seen;
        assert!(in_pod.contains("only a new pod changes"), "{in_pod}");
        is_for_a_pod(&in_pod);
    }

    #[test]
    fn a_low_limit_on_open_files_is_raised_where_it_can_be() {
        let config = config(&[]);
        let needed = open_files::needed(&config);
        let in_pod = open_files::warning_with(&config, needed - 1, Site::Pod.more_open_files());
        assert!(in_pod.contains("container runtime on the node"), "{in_pod}");
        is_for_a_pod(&in_pod);
        let here = open_files::warning_with(&config, needed - 1, Site::Machine.more_open_files());
        assert_eq!(here, open_files::warning(&config, needed - 1));
        assert!(here.contains("ulimit"), "{here}");
    }

    /// Elsewhere there is no such limit.
    #[cfg(unix)]
    #[test]
    fn it_is_said_whose_limit_on_open_files_it_is() {
        let config = config(&[]);
        let own = open_files(&config, None, Site::Machine);
        assert!(own.details[0].contains("the doctor's own"), "{own}");
        // One that has gone meanwhile.
        assert_eq!(open_files(&config, Some(i32::MAX), Site::Machine).details, own.details);
        if cfg!(target_os = "linux") {
            let pid = i32::try_from(std::process::id()).unwrap();
            let of_relay = open_files(&config, Some(pid), Site::Machine);
            assert!(of_relay.details[0].contains(&format!("process {pid}")), "{of_relay}");
        }
    }
}
