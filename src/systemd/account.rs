//! The group that packages create for the service, so that it can read files that root writes for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::Path;

/// The group's name in `deploy/systemd/sysusers.conf`.
const GROUP: &str = "aspia-relay";
/// The file in which packages create system groups, whatever other sources of groups there are.
const GROUPS: &str = "/etc/group";
const READABLE_BY_GROUP: u32 = 0o040;

/// Lets the service read a file that root has created, whatever the umask was. Does nothing if the group does not
/// exist, or if this user is not root, whose files may be for a relay of their own.
///
/// # Errors
/// The system's error.
pub fn let_service_read(path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let groups = fs::read_to_string(GROUPS).unwrap_or_default();
    let Some(group) = find_group_id(GROUP, &groups) else {
        return Ok(());
    };
    let file = File::open(path)?;
    fchown(&file, None, Some(group))?;
    let mut permissions = file.metadata()?.permissions();
    permissions.set_mode(permissions.mode() | READABLE_BY_GROUP);
    file.set_permissions(permissions)
}

/// Finds the id of a group in a file like `/etc/group` (`name:password:number:members`, group(5)).
fn find_group_id(name: &str, groups: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        fields.next().filter(|found| *found == name)?;
        fields.nth(1)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_id_is_the_third_field() {
        let groups = "root:x:0:\naspia-relay-2:x:7:\naspia-relay:x:998:somebody\nbroken\n";
        assert_eq!(find_group_id(GROUP, groups), Some(998));
        assert_eq!(find_group_id("nobody", groups), None);
        assert_eq!(find_group_id("broken", groups), None);
    }
}
