//! Addresses that no Service or endpoint may have. Used by `endpointslice.rs` and
//! `service_rules.rs`.

use std::net::IpAddr;

/// Kubernetes' `ValidateNonSpecialIP`: addresses that mean a machine itself or its link would
/// lead connections to something else on each node, a cloud's metadata service among them.
///
/// # Errors
/// Which of these ranges has it, in Kubernetes' words.
pub(crate) fn non_special(ip: IpAddr) -> Result<(), &'static str> {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_unspecified() {
        Err("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Err("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if link_local {
        Err("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if ip.is_multicast() {
        Err("may not be a multicast address")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses() {
        for (address, fits) in [
            ("0.0.0.0", false),
            ("::", false),
            ("127.0.0.1", false),
            ("::1", false),
            ("169.254.169.254", false),
            ("fe80::1", false),
            ("224.0.0.1", false),
            ("ff02::1", false),
            ("192.0.2.1", true),
            ("2001:db8::1", true),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(non_special(address).is_ok(), fits, "{address}");
        }
    }
}
