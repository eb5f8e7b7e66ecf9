//! `aspia_relay`: from arguments to an exit status.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use aspia_relay::admin::client;
#[cfg(target_os = "linux")]
use aspia_relay::admin::local;
use aspia_relay::app::{App, Engine, Listeners, Stopped};
use aspia_relay::cli::{Arguments, Probe};
use aspia_relay::config::report::Report;
use aspia_relay::config::settings::{self, Reload};
use aspia_relay::config::sources::{DEFAULT_PATH, Sources};
use aspia_relay::config::{self, Config, exposed};
use aspia_relay::doctor::{self, Surroundings};
use aspia_relay::handle::{Handle, Reloaded, StopStep};
use aspia_relay::heap;
use aspia_relay::log::{self, LogHandle, LogSettings};
use aspia_relay::node::{AddressSource, Cluster, NodeError, Pace, SERVICE_ACCOUNT};
#[cfg(windows)]
use aspia_relay::service::{
    self,
    control::{self, Failed},
    manage::{self, let_read as let_service_read},
};
#[cfg(unix)]
use aspia_relay::signals;
use aspia_relay::signals::Command;
#[cfg(unix)]
use aspia_relay::systemd::{self, let_read as let_service_read};
use aspia_relay::trace::settings::TraceSettings;
use aspia_relay::trace::{self, Exporting};
use aspia_relay::workers::Workers;
use aspia_relay::{clock, memory, open_files, printable, process};
use clap::Parser;
use tokio::sync::mpsc as tokio_mpsc;
use tracing::{error, info, warn};

/// Could not start, or failed.
const FAILED: u8 = 1;
/// Wrong usage; clap uses the same.
const USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.h.
const CONFIGURATION: u8 = 78;

/// The variable that names the file for the reason of a failure.
const TERMINATION_MESSAGE_PATH: &str = "TERMINATION_MESSAGE_PATH";
/// Bytes of it that Kubernetes shows; of a longer file, it would show the end.
const MAX_TERMINATION_MESSAGE: usize = 4096;

/// Longest wait for a reader of stdout or stderr that does not read.
const LAST_WORDS: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    heap::share();
    process::keep_memory_private();
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // What reads this from stdout is a person, unless it is for a program.
            let stdout_is_free = !arguments.json && arguments.node_address.is_none();
            if !failure.is_said && !last_words(&failure.message) && stdout_is_free {
                write_words(&failure.message, io::stdout);
            }
            ExitCode::from(failure.status)
        }
    }
}

/// Says why the program ends, whatever the log settings are; whether stderr has taken it. Neither a closed stderr nor one
/// that nobody reads changes the exit status or keeps the program.
fn last_words(message: &str) -> bool {
    write_words(message, io::stderr)
}

fn write_words<W: Write + 'static>(message: &str, to: fn() -> W) -> bool {
    let text = format!("aspia_relay: {}\n", printable::lines(message));
    let write = move || {
        let mut to = to();
        to.write_all(text.as_bytes()).and_then(|()| to.flush()).is_ok()
    };
    bounded(write) == Some(true)
}

/// Does something that a reader who does not read could hold up for ever, and waits for it for a while only.
fn bounded<T, W>(work: W) -> Option<T>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    let (done, wait) = mpsc::channel();
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<W>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let for_thread = work.clone();
    let thread = thread::Builder::new().spawn(move || {
        let work = take(&for_thread);
        let _ = work.map(|work| done.send(work()));
    });
    match thread {
        Ok(_) => wait.recv_timeout(LAST_WORDS).ok(),
        // Where there can be no more threads, which may be why the program ends: without a bound, but done.
        Err(_) => take(&work).map(|work| work()),
    }
}

/// How a command went.
type Outcome = Result<(), Failure>;

/// Why a command failed.
struct Failure {
    /// The exit status.
    status: u8,
    message: String,
    /// Whether the message has reached stderr already.
    is_said: bool,
}

impl Failure {
    fn new(status: u8, message: String) -> Self {
        Self { status, message, is_said: false }
    }
}

/// Writes the answer of a command.
fn answer(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::new(FAILED, format!("cannot write the answer: {error}")))
}

fn answer_json(value: &serde_json::Value) -> Outcome {
    answer(&printable::json(&format!("{value:#}\n")))
}

