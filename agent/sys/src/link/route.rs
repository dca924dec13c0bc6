//! Our routes: to pods, to other nodes' pods, to services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::{Hop, LinkError, Netlink, PROTOCOL, Route};

impl Netlink {
    /// Adds the route, or changes the one to the same destination.
    ///
    /// # Errors
    /// [`LinkError::Route`], [`LinkError::NoLink`].
    pub async fn replace_route(&self, route: &Route) -> Result<(), LinkError> {
        let index = match &route.hop {
            Hop::Link { name, .. } => Some(self.index_of(name).await?),
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
        // Without the link: it may be gone, and the destination and our
        // protocol number name the route well enough.
        let message = route_message(route, Verb::Delete);
        match self
            .request(RouteNetlinkMessage::DelRoute(message), 0)
            .await
        {
            Err(source) if source.raw_os_error() != Some(libc::ESRCH) => Err(LinkError::Route {
                verb: "delete",
                route: route.to_string(),
                source,
            }),
            _ => Ok(()),
        }
    }
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
        (Hop::Unreachable, _) => (RouteScope::Universe, None, None),
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
