//! Keys and values in one file, to which each change is appended: what is written is as
//! large as the change, not as all that is kept.
//!
//! After a crash or a power cut at any byte the file holds the state after one of the
//! records that were appended, and at least that after the last for which
//! [`Journal::append`] returned. What the keys mean is the caller's: the daemon's `pushed_file.rs`.
//!
//! ```text
//! MAGIC, then records: length (u32, little endian, bytes), first 8 bytes of the SHA-256
//! of the payload, payload (`JournalRecord` of proto/v1/state.proto)
//! ```
//!
//! Reading stops at the first record that is not whole; the next one is written over it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proto::Message;
use proto::v1::{JournalEntry, JournalRecord};
use sha2::{Digest, Sha256};

use crate::state::StateError;

/// First bytes of the file: format and version.
const MAGIC: &[u8; 8] = b"foiljnl1";
/// Length and checksum.
const HEADER: usize = 4 + CHECKSUM;
const CHECKSUM: usize = 8;
/// A file below this size is never rewritten, bytes.
const SMALL: u64 = 256 << 10;

/// All that is kept.
pub type Entries = BTreeMap<String, Vec<u8>>;
/// What has changed; `None`: removed.
pub type Changes = BTreeMap<String, Option<Vec<u8>>>;

/// The file, open for appending. Blocking. One process at a time may have it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// `None`: there is no file of this format yet.
    file: Option<File>,
    /// Where the next record goes, bytes.
    end: u64,
    /// About the size that the file would have if it was rewritten, bytes.
    base: u64,
}

impl Journal {
    /// Opens the file, and reads what is kept. A file that is missing, or of another
    /// format, is empty.
    ///
    /// # Errors
    /// [`StateError::Read`]
    pub fn open(path: &Path) -> Result<(Self, Entries), StateError> {
        let failed = |source| StateError::Read {
            path: path.to_owned(),
            source,
        };
        let mut journal = Self {
            path: path.to_owned(),
            file: None,
            end: 0,
            base: 0,
        };
        let Some((entries, end)) = load(path).map_err(failed)? else {
            return Ok((journal, Entries::new()));
        };
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        let sizes = entries.iter().map(|(key, value)| key.len() + value.len());
        journal.base = sizes.sum::<usize>() as u64;
        journal.end = end;
        journal.file = Some(file);
        Ok((journal, entries))
    }

    /// Whether [`Journal::rewrite`] is to be called instead of [`Journal::append`]: there
    /// is no file yet, or more than half of it is out of date.
    pub fn wants_rewrite(&self) -> bool {
        self.file.is_none() || self.end > 2 * self.base + SMALL
    }

    /// Appends a record of these changes. They are on the disk, all of them, when it
    /// returns.
    ///
    /// # Errors
    /// [`StateError::Write`]; none of the changes is in force then, and the next record
    /// replaces what was written of this one.
    pub fn append(&mut self, changes: &Changes) -> Result<(), StateError> {
        let failed = |source| StateError::Write {
            path: self.path.clone(),
            source,
        };
        let file = self.file.as_ref();
        let file = file.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let record = record(changes.iter().map(|(k, v)| (k.clone(), v.clone()))).map_err(failed)?;
        let written = file
            .write_all_at(&record, self.end)
            // What an earlier, longer attempt left after it.
            .and_then(|()| file.set_len(self.end + record.len() as u64))
            .and_then(|()| file.sync_data());
        if let Err(source) = written {
            // Best effort: the disk is full, and a record that is not whole is not read.
            drop(file.set_len(self.end));
            return Err(failed(source));
        }
        self.end += record.len() as u64;
        Ok(())
    }

