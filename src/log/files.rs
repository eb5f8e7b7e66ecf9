//! Log files, named and rotated as in the original: `aspia_relay-YYYYMMDD-HHMMSS.mmm.N.log`. At the size limit a new file
//! with `N + 1` is created, and old files are removed.
//!
//! Crates that rotate by size rename the file that is being written. Files of this naming scheme are never renamed, hence
//! this module. Times in names are UTC, like those in the lines.

use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::destination::{LogDestination, write_complete_line};

const PREFIX: &str = "aspia_relay-";
const SUFFIX: &str = ".log";
/// Length of `YYYYMMDD-HHMMSS.mmm`.
const STAMP_LEN: usize = 19;
/// How long to wait before the next file is created, after a file could not be created or a line could not be written.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Limits on the log files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogFileLimits {
    /// The largest size of one file, in bytes.
    pub(super) size: u64,
    /// The largest size of all files of this program in the directory together, in bytes.
    pub(super) total: Option<u64>,
    /// The age at which files are removed.
    pub(super) age: Option<Duration>,
}

/// A function that creates a file to append to.
type CreateFile = fn(&Path) -> io::Result<File>;

/// Creates a file in append mode, so that the next line is the first one if somebody truncates the file.
fn create_file(path: &Path) -> io::Result<File> {
    File::options().append(true).create_new(true).open(path)
}

/// Writes lines to files, and begins a new file when the current one is full, or no longer exists under its name.
pub(super) struct LogFiles {
    directory: PathBuf,
    limits: LogFileLimits,
    /// `None` after an error that another file may not have.
    current: Option<LogFile>,
    /// The number of the next file.
    next_number: u64,
    /// The last error of creating a file or writing a line, and when it occurred.
    last_error: Option<(Instant, io::Error)>,
    retry_delay: Duration,
    create_file: CreateFile,
}

impl LogFiles {
    /// Creates the directory, if it does not exist, and the first file.
    pub(super) fn create(directory: &Path, limits: LogFileLimits) -> io::Result<Self> {
        let mut this = Self {
            directory: directory.to_owned(),
            limits,
            current: None,
            next_number: 0,
            last_error: None,
            retry_delay: RETRY_DELAY,
            create_file,
        };
        this.begin_next_file()?;
        Ok(this)
    }

    fn begin_next_file(&mut self) -> io::Result<&mut LogFile> {
        if let Some((at, error)) = &self.last_error
            && at.elapsed() < self.retry_delay
        {
            return Err(clone_error(error));
        }
        match begin_file(&self.directory, self.next_number, self.limits, self.create_file) {
            Ok((file, number)) => {
                self.next_number = number + 1;
                Ok(self.current.insert(file))
            }
            Err(error) => {
                self.last_error = Some((Instant::now(), clone_error(&error)));
                Err(error)
            }
        }
    }

    /// Abandons the current file after an error that another file may not have, and removes it if it is empty. The next file
    /// is not created at once: on a disk that has room for names but not for data, every line would leave a file behind.
    fn abandon_file(&mut self, error: &io::Error) {
        self.last_error = Some((Instant::now(), clone_error(error)));
        if let Some(file) = self.current.take()
            && file.length() == Some(0)
        {
            let LogFile { path, file, .. } = file;
            drop(file);
            let _ = fs::remove_file(path);
        }
    }
}

impl LogDestination for LogFiles {
    /// Writes the line to one file: no line is split between two.
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let fits = |file: &LogFile| {
            // There is no length if the file was removed or renamed, as `systemd-tmpfiles` or logrotate do. It may also
            // have been truncated.
            let used = file.length()?;
            Some(used == 0 || used + line.len() as u64 <= self.limits.size)
        };
        let file = match &mut self.current {
            Some(file) if fits(file) == Some(true) => file,
            _ => self.begin_next_file()?,
        };
        let written = write_complete_line(&mut file.file, line, &mut file.is_torn);
        match &written {
            Ok(()) => self.last_error = None,
            // A new file does not help if the disk is full. It may help against other errors.
            Err(error) if is_disk_full(error) => {}
            Err(error) => self.abandon_file(error),
        }
        written
    }
}

