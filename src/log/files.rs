//! Log files named and rotated as the original does:
//! `aspia_relay-YYYYMMDD-HHMMSS.mmm.N.log`, a new one with `N + 1` at the size limit, old ones removed then.
//!
//! The crates that rotate by size rename the file that is written to, which this naming does not do, so this
//! is a thin layer of our own. Times in names are UTC, like those in the lines.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use time::OffsetDateTime;
use time::macros::format_description;

use super::output::{Destination, write_whole};

const PREFIX: &str = "aspia_relay-";
const SUFFIX: &str = ".log";
/// Length of `YYYYMMDD-HHMMSS.mmm`.
const STAMP_LEN: usize = 19;
/// How long no new file is tried after one could not be begun, or took no line.
const PAUSE: Duration = Duration::from_secs(1);

/// What log files may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Of one file, in bytes.
    pub(super) size: u64,
    /// Of all files of this program in the directory together, in bytes.
    pub(super) total: Option<u64>,
    /// Older ones are removed.
    pub(super) age: Option<Duration>,
}

/// Creates a file to append to.
type Opener = fn(&Path) -> io::Result<File>;

/// What is emptied while it is written to goes on at its beginning.
fn open_new(path: &Path) -> io::Result<File> {
    File::options().append(true).create_new(true).open(path)
}

/// Writes lines to files, and begins a new one whenever the present one is full, or no longer there under its name.
pub(super) struct LogFiles {
    directory: PathBuf,
    bounds: Bounds,
    /// `None` after an error that may be of this file alone.
    current: Option<Current>,
    /// The number of the next file.
    next: u64,
    /// When a file could not be begun, or took no line, and why.
    failed: Option<(Instant, io::Error)>,
    pause: Duration,
    open: Opener,
}

impl LogFiles {
    /// Creates the directory where it is missing, and the first file.
    pub(super) fn create(directory: &Path, bounds: Bounds) -> io::Result<Self> {
        let mut this = Self {
            directory: directory.to_owned(),
            bounds,
            current: None,
            next: 0,
            failed: None,
            pause: PAUSE,
            open: open_new,
        };
        this.begin()?;
        Ok(this)
    }

    fn begin(&mut self) -> io::Result<&mut Current> {
        if let Some((when, why)) = &self.failed
            && when.elapsed() < self.pause
        {
            return Err(same(why));
        }
        match begin(&self.directory, self.next, self.bounds, self.open) {
            Ok((file, number)) => {
                self.next = number + 1;
                Ok(self.current.insert(file))
            }
            Err(error) => {
                self.failed = Some((Instant::now(), same(&error)));
                Err(error)
            }
        }
    }

    /// Gives up the present file after an error that another one may not have. Not at once, and without what is empty: on a
    /// disk that takes names but no lines, every line would leave a file behind.
    fn give_up(&mut self, error: &io::Error) {
        self.failed = Some((Instant::now(), same(error)));
        if let Some(file) = self.current.take()
            && file.length() == Some(0)
        {
            let Current { path, file, .. } = file;
            drop(file);
            let _ = fs::remove_file(path);
        }
    }
}

impl Destination for LogFiles {
    /// Takes one line at a time: a line is never torn between two files.
    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let fits = |file: &Current| {
            // Where it was removed or renamed, as by what tidies temporary directories, or by logrotate, there is none; and
            // somebody may have emptied it.
            let used = file.length()?;
            Some(used == 0 || used + line.len() as u64 <= self.bounds.size)
        };
        let file = match &mut self.current {
            Some(file) if fits(file) == Some(true) => file,
            _ => self.begin()?,
        };
        let written = write_whole(&mut file.file, line, &mut file.torn);
        match &written {
            Ok(()) => self.failed = None,
            // A new file would not help against a full disk; against anything else it may.
            Err(error) if is_full(error) => {}
            Err(error) => self.give_up(error),
        }
        written
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};

    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// The same error once more, with the words of the system.
