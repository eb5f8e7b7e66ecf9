//! Finds out whether `relay.json` is mounted by itself, as `docker run -v …/relay.json:/etc/aspia/relay.json` and a
//! `subPath` of Kubernetes do. The relay then never sees a file that takes its place.

use std::fs;
use std::path::Path;

/// The mounts of this process, on Linux.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Warns if the file at `path`, which the relay watches, is mounted by itself. Blocks.
pub(super) fn warning(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = fs::read_to_string(MOUNTS).ok()?;
    is_mount_point(&mounts, path.to_str()?).then(|| {
        format!(
            "WatchConfig: {} is mounted by itself: if another file takes its place outside, as when an editor saves it, \
             the relay does not see that; mount the directory instead",
            path.display()
        )
    })
}

/// Whether something is mounted at `path` according to `mounts`, in the format of `/proc/self/mountinfo`.
fn is_mount_point(mounts: &str, path: &str) -> bool {
    let escaped = path
        .replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012");
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(&escaped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_of_the_file_itself_counts() {
        let mounts = "\
            22 1 0:21 / / rw,relatime - overlay overlay rw\n\
            36 22 8:1 /srv/relay.json /etc/aspia/relay.json ro,relatime master:1 - ext4 /dev/sda1 rw\n\
            37 22 8:1 /srv/other /run/se\\040crets ro,relatime - ext4 /dev/sda1 rw\n";
        assert!(is_mount_point(mounts, "/etc/aspia/relay.json"));
        assert!(is_mount_point(mounts, "/run/se crets"));
        for other in ["/srv/relay.json", "/etc/aspia", "/run/se", "/run/se crets/relay.json"] {
            assert!(!is_mount_point(mounts, other), "{other}");
        }
    }

    #[test]
    fn ordinary_file_is_not_mounted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(warning(file.path()), None);
    }
}
