//! A container's log as its shim writes it (`agent/shim/src/log.rs`): the file and the
//! earlier one, NAME.1, read as one while lines come and files are rotated.
//!
//! A line is "TIME STREAM TAG TEXT", tag P for a part of a line and F for its end.
//! Blocking. Called by `logs.rs` and `last_words.rs`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Take};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes after which [`LogFile::read`] returns.
const CHUNK: usize = 32 << 10;
/// Looks at the two names before a log that is rotated without end is taken as it is.
const LOOKS: u32 = 100;
/// Between two looks: a rotation takes two renames.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Which lines of a log are asked for, and in which form.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    /// With their times in front.
    pub(crate) timestamps: bool,
    /// Not those before this time, which is written as the log has it.
    pub(crate) since: Option<String>,
}

impl Filter {
    /// Appends what is asked for of one line of the file.
    fn take(&self, line: &[u8], out: &mut Vec<u8>) {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (Some(time), Some(_stream), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        // RFC 3339 in UTC with as many digits each: the order of texts is that of times.
        if self
            .since
            .as_ref()
            .is_some_and(|since| time < since.as_bytes())
        {
            return;
        }
        if self.timestamps {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        out.extend_from_slice(text);
        if !is_part(tag) {
            out.push(b'\n');
        }
    }
}

fn is_part(tag: &[u8]) -> bool {
    tag == b"P"
}

type Part = Take<BufReader<File>>;

/// Without this end, a log that grows would give more lines than were asked for, and one that
/// grows as fast as it is read would never end.
fn part(file: File) -> io::Result<Part> {
    let length = file.metadata()?.len();
    Ok(BufReader::new(file).take(length))
}

/// Reads a log from its earlier file on; whole lines only, each once.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    /// The one that is read, then those that were begun after it; each up to the length that it
    /// had when it was opened, unless the log is followed.
    files: VecDeque<Part>,
    /// Of a line that is not whole yet.
    line: Vec<u8>,
}

impl LogFile {
    /// Opens what there is of a log: the earlier file and this one, this one, or nothing.
    pub(crate) fn open(path: &Path) -> io::Result<LogFile> {
        let (earlier, current) = pair(path)?;
        let files = earlier.into_iter().chain(current).map(part);
        Ok(LogFile {
            path: path.into(),
            files: files.collect::<io::Result<_>>()?,
            line: Vec::new(),
        })
    }

    /// Begins so that of what is there so many lines are left; the parts of one line
    /// count as one, also where they lie in two files. Before the first read.
    pub(crate) fn skip_to_last(&mut self, lines: u64) -> io::Result<()> {
        let lines = usize::try_from(lines).unwrap_or(usize::MAX);
        let mut starts = VecDeque::new();
        let mut end = (0, 0);
        let mut begins = true;
        let lengths: Vec<u64> = self.files.iter().map(Part::limit).collect();
        for (index, file) in self.files.iter_mut().enumerate() {
            end = (index, 0);
            loop {
                self.line.clear();
                let length = file.read_until(b'\n', &mut self.line)?;
                // An incomplete line is left for the next read.
                if length == 0 || !self.line.ends_with(b"\n") {
                    break;
                }
                if begins {
                    starts.push_back(end);
                    if starts.len() > lines {
                        starts.pop_front();
                    }
                }
                begins = !self
                    .line
                    .splitn(4, |b| *b == b' ')
                    .nth(2)
                    .is_some_and(is_part);
                end.1 += length as u64;
            }
        }
        self.line.clear();
        let (first, offset) = starts.front().copied().unwrap_or(end);
        for (index, (file, length)) in self.files.iter_mut().zip(lengths).enumerate() {
            let start = if index == first { offset } else { 0 };
            file.get_mut().seek(SeekFrom::Start(start))?;
            file.set_limit(length - start);
        }
        self.files.drain(..first.min(self.files.len()));
        Ok(())
    }