fn is_disk_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};

    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Copies an error, with the text of the system.
fn clone_error(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// A file that is being written.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    /// Whether its last line is incomplete.
    is_torn: bool,
}

impl LogFile {
    /// Returns the length of the file; `None` if another file has its name, or there is no such file any more.
    fn length(&self) -> Option<u64> {
        let named = fs::symlink_metadata(&self.path).ok()?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;

            let own = self.file.metadata().ok()?;
            if (own.dev(), own.ino()) != (named.dev(), named.ino()) {
                return None;
            }
        }
        Some(named.len())
    }
}

/// Creates the next file. Returns it with its number, which is `number` or greater.
fn begin_file(
    directory: &Path,
    number: u64,
    limits: LogFileLimits,
    create_file: CreateFile,
) -> io::Result<(LogFile, u64)> {
    // Each time, because a cleaner of temporary directories may have removed the directory.
    fs::create_dir_all(directory)?;
    remove_old_files(directory, limits);
    let stamp = format_stamp(SystemTime::now())?;
    // Another relay may have created its file in the same millisecond.
    let mut number = number;
    loop {
        let path = directory.join(format!("{PREFIX}{stamp}.{number}{SUFFIX}"));
        match create_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
            Ok(file) => return Ok((LogFile { path, file, is_torn: false }, number)),
        }
    }
}

/// Formats a time for file names: `YYYYMMDD-HHMMSS.mmm`.
fn format_stamp(time: SystemTime) -> io::Result<String> {
    let mut rfc3339 = String::new();
    // humantime does not format times before 1970.
    write!(rfc3339, "{}", humantime::format_rfc3339_millis(time)).map_err(io::Error::other)?;
    let replace = |c| match c {
        '-' | ':' | 'Z' => None,
        'T' => Some('-'),
        c => Some(c),
    };
    Ok(rfc3339.chars().filter_map(replace).collect())
}

/// Removes log files of this program, the oldest first: those that are too old, and as many as necessary so that a full new
/// file does not exceed the total. A file that cannot be removed, such as another user's, stays and does not count.
fn remove_old_files(directory: &Path, limits: LogFileLimits) {
    let oldest = limits.age.and_then(|age| SystemTime::now().checked_sub(age));
    let mut files = list_log_files(directory);
    files.sort_unstable_by_key(|(_, modified, _)| *modified);
    let mut total = files.iter().map(|(_, _, length)| *length).sum::<u64>();
    for (path, modified, length) in files {
        let is_old = oldest.is_some_and(|oldest| modified < oldest);
        let exceeds_total =
            limits.total.is_some_and(|most| total > most.saturating_sub(limits.size));
        if is_old || exceeds_total {
            let _ = fs::remove_file(path);
            total -= length;
        }
    }
}

/// Lists the log files of this program, with the time of the last write and the length.
fn list_log_files(directory: &Path) -> Vec<(PathBuf, SystemTime, u64)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_log_file_name))
        .filter_map(|entry| {
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some((entry.path(), metadata.modified().ok()?, metadata.len()))
        })
        .collect()
}

