//! One map with typed keys and values.
//!
//! Called by `Maps`.

use super::MapsError;
use super::pins::check;
use crate::bpf::syscall;
use ebpf_common::abi::MapType;
use ebpf_common::maps::shape_of;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A map type for aya, which asks for its own trait.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Raw<T>(pub(crate) T);

// SAFETY: a `MapType` has no padding, no pointer and no invalid bit pattern.
unsafe impl<T: MapType> aya::Pod for Raw<T> {}

/// An open map.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    fd: OwnedFd,
    pub(super) name: &'static str,
    types: PhantomData<(K, V)>,
}

impl<K: MapType, V: MapType> Table<K, V> {
    /// Opens the pin `name` in `folder` and compares it with the ABI's table.
    pub(super) fn open(folder: &Path, name: &'static str) -> Result<Self, MapsError> {
        let path = folder.join(name);
        let fd = syscall::get_pinned(&path).map_err(|source| MapsError::NotPinned {
            map: name,
            path: path.clone(),
            source,
        })?;
        if let Some(shape) = shape_of(name) {
            check(shape, &path, syscall::fd(&fd), None)?;
            debug_assert_eq!(
                (shape.key as usize, shape.value as usize),
                (size_of::<K>(), size_of::<V>())
            );
        }
        Ok(Self {
            fd,
            name,
            types: PhantomData,
        })
    }

    pub(super) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        syscall::fd(&self.fd)
    }

    pub(super) fn failed(
        &self,
        what: &'static str,
    ) -> impl FnOnce(io::Error) -> MapsError + use<K, V> {
        let map = self.name;
        move |source| MapsError::Access { what, map, source }
    }

    pub(super) fn get(&self, key: &K) -> Result<Option<V>, MapsError> {
        let mut bytes = vec![0; size_of::<V>()];
        let found =
            syscall::lookup(self.fd(), key.as_bytes(), &mut bytes).map_err(self.failed("read"))?;
        Ok(if found { V::from_bytes(&bytes) } else { None })
    }

    /// One value for each possible CPU.
    pub(super) fn get_per_cpu(&self, key: &K) -> Result<Vec<V>, MapsError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| self.failed("read")(error))?;
        let stride = size_of::<V>().next_multiple_of(8);
        let mut bytes = vec![0; stride * cpus];
        let found =
            syscall::lookup(self.fd(), key.as_bytes(), &mut bytes).map_err(self.failed("read"))?;
        if !found {
            return Ok(Vec::new());
        }
        Ok(bytes
            .chunks_exact(stride)
            .filter_map(V::from_bytes)
            .collect())
    }

    pub(super) fn put(&self, key: &K, value: &V) -> Result<(), MapsError> {
        syscall::update(self.fd(), key.as_bytes(), value.as_bytes())
            .map_err(self.failed("put into"))
    }

    /// Nothing happens when it is not there.
    pub(super) fn delete(&self, key: &K) -> Result<(), MapsError> {
        syscall::delete(self.fd(), key.as_bytes())
            .map(drop)
            .map_err(self.failed("delete from"))
    }

    pub(super) fn list(&self) -> Result<Vec<(K, V)>, MapsError> {
        syscall::list(self.fd()).map_err(self.failed("list"))
    }

    pub(super) fn put_all(&self, pairs: &[(K, V)]) -> Result<(), MapsError> {
        syscall::update_batch(self.fd(), pairs).map_err(self.failed("put into"))
    }
}

impl Table<u32, u32> {
    /// Moves a generation on. One writer, the agent, so that reading and writing need not be
    /// one step.
    pub(super) fn bump(&self, id: u32) -> Result<(), MapsError> {
        let Some(number) = self.get(&id)? else {
            return Err(self.full(id));
        };
        self.put(&id, &number.wrapping_add(1))
    }

    fn full(&self, id: u32) -> MapsError {
        MapsError::Full {
            map: self.name,
            id: id.into(),
            most: shape_of(self.name).map_or(0, |shape| shape.entries).into(),
        }
    }
}