    /// Replaces the file by one with these entries and nothing else.
    ///
    /// # Errors
    /// [`StateError::Write`]; the old file is there then.
    pub fn rewrite(&mut self, entries: Entries) -> Result<(), StateError> {
        let failed = |source| StateError::Write {
            path: self.path.clone(),
            source,
        };
        let entries = entries.into_iter().map(|(key, value)| (key, Some(value)));
        let mut content = MAGIC.to_vec();
        content.extend(record(entries).map_err(failed)?);
        proto::file::replace(&self.path, &content, 0o600).map_err(failed)?;
        let opened = OpenOptions::new().write(true).open(&self.path);
        // Without it, the next call rewrites again.
        self.file = opened.map_err(failed).map(Some)?;
        self.end = content.len() as u64;
        self.base = self.end;
        Ok(())
    }
}

/// What a file holds, without opening it for appending; a file that is missing, or of
/// another format, is empty.
///
/// # Errors
/// [`StateError::Read`]
pub fn read(path: &Path) -> Result<Entries, StateError> {
    let loaded = load(path).map_err(|source| StateError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(loaded.map(|(entries, _)| entries).unwrap_or_default())
}

/// The entries, and where the last whole record ends. `None`: no file of this format.
fn load(path: &Path) -> io::Result<Option<(Entries, u64)>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
        tracing::warn!(path = %path.display(), "of another format: it counts as empty");
        return Ok(None);
    };
    let mut entries = Entries::new();
    while let Some((record, after)) = first(rest) {
        rest = after;
        for JournalEntry { key, value } in record.entries {
            match value {
                Some(value) => entries.insert(key, value),
                None => entries.remove(&key),
            };
        }
    }
    if !rest.is_empty() {
        tracing::warn!(path = %path.display(), bytes = rest.len(), "the last record is not whole");
    }
    Ok(Some((entries, (bytes.len() - rest.len()) as u64)))
}

/// The record at the begin of these bytes, if it is whole, and what follows it.
fn first(bytes: &[u8]) -> Option<(JournalRecord, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<CHECKSUM>()?;
    // A record is never empty: zeros are what a file system leaves of an unfinished write.
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (payload, after) = rest.split_at_checked(length)?;
    if payload.is_empty() || checksum(payload) != *sum {
        return None;
    }
    Some((JournalRecord::decode(payload).ok()?, after))
}

