//! Reads tar archives, entry by entry, from a stream.
//!
//! POSIX ustar and pax (IEEE Std 1003.1, pax), with GNU's long names and
//! base-256 numbers: what registries, Docker and tar write. The crate `tar`
//! splits pax records at newlines, which breaks binary extended attributes (a
//! file capability may hold byte 0x0a), so only its field layout is used.
//! The caller is `unpack.rs`.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// Bytes of a pax header or a long name; more is no real archive.
const MAX_METADATA: u64 = 8 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// Not part of POSIX, or sparse.
    Unknown(u8),
}

/// One member of an archive; its data follow in the archive itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    /// Seconds since the epoch.
    pub(crate) mtime: i64,
    pub(crate) device: (u64, u64),
    /// Names and values, in the order of the archive.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar archive. After [`Archive::next`] returned an entry, reading yields its data.
pub(crate) struct Archive<R> {
    reader: R,
    /// Bytes of the current entry that were not read.
    data: u64,
    padding: u64,
}

/// Records of a pax header; later ones win.
#[derive(Debug, Clone, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            data: 0,
            padding: 0,
        }
    }

    /// The next member; what was not read of the one before is passed over.
    ///
    /// # Errors
    /// `InvalidData` for what is no tar archive, `UnexpectedEof` for a cut one.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut pax = Pax::default();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            if !self.fill(&mut block)? || block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header::parse(&block)?;
            match header.kind {
                b'x' => pax.read(&self.metadata(header.size)?)?,
                // Records for all that follow: comments, in what tools write.
                b'g' => drop(self.metadata(header.size)?),
                b'L' => long_path = Some(cut_at_nul(self.metadata(header.size)?)),
                b'K' => long_link = Some(cut_at_nul(self.metadata(header.size)?)),
                kind => {
                    let entry = Entry {
                        path: pax.path.or(long_path).unwrap_or(header.path),
                        link: pax.link.or(long_link).unwrap_or(header.link),
                        kind: kind_of(kind),
                        mode: header.mode & 0o7777,
                        uid: number(pax.uid.unwrap_or(header.uid))?,
                        gid: number(pax.gid.unwrap_or(header.gid))?,
                        size: pax.size.unwrap_or(header.size),
                        mtime: pax.mtime.unwrap_or(header.mtime),
                        device: header.device,
                        xattrs: pax.xattrs,
                    };
                    // Only files have data; some writers put a size on links.
                    let size = match entry.kind {
                        Kind::File | Kind::Unknown(_) => entry.size,
                        Kind::HardLink
                        | Kind::Symlink
                        | Kind::CharDevice
                        | Kind::BlockDevice
                        | Kind::Directory
                        | Kind::Fifo => 0,
                    };
                    self.begin(size);
                    return Ok(Some(Entry { size, ..entry }));
                }
            }
        }
    }

    /// The stream behind the archive, to read what follows its end.
    pub(crate) fn into_inner(self) -> R {
        self.reader
    }

    fn begin(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn metadata(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_METADATA {
            return Err(invalid("a header of the archive is too large"));
        }
        self.begin(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.data + self.padding;
        (self.data, self.padding) = (0, 0);
        let passed = io::copy(&mut (&mut self.reader).take(rest), &mut io::sink())?;
        if passed == rest {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// False at the clean end of the stream.
    fn fill(&mut self, block: &mut [u8]) -> io::Result<bool> {
        let mut have = 0;
        while have < block.len() {
            match self.reader.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.data)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= count as u64;
        Ok(count)
    }
}

struct Header {
    path: Vec<u8>,
    link: Vec<u8>,
    kind: u8,
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: i64,
    device: (u64, u64),
}

impl Header {
    fn parse(block: &[u8; BLOCK]) -> io::Result<Self> {
        let raw = tar::Header::from_byte_slice(block);
        // The checksum is taken with its own field as spaces.
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                u32::from(if (148..156).contains(&at) {
                    b' '
                } else {
                    *byte
                })
            })
            .sum();
        if raw.cksum()? != sum {
            return Err(invalid(
                "a header's checksum is wrong: no tar archive, or a damaged one",
            ));
        }
        // In the headers before an entry's own, writers leave these blank.
        let before = matches!(block[156], b'x' | b'g' | b'L' | b'K');
        fn or_zero<T: Default>(before: bool, number: io::Result<T>) -> io::Result<T> {
            number.or_else(|error| if before { Ok(T::default()) } else { Err(error) })
        }
        let device = |number: io::Result<Option<u32>>| number.ok().flatten().map_or(0, u64::from);
        Ok(Self {
            path: raw.path_bytes().into_owned(),
            link: raw
                .link_name_bytes()
                .map(|name| name.into_owned())
                .unwrap_or_default(),
            kind: block[156],
            mode: or_zero(before, raw.mode())?,
            uid: or_zero(before, raw.uid())?,
            gid: or_zero(before, raw.gid())?,
            size: raw.entry_size()?,
            mtime: raw.mtime().map_or(0, u64::cast_signed),
            device: (device(raw.device_major()), device(raw.device_minor())),
        })
    }
}

impl Pax {
    /// Records are "LENGTH KEY=VALUE\n", the length counting all of that.
    fn read(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let broken = || invalid("a pax record is malformed");
        while !bytes.is_empty() {
            let space = bytes
                .iter()
                .position(|byte| *byte == b' ')
                .ok_or_else(broken)?;
            let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_large| broken())?;
            let record = bytes.get(space + 1..length).ok_or_else(broken)?;
            bytes = &bytes[length..];
            let (b'\n', record) = record.split_last().ok_or_else(broken)? else {
                return Err(broken());
            };
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(broken)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(decimal(value)?),
                b"uid" => self.uid = Some(decimal(value)?),
                b"gid" => self.gid = Some(decimal(value)?),
                // Fractions of a second are dropped.
                b"mtime" => {
                    self.mtime = std::str::from_utf8(value)
                        .ok()
                        .and_then(|text| text.split('.').next())
                        .and_then(|seconds| seconds.parse().ok())
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    } else if key.starts_with(b"GNU.sparse.") {
                        return Err(invalid("sparse files are not supported"));
                    }
                }
            }
        }
        Ok(())
    }
}

