//! The commands `--install`, `--remove`, `--start` and `--stop`.

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
/// The delay before the service is restarted after its first failure, its second, and each later one.
const RESTART_DELAYS: [Duration; 3] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(60)];
/// After this time without a failure, the next one counts as the first again.
const FAILURE_RESET_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// How long Windows waits for the service when it shuts down. This was the default of Windows before that became 10 s,
/// and the relay waits for `DrainTimeout`, which may be longer.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(180);
/// How often the state of a service that starts or stops is queried.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The longest wait without progress if the service does not report how long it will take.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Why a command for the service failed.
#[derive(Debug, thiserror::Error)]
pub enum ManageError {
    /// The user is not an administrator.
    #[error(
        "administrator rights are needed to {action}: use a Command Prompt or PowerShell that was started with \
         \"Run as administrator\""
    )]
    NotAllowed {
        /// What was to be done.
        action: &'static str,
    },
    /// The service already exists.
    #[error(
        "the service {NAME} is already installed and runs {program}; to reinstall it, stop and remove it first \
         (aspia_relay --stop, aspia_relay --remove; the original's by its own uninstaller)"
    )]
    Exists {
        /// The command that it runs.
        program: String,
    },
    /// Another service has the same display name.
    #[error(
        "another service already has the display name \"{DISPLAY_NAME}\"; remove it first (services.msc shows it)"
    )]
    NameTaken,
    /// The service does not exist.
    #[error("the service {NAME} is not installed; install it with aspia_relay --install")]
    Missing,
    /// The service is marked for deletion.
    #[error(
        "the service {NAME} is being removed, but another program still has it open: close services.msc and the Task \
         Manager, and try again; a restart of Windows removes it in any case"
    )]
    BeingRemoved,
    /// The service is running.
    #[error("the service {NAME} is running; stop it first: aspia_relay --stop")]
    Running,
    /// The account of the service cannot run the program.
    #[error(
        "the service's account, {ACCOUNT}, cannot run {program}: move the program to a directory that every user can read \
         (C:\\Program Files), or grant access: icacls FILE /grant \"{ACCOUNT}:RX\""
    )]
    ProgramUnreadable {
        /// The command that it runs.
        program: String,
    },
    /// The service is disabled.
    #[error("the service {NAME} is disabled; enable it first: sc config {NAME} start= auto")]
    Disabled,
    /// The service ended at once.
    #[error(
        "the service {NAME} ended at once, with {exit}. The reason is in the Event Viewer (Windows Logs, Application, \
         source {NAME}) and in the newest file in {log}; aspia_relay --check-config checks the configuration"
    )]
    Ended {
        /// How it ended.
        exit: String,
        /// Where its log files are.
        log: PathBuf,
    },
    /// The service makes no progress.
    #[error(
        "the service {NAME} is {state} and makes no progress; its log files in {log} may say why"
    )]
    Stuck {
        /// Its state.
        state: &'static str,
        /// Where its log files are.
        log: PathBuf,
    },
    /// The service cannot be given access to a directory or file.
    #[error("cannot give the service access to {path}: {error}")]
    Access {
        /// The directory or file.
        path: PathBuf,
        /// Why access cannot be given.
        error: io::Error,
    },
    /// Any other error.
    #[error("cannot {action}: {error}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// The system's error.
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

/// Whether the system's error has this code.
fn has_code(error: &windows_service::Error, number: u32) -> bool {
    matches!(error, windows_service::Error::Winapi(error) if error.raw_os_error() == Some(number.cast_signed()))
}

