//! The address that peers dial, and whether it is this machine's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::config::Config;
use crate::listen::interfaces;

use super::report::{PEER_ADDRESS, Step};
use super::site::Site;

/// Time for the resolver.
const RESOLVE: Duration = Duration::from_secs(60);

/// What peers dial.
pub(super) struct Addresses {
    pub(super) step: Step,
    /// Each that can be dialled, and whether it is this machine's.
    pub(super) all: Vec<(SocketAddr, bool)>,
}

/// Resolves `PeerAddress` and compares with this machine.
pub(super) async fn resolve(config: &Config, site: Site) -> Addresses {
    let (host, port) = (&config.router.peer_address, config.router.peer_port);
    let resolved = timeout(RESOLVE, lookup_host((host.as_str(), port))).await;
    let resolved = resolved.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    judge(config, resolved.map(Iterator::collect), interfaces::addresses(), site)
}

/// Whether no machine at all has such an address.
fn is_nobodys(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    broadcast || address.is_multicast() || address.is_unspecified()
}

fn judge(
    config: &Config,
    resolved: io::Result<Vec<SocketAddr>>,
    own: io::Result<Vec<IpAddr>>,
    site: Site,
) -> Addresses {
    let (host, port) = (&config.router.peer_address, config.router.peer_port);
    let none = |text| Addresses { step: Step::failed(PEER_ADDRESS, text), all: Vec::new() };
    let resolved = match resolved {
        Ok(addresses) if !addresses.is_empty() => addresses,
        failed => {
            let why = failed.err().map_or("it has no address".to_owned(), |why| why.to_string());
            return none(format!(
                "{host} does not resolve ({why}); Clients and Hosts would not find the relay. Check its spelling and \
                 the DNS"
            ));
        }
    };
    let own = match own {
        Ok(own) => own,
        Err(error) => {
            return Addresses {
                step: Step::hint(
                    PEER_ADDRESS,
                    format!(
                        "{host} is {}; the system does not say whether that is this machine ({error})",
                        list(&resolved)
                    ),
                ),
                all: resolved.into_iter().map(|address| (address, false)).collect(),
            };
        }
    };
    let ip = |address: &SocketAddr| address.ip().to_canonical();
    let (nobodys, good): (Vec<_>, Vec<_>) =
        resolved.into_iter().partition(|address| is_nobodys(ip(address)));
    let (loopback, others): (Vec<_>, Vec<_>) =
        good.iter().copied().partition(|address| ip(address).is_loopback());
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|address| own.contains(&ip(address)));
    // Loopback that only a name here leads to, as /etc/hosts often says, is not what peers dial.
    let is_local =
        |address| here.contains(address) || (loopback.contains(address) && host.is_loopback());
    let all = good.iter().map(|address| (*address, is_local(address))).collect();
    if !nobodys.is_empty() {
        let text = format!(
            "{host} is {}, which is no machine's address (but all, many or none): nobody can dial it. Correct \
             PeerAddress, or the DNS",
            list(&nobodys)
        );
        return Addresses { step: Step::failed(PEER_ADDRESS, text), all };
    }
    let mut hints = Vec::new();
    // Where the setting itself says loopback, the configuration has its warning already.
    if !loopback.is_empty() && !host.is_loopback() {
        hints.push(format!(
            "{host} is {} here, which leads each machine to itself (does it stand in {}?): other machines may see \
             another address. Look it up on one of them",
            list(&loopback),
            site.hosts_file()
        ));
    }
    if !elsewhere.is_empty() {
        hints.push(format!(
            "{host} is {}, which is no address of this machine{}. Behind a router that is right, if it leads port \
             {port} to port {} here; otherwise correct PeerAddress",
            list(&elsewhere),
            if here.is_empty() { String::new() } else { format!(" ({} is)", list(&here)) },
            config.startup.listen_port
        ));
    }
    let step = if hints.is_empty() {
        Step::ok(PEER_ADDRESS, format!("{host} is this machine ({})", list(&good)))
    } else {
        Step::hint(PEER_ADDRESS, hints.join(". "))
    };
    Addresses { step, all }
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::Outcome;
    use crate::doctor::site::tests::is_for_a_pod;
    use crate::doctor::testing::config;

    fn judged(host: &str, resolved: &[&str]) -> Addresses {
        judged_at(Site::Machine, host, resolved)
    }

    fn judged_at(site: Site, host: &str, resolved: &[&str]) -> Addresses {
        let config = config(&[("PEER_ADDRESS", host), ("LISTEN_PORT", "9070")]);
        let resolved = resolved.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 8070));
        let own = ["127.0.0.1", "::1", "192.0.2.1"].map(|ip| ip.parse().unwrap());
        judge(&config, Ok(resolved.collect()), Ok(own.to_vec()), site)
    }

    #[test]
    fn only_an_address_of_this_machine_that_others_reach_is_good() {
        for (host, resolved, outcome, parts) in [
            ("p.example", &["192.0.2.1"][..], Outcome::Ok, &["this machine (192.0.2.1)"][..]),
            ("127.0.0.1", &["127.0.0.1"], Outcome::Ok, &[]),
            // What Debian writes to /etc/hosts.
            ("p.example", &["127.0.1.1"], Outcome::Hint, &["127.0.1.1 here", "other machines may"]),
            ("p.example", &["192.0.2.1", "::1"], Outcome::Hint, &["is ::1 here"]),
            (
                "p.example",
                &["192.0.2.1", "198.51.100.1"],
                Outcome::Hint,
                &[
                    "is 198.51.100.1, which is no address of this machine (192.0.2.1 is)",
                    "port 9070",
                ],
            ),
            ("p.example", &["224.0.0.1"], Outcome::Failed, &["224.0.0.1", "nobody can dial it"]),
            ("p.example", &["255.255.255.255", "192.0.2.1"], Outcome::Failed, &["255.255"]),
            ("p.example", &["0.0.0.0"], Outcome::Failed, &["Correct PeerAddress"]),
            ("p.example", &[], Outcome::Failed, &["does not resolve (it has no address)"]),
        ] {
            let step = judged(host, resolved).step;
            assert_eq!(step.outcome, outcome, "{step}");
            for part in parts {
                assert!(step.seen.contains(part), "{part}: {step}");
            }
        }
    }

    #[test]
    fn a_pod_has_the_hosts_file_of_its_node() {
        let in_pod = judged_at(Site::Pod, "p.example", &["127.0.1.1"]).step.seen;
        assert!(in_pod.contains("/etc/hosts of the node"), "{in_pod}");
        is_for_a_pod(&in_pod);
    }

    #[test]
    fn each_address_is_known_as_local_or_not() {
        let local = |host, resolved: &[&str]| {
            judged(host, resolved).all.iter().map(|(_, local)| *local).collect::<Vec<_>>()
        };
        // The first as Debian writes it to /etc/hosts: others see another address.
        let addresses = ["127.0.1.1", "192.0.2.1", "198.51.100.1"];
        assert_eq!(local("p.example", &addresses), [false, true, false]);
        assert_eq!(local("localhost", &["127.0.0.1", "::1"]), [true, true]);
        assert_eq!(local("127.0.0.2", &["127.0.0.2"]), [true]);
    }

    #[test]
    fn interfaces_that_cannot_be_listed_are_no_verdict() {
        let resolved = Ok(vec![SocketAddr::from(([192, 0, 2, 1], 8070))]);
        let judged =
            judge(&config(&[]), resolved, Err(io::Error::other("not here")), Site::Machine);
        assert_eq!(judged.step.outcome, Outcome::Hint);
        assert!(judged.step.seen.contains("not here"), "{}", judged.step);
    }

    #[test]
    fn this_machine_has_loopback() {
        assert!(interfaces::addresses().unwrap().iter().any(IpAddr::is_loopback));
    }
}
