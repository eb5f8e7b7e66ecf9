//! Starts the relay: log, traces, configuration, checks of the machine, worker threads; then runs it until it has
//! stopped.

mod configuration;
mod control;

use std::io;
use std::net::{IpAddr, TcpListener};

use tokio::sync::mpsc::Receiver;
use tracing::{error, info, warn};

#[cfg(target_os = "linux")]
use crate::admin::command_socket;
use crate::app::{App, DataPlane, Listeners, Stopped, machine};
use crate::config::sources::Sources;
use crate::config::{LoadedConfig, StartupConfig};
use crate::exit::{self, ExitError, ExitResult};
use crate::handover::takeover::Takeover;
use crate::log::{self, LogGuard, LogHandle, LogSettings};
use crate::open_files;
#[cfg(windows)]
use crate::service::{self, control as service_control};
#[cfg(unix)]
use crate::signals;
use crate::signals::ControlRequest;
#[cfg(unix)]
use crate::systemd;
use crate::trace::settings::TraceSettings;
use crate::trace::{self, TraceExport};
use crate::workers::Workers;

/// Runs the relay: as the service if the service manager has started this process, otherwise in the foreground.
///
/// # Errors
/// The relay cannot start, or fails.
#[cfg(windows)]
pub fn run(sources: &Sources) -> ExitResult {
    let log_settings = LogSettings::from_environment(&sources.environment);
    let service = {
        let sources = sources.clone();
        let log_settings = log_settings.clone().without_stderr(service::log_directory());
        move || {
            let requests = service_control::receive_requests;
            run_relay(&sources, &log_settings, Listeners::default(), requests)
        }
    };
    match service_control::run(service) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let requests = service_control::receive_requests;
            run_relay(sources, &log_settings, Listeners::default(), requests)
        }
        Err(error) => Err(ExitError::failure(format_args!("cannot run as a service: {error}"))),
    }
}

/// Runs the relay in the foreground.
///
/// # Errors
/// The relay cannot start, or fails.
#[cfg(unix)]
pub fn run(sources: &Sources) -> ExitResult {
    // Before anything else is opened: inherited sockets are known by their descriptor numbers.
    let peers = systemd::take_listener().map_err(ExitError::failure)?;
    let listeners = Listeners { peers, ..Listeners::default() };
    let signals = signals::listen().map_err(|error| signal_error(&error))?;
    let log_settings = LogSettings::from_environment(&sources.environment);
    run_relay(sources, &log_settings, listeners, || Ok(signals.into_requests()))
}

fn signal_error(error: &io::Error) -> ExitError {
    ExitError::failure(format_args!("cannot listen for signals: {error}"))
}

/// Runs the relay from the start of its log to the last line. `listeners` are sockets from the service manager;
/// `requests` is called within a runtime.
fn run_relay(
    sources: &Sources,
    log_settings: &LogSettings,
    listeners: Listeners,
    requests: impl FnOnce() -> io::Result<Receiver<ControlRequest>>,
) -> ExitResult {
    let (exporting, warnings) = start_traces(sources);
    let spans = exporting.as_ref().and_then(TraceExport::layer);
    let guard = log_settings.start(spans).map_err(ExitError::failure)?;
    for warning in warnings {
        warn!("{warning}");
    }
    if let Some(exporting) = &exporting {
        info!("traces go to {}", exporting.endpoint());
    }
    let result = run_logged(sources, listeners, log_settings.handle(), exporting, requests);
    finish_log(result, log_settings, guard)
}

/// Logs the failure of a program that ends, if it has failed, and writes the rest of the log.
pub(crate) fn finish_log(
    mut result: ExitResult,
    settings: &LogSettings,
    guard: LogGuard,
) -> ExitResult {
    if let Err(error) = &mut result {
        // Logged while there is a log. If the log does not reach stderr, the message is written to stderr at the end.
        error!(target: log::FATAL, "{}", error.message);
        error.is_reported = settings.has_fatal_on_stderr();
    }
    let is_written = exit::run_with_timeout(move || guard.finish()) == Some(true);
    if let Err(error) = &mut result {
        error.is_reported &= is_written;
    }
    result
}

/// Starts the export of traces if the environment asks for it, and returns warnings about its settings.
fn start_traces(sources: &Sources) -> (Option<TraceExport>, Vec<String>) {
    let mut warnings = Vec::new();
    let settings = TraceSettings::from_environment(&sources.environment, &mut warnings);
    let exporting = settings.and_then(|settings| match trace::start(&settings) {
        Ok(exporting) => Some(exporting),
        Err(error) => {
            warnings.push(format!("there are no traces: {error}"));
            None
        }
    });
    (exporting, warnings)
}

