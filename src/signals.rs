//! What signals, a console or a service manager ask of this process.
//!
//! On Unix, [`listen`] installs the handlers before anything else happens: until then SIGHUP would end the process, and
//! the first process of a container would not even notice SIGTERM. A thread of its own listens from the first moment to
//! the last, so that neither a start that hangs nor the last seconds of a stop are deaf.

/// What somebody asks of the relay, with what to call it in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// To stop; asked again, at once.
    Stop(&'static str),
    /// To read the configuration again.
    Reload(&'static str),
}

/// Commands that may wait for the relay, which takes each at once.
pub const MAX_WAITING: usize = 16;

#[cfg(unix)]
pub use unix::{Signals, listen};

#[cfg(unix)]
mod unix {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use tokio::signal::unix::{Signal, SignalKind, signal};
    use tokio::sync::mpsc::{self, Receiver, Sender};
    use tracing::info;

    use super::{Command, MAX_WAITING};

    /// The time from a second signal to the end, whatever still waits: traces, the log, a reader of stdout.
    const AT_ONCE: Duration = Duration::from_secs(1);

    /// Signals that are listened to.
    #[derive(Debug)]
    pub struct Signals {
        commands: Receiver<Command>,
        has_started: Arc<AtomicBool>,
    }

    impl Signals {
        /// The commands for a relay that has started, those that came before among them. Until this is called, SIGTERM
        /// and SIGINT end the process: there is nothing yet that has to end in order.
        pub fn for_relay(self) -> Receiver<Command> {
            self.has_started.store(true, Ordering::Relaxed);
            self.commands
        }
    }

    /// Takes over SIGTERM, SIGINT and SIGHUP. From the return on, none is missed.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen() -> io::Result<Signals> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (sender, commands) = mpsc::channel(MAX_WAITING);
        let has_started = Arc::new(AtomicBool::new(false));
        let listener = {
            let _context = runtime.enter();
            Listener {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hangup: signal(SignalKind::hangup())?,
                commands: sender,
                has_started: has_started.clone(),
            }
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || runtime.block_on(listener.run()))?;
        Ok(Signals { commands, has_started })
    }

    struct Listener {
        terminate: Signal,
        interrupt: Signal,
        hangup: Signal,
        commands: Sender<Command>,
        has_started: Arc<AtomicBool>,
    }

    impl Listener {
        async fn run(mut self) {
            let mut is_stopping = false;
            loop {
                let name = tokio::select! {
                    Some(()) = self.terminate.recv() => "SIGTERM",
                    Some(()) = self.interrupt.recv() => "SIGINT",
                    Some(()) = self.hangup.recv() => {
                        // Where reloads are due already, one more is not needed; there is always a place for a stop.
                        if self.commands.capacity() > MAX_WAITING / 2 {
                            let _ = self.commands.try_send(Command::Reload("SIGHUP"));
                        }
                        continue;
                    }
                    else => return,
                };
                if !self.has_started.load(Ordering::Relaxed) {
                    info!("{name}: stopping before the relay has started");
                    std::process::exit(0);
                }
                // In the last moments, when the relay has ended, nobody takes it any more.
                let _ = self.commands.try_send(Command::Stop(name));
                if is_stopping {
                    std::thread::sleep(AT_ONCE);
                    std::process::exit(0);
                }
                is_stopping = true;
            }
        }
    }
}
