//! A container's output as a log file in CRI format, rotated by size.
//!
//! One line each: `2026-01-02T03:04:05.678901234Z stdout F text`, `P` instead of
//! `F` for a piece of a line that goes on in the next one. A full disk, or a lack of
//! descriptors, costs lines or a rotation, never the log. Called by `container.rs`;
//! the agent's `log_file.rs` reads it while it is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Longest piece of a line, bytes; containerd's.
const LONGEST: usize = 16 << 10;

/// The log of one container.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    /// Bytes in `file`.
    size: u64,
    /// 0: never rotated.
    max: u64,
    /// What has no line end yet, per stream.
    pending: [Vec<u8>; 2],
}

impl Log {
    /// Opens the file to append, and makes its folder.
    pub(crate) fn open(path: &Path, max: u64) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.into(),
            file,
            size,
            max,
            pending: [Vec::new(), Vec::new()],
        })
    }

    /// Takes output as it comes.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let now = clock::unix();
        let mut batch = Batch::default();
        let mut pending = std::mem::take(&mut self.pending[stream as usize]);
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            pending.extend_from_slice(text);
            while pending.len() > LONGEST {
                let rest = pending.split_off(LONGEST);
                batch.add(now, stream, b'P', &pending);
                pending = rest;
            }
            if ended {
                batch.add(now, stream, b'F', &pending);
                pending.clear();
            }
        }
        // A quiet container keeps no buffer.
        pending.shrink_to_fit();
        self.pending[stream as usize] = pending;
        self.put(&batch)
    }

    /// The stream has ended: what has no line end is a line nevertheless.
    pub(crate) fn end(&mut self, stream: Stream) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending[stream as usize]);
        let mut batch = Batch::default();
        if !pending.is_empty() {
            batch.add(clock::unix(), stream, b'F', &pending);
        }
        self.put(&batch)
    }

    /// Writes lines, as many as the file may still take at a time. Where the next file
    /// cannot be made, all go to this one, and it is tried again with the next lines.
    fn put(&mut self, batch: &Batch) -> io::Result<()> {
        let mut written = 0;
        let mut space = self.space();
        let mut rotation = Ok(());
        for (from, to) in [0].iter().chain(&batch.ends).zip(&batch.ends) {
            let (from, to) = (*from, *to);
            if (to - written) as u64 > space && (from > written || self.size > 0) {
                self.append(&batch.bytes[written..from])?;
                written = from;
                rotation = self.rotate();
                space = if rotation.is_ok() {
                    self.space()
                } else {
                    u64::MAX
                };
            }
        }
        self.append(&batch.bytes[written..])?;
        rotation
    }

    /// Bytes that the file may still take.
    fn space(&self) -> u64 {
        if self.max == 0 {
            u64::MAX
        } else {
            self.max.saturating_sub(self.size)
        }
    }

    /// Begins the next file; this one becomes the earlier one. The next one is open
    /// before any name changes: after a failure all is as it was.
    fn rotate(&mut self) -> io::Result<()> {
        let next = with_suffix(&self.path, ".new");
        let file = append(&next)?;
        // Of a shim that died here.
        file.set_len(0)?;
        let earlier = rotated(&self.path);
        match fs::rename(&self.path, &earlier) {
            // Somebody removed it: then nothing is to be kept.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        if let Err(e) = fs::rename(&next, &self.path) {
            fs::rename(&earlier, &self.path)?;
            return Err(e);
        }
        self.file = file;
        self.size = 0;
        Ok(())
    }

    /// Writes whole lines or nothing: half a line would run into the next one.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if let Err(e) = self.file.write_all(bytes) {
            self.file.set_len(self.size)?;
            return Err(e);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }
}

/// Lines to be written, and where each ends.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Batch {
    fn add(&mut self, now: Duration, stream: Stream, tag: u8, text: &[u8]) {
        let to = &mut self.bytes;
        to.extend_from_slice(clock::rfc3339(now).as_bytes());
        to.extend_from_slice(match stream {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        });
        to.push(tag);
        to.push(b' ');
        to.extend_from_slice(text);
        to.push(b'\n');
        self.ends.push(to.len());
    }
}

