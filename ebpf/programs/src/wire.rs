//! How the addresses of a family stand in packets, and in what the kernel's helpers take.

use ebpf_common::address::Address;
use ebpf_common::net::{Addr, Be32};
use ebpf_logic::parse::ETHERNET;

/// `BPF_F_PSEUDO_HDR`
const PSEUDO_HEADER: u64 = 0x10;

/// A family of addresses outside of maps.
pub(crate) trait Wire: Address {
    /// `AF_*`
    const AF: u32;
    /// EtherType as it is loaded.
    const ETHER_TYPE: u16;
    /// Flags of `bpf_l4_csum_replace` for a difference that the addresses make.
    const CHECKSUM: u64;
    /// Whether the helper, with these flags, changes a partial checksum as well.
    const CHANGES_PARTIAL: bool = Self::CHECKSUM & PSEUDO_HEADER != 0;
    /// Offset of what follows an IP header without options.
    const L4: usize = ETHERNET + Self::IP_HEADER;

    /// The words of an address, zeros behind it.
    fn words(self) -> [u32; 4];

    /// From such words.
    fn from_words(words: [u32; 4]) -> Self;
}

impl Wire for Be32 {
    const AF: u32 = 2;
    const ETHER_TYPE: u16 = 0x0800u16.to_be();
    const CHECKSUM: u64 = PSEUDO_HEADER;

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        [self.be, 0, 0, 0]
    }

    #[inline(always)]
    fn from_words([be, ..]: [u32; 4]) -> Self {
        Self { be }
    }
}

impl Wire for Addr {
    const AF: u32 = 10;
    const ETHER_TYPE: u16 = 0x86ddu16.to_be();
    /// The device's sum over the whole packet stays the same, because the checksum makes up for
    /// the addresses. With `PSEUDO_HEADER` the helper would change it, as is right for IPv4, whose
    /// own checksum covers them too; `BPF_F_IPV6` against that is there from Linux 6.16 on.
    const CHECKSUM: u64 = 0;

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        let [a, b, c, d] = self.words;
        [a.be, b.be, c.be, d.be]
    }

    #[inline(always)]
    fn from_words([a, b, c, d]: [u32; 4]) -> Self {
        Self {
            words: [
                Be32 { be: a },
                Be32 { be: b },
                Be32 { be: c },
                Be32 { be: d },
            ],
        }
    }
}
