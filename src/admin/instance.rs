//! How a command finds the relay that runs on this machine.
//!
//! The configuration on disk does not say where the relay listens: the file may be half written, invalid, or waiting
//! for a restart. A relay therefore publishes itself through something that vanishes with its process, however that
//! ends, and that needs no writable file system: a Unix socket with an abstract name (Linux), which every user of its
//! network namespace can list and connect to. The name identifies the relay by what does not change while it runs: its
//! PID namespace (the machine or the container), the path of its configuration file, the port it listens on, and the
//! ports that its environment sets. A random part prevents others from taking the name first. Any user can create such
//! a socket; the kernel tells who did.
//!
//! Over this *command socket* a relay answers `/livez`, `/readyz` and `/instance` to everybody. The response to the last
//! one says where else the relay listens, which other users of the machine could find out anyway. Root and the user that
//! the relay runs as can do there everything that the admin listener offers, without a token, and even if that listener
//! is off. On systems other than Linux, commands rely on the configuration.

use std::io;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};

use crate::config::settings::SettingKey;
use crate::config::sources::Sources;
use crate::crypto;

/// The prefix of the names of all relays.
const PREFIX: &str = "aspia-relay/instance/";
/// Settings whose variables distinguish relays that share a configuration file, or have none.
const DISTINGUISHING: [SettingKey; 3] =
    [SettingKey::ListenInterface, SettingKey::ListenPort, SettingKey::PeerPort];
/// Stands for the digest of these settings if none is set.
const NONE: &str = "-";

/// Identifies the relay that a process is, or that a command means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceIdentity {
    /// A digest of the PID namespace.
    namespace: String,
    /// A digest of the path of the configuration file.
    path: String,
    /// A digest of those settings in [`DISTINGUISHING`] that the environment sets, or [`NONE`].
    environment: String,
}

/// The published name of a running relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceName {
    identity: InstanceIdentity,
    /// The port on which the relay listens for peers.
    pub port: u16,
    random: String,
}

impl InstanceIdentity {
    /// Identifies the relay of this process.
    pub fn of_process(sources: &Sources) -> Self {
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Self::new(sources, &namespace)
    }

