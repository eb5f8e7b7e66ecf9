//! `--install`, `--remove`, `--start` and `--stop`: commands for the service manager of Windows.

use crate::cli::ServiceAction;
use crate::config::sources::Sources;
use crate::exit::{ExitError, ExitResult};

#[cfg(windows)]
pub(super) fn run(sources: &Sources, action: ServiceAction) -> ExitResult {
    use crate::service::manage;

    let done = match action {
        // A path that was named is fixed at the installation: the environment of the service must not change it.
        ServiceAction::Install => {
            manage::install(sources.is_path_explicit.then_some(sources.path.as_path()))
        }
        ServiceAction::Remove => manage::remove(),
        ServiceAction::Start => manage::start(),
        ServiceAction::Stop => manage::stop(),
    };
    done.map_err(ExitError::failure).and_then(|message| super::output::write(&message))
}

/// Returns a usage error that names the command to use instead.
#[cfg(not(windows))]
pub(super) fn run(_sources: &Sources, action: ServiceAction) -> ExitResult {
    Err(ExitError::usage(format_args!(
        "{} is for Windows; here use: {}",
        action.option(),
        action.systemctl()
    )))
}