fn run(arguments: &Arguments) -> Outcome {
    if let Some(outcome) = service_command(arguments) {
        return outcome;
    }
    if arguments.json && !arguments.check_config && !arguments.doctor {
        return Err(Failure::new(USAGE, "--json goes with --check-config or --doctor".into()));
    }
    let sources = Sources::of_process(arguments.config.clone());
    if arguments.create_config {
        create_config(&sources)
    } else if arguments.check_config {
        check_config(&sources, arguments.json)
    } else if let Some(probe) = arguments.healthcheck {
        healthcheck(&sources, probe)
    } else if let Some(source) = &arguments.node_address {
        let pace = Pace { at_most: arguments.wait_at_most, ..Pace::default() };
        noted(&sources, node_address(&sources, source, pace, arguments.output.as_deref()))
    } else if arguments.doctor {
        let outcome = run_doctor(&sources, arguments);
        // As the first process it is what the container runs, and not what `kubectl exec` starts beside the relay.
        if std::process::id() == 1 { noted(&sources, outcome) } else { outcome }
    } else {
        noted(&sources, run_relay(&sources))
    }
}

/// Writes why it failed into the file that the variable `TERMINATION_MESSAGE_PATH` names, if any: Kubernetes shows it with
/// the status of the pod. For what a container runs only: `kubectl exec` starts other commands in the same environment,
/// whose failure is not that of the container.
fn noted(sources: &Sources, outcome: Outcome) -> Outcome {
    let mut environment = sources.environment.iter();
    let path = environment.find(|(name, _)| name == TERMINATION_MESSAGE_PATH);
    if let (Err(Failure { message, .. }), Some((_, path))) = (&outcome, path) {
        let mut end = message.len().min(MAX_TERMINATION_MESSAGE);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        // It is there already. Nothing is lost where it is not: stderr says the same.
        let file = OpenOptions::new().write(true).truncate(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(&message.as_bytes()[..end]));
    }
    outcome
}

/// What is for the service manager of Windows.
#[cfg(windows)]
fn service_command(arguments: &Arguments) -> Option<Outcome> {
    let done = if arguments.install {
        // Which file it is must not depend on whose environment the service gets.
        let sources = Sources::of_process(arguments.config.clone());
        manage::install(sources.path_is_explicit.then_some(sources.path.as_path()))
    } else if arguments.remove {
        manage::remove()
    } else if arguments.start {
        manage::start()
    } else if arguments.stop {
        manage::stop()
    } else {
        return None;
    };
    Some(
        done.map_err(|error| Failure::new(FAILED, error.to_string()))
            .and_then(|said| answer(&said)),
    )
}

/// What is for the service manager of Windows, and wrong usage here.
#[cfg(not(windows))]
fn service_command(arguments: &Arguments) -> Option<Outcome> {
    let (argument, instead) = arguments.windows_only()?;
    Some(Err(Failure::new(USAGE, format!("{argument} is for Windows; here use: {instead}"))))
}

fn create_config(sources: &Sources) -> Outcome {
    let path = sources.path.as_path();
    config::create_default(path).map_err(|error| {
        Failure::new(FAILED, format!("{error}{}", error.advice(sources.in_container())))
    })?;
    // Another file may be for somebody else, but on Windows for a service that was installed with it.
    if (path == Path::new(DEFAULT_PATH) || cfg!(windows))
        && let Err(error) = let_service_read(path)
    {
        let path = printable::line(&path.display().to_string());
        let _ = writeln!(
            io::stderr(),
            "aspia_relay: warning: the service may not be able to read {path}: {error}"
        );
    }
    answer(&format!(
        "{} is written; set RouterAddress, RouterPublicKey and PeerAddress in it\n",
        printable::line(&path.display().to_string())
    ))
}

fn check_config(sources: &Sources, json: bool) -> Outcome {
    let (report, result) = match config::load(sources) {
        Ok(loaded) => (loaded.report, Ok(())),
        Err(invalid) => {
            // Before the values, which nobody should take for good.
            let message = describe(&invalid);
            let is_said = last_words(&message);
            (invalid.0, Err(Failure { status: CONFIGURATION, message, is_said }))
        }
    };
    let answered = if json {
        answer_json(&report.json())
    } else {
        let answered = answer(&report.table());
        let notes = report.warnings.iter().map(|warning| format!("warning: {warning}"));
        for note in notes.chain(report.no_file().filter(|_| result.is_ok())) {
            let _ = writeln!(io::stderr(), "aspia_relay: {note}");
        }
        answered
    };
    // A wrong configuration is the more important news.
    result.and(answered)
}