    fn new(sources: &Sources, namespace: &Path) -> Self {
        let path = std::path::absolute(&sources.path).unwrap_or_else(|_| sources.path.clone());
        let set = DISTINGUISHING.iter().filter_map(|key| {
            let name = key.variable();
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

    /// Makes a new name for the relay of this process, which listens on `port`.
    ///
    /// # Errors
    /// Says that no random bytes can be obtained.
    pub fn name(&self, port: u16) -> io::Result<InstanceName> {
        let mut random = [0; 8];
        crypto::fill_random(&mut random).map_err(io::Error::other)?;
        Ok(InstanceName { identity: self.clone(), port, random: hex::encode(random) })
    }

    /// Keeps those of `names` that run in this PID namespace and have the same environment. An environment without ports
    /// matches any: the command may not have been started with the variables of the relay.
    pub fn retain_local(&self, names: Vec<InstanceName>) -> Vec<InstanceName> {
        let is_local = |InstanceName { identity: theirs, .. }: &InstanceName| {
            theirs.namespace == self.namespace
                && (self.environment == NONE || theirs.environment == self.environment)
        };
        names.into_iter().filter(is_local).collect()
    }

    /// Selects those of the local `names` that have the configuration file of this process. `port` is the port in the
    /// configuration, if that has been read; it only decides between several.
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
    /// The name of the socket, without the leading zero byte.
    pub fn socket(&self) -> String {
        let Self { identity: InstanceIdentity { namespace, path, environment }, port, random } =
            self;
        format!("{PREFIX}{namespace}/{path}/{port}/{environment}/{random}")
    }

    /// Parses the name of a socket; `None` if it is not a relay's.
    pub fn parse(socket: &str) -> Option<Self> {
        let mut parts = socket.strip_prefix(PREFIX)?.split('/').map(ToOwned::to_owned);
        let mut next = || parts.next();
        let (namespace, path, port) = (next()?, next()?, next()?);
        let (environment, random) = (next()?, next()?);
        let identity = InstanceIdentity { namespace, path, environment };
        next().is_none().then_some(Self { identity, port: port.parse().ok()?, random })
    }
}

fn short_digest(text: &str) -> String {
    hex::encode(&digest(&SHA256, text.as_bytes()).as_ref()[..8])
}

/// Lists all relays of this network namespace.
#[cfg(target_os = "linux")]
pub fn list() -> Vec<InstanceName> {
    let table = std::fs::read("/proc/net/unix").unwrap_or_default();
    parse_names(&String::from_utf8_lossy(&table))
}

/// Finds the relays in a table like `/proc/net/unix`, in which abstract names begin with `@`. A socket appears once more
/// for each of its connections.
#[cfg(target_os = "linux")]
fn parse_names(table: &str) -> Vec<InstanceName> {
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
    use crate::config::settings::variable;

    fn sources(path: &str, environment: &[(&str, &str)]) -> Sources {
        let environment = environment.iter().map(|(key, value)| (variable(key), (*value).into()));
        Sources { path: path.into(), is_path_explicit: true, environment: environment.collect() }
    }

    fn identity(path: &str, environment: &[(&str, &str)]) -> InstanceIdentity {
        InstanceIdentity::new(&sources(path, environment), Path::new("pid:[1]"))
    }

    #[test]
    fn a_socket_name_round_trips_and_fits_into_an_address() {
        let name = identity("/etc/aspia/relay.json", &[("PeerPort", "1")]).name(65535).unwrap();
        assert_eq!(InstanceName::parse(&name.socket()), Some(name.clone()));
        // `sun_path` without the leading zero byte.
        assert!(name.socket().len() <= 107, "{}", name.socket());
        for other in ["", "aspia-relay-8070", "aspia-relay/instance/a/b/c/-/d", "x/a/b/1/-/d"] {
            assert_eq!(InstanceName::parse(other), None, "{other}");
        }
        assert_eq!(InstanceName::parse(&format!("{}/more", name.socket())), None);
    }

    #[test]
    fn relays_are_selected_by_configuration_file_and_ports_in_the_environment() {
        let file = "/etc/aspia/relay.json";
        let relay =
            |environment: &[(&str, &str)], port| identity(file, environment).name(port).unwrap();
        let (one, two) = (relay(&[("PeerPort", "1")], 1), relay(&[("PeerPort", "2")], 2));
        let other_file = identity("/etc/aspia/other.json", &[]).name(3).unwrap();
        let all = vec![one.clone(), two.clone(), other_file.clone()];
        let select = |path: &str, environment: &[(&str, &str)], port: Option<u16>| {
            let asker = identity(path, environment);
            asker.select(&asker.retain_local(all.clone()), port)
        };
        assert_eq!(select(file, &[("PeerPort", "1")], None), std::slice::from_ref(&one));
        assert_eq!(select(file, &[("PeerPort", " 2 ")], Some(1)), std::slice::from_ref(&two));
        // A relay that does not run is not mistaken for another one that does.
        assert_eq!(select(file, &[("PeerPort", "4")], Some(1)), []);
        assert_eq!(select("/etc/aspia/none.json", &[], Some(1)), []);
        // Without the environment of the relay, the configuration decides if it can.
        assert_eq!(select(file, &[], Some(2)), std::slice::from_ref(&two));
        assert_eq!(select(file, &[], Some(9)), [one.clone(), two.clone()]);
        assert_eq!(select(file, &[], None), [one, two]);
        // The only relay with this file is meant, whatever port the file says by now.
        assert_eq!(select("/etc/aspia/other.json", &[], Some(9)), [other_file]);
    }

    #[test]
    fn relays_in_another_container_are_not_local() {
        let sources = sources("/etc/aspia/relay.json", &[]);
        let here = InstanceIdentity::new(&sources, Path::new("pid:[1]"));
        let there = InstanceIdentity::new(&sources, Path::new("pid:[2]"));
        assert!(here.retain_local(vec![there.name(1).unwrap()]).is_empty());
        // A relay with another file in the same container is local, but is not meant if a file is named.
        let other = identity("/data/r.json", &[]).name(1).unwrap();
        assert_eq!(here.retain_local(vec![other.clone()]), std::slice::from_ref(&other));
        assert!(here.select(&[other], Some(1)).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn relays_are_found_among_other_sockets() {
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
        assert_eq!(parse_names(&table), [name]);
    }
}
