//! The Windows service: what installs, removes, starts and stops it, and what it is when the service manager has
//! started it. The only place that knows Windows' service manager, its event log and its permissions; there is
//! none of it on other systems.
//!
//! The service runs under a virtual account, `NT SERVICE\aspia-relay`, which Windows makes with the service: it has no
//! password, nobody can log on with it, and permissions can name this one service. `LocalService` would share its
//! files with every other service that runs under it. Of the privileges of an account for services it keeps the one
//! without which nothing can be opened in a directory of somebody else's.

pub mod access;
pub mod control;
pub mod event_log;
pub mod manage;

use std::path::PathBuf;

/// The name of the service, and of its events in the event log.
pub const NAME: &str = "aspia-relay";
/// What lists of services show.
pub const DISPLAY_NAME: &str = "Aspia Relay Service";
/// What it runs as.
pub const ACCOUNT: &str = r"NT SERVICE\aspia-relay";

/// Where Windows is.
fn system_root() -> PathBuf {
    std::env::var_os("SystemRoot")
        .filter(|path| !path.is_empty())
        .map_or_else(|| r"C:\Windows".into(), PathBuf::from)
}

/// Where the service's log files are: as documented, whatever the temporary directory of its account is.
pub fn log_directory() -> PathBuf {
    system_root().join("Temp").join("aspia")
}
