//! The socket by which commands on this machine find the relay; see [`super::instance`].

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::sleep;
use tracing::debug;

use crate::config::sources::Sources;

use super::instance::{Identity, InstanceName};

/// The pause after a failure to accept.
const PAUSE: Duration = Duration::from_secs(1);

/// Publishes the relay of this process, which listens on `port` for peers.
///
/// # Errors
/// What the system says.
pub fn publish(sources: &Sources, port: u16) -> io::Result<UnixListener> {
    bind(&Identity::of_process(sources).name(port)?)
}

fn bind(name: &InstanceName) -> io::Result<UnixListener> {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name.socket())?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to a relay. Does not wait where too many others do.
///
/// # Errors
/// What the system says.
pub(super) async fn connect(name: &InstanceName) -> io::Result<UnixStream> {
    // A zero byte in front makes the name an abstract one.
    UnixStream::connect(format!("\0{}", name.socket())).await
}

/// Accepts connections until it is dropped.
pub(super) async fn accept(listener: UnixListener, mut take: impl FnMut(UnixStream)) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return debug!(%error, "commands cannot find this relay by its socket"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                take(stream);
                // As many as come must not keep those that are here from their turn.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                debug!(%error, "cannot accept connections of commands");
                sleep(PAUSE).await;
            }
        }
    }
}
