//! The limit on open files: raised as far as it may be, and compared with what the settings need.

use crate::config::Config;

/// Most pipes that forwarding has open at once. At 512 KiB each that is all that Linux gives an unprivileged user
/// unless told otherwise (`fs.pipe-user-pages-soft`, 16384 pages).
pub const MAX_PIPES: usize = 128;
/// Descriptors of a pipe.
const PIPE: u64 = 2;
/// Descriptors of a thread that forwards, as measured: what its runtime watches sockets with and is woken by.
const WORKER: u64 = 4;
/// Descriptors that are open while the relay runs, whatever it does: the standard ones and their copies for the log (5), a
/// log file, the runtimes of the main thread, of signals and of traces with what signals wake them by (16), the listening
/// sockets (3), that of commands with its connections (9), the Router link, the collector, the service manager. There are 53
/// at most; the rest is for what nobody has thought of.
const BASE: u64 = 64;
/// Connections to both HTTP listeners.
const HTTP: u64 = 2 * 64;
/// Descriptors that are open for a moment: looking up names and dialling addresses side by side, files that are read
/// again, `/proc` for the metrics, directories of log files, one more connection that is accepted.
const MOMENTS: u64 = 64;
/// What is kept from peers beside what is open all the time.
const OTHERS: u64 = HTTP + MOMENTS + PIPE * MAX_PIPES as u64;

/// Descriptors that may be needed at once: two for each session, one for each connection that is not paired, and
/// those of the relay itself.
pub fn needed(config: &Config) -> u64 {
    let own = fixed(config.startup.workers()) + OTHERS;
    2 * config.max_sessions as u64 + config.max_pending_peers as u64 + own
}

/// Those that are open all the time.
fn fixed(workers: usize) -> u64 {
    BASE + WORKER * workers as u64
}

/// How the descriptors of this process are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Peers may have so many at once, paired or not.
    pub peers: u64,
    /// So many pipes may be open at once.
    pub pipes: usize,
}

impl Budget {
    /// By the limit of this process, with so many threads that forward; `None` where there is no limit.
    pub fn of_process(workers: usize) -> Option<Self> {
        Some(Self::of(limit()?.soft?, workers))
    }

    /// What is open all the time comes first. Where the limit is low, peers get half of the rest, and the others less in
    /// proportion.
    fn of(limit: u64, workers: usize) -> Self {
        let rest = limit.saturating_sub(fixed(workers));
        let others = OTHERS.min(rest / 2);
        let pipes = MAX_PIPES as u64 * others / OTHERS;
        Self { peers: rest - others, pipes: usize::try_from(pipes).unwrap_or(MAX_PIPES) }
    }
}

/// Pipes that may be open at once, by the limit of this process.
pub fn max_pipes(workers: usize) -> usize {
    Budget::of_process(workers).map_or(MAX_PIPES, |budget| budget.pipes)
}

/// As many threads that forward as the settings want and the limit of this process allows. With a warning where that is
/// fewer.
pub fn workers(config: &Config) -> (usize, Option<String>) {
    let wanted = config.startup.workers();
    match limit().and_then(|limit| limit.soft) {
        Some(limit) => workers_within(limit, wanted, needed(config)),
        None => (wanted, None),
    }
}

/// Where the limit is lower than what is `needed` with all that are `wanted`, threads have a quarter of it at most, or what
/// everything else leaves.
fn workers_within(limit: u64, wanted: usize, needed: u64) -> (usize, Option<String>) {
    let left = limit.saturating_sub(needed.saturating_sub(WORKER * wanted as u64));
    let most = usize::try_from(left.max(limit / 4) / WORKER).unwrap_or(usize::MAX).max(1);
    let warning = (wanted > most).then(|| {
        format!(
            "only {most} of {wanted} worker threads are started: each needs {WORKER} open files, and only {limit} may be \
             open. {REMEDY}, or set WorkerThreads to {most}"
        )
    });
    (wanted.min(most), warning)
}