fn record(entries: impl Iterator<Item = (String, Option<Vec<u8>>)>) -> io::Result<Vec<u8>> {
    let entries = entries.map(|(key, value)| JournalEntry { key, value });
    let payload = JournalRecord {
        entries: entries.collect(),
        whole: true,
    }
    .encode_to_vec();
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(length.to_le_bytes());
    bytes.extend(checksum(&payload));
    bytes.extend(payload);
    Ok(bytes)
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM] {
    let digest: [u8; 32] = Sha256::digest(payload).into();
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&digest[..CHECKSUM]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The changes of step `n`: something is put, changed and removed.
    fn step(n: usize) -> Changes {
        let put = |key: String, size| (key, Some(vec![n as u8; size]));
        let mut changes = Changes::from([
            put("head".into(), 8),
            put(format!("service/{}", n % 5), 30 + n % 7),
        ]);
        changes.insert(format!("service/{}", (n + 2) % 5), None);
        changes
    }

    fn apply(entries: &mut Entries, changes: &Changes) {
        for (key, value) in changes {
            match value {
                Some(value) => drop(entries.insert(key.clone(), value.clone())),
                None => drop(entries.remove(key)),
            }
        }
    }

    /// A journal of some steps; the states after each, and where its record ends.
    fn steps(path: &Path) -> (Vec<u8>, Vec<(usize, Entries)>) {
        let (mut journal, mut entries) = Journal::open(path).unwrap();
        assert!(journal.wants_rewrite() && entries.is_empty());
        apply(&mut entries, &step(0));
        journal.rewrite(entries.clone()).unwrap();
        let mut states = vec![(journal.end as usize, entries.clone())];
        for n in 1..12 {
            journal.append(&step(n)).unwrap();
            apply(&mut entries, &step(n));
            states.push((journal.end as usize, entries.clone()));
        }
        (fs::read(path).unwrap(), states)
    }

    /// The state after the last record that ends within so many bytes.
    fn after(states: &[(usize, Entries)], length: usize) -> Entries {
        let whole = states.iter().rev().find(|(end, _)| *end <= length);
        whole
            .map(|(_, entries)| entries.clone())
            .unwrap_or_default()
    }

    fn in_memory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap()
    }

    #[test]
    fn a_file_that_ends_at_any_byte_holds_the_state_after_a_whole_record() {
        let folder = in_memory();
        let path = folder.path().join("journal");
        let (bytes, states) = steps(&path);
        for length in 0..=bytes.len() {
            // Cut off; and as a file system leaves it that has not written the end.
            for tail in [0, 1, HEADER, 100] {
                let mut content = bytes[..length].to_vec();
                content.extend(vec![0; tail]);
                fs::write(&path, content).unwrap();
                let (mut journal, mut entries) = Journal::open(&path).unwrap();
                assert_eq!(
                    entries,
                    after(&states, length),
                    "{length} bytes, {tail} zeros"
                );
                // The next one is written, and nothing of the torn one is seen again.
                apply(&mut entries, &step(50));
                if journal.wants_rewrite() {
                    assert!(length < MAGIC.len());
                    journal.rewrite(entries.clone()).unwrap();
                } else {
                    journal.append(&step(50)).unwrap();
                }
                assert_eq!(
                    read(&path).unwrap(),
                    entries,
                    "{length} bytes, {tail} zeros"
                );
            }
        }
    }

    #[test]
    fn a_byte_that_was_changed_ends_the_reading_before_its_record() {
        let folder = in_memory();
        let path = folder.path().join("journal");
        let (bytes, states) = steps(&path);
        for place in MAGIC.len()..bytes.len() {
            let mut spoilt = bytes.clone();
            spoilt[place] ^= 0x41;
            fs::write(&path, spoilt).unwrap();
            assert_eq!(read(&path).unwrap(), after(&states, place), "byte {place}");
        }
        fs::write(&path, b"\x0a\x04test\x10\x02").unwrap();
        assert_eq!(read(&path).unwrap(), Entries::new(), "another format");
    }

    #[test]
    fn a_record_that_was_refused_leaves_nothing() {
        let folder = in_memory();
        let path = folder.path().join("journal");
        let (_, states) = steps(&path);
        let (mut journal, mut entries) = Journal::open(&path).unwrap();
        assert_eq!(entries, states.last().unwrap().1);
        // What a longer attempt that failed can leave behind.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let long = Changes::from([("long".to_owned(), Some(vec![7; 500]))]);
        let torn = record(long.into_iter()).unwrap();
        file.write_all_at(&torn[..300], journal.end).unwrap();
        journal.append(&step(20)).unwrap();
        apply(&mut entries, &step(20));
        assert_eq!(read(&path).unwrap(), entries);
        assert_eq!(fs::metadata(&path).unwrap().len(), journal.end);
        let closed = File::open(&path).unwrap();
        journal.file = Some(closed);
        assert!(journal.append(&step(21)).is_err(), "not open for writing");
        assert_eq!(read(&path).unwrap(), entries);
    }

    #[test]
    fn what_is_written_is_proportional_to_the_changes() {
        let folder = in_memory();
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        let name = |n: usize| format!("service/{n}");
        let mut entries: Entries = (0..10_000).map(|n| (name(n), vec![0; 300])).collect();
        journal.rewrite(entries.clone()).unwrap();
        let (whole, mut written, mut changed) = (journal.end, 0, 0);
        for n in 0..30_000 {
            let change = Changes::from([(name(n % 10_000), Some(vec![n as u8; 300]))]);
            apply(&mut entries, &change);
            changed += 300;
            if journal.wants_rewrite() {
                journal.rewrite(entries.clone()).unwrap();
                written += journal.end;
            } else {
                let before = journal.end;
                journal.append(&change).unwrap();
                assert!(journal.end - before < 400, "one change");
                written += journal.end - before;
            }
            assert!(journal.end <= 2 * whole + 2 * SMALL, "it does not grow");
        }
        assert!(written < 3 * changed, "{written} bytes for {changed}");
        assert_eq!(read(&path).unwrap(), entries);
    }
}
