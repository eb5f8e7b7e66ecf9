//! Standard output and standard error as destinations of the log.

use std::io;
#[cfg(unix)]
use std::{fs::File, os::fd::AsFd};

use super::destination::{LogDestination, write_complete_line};

/// Standard output or standard error.
pub(super) struct Stdio {
    /// Unbuffered, so that it is known what was written when a write fails. Unlike the handles of the standard library, a
    /// `File` also reports an error if the descriptor is closed.
    #[cfg(unix)]
    writer: File,
    /// The standard library handles the encoding of a Windows console.
    #[cfg(windows)]
    writer: Box<dyn io::Write + Send>,
    is_torn: bool,
}

#[cfg(unix)]
impl Stdio {
    /// Opens standard output; `None` if it is closed or `/dev/null`: then lines go to other outputs.
    pub(super) fn stdout() -> Option<Self> {
        let stdout = Self::of(&io::stdout())?;
        (!is_null(&stdout.writer)).then_some(stdout)
    }

    /// Opens standard error; `None` if it is closed. If it was redirected to `/dev/null`, it is meant to be silent.
    pub(super) fn stderr() -> Option<Self> {
        let stderr = Self::of(&io::stderr())?;
        (!was_closed(&stderr.writer)).then_some(stderr)
    }

    fn of(descriptor: &impl AsFd) -> Option<Self> {
        let owned = descriptor.as_fd().try_clone_to_owned().ok()?;
        Some(Self { writer: owned.into(), is_torn: false })
    }
}

/// Whether a descriptor was closed when the process started. The standard library then opens `/dev/null` in its place for
/// reading and writing; a redirection of an output opens it for writing only.
#[cfg(unix)]
fn was_closed(file: &File) -> bool {
    use rustix::fs::{OFlags, fcntl_getfl};

    let is_readable = fcntl_getfl(file).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDWR);
    is_readable && is_null(file)
}

/// Whether a file is `/dev/null`.
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
    /// Opens standard output.
    pub(super) fn stdout() -> Option<Self> {
        Some(Self { writer: Box::new(io::stdout()), is_torn: false })
    }

    /// Opens standard error.
    pub(super) fn stderr() -> Option<Self> {
        Some(Self { writer: Box::new(io::stderr()), is_torn: false })
    }
}

impl LogDestination for Stdio {
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        write_complete_line(&mut self.writer, line, &mut self.is_torn)
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    #[test]
    fn dev_null_and_closed_descriptors_are_recognised() {
        let open = |path: &str| File::options().write(true).open(path).unwrap();
        assert!(is_null(&open("/dev/null")));
        assert!(!is_null(&open("/dev/full")));
        assert!(!is_null(&tempfile::tempfile().unwrap()));
        let both = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(was_closed(&both) && !was_closed(&open("/dev/null")));
        assert!(!was_closed(&tempfile::tempfile().unwrap()));
    }
}
