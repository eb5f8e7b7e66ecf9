//! The address that peers dial, and whether it belongs to this machine.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::config::Config;
use crate::listen::interfaces;

use super::deployment::Deployment;
use super::report::{DoctorStep, PEER_ADDRESS};

/// The longest wait for the resolver.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(60);

/// The address that peers dial, resolved.
pub(super) struct Addresses {
    pub(super) step: DoctorStep,
    /// Each address that can be dialled, and whether it belongs to this machine.
    pub(super) all: Vec<(SocketAddr, bool)>,
}

/// Resolves `PeerAddress` and compares it with the addresses of this machine.
pub(super) async fn resolve(config: &Config, deployment: Deployment) -> Addresses {
    let (host, port) = (&config.router.peer_address, config.router.peer_port);
    let resolved = timeout(RESOLVE_TIMEOUT, lookup_host((host.as_str(), port))).await;
    let resolved = resolved.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    judge(config, resolved.map(Iterator::collect), interfaces::addresses(), deployment)
}

/// Whether the address cannot belong to any machine.
fn is_undialable(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    is_broadcast || address.is_multicast() || address.is_unspecified()
}

fn judge(
    config: &Config,
    resolved: io::Result<Vec<SocketAddr>>,
    own: io::Result<Vec<IpAddr>>,
    deployment: Deployment,
) -> Addresses {
    let host = &config.router.peer_address;
    let none = |text| Addresses { step: DoctorStep::failed(PEER_ADDRESS, text), all: Vec::new() };
    let resolved = match resolved {
        Ok(addresses) if !addresses.is_empty() => addresses,
        failed => {
            let why =
                failed.err().map_or("it has no address".to_owned(), |error| error.to_string());
            return none(format!(
                "{host} does not resolve ({why}); Clients and Hosts would not find the relay. Check the spelling and \
                 the DNS"
            ));
        }
    };
    match own {
        Ok(own) => Addresses::classify(config, resolved, &own, deployment),
        Err(error) => Addresses {
            step: DoctorStep::hint(
                PEER_ADDRESS,
                format!(
                    "{host} is {}; whether that is this machine cannot be determined ({error})",
                    join_addresses(&resolved)
                ),
            ),
            all: resolved.into_iter().map(|address| (address, false)).collect(),
        },
    }
}

impl Addresses {
    /// Compares the addresses with those of this machine, `own`.
    fn classify(
        config: &Config,
        resolved: Vec<SocketAddr>,
        own: &[IpAddr],
        deployment: Deployment,
    ) -> Self {
        let host = &config.router.peer_address;
        let ip = |address: &SocketAddr| address.ip().to_canonical();
        let (undialable, good): (Vec<_>, Vec<_>) =
            resolved.into_iter().partition(|address| is_undialable(ip(address)));
        let (loopback, others): (Vec<_>, Vec<_>) =
            good.iter().copied().partition(|address| ip(address).is_loopback());
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|address| own.contains(&ip(address)));
        // A name that resolves to loopback only here, often by /etc/hosts, does not resolve to it for peers.
        let is_local =
            |address| here.contains(address) || (loopback.contains(address) && host.is_loopback());
        let all = good.iter().map(|address| (*address, is_local(address))).collect();
        let step = if !undialable.is_empty() {
            let seen = format!(
                "{host} is {}, a broadcast, multicast or unspecified address: nobody can dial it. Correct PeerAddress, or \
                 the DNS",
                join_addresses(&undialable)
            );
            DoctorStep::failed(PEER_ADDRESS, seen)
        } else {
            match find_hints(config, &loopback, &here, &elsewhere, deployment).as_slice() {
                [] => DoctorStep::ok(
                    PEER_ADDRESS,
                    format!("{host} is this machine ({})", join_addresses(&good)),
                ),
                hints => DoctorStep::hint(PEER_ADDRESS, hints.join(". ")),
            }
        };
        let step = DoctorStep { details: advise_probe(config, &good), ..step };
        Self { step, all }
    }
}

/// How to ask from outside, where peers dial. Nobody outside dials a loopback address.
fn advise_probe(config: &Config, dialled: &[SocketAddr]) -> Vec<String> {
    let (host, port) = (&config.router.peer_address, config.router.peer_port);
    if host.is_loopback() || dialled.is_empty() {
        return Vec::new();
    }
    let target = host.with_port(port);
    vec![format!(
        "whether peers come through, only another machine can tell: aspia_relay --probe {target}"
    )]
}

fn find_hints(
    config: &Config,
    loopback: &[SocketAddr],
    here: &[SocketAddr],
    elsewhere: &[SocketAddr],
    deployment: Deployment,
) -> Vec<String> {
    let (host, port) = (&config.router.peer_address, config.router.peer_port);
    let mut hints = Vec::new();
    // If the setting itself is a loopback address, the configuration step has warned already.
    if !loopback.is_empty() && !host.is_loopback() {
        hints.push(format!(
            "{host} is {} here, a loopback address (is it in {}?): other machines may see another address. Look it up \
             on one of them",
            join_addresses(loopback),
            deployment.hosts_file()
        ));
    }
    if !elsewhere.is_empty() {
        hints.push(format!(
            "{host} is {}, which is not an address of this machine{}. Behind a router that is right, if it forwards port \
             {port} to port {} here; otherwise correct PeerAddress",
            join_addresses(elsewhere),
            if here.is_empty() { String::new() } else { format!(" ({} is)", join_addresses(here)) },
            config.startup.listen_port
        ));
    }
    hints
}

