//! Which source port a flow takes when its own would make its answers another flow's.
//!
//! Called by `stage/reply_tuple.rs`.

/// How many ports are tried before the packet is dropped.
pub const ATTEMPTS: u32 = 8;

/// First of the ports that are tried: Linux' ephemeral range, where no server listens.
const FIRST: u32 = 32_768;
/// How many there are.
const COUNT: u32 = 28_232;

/// The port to try, host order; attempts of one connection differ.
#[inline(always)]
pub const fn pick_port(hash: u32, attempt: u32) -> u16 {
    // 7919 is prime and does not divide COUNT, so that the steps do not meet.
    let offset = ((hash as u64 * COUNT as u64) >> 32) as u32 + attempt * 7_919;
    (FIRST + offset % COUNT) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_are_ephemeral() {
        for hash in [0, 1, 0x8000_0000, u32::MAX] {
            let mut seen = [0u16; ATTEMPTS as usize];
            for attempt in 0..ATTEMPTS {
                let port = pick_port(hash, attempt);
                assert!((32_768..=60_999).contains(&port), "{port}");
                assert!(!seen.contains(&port));
                seen[attempt as usize] = port;
            }
        }
    }
}