/// Where the one earlier file lies.
fn rotated(path: &Path) -> PathBuf {
    with_suffix(path, ".1")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines without their time, which is checked in `clock.rs`.
    fn lines(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.ends_with('\n'));
        text.lines()
            .map(|l| l.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    fn log(max: u64) -> (tempfile::TempDir, PathBuf, Log) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web").join("0.log");
        let log = Log::open(&path, max).unwrap();
        (folder, path, log)
    }

    #[test]
    fn lines_come_out_whole_however_they_come_in() {
        let (_folder, path, mut log) = log(0);
        log.write(Stream::Stdout, b"one\ntw").unwrap();
        log.write(Stream::Stderr, b"error\n").unwrap();
        log.write(Stream::Stdout, b"o\n\nlast").unwrap();
        assert_eq!(
            lines(&path),
            [
                "stdout F one",
                "stderr F error",
                "stdout F two",
                "stdout F "
            ]
        );
        log.end(Stream::Stdout).unwrap();
        log.end(Stream::Stderr).unwrap();
        assert_eq!(lines(&path)[4..], ["stdout F last"]);
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let (_folder, path, mut log) = log(0);
        let long = vec![b'x'; LONGEST * 2 + 5];
        for piece in long.chunks(1000) {
            log.write(Stream::Stdout, piece).unwrap();
        }
        log.write(Stream::Stdout, b"\n").unwrap();
        let lines = lines(&path);
        let shape: Vec<_> = lines.iter().map(|l| (&l[..8], l.len() - 9)).collect();
        assert_eq!(
            shape,
            [
                ("stdout P", LONGEST),
                ("stdout P", LONGEST),
                ("stdout F", 5)
            ]
        );
    }

    #[test]
    fn a_full_file_becomes_the_earlier_one() {
        let (_folder, path, mut log) = log(200);
        let all: String = (0..20).map(|n| format!("line {n:02}\n")).collect();
        // Several lines at once, and pieces of lines.
        for piece in all.as_bytes().chunks(61) {
            log.write(Stream::Stdout, piece).unwrap();
        }
        let (now, before) = (lines(&path), lines(&rotated(&path)));
        assert_eq!(now.last().unwrap(), "stdout F line 19");
        assert!(fs::metadata(&path).unwrap().len() <= 200);
        assert!(fs::metadata(rotated(&path)).unwrap().len() <= 200);
        // Nothing between the two is lost.
        let all: Vec<_> = before.iter().chain(&now).collect();
        let first: usize = all[0][14..].parse().unwrap();
        for (offset, line) in all.iter().enumerate() {
            assert_eq!(**line, format!("stdout F line {:02}", first + offset));
        }
    }

    #[test]
    fn a_next_file_that_cannot_be_made_costs_no_line() {
        let (_folder, path, mut log) = log(200);
        let put = |log: &mut Log, from: usize| -> Vec<bool> {
            let write = |n| log.write(Stream::Stdout, format!("line {n:02}\n").as_bytes());
            (from..from + 10).map(write).map(|r| r.is_ok()).collect()
        };
        // In its way: what a lack of descriptors or of space does to open(2).
        let next = with_suffix(&path, ".new");
        fs::create_dir(&next).unwrap();
        let written = put(&mut log, 0);
        assert!(written.contains(&false), "the failure is told");
        let expected = |range: std::ops::Range<usize>| -> Vec<String> {
            range.map(|n| format!("stdout F line {n:02}")).collect()
        };
        assert_eq!(lines(&path), expected(0..10));
        assert!(!rotated(&path).exists());
        // As soon as it can be made, all is well again.
        fs::remove_dir(&next).unwrap();
        assert_eq!(put(&mut log, 10), [true; 10]);
        let all = [lines(&rotated(&path)), lines(&path)].concat();
        let first: usize = all[0][14..].parse().unwrap();
        assert!(first > 0 && fs::metadata(&path).unwrap().len() <= 200);
        assert_eq!(all, expected(first..20));
        assert!(!next.exists());
    }

    #[test]
    fn a_log_that_somebody_removed_begins_anew() {
        let (_folder, path, mut log) = log(100);
        log.write(Stream::Stdout, b"one\ntwo\n").unwrap();
        fs::remove_file(&path).unwrap();
        log.write(Stream::Stdout, b"three\nfour\n").unwrap();
        assert!(lines(&path).contains(&"stdout F four".to_owned()));
    }

    #[test]
    fn a_file_that_is_there_is_continued() {
        let (_folder, path, mut log) = log(0);
        log.write(Stream::Stdout, b"one\n").unwrap();
        let mut again = Log::open(&path, 0).unwrap();
        again.write(Stream::Stdout, b"two\n").unwrap();
        assert_eq!(lines(&path), ["stdout F one", "stdout F two"]);
    }
}