/// What to do where too few files may be open.
pub const REMEDY: &str = "Raise the limit (ulimit -n, LimitNOFILE, ulimits of the container)";

/// How many files may be open; `None` in it is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Now.
    pub soft: Option<u64>,
    /// As far as it may be raised.
    pub hard: Option<u64>,
}

/// The limit of this process; `None` where the system has none.
#[cfg(unix)]
pub fn limit() -> Option<Limit> {
    use rustix::process::{Resource, getrlimit};

    let limit = getrlimit(Resource::Nofile);
    Some(Limit { soft: limit.current, hard: limit.maximum })
}

/// The limit of this process; `None` where the system has none.
#[cfg(not(unix))]
pub fn limit() -> Option<Limit> {
    None
}

/// Raises the soft limit to what is needed, within the hard limit. Gives a warning where that is not enough.
#[cfg(unix)]
pub fn raise(config: &Config) -> Option<String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let needed = needed(config);
    let limit = getrlimit(Resource::Nofile);
    // No number is no limit.
    let soft = limit.current?;
    if soft >= needed {
        return None;
    }
    let wanted = limit.maximum.map_or(needed, |hard| hard.min(needed));
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    let now = setrlimit(Resource::Nofile, raised).map_or(soft, |()| wanted);
    (now < needed).then(|| warning(config, now))
}

/// Raises nothing: there is no such limit.
#[cfg(not(unix))]
pub fn raise(_config: &Config) -> Option<String> {
    None
}

/// What a limit that is too low means, and what to do.
pub fn warning(config: &Config, limit: u64) -> String {
    warning_with(config, limit, REMEDY)
}

/// The same with what to do elsewhere.
pub fn warning_with(config: &Config, limit: u64, remedy: &str) -> String {
    format!(
        "only {limit} files may be open, but MaxPeerCount {}, MaxPendingPeers {} and {} worker threads need {}: peers \
         will be kept waiting. {remedy}, or lower the settings",
        config.max_sessions,
        config.max_pending_peers,
        config.startup.workers(),
        needed(config)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_consumer_has_its_part_and_all_parts_are_within_the_limit() {
        for workers in [1, 2, 8, 64, 256] {
            for limit in [64, 120, 256, 1024, 1536, 4096, 20_000, 1 << 20] {
                let workers = workers_within(limit, workers, u64::MAX).0;
                let Budget { peers, pipes } = Budget::of(limit, workers);
                let fixed = fixed(workers);
                let all = peers + PIPE * pipes as u64 + fixed.min(limit);
                assert!(all <= limit, "{limit} {workers}: {peers} {pipes}");
                let rest = limit.saturating_sub(fixed);
                // Nobody is starved: neither peers nor those who ask what is wrong.
                assert!(peers >= rest / 2, "{limit} {workers}: {peers}");
                let http = limit - all;
                assert!(http >= rest / 5 || http >= HTTP + MOMENTS, "{limit} {workers}: {http}");
                if rest >= 2 * OTHERS {
                    assert_eq!((peers, pipes), (rest - OTHERS, MAX_PIPES), "{limit} {workers}");
                }
            }
        }
        assert_eq!(Budget::of(1024, 2), Budget { peers: 504, pipes: MAX_PIPES });
    }

    #[test]
    fn threads_take_what_is_left_or_a_quarter() {
        // 600 are for everything else.
        let within =
            |limit, wanted: usize| workers_within(limit, wanted, 600 + WORKER * wanted as u64);
        assert_eq!(within(1024, 4), (4, None));
        assert_eq!(within(1624, 256), (256, None));
        assert_eq!(within(1024, 256).0, 106);
        let (most, warning) = within(512, 256);
        assert_eq!(most, 32);
        assert!(warning.unwrap().contains("only 32 of 256"));
        assert_eq!(within(8, 4).0, 1);
    }
}
