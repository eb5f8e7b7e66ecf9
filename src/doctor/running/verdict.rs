//! Judges a running relay: its keys, its last error, and whether it runs with this configuration.

use crate::admin::status::Status;
use crate::config::report::ConfigReport;
use crate::config::{Config, StartupConfig};
use crate::doctor::deployment::Deployment;
use crate::doctor::report::{DoctorStep, RUNNING_RELAY, StepOutcome};
use crate::router::status::CONFIRMATION_TIME;

use super::relay::InspectedRelay;

/// Makes the step about this relay.
pub(super) fn step(
    relay: &InspectedRelay,
    config: &Config,
    report: &ConfigReport,
    deployment: Deployment,
) -> DoctorStep {
    let (outcome, mut seen) = judge_readiness(relay);
    let mut step = DoctorStep::new(RUNNING_RELAY, outcome, "");
    if outcome == StepOutcome::Ok {
        step.details.extend(last_error(relay));
    }
    let failure = failed_reload(relay);
    if let Some(failure) = &failure {
        seen += ". A configuration that it has read since then is wrong, so it goes on with the one before";
        step.details.push(failure.clone());
    }
    let waiting = waiting_for_restart(relay);
    if !waiting.is_empty() {
        let restart = deployment.restart_name();
        seen += &format!(". Settings that it has read wait for {restart}: ");
        seen += &waiting.join(", ");
    }
    let differences = differences(relay, config, report);
    if !differences.is_empty() {
        seen += ". It does not run with this configuration: ";
        seen += &if is_watching(relay) {
            deployment.watch_advice()
        } else {
            deployment.reload_advice()
        };
    }
    let is_up_to_date = failure.is_none() && waiting.is_empty() && differences.is_empty();
    if step.outcome == StepOutcome::Ok && !is_up_to_date {
        step.outcome = StepOutcome::Hint;
    }
    step.details.extend(differences);
    step.seen = seen;
    step
}

fn last_error(relay: &InspectedRelay) -> Option<String> {
    let last = relay.status.as_ref().ok()?.router.last_error.as_ref()?;
    let at = last.at.as_deref().unwrap_or("an unknown time");
    Some(format!("its last error with the Router, at {at}: {}", last.message))
}

/// Judges whether the relay can serve peers, and if not, why.
fn judge_readiness(relay: &InspectedRelay) -> (StepOutcome, String) {
    let status = relay.status.as_ref();
    // This comes first, since a relay that drains has closed its link, and the Router has forgotten its keys.
    if relay.is_missing("draining") {
        let left = status.map_or(String::new(), |status| {
            format!("; {} sessions are left", status.sessions.active)
        });
        let seen = format!("its key pool is empty, since it is stopping (draining){left}");
        return (StepOutcome::Hint, seen);
    }
    if relay.is_missing("router-link") {
        return judge_missing_link(status);
    }
    if relay.is_missing("peer-listener") {
        let seen = "it cannot accept peers at the moment: its log says why (too many open files?)";
        return (StepOutcome::Failed, seen.to_owned());
    }
    match status {
        Ok(status) => judge_key_pool(status),
        Err(why) => {
            let seen = format!(
                "it is connected to its Router and accepts peers; its key pool and sessions are not known ({why})"
            );
            (StepOutcome::Hint, seen)
        }
    }
}

/// The verdict on a relay whose link is missing or not confirmed yet.
fn judge_missing_link(status: Result<&Status, &String>) -> (StepOutcome, String) {
    const PEERS: &str = "Peers get no relay until that is fixed";

    let router = match status {
        Ok(status) => &status.router,
        Err(why) => {
            let seen = format!(
                "its key pool is empty, since it has no link to its Router: its log says why ({why}). {PEERS}"
            );
            return (StepOutcome::Failed, seen);
        }
    };
    let address = &router.address;
    if router.connected {
        let seen = format!(
            "it has just authenticated to {address}, and waits {} s to see whether the Router keeps the link: look \
             again. Until then it is not ready",
            CONFIRMATION_TIME.as_secs()
        );
        return (StepOutcome::Hint, seen);
    }
    let since = router.since.as_ref().map_or(String::new(), |since| format!(" since {since}"));
    let error = router.last_error.as_ref().map_or_else(
        || "there is no error yet".to_owned(),
        |last| format!("{} attempts failed, the last one: {}", router.failures, last.message),
    );
    let seen = format!(
        "its key pool is empty, since it has no link to {address}{since}: {error}. {PEERS}"
    );
    (StepOutcome::Failed, seen)
}

/// The verdict on a relay with a link that accepts peers.
fn judge_key_pool(status: &Status) -> (StepOutcome, String) {
    let router = &status.router.address;
    let (offered, handed_out) = (status.keys.offered, status.keys.handed_out);
    let (active, limit) = (status.sessions.active, status.sessions.limit);
    let usage = format!("{active} sessions and {handed_out} keys handed out, of {limit}");
    if offered > 0 {
        let since = status.router.since.as_deref().unwrap_or("an unknown time");
        let seen =
            format!("connected to {router} since {since}; {offered} keys are on offer ({usage})");
        return (StepOutcome::Ok, seen);
    }
    let seen = if active + handed_out >= limit {
        format!(
            "its key pool is empty, since the relay is full ({usage}): the Router sends no more peers. If that happens \
             often, raise MaxPeerCount or add a relay"
        )
    } else {
        format!(
            "its key pool is empty, although the relay is not full ({usage}): it is making keys right now, or has only \
             just connected to {router}. Look again"
        )
    };
    (StepOutcome::Hint, seen)
}