fn healthcheck(sources: &Sources, probe: Probe) -> Outcome {
    let failed = |message: String| Failure::new(FAILED, message);
    let load = {
        let sources = sources.clone();
        move || config::load(&sources).map(|loaded| loaded.config).map_err(|why| describe(&why))
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let answer = runtime.block_on(client::healthcheck(sources, load, probe)).map_err(failed);
    // A file that hangs keeps a thread of its own; not the program.
    runtime.shutdown_background();
    answer
}

/// For an init container: the relay reads the file by `ASPIA_RELAY_PEER_ADDRESS_FILE`. Waits until there is an address, or
/// as long as `pace` allows: then it leaves it to the reader of the file to say that there is none.
fn node_address(
    sources: &Sources,
    source: &AddressSource,
    pace: Pace,
    output: Option<&Path>,
) -> Outcome {
    let failed = |message: String| Failure::new(FAILED, message);
    let cluster = Cluster::of_pod(&sources.environment, Path::new(SERVICE_ACCOUNT))
        .map_err(|error| failed(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let stop = {
        let _runtime = runtime.enter();
        asked_to_stop().map_err(|error| failed(format!("cannot listen for signals: {error}")))?
    };
    let mut reason = String::new();
    let waited = runtime.block_on(async {
        let say = |error: &NodeError| {
            reason = error.to_string();
            let seconds = pace.retry.as_secs();
            let _ = writeln!(
                io::stderr(),
                "aspia_relay: waiting for the address that peers dial, asking again every {seconds} s: {}",
                printable::line(&reason)
            );
        };
        tokio::select! {
            answer = cluster.wait_for_address(source, pace, say) => answer.map(Some),
            // As the first process of a container it would otherwise be deaf to SIGTERM.
            () = stop => Ok(None),
        }
    });
    if let Err(error @ NodeError::GaveUp { .. }) = &waited {
        last_words(&error.to_string());
        return Ok(());
    }
    let Some(address) = waited.map_err(|error| failed(error.to_string()))? else {
        // No success: whoever waits for the address has none.
        return Err(failed(format!("stopped before there was an address: {reason}")));
    };
    let address = address + "\n";
    match output {
        Some(path) => std::fs::write(path, address)
            .map_err(|error| failed(format!("cannot write {}: {error}", path.display()))),
        None => answer(&address),
    }
}

/// Waits for SIGTERM or SIGINT. From the return on, neither is missed.
#[cfg(unix)]
fn asked_to_stop() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    })
}

/// Waits for Ctrl+C.
#[cfg(not(unix))]
fn asked_to_stop() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = tokio::signal::windows::ctrl_c()?;
    Ok(async move {
        let _ = interrupt.recv().await;
    })
}

fn run_doctor(sources: &Sources, arguments: &Arguments) -> Outcome {
    let json = arguments.json;
    let failed = |error: io::Error| Failure::new(FAILED, error.to_string());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let say = |step: &doctor::report::Step| {
        // Each line as soon as it is known; whoever does not read on misses it.
        if !json {
            let _ = answer(&format!("{step}\n"));
        }
    };
    let surroundings =
        Surroundings { expects_relay: arguments.running, ..Surroundings::of_process(sources) };
    let stop = {
        let _runtime = runtime.enter();
        asked_to_stop()
            .map_err(|error| Failure::new(FAILED, format!("cannot listen for signals: {error}")))?
    };
    let report = runtime.block_on(async {
        tokio::select! {
            report = doctor::run(sources, surroundings, say) => Some(report),
            // As the first process of a container it would otherwise be deaf to SIGTERM.
            () = stop => None,
        }
    });
    runtime.shutdown_background();
    let Some(report) = report else {
        return Err(Failure::new(FAILED, "stopped before all steps were taken".into()));
    };
    if json {
        answer_json(&report.json())?;
    }
    let mut failed = report.failed();
    failed.dedup();
    let names = failed.join(", ");
    match report.failures() {
        0 => Ok(()),
        1 => Err(Failure::new(FAILED, format!("1 step failed (✗): {names}"))),
        failures => Err(Failure::new(FAILED, format!("{failures} steps failed (✗): {names}"))),
    }
}

fn describe(invalid: &config::Invalid) -> String {
    if let [problem] = invalid.0.problems.as_slice() {
        return format!("configuration: {problem}");
    }
    let problems = invalid.0.problems.iter().map(|problem| format!("\n  {problem}"));
    problems.fold(format!("{invalid}:"), |text, problem| text + &problem)
}