    /// Up to a chunk of what was there when the log was opened, through the filter; true when
    /// there is more. `follow`: also what was written since, to files that were begun since too.
    pub(crate) fn read(
        &mut self,
        filter: &Filter,
        follow: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<bool> {
        while out.len() < CHUNK {
            let length = match self.files.front_mut() {
                Some(file) => {
                    if follow {
                        file.set_limit(u64::MAX);
                    }
                    file.read_until(b'\n', &mut self.line)?
                }
                None => 0,
            };
            if length > 0 {
                if self.line.ends_with(b"\n") {
                    filter.take(&self.line, out);
                    self.line.clear();
                }
            } else if self.files.len() > 1 {
                // It was rotated, so that the rest of an unfinished line will not come.
                self.files.pop_front();
                self.line.clear();
            } else if !follow || !self.look_for_more()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// At the end of the last file that is known: was another one begun since? This
    /// one is read once more before that, as lines may have come in between.
    fn look_for_more(&mut self) -> io::Result<bool> {
        let (earlier, current) = pair(&self.path)?;
        let inode = |file: &File| file.metadata().map(|m| m.ino());
        let own = match self.files.back() {
            Some(file) => Some(inode(file.get_ref().get_ref())?),
            None => None,
        };
        for file in [earlier, current].into_iter().flatten() {
            if Some(inode(&file)?) == own {
                // What came before it was read.
                self.files.truncate(1);
            } else {
                self.files.push_back(part(file)?);
            }
        }
        Ok(self.files.len() > usize::from(own.is_some()))
    }
}

/// Removes the logs of a container's instances before `attempt`. `folder`: its logs.
pub(crate) fn remove_before(folder: &Path, attempt: u32) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        // ATTEMPT.log, ATTEMPT.log.1
        let number = name.to_str().and_then(|name| name.split_once(".log"));
        let old = number.and_then(|(number, _)| number.parse::<u32>().ok());
        if old.is_some_and(|old| old < attempt) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The earlier file and this one, as they are at one moment: with nothing between.
fn pair(path: &Path) -> io::Result<(Option<File>, Option<File>)> {
    let mut earlier_path = path.as_os_str().to_owned();
    earlier_path.push(".1");
    for _ in 0..LOOKS {
        let current = if_there(File::open(path))?;
        let earlier = if_there(File::open(&earlier_path))?;
        let there = if_there(fs::metadata(path))?.map(|m| m.ino());
        let own = match &current {
            Some(file) => Some(file.metadata()?.ino()),
            None => None,
        };
        // An open file keeps its number: it had this name all the time.
        if own == there && (own.is_some() || earlier.is_none()) {
            return Ok((earlier, current));
        }
        // Between the two renames of a rotation, or one took place.
        std::thread::sleep(LOOK_AGAIN);
    }
    // Its shim died between the two.
    Ok((if_there(File::open(&earlier_path))?, None))
}

fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn all(log: &mut LogFile, filter: &Filter, follow: bool) -> String {
        let mut text = Vec::new();
        loop {
            let mut out = Vec::new();
            let more = log.read(filter, follow, &mut out).unwrap();
            text.extend(out);
            if !more {
                return String::from_utf8(text).unwrap();
            }
        }
    }

    const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n\
                       2026-01-01T00:00:02.000000000Z stderr P tw\n\
                       2026-01-01T00:00:03.000000000Z stderr F o\n\
                       2026-01-01T00:00:04.000000000Z stdout F three words here\n";

    fn line(n: usize) -> String {
        format!("2026-01-01T00:00:01.000000000Z stdout F {n}\n")
    }

    fn numbers(range: std::ops::Range<usize>) -> String {
        range.map(|n| format!("{n}\n")).collect()
    }

    /// The log of 0.. that was rotated so that its files begin with these numbers.
    fn rotate(path: &Path) {
        let mut earlier = path.as_os_str().to_owned();
        earlier.push(".1");
        fs::write(path.with_extension("new"), "").unwrap();
        fs::rename(path, &earlier).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }

    fn append(path: &Path, text: &str) {
        let mut file = fs::OpenOptions::new();
        let mut file = file.append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_parts_and_filters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let read = |filter: &Filter| all(&mut LogFile::open(&path).unwrap(), filter, false);
        assert_eq!(read(&Filter::default()), "");
        fs::write(&path, LOG).unwrap();
        assert_eq!(read(&Filter::default()), "one\ntwo\nthree words here\n");
        let since = Filter {
            since: Some("2026-01-01T00:00:03.5Z".into()),
            ..Filter::default()
        };
        assert_eq!(read(&since), "three words here\n");
        let timed = Filter {
            timestamps: true,
            ..Filter::default()
        };
        assert!(read(&timed).starts_with("2026-01-01T00:00:01.000000000Z one\n"));
    }

    #[test]
    fn the_last_lines_of_both_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        // Wherever it is rotated, also between the parts of a line.
        let pieces: Vec<&str> = LOG.split_inclusive('\n').collect();
        for cut in 0..=pieces.len() {
            fs::write(&path, pieces[..cut].concat()).unwrap();
            rotate(&path);
            append(&path, &pieces[cut..].concat());
            for (lines, text) in [
                (0, ""),
                (1, "three words here\n"),
                (2, "two\nthree words here\n"),
                (3, "one\ntwo\nthree words here\n"),
                (u64::MAX, "one\ntwo\nthree words here\n"),
            ] {
                let mut log = LogFile::open(&path).unwrap();
                log.skip_to_last(lines).unwrap();
                let read = all(&mut log, &Filter::default(), false);
                assert_eq!(read, text, "cut at {cut}, last {lines}");
            }
        }
    }

    #[test]
    fn a_rotation_in_the_middle_of_a_read_neither_repeats_nor_misses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let write = |range: std::ops::Range<usize>| {
            append(&path, &range.map(line).collect::<String>());
        };
        for rotations in 0..3 {
            for follow in [false, true] {
                drop(fs::remove_file(&path));
                drop(fs::remove_file(folder.path().join("0.log.1")));
                write(0..10);
                rotate(&path);
                write(10..20);
                let mut log = LogFile::open(&path).unwrap();
                log.skip_to_last(15).unwrap();
                // While it is open and not read yet.
                write(20..30);
                for n in 0..rotations {
                    rotate(&path);
                    write(30 + n * 10..40 + n * 10);
                }
                // Without following, what there was when it was opened.
                let end = if follow { 30 + rotations * 10 } else { 20 };
                let read = all(&mut log, &Filter::default(), follow);
                assert_eq!(read, numbers(5..end), "{rotations} {follow}");
                write(90..91);
                let rest = all(&mut log, &Filter::default(), true);
                if follow {
                    assert_eq!(rest, "90\n", "{rotations}");
                }
            }
        }
    }

