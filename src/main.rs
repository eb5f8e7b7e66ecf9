//! `aspia_relay`: from arguments to an exit status.

use std::path::Path;
use std::process::ExitCode;

use aspia_relay::app::{App, Handle, Stopped};
use aspia_relay::cli::Arguments;
use aspia_relay::config::settings::{self, Reload};
use aspia_relay::config::sources::Sources;
use aspia_relay::config::{self, Loaded};
use aspia_relay::log::{self, LogSettings};
use clap::Parser;
use tracing::{error, info, warn};

/// Could not start, or failed.
const FAILED: u8 = 1;
/// Wrong usage; clap uses the same.
const USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.h.
const CONFIGURATION: u8 = 78;

#[expect(clippy::print_stderr, reason = "it must be seen whatever the log settings are")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err((status, message)) => {
            eprintln!("aspia_relay: {message}");
            ExitCode::from(status)
        }
    }
}

type Outcome = Result<(), (u8, String)>;

fn run(arguments: &Arguments) -> Outcome {
    if let Some((argument, instead)) = arguments.windows_only() {
        return Err((USAGE, format!("{argument} is for Windows; here use: {instead}")));
    }
    let sources = Sources::of_process(arguments.config.clone());
    if arguments.create_config {
        create_config(&sources.path)
    } else if arguments.check_config {
        check_config(&sources, arguments.json)
    } else {
        relay(&sources)
    }
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
fn create_config(path: &Path) -> Outcome {
    config::create_default(path).map_err(|error| (FAILED, error.to_string()))?;
    println!(
        "{} is written; set RouterAddress, RouterPublicKey and PeerAddress in it",
        path.display()
    );
    Ok(())
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the answer of a command")]
fn check_config(sources: &Sources, json: bool) -> Outcome {
    let (report, result) = match config::load(sources) {
        Ok(loaded) => (loaded.report, Ok(())),
        Err(invalid) => {
            let problems = describe(&invalid);
            (invalid.0, Err((CONFIGURATION, problems)))
        }
    };
    if json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.table());
        for warning in &report.warnings {
            eprintln!("aspia_relay: warning: {warning}");
        }
    }
    result
}

fn describe(invalid: &config::Invalid) -> String {
    let mut text = format!("{invalid}:");
    for problem in &invalid.0.problems {
        text.push_str(&format!("\n  {problem}"));
    }
    text
}

fn relay(sources: &Sources) -> Outcome {
    let log_settings = LogSettings::from_environment(&sources.environment);
    let guards = log_settings.start().map_err(|error| (FAILED, error.to_string()))?;
    let outcome = start(sources);
    if let Err((_, message)) = &outcome {
        // Into the log while there is one; `main` says it on stderr.
        error!(target: log::FATAL, "{message}");
    }
    drop(guards);
    outcome
}

fn start(sources: &Sources) -> Outcome {
    let Loaded { config, report } =
        config::load(sources).map_err(|invalid| (CONFIGURATION, describe(&invalid)))?;
    for warning in &report.warnings {
        warn!("{warning}");
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if config.startup.worker_threads > 0 {
        runtime.worker_threads(config.startup.worker_threads);
    }
    let runtime = runtime
        .enable_all()
        .build()
        .map_err(|error| (FAILED, format!("cannot start the worker threads: {error}")))?;
    runtime.block_on(async {
        let app = App::bind(config, None).map_err(|error| (FAILED, error.to_string()))?;
        let signals = signals(app.handle(), sources.clone(), report)
            .map_err(|error| (FAILED, format!("cannot listen for signals: {error}")))?;
        let signals = tokio::spawn(signals);
        let stopped = app.run().await.map_err(|error| (FAILED, error.to_string()))?;
        signals.abort();
        if stopped == Stopped::TimedOut {
            warn!("DrainTimeout was over before all sessions had ended");
        }
        Ok(())
    })
}

/// SIGTERM and SIGINT stop, the second at once; SIGHUP reads the configuration again. From the return on, no
/// signal is missed.
#[cfg(unix)]
fn signals(
    handle: Handle,
    sources: Sources,
    mut report: config::report::Report,
) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => stop(&handle, "SIGTERM"),
                _ = interrupt.recv() => stop(&handle, "SIGINT"),
                _ = hangup.recv() => reload(&handle, &sources, &mut report).await,
            }
        }
    })
}

/// Ctrl-C stops, the second at once.
#[cfg(not(unix))]
fn signals(
    handle: Handle,
    _sources: Sources,
    _report: config::report::Report,
) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    Ok(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            stop(&handle, "Ctrl-C");
        }
    })
}

fn stop(handle: &Handle, signal: &str) {
    if handle.is_draining() {
        info!("{signal}: stopping at once");
        handle.stop();
    } else {
        info!("{signal}: stopping");
        handle.drain();
    }
}

#[cfg(unix)]
async fn reload(handle: &Handle, sources: &Sources, report: &mut config::report::Report) {
    let read = sources.clone();
    let loaded = tokio::task::spawn_blocking(move || config::load(&read)).await;
    let loaded = match loaded {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(invalid)) => {
            error!("SIGHUP: nothing is changed, {}", describe(&invalid));
            return;
        }
        Err(error) => {
            error!(%error, "SIGHUP: nothing is changed, the configuration could not be read");
            return;
        }
    };
    for warning in &loaded.report.warnings {
        warn!("{warning}");
    }
    let waiting = handle.reload(&loaded.config);
    let value = |report: &config::report::Report, key| {
        report.settings.iter().find(|line| line.key == key).map(|line| line.value.clone())
    };
    let changed: Vec<&str> = settings::SETTINGS
        .iter()
        .filter(|setting| setting.reload != Reload::Restart)
        .map(|setting| setting.key)
        .filter(|&key| value(report, key) != value(&loaded.report, key) && !waiting.contains(&key))
        .collect();
    info!("SIGHUP: the configuration was read; changed: [{}]", changed.join(", "));
    if !waiting.is_empty() {
        warn!("SIGHUP: a restart is needed for: {}", waiting.join(", "));
    }
    *report = loaded.report;
}
