//! What is shown of the running relay, once or again and again.

use tokio::task::spawn_blocking;

use crate::cli::{OutputFormat, RelayReport};
use crate::command::output;
use crate::exit::{ExitError, ExitResult};

use super::client::RelayClient;
use super::session_table;
use super::status_screen;

/// What the running relay answers, as text for people or as JSON.
pub(super) async fn show(
    client: &RelayClient,
    view: &RelayReport,
    format: OutputFormat,
) -> Result<String, String> {
    match view {
        RelayReport::Status => status_screen::show(client, format).await,
        RelayReport::Sessions { sort, filter } => {
            session_table::show(client, *sort, filter.as_deref(), format).await
        }
    }
}

/// Writes to stdout without blocking the runtime, which has to notice signals.
pub(super) async fn print(text: String) -> ExitResult {
    let written = spawn_blocking(move || output::write(&text)).await;
    written.unwrap_or_else(|error| Err(ExitError::failure(error)))
}
