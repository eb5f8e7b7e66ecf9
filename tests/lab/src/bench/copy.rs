//! A plain proxy that moves bytes as the original relay does: one thread, 8 KiB for each direction of each session.

use std::io;
use std::net::SocketAddr;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

/// Bytes that each direction keeps.
const BUFFER: usize = 8 * 1024;

/// Forwards connections to `listen` to `to`, for ever, on this thread, like the single-threaded forwarders that it stands for.
///
/// # Errors
/// If it cannot listen.
pub fn serve(listen: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(forward(listen, to))
}

async fn forward(listen: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let Ok((mut near, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        tokio::spawn(async move {
            let mut far = TcpStream::connect(to).await?;
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await
        });
    }
}
