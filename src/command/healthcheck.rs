//! `--healthcheck`: asks the relay that runs here whether it is alive or ready.

use tokio::runtime::Builder;

use crate::admin::client;
use crate::cli::Probe;
use crate::config;
use crate::config::sources::Sources;
use crate::exit::{ExitError, ExitResult};

pub(super) fn run(sources: &Sources, probe: Probe) -> ExitResult {
    let load = {
        let sources = sources.clone();
        move || {
            let loaded = config::load(&sources);
            loaded.map(|loaded| loaded.config).map_err(|invalid| invalid.describe())
        }
    };
    let runtime = Builder::new_current_thread().enable_all().build().map_err(ExitError::failure)?;
    let outcome = runtime.block_on(client::check_health(sources, load, probe));
    // A file that hangs blocks a thread of the runtime, which must not keep the program alive.
    runtime.shutdown_background();
    outcome.map_err(ExitError::failure)
}
