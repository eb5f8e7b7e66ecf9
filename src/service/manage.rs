//! `--install`, `--remove`, `--start` and `--stop`: what administrators ask of Windows' service manager.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use windows_service::service::{
    Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceErrorControl, ServiceExitCode,
    ServiceFailureActions, ServiceFailureResetPeriod, ServiceInfo, ServiceStartType, ServiceState,
    ServiceStatus, ServiceType,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_DUPLICATE_SERVICE_NAME, ERROR_INVALID_LEVEL,
    ERROR_SERVICE_ALREADY_RUNNING, ERROR_SERVICE_DISABLED, ERROR_SERVICE_DOES_NOT_EXIST,
    ERROR_SERVICE_EXISTS, ERROR_SERVICE_MARKED_FOR_DELETE, ERROR_SERVICE_NOT_ACTIVE,
};

use crate::config::sources::DEFAULT_PATH;

use super::access;
use super::{ACCOUNT, DISPLAY_NAME, NAME, event_log, log_directory};

const DESCRIPTION: &str = "Joins Aspia Clients and Hosts that cannot reach each other directly.";
/// How long after a failure it is started again: the first time, the second, and each after that.
const RESTARTS: [Duration; 3] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(60)];
/// After so long without a failure the next one is the first again.
const FAILURE_RESET_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// Longest time that Windows waits for it when it shuts down. It was Windows' own before it became 10 s; the relay itself
/// waits for `DrainTimeout`, which may be longer than 10 s.
const SHUTDOWN: Duration = Duration::from_secs(180);
/// How often it is looked whether a service has started or stopped.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Longest wait without any progress, where the service does not say how long it will take.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Why the service manager did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ManageError {
    /// This takes an administrator.
    #[error(
        "to {action} takes administrator rights: use a Command Prompt or PowerShell that was started with \
         \"Run as administrator\""
    )]
    NotAllowed {
        /// What was to be done.
        action: &'static str,
    },
    /// There is one already.
    #[error(
        "the service {NAME} is installed already and runs {program}; to install it anew, stop and remove it first \
         (aspia_relay --stop, aspia_relay --remove; the original's by its own uninstaller)"
    )]
    Exists {
        /// The command that it runs.
        program: String,
    },
    /// Another service has the same name for people.
    #[error(
        "another service is called \"{DISPLAY_NAME}\" already; remove it first (services.msc shows it)"
    )]
    NameTaken,
    /// There is none.
    #[error("the service {NAME} is not installed; install it with aspia_relay --install")]
    Missing,
    /// It is on its way out.
    #[error(
        "the service {NAME} is being removed, which waits for those who look at it: close services.msc and the Task \
         Manager, and try again; at the latest it is gone after a restart of Windows"
    )]
    BeingRemoved,
    /// It is not stopped.
    #[error("the service {NAME} is not stopped; stop it first: aspia_relay --stop")]
    Runs,
    /// Its account cannot run the program.
    #[error(
        "{ACCOUNT}, as which the service runs, may not run {program}: put the program where every user can read it \
         (C:\\Program Files), or let the service: icacls FILE /grant \"{ACCOUNT}:RX\""
    )]
    ProgramUnreadable {
        /// The command that it runs.
        program: String,
    },
    /// It may not be started.
    #[error(
        "the service {NAME} is disabled; let it be started first: sc config {NAME} start= auto"
    )]
    Disabled,
    /// It did not start.
    #[error(
        "the service {NAME} ended at once, with {exit}. Why is in the Event Viewer (Windows Logs, Application, \
         source {NAME}) and in the newest file of {log}; aspia_relay --check-config looks at the configuration"
    )]
    Ended {
        /// How it ended.
        exit: String,
        /// Where its log files are.
        log: PathBuf,
    },
    /// Nothing goes on.
    #[error(
        "the service {NAME} is {state} and does not get on; its log files in {log} may say why"
    )]
    Stuck {
        /// What it does.
        state: &'static str,
        /// Where its log files are.
        log: PathBuf,
    },
    /// A directory or a file cannot be given to the service.
    #[error("cannot give the service access to {path}: {error}")]
    Access {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Anything else.
    #[error("cannot {action}: {error}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// What the system says.
        error: io::Error,
    },
}

