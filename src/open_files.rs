//! Raises the limit on open files, and divides the file descriptors among peers, pipes and the rest.

use crate::config::Config;

/// The maximum number of pipes that forwarding has open. At 512 KiB each, they take all that Linux allows an unprivileged user
/// by default (`fs.pipe-user-pages-soft`, 16384 pages).
pub const MAX_PIPES: usize = 128;
/// Descriptors of a pipe.
const PIPE: u64 = 2;
/// Descriptors of a worker thread, as measured: the epoll instance of its runtime, and what wakes it.
const WORKER: u64 = 4;
/// Descriptors that are open as long as the relay runs: the standard streams and their copies for the log (5), a log file, the
/// runtimes of the main thread, of signals and of traces, each with the descriptors that wake it (16), the listening sockets
/// (3), the socket for commands with its connections (13), the Router link, the collector, the service manager. These are 57
/// at most; the rest is a reserve.
const BASE: u64 = 64;
/// Connections to both HTTP listeners.
const HTTP: u64 = 2 * 64;
/// Descriptors that are open for a short time: for name lookups and concurrent connection attempts, files that are read again,
/// `/proc` for the metrics, directories of log files, one more accepted connection.
const TEMPORARY: u64 = 64;
/// Descriptors in the descriptor store besides those of peers: the listening sockets (3), the Router link, and a reserve.
const IN_STORE: u64 = 16;
/// Descriptors that are reserved besides those that are always open.
const RESERVED: u64 = HTTP + TEMPORARY + PIPE * MAX_PIPES as u64;

/// Returns how many descriptors may be needed at the same time: two for each session, one for each connection that is not
/// paired, and those of the relay itself.
pub fn needed(config: &Config) -> u64 {
    let own = always_open(config.startup.worker_count()) + RESERVED;
    2 * config.max_sessions as u64 + config.max_pending_peers as u64 + own
}

/// Returns how many descriptors the descriptor store must be able to keep: those of all sessions, and during a hand-over also
/// those of connections that are not paired, the listening sockets and the Router link.
pub fn needed_in_store(config: &Config) -> u64 {
    2 * config.max_sessions as u64 + config.max_pending_peers as u64 + IN_STORE
}

/// Returns how many descriptors are always open.
fn always_open(workers: usize) -> u64 {
    BASE + WORKER * workers as u64
}

/// How the descriptors of this process are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// For peers, paired or not.
    pub peers: u64,
    /// How many pipes may be open.
    pub pipes: usize,
}

impl DescriptorBudget {
    /// Divides the limit of this process, which has this number of worker threads; `None` if there is no limit.
    pub fn of_process(workers: usize) -> Option<Self> {
        Some(Self::of(limit()?.soft?, workers))
    }

    /// Descriptors that are always open come first. If the limit is low, peers get half of the rest, and the reserve and the
    /// pipes shrink in proportion.
    fn of(limit: u64, workers: usize) -> Self {
        let rest = limit.saturating_sub(always_open(workers));
        let reserved = RESERVED.min(rest / 2);
        let pipes = MAX_PIPES as u64 * reserved / RESERVED;
        Self { peers: rest - reserved, pipes: usize::try_from(pipes).unwrap_or(MAX_PIPES) }
    }
}

/// Returns how many pipes may be open within the limit of this process.
pub fn max_pipes(workers: usize) -> usize {
    DescriptorBudget::of_process(workers).map_or(MAX_PIPES, |budget| budget.pipes)
}

/// Returns how many worker threads to start: as many as the settings demand, or fewer with a warning if the limit of this
/// process does not allow so many.
pub fn count_workers(config: &Config) -> (usize, Option<String>) {
    let wanted = config.startup.worker_count();
    match limit().and_then(|limit| limit.soft) {
        Some(limit) => workers_within(limit, wanted, needed(config)),
        None => (wanted, None),
    }
}

/// If the limit is lower than what is `needed` with all `wanted` threads, the threads get the descriptors that everything else
/// leaves, or a quarter of the limit if that is more.
fn workers_within(limit: u64, wanted: usize, needed: u64) -> (usize, Option<String>) {
    let left = limit.saturating_sub(needed.saturating_sub(WORKER * wanted as u64));
    let max = usize::try_from(left.max(limit / 4) / WORKER).unwrap_or(usize::MAX).max(1);
    let warning = (wanted > max).then(|| {
        format!(
            "only {max} of {wanted} worker threads are started: each needs {WORKER} file descriptors, and only {limit} files \
             may be open. {REMEDY}, or set WorkerThreads to {max}"
        )
    });
    (wanted.min(max), warning)
}

