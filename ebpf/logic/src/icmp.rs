//! Which ICMP messages are errors about a flow, and quote the beginning of its packet.
//!
//! Called by `stage/icmp.rs`.

/// Bytes of an ICMP header; the packet that an error is about begins behind it.
pub const HEADER: usize = 8;
/// Destination unreachable; code 4 of it is path MTU discovery.
pub const UNREACHABLE: u8 = 3;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;

/// Whether a message of this type quotes the packet that it is about (RFC 792). A redirect
/// does too, but speaks of routes, which are the node's own here.
#[inline(always)]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

#[cfg(test)]
mod tests {
    use super::is_error;

    #[test]
    fn echo_is_no_error() {
        assert!(is_error(3) && is_error(11) && is_error(12));
        assert!(!is_error(0) && !is_error(8) && !is_error(5));
    }
}
