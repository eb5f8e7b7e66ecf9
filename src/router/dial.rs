//! Finding and reaching the Router.

use std::io;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::config::parse::HostName;

use super::error::LinkError;

/// Time for the resolver.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for each address of the Router.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to the first address of the Router that answers, in the order of the resolver.
pub(super) async fn dial(host: &HostName, port: u16) -> Result<TcpStream, LinkError> {
    let resolve = |error| LinkError::Resolve { host: host.to_string(), error };
    let addresses = timeout(RESOLVE_TIMEOUT, lookup_host((host.as_str(), port)))
        .await
        .unwrap_or_else(|_| Err(timed_out()))
        .map_err(resolve)?;
    let mut attempts = Vec::new();
    for address in addresses {
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(timed_out())) {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(|error| LinkError::Connect(vec![(address, error)]))?;
                return Ok(stream);
            }
            Err(error) => attempts.push((address, error)),
        }
    }
    if attempts.is_empty() {
        return Err(resolve(io::Error::other("the name has no address")));
    }
    Err(LinkError::Connect(attempts))
}

fn timed_out() -> io::Error {
    io::Error::from(io::ErrorKind::TimedOut)
}
