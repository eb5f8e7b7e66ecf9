//! A running relay and those who steer it from outside: the service manager, or the keys and buttons of a console.
//!
//! A service that cannot work must say so where somebody looks: its exit code, the event log, and the log files. How it
//! ends tells the manager whether to try again. With a configuration that is missing or wrong it *stops*, with an error;
//! nothing gets better by itself. With any other failure its process ends without having stopped, which the manager takes
//! for a crash and answers as the service was installed: it starts it again.
#![allow(unsafe_code, reason = "the macro that makes the entry for the service manager has some")]

use std::ffi::OsString;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::Instant;
use tracing::{info, warn};
use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{
    self, ServiceControlHandlerResult, ServiceStatusHandle,
};
use windows_service::{define_windows_service, service_dispatcher};
use windows_sys::Win32::Foundation::{
    ERROR_FAILED_SERVICE_CONTROLLER_CONNECT, ERROR_SERVICE_CANNOT_ACCEPT_CTRL,
};

use crate::handle::Handle;
use crate::signals::{Command, MAX_WAITING};

use super::{NAME, event_log};

/// How long a start may take: reading the configuration, looking up addresses of its own, binding.
const START: Duration = Duration::from_secs(30);
/// How long it may take to end beside `DrainTimeout`: last words to a trace collector and to the log.
const END: Duration = Duration::from_secs(15);
/// How often the manager hears that a stop goes on.
const PROGRESS: Duration = Duration::from_secs(1);

/// Why the relay ended, with its exit status.
pub struct Failed {
    /// The exit status.
    pub status: u8,
    /// Why, and what to do.
    pub message: String,
    /// Whether it is of no use to start it again.
    pub is_final: bool,
}

type Work = Box<dyn Fn() -> Result<(), Failed> + Send + Sync>;

/// What the two functions that the manager calls must find. A process is one service at most.
struct Service {
    work: Work,
    status: OnceLock<ServiceStatusHandle>,
    commands: Sender<Command>,
    receiver: Mutex<Option<Receiver<Command>>>,
}

static SERVICE: OnceLock<Service> = OnceLock::new();

define_windows_service!(entry, service_main);

/// Does `work` as the service, when the service manager started this process, and returns `true` once that has stopped.
/// Otherwise nothing is done, and `false` the answer. To be called once.
///
/// # Errors
/// What the system says.
pub fn run(work: impl Fn() -> Result<(), Failed> + Send + Sync + 'static) -> io::Result<bool> {
    let (commands, receiver) = mpsc::channel(MAX_WAITING);
    let receiver = Mutex::new(Some(receiver));
    let service = Service { work: Box::new(work), status: OnceLock::new(), commands, receiver };
    SERVICE.set(service).map_err(|_| io::Error::other("the service runs already"))?;
    match service_dispatcher::start(NAME, entry) {
        Ok(()) => Ok(true),
        Err(windows_service::Error::Winapi(error))
            if error.raw_os_error()
                == Some(ERROR_FAILED_SERVICE_CONTROLLER_CONNECT.cast_signed()) =>
        {
            Ok(false)
        }
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The service as long as it lives, on a thread of the manager's. Its arguments would be those of `sc start`.
fn service_main(_arguments: Vec<OsString>) {
    let Some(service) = SERVICE.get() else { return };
    let registered = service_control_handler::register(NAME, handle_control);
    let status = match registered {
        Ok(status) => *service.status.get_or_init(|| status),
        Err(error) => {
            let _ = event_log::error(&format!("cannot listen to the service manager: {error}"));
            std::process::exit(1);
        }
    };
    report_status(status, ServiceState::StartPending, 1, START);
    let Err(Failed { status: code, message, is_final }) = (service.work)() else {
        return report_stopped(status, ServiceExitCode::NO_ERROR);
    };
    // The log files have it as well, where they could be written.
    let _ = event_log::error(&message);
    if is_final {
        report_stopped(status, ServiceExitCode::ServiceSpecific(code.into()));
    } else {
        std::process::exit(code.into());
    }
}

/// The manager's orders. A function and no closure with anything in it: `windows-service` gives the closure back at the
/// first stop, and calls it again where another order was on its way. Of a function there is nothing to give back.
fn handle_control(control: ServiceControl) -> ServiceControlHandlerResult {
    let Some(service) = SERVICE.get() else { return ServiceControlHandlerResult::NotImplemented };
    let command = match control {
        ServiceControl::Stop => Command::Stop("the service manager's stop"),
        ServiceControl::Preshutdown | ServiceControl::Shutdown => {
            Command::Stop("the system's shutdown")
        }
        ServiceControl::ParamChange => Command::Reload("paramchange"),
        ServiceControl::Interrogate => return ServiceControlHandlerResult::NoError,
        _ => return ServiceControlHandlerResult::NotImplemented,
    };
    let place = match service.commands.try_reserve() {
        Ok(place) => place,
        // Nobody listens any more: it is stopping.
        Err(TrySendError::Closed(())) => return ServiceControlHandlerResult::NoError,
        Err(TrySendError::Full(())) => {
            return ServiceControlHandlerResult::Other(ERROR_SERVICE_CANNOT_ACCEPT_CTRL);
        }
    };
    if let (Command::Stop(_), Some(status)) = (command, service.status.get()) {
        // Before the manager looks, and before [`report`] says how long it will take.
        report_status(*status, ServiceState::StopPending, 1, END);
    }
    place.send(command);
    ServiceControlHandlerResult::NoError
}

fn report_status(
    handle: ServiceStatusHandle,
    state: ServiceState,
    checkpoint: u32,
    wait_hint: Duration,
) {
    // While it starts or stops, it takes no orders, and the manager sends none.
    let controls_accepted = match state {
        ServiceState::Running => {
            ServiceControlAccept::STOP
                | ServiceControlAccept::SHUTDOWN
                | ServiceControlAccept::PRESHUTDOWN
                | ServiceControlAccept::PARAM_CHANGE
        }
        _ => ServiceControlAccept::empty(),
    };
    let status = ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted,
        exit_code: ServiceExitCode::NO_ERROR,
        checkpoint,
        wait_hint,
        process_id: None,
    };
    if let Err(error) = handle.set_service_status(status) {
        warn!(?state, "cannot tell the service manager: {error}");
    }
}

/// Nothing may come after this: the process may end at once.
fn report_stopped(handle: ServiceStatusHandle, exit_code: ServiceExitCode) {
    let status = ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: ServiceState::Stopped,
        controls_accepted: ServiceControlAccept::empty(),
        exit_code,
        checkpoint: 0,
        wait_hint: Duration::ZERO,
        process_id: None,
    };
    if let Err(error) = handle.set_service_status(status) {
        let _ = event_log::error(&format!("cannot tell the service manager of the end: {error}"));
    }
}