fn run_logged(
    sources: &Sources,
    listeners: Listeners,
    log: LogHandle,
    exporting: Option<TraceExport>,
    requests: impl FnOnce() -> io::Result<Receiver<ControlRequest>>,
) -> ExitResult {
    let loaded = configuration::load(sources)?;
    let mut warnings = machine::prepare(&loaded.config);
    warnings.extend(describe_override(&listeners, &loaded.config.startup));
    for warning in warnings {
        warn!("{warning}");
    }
    // After the limit on open files was raised, since there may be thousands of sessions.
    #[cfg(target_os = "linux")]
    let takeover = Takeover::open(&loaded.config);
    #[cfg(not(target_os = "linux"))]
    let takeover = Takeover::default();
    let thread_error =
        |error| ExitError::failure(format_args!("cannot start the worker threads: {error}"));
    let data_plane = start_data_plane(&loaded).map_err(thread_error)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(thread_error)?;
    let result = runtime.block_on(async {
        let tracer = exporting.as_ref().map(TraceExport::tracer).unwrap_or_default();
        let app = App::take_over(takeover, loaded, listeners, log, tracer, data_plane)
            .map_err(ExitError::failure)?;
        run_app(app, sources, exporting, requests).await
    });
    // A resolver that does not answer, or a file that hangs, blocks a thread of the runtime, which must not keep the
    // program alive.
    runtime.shutdown_background();
    result
}

fn start_data_plane(loaded: &LoadedConfig) -> io::Result<DataPlane> {
    let (count, warning) = open_files::count_workers(&loaded.config);
    if let Some(warning) = warning {
        warn!("{warning}");
    }
    let workers = Workers::start(count)?;
    Ok(DataPlane { max_pipes: open_files::max_pipes(count), ..DataPlane::on(workers) })
}

/// Lets commands on this machine find the relay.
#[cfg(target_os = "linux")]
fn accept_commands(app: App, sources: &Sources) -> App {
    match command_socket::publish(sources, app.address().port()) {
        Ok(listener) => app.with_commands(listener),
        Err(error) => {
            info!("commands find this relay by its configuration only: {error}");
            app
        }
    }
}

/// Returns the relay as it is: commands find it by its configuration.
#[cfg(not(target_os = "linux"))]
fn accept_commands(app: App, _sources: &Sources) -> App {
    app
}

async fn run_app(
    app: App,
    sources: &Sources,
    exporting: Option<TraceExport>,
    requests: impl FnOnce() -> io::Result<Receiver<ControlRequest>>,
) -> ExitResult {
    let handle = app.handle();
    let app = accept_commands(app, sources);
    let requests = requests().map_err(|error| signal_error(&error))?;
    let control = tokio::spawn(control::serve(handle.clone(), requests));
    let stopped = app.run().await.map_err(ExitError::failure);
    if let Ok(Stopped::TimedOut) = stopped {
        warn!("DrainTimeout expired before all sessions had ended");
    }
    if let Some(exporting) = exporting {
        let time = match stopped {
            Ok(Stopped::HandedOver) => trace::HAND_OVER_TIMEOUT,
            _ => trace::SHUTDOWN_TIMEOUT,
        };
        // Requests are still served: a second signal does not wait for a collector.
        exporting.finish(time, handle.stopping().cancelled()).await;
    }
    control.abort();
    stopped.map(drop)
}

/// Describes the settings that the socket from the service manager overrides, as a warning.
fn describe_override(listeners: &Listeners, startup: &StartupConfig) -> Option<String> {
    let address = listeners.peers.as_ref().map(TcpListener::local_addr)?.ok()?;
    let is_other = |interface: IpAddr| interface != address.ip().to_canonical();
    let differs =
        address.port() != startup.listen_port || startup.listen_interface.is_some_and(is_other);
    differs.then(|| {
        format!(
            "the socket of the service manager listens on {address}, whatever ListenPort and ListenInterface say; \
             aspia-relay.socket decides"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::config;

    #[test]
    fn an_inherited_socket_that_differs_from_the_settings_is_reported() {
        let peers = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = peers.local_addr().unwrap().port();
        let listeners = Listeners { peers: Some(peers), ..Listeners::default() };
        let startup = |interface: &str, port: u16| {
            let settings = [("LISTEN_INTERFACE", interface), ("LISTEN_PORT", &port.to_string())];
            config(&settings).startup
        };
        assert_eq!(describe_override(&listeners, &startup("127.0.0.1", port)), None);
        assert_eq!(describe_override(&listeners, &startup("", port)), None);
        let other_port = describe_override(&listeners, &startup("127.0.0.1", port ^ 1)).unwrap();
        assert!(other_port.contains(&format!("127.0.0.1:{port}")), "{other_port}");
        assert!(describe_override(&listeners, &startup("127.0.0.2", port)).is_some());
        assert_eq!(describe_override(&Listeners::default(), &startup("", 1)), None);
    }
}
