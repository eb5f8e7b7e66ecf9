//! CPU, memory and descriptors of processes, from `/proc`.

use std::fs;
use std::path::Path;

/// Resources that processes have used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Meter {
    /// CPU time of all their threads, in seconds.
    pub(crate) cpu: f64,
    /// Private memory and their share of shared memory, in bytes, without the kernel's.
    pub(crate) pss: f64,
    /// Open descriptors.
    pub(crate) files: f64,
}

impl Meter {
    pub(crate) fn of(pids: &[u32]) -> Self {
        pids.iter().flat_map(|pid| family(*pid)).fold(Self::default(), |sum, pid| Self {
            cpu: sum.cpu + cpu(pid),
            pss: sum.pss + pss(pid),
            files: sum.files + entries(format!("/proc/{pid}/fd")).len() as f64,
        })
    }
}

fn entries(path: impl AsRef<Path>) -> Vec<String> {
    fs::read_dir(path)
        .map(|entries| {
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
        })
        .unwrap_or_default()
}

/// A process and its children, such as nginx's workers.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    for thread in entries(format!("/proc/{pid}/task")) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"));
        let children = children.unwrap_or_default();
        family.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    family
}

/// CPU time of one process without its children, in seconds.
pub(crate) fn cpu_of(pid: u32) -> f64 {
    cpu(pid)
}

/// The first figure of `schedstat` is the time on a processor, in nanoseconds.
fn cpu(pid: u32) -> f64 {
    let of = |thread: &String| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    entries(format!("/proc/{pid}/task")).iter().filter_map(of).sum::<f64>() / 1e9
}

fn pss(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    number.unwrap_or(0.0) * 1024.0
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn resources_of_this_process_are_measured() {
        let before = Meter::of(&[std::process::id()]);
        assert!(before.pss > 0.0 && before.files > 2.0, "{before:?}");
        let mut sum = 0_u64;
        while Meter::of(&[std::process::id()]).cpu <= before.cpu {
            sum = std::hint::black_box(sum + 1);
        }
        assert_eq!(Meter::of(&[u32::MAX]), Meter::default());
    }
}