/// The relay as the service, where the service manager has started it; otherwise in the foreground.
#[cfg(windows)]
fn run_relay(sources: &Sources) -> Outcome {
    let log_settings = LogSettings::from_environment(&sources.environment);
    let service = {
        let sources = sources.clone();
        let log_settings = log_settings.clone().without_stderr(service::log_directory());
        move || {
            let outcome = relay(&sources, &log_settings, Listeners::default(), control::commands);
            outcome.map_err(|Failure { status, message, .. }| Failed {
                status,
                message,
                is_final: status == CONFIGURATION,
            })
        }
    };
    match control::run(service) {
        Ok(true) => Ok(()),
        Ok(false) => relay(sources, &log_settings, Listeners::default(), control::commands),
        Err(error) => Err(Failure::new(FAILED, format!("cannot run as a service: {error}"))),
    }
}

/// The relay in the foreground.
#[cfg(not(windows))]
fn run_relay(sources: &Sources) -> Outcome {
    // Before anything else is opened: they come by their numbers.
    let listeners = systemd::listener().map_err(|error| Failure::new(FAILED, error.to_string()))?;
    let listeners = Listeners { peers: listeners, ..Listeners::default() };
    let signals = signals::listen()
        .map_err(|error| Failure::new(FAILED, format!("cannot listen for signals: {error}")))?;
    let log_settings = LogSettings::from_environment(&sources.environment);
    relay(sources, &log_settings, listeners, || Ok(signals.for_relay()))
}

/// The relay, from its log to its last line. `listeners` are the sockets that the service manager made; `commands`, which
/// is called in a runtime, gives what signals and the like ask.
fn relay(
    sources: &Sources,
    log_settings: &LogSettings,
    listeners: Listeners,
    commands: impl FnOnce() -> io::Result<tokio_mpsc::Receiver<Command>>,
) -> Outcome {
    let (exporting, warnings) = traces(sources);
    let spans = exporting.as_ref().and_then(Exporting::layer);
    let guard =
        log_settings.start(spans).map_err(|error| Failure::new(FAILED, error.to_string()))?;
    for warning in warnings {
        warn!("{warning}");
    }
    if let Some(exporting) = &exporting {
        info!("traces go to {}", exporting.endpoint());
    }
    let mut outcome = start(sources, listeners, log_settings.handle(), exporting, commands);
    if let Err(failure) = &mut outcome {
        // Into the log while there is one. Where that does not reach stderr, `main` does.
        error!(target: log::FATAL, "{}", failure.message);
        failure.is_said = log_settings.has_fatal_on_stderr();
    }
    // Writes what is left of the log.
    let is_written = bounded(move || guard.finish()) == Some(true);
    if let Err(failure) = &mut outcome {
        failure.is_said &= is_written;
    }
    outcome
}

