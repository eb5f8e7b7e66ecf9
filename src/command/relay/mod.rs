//! `--status`, `--sessions`, `--end-session`, `--drain`, `--reload` and `--log-level`: show and control the relay that runs
//! here.

mod action;
mod client;
mod columns;
mod remedy;
mod session_table;
mod show;
mod status_screen;
mod units;
mod watch;

use tokio::runtime::Builder;

use crate::cli::{OutputFormat, RelayAction};
use crate::config::sources::Sources;
use crate::exit::{ExitError, ExitResult};

use super::interrupt::run_until_stopped;

use client::RelayClient;
use show::{print, show};

pub(super) fn run(sources: &Sources, action: &RelayAction, format: OutputFormat) -> ExitResult {
    let client = RelayClient::new(sources);
    let runtime = Builder::new_current_thread().enable_all().build().map_err(ExitError::failure)?;
    let done = run_until_stopped(&runtime, perform(&client, action, format));
    // A file that hangs, or a reader of stdout that does not read, blocks a thread of the runtime, which must not keep the
    // program alive.
    runtime.shutdown_background();
    match (done?, action) {
        (Some(result), _) => result,
        // That is how watching ends.
        (None, RelayAction::Show { interval: Some(_), .. }) => Ok(()),
        (None, _) => Err(ExitError::failure("stopped before the relay answered")),
    }
}

async fn perform(client: &RelayClient, action: &RelayAction, format: OutputFormat) -> ExitResult {
    match action {
        RelayAction::Show { view, interval: None } => {
            let text = show(client, view, format).await.map_err(ExitError::failure)?;
            print(text).await
        }
        RelayAction::Show { view, interval: Some(interval) } => {
            watch::run(client, view, *interval, format).await
        }
        action => {
            let text = action::perform(client, action, format).await.map_err(ExitError::failure)?;
            print(text).await
        }
    }
}
