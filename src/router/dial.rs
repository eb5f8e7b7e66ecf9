//! Finding and reaching the Router.

use std::io;
use std::net::SocketAddr;
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
    connect(host, lookup_host((host.as_str(), port))).await
}

/// Connects to this address, in whatever time that takes.
pub(super) async fn dial_address(address: SocketAddr) -> Result<TcpStream, LinkError> {
    let failed = |error| LinkError::Connect(vec![(address, error)]);
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

async fn connect<A: Iterator<Item = SocketAddr>>(
    host: &HostName,
    lookup: impl Future<Output = io::Result<A>>,
) -> Result<TcpStream, LinkError> {
    let resolve = |error| LinkError::Resolve { host: host.to_string(), error };
    let addresses = timeout(RESOLVE_TIMEOUT, lookup)
        .await
        .unwrap_or_else(|_| Err(timed_out()))
        .map_err(resolve)?;
    let mut attempts = Vec::new();
    for address in addresses {
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let ready = connected
            .unwrap_or_else(|_| Err(timed_out()))
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        match ready {
            Ok(stream) => return Ok(stream),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use tokio::net::TcpListener;

    fn name() -> HostName {
        parse::host("router.example").unwrap()
    }

    /// An address of this machine where nobody listens.
    async fn closed() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn every_address_is_tried() {
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [closed().await, open.local_addr().unwrap()];
        let stream = connect(&name(), async { Ok(addresses.into_iter()) }).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addresses[1]);
    }

    #[tokio::test]
    async fn every_address_that_failed_is_named() {
        let addresses = [closed().await, closed().await];
        let error = connect(&name(), async { Ok(addresses.into_iter()) }).await.unwrap_err();
        let text = error.to_string();
        assert!(addresses.iter().all(|address| text.contains(&address.to_string())), "{text}");
        assert!(text.contains("refused; is the Router running"), "{text}");
        assert!(!error.needs_operator());
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_do_not_resolve_are_told_apart() {
        let failed = async { Err::<std::vec::IntoIter<_>, _>(io::Error::other("no such name")) };
        let text = connect(&name(), failed).await.unwrap_err().to_string();
        assert!(text.contains("router.example does not resolve (no such name)"), "{text}");
        let empty = connect(&name(), async { Ok(std::iter::empty()) }).await.unwrap_err();
        assert!(empty.to_string().contains("no address"), "{empty}");
        let never = std::future::pending::<io::Result<std::iter::Empty<_>>>();
        let slow = connect(&name(), never).await.unwrap_err().to_string();
        assert!(slow.contains("does not resolve (timed out)"), "{slow}");
    }
}
