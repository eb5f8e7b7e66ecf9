//! `--create-config`: writes the default configuration file.

use std::path::Path;

use crate::config;
use crate::config::sources::{DEFAULT_PATH, Sources};
use crate::exit::{ExitError, ExitResult};
use crate::printable;
#[cfg(windows)]
use crate::service::manage::let_service_read;
#[cfg(unix)]
use crate::systemd::let_service_read;

use super::output;

pub(super) fn run(sources: &Sources) -> ExitResult {
    let path = sources.path.as_path();
    config::create_default_file(path).map_err(|error| {
        ExitError::failure(format_args!("{error}{}", error.advice(sources.is_in_container())))
    })?;
    let shown = printable::escape_line(&path.display().to_string());
    // On Unix a file in another place need not be for the service; on Windows the service may use any file.
    if (path == Path::new(DEFAULT_PATH) || cfg!(windows))
        && let Err(error) = let_service_read(path)
    {
        output::note(format_args!("warning: the service may not be able to read {shown}: {error}"));
    }
    output::write(&format!(
        "{shown} is written; set RouterAddress, RouterPublicKey and PeerAddress in it\n"
    ))
}
