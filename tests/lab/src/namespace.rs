//! A network namespace for a forwarder, and a pair of virtual Ethernet devices that connects it: packets pass through queues
//! and checksums as in a network, unlike on the loopback device.

use std::ffi::OsStr;
use std::io;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The address of the near end.
pub const PEERS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The address of the far end, which is in the namespace.
pub const FORWARDER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// The device at the near end.
pub const DEVICE: &str = "lab-peers";
/// The device in the namespace.
pub const FAR_DEVICE: &str = "lab-forwarder";

/// A namespace, which exists until it is dropped.
#[derive(Debug)]
pub struct Namespace {
    /// The process that keeps the namespace alive.
    keeper: Child,
}

impl Namespace {
    /// Creates a namespace; needs root, util-linux and iproute2.
    ///
    /// # Errors
    /// Says which step failed.
    pub fn new() -> io::Result<Self> {
        let keeper = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let namespace = Self { keeper };
        namespace.wait_until_apart()?;
        let pid = namespace.keeper.id().to_string();
        run(Command::new("ip")
            .args(["link", "add", DEVICE, "type", "veth"])
            .args(["peer", "name", FAR_DEVICE, "netns", &pid]))?;
        run(Command::new("ip").args(["address", "add", &format!("{PEERS}/24"), "dev", DEVICE]))?;
        run(Command::new("ip").args(["link", "set", DEVICE, "up"]))?;
        let address = format!("{FORWARDER}/24");
        run(namespace.command("ip").args(["address", "add", &address, "dev", FAR_DEVICE]))?;
        run(namespace.command("ip").args(["link", "set", FAR_DEVICE, "up"]))?;
        run(namespace.command("ip").args(["link", "set", "lo", "up"]))?;
        Ok(namespace)
    }

    /// A command that runs in the namespace. Its process is the program itself, not a wrapper.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.keeper.id())
    }

    /// Returns when the keeping process has left our namespace.
    fn wait_until_apart(&self) -> io::Result<()> {
        let ours = std::fs::read_link("/proc/self/ns/net")?;
        for _ in 0..500 {
            if std::fs::read_link(self.path()).is_ok_and(|theirs| theirs != ours) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(io::Error::other("cannot create a network namespace; this needs root"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Connections that are not closed keep a namespace alive for minutes, and its device would conflict with the next one.
        let _ = run(Command::new("ip").args(["link", "del", DEVICE]));
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Runs a command to its end.
///
/// # Errors
/// The output of the command, if it fails.
pub fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{command:?}: {said}")))
}