/// Tells the service manager, where there is one, that the relay runs, and while it stops, how long that may take. Does
/// not end by itself.
pub async fn report(handle: Handle) {
    let Some(status) = SERVICE.get().and_then(|service| service.status.get()).copied() else {
        return std::future::pending().await;
    };
    report_status(status, ServiceState::Running, 0, Duration::ZERO);
    handle.draining().cancelled().await;
    let deadline = Instant::now() + handle.config().drain_timeout;
    let mut progress = tokio::time::interval(PROGRESS);
    for checkpoint in 2.. {
        progress.tick().await;
        let left = deadline.saturating_duration_since(Instant::now());
        report_status(status, ServiceState::StopPending, checkpoint, hint(left));
    }
}

/// How long the manager is to wait for the end when `left` of `DrainTimeout` is left. It is a number of 32 bits, in
/// milliseconds.
fn hint(left: Duration) -> Duration {
    left.saturating_add(END).min(Duration::from_millis(u32::MAX.into()))
}

/// What the service manager asks, or who is at the console where there is no service manager. To be called once, in a
/// runtime; from the return on, nothing is missed.
///
/// # Errors
/// What the system says.
pub fn commands() -> io::Result<Receiver<Command>> {
    match SERVICE.get().filter(|service| service.status.get().is_some()) {
        Some(service) => {
            let mut receiver = service.receiver.lock().unwrap_or_else(PoisonError::into_inner);
            receiver.take().ok_or_else(|| io::Error::other("somebody listens already"))
        }
        None => console(),
    }
}

/// Ctrl-C, Ctrl-Break, and the end of the console window, of the user's session and of the system. Windows gives only a few
/// seconds for the latter three (5 unless told otherwise), whatever `DrainTimeout` says.
fn console() -> io::Result<Receiver<Command>> {
    use tokio::signal::windows;

    let (sender, receiver) = mpsc::channel(MAX_WAITING);
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
            if sender.send(Command::Stop(name)).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_waits_longer_than_the_drain() {
        assert!(hint(Duration::from_secs(25)) > Duration::from_secs(25));
        assert!(hint(Duration::ZERO) >= PROGRESS * 2);
        // What does not fit would be a panic in the library.
        assert!(u32::try_from(hint(Duration::MAX).as_millis()).is_ok());
    }

    #[test]
    fn without_the_service_manager_it_is_no_service() {
        assert!(!run(|| unreachable!("nobody is to start it")).unwrap());
    }
}
