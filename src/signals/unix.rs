//! Unix signals.
//!
//! [`listen`] installs the handlers before anything else happens: until then SIGHUP would end the process, and the first
//! process of a container would ignore SIGTERM. A thread of its own listens from the first moment to the last, so that
//! signals are also handled while a start hangs and in the last seconds of a stop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tracing::info;

use super::request::{ControlRequest, MAX_PENDING};

/// Time from a second signal to the end of the process, whatever is still pending: traces, the log, a reader of stdout.
const FORCED_EXIT_DELAY: Duration = Duration::from_secs(1);

/// Installed signal handlers.
#[derive(Debug)]
pub struct Signals {
    requests: Receiver<ControlRequest>,
    has_started: Arc<AtomicBool>,
}

impl Signals {
    /// The requests for a relay that has started, including those that arrived earlier. Until this is called, SIGTERM
    /// and SIGINT end the process: nothing has to be shut down in order yet.
    pub fn into_requests(self) -> Receiver<ControlRequest> {
        self.has_started.store(true, Ordering::Relaxed);
        self.requests
    }
}

/// Installs handlers for SIGTERM, SIGINT and SIGHUP. Once this returns, no signal is missed.
///
/// # Errors
/// The handlers, their runtime or their thread cannot be created.
pub fn listen() -> io::Result<Signals> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (sender, requests) = mpsc::channel(MAX_PENDING);
    let has_started = Arc::new(AtomicBool::new(false));
    let listener = {
        let _context = runtime.enter();
        SignalListener {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            requests: sender,
            has_started: has_started.clone(),
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || runtime.block_on(listener.run()))?;
    Ok(Signals { requests, has_started })
}

/// Installs handlers for SIGTERM and SIGINT, and returns a future that completes when one of them arrives. Must be
/// called within a runtime. Once this returns, no signal is missed.
///
/// # Errors
/// The handlers cannot be installed.
pub fn stop_requested() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    })
}

/// Installs handlers for SIGTERM, SIGINT and SIGHUP, for a loop that has no runtime, and returns a descriptor that becomes
/// readable when one of the first two arrives. SIGHUP is ignored: there is nothing to reload.
///
/// # Errors
/// The handlers, their runtime or their thread cannot be created.
pub fn stop_descriptor() -> io::Result<OwnedFd> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (reader, writer) = io::pipe()?;
    let (stopped, _hangup) = {
        let _context = runtime.enter();
        (stop_requested()?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(stopped);
        drop(writer);
    })?;
    Ok(reader.into())
}

struct SignalListener {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    requests: Sender<ControlRequest>,
    has_started: Arc<AtomicBool>,
}

impl SignalListener {
    async fn run(mut self) {
        let mut is_stopping = false;
        loop {
            let name = tokio::select! {
                Some(()) = self.terminate.recv() => "SIGTERM",
                Some(()) = self.interrupt.recv() => "SIGINT",
                Some(()) = self.hangup.recv() => {
                    self.request_reload();
                    continue;
                }
                else => return,
            };
            if !self.has_started.load(Ordering::Relaxed) {
                info!("{name}: stopping before the relay has started");
                std::process::exit(0);
            }
            // Fails at the very end, when the relay has ended and no longer receives requests.
            let _ = self.requests.try_send(ControlRequest::Stop(name));
            if is_stopping {
                std::thread::sleep(FORCED_EXIT_DELAY);
                std::process::exit(0);
            }
            is_stopping = true;
        }
    }

    /// Requests a reload, unless so many are pending already that a stop might find no room.
    fn request_reload(&self) {
        if self.requests.capacity() > MAX_PENDING / 2 {
            let _ = self.requests.try_send(ControlRequest::Reload("SIGHUP"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(requests: Sender<ControlRequest>) -> SignalListener {
        SignalListener {
            terminate: signal(SignalKind::user_defined1()).unwrap(),
            interrupt: signal(SignalKind::user_defined1()).unwrap(),
            hangup: signal(SignalKind::user_defined1()).unwrap(),
            requests,
            has_started: Arc::default(),
        }
    }

    #[tokio::test]
    async fn many_reloads_leave_room_for_a_stop() {
        let (sender, mut requests) = mpsc::channel(MAX_PENDING);
        let listener = listener(sender.clone());
        for _ in 0..2 * MAX_PENDING {
            listener.request_reload();
        }
        assert!(sender.try_send(ControlRequest::Stop("SIGTERM")).is_ok());
        assert_eq!(requests.recv().await, Some(ControlRequest::Reload("SIGHUP")));
        assert_eq!(requests.len(), MAX_PENDING / 2);
    }
}