    #[test]
    fn a_log_that_grows_gives_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        let mut read = || all(&mut log, &Filter::default(), true);
        assert_eq!(read(), "");
        append(&path, "2026-01-01T00:00:01.0Z stdout F on");
        assert_eq!(read(), "");
        append(&path, "e\n");
        assert_eq!(read(), "one\n");
        append(&path, "2026-01-01T00:00:02.0Z stdout F two\n");
        rotate(&path);
        append(&path, "2026-01-01T00:00:03.0Z stdout F three\n");
        assert_eq!(read(), "two\nthree\n");
        assert_eq!(read(), "");
    }

    #[test]
    fn a_reader_beside_a_writer_that_rotates_sees_each_line_once() {
        const LINES: usize = 20_000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let (beside, read) = (path.clone(), std::sync::atomic::AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let read = &read;
            scope.spawn(move || {
                for n in 0..LINES {
                    append(&beside, &line(n));
                    // As long as no more than one file is behind, nothing may be lost.
                    while n > read.load(std::sync::atomic::Ordering::Relaxed) + 90 {
                        std::thread::yield_now();
                    }
                    if n % 50 == 49 {
                        rotate(&beside);
                    }
                }
            });
            let mut log = LogFile::open(&path).unwrap();
            let mut seen = 0;
            while seen < LINES {
                let mut out = Vec::new();
                log.read(&Filter::default(), true, &mut out).unwrap();
                for text in String::from_utf8(out).unwrap().lines() {
                    assert_eq!(text, seen.to_string());
                    seen += 1;
                }
                read.store(seen, std::sync::atomic::Ordering::Relaxed);
            }
        });
    }

    #[test]
    fn old_logs_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["0.log", "1.log", "1.log.1", "2.log", "10.log", "other"] {
            fs::write(path(name), "").unwrap();
        }
        remove_before(folder.path(), 2).unwrap();
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut left: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["10.log", "2.log", "other"]);
        remove_before(&path("missing"), 2).unwrap();
    }
}