/// Why the configuration that the relay has read last is not in force, if it is not.
fn failed_reload(relay: &InspectedRelay) -> Option<String> {
    let config = &relay.status.as_ref().ok()?.config;
    let last = config.last_error.as_ref().filter(|_| !config.last_reload_successful)?;
    let at = last.at.as_deref().unwrap_or("an unknown time");
    let lines: Vec<_> = last.message.lines().map(str::trim).collect();
    Some(format!("its last reload failed, at {at}: {}", lines.join(" ")))
}

/// Whether the relay watches the files that its settings come from.
fn is_watching(relay: &InspectedRelay) -> bool {
    relay.status.as_ref().is_ok_and(|status| status.config.watched)
}

/// The keys of settings that the relay has read but does not run with; `/config` shows what was read.
fn waiting_for_restart(relay: &InspectedRelay) -> Vec<&str> {
    let waiting = relay.status.iter().flat_map(|status| &status.waiting_for_restart);
    waiting.map(String::as_str).collect()
}

/// Lists the differences between the relay's configuration and this one.
fn differences(relay: &InspectedRelay, config: &Config, report: &ConfigReport) -> Vec<String> {
    let changed = report.settings.iter().filter_map(|here| {
        let (key, there) = relay.settings.iter().find(|(key, _)| here.key == **key)?;
        (*there != here.value).then(|| {
            format!("{key} is {there:?} there and {:?} here ({})", here.value, here.source)
        })
    });
    let mut differences: Vec<_> = changed.collect();
    let StartupConfig { listen_interface, listen_port, .. } = config.startup;
    let Some(there) = relay.listens_on() else { return differences };
    if there.port() != listen_port {
        let there = there.port();
        differences.push(format!("it listens on port {there}, ListenPort is {listen_port} here"));
    }
    let there = there.ip();
    match listen_interface {
        Some(here) if here != there => {
            differences.push(format!("it listens on {there}, ListenInterface is {here} here"));
        }
        None if !there.is_unspecified() => {
            differences.push(format!("it listens on {there}, ListenInterface is empty here (all)"));
        }
        _ => {}
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::{KeysStatus, SessionsStatus};
    use crate::config::testing::config;
    use crate::doctor::deployment::tests::assert_fits_pod;
    use crate::doctor::testing::status;

    fn relay(missing: &[&str], offered: usize, handed_out: usize, active: usize) -> InspectedRelay {
        let mut status = status();
        status.keys = KeysStatus { offered, handed_out };
        status.sessions = SessionsStatus { active, limit: 10 };
        InspectedRelay {
            missing: missing.iter().map(|name| (*name).to_owned()).collect(),
            status: Ok(status),
            settings: Vec::new(),
            listens_on: None,
            holders: Vec::new(),
        }
    }

    fn judged(relay: &InspectedRelay) -> DoctorStep {
        step(relay, &config(&[]), &ConfigReport::default(), Deployment::Machine)
    }

    #[test]
    fn empty_key_pool_is_explained() {
        for (relay, outcome, parts) in [
            (
                relay(&[], 7, 1, 2),
                StepOutcome::Ok,
                &["7 keys are on offer", "2 sessions and 1 key"][..],
            ),
            (
                relay(&["router-link"], 0, 0, 2),
                StepOutcome::Failed,
                &["no link", "r.example", "refused"],
            ),
            (
                relay(&["draining", "router-link"], 0, 0, 2),
                StepOutcome::Hint,
                &["draining", "2 sess"],
            ),
            (relay(&[], 0, 3, 7), StepOutcome::Hint, &["the relay is full", "MaxPeerCount"]),
            (relay(&[], 0, 0, 7), StepOutcome::Hint, &["is not full", "Look again"]),
            (relay(&["peer-listener"], 9, 0, 1), StepOutcome::Failed, &["cannot accept peers"]),
        ] {
            let step = judged(&relay);
            assert_eq!(step.outcome, outcome, "{step}");
            let empty = step.seen.contains("its key pool is empty");
            let offered = relay.status.unwrap().keys.offered;
            assert_eq!(empty, offered == 0, "{step}");
            for part in parts {
                assert!(step.seen.contains(part), "{part}: {step}");
            }
        }
    }

    #[test]
    fn unconfirmed_link_is_not_reported_as_empty_key_pool() {
        let mut waiting = relay(&["router-link"], 10, 0, 0);
        waiting.status.as_mut().unwrap().router.connected = true;
        let step = judged(&waiting);
        assert_eq!(step.outcome, StepOutcome::Hint, "{step}");
        assert!(step.seen.contains("waits 5 s") && !step.seen.contains("empty"), "{step}");
    }

    #[test]
    fn link_state_is_known_without_the_token() {
        let secret =
            |missing| InspectedRelay { status: Err("a token".into()), ..relay(missing, 1, 0, 0) };
        let down = judged(&secret(&["router-link"]));
        assert_eq!(down.outcome, StepOutcome::Failed);
        assert!(down.seen.contains("key pool is empty") && down.seen.contains("its log"), "{down}");
        let up = judged(&secret(&[]));
        assert_eq!(up.outcome, StepOutcome::Hint);
        assert!(up.seen.contains("not known (a token)"), "{up}");
    }

    #[test]
    fn configuration_that_is_not_applied_yet_is_reported() {
        let mut report = ConfigReport::default();
        let line = crate::config::report::SettingLine {
            key: crate::config::settings::SettingKey::MaxPeerCount,
            value: "50".to_owned(),
            source: crate::config::provenance::Provenance::File("x".into()),
        };
        report.settings.push(line);
        let there = |value: &str| InspectedRelay {
            settings: vec![("MaxPeerCount".to_owned(), value.to_owned())],
            ..relay(&[], 7, 1, 2)
        };
        let same = step(&there("50"), &config(&[]), &report, Deployment::Machine);
        assert_eq!(same.outcome, StepOutcome::Ok);
        let moved = config(&[("LISTEN_PORT", "9070"), ("LISTEN_INTERFACE", "127.0.0.1")]);
        let waits = step(&there("100"), &moved, &report, Deployment::Machine);
        assert_eq!(waits.outcome, StepOutcome::Hint);
        let text = waits.to_string();
        for part in [
            &*Deployment::Machine.reload_advice(),
            "\"100\" there and \"50\" here (file x)",
            "listens on port 8070",
            "on ::, ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let in_pod = step(&there("100"), &moved, &report, Deployment::Pod);
        assert!(in_pod.seen.contains("kubectl rollout restart"), "{in_pod}");
        assert_fits_pod(&in_pod.seen);
        let mut waits = there("50");
        waits.status.as_mut().unwrap().waiting_for_restart = vec!["WorkerThreads".to_owned()];
        let in_pod = step(&waits, &config(&[]), &report, Deployment::Pod).seen;
        assert!(in_pod.contains("wait for a new pod: WorkerThreads"), "{in_pod}");
        assert_fits_pod(&in_pod);
    }

    #[test]
    fn relay_that_watches_its_files_needs_no_reload() {
        let mut watching = relay(&[], 7, 1, 2);
        watching.status.as_mut().unwrap().config.watched = true;
        assert_eq!(judged(&watching).outcome, StepOutcome::Ok);
        let moved = config(&[("LISTEN_PORT", "9070")]);
        for (deployment, part) in [(Deployment::Machine, "seconds"), (Deployment::Pod, "kubelet")] {
            let seen = step(&watching, &moved, &ConfigReport::default(), deployment).seen;
            assert!(seen.contains("WatchConfig") && seen.contains(part), "{seen}");
            assert!(!seen.contains("SIGHUP"), "{seen}");
            if deployment == Deployment::Pod {
                assert_fits_pod(&seen);
            }
        }
    }

    #[test]
    fn failed_reload_is_reported_with_its_problems() {
        let mut relay = relay(&[], 7, 1, 2);
        let status = relay.status.as_mut().unwrap();
        status.config.last_reload_successful = false;
        status.config.last_error = Some(crate::admin::status::LastError {
            at: Some("2026-01-02T03:04:05Z".to_owned()),
            message: "the configuration has 2 problems:\n  one\n  two".to_owned(),
        });
        let step = judged(&relay);
        assert_eq!(step.outcome, StepOutcome::Hint, "{step}");
        let text = step.to_string();
        for part in ["goes on with the one before", "at 2026-01-02T03:04:05Z", "problems: one two"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn listening_interface_is_compared_with_the_setting() {
        let listening = |on: &str| {
            let mut relay = relay(&[], 7, 1, 2);
            relay.status.as_mut().unwrap().peers.listen = on.parse().unwrap();
            judged(&relay)
        };
        for all in ["[::]:8070", "0.0.0.0:8070"] {
            assert_eq!(listening(all).outcome, StepOutcome::Ok, "{}", listening(all));
        }
        let one = listening("192.0.2.1:8070");
        assert_eq!(one.outcome, StepOutcome::Hint, "{one}");
        assert!(one.to_string().contains("on 192.0.2.1, ListenInterface is empty here"), "{one}");
    }

    #[test]
    fn settings_that_wait_for_a_restart_are_named() {
        let mut relay = relay(&[], 7, 1, 2);
        assert_eq!(judged(&relay).outcome, StepOutcome::Ok);
        let status = relay.status.as_mut().unwrap();
        status.waiting_for_restart = ["MetricsListen", "WorkerThreads"].map(str::to_owned).into();
        let step = judged(&relay);
        assert_eq!(step.outcome, StepOutcome::Hint, "{step}");
        assert!(step.seen.ends_with("a restart: MetricsListen, WorkerThreads"), "{step}");
    }
}