/// Starts to deliver traces where the environment asks for them, and says what is wrong there.
fn traces(sources: &Sources) -> (Option<Exporting>, Vec<String>) {
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

fn start(
    sources: &Sources,
    listeners: Listeners,
    log: LogHandle,
    exporting: Option<Exporting>,
    commands: impl FnOnce() -> io::Result<tokio_mpsc::Receiver<Command>>,
) -> Outcome {
    let loaded = config::load(sources).map_err(|invalid| {
        // One of them may say why something is missing.
        warn_of(&invalid.0);
        Failure::new(CONFIGURATION, describe(&invalid))
    })?;
    warn_of(&loaded.report);
    for file in exposed::find(sources, &loaded.report) {
        let text = printable::line(&file.to_string());
        if file.in_container {
            info!("{text}");
        } else {
            warn!("{text}");
        }
    }
    check_machine(&loaded.config);
    if let Some(Ok(address)) = listeners.peers.as_ref().map(TcpListener::local_addr) {
        let startup = &loaded.config.startup;
        let is_other = |interface: IpAddr| interface != address.ip().to_canonical();
        if address.port() != startup.listen_port || startup.listen_interface.is_some_and(is_other) {
            warn!(
                "the socket of the service manager listens on {address}, whatever ListenPort and ListenInterface say; \
                 aspia-relay.socket decides"
            );
        }
    }
    let threads = |error: io::Error| {
        Failure::new(FAILED, format!("cannot start the worker threads: {error}"))
    };
    let (count, warning) = open_files::workers(&loaded.config);
    if let Some(warning) = warning {
        warn!("{warning}");
    }
    let workers = Workers::start(count).map_err(threads)?;
    let engine = Engine { max_pipes: open_files::max_pipes(count), ..Engine::on(workers) };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(threads)?;
    let outcome = runtime.block_on(async {
        let tracer = exporting.as_ref().map(Exporting::tracer).unwrap_or_default();
        let app = App::bind(loaded, listeners, log, tracer, engine)
            .map_err(|error| Failure::new(FAILED, error.to_string()))?;
        let handle = app.handle();
        #[cfg(target_os = "linux")]
        let app = match local::publish(sources, app.address().port()) {
            Ok(listener) => app.with_commands(listener),
            Err(error) => {
                info!("commands find this relay by its configuration only: {error}");
                app
            }
        };
        let commands = commands()
            .map_err(|error| Failure::new(FAILED, format!("cannot listen for signals: {error}")))?;
        let obeying = tokio::spawn(obey(handle.clone(), sources.clone(), commands));
        let stopped = app.run().await.map_err(|error| Failure::new(FAILED, error.to_string()));
        if let Ok(Stopped::TimedOut) = stopped {
            warn!("DrainTimeout was over before all sessions had ended");
        }
        if let Some(exporting) = exporting {
            // Signals are still obeyed: the second one does not wait for a collector.
            exporting.finish(handle.stopping().cancelled()).await;
        }
        obeying.abort();
        stopped.map(drop)
    });
    // A resolver that does not answer, or a file that hangs, keeps a thread of its own; not the program.
    runtime.shutdown_background();
    outcome
}

fn warn_of(report: &Report) {
    for warning in &report.warnings {
        warn!("{warning}");
    }
}

/// Raises the limit on open files to what the settings need, and says where the machine has too little for them.
fn check_machine(config: &Config) {
    let memory = memory::available().and_then(|bytes| memory::warning(config, bytes));
    let checks = [open_files::raise(config), memory, clock::warning(SystemTime::now())];
    for warning in checks.into_iter().flatten() {
        warn!("{warning}");
    }
}

/// Does what signals, the service manager or the console ask, until it is dropped.
async fn obey(handle: Handle, sources: Sources, mut commands: tokio_mpsc::Receiver<Command>) {
    let (reloads, mut due) = tokio_mpsc::channel(1);
    // In its own branch: a file that hangs must not make the relay deaf to the other commands.
    let reloading = async {
        while let Some(signal) = due.recv().await {
            #[cfg(unix)]
            systemd::reloading(&handle).await;
            reload(&handle, &sources, signal).await;
            #[cfg(unix)]
            systemd::reloaded(&handle).await;
        }
    };
    let listening = async {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Stop(signal) => stop(&handle, signal),
                Command::Reload(signal) => {
                    // Where one is due already, it reads what this one would.
                    let _ = reloads.try_send(signal);
                }
            }
        }
    };
    #[cfg(unix)]
    let reporting = systemd::report(handle.clone());
    #[cfg(windows)]
    let reporting = control::report(handle.clone());
    tokio::join!(reloading, listening, reporting);
}

fn stop(handle: &Handle, signal: &str) {
    match handle.stop_by_signal() {
        StopStep::Drain => info!("{signal}: stopping"),
        StopStep::ContinueDrain => {
            info!("{signal}: the stop that an administrator asked for goes on");
        }
        StopStep::AtOnce => info!("{signal}: stopping at once"),
    }
}

async fn reload(handle: &Handle, sources: &Sources, signal: &str) {
    let (read, in_force) = (sources.clone(), handle.report());
    let loaded = tokio::task::spawn_blocking(move || config::reload(&read, &in_force)).await;
    let loaded = match loaded {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(invalid)) => {
            handle.reload_failed();
            warn_of(&invalid.0);
            error!("{signal}: nothing is changed, {}", describe(&invalid));
            return;
        }
        Err(error) => {
            handle.reload_failed();
            error!(%error, "{signal}: nothing is changed, the configuration could not be read");
            return;
        }
    };
    warn_of(&loaded.report);
    // Before there may be more sessions.
    check_machine(&loaded.config);
    let Reloaded { changed, waiting } = handle.reload(&loaded);
    let changed: Vec<String> = changed
        .iter()
        .map(|key| match settings::find(key).map(|setting| setting.reload) {
            Some(Reload::NewLink) => format!("{key} (with a new link)"),
            _ => (*key).to_owned(),
        })
        .collect();
    info!("{signal}: the configuration was read; changed: [{}]", changed.join(", "));
    if !waiting.is_empty() {
        warn!("{signal}: a restart is needed for: {}", waiting.join(", "));
    }
}