/// What to do if too few files may be open.
pub const REMEDY: &str = "Raise the limit (ulimit -n, LimitNOFILE, ulimits of the container)";

/// The limit on open files; `None` in a field is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFilesLimit {
    /// The limit in force.
    pub soft: Option<u64>,
    /// The highest value that it may be raised to.
    pub hard: Option<u64>,
}

/// Returns the limit of this process; `None` if the system has none.
#[cfg(unix)]
pub fn limit() -> Option<OpenFilesLimit> {
    use rustix::process::{Resource, getrlimit};

    let limit = getrlimit(Resource::Nofile);
    Some(OpenFilesLimit { soft: limit.current, hard: limit.maximum })
}

/// Returns `None`: the system has no such limit.
#[cfg(not(unix))]
pub fn limit() -> Option<OpenFilesLimit> {
    None
}

/// Raises the soft limit to what is needed, within the hard limit. Returns a warning if that is not enough.
#[cfg(unix)]
pub fn raise_limit(config: &Config) -> Option<String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let needed = needed(config);
    let limit = getrlimit(Resource::Nofile);
    let soft = limit.current?;
    if soft >= needed {
        return None;
    }
    let wanted = limit.maximum.map_or(needed, |hard| hard.min(needed));
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    let now = setrlimit(Resource::Nofile, raised).map_or(soft, |()| wanted);
    (now < needed).then(|| warning(config, now))
}

/// Raises the limit on open files to the hard limit, for a process that takes over what another one had open. Returns the limit
/// before.
#[cfg(target_os = "linux")]
pub fn raise_to_hard_limit() -> Option<u64> {
    use rustix::process::{Resource, getrlimit};

    let limit = getrlimit(Resource::Nofile);
    set_limit(limit.maximum);
    limit.current
}

/// Sets the limit on open files, as far as that is allowed; files that are open stay open.
#[cfg(target_os = "linux")]
pub fn set_limit(current: Option<u64>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let maximum = getrlimit(Resource::Nofile).maximum;
    // If this is refused, the limit that there is has to do.
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
}

/// Does nothing: the system has no such limit.
#[cfg(not(unix))]
pub fn raise_limit(_config: &Config) -> Option<String> {
    None
}

/// Describes the consequence of too low a limit, and what to do.
pub fn warning(config: &Config, limit: u64) -> String {
    warning_with(config, limit, REMEDY)
}

/// Like [`warning`], with another remedy.
pub fn warning_with(config: &Config, limit: u64, remedy: &str) -> String {
    format!(
        "only {limit} files may be open, but MaxPeerCount {}, MaxPendingPeers {} and {} worker threads need {}: peers \
         will have to wait. {remedy}, or lower the settings",
        config.max_sessions,
        config.max_pending_peers,
        config.startup.worker_count(),
        needed(config)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_consumer_has_descriptors_and_all_are_within_the_limit() {
        for workers in [1, 2, 8, 64, 256] {
            for limit in [64, 120, 256, 1024, 1536, 4096, 20_000, 1 << 20] {
                let workers = workers_within(limit, workers, u64::MAX).0;
                let DescriptorBudget { peers, pipes } = DescriptorBudget::of(limit, workers);
                let always_open = always_open(workers);
                let all = peers + PIPE * pipes as u64 + always_open.min(limit);
                assert!(all <= limit, "{limit} {workers}: {peers} {pipes}");
                let rest = limit.saturating_sub(always_open);
                // Neither peers nor the HTTP listeners are starved.
                assert!(peers >= rest / 2, "{limit} {workers}: {peers}");
                let http = limit - all;
                assert!(http >= rest / 5 || http >= HTTP + TEMPORARY, "{limit} {workers}: {http}");
                if rest >= 2 * RESERVED {
                    assert_eq!((peers, pipes), (rest - RESERVED, MAX_PIPES), "{limit} {workers}");
                }
            }
        }
        assert_eq!(
            DescriptorBudget::of(1024, 2),
            DescriptorBudget { peers: 504, pipes: MAX_PIPES }
        );
    }

    #[test]
    fn worker_threads_get_the_rest_or_a_quarter_of_the_limit() {
        // Everything else needs 600.
        let within =
            |limit, wanted: usize| workers_within(limit, wanted, 600 + WORKER * wanted as u64);
        assert_eq!(within(1024, 4), (4, None));
        assert_eq!(within(1624, 256), (256, None));
        assert_eq!(within(1024, 256).0, 106);
        let (max, warning) = within(512, 256);
        assert_eq!(max, 32);
        assert!(warning.unwrap().contains("only 32 of 256"));
        assert_eq!(within(8, 4).0, 1);
    }
}
