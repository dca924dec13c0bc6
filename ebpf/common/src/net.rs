//! Network-order integers and addresses, told apart from host-order ones by their type.
//!
//! No parsing and no arithmetic on addresses; those are where they are needed.

use crate::map_abi;

/// IP protocol numbers (IANA), as the `protocol` fields of maps hold them.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP of IPv6.
    pub const ICMPV6: u8 = 58;
}

map_abi! {
    /// A 16-bit integer in network order, as it stands in a packet.
    #[derive(Hash, PartialOrd, Ord, Default)]
    pub struct Be16 {
        /// The bytes as they stand in the packet, loaded as one native integer.
        pub be: u16,
    }

    /// A 32-bit integer in network order, as it stands in a packet.
    #[derive(Hash, PartialOrd, Ord, Default)]
    pub struct Be32 {
        /// The bytes as they stand in the packet, loaded as one native integer.
        pub be: u32,
    }

    /// An IPv6 address, or an IPv4 one mapped into it (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2).
    ///
    /// One key type for both families, so that a dual-stack service needs no second map.
    #[derive(Hash, PartialOrd, Ord, Default)]
    pub struct Addr {
        /// Network order, first word first.
        pub words: [Be32; 4],
    }

    /// An Ethernet address.
    #[derive(Hash, PartialOrd, Ord, Default)]
    pub struct MacAddr {
        /// In the order of the wire.
        pub bytes: [u8; 6],
    }
}

impl Be16 {
    /// From host order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self { be: host.to_be() }
    }

    /// To host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.be)
    }
}

impl Be32 {
    /// From host order.
    #[inline(always)]
    pub const fn new(host: u32) -> Self {
        Self { be: host.to_be() }
    }

    /// To host order.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.be)
    }

    /// From the four bytes of an address.
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self {
            be: u32::from_ne_bytes(octets),
        }
    }

    /// The four bytes of an address.
    pub const fn octets(self) -> [u8; 4] {
        self.be.to_ne_bytes()
    }
}

impl Addr {
    /// Third word of a mapped IPv4 address.
    const MAPPED: Be32 = Be32::new(0xffff);

    /// An IPv4 address, mapped.
    #[inline(always)]
    pub const fn v4(address: Be32) -> Self {
        Self {
            words: [Be32 { be: 0 }, Be32 { be: 0 }, Self::MAPPED, address],
        }
    }

    /// The IPv4 address that is mapped here, if one is.
    #[inline(always)]
    pub const fn as_v4(self) -> Option<Be32> {
        let [first, second, third, last] = self.words;
        if first.be == 0 && second.be == 0 && third.be == Self::MAPPED.be {
            Some(last)
        } else {
            None
        }
    }

    /// Whether it is `::`, or `0.0.0.0` mapped.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        let [first, second, third, last] = self.words;
        // One branch: the verifier walks what follows once for each.
        let mapped = third.be ^ Self::MAPPED.be;
        (first.be | second.be | last.be | third.be) == 0
            || (first.be | second.be | last.be | mapped) == 0
    }

    /// From 16 bytes in network order.
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self {
            words: [
                Be32::from_octets([o[0], o[1], o[2], o[3]]),
                Be32::from_octets([o[4], o[5], o[6], o[7]]),
                Be32::from_octets([o[8], o[9], o[10], o[11]]),
                Be32::from_octets([o[12], o[13], o[14], o[15]]),
            ],
        }
    }

    /// The 16 bytes in network order.
    pub fn octets(self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.words) {
            chunk.copy_from_slice(&word.octets());
        }
        octets
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => v4.into(),
            core::net::IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }
}

impl From<core::net::Ipv4Addr> for Addr {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self::v4(Be32::from_octets(address.octets()))
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(address: Addr) -> Self {
        match address.as_v4() {
            Some(v4) => Self::V4(v4.into()),
            None => Self::V6(address.octets().into()),
        }
    }
}

impl From<core::net::Ipv4Addr> for Be32 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self::from_octets(address.octets())
    }
}

impl From<Be32> for core::net::Ipv4Addr {
    fn from(address: Be32) -> Self {
        address.octets().into()
    }
}

impl core::fmt::Display for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::net::IpAddr::from(*self).fmt(f)
    }
}

impl core::fmt::Display for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}

impl core::fmt::Display for MacAddr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.bytes;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, Be16, Be32};
    use core::net::{IpAddr, Ipv4Addr};

    #[test]
    fn order_of_bytes_is_that_of_the_wire() {
        assert_eq!(Be16::new(0x0102).be.to_ne_bytes(), [1, 2]);
        assert_eq!(Be16::new(80).get(), 80);
        assert_eq!(Be32::from_octets([10, 0, 0, 1]).get(), 0x0a00_0001);
    }

    #[test]
    fn both_families_survive_the_map() {
        let v4: IpAddr = Ipv4Addr::new(10, 96, 0, 7).into();
        let v6: IpAddr = "fd00::96:7".parse().unwrap();
        assert_eq!(IpAddr::from(Addr::from(v4)), v4);
        assert_eq!(IpAddr::from(Addr::from(v6)), v6);
        assert_eq!(Addr::from(v6).as_v4(), None);
        assert!(!Addr::from(v4).is_unspecified() && !Addr::from(v6).is_unspecified());
        let none = [IpAddr::from(Ipv4Addr::UNSPECIFIED), "::".parse().unwrap()];
        assert!(
            none.into_iter()
                .all(|none| Addr::from(none).is_unspecified())
        );
    }
}
