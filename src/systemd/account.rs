//! The group that packages make for the service, which may read what root writes for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::Path;

/// Its name in `deploy/systemd/sysusers.conf`.
const GROUP: &str = "aspia-relay";
/// Where groups of the system are, whatever else there may be: that of a package is made here.
const GROUPS: &str = "/etc/group";
const READABLE_BY_GROUP: u32 = 0o040;

/// Lets the service read a file of root's, whatever the umask was. Without the group nothing is done, nor for another
/// user than root, whose files may be for a relay of its own.
///
/// # Errors
/// What the system says.
pub fn let_read(path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let groups = fs::read_to_string(GROUPS).unwrap_or_default();
    let Some(group) = number_of(GROUP, &groups) else {
        return Ok(());
    };
    let file = File::open(path)?;
    fchown(&file, None, Some(group))?;
    let mut permissions = file.metadata()?.permissions();
    permissions.set_mode(permissions.mode() | READABLE_BY_GROUP);
    file.set_permissions(permissions)
}

/// The number of a group in a file like `/etc/group` (`name:password:number:members`, group(5)).
fn number_of(name: &str, groups: &str) -> Option<u32> {
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
    fn the_number_of_a_group_is_in_the_third_field() {
        let groups = "root:x:0:\naspia-relay-2:x:7:\naspia-relay:x:998:somebody\nbroken\n";
        assert_eq!(number_of(GROUP, groups), Some(998));
        assert_eq!(number_of("nobody", groups), None);
        assert_eq!(number_of("broken", groups), None);
    }
}
