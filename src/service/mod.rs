//! The Windows service: the commands that install, remove, start and stop it, and its entry point for the service
//! control manager. Only this module uses Windows' service manager, event log and permissions; it does not exist on
//! other systems.
//!
//! The service runs under a virtual account, `NT SERVICE\aspia-relay`, which Windows creates with the service: it has no
//! password, nobody can log on with it, and permissions can name this one service, whereas files of `LocalService` are
//! shared with every service that runs under it. Of the privileges of a service account, the service keeps only the one
//! that is needed to open files in directories that it may not list.

pub mod access;
pub mod control;
pub mod event_log;
pub mod manage;

use std::path::PathBuf;

/// The name of the service, and of its events in the event log.
pub const NAME: &str = "aspia-relay";
/// The name that lists of services show.
pub const DISPLAY_NAME: &str = "Aspia Relay Service";
/// The account that the service runs under.
pub const ACCOUNT: &str = r"NT SERVICE\aspia-relay";

/// The directory that Windows is installed in.
fn system_root() -> PathBuf {
    std::env::var_os("SystemRoot")
        .filter(|path| !path.is_empty())
        .map_or_else(|| r"C:\Windows".into(), PathBuf::from)
}

/// The directory of the service's log files: the documented one, whatever the temporary directory of its account is.
pub fn log_directory() -> PathBuf {
    system_root().join("Temp").join("aspia")
}
