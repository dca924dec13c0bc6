//! The link that service addresses are routed to (`foil0`): made, found again and repaired.
//!
//! A veth pair `name` and `name`p in this namespace, both up, without addresses and without
//! ARP. Programs on its egress take every packet; what they leave reaches the other side,
//! which forwards nothing. (A dummy would do, but not every kernel has one.)
//! Its alias (ip-link(8)) says which agent of the machine it belongs to.

use rtnetlink::LinkUnspec;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;

use super::{Link, LinkError, Mac, Netlink, observe, pod, set_sysctl};

/// Bytes that the kernel takes as an alias (IFALIASZ, less the final zero).
const ALIAS: usize = 255;

/// The service link as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceLink {
    /// Of the side that addresses are routed to.
    pub name: String,
    /// Bytes.
    pub mtu: u32,
    /// Interface index and Ethernet address that it must have; none: it keeps those that it
    /// has, or gets the kernel's choice.
    pub fixed: Option<(u32, Mac)>,
    /// Its alias: whose it is. Of a longer text the last 255 bytes are kept.
    pub owner: String,
}

/// The alias that a link of this owner has.
pub fn alias(owner: &str) -> &str {
    let mut from = owner.len().saturating_sub(ALIAS);
    while !owner.is_char_boundary(from) {
        from += 1;
    }
    owner.get(from..).unwrap_or_default()
}

impl Netlink {
    /// Makes the service link, or makes it whole: what is there is kept if it is a pair with
    /// the index that is asked for. Returns index and Ethernet address.
    ///
    /// # Errors
    /// [`LinkError::IndexInUse`] when another link has the index that is asked for; other
    /// [`LinkError`]s, and then nothing of it is left.
    pub async fn put_service_link(&self, link: &ServiceLink) -> Result<(u32, Mac), LinkError> {
        if self.is_service_pair(link).await? {
            match self.configure_service_link(link).await {
                Ok(done) => return Ok(done),
                Err(error) => tracing::debug!(link = link.name, %error, "not to be repaired"),
            }
        }
        let peer = peer_of(&link.name);
        // One side may have been moved to another namespace or renamed: each goes by itself.
        self.delete_link(&link.name).await?;
        self.delete_link(&peer).await?;
        self.create_pair(link, &peer).await?;
        let result = self.configure_service_link(link).await;
        if result.is_err() {
            self.delete_link(&link.name).await?;
        }
        result
    }

    async fn found(&self, name: &str) -> Result<Option<Link>, LinkError> {
        match self.link_message(name).await {
            Ok(message) => Ok(Some(observe::link_of(&message))),
            Err(LinkError::NoLink { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// True if both sides are here and belong together.
    async fn is_service_pair(&self, link: &ServiceLink) -> Result<bool, LinkError> {
        let (Some(one), Some(other)) = (
            self.found(&link.name).await?,
            self.found(&peer_of(&link.name)).await?,
        ) else {
            return Ok(false);
        };
        let paired = one.peer_index == Some(other.index) && other.peer_index == Some(one.index);
        let fits = link.fixed.is_none_or(|(index, _)| index == one.index);
        Ok(paired && fits && one.kind == "veth")
    }

    async fn create_pair(&self, link: &ServiceLink, peer: &str) -> Result<(), LinkError> {
        let mut create = pod::pair_message(&link.name, peer, link.mtu);
        if let Some((index, mac)) = link.fixed {
            create.header.index = index;
            create.attributes.push(LinkAttribute::Address(mac.to_vec()));
        }
        let made = self
            .request(
                RouteNetlinkMessage::NewLink(create),
                NLM_F_CREATE | NLM_F_EXCL,
            )
            .await;
        let Err(source) = made else {
            return Ok(());
        };
        // The kernel says EEXIST of a name as well, but names were freed before.
        let taken = [Some(libc::EEXIST), Some(libc::EBUSY)].contains(&source.raw_os_error());
        match link.fixed {
            Some((index, _)) if taken && self.found(&link.name).await?.is_none() => {
                Err(LinkError::IndexInUse {
                    name: link.name.clone(),
                    index,
                })
            }
            _ => Err(LinkError::Link {
                verb: "create",
                name: link.name.clone(),
                source,
            }),
        }
    }

    async fn configure_service_link(&self, link: &ServiceLink) -> Result<(u32, Mac), LinkError> {
        let peer = peer_of(&link.name);
        set_sysctl(&format!("net/ipv4/conf/{peer}/forwarding"), "0")?;
        for side in [peer.as_str(), link.name.as_str()] {
            pod::quiet_ipv6(side)?;
            set_sysctl(&format!("net/ipv4/conf/{side}/rp_filter"), "0")?;
            let index = self.index_of(side).await?;
            let mut set = LinkUnspec::new_with_index(index)
                .mtu(link.mtu)
                .arp(false)
                .up();
            if side == link.name {
                if let Some((_, mac)) = link.fixed {
                    set = set.address(mac.to_vec());
                }
                let alias = alias(&link.owner).to_owned();
                set = set.append_extra_attribute(LinkAttribute::IfAlias(alias));
            }
            self.request(RouteNetlinkMessage::SetLink(set.build()), 0)
                .await
                .map_err(|source| LinkError::Link {
                    verb: "set up",
                    name: side.to_owned(),
                    source,
                })?;
        }
        let made = observe::link_of(&self.link_message(&link.name).await?);
        Ok((made.index, made.mac))
    }
}

/// Name of the other side.
fn peer_of(name: &str) -> String {
    format!("{name}p")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_fits_and_keeps_the_end() {
        assert_eq!(alias("/run/hydrofoil"), "/run/hydrofoil");
        let long = format!("/{}/end", "é".repeat(200));
        let kept = alias(&long);
        assert!(kept.len() <= ALIAS && kept.ends_with("é/end"), "{kept}");
    }
}
