//! Capabilities by name and number, and giving up all but the wanted ones.
//!
//! Called by `spec.rs` for names, by `executor.rs` in the container's process.

use nix::errno::Errno;

/// Names in the order of their numbers, see linux/capability.h.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CapabilitySet(u64);

impl CapabilitySet {
    /// All that this program knows.
    #[cfg(test)]
    pub(crate) const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// The set of these names; the first unknown one is the error.
    pub(crate) fn from_names(names: &[String]) -> Result<Self, String> {
        let mut set = Self::default();
        for name in names {
            set = set.with(name).ok_or_else(|| name.clone())?;
        }
        Ok(set)
    }

    /// This set and one more; `None` when there is no such capability.
    pub(crate) fn with(self, name: &str) -> Option<Self> {
        let number = NAMES.iter().position(|known| *known == name)?;
        Some(Self(self.0 | 1 << number))
    }

    /// What is in both.
    pub(crate) fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) fn contains(self, name: &str) -> bool {
        NAMES
            .iter()
            .zip(0..)
            .any(|(known, bit)| *known == name && self.0 >> bit & 1 == 1)
    }

    pub(crate) fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES
            .iter()
            .zip(0..)
            .filter(move |(_, bit)| self.0 >> bit & 1 == 1)
            .map(|(name, _)| *name)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// What this process may use at most: its bounding set.
    pub(crate) fn bounding() -> Self {
        let mut set = 0;
        for number in 0..NAMES.len() {
            // SAFETY: integers only.
            if unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) } == 1 {
                set |= 1 << number;
            }
        }
        Self(set)
    }

    /// Gives up everything else, for good: bounding, permitted and effective are
    /// this set, inheritable and ambient are empty (a program without file
    /// capabilities that a non-root user executes then has none, as in Kubernetes).
    /// Needs CAP_SETPCAP in the effective set.
    pub(crate) fn keep_only(self) -> nix::Result<()> {
        for number in 0..64_u64 {
            if self.0 >> number & 1 == 1 {
                continue;
            }
            // SAFETY: integers only.
            match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }) {
                Ok(_) => {}
                // Beyond the kernel's last one.
                Err(Errno::EINVAL) => break,
                Err(e) => return Err(e),
            }
        }
        let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
        // SAFETY: integers only.
        Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0) })?;
        let low = self.0 as u32;
        let high = (self.0 >> 32) as u32;
        let header = Header {
            version: VERSION_3,
            pid: 0,
        };
        let data = [
            Data {
                effective: low,
                permitted: low,
                inheritable: 0,
            },
            Data {
                effective: high,
                permitted: high,
                inheritable: 0,
            },
        ];
        // SAFETY: both are laid out as linux/capability.h has them and outlive the call.
        Errno::result(unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) })?;
        Ok(())
    }
}

/// _LINUX_CAPABILITY_VERSION_3
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits() {
        let names = ["CAP_CHOWN".to_owned(), "CAP_CHECKPOINT_RESTORE".to_owned()];
        let set = CapabilitySet::from_names(&names).unwrap();
        assert_eq!(set.bits(), 1 | 1 << 40);
        assert_eq!(set.names().collect::<Vec<_>>(), names);
        assert!(set.contains("CAP_CHOWN") && !set.contains("CAP_KILL"));
        assert_eq!(
            CapabilitySet::from_names(&["CAP_FLY".to_owned()]),
            Err("CAP_FLY".into())
        );
    }

    #[test]
    fn numbers_are_the_kernels() {
        assert!(
            CapabilitySet::default()
                .with("CAP_SYS_ADMIN")
                .unwrap()
                .bits()
                == 1 << 21
        );
        assert!(CapabilitySet::default().with("CAP_BPF").unwrap().bits() == 1 << 39);
    }
}
