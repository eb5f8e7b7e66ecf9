//! Notices when a peer that waits goes away, without reading what it may have sent.

use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;

/// How often a peer that has sent early data is looked at. Those bytes keep its socket readable, so that waiting
/// for readiness would return at once, for ever; looking costs no system call.
const LOOK: Duration = Duration::from_millis(100);

/// Returns when the peer has closed, or ended its sending half, or was reset. A half that ends before there is a
/// partner is taken for a whole: from outside the two cannot be told apart.
pub(super) async fn gone(stream: &TcpStream) {
    loop {
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => return,
            Ok(_) => tokio::time::sleep(LOOK).await,
            Err(_) => return,
        }
    }
}
