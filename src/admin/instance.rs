//! How a command finds the relay that runs here.
//!
//! The configuration on disk does not say it: the file may be half written, refused, or wait for a restart. So a relay
//! publishes itself in a place that goes with the process, whatever ends it, and needs no file system that can be written:
//! a Unix socket with an abstract name (Linux), which every user of its network namespace can list and connect to. The
//! name says whose it is, by what does not change while the relay runs: the PID namespace (the machine, or the container),
//! the path of its configuration file, the port that it listens on, and the ports that its environment sets. A random
//! part keeps others from taking the name first. Any user can make such a socket: whose it is, the kernel says.
//!
//! Over the socket a relay answers `/livez`, `/readyz`, and `/instance`, which says where else it listens: nothing that
//! other users of the machine could not see themselves. Elsewhere than on Linux, commands go by the configuration.

use std::io;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};

use crate::config::settings::variable;
use crate::config::sources::Sources;
use crate::crypto;

/// The beginning of the names of all relays.
const PREFIX: &str = "aspia-relay/instance/";
/// Settings of the environment that tell apart relays with one configuration file, or none.
const TELLING: &[&str] = &["ListenInterface", "ListenPort", "PeerPort"];
/// In place of a digest of these settings where none is set.
const NONE: &str = "-";

/// Which relay a process is, or asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// A digest of the PID namespace.
    namespace: String,
    /// A digest of the path of the configuration file.
    path: String,
    /// A digest of the settings in [`TELLING`] that the environment sets, or [`NONE`].
    environment: String,
}

/// The name of a relay that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceName {
    identity: Identity,
    /// The port that it listens on for peers.
    pub port: u16,
    random: String,
}

impl Identity {
    /// That of this process.
    pub fn of_process(sources: &Sources) -> Self {
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Self::new(sources, &namespace)
    }

    fn new(sources: &Sources, namespace: &Path) -> Self {
        let path = std::path::absolute(&sources.path).unwrap_or_else(|_| sources.path.clone());
        let set = TELLING.iter().filter_map(|key| {
            let name = variable(key);
            let (_, value) = sources.environment.iter().find(|(set, _)| *set == name)?;
            let value = value.trim();
            (!value.is_empty()).then(|| format!("{key}={value}"))
        });
        let set = set.collect::<Vec<_>>().join("\n");
        Self {
            namespace: short_digest(&namespace.display().to_string()),
            path: short_digest(&path.display().to_string()),
            environment: if set.is_empty() { NONE.to_owned() } else { short_digest(&set) },
        }
    }

    /// A new name for the relay of this process, which listens on `port`.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn name(&self, port: u16) -> io::Result<InstanceName> {
        let mut random = [0; 8];
        crypto::random(&mut random).map_err(io::Error::other)?;
        Ok(InstanceName { identity: self.clone(), port, random: hex::encode(random) })
    }

    /// Those of `names` that run here, in this PID namespace. Where the environment of this process says nothing of ports,
    /// it may not be that of the relay.
    pub fn here(&self, names: Vec<InstanceName>) -> Vec<InstanceName> {
        let runs_here = |InstanceName { identity: theirs, .. }: &InstanceName| {
            theirs.namespace == self.namespace
                && (self.environment == NONE || theirs.environment == self.environment)
        };
        names.into_iter().filter(runs_here).collect()
    }

    /// Those of `names`, all of which run here, that have the configuration file of this process. `port` is what the
    /// configuration says, where it has been read; it decides only between several.
    pub fn select(&self, names: &[InstanceName], port: Option<u16>) -> Vec<InstanceName> {
        let has_file = |name: &&InstanceName| name.identity.path == self.path;
        let mut meant: Vec<_> = names.iter().filter(has_file).cloned().collect();
        if meant.len() > 1 && meant.iter().any(|name| Some(name.port) == port) {
            meant.retain(|name| Some(name.port) == port);
        }
        meant
    }
}

impl InstanceName {
    /// The name of the socket, without the zero byte in front.
    pub fn socket(&self) -> String {
        let Self { identity: Identity { namespace, path, environment }, port, random } = self;
        format!("{PREFIX}{namespace}/{path}/{port}/{environment}/{random}")
    }

    /// The relay that a socket is of, if it is one of a relay.
    pub fn parse(socket: &str) -> Option<Self> {
        let mut parts = socket.strip_prefix(PREFIX)?.split('/').map(ToOwned::to_owned);
        let mut next = || parts.next();
        let (namespace, path, port) = (next()?, next()?, next()?);
        let (environment, random) = (next()?, next()?);
        let identity = Identity { namespace, path, environment };
        next().is_none().then_some(Self { identity, port: port.parse().ok()?, random })
    }
}

