//! The destinations of log lines; writes each line completely.

use std::io;
use std::thread;
use std::time::Duration;

/// A destination of log lines, such as a file or stderr.
pub(super) trait LogDestination: Send {
    /// Writes one complete line. May block.
    fn write_line(&mut self, line: &[u8]) -> io::Result<()>;
}

/// Writes a complete line. If an error has left the previous line incomplete (`is_torn`), a line break is written first.
pub(super) fn write_complete_line(
    writer: &mut impl io::Write,
    line: &[u8],
    is_torn: &mut bool,
) -> io::Result<()> {
    if *is_torn {
        write_fully(writer, b"\n").map_err(|(_, error)| error)?;
        *is_torn = false;
    }
    write_fully(writer, line).map_err(|(written, error)| {
        *is_torn = written > 0;
        error
    })
}

/// Writes all bytes. An error comes with the number of bytes that were written before it.
fn write_fully(writer: &mut impl io::Write, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    /// The delay before the next attempt if another process that shares the pipe has made it non-blocking.
    const RETRY_DELAY: Duration = Duration::from_millis(10);
    let mut written = 0;
    while written < bytes.len() {
        match writer.write(&bytes[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY_DELAY),
            Err(error) => return Err((written, error)),
        }
    }
    writer.flush().map_err(|error| (written, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepts `size` bytes, and then none.
    struct Disk {
        written: Vec<u8>,
        size: usize,
    }

    impl io::Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match bytes.len().min(self.size - self.written.len()) {
                0 => Err(io::ErrorKind::StorageFull.into()),
                count => {
                    self.written.extend_from_slice(&bytes[..count]);
                    Ok(count)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn line_after_a_torn_line_starts_on_a_new_line() {
        let (mut disk, mut is_torn) = (Disk { written: Vec::new(), size: 8 }, false);
        let mut write =
            |disk: &mut Disk, line: &str| write_complete_line(disk, line.as_bytes(), &mut is_torn);
        assert!(write(&mut disk, "first\n").is_ok());
        assert!(write(&mut disk, "second\n").is_err());
        // The disk is still full.
        assert!(write(&mut disk, "third\n").is_err());
        disk.size = 100;
        assert!(write(&mut disk, "fourth\n").is_ok());
        assert!(write(&mut disk, "fifth\n").is_ok());
        assert_eq!(disk.written, b"first\nse\nfourth\nfifth\n");
    }
}
