//! Events of a Windows console.

use std::io;

use tokio::signal::windows;
use tokio::sync::mpsc::{self, Receiver};
use tracing::info;

use super::request::{ControlRequest, MAX_PENDING};

/// Listens for Ctrl-C, Ctrl-Break, and the end of the console window, of the user's session and of the system. Windows
/// allows only a few seconds after the last three of these (5 by default), whatever `DrainTimeout` says. Must be called
/// within a runtime. Once this returns, no event is missed.
///
/// # Errors
/// The handlers cannot be installed.
pub fn listen() -> io::Result<Receiver<ControlRequest>> {
    let (sender, receiver) = mpsc::channel(MAX_PENDING);
    let mut interrupted = windows::ctrl_c()?;
    let mut broken = windows::ctrl_break()?;
    let mut closed = windows::ctrl_close()?;
    let mut logged_off = windows::ctrl_logoff()?;
    let mut shut_down = windows::ctrl_shutdown()?;
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                Some(()) = interrupted.recv() => "Ctrl-C",
                Some(()) = broken.recv() => "Ctrl-Break",
                Some(()) = closed.recv() => "the end of the console",
                Some(()) = logged_off.recv() => "the end of the user's session",
                Some(()) = shut_down.recv() => "the system's shutdown",
                else => return info!("the console is gone"),
            };
            if sender.send(ControlRequest::Stop(name)).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Installs a handler for Ctrl-C, and returns a future that completes when it is pressed. Must be called within a
/// runtime. Once this returns, no event is missed.
///
/// # Errors
/// The handler cannot be installed.
pub fn stop_requested() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = windows::ctrl_c()?;
    Ok(async move {
        let _ = interrupt.recv().await;
    })
}