fn join_addresses(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::config;
    use crate::doctor::deployment::tests::assert_fits_pod;
    use crate::doctor::report::StepOutcome;

    fn judged(host: &str, resolved: &[&str]) -> Addresses {
        judged_at(Deployment::Machine, host, resolved)
    }

    fn judged_at(deployment: Deployment, host: &str, resolved: &[&str]) -> Addresses {
        let config = config(&[("PEER_ADDRESS", host), ("LISTEN_PORT", "9070")]);
        let resolved = resolved.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 8070));
        let own = ["127.0.0.1", "::1", "192.0.2.1"].map(|ip| ip.parse().unwrap());
        judge(&config, Ok(resolved.collect()), Ok(own.to_vec()), deployment)
    }

    #[test]
    fn only_a_reachable_address_of_this_machine_passes() {
        for (host, resolved, outcome, parts) in [
            ("p.example", &["192.0.2.1"][..], StepOutcome::Ok, &["this machine (192.0.2.1)"][..]),
            ("127.0.0.1", &["127.0.0.1"], StepOutcome::Ok, &[]),
            // As Debian writes it to /etc/hosts.
            (
                "p.example",
                &["127.0.1.1"],
                StepOutcome::Hint,
                &["127.0.1.1 here", "other machines may"],
            ),
            ("p.example", &["192.0.2.1", "::1"], StepOutcome::Hint, &["is ::1 here"]),
            (
                "p.example",
                &["192.0.2.1", "198.51.100.1"],
                StepOutcome::Hint,
                &[
                    "is 198.51.100.1, which is not an address of this machine (192.0.2.1 is)",
                    "port 9070",
                ],
            ),
            (
                "p.example",
                &["224.0.0.1"],
                StepOutcome::Failed,
                &["224.0.0.1", "nobody can dial it"],
            ),
            ("p.example", &["255.255.255.255", "192.0.2.1"], StepOutcome::Failed, &["255.255"]),
            ("p.example", &["0.0.0.0"], StepOutcome::Failed, &["Correct PeerAddress"]),
            ("p.example", &[], StepOutcome::Failed, &["does not resolve (it has no address)"]),
        ] {
            let step = judged(host, resolved).step;
            assert_eq!(step.outcome, outcome, "{step}");
            for part in parts {
                assert!(step.seen.contains(part), "{part}: {step}");
            }
        }
    }

    #[test]
    fn probe_from_another_machine_is_advised_if_others_can_dial_the_address() {
        let details = |host, resolved: &[&str]| judged(host, resolved).step.details.join("\n");
        for resolved in ["192.0.2.1", "198.51.100.1"] {
            let advice = details("p.example", &[resolved]);
            assert!(advice.ends_with("aspia_relay --probe p.example:8070"), "{advice}");
        }
        assert!(details("2001:db8::1", &["2001:db8::1"]).ends_with("--probe [2001:db8::1]:8070"));
        assert_eq!(details("127.0.0.1", &["127.0.0.1"]), "");
        assert_eq!(details("0.0.0.0.example", &["0.0.0.0"]), "");
    }

    #[test]
    fn advice_in_a_pod_names_the_hosts_file_of_the_node() {
        let in_pod = judged_at(Deployment::Pod, "p.example", &["127.0.1.1"]).step.seen;
        assert!(in_pod.contains("/etc/hosts of the node"), "{in_pod}");
        assert_fits_pod(&in_pod);
    }

    #[test]
    fn each_address_is_marked_local_or_remote() {
        let local = |host, resolved: &[&str]| {
            judged(host, resolved).all.iter().map(|(_, local)| *local).collect::<Vec<_>>()
        };
        // The first is what Debian writes to /etc/hosts: other machines see another address.
        let addresses = ["127.0.1.1", "192.0.2.1", "198.51.100.1"];
        assert_eq!(local("p.example", &addresses), [false, true, false]);
        assert_eq!(local("localhost", &["127.0.0.1", "::1"]), [true, true]);
        assert_eq!(local("127.0.0.2", &["127.0.0.2"]), [true]);
    }

    #[test]
    fn unknown_interfaces_give_a_hint() {
        let resolved = Ok(vec![SocketAddr::from(([192, 0, 2, 1], 8070))]);
        let judged =
            judge(&config(&[]), resolved, Err(io::Error::other("not here")), Deployment::Machine);
        assert_eq!(judged.step.outcome, StepOutcome::Hint);
        assert!(judged.step.seen.contains("not here"), "{}", judged.step);
    }

    #[test]
    fn this_machine_has_a_loopback_interface() {
        assert!(interfaces::addresses().unwrap().iter().any(IpAddr::is_loopback));
    }
}