impl ManageError {
    fn new(action: &'static str, error: windows_service::Error) -> Self {
        let error = match error {
            windows_service::Error::Winapi(error) => error,
            other => io::Error::other(other),
        };
        match error.raw_os_error().map(i32::cast_unsigned) {
            Some(ERROR_ACCESS_DENIED) => Self::NotAllowed { action },
            Some(ERROR_DUPLICATE_SERVICE_NAME) => Self::NameTaken,
            Some(ERROR_SERVICE_DISABLED) => Self::Disabled,
            Some(ERROR_SERVICE_DOES_NOT_EXIST) => Self::Missing,
            Some(ERROR_SERVICE_MARKED_FOR_DELETE) => Self::BeingRemoved,
            _ => Self::System { action, error },
        }
    }
}

/// Whether the system's answer has this number.
fn has_code(error: &windows_service::Error, number: u32) -> bool {
    matches!(error, windows_service::Error::Winapi(error) if error.raw_os_error() == Some(number.cast_signed()))
}

/// Installs this program as the service, with access to its configuration and its log files, and says what to do next.
/// With `configuration` the service reads that file.
///
/// # Errors
/// [`ManageError`]; then nothing is left behind but directories.
pub fn install(configuration: Option<&Path>) -> Result<String, ManageError> {
    let action = "install the service";
    let system = |error| ManageError::System { action, error };
    let executable_path = std::env::current_exe().map_err(system)?;
    // The service is started in another directory.
    let configuration = configuration.map(std::path::absolute).transpose().map_err(system)?;
    let launch_arguments = match &configuration {
        Some(path) => vec![OsString::from("--config"), path.into()],
        None => Vec::new(),
    };
    let access = ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE;
    let manager = manager(action, access)?;
    let info = ServiceInfo {
        name: NAME.into(),
        display_name: DISPLAY_NAME.into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: executable_path.clone(),
        launch_arguments,
        dependencies: Vec::new(),
        account_name: Some(ACCOUNT.into()),
        account_password: None,
    };
    let service = manager.create_service(&info, ServiceAccess::ALL_ACCESS);
    let service = service.map_err(|error| {
        if has_code(&error, ERROR_SERVICE_EXISTS) {
            ManageError::Exists { program: program(&manager) }
        } else {
            ManageError::new(action, error)
        }
    })?;
    let named = configuration
        .as_ref()
        .map(|path| format!(" --config \"{}\"", path.display()))
        .unwrap_or_default();
    let path = configuration.unwrap_or_else(|| DEFAULT_PATH.into());
    let notes = set_up(&service, &path).inspect_err(|_| {
        // Half a service would only stand in the way of the next try.
        let _ = service.delete();
        event_log::unregister();
    })?;
    let mut said = format!(
        "the service {NAME} is installed: it runs {} as {ACCOUNT}, from the next start of Windows on; its log files are \
         in {}\n",
        executable_path.display(),
        log_directory().display()
    );
    said.extend(notes.into_iter().map(|note| note + "\n"));
    said += &if path.exists() {
        "to start it now: aspia_relay --start\n".to_owned()
    } else {
        format!(
            "next: aspia_relay --create-config{named}, edit {}, then aspia_relay --start\n",
            path.display()
        )
    };
    Ok(said)
}

