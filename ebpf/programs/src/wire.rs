//! How the addresses of a family stand in packets, and in what the kernel's helpers take.

use ebpf_common::address::Address;
use ebpf_common::net::Be32;
use ebpf_logic::parse::ETHERNET;

/// A family of addresses outside of maps.
pub(crate) trait Wire: Address {
    /// `AF_*`
    const AF: u32;
    /// EtherType as it is loaded.
    const ETHER_TYPE: u16;
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

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        [self.be, 0, 0, 0]
    }

    #[inline(always)]
    fn from_words([be, ..]: [u32; 4]) -> Self {
        Self { be }
    }
}
