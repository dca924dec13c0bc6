//! The first files of a small machine, as the kernel takes them: a cpio archive in the
//! format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Called by `kernels`.

use crate::command;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files by path, without the leading slash; parents come before what is in them.
#[derive(Default)]
pub(crate) struct Initramfs {
    entries: BTreeMap<PathBuf, Entry>,
}

enum Entry {
    Folder,
    File {
        mode: u32,
        bytes: Vec<u8>,
    },
    Link {
        target: String,
    },
    /// The console, so that the first process can say something.
    Console,
}

impl Initramfs {
    /// The console, and folders that mounts are made on.
    pub(crate) fn new() -> Self {
        let mut new = Self::default();
        new.put("dev/console", Entry::Console);
        for folder in ["proc", "sys", "tmp", "run"] {
            new.put(folder, Entry::Folder);
        }
        new
    }

    fn put(&mut self, path: impl AsRef<Path>, entry: Entry) {
        let path = path.as_ref();
        for parent in path.ancestors().skip(1) {
            if !parent.as_os_str().is_empty() && !self.entries.contains_key(parent) {
                self.entries.insert(parent.to_owned(), Entry::Folder);
            }
        }
        self.entries.insert(path.to_owned(), entry);
    }

    pub(crate) fn bytes(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.put(path, Entry::File { mode, bytes });
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        let target = target.to_owned();
        self.put(path, Entry::Link { target });
    }

    /// A file of this machine, at another path.
    pub(crate) fn file(&mut self, path: &str, from: &Path) -> anyhow::Result<()> {
        let read = || format!("read {}", from.display());
        let mode = fs::metadata(from).with_context(read)?.permissions().mode() & 0o777;
        self.bytes(path, mode, fs::read(from).with_context(read)?);
        Ok(())
    }

    /// A program without its symbols, with the libraries that it names.
    pub(crate) fn program(&mut self, path: &str, from: &Path) -> anyhow::Result<()> {
        let stripped = std::env::temp_dir().join(format!("foil-strip-{}", std::process::id()));
        let mut strip = Command::new("strip");
        command::run_quietly(strip.arg("-o").arg(&stripped).arg(from))?;
        let added = self.file(path, &stripped);
        fs::remove_file(&stripped).context("remove the stripped copy")?;
        added?;
        for library in command::read(Command::new("ldd").arg(from))?.split_whitespace() {
            // "libc.so.6 => /lib/.../libc.so.6 (0x...)", "/lib64/ld-linux... (0x...)"
            if let Some(name) = library.strip_prefix('/')
                && !self.entries.contains_key(Path::new(name))
            {
                self.file(name, Path::new(library))?;
            }
        }
        Ok(())
    }

    /// The archive.
    pub(crate) fn archive(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        let mut inode = 0;
        let mut add = |name: &str, mode: u32, bytes: &[u8], device: (u32, u32)| {
            inode += 1;
            let length = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
            let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor
            // namesize check
            let fields = [
                inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, length, 0,
            ];
            archive.extend_from_slice(b"070701");
            for field in fields {
                archive.extend_from_slice(format!("{field:08x}").as_bytes());
            }
            archive.extend_from_slice(name.as_bytes());
            archive.push(0);
            archive.resize(archive.len().next_multiple_of(4), 0);
            archive.extend_from_slice(bytes);
            archive.resize(archive.len().next_multiple_of(4), 0);
        };
        for (path, entry) in &self.entries {
            let name = path.to_string_lossy();
            match entry {
                Entry::Folder => add(&name, 0o040_755, &[], (0, 0)),
                Entry::File { mode, bytes } => add(&name, 0o100_000 | mode, bytes, (0, 0)),
                Entry::Link { target } => add(&name, 0o120_777, target.as_bytes(), (0, 0)),
                Entry::Console => add(&name, 0o020_600, &[], (5, 1)),
            }
        }
        add("TRAILER!!!", 0, &[], (0, 0));
        archive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_all_is_aligned() {
        let mut files = Initramfs::default();
        files.bytes("a/b/c", 0o755, b"12345".to_vec());
        files.link("a/link", "b/c");
        let archive = files.archive();
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        let place = |name: &str| text.find(&format!("{name}\0")).expect("an entry");
        assert!(place("a") < place("a/b") && place("a/b") < place("a/b/c"));
        assert!(place("a/link") < place("TRAILER!!!"));
        assert!(text.contains("12345"));
    }
}