/// What the service is beside its name and its program. Gives what is worth saying.
fn set_up(service: &Service, configuration: &Path) -> Result<Vec<String>, ManageError> {
    let failed = |error| ManageError::new("set the service up", error);
    let mut notes = Vec::new();
    service.set_description(DESCRIPTION).map_err(failed)?;
    let restart = |delay| ServiceAction { action_type: ServiceActionType::Restart, delay };
    let actions = ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(FAILURE_RESET_PERIOD),
        reboot_msg: None,
        command: None,
        actions: Some(RESTARTS.map(restart).into()),
    };
    service.update_failure_actions(actions).map_err(failed)?;
    service.set_preshutdown_timeout(SHUTDOWN).map_err(failed)?;
    match access::limit_privileges(service) {
        Err(error) if error.raw_os_error() == Some(ERROR_INVALID_LEVEL.cast_signed()) => {
            notes.push(
                "this system cannot limit the privileges of a service; it keeps all of its account"
                    .into(),
            );
        }
        limited => limited.map_err(|error| failed(windows_service::Error::Winapi(error)))?,
    }
    let access = |path: &Path, result: io::Result<()>| {
        result.map_err(|error| ManageError::Access { path: path.to_owned(), error })
    };
    let log = log_directory();
    access(&log, access::log_directory(&log))?;
    // The default directory may be that of other Aspia programs, with secrets of theirs: then only the file is the
    // service's to read. Any user can make one there, and decide what is in it.
    if let Some(directory) =
        configuration.parent().filter(|_| configuration == Path::new(DEFAULT_PATH))
    {
        let result = match directory.exists() {
            true => access::check_directory(directory),
            false => access::make_configuration_directory(directory),
        };
        access(directory, result)?;
    }
    access(configuration, access::file(configuration))?;
    event_log::register().map_err(|error| ManageError::System {
        action: "register with the event log",
        error: io::Error::other(error.to_string()),
    })?;
    Ok(notes)
}

/// Lets the service read a file, whether or not there is the service yet.
///
/// # Errors
/// What the system says, or that the file is not to be trusted, in words.
pub fn let_read(path: &Path) -> io::Result<()> {
    access::file(path)
}

/// Removes the service. Configuration and log files stay.
///
/// # Errors
/// [`ManageError`]
pub fn remove() -> Result<String, ManageError> {
    let action = "remove the service";
    let service = open(action, ServiceAccess::QUERY_STATUS | ServiceAccess::DELETE)?;
    // One that is about to stop is gone once it has.
    let state = state(action, &service)?.current_state;
    if !matches!(state, ServiceState::Stopped | ServiceState::StopPending) {
        return Err(ManageError::Runs);
    }
    service.delete().map_err(|error| ManageError::new(action, error))?;
    event_log::unregister();
    Ok(format!(
        "the service {NAME} is removed; {DEFAULT_PATH} and the log files in {} stay\n",
        log_directory().display()
    ))
}

/// Starts the service, and returns when it runs.
///
/// # Errors
/// [`ManageError`]
pub fn start() -> Result<String, ManageError> {
    let action = "start the service";
    let service = open(action, ServiceAccess::QUERY_STATUS | ServiceAccess::START)?;
    // Somebody may have put the file there after the service was installed. Where this cannot be done, the relay says so.
    let _ = access::file(Path::new(DEFAULT_PATH));
    // It may be draining still.
    wait_while(ServiceState::StopPending, action, &service)?;
    match service.start::<&OsStr>(&[]) {
        Err(error) if has_code(&error, ERROR_SERVICE_ALREADY_RUNNING) => {}
        // Who asks may start it: it was opened for that.
        Err(error) if has_code(&error, ERROR_ACCESS_DENIED) => {
            let program = program(&manager(action, ServiceManagerAccess::CONNECT)?);
            return Err(ManageError::ProgramUnreadable { program });
        }
        started => started.map_err(|error| ManageError::new(action, error))?,
    }
    let status = wait_while(ServiceState::StartPending, action, &service)?;
    match status.current_state {
        ServiceState::Running => Ok(format!("the service {NAME} runs\n")),
        _ => Err(ManageError::Ended { exit: exit(status.exit_code), log: log_directory() }),
    }
}

