//! Ends a connection whose socket has a duplicate in another process. Closing the socket here would leave it open.

use std::net::Shutdown;

use socket2::SockRef;
use tokio::net::TcpStream;

#[cfg(target_os = "linux")]
use super::readiness;

/// Ends a connection, as closing its last descriptor would: the peer is sent a FIN behind everything that was written, or, if
/// not everything was read that the peer has sent, a reset. Errors are ignored, since they mean that it has ended already.
pub fn finish_connection(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    if readiness::has_unread(stream) {
        // Only a reset reaches a peer that writes, and whose bytes the full socket does not accept.
        let _ = rustix::net::connect_unspec(stream);
        return;
    }
    let _ = SockRef::from(stream).shutdown(Shutdown::Both);
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    use relay_lab::sockets::connected_pair;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn peer_sees_the_end_although_a_duplicate_is_open() {
        let (mut here, mut peer) = connected_pair().await.unwrap();
        let duplicate = SockRef::from(&here).try_clone().unwrap();
        here.write_all(b"last").await.unwrap();
        finish_connection(&here);
        drop(here);
        let mut received = Vec::new();
        peer.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"last");
        // What the peer still sends is answered with a reset.
        while peer.write_all(b"more").await.is_ok() {
            tokio::task::yield_now().await;
        }
        drop(duplicate);
    }

    #[tokio::test]
    async fn peer_whose_bytes_were_not_read_is_reset() {
        let (here, mut peer) = connected_pair().await.unwrap();
        let duplicate = SockRef::from(&here).try_clone().unwrap();
        peer.write_all(b"unread").await.unwrap();
        here.readable().await.unwrap();
        finish_connection(&here);
        drop(here);
        let error = peer.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        drop(duplicate);
    }
}
