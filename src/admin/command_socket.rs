//! The command socket, by which commands on this machine find the relay; see [`super::instance`].

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::config::sources::Sources;
use crate::listen::port_holder::SocketOwner;

use super::connections::{ConnectionPermit, Connections};
use super::instance::{InstanceIdentity, InstanceName};
use super::listener::CommandCaller;

/// The pause after a failure to accept.
const PAUSE: Duration = Duration::from_secs(1);
/// The maximum number of connections of trusted callers. Few descriptors are reserved for them and the next.
const MAX_TRUSTED: usize = 8;
/// The maximum number of connections of other callers, which get short answers only.
const MAX_OTHERS: usize = 4;
/// How long a command tries to connect while the accept queue is full.
const FULL_QUEUE_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause between two attempts: short, since a user who floods the queue tries again at once.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(2);

/// Publishes the relay of this process, which listens on `port` for peers.
///
/// # Errors
/// The system's error.
pub fn publish(sources: &Sources, port: u16) -> io::Result<UnixListener> {
    bind(&InstanceIdentity::of_process(sources).name(port)?)
}

fn bind(name: &InstanceName) -> io::Result<UnixListener> {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name.socket())?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to a relay. Any user can fill its accept queue; a relay that runs empties it again, so connecting is repeated.
///
/// # Errors
/// The system's error; that would block if the queue stays full, because the relay hangs.
pub(super) async fn connect(name: &InstanceName) -> io::Result<UnixStream> {
    // A leading zero byte makes the name abstract.
    let address = format!("\0{}", name.socket());
    let deadline = Instant::now() + FULL_QUEUE_TIMEOUT;
    loop {
        match UnixStream::connect(&address).await {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                sleep(FULL_QUEUE_PAUSE).await;
            }
            connected => return connected,
        }
    }
}

/// The connections to the command socket, in a table for each kind of caller: a user who connects again and again evicts
/// no command of root or of the relay's own user.
#[derive(Debug)]
pub(super) struct CommandConnections {
    trusted: Connections,
    others: Connections,
}

impl CommandConnections {
    /// Creates two empty tables.
    pub(super) fn new() -> Self {
        Self { trusted: Connections::new(MAX_TRUSTED), others: Connections::new(MAX_OTHERS) }
    }

    /// Admits a connection, and evicts another one of the same kind of caller if there are too many.
    pub(super) fn admit(&self, caller: CommandCaller) -> ConnectionPermit {
        let table = match caller {
            CommandCaller::Trusted => &self.trusted,
            CommandCaller::Other => &self.others,
        };
        table.admit(Ipv4Addr::LOCALHOST.into())
    }
}

/// Identifies who has connected. Processes of other containers are not trusted, even if they share the network and the
/// number of the user, as those of images often do.
pub(super) fn identify_caller(stream: &UnixStream) -> CommandCaller {
    let Ok(caller) = stream.peer_cred() else {
        return CommandCaller::Other;
    };
    if SocketOwner::of(caller.uid()) == SocketOwner::Trusted
        && caller.pid().is_some_and(is_in_this_container)
    {
        CommandCaller::Trusted
    } else {
        CommandCaller::Other
    }
}

/// Whether a process runs in the PID namespace of this one. The kernel reports 0 for a process that runs in another one
/// beside or above it. One below it has further PIDs.
fn is_in_this_container(pid: i32) -> bool {
    let Some(process) = Pid::from_raw(pid) else {
        return false;
    };
    let pids = find_pids_by_descriptor(process).or_else(|| find_pids_by_file(pid));
    pids.is_some_and(|pids| pids == [pid])
}

/// Returns the PIDs of a process in this namespace and in those below, by a descriptor of the process: its files may be
/// hidden (`ProtectProc=invisible`). Before Linux 5.14, only root can read about the descriptors of a process that is
/// not dumpable, as this one.
fn find_pids_by_descriptor(process: Pid) -> Option<Vec<i32>> {
    let process = pidfd_open(process, PidfdFlags::empty()).ok()?;
    read_pids(&format!("/proc/self/fdinfo/{}", process.as_raw_fd()))
}

