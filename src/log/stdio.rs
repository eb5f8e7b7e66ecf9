//! Standard output and standard error as outputs of the log.

use std::io;
#[cfg(unix)]
use std::{fs::File, os::fd::AsFd};

use super::output::{Destination, write_whole};

/// One of the two.
pub(super) struct Stdio {
    /// Not buffered, so that it is known what was written when a write fails; and other than the standard library's
    /// handles it does not take a closed descriptor for one that takes everything.
    #[cfg(unix)]
    to: File,
    /// A console of Windows has an encoding of its own, which the standard library knows.
    #[cfg(windows)]
    to: Box<dyn io::Write + Send>,
    torn: bool,
}

#[cfg(unix)]
impl Stdio {
    /// Standard output; `None` where it is closed or leads nowhere, so that lines are better sent elsewhere.
    pub(super) fn stdout() -> Option<Self> {
        let stdout = Self::of(&io::stdout())?;
        (!is_null(&stdout.to)).then_some(stdout)
    }

    /// Standard error; `None` where it is closed. One that was led to nowhere is meant to be silent.
    pub(super) fn stderr() -> Option<Self> {
        let stderr = Self::of(&io::stderr())?;
        (!was_closed(&stderr.to)).then_some(stderr)
    }

    fn of(descriptor: &impl AsFd) -> Option<Self> {
        let to = descriptor.as_fd().try_clone_to_owned().ok()?;
        Some(Self { to: to.into(), torn: false })
    }
}

/// Whether a descriptor was closed at the start. Then the standard library has put the device that swallows everything in
/// its place, and opened it for reading, too, which nobody does for an output.
#[cfg(unix)]
fn was_closed(file: &File) -> bool {
    use rustix::fs::{OFlags, fcntl_getfl};

    let reads = fcntl_getfl(file).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDWR);
    reads && is_null(file)
}

/// Whether a file is the device that swallows everything.
#[cfg(unix)]
fn is_null(file: &File) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    let (Ok(this), Ok(null)) = (file.metadata(), std::fs::metadata("/dev/null")) else {
        return false;
    };
    this.file_type().is_char_device() && this.rdev() == null.rdev()
}

#[cfg(windows)]
impl Stdio {
    /// Standard output.
    pub(super) fn stdout() -> Option<Self> {
        Some(Self { to: Box::new(io::stdout()), torn: false })
    }

    /// Standard error.
    pub(super) fn stderr() -> Option<Self> {
        Some(Self { to: Box::new(io::stderr()), torn: false })
    }
}

impl Destination for Stdio {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        write_whole(&mut self.to, line, &mut self.torn)
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    #[test]
    fn the_device_that_swallows_everything_is_known() {
        let open = |path: &str| File::options().write(true).open(path).unwrap();
        assert!(is_null(&open("/dev/null")));
        assert!(!is_null(&open("/dev/full")));
        assert!(!is_null(&tempfile::tempfile().unwrap()));
        let both = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(was_closed(&both) && !was_closed(&open("/dev/null")));
        assert!(!was_closed(&tempfile::tempfile().unwrap()));
    }
}
