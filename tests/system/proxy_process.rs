//! A proxy as a process of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A proxy that runs until it is dropped.
pub(crate) struct ProxyProcess {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    directory: TempDir,
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        // SIGTERM also ends the workers of the proxy; SIGKILL would leave them behind.
        let id = self.child.id().to_string();
        let _ = Command::new("kill").args(["-s", "TERM", &id]).status();
        let _ = self.child.wait();
    }
}

impl ProxyProcess {
    /// Starts a proxy that listens on this port, without which the test cannot run. `write` writes its configuration into a
    /// directory, and returns its arguments.
    pub(crate) async fn start(
        program: &str,
        port: u16,
        write: impl FnOnce(&Path) -> Vec<String>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let arguments = write(directory.path());
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("HOME", directory.path())
            .env("XDG_DATA_HOME", directory.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let Ok(child) = command.spawn() else {
            relay_lab::cannot_run(format!("{program} is missing"));
        };
        let mut process = Self { child, address, directory };
        process.wait_until_it_listens(program).await;
        process
    }

    async fn wait_until_it_listens(&mut self, program: &str) {
        let log = self.directory.path().join("log");
        let deadline = Instant::now() + Duration::from_secs(60);
        while tokio::net::TcpStream::connect(self.address).await.is_err() {
            let log = std::fs::read_to_string(&log).unwrap();
            assert!(self.child.try_wait().unwrap().is_none(), "{program} ended: {log}");
            assert!(Instant::now() < deadline, "{program} does not listen: {log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Replaces addresses and files of an example by those of a test. Each must occur.
pub(crate) fn adapt(text: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from} is not in {text}");
        text.replace(from, to)
    })
}