/// Returns the PIDs of a process by its file in `/proc`, if that is the one of this namespace: in another one, the PID
/// belongs to another process.
fn find_pids_by_file(pid: i32) -> Option<Vec<i32>> {
    let own = i32::try_from(std::process::id()).ok()?;
    read_pids("/proc/self/status").filter(|pids| *pids == [own])?;
    read_pids(&format!("/proc/{pid}/status"))
}

fn read_pids(path: &str) -> Option<Vec<i32>> {
    parse_pids(&std::fs::read_to_string(path).ok()?)
}

/// Parses the PIDs of a process, the first of which is the one in the namespace of `/proc`. It is -1 if the process has
/// ended.
fn parse_pids(information: &str) -> Option<Vec<i32>> {
    let pids = information.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    pids.split_whitespace().map(|pid| pid.parse().ok()).collect()
}

/// Accepts connections and passes each to `serve`, until it is dropped.
pub(super) async fn accept(listener: UnixListener, mut serve: impl FnMut(UnixStream)) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            return debug!(%error, "commands cannot find this relay by its command socket");
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                serve(stream);
                // A burst of new connections must not starve those that have been accepted.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                debug!(%error, "cannot accept a connection on the command socket");
                sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_of_this_container_are_trusted() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(is_in_this_container(own));
        // The kernel reports 0 for a process that this one cannot see.
        assert!(!is_in_this_container(0));
        // Nor is there a process with the highest number.
        assert!(!is_in_this_container(i32::MAX));
    }

    #[test]
    fn pids_of_a_process_are_found_in_two_ways() {
        let own = i32::try_from(std::process::id()).unwrap();
        let by_descriptor = find_pids_by_descriptor(Pid::from_raw(own).unwrap());
        assert_eq!(by_descriptor, Some(vec![own]));
        // If the system does not permit the first way.
        assert_eq!(find_pids_by_file(own), Some(vec![own]));
        assert_eq!(find_pids_by_file(i32::MAX), None);
    }

    #[test]
    fn pids_are_parsed() {
        assert_eq!(parse_pids("pos:\t0\nPid:\t12\nNSpid:\t12\n"), Some(vec![12]));
        // A process that runs in a container on this machine.
        assert_eq!(parse_pids("Name:\tsh\nNSpid:\t12\t1\nVmPeak:\t9 kB\n"), Some(vec![12, 1]));
        // A process that has ended.
        assert_eq!(parse_pids("Pid:\t-1\nNSpid:\t-1\n"), Some(vec![-1]));
        for unknown in ["", "pos:\t0\nPid:\t12\n", "NSpid:\tx\n"] {
            assert_eq!(parse_pids(unknown), None, "{unknown}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_waits_until_the_relay_empties_its_queue() {
        let sources = Sources {
            path: "/etc/aspia/relay.json".into(),
            is_path_explicit: true,
            environment: Vec::new(),
        };
        let name = InstanceIdentity::of_process(&sources).name(1).unwrap();
        let listener = bind(&name).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut flood = Vec::new();
        let full = loop {
            match connect(&name).await {
                Ok(stream) => flood.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let accept = async {
            sleep(FULL_QUEUE_TIMEOUT / 2).await;
            listener.accept().unwrap()
        };
        let (connected, _) = tokio::join!(connect(&name), accept);
        assert!(connected.is_ok(), "{connected:?}");
    }

    async fn is_evicted(permit: &ConnectionPermit) -> bool {
        tokio::select! {
            biased;
            () = permit.evicted() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn other_users_do_not_evict_a_trusted_command() {
        let connections = CommandConnections::new();
        let trusted = connections.admit(CommandCaller::Trusted);
        let _answering = trusted.begin_request();
        let first = connections.admit(CommandCaller::Other);
        let _flood: Vec<_> = (0..MAX_TRUSTED + MAX_OTHERS)
            .map(|_| connections.admit(CommandCaller::Other))
            .collect();
        assert!(!is_evicted(&trusted).await);
        assert!(is_evicted(&first).await);
        // Nor do trusted commands evict others.
        let other = connections.admit(CommandCaller::Other);
        let _more: Vec<_> =
            (0..MAX_TRUSTED).map(|_| connections.admit(CommandCaller::Trusted)).collect();
        assert!(!is_evicted(&other).await);
        assert!(is_evicted(&trusted).await);
    }
}
