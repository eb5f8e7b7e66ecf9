//! What the machine provides: time, open files, memory, ports for HTTP, pipes.

use std::time::SystemTime;

use crate::admin::listener::HttpListener;
use crate::clock;
use crate::config::{Config, tls_part_setting};
use crate::listen::bind;
use crate::listen::port_holder;
use crate::memory;
use crate::open_files::{self, OpenFilesLimit};

use super::deployment::Deployment;
use super::holders;
use super::report::{
    ADMIN_LISTEN, CLOCK, DoctorStep, MEMORY, METRICS_LISTEN, METRICS_TLS, OFFER_BY_LOAD,
    OPEN_FILES, PIPES,
};
use super::running::RelayInspection;

pub(super) fn check_clock(now: SystemTime) -> DoctorStep {
    match clock::warning(now) {
        Some(warning) => DoctorStep::failed(CLOCK, warning),
        None => DoctorStep::ok(CLOCK, format!("it says {}", clock::format(now))),
    }
}

/// Checks whether an HTTP port is free, or held by the running relay, whose process is `relay` if that is known.
pub(super) fn check_http(
    config: &Config,
    kind: HttpListener,
    relay: Option<i32>,
    running: &RelayInspection,
    deployment: Deployment,
) -> DoctorStep {
    let (step, listen) = match kind {
        HttpListener::Admin => (ADMIN_LISTEN, config.startup.admin_listen),
        HttpListener::Metrics => (METRICS_LISTEN, config.startup.metrics_listen),
    };
    let Some(listen) = listen else {
        return DoctorStep::skipped(step, "off");
    };
    let error = match bind::bind(kind.purpose(), listen.interface, listen.port) {
        Ok(_) if running.relay().is_some() => {
            let seen = format!(
                "{listen} is free, so the running relay does not listen there: it runs with another {step}, which \
                 only {} changes",
                deployment.restart_name()
            );
            return DoctorStep::hint(step, seen);
        }
        Ok(_) => return DoctorStep::ok(step, format!("{listen} is free")),
        Err(error) => error,
    };
    if !error.is_taken() {
        return DoctorStep::failed(step, deployment.explain_bind_error(&error));
    }
    if kind == HttpListener::Admin && running.relay().is_some() {
        return DoctorStep::ok(step, format!("the running relay answers on {listen}"));
    }
    let holders = error.holders();
    if holders.iter().any(|holder| Some(holder.pid) == relay) {
        let holders = port_holder::join(holders);
        return DoctorStep::ok(step, format!("{listen} is held by the running relay ({holders})"));
    }
    let (what, why) = (listen.to_string(), running.why_unknown());
    let mut unknown = holders::describe_unknown(&what, holders, &why, deployment);
    // A relay that cannot be asked may still serve metrics; one that answers would have been recognised above.
    if kind == HttpListener::Metrics && running.relay().is_none() {
        unknown = unknown.or_else(|| holders::describe_namesake(&what, holders, &why));
    }
    match unknown {
        Some(seen) => DoctorStep::hint(step, seen),
        None => DoctorStep::failed(step, error.to_string()),
    }
}

pub(super) fn check_tls(config: &Config, now: SystemTime) -> DoctorStep {
    let Some(files) = config.metrics_tls() else {
        return DoctorStep::skipped(METRICS_TLS, "off (MetricsTlsCertificate is not set)");
    };
    match files.load() {
        Err(error) => DoctorStep::failed(
            METRICS_TLS,
            format!("{}: expected {}", tls_part_setting(error.part), error.expected),
        ),
        Ok(server) => match server.validity.problem_at(now) {
            Some(problem) => {
                DoctorStep::failed(METRICS_TLS, format!("MetricsTlsCertificate {problem}"))
            }
            None => {
                let until = SystemTime::UNIX_EPOCH + server.validity.not_after;
                let until = humantime::format_rfc3339_seconds(until);
                DoctorStep::ok(METRICS_TLS, format!("the certificate is valid until {until}"))
            }
        },
    }
}