fn decimal(digits: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid("a number in a pax record is malformed"))
}

fn number(id: u64) -> io::Result<u32> {
    u32::try_from(id).map_err(|_large| invalid("a user or group number is too large"))
}

fn cut_at_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn kind_of(flag: u8) -> Kind {
    match flag {
        0 | b'0' | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => Kind::Unknown(other),
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(path: &str, kind: u8, size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(size);
        header.set_mode(0o755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(9);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn member(path: &str, kind: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = header(path, kind, data.len() as u64);
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        let mut bytes = format!("{length} {key}=").into_bytes();
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
        bytes
    }

    #[test]
    fn pax_values_may_hold_newlines() {
        let capability = [1, 0, 0, 2, b'\n', 0, 0, 0, b'=', 0];
        let mut pax = record("path", b"a/long/name");
        pax.extend(record("SCHILY.xattr.security.capability", &capability));
        pax.extend(record("mtime", b"-3.25"));
        let mut bytes = member("x", b'x', &pax);
        bytes.extend(member("short", b'0', b"data"));
        bytes.extend([0; 1024]);
        let mut archive = Archive::new(&bytes[..]);
        let entry = archive.next().unwrap().unwrap();
        assert_eq!(entry.path, b"a/long/name");
        assert_eq!(
            entry.xattrs,
            [(b"security.capability".to_vec(), capability.to_vec())]
        );
        assert_eq!((entry.uid, entry.gid, entry.mtime), (7, 8, -3));
        let mut data = String::new();
        archive.read_to_string(&mut data).unwrap();
        assert_eq!(data, "data");
        assert_eq!(archive.next().unwrap(), None);
    }

    #[test]
    fn gnu_long_names_and_unread_data_are_passed_over() {
        let long = "d/".repeat(100) + "f";
        let mut bytes = member("././@LongLink", b'L', format!("{long}\0").as_bytes());
        bytes.extend(member("cut", b'0', &[1; 700]));
        bytes.extend(member("next", b'5', b""));
        let mut archive = Archive::new(&bytes[..]);
        assert_eq!(archive.next().unwrap().unwrap().path, long.as_bytes());
        assert_eq!(archive.next().unwrap().unwrap().kind, Kind::Directory);
        assert_eq!(
            archive.next().unwrap(),
            None,
            "the end marker may be missing"
        );
    }

    #[test]
    fn what_is_broken_is_an_error() {
        let whole = member("file", b'0', &[7; 2000]);
        for length in [1, 511, 513, 1000, 2300] {
            let mut archive = Archive::new(&whole[..length]);
            let result = archive
                .next()
                .and_then(|_| archive.read_to_end(&mut Vec::new()));
            let rest = result.and_then(|_| archive.next());
            assert!(rest.is_err(), "cut at {length}");
        }
        let mut damaged = whole.clone();
        damaged[0] ^= 1;
        assert!(Archive::new(&damaged[..]).next().is_err());
        for pax in [
            &b"x"[..],
            b"99 path=a\n",
            b"0 path=a\n",
            b"8 path=a",
            b"3 p",
        ] {
            let mut bytes = member("x", b'x', pax);
            bytes.extend(&whole);
            assert!(Archive::new(&bytes[..]).next().is_err(), "{pax:?}");
        }
    }
}
