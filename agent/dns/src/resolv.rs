//! resolv.conf(5) of the node: which servers it asks.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::PORT;

/// Servers that are asked at most (glibc takes three).
const MOST: usize = 8;

/// The servers that a resolv.conf names, in its order, each once, without `own`: asking
/// ourselves would never end.
pub fn servers(text: &str, own: Option<IpAddr>) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // "fe80::1%eth0": the zone is not kept.
        let address = words
            .next()
            .and_then(|w| w.split('%').next()?.parse::<IpAddr>().ok());
        let Some(address) = address.filter(|a| Some(*a) != own && !a.is_unspecified()) else {
            continue;
        };
        let server = SocketAddr::new(address, PORT);
        if !servers.contains(&server) && servers.len() < MOST {
            servers.push(server);
        }
    }
    servers
}

/// A resolv.conf that is read again when it has changed.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    own: Option<IpAddr>,
    /// Device, inode, size and times when it was read.
    seen: Option<[i64; 6]>,
    servers: Vec<SocketAddr>,
}

fn identity(path: &Path) -> io::Result<[i64; 6]> {
    let meta = fs::metadata(path)?;
    Ok([
        meta.dev().cast_signed(),
        meta.ino().cast_signed(),
        meta.size().cast_signed(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime_nsec(),
    ])
}

impl File {
    /// Nothing is read yet.
    pub fn new(path: PathBuf) -> Self {
        File {
            path,
            own: None,
            seen: None,
            servers: Vec::new(),
        }
    }

    /// Our own address, which is left out.
    pub fn own(&mut self, own: Option<IpAddr>) {
        if self.own != own {
            self.own = own;
            self.seen = None;
        }
    }

    /// The servers that it named when it was last read.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// Reads it if it has changed. While it cannot be read, the servers stay as they were.
    pub fn read(&mut self) {
        match identity(&self.path) {
            Ok(now) if self.seen == Some(now) => {}
            Ok(now) => match fs::read_to_string(&self.path) {
                Ok(text) => {
                    self.servers = servers(&text, self.own);
                    self.seen = Some(now);
                    tracing::info!(path = %self.path.display(), servers = ?self.servers, "upstream DNS servers");
                }
                Err(error) => self.unreadable(&error),
            },
            Err(error) => self.unreadable(&error),
        }
    }

    /// Says so once.
    fn unreadable(&mut self, error: &io::Error) {
        if self.seen.take().is_some() || self.servers.is_empty() {
            tracing::warn!(path = %self.path.display(), %error, "upstream DNS servers are not known");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_resolv_conf() {
        let own = "10.96.0.10".parse().ok();
        let rows: [(&str, &[&str]); 5] = [
            ("", &[]),
            ("search a b\nnameserver 192.0.2.1\n", &["192.0.2.1:53"]),
            (
                "nameserver 10.96.0.10\nnameserver\t192.0.2.2 \n",
                &["192.0.2.2:53"],
            ),
            (
                "#nameserver 1.1.1.1\nnameserver x\nnameserver fe80::1%eth0",
                &["[fe80::1]:53"],
            ),
            (
                "nameserver 127.0.0.53\nnameserver 127.0.0.53",
                &["127.0.0.53:53"],
            ),
        ];
        for (text, expected) in rows {
            let found: Vec<String> = servers(text, own).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_lost_one_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1").unwrap();
        let mut file = File::new(path.clone());
        file.read();
        assert_eq!(file.servers(), ["192.0.2.1:53".parse().unwrap()]);
        let next = folder.path().join("next");
        fs::write(&next, "nameserver 192.0.2.2").unwrap();
        fs::rename(next, &path).unwrap();
        let second: SocketAddr = "192.0.2.2:53".parse().unwrap();
        file.read();
        assert_eq!(file.servers(), [second]);
        fs::remove_file(&path).unwrap();
        file.read();
        assert_eq!(file.servers(), [second]);
    }
}