/// Checks the limit on open files: that of the running relay if its process is known, otherwise that of the doctor
/// itself.
pub(super) fn check_open_files(
    config: &Config,
    relay: Option<i32>,
    deployment: Deployment,
) -> DoctorStep {
    let needed = open_files::needed(config);
    // The relay raises its soft limit itself, when it starts and when it reloads.
    let of_relay = relay.and_then(|pid| Some((pid, read_hard_limit(pid)?)));
    let (limit, whose) = match (of_relay, open_files::limit()) {
        (Some((pid, hard)), _) => {
            (hard, format!("the limit is that of the running relay (process {pid})"))
        }
        (None, Some(OpenFilesLimit { hard, .. })) => (
            hard,
            "the limit is the doctor's own; a relay that a service manager or another user starts may have a different limit"
                .to_owned(),
        ),
        (None, None) => return DoctorStep::skipped(OPEN_FILES, "this system has no such limit"),
    };
    let step = match limit {
        Some(limit) if limit < needed => {
            let seen = open_files::warning_with(config, limit, deployment.open_files_remedy());
            DoctorStep::failed(OPEN_FILES, seen)
        }
        limit => DoctorStep::ok(
            OPEN_FILES,
            format!(
                "{needed} are enough for MaxPeerCount {} and MaxPendingPeers {}; {} may be open",
                config.max_sessions,
                config.max_pending_peers,
                limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string())
            ),
        ),
    };
    DoctorStep { details: vec![whose], ..step }
}

/// Reads the hard limit of another process: `Some(None)` if it has none, `None` if it is not visible.
#[cfg(target_os = "linux")]
fn read_hard_limit(pid: i32) -> Option<Option<u64>> {
    use procfs::process::{LimitValue, Process};

    Some(match Process::new(pid).ok()?.limits().ok()?.max_open_files.hard_limit {
        LimitValue::Unlimited => None,
        LimitValue::Value(limit) => Some(limit),
    })
}

/// The hard limit of another process, which is not visible on this system.
#[cfg(not(target_os = "linux"))]
fn read_hard_limit(_pid: i32) -> Option<Option<u64>> {
    None
}

/// Returns the bytes of memory available to the process of the relay, or to this process if that one is unknown or has
/// ended.
pub(super) fn available_memory(relay: Option<i32>) -> Option<u64> {
    relay.and_then(|pid| memory::available_to(Some(pid))).or_else(memory::available)
}

/// Checks whether the available memory, in bytes, is enough.
pub(super) fn check_memory(config: &Config, available: Option<u64>) -> DoctorStep {
    let Some(available) = available else {
        return DoctorStep::skipped(MEMORY, "this system does not report the available memory");
    };
    match memory::warning(config, available) {
        Some(warning) => DoctorStep::hint(MEMORY, warning),
        None => DoctorStep::ok(MEMORY, memory::describe_needs(config, available)),
    }
}

/// Says whether the keys on offer can follow the load. `unmeasured` is what this system does not report for that.
pub(super) fn check_offer_by_load(config: &Config, unmeasured: Option<String>) -> DoctorStep {
    match unmeasured {
        _ if !config.offer_by_load => DoctorStep::skipped(OFFER_BY_LOAD, "off"),
        Some(warning) => DoctorStep::hint(OFFER_BY_LOAD, warning),
        None => DoctorStep::ok(OFFER_BY_LOAD, "the load of this machine can be measured"),
    }
}

