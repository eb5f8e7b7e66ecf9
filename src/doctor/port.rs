//! The port that peers dial: free, or whose.

use std::net::TcpListener;

use crate::config::Config;
use crate::listen::bind;
use crate::listen::port_holder::{self, Holder};
use crate::peer;

use super::holders;
use super::report::{LISTEN_PORT, Step};
use super::running::Running;
use super::site::Site;

/// What became of the port that peers dial.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// It can be had.
    Free,
    /// The relay holds it.
    Relay {
        /// How that is known.
        seen: String,
        /// Its process, where that is known: the limits of others are not those of the relay.
        pid: Option<i32>,
    },
    /// Somebody holds it, and that may be as it should be: what is known, and how to know more.
    Perhaps(String),
    /// Somebody else holds it, or it cannot be had.
    Unusable(String),
}

impl Port {
    /// Tries to listen. The listener, where there is one, keeps others from the port.
    pub(super) fn look(
        config: &Config,
        running: &Running,
        site: Site,
    ) -> (Self, Option<TcpListener>) {
        let startup = &config.startup;
        match bind::bind(peer::PURPOSE, startup.listen_interface, startup.listen_port) {
            Ok(listener) => (Self::Free, Some(listener)),
            Err(error) if error.is_taken() => {
                (Self::held(config, error.holders(), running, site, &error.to_string()), None)
            }
            Err(error) => (Self::Unusable(site.cannot_listen(&error)), None),
        }
    }

    /// What it means that `holders` have the port, all who can be seen; `error` is what a start would say.
    fn held(
        config: &Config,
        holders: &[Holder],
        running: &Running,
        site: Site,
        error: &str,
    ) -> Self {
        let port = config.startup.listen_port;
        if let Some(doctor) = holders.iter().find(|holder| holders::is_doctor(holder)) {
            return Self::Perhaps(format!(
                "{port} is held by another doctor ({doctor}), which tries it for some seconds; start this one again \
                 when that has ended"
            ));
        }
        if let Some(relay) = running.relay() {
            // One process with both ports. A forwarder may have those of many containers.
            let both: Vec<_> = holders
                .iter()
                .filter(|holder| relay.holders.iter().any(|other| other.pid == holder.pid))
                .filter(|holder| !holders::is_forwarder(holder))
                .collect();
            // Its word counts only where nobody is seen who would be another program.
            let says_so = relay.listens_on().is_some_and(|listen| listen.port() == port)
                && holders.iter().all(holders::is_forwarder);
            if says_so || !both.is_empty() {
                let by_name = both.iter().find(|holder| holders::is_named_as_relay(holder));
                let pid = match (by_name, both.as_slice()) {
                    (Some(relay), _) | (None, [relay]) => Some(relay.pid),
                    (None, _) => None,
                };
                let who = match holders {
                    [] => "a process that this user cannot see".to_owned(),
                    holders => port_holder::list(holders),
                };
                let seen = format!(
                    "{port} is held by a relay that runs already ({who}); it is left alone"
                );
                return Self::Relay { seen, pid };
            }
        }
        let (what, why) = (port.to_string(), running.why_unknown());
        if let Some(seen) = holders::namesake(&what, holders, &why)
            .or_else(|| holders::unknown(&what, holders, &why, site))
        {
            return Self::Perhaps(seen);
        }
        Self::Unusable(error.to_owned())
    }

    pub(super) fn step(&self, config: &Config) -> Step {
        match self {
            Self::Free => Step::ok(LISTEN_PORT, format!("{} is free", config.startup.listen_port)),
            Self::Relay { seen, .. } => Step::ok(LISTEN_PORT, seen),
            Self::Perhaps(seen) => Step::hint(LISTEN_PORT, seen),
            Self::Unusable(error) => Step::failed(LISTEN_PORT, error),
        }
    }

