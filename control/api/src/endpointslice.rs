//! EndpointSlice: defaults and rules. Not which endpoints there are: the
//! controller in `control-plan` decides.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::address::non_special;
use crate::admit;
use crate::invalid::{Causes, Field};
use crate::kind::{Kind, NameRule, Rules, Words};
use crate::name;

pub(crate) static KIND: Kind = admit::kind_of::<EndpointSlice>(Words {
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    namespaced: true,
    has_status: false,
    pod_spec: "",
    name_rule: NameRule::Subdomain,
});

/// Names the Service whose endpoints these are.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Names the controller that writes the slice.
pub const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";

/// Annotation with the weights of endpoints that have one, by address:
/// "10.244.1.3=5,10.244.1.4=2".
pub const WEIGHTS: &str = "hydrofoil.dev/weights";

const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 100;

impl Rules for EndpointSlice {
    fn set_defaults(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            port.name.get_or_insert_default();
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }

    fn validate(&self, causes: &mut Causes) {
        let kinds = ["IPv4", "IPv6", "FQDN"];
        let at = Field::root("addressType");
        if self.address_type.is_empty() {
            causes.required(&at, "");
        } else if !kinds.contains(&self.address_type.as_str()) {
            causes.unsupported(&at, &self.address_type, &kinds);
        }
        let at = Field::root("endpoints");
        if self.endpoints.len() > ENDPOINTS_MAX {
            causes.push(
                &at,
                format!("Too many: must have at most {ENDPOINTS_MAX} items"),
            );
        }
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let at = at.index(i).child("addresses");
            if endpoint.addresses.is_empty() {
                causes.required(&at, "must contain at least 1 address");
            }
            for (j, address) in endpoint.addresses.iter().enumerate() {
                if let Err(detail) = fits(&self.address_type, address) {
                    causes.invalid(&at.index(j), address, detail);
                }
            }
        }
        let at = Field::root("ports");
        let mut names = Vec::new();
        for (i, port) in self.ports.iter().flatten().enumerate() {
            let at = at.index(i);
            if i == PORTS_MAX {
                causes.push(
                    &at,
                    format!("Too many: must have at most {PORTS_MAX} items"),
                );
            }
            let key = port.name.clone().unwrap_or_default();
            if names.contains(&key) {
                causes.duplicate(&at.child("name"), &key);
            }
            names.push(key);
            if let Some(Err(detail)) = port.port.map(name::port) {
                causes.invalid(&at.child("port"), port.port.unwrap_or_default(), detail);
            }
            let protocol = port.protocol.as_deref().unwrap_or_default();
            if !["TCP", "UDP", "SCTP"].contains(&protocol) {
                causes.unsupported(&at.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]);
            }
        }
    }

    fn validate_update(&self, old: &Self, causes: &mut Causes) {
        if self.address_type != old.address_type {
            let at = Field::root("addressType");
            causes.invalid(&at, &self.address_type, "field is immutable");
        }
    }
}

fn fits(kind: &str, address: &str) -> Result<(), String> {
    match kind {
        "FQDN" => name::subdomain(address),
        "IPv4" | "IPv6" => match address.parse::<IpAddr>() {
            Ok(ip) if ip.is_ipv4() == (kind == "IPv4") => non_special(ip).map_err(str::to_owned),
            Ok(_) | Err(_) => Err(format!("must be a valid {kind} address")),
        },
        _unknown => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Kubernetes' `ValidateEndpointIP`.
    #[test]
    fn addresses_that_no_endpoint_may_have() {
        for (kind, address, refused) in [
            ("IPv4", "10.244.0.5", None),
            ("IPv6", "fd00::5", None),
            ("IPv4", "0.0.0.0", Some("unspecified")),
            ("IPv4", "127.0.0.1", Some("loopback")),
            ("IPv4", "169.254.169.254", Some("link-local")),
            ("IPv6", "fe80::1", Some("link-local")),
            ("IPv4", "224.0.0.1", Some("multicast")),
            ("IPv4", "fd00::5", Some("valid IPv4")),
        ] {
            let got = fits(kind, address).err();
            let fits = match (&got, refused) {
                (Some(got), Some(refused)) => got.contains(refused),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            assert!(fits, "{address}: {got:?}");
        }
    }
}
