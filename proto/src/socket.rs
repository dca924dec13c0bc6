//! Unix sockets in folders whose paths are long: `sun_path` takes 107 bytes, and a
//! pod's folder has its uid in it.
//!
//! Used by both sides of the shim's socket, and by the shim for terminals.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// A path to `name` in an open folder that is short enough for any socket. Valid for
/// this process, and for as long as `folder` is open.
pub fn short_path(folder: &File, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_socket_in_a_folder_with_a_long_path() {
        let root = tempfile::tempdir().unwrap();
        let long = root.path().join("x".repeat(200));
        std::fs::create_dir(&long).unwrap();
        assert!(UnixListener::bind(long.join("socket")).is_err());
        let folder = File::open(&long).unwrap();
        let _listener = UnixListener::bind(short_path(&folder, "socket")).unwrap();
        assert!(long.join("socket").exists());
        UnixStream::connect(short_path(&folder, "socket")).unwrap();
    }
}