/// Whether a name has the form that [`begin_file`] gives to files.
fn is_log_file_name(name: &str) -> bool {
    let Some((stamp, number)) = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_suffix(SUFFIX))
        .and_then(|rest| rest.split_at_checked(STAMP_LEN))
    else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_stamp = stamp.bytes().enumerate().all(|(place, byte)| match place {
        8 => byte == b'-',
        15 => byte == b'.',
        _ => byte.is_ascii_digit(),
    });
    is_stamp && number.strip_prefix('.').is_some_and(digits)
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

    fn limits(size: u64) -> LogFileLimits {
        LogFileLimits { size, total: None, age: None }
    }

    fn create(directory: &Path, limits: LogFileLimits) -> LogFiles {
        LogFiles { retry_delay: Duration::ZERO, ..LogFiles::create(directory, limits).unwrap() }
    }

    /// The contents of all files, the oldest first.
    fn written(directory: &Path) -> String {
        let read = |name: &String| fs::read_to_string(directory.join(name)).unwrap();
        names(directory).iter().map(read).collect()
    }

    #[test]
    fn file_name_has_the_time_in_utc_to_the_millisecond() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_518_563_312_007);
        let stamp = format_stamp(time).unwrap();
        assert_eq!(stamp, "20180213-230832.007");
        assert_eq!(stamp.len(), STAMP_LEN);
    }

    #[test]
    fn file_with_the_next_number_begins_at_the_size_limit() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = create(directory.path(), limits(100));
        for _ in 0..5 {
            files.write_line(&[b'x'; 40]).unwrap();
        }
        let names = names(directory.path());
        assert_eq!(names.len(), 3, "{names:?}");
        for (number, name) in names.iter().enumerate() {
            assert!(is_log_file_name(name) && name.ends_with(&format!(".{number}.log")), "{name}");
            let length = fs::metadata(directory.path().join(name)).unwrap().len();
            assert_eq!(length, if number == 2 { 40 } else { 80 });
        }
    }

    /// Windows does not remove a directory in which a file is open.
    #[cfg(unix)]
    #[test]
    fn removed_directory_is_created_again() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("aspia");
        let mut files = create(&inside, limits(100));
        files.write_line(b"first\n").unwrap();
        fs::remove_dir_all(&inside).unwrap();
        files.write_line(b"second\n").unwrap();
        assert_eq!(written(&inside), "second\n");
    }

    #[cfg(unix)]
    #[test]
    fn removed_or_renamed_file_is_followed_by_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut files = create(directory.path(), limits(1000));
        files.write_line(b"first\n").unwrap();
        // logrotate renames the file.
        let [name] = &names(directory.path())[..] else { panic!("one file") };
        fs::rename(path(name), path("rotated")).unwrap();
        files.write_line(b"second\n").unwrap();
        assert_eq!(fs::read_to_string(path("rotated")).unwrap(), "first\n");
        fs::remove_file(path("rotated")).unwrap();
        assert_eq!(written(directory.path()), "second\n");
        // Another file takes the name.
        let [name] = &names(directory.path())[..] else { panic!("one file") };
        fs::remove_file(path(name)).unwrap();
        fs::write(path(name), "not ours\n").unwrap();
        files.write_line(b"third\n").unwrap();
        assert_eq!(written(directory.path()), "not ours\nthird\n");
    }

    #[test]
    fn truncated_file_is_filled_from_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = create(directory.path(), limits(20));
        files.write_line(b"first line\n").unwrap();
        let [name] = &names(directory.path())[..] else { panic!("one file") };
        File::create(directory.path().join(name)).unwrap();
        files.write_line(b"second line\n").unwrap();
        assert_eq!(written(directory.path()), "second line\n");
        assert_eq!(names(directory.path()).len(), 1);
    }

    /// The test puts a file in place of the directory because root can write to a read-only directory.
    #[cfg(unix)]
    #[test]
    fn file_that_could_not_be_created_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("aspia");
        let mut files = create(&inside, limits(10));
        fs::remove_dir_all(&inside).unwrap();
        fs::write(&inside, "in the way").unwrap();
        assert!(files.write_line(b"lost\n").is_err());
        files.retry_delay = Duration::MAX;
        fs::remove_file(&inside).unwrap();
        assert!(files.write_line(b"lost\n").is_err(), "not immediately");
        files.retry_delay = Duration::ZERO;
        files.write_line(b"third\n").unwrap();
        assert_eq!(written(&inside), "third\n");
    }

    /// Simulates a disk that has room for names but not for data: no line can be written to a file opened for reading.
    fn create_unwritable(path: &Path) -> io::Result<File> {
        File::create_new(path)?;
        File::open(path)
    }

    #[test]
    fn disk_with_room_for_names_but_not_for_data_is_not_filled_with_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = create(directory.path(), limits(1000));
        files.write_line(b"first\n").unwrap();
        let existing = names(directory.path());
        files.create_file = create_unwritable;
        let unwritable = File::open(directory.path().join(&existing[0])).unwrap();
        files.current.as_mut().unwrap().file = unwritable;
        let first = files.write_line(b"lost\n").unwrap_err();
        // The file that has data stays, and no new one is created for a while.
        files.retry_delay = Duration::MAX;
        for _ in 0..100 {
            let error = files.write_line(b"lost\n").unwrap_err();
            assert_eq!(error.to_string(), first.to_string());
        }
        assert_eq!(names(directory.path()), existing);
        // Then one file at a time is created, and removed because it stays empty.
        files.retry_delay = Duration::ZERO;
        for _ in 0..100 {
            assert!(files.write_line(b"lost\n").is_err());
            assert_eq!(names(directory.path()), existing);
        }
        // After such a file, too, the next one is not created at once.
        files.retry_delay = Duration::MAX;
        files.create_file = create_file;
        assert!(files.write_line(b"lost\n").is_err());
        files.retry_delay = Duration::ZERO;
        files.write_line(b"second\n").unwrap();
        assert_eq!(written(directory.path()), "first\nsecond\n");
        assert_eq!(names(directory.path()).len(), 2);
    }

    #[test]
    fn line_longer_than_the_limit_has_its_own_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = create(directory.path(), limits(100));
        for length in [300, 10] {
            files.write_line(&vec![b'x'; length]).unwrap();
        }
        assert_eq!(names(directory.path()).len(), 2);
    }

    #[test]
    fn total_size_is_limited_and_files_of_other_programs_stay() {
        let directory = tempfile::tempdir().unwrap();
        let foreign = directory.path().join("aspia_router-20200101-000000.000.0.log");
        fs::write(&foreign, vec![0; 5000]).unwrap();
        let total = Some(350);
        let mut files = create(directory.path(), LogFileLimits { size: 100, total, age: None });
        let start = SystemTime::now();
        for number in 0..40_u64 {
            files.write_line(format!("{number:>49}\n").as_bytes()).unwrap();
            // The timestamps of a file system may be coarse.
            let file = &files.current.as_ref().unwrap().file;
            file.set_modified(start + Duration::from_secs(number)).unwrap();
            let sizes = list_log_files(directory.path()).into_iter().map(|(_, _, length)| length);
            assert!(sizes.sum::<u64>() <= 350);
        }
        // The newest files remain.
        let numbers: Vec<u64> = names(directory.path())
            .iter()
            .filter(|name| is_log_file_name(name))
            .flat_map(|name| {
                fs::read_to_string(directory.path().join(name))
                    .unwrap()
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .map(|line| line.trim().parse().unwrap())
            .collect();
        assert_eq!(numbers.iter().max(), Some(&39));
        assert_eq!(numbers.len(), 6, "{numbers:?}");
        assert!(foreign.exists());
    }

    #[test]
    fn only_old_log_files_of_this_program_are_removed() {
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
        drop(create(
            directory.path(),
            LogFileLimits { age: Some(Duration::from_secs(4 * 86_400)), ..limits(100) },
        ));
        assert!(names(directory.path()).contains(&ours.to_owned()));
        drop(create(
            directory.path(),
            LogFileLimits { age: Some(Duration::from_secs(2 * 86_400)), ..limits(100) },
        ));
        let left = names(directory.path());
        assert!(!left.contains(&ours.to_owned()));
        assert!(others.iter().chain([&young]).all(|name| left.contains(&(*name).to_owned())));
    }
}
