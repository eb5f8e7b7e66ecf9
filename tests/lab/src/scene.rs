//! What the commands share that run relays as processes of their own: the program, its settings and log, its cgroup, and
//! waiting for it.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use aspia_relay::config::settings::variable;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::cgroup::Cgroup;
use crate::http;
use crate::router::LabRouter;

/// Longest wait for a process to end or to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Interval of attempts to reach a process that does not listen yet.
const RETRY: Duration = Duration::from_millis(2);

/// The logs of processes, which are removed with their directory unless they must stay.
#[derive(Debug)]
pub(crate) struct Logs {
    directory: PathBuf,
    pub(crate) stay: bool,
}

impl Drop for Logs {
    fn drop(&mut self) {
        if !self.stay {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

impl Logs {
    /// A new directory for the logs of a command.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn new(command: &str, stay: bool) -> io::Result<Self> {
        let name = format!("relay-lab-{command}-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory)?;
        Ok(Self { directory, stay })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).open(self.directory.join(name))
    }

    /// Starts a process, which ends with its handle, and appends what it prints to the log with this name.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn spawn(&self, mut command: Command, log: &str) -> io::Result<Child> {
        let file = self.open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).kill_on_drop(true);
        command.spawn()
    }
}

/// The relay's program in the directory of this program.
///
/// # Errors
/// The system's error.
pub(crate) fn relay_beside() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("aspia_relay"))
}

/// Checks that a relay can be started.
///
/// # Errors
/// That there is none, and what to do.
pub(crate) fn check_program(path: &Path) -> io::Result<()> {
    if path.is_file() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "there is no relay at {}; build it with `cargo build --workspace`, or name it with --relay",
        path.display()
    )))
}

/// A command whose process enters a cgroup by `script` first; see [`crate::cgroup::ENTER`].
pub(crate) fn command_in(cgroup: &Cgroup, script: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(cgroup.processes()).arg(program);
    command
}

/// The variables of `--env` arguments.
///
/// # Errors
/// Which argument is not a variable with a value.
pub(crate) fn variables(arguments: &[String]) -> io::Result<Vec<(String, String)>> {
    let pair = |text: &String| {
        let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        pair.ok_or_else(|| io::Error::other(format!("--env {text}: expected KEY=VALUE")))
    };
    arguments.iter().map(pair).collect()
}

/// The settings of a relay for at most `sessions` sessions of peers that all connect from the same address, at a high rate.
pub(crate) fn settings(
    router: &LabRouter,
    [peers, admin]: [SocketAddr; 2],
    sessions: usize,
    drain_timeout: Duration,
) -> Vec<(&'static str, String)> {
    let connections = (2 * sessions + 1000).to_string();
    vec![
        ("RouterAddress", router.address().ip().to_string()),
        ("RouterPort", router.address().port().to_string()),
        ("RouterPublicKey", router.public_key().to_string()),
        ("PeerAddress", peers.ip().to_string()),
        ("PeerPort", peers.port().to_string()),
        ("ListenInterface", peers.ip().to_string()),
        ("AdminListen", admin.to_string()),
        ("MaxPeerCount", sessions.to_string()),
        ("MaxPendingPeers", connections.clone()),
        ("MaxPendingPeersPerAddress", connections),
        ("PeerConnectRate", "0".to_owned()),
        ("PeerIdleTimeout", "60".to_owned()),
        ("DrainTimeout", format!("{}s", drain_timeout.as_secs())),
    ]
}

/// The variables for settings. `more` come last, so that they win.
pub(crate) fn environment(
    settings: Vec<(&'static str, String)>,
    more: &[(String, String)],
) -> Vec<(String, String)> {
    let settings = settings.into_iter().map(|(key, value)| (variable(key), value));
    let log = ("ASPIA_LOG_LEVEL".to_owned(), "0".to_owned());
    settings.chain([log]).chain(more.iter().cloned()).collect()
}

/// Sends a signal to a process.
///
/// # Errors
/// The system's error.
pub(crate) fn send_signal(process: u32, signal: Signal) -> io::Result<()> {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    let process = process.ok_or_else(|| io::Error::other("not the id of a process"))?;
    kill_process(process, signal).map_err(io::Error::from)
}

/// Waits until the relay answers on its admin listener; returns when that was. A request waits in the queue of a listener
/// that the relay inherits.
///
/// # Errors
/// If it ends, or does not answer within [`PATIENCE`].
pub(crate) async fn wait_until_live(admin: SocketAddr, relay: &mut Child) -> io::Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Ok(Ok(answer)) = timeout(left, http::get(admin, "/livez")).await
            && answer.status == 200
        {
            return Ok(Instant::now());
        }
        if let Some(status) = relay.try_wait()? {
            return Err(io::Error::other(format!("the relay ended at its start: {status}")));
        }
        if left.is_zero() {
            let seconds = PATIENCE.as_secs();
            let text = format!("the relay has not answered {seconds} s after its start");
            return Err(io::Error::other(text));
        }
        sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_need_a_value() {
        let good = variables(&["A=b=c".to_owned(), "D=".to_owned()]).unwrap();
        assert_eq!(good, [("A", "b=c"), ("D", "")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        let error = variables(&["A".to_owned()]).unwrap_err().to_string();
        assert_eq!(error, "--env A: expected KEY=VALUE");
    }
}