/// Checks whether bulk data can go through pipes. Otherwise it is copied, which only costs CPU.
pub(super) fn check_pipes(probed: Result<usize, String>) -> DoctorStep {
    match probed {
        Ok(size) => DoctorStep::ok(
            PIPES,
            format!(
                "a pipe has {} KiB; up to {} at once carry bulk data without copying",
                size / 1024,
                open_files::MAX_PIPES
            ),
        ),
        Err(why) => DoctorStep::hint(
            PIPES,
            format!("bulk data will be copied, which takes more CPU: {why}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::config;
    use crate::doctor::deployment::tests::assert_fits_pod;
    use crate::doctor::report::StepOutcome;

    #[test]
    fn small_pipes_give_a_hint() {
        assert!(check_pipes(Ok(512 * 1024)).seen.contains("512 KiB"));
        let small = check_pipes(Err("a pipe has only 8192 bytes".into()));
        assert_eq!(small.outcome, StepOutcome::Hint);
        assert!(small.seen.contains("8192"), "{small}");
        if cfg!(target_os = "linux") {
            assert_eq!(check_pipes(crate::forward::pipe::probe()).outcome, StepOutcome::Ok);
        }
    }

    #[test]
    fn memory_is_compared_with_the_configured_limits() {
        let config = config(&[("MAX_PEER_COUNT", "10000"), ("MAX_PENDING_PEERS", "1000")]);
        let needed = memory::needed(&config);
        // 10 000 sessions with 64 KiB each way, at least.
        assert!(needed > 10_000 * 128 * 1024);
        assert_eq!(check_memory(&config, Some(needed)).outcome, StepOutcome::Ok);
        let short = check_memory(&config, Some(needed - 1));
        assert_eq!(short.outcome, StepOutcome::Hint);
        assert!(
            short.seen.contains("MaxPeerCount 10000") && short.seen.contains("lower"),
            "{short}"
        );
        assert_eq!(check_memory(&config, None).outcome, StepOutcome::Skipped);
        assert!(
            cfg!(not(target_os = "linux")) || memory::available().is_some_and(|bytes| bytes > 0)
        );
    }

    #[test]
    fn load_that_cannot_be_measured_gives_a_hint_unless_it_is_not_followed() {
        let check = |offer_by_load, unmeasured: Option<&str>| {
            let config = config(&[("OFFER_BY_LOAD", offer_by_load)]);
            check_offer_by_load(&config, unmeasured.map(str::to_owned)).outcome
        };
        assert_eq!(check("true", None), StepOutcome::Ok);
        assert_eq!(check("true", Some("no CPU")), StepOutcome::Hint);
        assert_eq!(check("false", Some("no CPU")), StepOutcome::Skipped);
    }

    #[test]
    fn memory_is_that_of_the_doctor_if_the_relay_has_ended() {
        assert_eq!(
            available_memory(Some(i32::MAX)).is_some(),
            cfg!(target_os = "linux"),
            "that process has ended"
        );
    }

    fn answering() -> RelayInspection {
        RelayInspection::Relay(Box::new(crate::doctor::running::InspectedRelay {
            missing: Vec::new(),
            status: Err("401".to_owned()),
            settings: Vec::new(),
            listens_on: None,
            holders: Vec::new(),
        }))
    }

    #[test]
    fn free_metrics_port_beside_a_running_relay_gives_a_hint() {
        // A loopback address that no other test uses, so that nobody takes the port once it is free.
        let listener = std::net::TcpListener::bind("127.80.71.1:0").unwrap();
        let config = config(&[("METRICS_LISTEN", &listener.local_addr().unwrap().to_string())]);
        let pid = i32::try_from(std::process::id()).unwrap();
        if cfg!(target_os = "linux") {
            let held = check_http(
                &config,
                HttpListener::Metrics,
                Some(pid),
                &answering(),
                Deployment::Machine,
            );
            assert_eq!(held.outcome, StepOutcome::Ok, "{held}");
        }
        let other =
            check_http(&config, HttpListener::Metrics, None, &answering(), Deployment::Machine);
        assert_eq!(other.outcome == StepOutcome::Failed, cfg!(target_os = "linux"), "{other}");
        drop(listener);
        let alone = check_http(
            &config,
            HttpListener::Metrics,
            None,
            &RelayInspection::Off,
            Deployment::Machine,
        );
        assert_eq!(alone.outcome, StepOutcome::Ok);
        let free =
            check_http(&config, HttpListener::Metrics, None, &answering(), Deployment::Machine);
        assert_eq!(free.outcome, StepOutcome::Hint, "{free}");
        assert!(free.seen.contains("another MetricsListen, which only a restart"), "{free}");
        let in_pod =
            check_http(&config, HttpListener::Metrics, None, &answering(), Deployment::Pod).seen;
        assert!(in_pod.contains("only a new pod changes"), "{in_pod}");
        assert_fits_pod(&in_pod);
    }

    #[test]
    fn advice_for_a_low_file_limit_fits_the_deployment() {
        let config = config(&[]);
        let needed = open_files::needed(&config);
        let in_pod =
            open_files::warning_with(&config, needed - 1, Deployment::Pod.open_files_remedy());
        assert!(in_pod.contains("container runtime on the node"), "{in_pod}");
        assert_fits_pod(&in_pod);
        let here =
            open_files::warning_with(&config, needed - 1, Deployment::Machine.open_files_remedy());
        assert_eq!(here, open_files::warning(&config, needed - 1));
        assert!(here.contains("ulimit"), "{here}");
    }

    /// Other systems have no such limit.
    #[cfg(unix)]
    #[test]
    fn report_names_the_process_whose_file_limit_it_is() {
        let config = config(&[]);
        let own = check_open_files(&config, None, Deployment::Machine);
        assert!(own.details[0].contains("the doctor's own"), "{own}");
        // A process that has ended.
        assert_eq!(
            check_open_files(&config, Some(i32::MAX), Deployment::Machine).details,
            own.details
        );
        if cfg!(target_os = "linux") {
            let pid = i32::try_from(std::process::id()).unwrap();
            let of_relay = check_open_files(&config, Some(pid), Deployment::Machine);
            assert!(of_relay.details[0].contains(&format!("process {pid}")), "{of_relay}");
        }
    }
}