    /// The process of the relay, as far as that can be told from the port.
    pub(super) fn pid(&self) -> Option<i32> {
        match self {
            Self::Relay { pid, .. } => *pid,
            Self::Free | Self::Perhaps(_) | Self::Unusable(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::running::Relay;
    use crate::doctor::testing::config;
    use serde_json::json;

    fn holder(pid: i32, name: &str, arguments: &[&str]) -> Holder {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Holder { pid, name: name.to_owned(), arguments }
    }

    fn held(holders: &[Holder], running: &Running) -> Port {
        Port::held(&config(&[]), holders, running, Site::Machine, "Stop it")
    }

    fn running(holders: &[Holder], listen: Option<&str>) -> Running {
        Running::Relay(Box::new(Relay {
            missing: Vec::new(),
            status: listen
                .map(|listen| json!({ "peers": { "listen": listen } }))
                .ok_or_else(|| "401".to_owned()),
            settings: Vec::new(),
            listens_on: None,
            holders: holders.to_vec(),
        }))
    }

    #[test]
    fn a_relay_is_known_by_its_process_or_its_word() {
        let relay = holder(7, "aspia_relay", &["aspia_relay"]);
        let systemd = holder(1, "systemd", &[]);
        let renamed = holder(7, "container", &[]);
        let (docker, podman) = (holder(9, "docker-proxy", &[]), holder(9, "conmon", &[]));
        let here = Some("[::]:8070");
        for (holders, admin, listen, pid) in [
            (vec![relay.clone()], vec![relay.clone()], None, Some(7)),
            (vec![renamed.clone()], vec![renamed], None, Some(7)),
            // A socket that is handed on stays open in the one who made it.
            (vec![systemd.clone(), relay.clone()], vec![systemd, relay], None, Some(7)),
            // The limits of what stands for a container are not the relay's.
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
    fn what_is_not_known_is_never_to_be_stopped() {
        let silent = Running::Silent("nobody answers".to_owned());
        let relay = || vec![holder(7, "aspia_relay", &["aspia_relay"])];
        let other = [holder(8, "aspia_relay", &["aspia_relay"])];
        let rootless = || vec![holder(9, "rootlesskit", &[])];
        for (holders, running, parts) in [
            (
                vec![],
                Running::Off,
                &["cannot see", "may be the relay", &Site::Machine.to_see_holder(), "is off"][..],
            ),
            (vec![], running(&[], Some("[::]:8071")), &["cannot see", "listens on [::]:8071"]),
            // Some relay answers, but who knows whether it has this port.
            (vec![], running(&[], None), &["may be the relay", "does not say where", "401"]),
            (relay(), silent, &["process 7", "the original program", "nobody answers"]),
            // Another process than the relay that answers.
            (relay(), running(&other, Some("[::]:8071")), &["process 7", "original", "8071"]),
            (
                vec![holder(7, "aspia_relay", &["aspia_relay", "--doctor"])],
                running(&[], None),
                &["another doctor (process 7"],
            ),
            // One process for all containers.
            (rootless(), running(&rootless(), None), &["process 9", "run the doctor in that"]),
            (vec![holder(9, "docker-proxy", &[])], Running::Off, &["process 9", "container"]),
            (vec![holder(9, "conmon", &[])], Running::Off, &["process 9 (conmon) for a container"]),
            (vec![holder(9, "pasta.avx2", &[])], Running::Off, &["(pasta.avx2) for a container"]),
        ] {
            let port = held(&holders, &running);
            let Port::Perhaps(seen) = &port else { panic!("{port:?}") };
            for part in parts {
                assert!(seen.contains(part), "{part}: {seen}");
            }
            assert!(!seen.contains("Stop it"), "{seen}");
            assert_eq!(port.pid(), None, "whose limits these are is not known");
        }
    }

    #[test]
    fn another_program_is_told_even_beside_a_relay() {
        let nginx = [holder(3, "nginx", &["nginx", "--doctor"])];
        let relay = [holder(7, "aspia_relay", &[])];
        for running in [
            Running::Off,
            running(&relay, Some("[::]:8071")),
            running(&relay, None),
            // Seen, and not the one who says so.
            running(&relay, Some("[::]:8070")),
        ] {
            assert_eq!(held(&nginx, &running), Port::Unusable("Stop it".to_owned()));
        }
    }
}
