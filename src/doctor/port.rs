//! The peer port: whether it is free, and otherwise who holds it.

use std::net::TcpListener;

use crate::config::Config;
use crate::listen::bind;
use crate::listen::port_holder::{self, PortHolder};
use crate::peer;

use super::deployment::Deployment;
use super::holders;
use super::report::{DoctorStep, LISTEN_PORT};
use super::running::RelayInspection;

/// The state of the peer port.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// The port is free.
    Free,
    /// The running relay holds it.
    Relay {
        /// Who holds it, for the report.
        seen: String,
        /// The process of the relay, if it is known. Limits of other processes say nothing about the relay.
        pid: Option<i32>,
    },
    /// A program holds it that may be the relay: what is known, and how to find out more.
    MaybeRelay(String),
    /// Another program holds it, or it cannot be bound.
    Unusable(String),
}

impl Port {
    /// Tries to bind the port. The listener, if there is one, keeps the port occupied.
    pub(super) fn probe(
        config: &Config,
        running: &RelayInspection,
        deployment: Deployment,
    ) -> (Self, Option<TcpListener>) {
        let startup = &config.startup;
        match bind::bind(peer::PURPOSE, startup.listen_interface, startup.listen_port) {
            Ok(listener) => (Self::Free, Some(listener)),
            Err(error) if error.is_taken() => (
                Self::judge_held(config, error.holders(), running, deployment, &error.to_string()),
                None,
            ),
            Err(error) => (Self::Unusable(deployment.explain_bind_error(&error)), None),
        }
    }

    /// Judges a port that `holders` hold, as far as they are visible; `error` is what the relay would say when it
    /// starts.
    fn judge_held(
        config: &Config,
        holders: &[PortHolder],
        running: &RelayInspection,
        deployment: Deployment,
        error: &str,
    ) -> Self {
        let port = config.startup.listen_port;
        if let Some(doctor) = holders.iter().find(|holder| holders::is_doctor(holder)) {
            return Self::MaybeRelay(format!(
                "{port} is held by another doctor ({doctor}), which needs it for some seconds; run this doctor \
                 again when the other has finished"
            ));
        }
        if let Some(relay) = running.relay() {
            // A process that holds both ports is the relay, except a forwarder, which may hold ports of many containers.
            let both: Vec<_> = holders
                .iter()
                .filter(|holder| relay.holders.iter().any(|other| other.pid == holder.pid))
                .filter(|holder| !holders::is_forwarder(holder))
                .collect();
            // What the relay says counts only if no other program is seen to hold the port.
            let is_claimed = relay.listens_on().is_some_and(|listen| listen.port() == port)
                && holders.iter().all(holders::is_forwarder);
            if is_claimed || !both.is_empty() {
                let by_name = both.iter().find(|holder| holders::is_named_as_relay(holder));
                let pid = match (by_name, both.as_slice()) {
                    (Some(relay), _) | (None, [relay]) => Some(relay.pid),
                    (None, _) => None,
                };
                let who = match holders {
                    [] => "a process that this user cannot see".to_owned(),
                    holders => port_holder::join(holders),
                };
                let seen = format!(
                    "{port} is held by a relay that is already running ({who}); it is left alone"
                );
                return Self::Relay { seen, pid };
            }
        }
        let (what, why) = (port.to_string(), running.why_unknown());
        if let Some(seen) = holders::describe_namesake(&what, holders, &why)
            .or_else(|| holders::describe_unknown(&what, holders, &why, deployment))
        {
            return Self::MaybeRelay(seen);
        }
        Self::Unusable(error.to_owned())
    }

    pub(super) fn step(&self, config: &Config) -> DoctorStep {
        match self {
            Self::Free => {
                DoctorStep::ok(LISTEN_PORT, format!("{} is free", config.startup.listen_port))
            }
            Self::Relay { seen, .. } => DoctorStep::ok(LISTEN_PORT, seen),
            Self::MaybeRelay(seen) => DoctorStep::hint(LISTEN_PORT, seen),
            Self::Unusable(error) => DoctorStep::failed(LISTEN_PORT, error),
        }
    }

