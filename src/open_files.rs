//! The limit on open files: raised as far as it may be, and compared with what the settings need.

use crate::config::Config;

/// Most pipes that forwarding has open at once. At 512 KiB each that is all that Linux gives an unprivileged user
/// unless told otherwise (`fs.pipe-user-pages-soft`, 16384 pages).
pub const MAX_PIPES: usize = 128;
/// Descriptors beside those of peers: the Router link, both HTTP listeners with their connections, logs, the
/// runtimes' own, two for each pipe.
const RESERVE: u64 = 256 + 2 * MAX_PIPES as u64;

/// Descriptors that may be needed at once: two for each session, one for each connection that is not paired.
pub fn needed(config: &Config) -> u64 {
    2 * config.max_sessions as u64 + config.max_pending_peers as u64 + RESERVE
}

/// Descriptors that peers may have at once, by the limit of this process: what is left of it when the Router link, HTTP,
/// logs and pipes have theirs, but at least half. `None` where there is no limit.
pub fn for_peers() -> Option<u64> {
    let soft = limit()?.soft?;
    Some(soft.saturating_sub(RESERVE).max(soft / 2))
}

/// Pipes that may be open at once, by the limit of this process: half of what is kept for everything but peers.
pub fn max_pipes() -> usize {
    let kept = |soft: u64| soft - for_peers().unwrap_or(soft).min(soft);
    let of_limit = limit().and_then(|limit| limit.soft).map(|soft| kept(soft) / 4);
    of_limit
        .and_then(|pipes| usize::try_from(pipes).ok())
        .map_or(MAX_PIPES, |pipes| pipes.min(MAX_PIPES))
}

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
    format!(
        "only {limit} files may be open, but MaxPeerCount {} and MaxPendingPeers {} need {}: peers will be kept \
         waiting. Raise the limit (ulimit -n, LimitNOFILE, ulimits of the container), or lower the settings",
        config.max_sessions,
        config.max_pending_peers,
        needed(config)
    )
}
