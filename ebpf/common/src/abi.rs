//! `MapType` and `map_abi!`: what may live in a map, checked by the compiler.
//!
//! The only unsafe code of this crate. Every type in a map is declared with `map_abi!`, which
//! refuses padding (two writers would disagree about unnamed bytes, and a hash lookup
//! compares them) and any field whose bytes could be an invalid value (`bool`, an enum, a
//! reference): kernel and agent are compiled apart and meet only in these bytes.
#![expect(unsafe_code, reason = "a value in a map is bytes to the kernel")]

/// A type whose every byte is named and for which every bit pattern is valid.
///
/// # Safety
///
/// No padding, no invalid value, no pointer, and the same layout on the BPF target and on the
/// host. Implemented by `map_abi!`, which checks it.
pub unsafe trait MapType: Copy + Sized + 'static {
    /// Fields in order, for the layout listing.
    const FIELDS: &'static [Field];

    /// The value of zero bytes, which is what an untouched array element holds.
    fn zeroed() -> Self {
        // SAFETY: a `MapType` has no invalid bit pattern, so zero bytes are one.
        unsafe { core::mem::zeroed() }
    }

    /// The bytes as the kernel sees them.
    fn as_bytes(&self) -> &[u8] {
        let start = core::ptr::from_ref(self).cast::<u8>();
        // SAFETY: `self` is valid for `size_of::<Self>()` bytes, and all of them are initialised
        // because a `MapType` has no padding.
        unsafe { core::slice::from_raw_parts(start, size_of::<Self>()) }
    }

    /// A copy of a value out of its bytes; `None` when there are too few of them.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        let start = bytes.as_ptr().cast::<Self>();
        // SAFETY: `bytes` has at least `size_of::<Self>()` of them, any alignment is allowed by
        // an unaligned read, and a `MapType` has no invalid bit pattern.
        Some(unsafe { core::ptr::read_unaligned(start) })
    }
}

/// One field in a layout listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Name as declared.
    pub name: &'static str,
    /// Bytes from the start.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

macro_rules! primitive {
    ($($ty:ty),*) => {$(
        // SAFETY: an integer has neither padding nor invalid values.
        unsafe impl MapType for $ty {
            const FIELDS: &'static [Field] = &[];
        }
    )*};
}
primitive!(u8, u16, u32, u64);

// SAFETY: elements of an array follow one another without padding.
unsafe impl<T: MapType, const N: usize> MapType for [T; N] {
    const FIELDS: &'static [Field] = &[];
}

/// Declares structs that live in maps: `repr(C)`, all fields `MapType`, no padding.
///
/// A struct with padding does not compile: name the gap (`pad: u16`) instead.
#[macro_export]
macro_rules! map_abi {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* pub $field:ident : $ty:ty, )*
        }
    )*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $ty, )*
        }

        const _: () = {
            const fn is_map_type<T: $crate::abi::MapType>() {}
            $( is_map_type::<$ty>(); )*
            assert!(
                size_of::<$name>() == 0 $( + size_of::<$ty>() )*,
                concat!(stringify!($name), " has padding: name it"),
            );
        };

        // SAFETY: `repr(C)`, every field is a `MapType`, and the sizes add up, so there is no
        // padding; the assertion above fails to compile otherwise.
        #[expect(unsafe_code, reason = "the checks above are what `MapType` asks for")]
        unsafe impl $crate::abi::MapType for $name {
            const FIELDS: &'static [$crate::abi::Field] = &[
                $( $crate::abi::Field {
                    name: stringify!($field),
                    offset: core::mem::offset_of!($name, $field),
                    size: size_of::<$ty>(),
                }, )*
            ];
        }
    )*};
}

/// Declares a struct that is generic over the family of its addresses, as `map_abi!` does: its
/// layout is checked with the addresses of each family.
#[macro_export]
macro_rules! family_abi {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident<$address:ident> {
            $( $(#[$field_meta:meta])* pub $field:ident : $ty:ty, )*
        }
    )*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name<$address: $crate::address::Address> {
            $( $(#[$field_meta])* pub $field: $ty, )*
        }

        const _: () = {
            type $address = $crate::net::Be32;
            assert!(
                size_of::<$name<$address>>() == 0 $( + size_of::<$ty>() )*,
                concat!(stringify!($name), " of IPv4 has padding: name it"),
            );
        };

        const _: () = {
            type $address = $crate::net::Addr;
            assert!(
                size_of::<$name<$address>>() == 0 $( + size_of::<$ty>() )*,
                concat!(stringify!($name), " of IPv6 has padding: name it"),
            );
        };

        const _: () = {
            const fn is_map_type<T: $crate::abi::MapType>() {}
            const fn fields_are_map_types<$address: $crate::address::Address>() {
                $( is_map_type::<$ty>(); )*
            }
            fields_are_map_types::<$crate::net::Be32>();
        };

        // SAFETY: `repr(C)`, every field is a `MapType`, and the sizes add up for both families,
        // so there is no padding; the assertions above fail to compile otherwise.
        #[expect(unsafe_code, reason = "the checks above are what `MapType` asks for")]
        unsafe impl<$address: $crate::address::Address> $crate::abi::MapType for $name<$address> {
            const FIELDS: &'static [$crate::abi::Field] = &[
                $( $crate::abi::Field {
                    name: stringify!($field),
                    offset: core::mem::offset_of!(Self, $field),
                    size: size_of::<$ty>(),
                }, )*
            ];
        }
    )*};
}

#[cfg(test)]
mod tests {
    use super::MapType;
    use crate::name::NameKey;

    #[test]
    fn bytes_and_back() {
        let key = NameKey {
            kind: 0x0102_0304,
            id: 5,
        };
        let mut bytes = [0u8; 9];
        // One byte off, so that the copy out must not rely on alignment.
        bytes[1..].copy_from_slice(key.as_bytes());
        assert_eq!(NameKey::from_bytes(&bytes[1..]), Some(key));
        assert_eq!(NameKey::from_bytes(&bytes[2..]), None);
        assert_eq!(NameKey::zeroed(), NameKey { kind: 0, id: 0 });
        assert_eq!(NameKey::FIELDS[1].offset, 4);
    }
}
