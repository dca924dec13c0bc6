//! bpf(2), the commands that we use ourselves: map elements one by one and in batches, inner
//! maps, links.
//!
//! Loading programs is aya's; this is what aya 0.14 lacks (batches, a tcx link's interface, a
//! lookup that needs no typed map). Called by `maps` and by the files beside this one.

use ebpf_common::abi::MapType;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const MAP_CREATE: i64 = 0;
const MAP_LOOKUP_ELEM: i64 = 1;
const MAP_UPDATE_ELEM: i64 = 2;
const MAP_DELETE_ELEM: i64 = 3;
const OBJ_PIN: i64 = 6;
const OBJ_GET: i64 = 7;
const MAP_GET_FD_BY_ID: i64 = 14;
const OBJ_GET_INFO_BY_FD: i64 = 15;
const MAP_LOOKUP_BATCH: i64 = 24;
const MAP_UPDATE_BATCH: i64 = 26;
const MAP_DELETE_BATCH: i64 = 27;
const LINK_CREATE: i64 = 28;
const LINK_UPDATE: i64 = 29;

/// `BPF_TCX_INGRESS`
pub(crate) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`
pub(crate) const TCX_EGRESS: u32 = 47;

/// `BPF_LINK_TYPE_TCX`
const LINK_TYPE_TCX: u32 = 11;

/// Most elements asked for in one batch.
const BATCH: usize = 8192;

/// Runs one command on `attr`, one of the `repr(C)` structs of this file, each the leading
/// part of the kernel's `union bpf_attr` for its command.
pub(super) fn bpf<T>(command: i64, attr: &mut T) -> io::Result<i64> {
    let attr: *mut T = attr;
    // SAFETY: `attr` points to `size_of::<T>()` readable and writable bytes, and the kernel
    // takes a size smaller than its own union as that union with zeros behind. Addresses
    // inside are set by the functions below, from slices and values that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Most calls of [`verified`].
const LOAD_ATTEMPTS: u32 = 32;

/// Loads a program by `load`. The verifier gives up with EAGAIN as soon as a signal is pending for
/// the thread (Linux 5.0), which is no reason not to load: a child that ends raises SIGCHLD, and
/// being stopped and continued is a signal as well. libbpf tries again, too. Bounded, so that a
/// signal that never ends is an error, not a hang.
pub(super) fn verified<T, E>(
    mut load: impl FnMut() -> Result<T, E>,
    is_interrupted: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let mut left = LOAD_ATTEMPTS;
    loop {
        left -= 1;
        match load() {
            Err(error) if left > 0 && is_interrupted(&error) => {}
            result => return result,
        }
    }
}

/// Whether the verifier gave up because of a signal.
pub(super) fn is_interrupted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

pub(super) fn owned(result: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the command that returned `fd` made it for us, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn address<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<u8>().addr() as u64
}

pub(super) fn address_mut<T: ?Sized>(value: &mut T) -> u64 {
    std::ptr::from_mut(value).cast::<u8>().expose_provenance() as u64
}

#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Copies the value of `key` into `value`; false when there is no such key.
pub(crate) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = Element {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: address(key),
        value: address_mut(value),
        flags: 0,
    };
    match bpf(MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes one element, whether it was there or not.
pub(crate) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = Element {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: address(key),
        value: address(value),
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Removes one element; false when it was not there.
pub(crate) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attr = Element {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: address(key),
        value: 0,
        flags: 0,
    };
    match bpf(MAP_DELETE_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a walk over a map is: a bucket number or a key, whichever the kind of map uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor([u8; 64]);

/// Room for the elements of one batch.
#[derive(Debug)]
pub(crate) struct Portion {
    keys: Vec<u8>,
    values: Vec<u8>,
    most: usize,
    count: usize,
}

impl Portion {
    /// For `most` elements of these sizes in bytes.
    pub(crate) fn new(most: usize, key: usize, value: usize) -> Self {
        Self {
            keys: vec![0; most * key],
            values: vec![0; most * value],
            most,
            count: 0,
        }
    }

    /// The elements that were read last.
    pub(crate) fn pairs<K: MapType, V: MapType>(&self) -> impl Iterator<Item = (K, V)> + '_ {
        let keys = self.keys.chunks_exact(size_of::<K>());
        let values = self.values.chunks_exact(size_of::<V>());
        keys.zip(values)
            .take(self.count)
            .filter_map(|(key, value)| Some((K::from_bytes(key)?, V::from_bytes(value)?)))
    }
}

/// Reads the next elements, in the kernel's order, from the beginning without a cursor. Returns
/// the cursor of the rest, `None` at the end. Concurrent writers may be seen or not; for an LRU
/// map this is no use of the elements.
pub(crate) fn lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<Cursor>,
    into: &mut Portion,
) -> io::Result<Option<Cursor>> {
    let from = from.map(|Cursor(bytes)| bytes);
    let mut next = [0u8; 64];
    let mut attr = Batch {
        in_batch: from.as_ref().map_or(0, address),
        out_batch: address_mut(&mut next),
        keys: address_mut(into.keys.as_mut_slice()),
        values: address_mut(into.values.as_mut_slice()),
        count: into.most as u32,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    let rest = match bpf(MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => Some(Cursor(next)),
        // The last batch: what `count` says was still copied.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
        Err(error) => {
            into.count = 0;
            return Err(error);
        }
    };
    into.count = (attr.count as usize).min(into.most);
    Ok(rest)
}

/// All elements, in the kernel's order. Concurrent writers may be seen or not.
pub(crate) fn list<K: MapType, V: MapType>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    let mut portion = Portion::new(BATCH, size_of::<K>(), size_of::<V>());
    let mut cursor = None;
    loop {
        cursor = lookup_batch(map, cursor, &mut portion)?;
        all.extend(portion.pairs());
        if cursor.is_none() {
            return Ok(all);
        }
    }
}

fn concatenated<'a, T: MapType>(values: impl Iterator<Item = &'a T>) -> Vec<u8> {
    values
        .flat_map(|value| value.as_bytes().iter().copied())
        .collect()
}

/// Writes many elements by one command; for a map of maps that is one wait for readers
/// instead of one for each.
pub(crate) fn update_batch<K: MapType, V: MapType>(
    map: BorrowedFd<'_>,
    pairs: &[(K, V)],
) -> io::Result<()> {
    for pairs in pairs.chunks(BATCH) {
        let keys = concatenated(pairs.iter().map(|(key, _)| key));
        let values = concatenated(pairs.iter().map(|(_, value)| value));
        let mut attr = Batch {
            in_batch: 0,
            out_batch: 0,
            keys: address(keys.as_slice()),
            values: address(values.as_slice()),
            count: pairs.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        bpf(MAP_UPDATE_BATCH, &mut attr)?;
    }
    Ok(())
}

/// Removes many elements, all of which must be there.
pub(crate) fn delete_batch<K: MapType>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    for keys in keys.chunks(BATCH) {
        let bytes = concatenated(keys.iter());
        let mut attr = Batch {
            in_batch: 0,
            out_batch: 0,
            keys: address(bytes.as_slice()),
            values: 0,
            count: keys.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        bpf(MAP_DELETE_BATCH, &mut attr)?;
    }
    Ok(())
}

#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// A map without a name or BTF, as inner maps are.
pub(crate) fn create_map(
    map_type: u32,
    key: usize,
    value: usize,
    entries: usize,
    flags: usize,
) -> io::Result<OwnedFd> {
    let mut attr = Create {
        map_type,
        key_size: key as u32,
        value_size: value as u32,
        max_entries: entries as u32,
        map_flags: flags as u32,
    };
    owned(bpf(MAP_CREATE, &mut attr)?)
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    open_flags: u32,
}

/// The map with this kernel id.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = ById {
        id,
        next: 0,
        open_flags: 0,
    };
    owned(bpf(MAP_GET_FD_BY_ID, &mut attr)?)
}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens what is pinned at `path`.
pub(crate) fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Object {
        pathname: address(path.as_bytes_with_nul()),
        bpf_fd: 0,
        file_flags: 0,
    };
    owned(bpf(OBJ_GET, &mut attr)?)
}

/// Pins `object` at `path`, which must not be there yet.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Object {
        pathname: address(path.as_bytes_with_nul()),
        bpf_fd: object.as_raw_fd() as u32,
        file_flags: 0,
    };
    bpf(OBJ_PIN, &mut attr).map(drop)
}

/// Removes a pin; none is no error.
pub(super) fn unpin(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[repr(C)]
struct InfoQuery {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

pub(super) fn info(object: BorrowedFd<'_>, words: &mut [u32]) -> io::Result<()> {
    let mut attr = InfoQuery {
        bpf_fd: object.as_raw_fd() as u32,
        info_len: size_of_val(words) as u32,
        info: address_mut(words),
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// The kernel's id of a map, which a map of maps shows for it.
pub(crate) fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    let mut words = [0u32; 6];
    info(map, &mut words)?;
    let [_kind, id, ..] = words;
    Ok(id)
}

/// The numbers of a map: kind, bytes of key and value, entries, flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapNumbers {
    pub(crate) kind: u32,
    pub(crate) key: u32,
    pub(crate) value: u32,
    pub(crate) entries: u32,
    pub(crate) flags: u32,
}

/// Asks a map for its numbers (the start of the kernel's `struct bpf_map_info`).
pub(crate) fn map_numbers(map: BorrowedFd<'_>) -> io::Result<MapNumbers> {
    let mut words = [0u32; 6];
    info(map, &mut words)?;
    let [kind, _id, key, value, entries, flags] = words;
    Ok(MapNumbers {
        kind,
        key,
        value,
        entries,
        flags,
    })
}

/// A tcx link: its program, interface and side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TcxLink {
    pub(crate) program_id: u32,
    /// 0 when the interface is gone.
    pub(crate) ifindex: u32,
    pub(crate) attach_type: u32,
}

/// Asks a link where it is (the start of the kernel's `struct bpf_link_info`); `None` when it
/// is not a tcx link.
pub(crate) fn tcx_link(link: BorrowedFd<'_>) -> io::Result<Option<TcxLink>> {
    // type, id, prog_id, (alignment), tcx.ifindex, tcx.attach_type
    let mut words = [0u32; 6];
    info(link, &mut words)?;
    let [kind, _id, program_id, _, ifindex, attach_type] = words;
    Ok((kind == LINK_TYPE_TCX).then_some(TcxLink {
        program_id,
        ifindex,
        attach_type,
    }))
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches a program: to a tcx side of an interface of the calling thread's namespace, or to the
/// control group of an open folder. `target` is the number of either.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: target,
        attach_type,
        flags: 0,
        relative_fd: 0,
        pad: 0,
        expected_revision: 0,
    };
    owned(bpf(LINK_CREATE, &mut attr)?)
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Puts another program behind a link, between two packets.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

/// A borrowed fd of anything that has one.
pub(crate) fn fd(of: &impl AsFd) -> BorrowedFd<'_> {
    of.as_fd()
}