/// Installs this program as the service, with access to its configuration and log files. With `configuration` the
/// service reads that file. Returns what to tell the administrator, including what to do next.
///
/// # Errors
/// [`ManageError`]; nothing but directories is left behind in this case.
pub fn install(configuration: Option<&Path>) -> Result<String, ManageError> {
    let action = "install the service";
    let system = |error| ManageError::System { action, error };
    let executable_path = std::env::current_exe().map_err(system)?;
    // The service is started in another working directory.
    let configuration = configuration.map(std::path::absolute).transpose().map_err(system)?;
    let launch_arguments = match &configuration {
        Some(path) => vec![OsString::from("--config"), path.into()],
        None => Vec::new(),
    };
    let access = ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE;
    let manager = open_manager(action, access)?;
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
            ManageError::Exists { program: find_installed_program(&manager) }
        } else {
            ManageError::new(action, error)
        }
    })?;
    let config_option = configuration
        .as_ref()
        .map(|path| format!(" --config \"{}\"", path.display()))
        .unwrap_or_default();
    let path = configuration.unwrap_or_else(|| DEFAULT_PATH.into());
    let notes = set_up(&service, &path).inspect_err(|_| {
        // A half-installed service would only be in the way of the next attempt.
        let _ = service.delete();
        event_log::unregister();
    })?;
    let mut message = format!(
        "the service {NAME} is installed: it runs {} as {ACCOUNT}, from the next start of Windows on; its log files are \
         in {}\n",
        executable_path.display(),
        log_directory().display()
    );
    message.extend(notes.into_iter().map(|note| note + "\n"));
    message += &if path.exists() {
        "to start it now: aspia_relay --start\n".to_owned()
    } else {
        format!(
            "next: aspia_relay --create-config{config_option}, edit {}, then aspia_relay --start\n",
            path.display()
        )
    };
    Ok(message)
}

/// Sets up everything but the name and program of the service. Returns what to tell the administrator about it.
fn set_up(service: &Service, configuration: &Path) -> Result<Vec<String>, ManageError> {
    let failed = |error| ManageError::new("set the service up", error);
    let mut notes = Vec::new();
    service.set_description(DESCRIPTION).map_err(failed)?;
    let restart = |delay| ServiceAction { action_type: ServiceActionType::Restart, delay };
    let actions = ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(FAILURE_RESET_PERIOD),
        reboot_msg: None,
        command: None,
        actions: Some(RESTART_DELAYS.map(restart).into()),
    };
    service.update_failure_actions(actions).map_err(failed)?;
    service.set_preshutdown_timeout(SHUTDOWN_TIMEOUT).map_err(failed)?;
    match access::limit_privileges(service) {
        Err(error) if error.raw_os_error() == Some(ERROR_INVALID_LEVEL.cast_signed()) => {
            notes.push(
                "this system cannot limit the privileges of a service; it keeps those of its account"
                    .into(),
            );
        }
        limited => limited.map_err(|error| failed(windows_service::Error::Winapi(error)))?,
    }
    let access = |path: &Path, result: io::Result<()>| {
        result.map_err(|error| ManageError::Access { path: path.to_owned(), error })
    };
    let log = log_directory();
    access(&log, access::prepare_log_directory(&log))?;
    // The default directory may belong to other Aspia programs and hold their secrets; the service may then read only
    // the file. Any user can create a directory there, and decide what is in it.
    if let Some(directory) =
        configuration.parent().filter(|_| configuration == Path::new(DEFAULT_PATH))
    {
        let result = match directory.exists() {
            true => access::check_directory(directory),
            false => access::make_configuration_directory(directory),
        };
        access(directory, result)?;
    }
    access(configuration, access::let_service_read(configuration))?;
    event_log::register().map_err(|error| ManageError::System {
        action: "register with the event log",
        error: io::Error::other(error.to_string()),
    })?;
    Ok(notes)
}

/// Lets the service read a file, whether or not the service is installed yet.
///
/// # Errors
/// The system's error, or why the file is not trusted.
pub fn let_service_read(path: &Path) -> io::Result<()> {
    access::let_service_read(path)
}

