//! Memory: what the settings may take, and what there is.

use crate::config::Config;

/// Of a session in the worst case, in bytes: what is under way in both directions (64 KiB each), tasks, tables.
const SESSION: u64 = 160 * 1024;
/// Of a connection that is not paired, in bytes: the longest first message, and its task.
const PENDING: u64 = 24 * 1024;
/// Of the program itself, in bytes.
const PROGRAM: u64 = 32 * 1024 * 1024;

/// Bytes that the settings may take when all peers are slow, beside the kernel's buffers.
pub fn needed(config: &Config) -> u64 {
    PROGRAM + config.max_sessions as u64 * SESSION + config.max_pending_peers as u64 * PENDING
}

/// Bytes that this process may still take: of the machine, or of its control group where that is less; `None` where
/// the system does not say.
pub fn available() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        use procfs::{Current, Meminfo};

        let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
            .iter()
            .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
        let machine = Meminfo::current().ok()?.mem_available?;
        Some(group.map_or(machine, |limit: u64| limit.min(machine)))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// What the settings take, and what there is, in words.
pub fn comparison(config: &Config, available: u64) -> String {
    format!(
        "MaxPeerCount {} and MaxPendingPeers {} take up to {} MiB when all peers are slow, beside the kernel's buffers; \
         {} MiB are available",
        config.max_sessions,
        config.max_pending_peers,
        needed(config).div_ceil(1024 * 1024),
        available / (1024 * 1024)
    )
}

/// A warning where that is too little.
pub fn warning(config: &Config, available: u64) -> Option<String> {
    (needed(config) > available)
        .then(|| format!("{}. Give it more, or lower the settings", comparison(config, available)))
}
