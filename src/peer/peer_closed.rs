//! Notices when a waiting peer goes away, without reading what it may have sent.

use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;

/// How often a peer that has sent early data is checked. Those bytes keep its socket readable, so that waiting for readiness
/// would return at once every time; the check itself costs no system call.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Returns when the peer has closed its connection or its sending half, or the connection was reset. A sending half that is
/// closed before there is a partner counts as a closed connection, since TCP does not show the difference.
pub(super) async fn peer_closed(stream: &TcpStream) {
    loop {
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => return,
            Ok(_) => tokio::time::sleep(CHECK_INTERVAL).await,
            Err(_) => return,
        }
    }
}