/// Removes the service. Configuration and log files stay.
///
/// # Errors
/// [`ManageError`]
pub fn remove() -> Result<String, ManageError> {
    let action = "remove the service";
    let service = open_service(action, ServiceAccess::QUERY_STATUS | ServiceAccess::DELETE)?;
    // A service that is stopping is removed once it has stopped.
    let state = query_status(action, &service)?.current_state;
    if !matches!(state, ServiceState::Stopped | ServiceState::StopPending) {
        return Err(ManageError::Running);
    }
    service.delete().map_err(|error| ManageError::new(action, error))?;
    event_log::unregister();
    Ok(format!(
        "the service {NAME} is removed; {DEFAULT_PATH} and the log files in {} stay\n",
        log_directory().display()
    ))
}

/// Starts the service, and waits until it runs.
///
/// # Errors
/// [`ManageError`]
pub fn start() -> Result<String, ManageError> {
    let action = "start the service";
    let service = open_service(action, ServiceAccess::QUERY_STATUS | ServiceAccess::START)?;
    // The file may have been created after the service was installed. If the grant fails, the relay reports that it
    // cannot read the file.
    let _ = access::let_service_read(Path::new(DEFAULT_PATH));
    // The service may still be draining.
    wait_while(ServiceState::StopPending, action, &service)?;
    match service.start::<&OsStr>(&[]) {
        Err(error) if has_code(&error, ERROR_SERVICE_ALREADY_RUNNING) => {}
        // It is not the caller who lacks rights, since the service was opened for starting.
        Err(error) if has_code(&error, ERROR_ACCESS_DENIED) => {
            let program =
                find_installed_program(&open_manager(action, ServiceManagerAccess::CONNECT)?);
            return Err(ManageError::ProgramUnreadable { program });
        }
        started => started.map_err(|error| ManageError::new(action, error))?,
    }
    let status = wait_while(ServiceState::StartPending, action, &service)?;
    match status.current_state {
        ServiceState::Running => Ok(format!("the service {NAME} runs\n")),
        _ => {
            Err(ManageError::Ended { exit: describe_exit(status.exit_code), log: log_directory() })
        }
    }
}

/// Stops the service, and waits until it has stopped.
///
/// # Errors
/// [`ManageError`]
pub fn stop() -> Result<String, ManageError> {
    let action = "stop the service";
    let service = open_service(action, ServiceAccess::QUERY_STATUS | ServiceAccess::STOP)?;
    // A service accepts no controls while it starts.
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

fn open_manager(
    action: &'static str,
    access: ServiceManagerAccess,
) -> Result<ServiceManager, ManageError> {
    ServiceManager::local_computer(None::<&OsStr>, access)
        .map_err(|error| ManageError::new(action, error))
}

fn open_service(action: &'static str, access: ServiceAccess) -> Result<Service, ManageError> {
    let service = open_manager(action, ServiceManagerAccess::CONNECT)?.open_service(NAME, access);
    service.map_err(|error| ManageError::new(action, error))
}

/// The program of the installed service.
fn find_installed_program(manager: &ServiceManager) -> String {
    let config = manager
        .open_service(NAME, ServiceAccess::QUERY_CONFIG)
        .and_then(|service| service.query_config());
    config.map_or_else(
        |_| "an unknown program".to_owned(),
        |config| config.executable_path.display().to_string(),
    )
}

fn query_status(action: &'static str, service: &Service) -> Result<ServiceStatus, ManageError> {
    service.query_status().map_err(|error| ManageError::new(action, error))
}

/// Waits while the service is `pending`, as long as it makes progress.
fn wait_while(
    pending: ServiceState,
    action: &'static str,
    service: &Service,
) -> Result<ServiceStatus, ManageError> {
    let (mut checkpoint, mut since) = (None, Instant::now());
    loop {
        let status = query_status(action, service)?;
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

fn describe_exit(code: ServiceExitCode) -> String {
    match code {
        // The exit status that the relay would have had in the foreground.
        ServiceExitCode::ServiceSpecific(78) => {
            "exit status 78, a missing or invalid configuration".into()
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
    fn errors_tell_the_administrator_what_to_do() {
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
        assert!(describe_exit(ServiceExitCode::ServiceSpecific(78)).contains("configuration"));
    }
}