fn same(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// A file that is being written.
#[derive(Debug)]
struct Current {
    path: PathBuf,
    file: File,
    /// Whether its last line is not complete.
    torn: bool,
}

impl Current {
    /// How long it is; `None` where another file, or none, has its name.
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

fn begin(
    directory: &Path,
    number: u64,
    bounds: Bounds,
    open: Opener,
) -> io::Result<(Current, u64)> {
    // Again each time: what tidies temporary directories may have removed it.
    fs::create_dir_all(directory)?;
    make_room(directory, bounds);
    let stamp = OffsetDateTime::now_utc()
        .format(format_description!(
            "[year][month][day]-[hour][minute][second].[subsecond digits:3]"
        ))
        .map_err(io::Error::other)?;
    // Another relay may have begun its file in the same millisecond.
    let mut number = number;
    loop {
        let path = directory.join(format!("{PREFIX}{stamp}.{number}{SUFFIX}"));
        match open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
            Ok(file) => return Ok((Current { path, file, torn: false }, number)),
        }
    }
}

/// Removes files of this program and nobody else's, the oldest first: those that are too old, and those for which there is
/// no room beside a full new one. One that cannot be removed, such as another user's, stays and does not count.
fn make_room(directory: &Path, bounds: Bounds) {
    let oldest = bounds.age.and_then(|age| SystemTime::now().checked_sub(age));
    let mut files = ours(directory);
    files.sort_unstable_by_key(|(_, modified, _)| *modified);
    let mut total = files.iter().map(|(_, _, length)| *length).sum::<u64>();
    for (path, modified, length) in files {
        let is_old = oldest.is_some_and(|oldest| modified < oldest);
        let is_too_much = bounds.total.is_some_and(|most| total > most.saturating_sub(bounds.size));
        if is_old || is_too_much {
            let _ = fs::remove_file(path);
            total -= length;
        }
    }
}

/// The log files of this program, with when they were written to last and their length.
fn ours(directory: &Path) -> Vec<(PathBuf, SystemTime, u64)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_ours))
        .filter_map(|entry| {
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some((entry.path(), metadata.modified().ok()?, metadata.len()))
        })
        .collect()
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

    fn bounds(size: u64) -> Bounds {
        Bounds { size, total: None, age: None }
    }

    fn create(directory: &Path, bounds: Bounds) -> LogFiles {
        LogFiles { pause: Duration::ZERO, ..LogFiles::create(directory, bounds).unwrap() }
    }

    /// All that is in the files, the older first.
    fn written(directory: &Path) -> String {
        let read = |name: &String| fs::read_to_string(directory.join(name)).unwrap();
        names(directory).iter().map(read).collect()
    }

    #[test]
    fn a_new_file_with_the_next_number_at_the_size_limit() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = create(directory.path(), bounds(100));
        for _ in 0..5 {
            files.write_line(&[b'x'; 40]).unwrap();
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
        let mut files = create(&inside, bounds(100));
        files.write_line(b"first\n").unwrap();
        fs::remove_dir_all(&inside).unwrap();
        files.write_line(b"second\n").unwrap();
        assert_eq!(written(&inside), "second\n");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_was_removed_or_renamed_is_followed_by_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut files = create(directory.path(), bounds(1000));
        files.write_line(b"first\n").unwrap();
        // As logrotate does.
        let [name] = &names(directory.path())[..] else { panic!("one file") };
        fs::rename(path(name), path("rotated")).unwrap();
        files.write_line(b"second\n").unwrap();
        assert_eq!(fs::read_to_string(path("rotated")).unwrap(), "first\n");
        fs::remove_file(path("rotated")).unwrap();
        assert_eq!(written(directory.path()), "second\n");
        // Another file has the name.
        let [name] = &names(directory.path())[..] else { panic!("one file") };
        fs::remove_file(path(name)).unwrap();
        fs::write(path(name), "not ours\n").unwrap();
        files.write_line(b"third\n").unwrap();
        assert_eq!(written(directory.path()), "not ours\nthird\n");
    }

    #[test]
    fn a_file_that_was_emptied_is_filled_from_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = create(directory.path(), bounds(20));
        files.write_line(b"first line\n").unwrap();
        let [name] = &names(directory.path())[..] else { panic!("one file") };
        File::create(directory.path().join(name)).unwrap();
        files.write_line(b"second line\n").unwrap();
        assert_eq!(written(directory.path()), "second line\n");
        assert_eq!(names(directory.path()).len(), 1);
    }

    /// Whoever may do everything, as in a container, may write to a directory that may not be written to.
    #[cfg(unix)]
    #[test]
    fn where_no_file_can_be_begun_it_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("aspia");
        let mut files = create(&inside, bounds(10));
        fs::remove_dir_all(&inside).unwrap();
        fs::write(&inside, "in the way").unwrap();
        assert!(files.write_line(b"lost\n").is_err());
        files.pause = Duration::MAX;
        fs::remove_file(&inside).unwrap();
        assert!(files.write_line(b"lost\n").is_err(), "not at once");
        files.pause = Duration::ZERO;
        files.write_line(b"third\n").unwrap();
        assert_eq!(written(&inside), "third\n");
    }

    /// A disk that takes names and no lines: what is opened for reading takes none.
    fn open_unwritable(path: &Path) -> io::Result<File> {
        File::create_new(path)?;
        File::open(path)
    }

    #[test]
    fn a_disk_that_takes_names_but_no_lines_is_not_filled_with_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = create(directory.path(), bounds(1000));
        files.write_line(b"first\n").unwrap();
        let begun = names(directory.path());
        files.open = open_unwritable;
        let unwritable = File::open(directory.path().join(&begun[0])).unwrap();
        files.current.as_mut().unwrap().file = unwritable;
        let first = files.write_line(b"lost\n").unwrap_err();
        // What it has written stays, and nothing new is begun for a while.
        files.pause = Duration::MAX;
        for _ in 0..100 {
            let error = files.write_line(b"lost\n").unwrap_err();
            assert_eq!(error.to_string(), first.to_string());
        }
        assert_eq!(names(directory.path()), begun);
        // Then there is one at a time, which does not stay empty.
        files.pause = Duration::ZERO;
        for _ in 0..100 {
            assert!(files.write_line(b"lost\n").is_err());
            assert_eq!(names(directory.path()), begun);
        }
        // Also after such a file nothing new is begun at once.
        files.pause = Duration::MAX;
        files.open = open_new;
        assert!(files.write_line(b"lost\n").is_err());
        files.pause = Duration::ZERO;
        files.write_line(b"second\n").unwrap();
        assert_eq!(written(directory.path()), "first\nsecond\n");
        assert_eq!(names(directory.path()).len(), 2);
    }

    #[test]
    fn a_line_longer_than_the_limit_has_a_file_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = create(directory.path(), bounds(100));
        for length in [300, 10] {
            files.write_line(&vec![b'x'; length]).unwrap();
        }
        assert_eq!(names(directory.path()).len(), 2);
    }

    #[test]
    fn all_files_together_stay_within_their_bound_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let foreign = directory.path().join("aspia_router-20200101-000000.000.0.log");
        fs::write(&foreign, vec![0; 5000]).unwrap();
        let total = Some(350);
        let mut files = create(directory.path(), Bounds { size: 100, total, age: None });
        let start = SystemTime::now();
        for number in 0..40_u64 {
            files.write_line(format!("{number:>49}\n").as_bytes()).unwrap();
            // The clock of a file system may be coarse.
            let file = &files.current.as_ref().unwrap().file;
            file.set_modified(start + Duration::from_secs(number)).unwrap();
            let sizes = ours(directory.path()).into_iter().map(|(_, _, length)| length);
            assert!(sizes.sum::<u64>() <= 350);
        }
        // The newest are left.
        let numbers: Vec<u64> = names(directory.path())
            .iter()
            .filter(|name| is_ours(name))
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
        drop(create(
            directory.path(),
            Bounds { age: Some(Duration::from_secs(4 * 86_400)), ..bounds(100) },
        ));
        assert!(names(directory.path()).contains(&ours.to_owned()));
        drop(create(
            directory.path(),
            Bounds { age: Some(Duration::from_secs(2 * 86_400)), ..bounds(100) },
        ));
        let left = names(directory.path());
        assert!(!left.contains(&ours.to_owned()));
        assert!(others.iter().chain([&young]).all(|name| left.contains(&(*name).to_owned())));
    }
}
