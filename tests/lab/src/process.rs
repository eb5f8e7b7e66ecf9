//! The real relay as a process on this machine, to be measured from outside.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use aspia_relay::config::settings::variable;
use parking_lot::{Mutex, MutexGuard};

use crate::port::free_port;
use crate::router::LabRouter;

/// A relay that runs until it is dropped.
#[derive(Debug)]
pub struct RelayProcess {
    child: Mutex<Child>,
    address: SocketAddr,
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl RelayProcess {
    /// Starts a relay for a Router. Its log is on, as in a container, since logging costs as well, and goes to `log`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(
        program: &Path,
        router: &LabRouter,
        settings: &[(&str, &str)],
        log: Stdio,
    ) -> io::Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(program);
        for (key, value) in [
            ("RouterAddress", router.address().ip().to_string()),
            ("RouterPort", router.address().port().to_string()),
            ("RouterPublicKey", router.public_key().to_string()),
            ("PeerAddress", Ipv4Addr::LOCALHOST.to_string()),
            ("PeerPort", port.to_string()),
            ("ListenInterface", Ipv4Addr::LOCALHOST.to_string()),
        ] {
            command.env(variable(key), value);
        }
        command.envs(settings.iter().map(|(key, value)| (variable(key), value)));
        command.env("ASPIA_LOG_LEVEL", "0").stdin(Stdio::null());
        let child = command.stdout(log).stderr(Stdio::null()).spawn()?;
        Ok(Self { child: Mutex::new(child), address: (Ipv4Addr::LOCALHOST, port).into() })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child().id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The system's error.
    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(self.child().try_wait()?.is_none())
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock()
    }

    /// The address that peers dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