    /// The process of the relay, if the port reveals it.
    pub(super) fn pid(&self) -> Option<i32> {
        match self {
            Self::Relay { pid, .. } => *pid,
            Self::Free | Self::MaybeRelay(_) | Self::Unusable(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::config;
    use crate::doctor::running::InspectedRelay;
    use crate::doctor::testing::status;

    fn holder(pid: i32, name: &str, arguments: &[&str]) -> PortHolder {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        PortHolder { pid, name: name.to_owned(), arguments }
    }

    fn held(holders: &[PortHolder], running: &RelayInspection) -> Port {
        Port::judge_held(&config(&[]), holders, running, Deployment::Machine, "Stop it")
    }

    fn running(holders: &[PortHolder], listen: Option<&str>) -> RelayInspection {
        RelayInspection::Relay(Box::new(InspectedRelay {
            missing: Vec::new(),
            status: listen
                .map(|listen| {
                    let mut status = status();
                    status.peers.listen = listen.parse().unwrap();
                    status
                })
                .ok_or_else(|| "401".to_owned()),
            settings: Vec::new(),
            listens_on: None,
            holders: holders.to_vec(),
        }))
    }

    #[test]
    fn relay_is_recognised_by_its_process_or_its_answer() {
        let relay = holder(7, "aspia_relay", &["aspia_relay"]);
        let systemd = holder(1, "systemd", &[]);
        let renamed = holder(7, "container", &[]);
        let (docker, podman) = (holder(9, "docker-proxy", &[]), holder(9, "conmon", &[]));
        let here = Some("[::]:8070");
        for (holders, admin, listen, pid) in [
            (vec![relay.clone()], vec![relay.clone()], None, Some(7)),
            (vec![renamed.clone()], vec![renamed], None, Some(7)),
            // An inherited socket also stays open in the process that created it.
            (vec![systemd.clone(), relay.clone()], vec![systemd, relay], None, Some(7)),
            // The limits of a forwarder are not those of the relay.
            (vec![docker], vec![], here, None),
            (vec![podman.clone()], vec![podman], here, None),
            (vec![], vec![], here, None),
        ] {
            let port = held(&holders, &running(&admin, listen));
            assert!(matches!(port, Port::Relay { .. }), "{port:?}");
            assert_eq!(port.pid(), pid, "{port:?}");
        }
    }

    #[test]
    fn report_never_advises_to_stop_an_unknown_holder() {
        let silent = RelayInspection::Silent("nobody answers".to_owned());
        let relay = || vec![holder(7, "aspia_relay", &["aspia_relay"])];
        let other = [holder(8, "aspia_relay", &["aspia_relay"])];
        let rootless = || vec![holder(9, "rootlesskit", &[])];
        for (holders, running, parts) in [
            (
                vec![],
                RelayInspection::Off,
                &["cannot see", "may be the relay", &Deployment::Machine.holder_advice(), "is off"]
                    [..],
            ),
            (vec![], running(&[], Some("[::]:8071")), &["cannot see", "listens on [::]:8071"]),
            // A relay answers, but may not hold this port.
            (vec![], running(&[], None), &["may be the relay", "does not say where", "401"]),
            (relay(), silent, &["process 7", "the original program", "nobody answers"]),
            // Not the process of the relay that answers.
            (relay(), running(&other, Some("[::]:8071")), &["process 7", "original", "8071"]),
            (
                vec![holder(7, "aspia_relay", &["aspia_relay", "--doctor"])],
                running(&[], None),
                &["another doctor (process 7"],
            ),
            // One process holds the ports of all containers.
            (rootless(), running(&rootless(), None), &["process 9", "run the doctor in that"]),
            (
                vec![holder(9, "docker-proxy", &[])],
                RelayInspection::Off,
                &["process 9", "container"],
            ),
            (
                vec![holder(9, "conmon", &[])],
                RelayInspection::Off,
                &["process 9 (conmon) for a container"],
            ),
            (
                vec![holder(9, "pasta.avx2", &[])],
                RelayInspection::Off,
                &["(pasta.avx2) for a container"],
            ),
        ] {
            let port = held(&holders, &running);
            let Port::MaybeRelay(seen) = &port else { panic!("{port:?}") };
            for part in parts {
                assert!(seen.contains(part), "{part}: {seen}");
            }
            assert!(!seen.contains("Stop it"), "{seen}");
            assert_eq!(port.pid(), None, "the process of the relay is not known");
        }
    }

    #[test]
    fn another_program_is_reported_even_beside_a_running_relay() {
        let nginx = [holder(3, "nginx", &["nginx", "--doctor"])];
        let relay = [holder(7, "aspia_relay", &[])];
        for running in [
            RelayInspection::Off,
            running(&relay, Some("[::]:8071")),
            running(&relay, None),
            // The holder is visible and is not the relay that claims the port.
            running(&relay, Some("[::]:8070")),
        ] {
            assert_eq!(held(&nginx, &running), Port::Unusable("Stop it".to_owned()));
        }
    }
}
