//! Log files named and rotated as the original does:
//! `aspia_relay-YYYYMMDD-HHMMSS.mmm.N.log`, a new one with `N + 1` at the size limit, old ones removed then.
//!
//! The crates that rotate by size rename the file that is written to, which this naming does not do, so this
//! is a thin layer of our own. Times in names are UTC, like those in the lines.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::macros::format_description;

const PREFIX: &str = "aspia_relay-";
const SUFFIX: &str = ".log";
/// Length of `YYYYMMDD-HHMMSS.mmm`.
const STAMP_LEN: usize = 19;

/// A writer that begins a new file whenever the present one is full.
pub(super) struct LogFiles {
    directory: PathBuf,
    size: u64,
    age: Option<Duration>,
    file: File,
    written: u64,
    number: u64,
}

impl LogFiles {
    /// Creates the directory where it is missing, and the first file.
    pub(super) fn create(directory: &Path, size: u64, age: Option<Duration>) -> io::Result<Self> {
        let (file, number) = begin(directory, 0, age)?;
        Ok(Self { directory: directory.to_owned(), size, age, file, written: 0, number })
    }
}

impl Write for LogFiles {
    /// Takes one line at a time: a line is never torn between two files.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.written > 0 && self.written + line.len() as u64 > self.size {
            (self.file, self.number) = begin(&self.directory, self.number + 1, self.age)?;
            self.written = 0;
        }
        self.file.write_all(line)?;
        self.written += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn begin(directory: &Path, number: u64, age: Option<Duration>) -> io::Result<(File, u64)> {
    // Again each time: what tidies temporary directories may have removed it.
    fs::create_dir_all(directory)?;
    if let Some(age) = age {
        remove_older(directory, age);
    }
    let stamp = OffsetDateTime::now_utc()
        .format(format_description!(
            "[year][month][day]-[hour][minute][second].[subsecond digits:3]"
        ))
        .map_err(io::Error::other)?;
    // Another relay may have begun its file in the same millisecond.
    let mut number = number;
    loop {
        let path = directory.join(format!("{PREFIX}{stamp}.{number}{SUFFIX}"));
        match File::create_new(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
            Ok(file) => return Ok((file, number)),
        }
    }
}

/// Removes this program's old files and nobody else's. A file that cannot be removed stays.
fn remove_older(directory: &Path, age: Duration) {
    let Some(limit) = SystemTime::now().checked_sub(age) else {
        return;
    };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(is_ours);
        let is_old = entry
            .metadata()
            .is_ok_and(|m| m.is_file() && m.modified().is_ok_and(|modified| modified < limit));
        if ours && is_old {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a name is one that [`begin`] gives.
fn is_ours(name: &str) -> bool {
    let Some((stamp, number)) = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_suffix(SUFFIX))
        .and_then(|rest| rest.split_at_checked(STAMP_LEN))
    else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let stamp_is_good = stamp.bytes().enumerate().all(|(place, byte)| match place {
        8 => byte == b'-',
        15 => byte == b'.',
        _ => byte.is_ascii_digit(),
    });
    stamp_is_good && number.strip_prefix('.').is_some_and(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_file_with_the_next_number_at_the_size_limit() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = LogFiles::create(directory.path(), 100, None).unwrap();
        for _ in 0..5 {
            assert_eq!(files.write(&[b'x'; 40]).unwrap(), 40);
        }
        let names = names(directory.path());
        assert_eq!(names.len(), 3, "{names:?}");
        for (number, name) in names.iter().enumerate() {
            assert!(is_ours(name) && name.ends_with(&format!(".{number}.log")), "{name}");
            let length = fs::metadata(directory.path().join(name)).unwrap().len();
            assert_eq!(length, if number == 2 { 40 } else { 80 });
        }
    }

    /// Windows keeps a directory in which a file is open.
    #[cfg(unix)]
    #[test]
    fn a_directory_that_was_tidied_away_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("aspia");
        let mut files = LogFiles::create(&inside, 10, None).unwrap();
        files.write_all(b"0123456789").unwrap();
        fs::remove_dir_all(&inside).unwrap();
        files.write_all(b"0123456789").unwrap();
        assert_eq!(names(&inside).len(), 1);
    }

    #[test]
    fn a_line_longer_than_the_limit_has_a_file_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = LogFiles::create(directory.path(), 100, None).unwrap();
        for length in [300, 10] {
            files.write_all(&vec![b'x'; length]).unwrap();
        }
        assert_eq!(names(directory.path()).len(), 2);
    }

    #[test]
    fn only_our_own_old_files_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - Duration::from_secs(3 * 86_400);
        let ours = "aspia_relay-20200101-000000.000.0.log";
        let others = [
            "aspia_router-20200101-000000.000.0.log",
            "aspia_relay-notes.log",
            "aspia_relay-20200101-000000.000.0.log.gz",
            "aspia_relay-20200101-000000.000.x.log",
        ];
        for name in others.iter().chain([&ours]) {
            let file = File::create(directory.path().join(name)).unwrap();
            file.set_modified(old).unwrap();
        }
        let young = "aspia_relay-20990101-000000.000.0.log";
        File::create(directory.path().join(young)).unwrap();
        drop(
            LogFiles::create(directory.path(), 100, Some(Duration::from_secs(4 * 86_400))).unwrap(),
        );
        assert!(names(directory.path()).contains(&ours.to_owned()));
        drop(
            LogFiles::create(directory.path(), 100, Some(Duration::from_secs(2 * 86_400))).unwrap(),
        );
        let left = names(directory.path());
        assert!(!left.contains(&ours.to_owned()));
        assert!(others.iter().chain([&young]).all(|name| left.contains(&(*name).to_owned())));
    }
}
