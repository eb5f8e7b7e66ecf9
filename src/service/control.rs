//! The service as the service control manager runs it: its entry point, its controls and its status.
//!
//! A service that cannot work must say so where administrators look: in its exit code, the event log and the log files.
//! The way in which it ends tells the manager whether to restart it. With a missing or invalid configuration the
//! service *stops* with an error, since a restart would not help. With any other failure the process exits without
//! reporting that it has stopped; the manager treats that as a crash and takes the recovery action that the service was
//! installed with: a restart.
#![allow(unsafe_code, reason = "the macro that defines the entry point contains unsafe code")]

use std::ffi::OsString;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::Instant;
use tracing::warn;
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

use crate::exit::{ExitResult, ExitStatus};
use crate::handle::Handle;
use crate::signals::{self, ControlRequest, MAX_PENDING};

use super::{NAME, event_log};

/// How long a start may take: reading the configuration, resolving its own addresses, binding.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a stop may take in addition to `DrainTimeout`: exporting the last traces and log lines.
const STOP_ALLOWANCE: Duration = Duration::from_secs(15);
/// How often a pending stop is reported to the manager.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

type ServiceBody = Box<dyn Fn() -> ExitResult + Send + Sync>;

/// The state that the two callbacks of the manager need. A process runs at most one service.
struct Service {
    body: ServiceBody,
    status: OnceLock<ServiceStatusHandle>,
    requests: Sender<ControlRequest>,
    receiver: Mutex<Option<Receiver<ControlRequest>>>,
}

static SERVICE: OnceLock<Service> = OnceLock::new();

define_windows_service!(entry, service_main);

/// Runs `body` as the service if the service manager started this process, and returns `true` once it has stopped.
/// Otherwise returns `false` at once. Must be called once.
///
/// # Errors
/// The system's error.
pub fn run(body: impl Fn() -> ExitResult + Send + Sync + 'static) -> io::Result<bool> {
    let (requests, receiver) = mpsc::channel(MAX_PENDING);
    let receiver = Mutex::new(Some(receiver));
    let service = Service { body: Box::new(body), status: OnceLock::new(), requests, receiver };
    SERVICE.set(service).map_err(|_| io::Error::other("the service is running already"))?;
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

/// The main function of the service, on a thread of the manager. Its arguments are those of `sc start`.
fn service_main(_arguments: Vec<OsString>) {
    let Some(service) = SERVICE.get() else { return };
    let registered = service_control_handler::register(NAME, handle_control);
    let status = match registered {
        Ok(status) => *service.status.get_or_init(|| status),
        Err(error) => {
            let _ = event_log::error(&format!("cannot register with the service manager: {error}"));
            std::process::exit(ExitStatus::Failure.code().into());
        }
    };
    report_status(status, ServiceState::StartPending, 1, START_TIMEOUT);
    let Err(error) = (service.body)() else {
        return report_stopped(status, ServiceExitCode::NO_ERROR);
    };
    // The log files hold the error as well, if they can be written.
    let _ = event_log::error(&error.message);
    let code = error.status.code();
    if error.is_final() {
        report_stopped(status, ServiceExitCode::ServiceSpecific(code.into()));
    } else {
        std::process::exit(code.into());
    }
}

/// Handles a control code of the manager. This is a function, not a closure with captures: `windows-service` frees the
/// closure at the first stop, and calls it again if another control was on its way. A function has nothing to free.
fn handle_control(control: ServiceControl) -> ServiceControlHandlerResult {
    let Some(service) = SERVICE.get() else { return ServiceControlHandlerResult::NotImplemented };
    let request = match control {
        ServiceControl::Stop => ControlRequest::Stop("the service manager's stop"),
        ServiceControl::Preshutdown | ServiceControl::Shutdown => {
            ControlRequest::Stop("the system's shutdown")
        }
        ServiceControl::ParamChange => ControlRequest::Reload("paramchange"),
        ServiceControl::Interrogate => return ServiceControlHandlerResult::NoError,
        _ => return ServiceControlHandlerResult::NotImplemented,
    };
    let slot = match service.requests.try_reserve() {
        Ok(slot) => slot,
        // The receiver is gone, because the service is stopping.
        Err(TrySendError::Closed(())) => return ServiceControlHandlerResult::NoError,
        Err(TrySendError::Full(())) => {
            return ServiceControlHandlerResult::Other(ERROR_SERVICE_CANNOT_ACCEPT_CTRL);
        }
    };
    if let (ControlRequest::Stop(_), Some(status)) = (request, service.status.get()) {
        // Before the manager queries the status, and before [`report`] says how long the stop may take.
        report_status(*status, ServiceState::StopPending, 1, STOP_ALLOWANCE);
    }
    slot.send(request);
    ServiceControlHandlerResult::NoError
}

fn report_status(
    handle: ServiceStatusHandle,
    state: ServiceState,
    checkpoint: u32,
    wait_hint: Duration,
) {
    // A service that starts or stops accepts no controls, and the manager sends none.
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
        warn!(?state, "cannot report the state to the service manager: {error}");
    }
}

/// Reports that the service has stopped. Nothing may follow, since the process may be ended at once.
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
        let _ =
            event_log::error(&format!("cannot report the stop to the service manager: {error}"));
    }
}

/// Reports to the service manager, if there is one, that the relay runs and, while it stops, how long the stop may take.
/// Runs for ever.
pub async fn report(handle: Handle) {
    let Some(status) = SERVICE.get().and_then(|service| service.status.get()).copied() else {
        return std::future::pending().await;
    };
    report_status(status, ServiceState::Running, 0, Duration::ZERO);
    handle.draining().cancelled().await;
    let deadline = Instant::now() + handle.config().drain_timeout;
    let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
    for checkpoint in 2.. {
        progress.tick().await;
        let left = deadline.saturating_duration_since(Instant::now());
        report_status(status, ServiceState::StopPending, checkpoint, wait_hint(left));
    }
}

/// How long the manager should wait for the stop if `left` of `DrainTimeout` is left. Windows takes the hint as a 32-bit
/// number of milliseconds.
fn wait_hint(left: Duration) -> Duration {
    left.saturating_add(STOP_ALLOWANCE).min(Duration::from_millis(u32::MAX.into()))
}

/// Receives requests from the service manager, or from the console if no service manager started this process. Must be
/// called once, within a runtime. Once it has returned, no request is missed.
///
/// # Errors
/// If the handlers of the console cannot be installed, or if it has been called before.
pub fn receive_requests() -> io::Result<Receiver<ControlRequest>> {
    match SERVICE.get().filter(|service| service.status.get().is_some()) {
        Some(service) => {
            let mut receiver = service.receiver.lock();
            receiver
                .take()
                .ok_or_else(|| io::Error::other("the requests are being received already"))
        }
        None => signals::listen(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_hint_exceeds_the_drain_timeout() {
        assert!(wait_hint(Duration::from_secs(25)) > Duration::from_secs(25));
        assert!(wait_hint(Duration::ZERO) >= PROGRESS_INTERVAL * 2);
        // A value that does not fit would make the library panic.
        assert!(u32::try_from(wait_hint(Duration::MAX).as_millis()).is_ok());
    }

    #[test]
    fn run_returns_false_without_the_service_manager() {
        assert!(!run(|| unreachable!("it must not be started")).unwrap());
    }
}
