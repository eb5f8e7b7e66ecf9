//! The port that peers dial: free, or whose.

use std::net::TcpListener;

use crate::config::Config;
use crate::listen::bind;
use crate::listen::port_holder::{self, Holder};
use crate::peer;

use super::report::{LISTEN_PORT, Step};
use super::running::Running;

/// The name of this program, and of the original.
const PROGRAM: &str = "aspia_relay";
/// Programs that hold a port for a container: what is behind them may be the relay.
const FORWARDERS: &[&str] =
    &["docker-proxy", "rootlessport", "rootlesskit", "slirp4netns", "pasta"];

/// What became of the port that peers dial.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// It can be had.
    Free,
    /// The relay holds it.
    Relay {
        /// How that is known.
        seen: String,
        /// Its process, where that can be seen.
        pid: Option<i32>,
    },
    /// Somebody holds it, and that may be as it should be.
    Perhaps {
        /// What is known, and how to know more.
        seen: String,
        /// The process that may be a relay.
        pid: Option<i32>,
    },
    /// Somebody else holds it, or it cannot be had.
    Unusable(String),
}

impl Port {
    /// Tries to listen. The listener, where there is one, keeps others from the port.
    pub(super) fn look(config: &Config, running: &Running) -> (Self, Option<TcpListener>) {
        let startup = &config.startup;
        match bind::bind(peer::PURPOSE, startup.listen_interface, startup.listen_port) {
            Ok(listener) => (Self::Free, Some(listener)),
            Err(error) if error.is_taken() => {
                (Self::held(config, error.holders(), running, &error.to_string()), None)
            }
            Err(error) => (Self::Unusable(error.to_string()), None),
        }
    }

    /// What it means that `holders` have the port, all who can be seen; `error` is what a start would say.
    fn held(config: &Config, holders: &[Holder], running: &Running, error: &str) -> Self {
        let port = config.startup.listen_port;
        let is_doctor =
            |holder: &&Holder| holder.arguments.iter().any(|argument| argument == "--doctor");
        if let Some(doctor) = holders.iter().find(|h| h.name == PROGRAM && is_doctor(h)) {
            let seen = format!(
                "{port} is held by another doctor ({doctor}), which tries it for some seconds; start this one again \
                 when that has ended"
            );
            return Self::Perhaps { seen, pid: None };
        }
        let holders_text = match holders {
            [] => "a process that this user cannot see".to_owned(),
            holders => port_holder::list(holders),
        };
        let by_name = holders.iter().find(|holder| holder.name == PROGRAM);
        if let Some(relay) = running.relay() {
            // One process with both ports, or what answers says itself that it listens here.
            let same = holders.iter().find(|holder| relay.pids.contains(&holder.pid));
            let says_so = relay.listens_on().is_some_and(|listen| listen.port() == port);
            let cannot_tell = relay.listens_on().is_none() && holders.is_empty();
            if same.or(by_name).is_some() || says_so || cannot_tell {
                let seen = format!(
                    "{port} is held by a relay that runs already ({holders_text}); it is left alone"
                );
                let pid = same.or(by_name).or(holders.first()).map(|holder| holder.pid);
                return Self::Relay { seen, pid };
            }
        }
        if let Some(holder) = by_name {
            let seen = format!(
                "{port} is held by {holder}, a relay or the original program, which has the same name: {}. It is left \
                 alone. If it is the original, stop it before this relay starts",
                running.why_unknown()
            );
            return Self::Perhaps { seen, pid: Some(holder.pid) };
        }
        if holders.is_empty() {
            let seen = format!(
                "{port} is held by a program that this user cannot see; it may be the relay ({}). Run the doctor as \
                 root or as the relay's user to see which",
                running.why_unknown()
            );
            return Self::Perhaps { seen, pid: None };
        }
        if let Some(holder) = holders.iter().find(|h| FORWARDERS.contains(&h.name.as_str())) {
            let seen = format!(
                "{port} is held by {holder} for a container, which may be the relay's: run the doctor in that container"
            );
            return Self::Perhaps { seen, pid: None };
        }
        Self::Unusable(error.to_owned())
    }

    pub(super) fn step(&self, config: &Config) -> Step {
        match self {
            Self::Free => Step::ok(LISTEN_PORT, format!("{} is free", config.startup.listen_port)),
            Self::Relay { seen, .. } => Step::ok(LISTEN_PORT, seen),
            Self::Perhaps { seen, .. } => Step::hint(LISTEN_PORT, seen),
            Self::Unusable(error) => Step::failed(LISTEN_PORT, error),
        }
    }

    /// The process of the relay, as far as that can be told from the port.
    pub(super) fn pid(&self) -> Option<i32> {
        match self {
            Self::Relay { pid, .. } | Self::Perhaps { pid, .. } => *pid,
            Self::Free | Self::Unusable(_) => None,
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
        Port::held(&config(&[]), holders, running, "Stop it")
    }

    fn running(pids: &[i32], listen: Option<&str>) -> Running {
        Running::Relay(Box::new(Relay {
            missing: Vec::new(),
            status: listen
                .map(|listen| json!({ "peers": { "listen": listen } }))
                .ok_or_else(|| "401".to_owned()),
            settings: Vec::new(),
            pids: pids.to_vec(),
        }))
    }

    #[test]
    fn a_relay_is_known_by_its_process_its_name_or_its_word() {
        let relay = holder(7, "aspia_relay", &["aspia_relay"]);
        for (holders, running, pid) in [
            (vec![relay], running(&[], None), Some(7)),
            (vec![holder(7, "container", &[])], running(&[7], None), Some(7)),
            (vec![holder(9, "docker-proxy", &[])], running(&[], Some("[::]:8070")), Some(9)),
            (vec![], running(&[], Some("[::]:8070")), None),
            // Another user's, and the token is not known.
            (vec![], running(&[], None), None),
        ] {
            let port = held(&holders, &running);
            assert!(matches!(port, Port::Relay { .. }), "{port:?}");
            assert_eq!(port.pid(), pid, "{port:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_never_to_be_stopped() {
        let silent = Running::Silent("nobody answers".to_owned());
        for (holders, running, parts) in [
            (vec![], Running::Off, &["cannot see", "may be the relay", "as root", "is off"][..]),
            (vec![], running(&[], Some("[::]:8071")), &["cannot see", "another port"]),
            (
                vec![holder(7, "aspia_relay", &["aspia_relay"])],
                silent,
                &["process 7", "the original program", "nobody answers"],
            ),
            (
                vec![holder(7, "aspia_relay", &["aspia_relay", "--doctor"])],
                running(&[], None),
                &["another doctor (process 7"],
            ),
            (
                vec![holder(9, "docker-proxy", &[])],
                Running::Off,
                &["process 9", "run the doctor in that container"],
            ),
        ] {
            let port = held(&holders, &running);
            let Port::Perhaps { seen, .. } = &port else { panic!("{port:?}") };
            for part in parts {
                assert!(seen.contains(part), "{part}: {seen}");
            }
            assert!(!seen.contains("Stop it"), "{seen}");
        }
    }

    #[test]
    fn another_program_is_told_even_beside_a_relay() {
        let nginx = [holder(3, "nginx", &["nginx", "--doctor"])];
        for running in [Running::Off, running(&[7], Some("[::]:8071")), running(&[7], None)] {
            assert_eq!(held(&nginx, &running), Port::Unusable("Stop it".to_owned()));
        }
    }
}
