//! Stands in for `tokio::net` and `socket2`.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;

use crate::io::Interest;
use crate::kernel::{self, Socket};

/// A socket that is registered with the runtime.
#[derive(Debug)]
pub struct TcpStream {
    fd: OwnedFd,
    socket: Arc<Mutex<Socket>>,
}

impl TcpStream {
    /// Registers a socket.
    pub(crate) fn register(socket: &Arc<Mutex<Socket>>) -> Self {
        socket.lock().register();
        let fd = kernel::descriptor();
        kernel::name_socket(&fd, socket);
        Self { fd, socket: socket.clone() }
    }

    pub(crate) fn socket(&self) -> &Mutex<Socket> {
        &self.socket
    }

    pub fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.lock().poll_ready(Interest::Readable, context).map(Ok)
    }

    pub fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.lock().poll_ready(Interest::Writable, context).map(Ok)
    }

    pub async fn ready(&self, interest: Interest) -> io::Result<()> {
        poll_fn(|context| self.socket.lock().poll_ready(interest, context)).await;
        Ok(())
    }

    /// As the runtime does, makes no call if the socket is not known to be ready, and forgets that it is when a call says so.
    pub fn try_io<T>(
        &self,
        interest: Interest,
        call: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        if !self.socket.lock().is_ready(interest) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = call();
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.socket.lock().clear_ready(interest);
        }
        result
    }

    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(self.socket.lock().error.take().map(io::Error::from))
    }
}

impl AsFd for TcpStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The socket itself, without the runtime.
pub struct SockRef<'a>(RawSocket<'a>);

pub struct RawSocket<'a>(&'a Mutex<Socket>);

impl<'a> From<&'a TcpStream> for SockRef<'a> {
    fn from(stream: &'a TcpStream) -> Self {
        Self(RawSocket(&stream.socket))
    }
}

impl<'a> Deref for SockRef<'a> {
    type Target = RawSocket<'a>;

    fn deref(&self) -> &RawSocket<'a> {
        &self.0
    }
}

impl RawSocket<'_> {
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        assert_eq!(how, Shutdown::Write);
        self.0.lock().shut_down()
    }
}

impl Read for &RawSocket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.0.lock().receive(buffer)?)
    }
}

impl Write for &RawSocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.0.lock().send(bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
