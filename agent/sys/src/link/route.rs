//! Our routes: to pods, to other nodes' pods, to services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Hop, LinkError, Netlink, PROTOCOL, Route};

impl Netlink {
    /// Adds the route, or changes the one to the same destination.
    ///
    /// # Errors
    /// [`LinkError::Route`], [`LinkError::NoLink`].
    pub async fn replace_route(&self, route: &Route) -> Result<(), LinkError> {
        let index = match &route.hop {
            Hop::Link { name, .. } => Some(self.index_of(name).await?),
            Hop::Local { name } => {
                let message = address_message(route, self.index_of(name).await?);
                let message = RouteNetlinkMessage::NewAddress(message);
                let put = self.request(message, NLM_F_CREATE | NLM_F_REPLACE).await;
                return put.map_err(|source| LinkError::Route {
                    verb: "add",
                    route: route.to_string(),
                    source,
                });
            }
            Hop::Unreachable => None,
        };
        self.replace_route_at(route, index).await
    }

    pub(super) async fn replace_route_at(
        &self,
        route: &Route,
        index: Option<u32>,
    ) -> Result<(), LinkError> {
        let message = route_message(route, Verb::Replace(index));
        self.request(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
        .map_err(|source| LinkError::Route {
            verb: "replace",
            route: route.to_string(),
            source,
        })
    }

    /// Deletes one of our routes. One that is not there is success.
    ///
    /// # Errors
    /// [`LinkError::Route`].
    pub async fn delete_route(&self, route: &Route) -> Result<(), LinkError> {
        let failed = |source| LinkError::Route {
            verb: "delete",
            route: route.to_string(),
            source,
        };
        if let Hop::Local { name } = &route.hop {
            // It goes with its link.
            let index = match self.index_of(name).await {
                Err(LinkError::NoLink { .. }) => return Ok(()),
                found => found?,
            };
            let message = RouteNetlinkMessage::DelAddress(address_message(route, index));
            return match self.request(message, 0).await {
                Err(source) if source.raw_os_error() != Some(libc::EADDRNOTAVAIL) => {
                    Err(failed(source))
                }
                _ => Ok(()),
            };
        }
        // Without the link: it may be gone, and the destination and our
        // protocol number name the route well enough.
        let message = route_message(route, Verb::Delete);
        match self
            .request(RouteNetlinkMessage::DelRoute(message), 0)
            .await
        {
            Err(source) if source.raw_os_error() != Some(libc::ESRCH) => Err(failed(source)),
            _ => Ok(()),
        }
    }
}

/// An address that no packet of the node itself leaves with unless it asks for it.
fn address_message(route: &Route, index: u32) -> AddressMessage {
    let (address, bits) = route.destination;
    let mut message = AddressMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = bits;
    message.header.scope = AddressScope::Host;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message
}

/// What is asked of the kernel.
enum Verb {
    /// Over the link with this index, if over one.
    Replace(Option<u32>),
    Delete,
}

/// Of the routes to one destination the kernel takes the one with the least metric;
/// pods' routes have 0. (The value that the kernel's own VRF documentation gives to
/// unreachable routes.)
const UNREACHABLE_METRIC: u32 = 4_278_198_272;

fn route_message(route: &Route, verb: Verb) -> RouteMessage {
    let (scope, via, source) = match (&route.hop, &verb) {
        // The kernel wants RT_SCOPE_NOWHERE in a deletion that leaves the scope open.
        (_, Verb::Delete) => (RouteScope::NoWhere, None, None),
        (Hop::Link { via, source, .. }, _) if via.is_some() => {
            (RouteScope::Universe, *via, *source)
        }
        (Hop::Link { source, .. }, _) => (RouteScope::Link, None, *source),
        // The second is no route: see `replace_route`.
        (Hop::Unreachable | Hop::Local { .. }, _) => (RouteScope::Universe, None, None),
    };
    let index = match verb {
        Verb::Replace(index) => index,
        Verb::Delete => None,
    };
    let bits = route.destination.1;
    let mut message = match route.destination.0 {
        IpAddr::V4(destination) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(destination, bits)
                .protocol(RouteProtocol::Other(PROTOCOL))
                .scope(scope);
            if let Some(IpAddr::V4(via)) = via {
                builder = builder.gateway(via);
            }
            if let Some(IpAddr::V4(source)) = source {
                builder = builder.pref_source(source);
            }
            if let Some(index) = index {
                builder = builder.output_interface(index);
            }
            builder.build()
        }
        IpAddr::V6(destination) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(destination, bits)
                .protocol(RouteProtocol::Other(PROTOCOL));
            if let Some(IpAddr::V6(via)) = via {
                builder = builder.gateway(via);
            }
            if let Some(IpAddr::V6(source)) = source {
                builder = builder.pref_source(source);
            }
            if let Some(index) = index {
                builder = builder.output_interface(index);
            }
            builder.build()
        }
    };
    if route.hop == Hop::Unreachable {
        message.header.kind = RouteType::Unreachable;
        message
            .attributes
            .push(RouteAttribute::Priority(UNREACHABLE_METRIC));
    }
    message
}
