//! Connected sockets on this machine.

use std::io;

use tokio::net::{TcpListener, TcpStream};

/// Both ends of a TCP connection: the accepted one, and the one that connected.
///
/// # Errors
/// When the system refuses a socket.
pub async fn connected_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(address));
    Ok((accepted?.0, connected?))
}

/// Both ends of a TCP connection: the accepted one, and the one that connected, which blocks.
///
/// # Errors
/// When the system refuses a socket.
pub async fn connected_pair_with_blocking_peer() -> io::Result<(TcpStream, std::net::TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let peer = std::net::TcpStream::connect(listener.local_addr()?)?;
    Ok((listener.accept().await?.0, peer))
}