/// Stops the service, and returns when it has stopped.
///
/// # Errors
/// [`ManageError`]
pub fn stop() -> Result<String, ManageError> {
    let action = "stop the service";
    let service = open(action, ServiceAccess::QUERY_STATUS | ServiceAccess::STOP)?;
    // It takes no orders before it runs.
    let status = wait_while(ServiceState::StartPending, action, &service)?;
    if status.current_state != ServiceState::StopPending {
        match service.stop() {
            Err(error) if has_code(&error, ERROR_SERVICE_NOT_ACTIVE) => {}
            stopped => {
                stopped.map_err(|error| ManageError::new(action, error))?;
            }
        }
    }
    match wait_while(ServiceState::StopPending, action, &service)?.current_state {
        ServiceState::Stopped => Ok(format!("the service {NAME} is stopped\n")),
        state => Err(ManageError::Stuck { state: state_name(state), log: log_directory() }),
    }
}

fn manager(
    action: &'static str,
    access: ServiceManagerAccess,
) -> Result<ServiceManager, ManageError> {
    ServiceManager::local_computer(None::<&OsStr>, access)
        .map_err(|error| ManageError::new(action, error))
}

fn open(action: &'static str, access: ServiceAccess) -> Result<Service, ManageError> {
    let service = manager(action, ServiceManagerAccess::CONNECT)?.open_service(NAME, access);
    service.map_err(|error| ManageError::new(action, error))
}

/// The program of the service that is there, in words.
fn program(manager: &ServiceManager) -> String {
    let config = manager
        .open_service(NAME, ServiceAccess::QUERY_CONFIG)
        .and_then(|service| service.query_config());
    config.map_or_else(
        |_| "a program that it does not name".to_owned(),
        |config| config.executable_path.display().to_string(),
    )
}

fn state(action: &'static str, service: &Service) -> Result<ServiceStatus, ManageError> {
    service.query_status().map_err(|error| ManageError::new(action, error))
}

/// Waits while the service is `pending`, as long as it gets on.
fn wait_while(
    pending: ServiceState,
    action: &'static str,
    service: &Service,
) -> Result<ServiceStatus, ManageError> {
    let (mut checkpoint, mut since) = (None, Instant::now());
    loop {
        let status = state(action, service)?;
        if status.current_state != pending {
            return Ok(status);
        }
        if checkpoint != Some(status.checkpoint) {
            (checkpoint, since) = (Some(status.checkpoint), Instant::now());
        }
        if since.elapsed() > status.wait_hint.max(STALL_LIMIT) {
            return Err(ManageError::Stuck { state: state_name(pending), log: log_directory() });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn exit(code: ServiceExitCode) -> String {
    match code {
        // The exit status that it would have had as a program.
        ServiceExitCode::ServiceSpecific(78) => {
            "exit status 78, a configuration that is missing or wrong".into()
        }
        ServiceExitCode::ServiceSpecific(status) => format!("exit status {status}"),
        ServiceExitCode::Win32(0) => "no error".into(),
        ServiceExitCode::Win32(code) => {
            format!("error {code}: {}", io::Error::from_raw_os_error(code.cast_signed()))
        }
    }
}

fn state_name(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Stopped => "stopped",
        ServiceState::StartPending => "starting",
        ServiceState::StopPending => "stopping",
        ServiceState::Running => "running",
        ServiceState::ContinuePending | ServiceState::PausePending | ServiceState::Paused => {
            "paused"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_administrator_can_mend_is_said() {
        let error = |number: u32| {
            let error = io::Error::from_raw_os_error(number.cast_signed());
            ManageError::new("do it", windows_service::Error::Winapi(error)).to_string()
        };
        for (number, advice) in [
            (ERROR_ACCESS_DENIED, "Run as administrator"),
            (ERROR_SERVICE_DOES_NOT_EXIST, "--install"),
            (ERROR_SERVICE_DISABLED, "sc config"),
            (ERROR_SERVICE_MARKED_FOR_DELETE, "services.msc"),
            (ERROR_DUPLICATE_SERVICE_NAME, "remove it first"),
        ] {
            assert!(error(number).contains(advice), "{}", error(number));
        }
        assert!(exit(ServiceExitCode::ServiceSpecific(78)).contains("configuration"));
    }
}