fn short_digest(text: &str) -> String {
    hex::encode(&digest(&SHA256, text.as_bytes()).as_ref()[..8])
}

/// All relays of this network namespace.
#[cfg(target_os = "linux")]
pub fn list() -> Vec<InstanceName> {
    let table = std::fs::read("/proc/net/unix").unwrap_or_default();
    names_in(&String::from_utf8_lossy(&table))
}

/// The relays in a table like `/proc/net/unix`, where an abstract name begins with `@`. A socket stands there again for
/// each of its connections.
#[cfg(target_os = "linux")]
fn names_in(table: &str) -> Vec<InstanceName> {
    let sockets = table.lines().filter_map(|line| line.split_whitespace().nth(7));
    let mut names: Vec<_> =
        sockets.filter_map(|path| InstanceName::parse(path.strip_prefix('@')?)).collect();
    names.sort_by(|a, b| (a.port, &a.random).cmp(&(b.port, &b.random)));
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(path: &str, environment: &[(&str, &str)]) -> Sources {
        let environment = environment.iter().map(|(key, value)| (variable(key), (*value).into()));
        Sources { path: path.into(), path_is_explicit: true, environment: environment.collect() }
    }

    fn identity(path: &str, environment: &[(&str, &str)]) -> Identity {
        Identity::new(&sources(path, environment), Path::new("pid:[1]"))
    }

    #[test]
    fn a_name_is_read_back_and_fits_into_an_address() {
        let name = identity("/etc/aspia/relay.json", &[("PeerPort", "1")]).name(65535).unwrap();
        assert_eq!(InstanceName::parse(&name.socket()), Some(name.clone()));
        // `sun_path` without the zero byte.
        assert!(name.socket().len() <= 107, "{}", name.socket());
        for other in ["", "aspia-relay-8070", "aspia-relay/instance/a/b/c/-/d", "x/a/b/1/-/d"] {
            assert_eq!(InstanceName::parse(other), None, "{other}");
        }
        assert_eq!(InstanceName::parse(&format!("{}/more", name.socket())), None);
    }

    #[test]
    fn a_relay_is_found_by_its_file_and_by_the_ports_of_its_environment() {
        let file = "/etc/aspia/relay.json";
        let relay =
            |environment: &[(&str, &str)], port| identity(file, environment).name(port).unwrap();
        let (one, two) = (relay(&[("PeerPort", "1")], 1), relay(&[("PeerPort", "2")], 2));
        let by_file = identity("/etc/aspia/other.json", &[]).name(3).unwrap();
        let all = vec![one.clone(), two.clone(), by_file.clone()];
        let select = |path: &str, environment: &[(&str, &str)], port: Option<u16>| {
            let asker = identity(path, environment);
            asker.select(&asker.here(all.clone()), port)
        };
        assert_eq!(select(file, &[("PeerPort", "1")], None), std::slice::from_ref(&one));
        assert_eq!(select(file, &[("PeerPort", " 2 ")], Some(1)), std::slice::from_ref(&two));
        // One that does not run is not another one that does.
        assert_eq!(select(file, &[("PeerPort", "4")], Some(1)), []);
        assert_eq!(select("/etc/aspia/none.json", &[], Some(1)), []);
        // Without the environment of the relay, the configuration decides if it can.
        assert_eq!(select(file, &[], Some(2)), std::slice::from_ref(&two));
        assert_eq!(select(file, &[], Some(9)), [one.clone(), two.clone()]);
        assert_eq!(select(file, &[], None), [one, two]);
        // A single relay with this file is meant, whatever port the file says by now.
        assert_eq!(select("/etc/aspia/other.json", &[], Some(9)), [by_file]);
    }

    #[test]
    fn another_container_is_another_place() {
        let sources = sources("/etc/aspia/relay.json", &[]);
        let here = Identity::new(&sources, Path::new("pid:[1]"));
        let there = Identity::new(&sources, Path::new("pid:[2]"));
        assert!(here.here(vec![there.name(1).unwrap()]).is_empty());
        // Another file in the same container is seen, and is not meant where a file is named.
        let other = identity("/data/r.json", &[]).name(1).unwrap();
        assert_eq!(here.here(vec![other.clone()]), std::slice::from_ref(&other));
        assert!(here.select(&[other], Some(1)).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn sockets_of_relays_are_found_among_others() {
        let name = identity("/x", &[]).name(7).unwrap();
        let table = format!(
            "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 10001 @{0}\n\
             0000000000000000: 00000003 00000000 00000000 0001 03 10002 @{0}\n\
             0000000000000000: 00000003 00000000 00000000 0001 03 10003\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 10004 /run/{0}\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 10005 @aspia-relay-8070\n",
            name.socket()
        );
        assert_eq!(names_in(&table), [name]);
    }
}
