//! Runs the work of a command until it is done or the process is asked to stop.

use tokio::runtime::Runtime;

use crate::exit::ExitError;
use crate::signals;

/// Runs `work` on the runtime until it is done or the process is asked to stop, which yields `None`. Without this the
/// first process of a container would ignore SIGTERM.
pub(super) fn run_until_stopped<T>(
    runtime: &Runtime,
    work: impl Future<Output = T>,
) -> Result<Option<T>, ExitError> {
    let stop = {
        let _context = runtime.enter();
        signals::stop_requested().map_err(|error| {
            ExitError::failure(format_args!("cannot listen for signals: {error}"))
        })?
    };
    Ok(runtime.block_on(async {
        tokio::select! {
            result = work => Some(result),
            () = stop => None,
        }
    }))
}
