//! The real relay as a process of its own, on this machine alone: what is measured from outside.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aspia_relay::config::settings::variable;

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
    /// Starts one for a Router, with its log on as in a container (what is said costs, too) and written to `log`.
    ///
    /// # Errors
    /// When it does not start.
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

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child().id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(self.child().try_wait()?.is_none())
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where peers dial it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
