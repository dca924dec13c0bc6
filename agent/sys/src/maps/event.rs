//! Reader of the event ring.
//!
//! Called by the agent and by tests; one reader at a time.

use super::MapsError;
use aya::maps::{Map, MapData, RingBuf};
use ebpf_common::abi::MapType as _;
use ebpf_common::event::Event;
use ebpf_common::maps::name;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

/// The ring; readable when an event is there.
pub struct EventReader {
    ring: RingBuf<MapData>,
}

impl EventReader {
    pub(super) fn open(folder: &Path) -> Result<Self, MapsError> {
        let path = folder.join(name::EVENTS);
        let failed = |error: aya::maps::MapError| MapsError::NotPinned {
            map: name::EVENTS,
            path: path.clone(),
            source: io::Error::other(error),
        };
        let data = MapData::from_pin(&path).map_err(failed)?;
        let map = Map::from_map_data(data).map_err(failed)?;
        let ring = RingBuf::try_from(map).map_err(failed)?;
        Ok(Self { ring })
    }

    /// The next event, if one is there.
    pub fn next_event(&mut self) -> Option<Event> {
        let item = self.ring.next()?;
        Event::from_bytes(&item)
    }
}

impl std::fmt::Debug for EventReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventReader").finish_non_exhaustive()
    }
}

impl AsRawFd for EventReader {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
