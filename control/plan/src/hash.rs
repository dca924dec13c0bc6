//! Hashes that end up in names: stable over restarts, versions and machines.
//!
//! Not for security. Used for pod-template-hash, pod names and slice names.

/// Letters of generated names: no vowels, so that no words appear, and none
/// of the digits that look like letters (Kubernetes' own alphabet).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// FNV-1a over 64 bit, finished with the mixer of splitmix64 so that short
/// inputs that differ in their last byte differ everywhere.
pub fn fnv64(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in *part {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // A part's end counts, so that ("ab", "c") is not ("a", "bc").
        hash = (hash ^ 0xff).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// `length` letters that stand for `hash` (at most 13 are distinct).
pub fn letters(mut hash: u64, length: usize) -> String {
    let base = ALPHABET.len() as u64;
    (0..length)
        .map(|_| {
            let at = usize::try_from(hash % base).unwrap_or(0);
            hash /= base;
            char::from(ALPHABET[at])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(fnv64(&[b"ab", b"c"]), fnv64(&[b"a", b"bc"]));
        assert_eq!(letters(fnv64(&[b"x"]), 5), letters(fnv64(&[b"x"]), 5));
        assert_ne!(letters(fnv64(&[b"x"]), 5), letters(fnv64(&[b"y"]), 5));
        assert_eq!(letters(7, 10).len(), 10);
    }
}
