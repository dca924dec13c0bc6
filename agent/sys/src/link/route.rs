//! Routes of ours: to pods, to other nodes' pods, to services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope};

use super::{LinkError, Netlink, PROTOCOL, Route};

impl Netlink {
    /// Adds the route, or changes the one to the same destination.
    ///
    /// # Errors
    /// [`LinkError::Route`], [`LinkError::NoLink`].
    pub async fn replace_route(&self, route: &Route) -> Result<(), LinkError> {
        let index = self.index_of(&route.link).await?;
        self.replace_route_at(route, index).await
    }

    pub(super) async fn replace_route_at(
        &self,
        route: &Route,
        index: u32,
    ) -> Result<(), LinkError> {
        let message = route_message(route, Some(index));
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

    /// Deletes a route of ours. One that is not there is success.
    ///
    /// # Errors
    /// [`LinkError::Route`].
    pub async fn delete_route(&self, route: &Route) -> Result<(), LinkError> {
        // Without the link: it may be gone, and the destination and our
        // protocol number name the route well enough.
        let message = route_message(
            &Route {
                via: None,
                source: None,
                ..route.clone()
            },
            None,
        );
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

fn route_message(route: &Route, index: Option<u32>) -> RouteMessage {
    let scope = if route.via.is_some() {
        RouteScope::Universe
    } else {
        RouteScope::Link
    };
    // The kernel wants RT_SCOPE_NOWHERE in a deletion that leaves the scope open.
    let scope = if index.is_some() {
        scope
    } else {
        RouteScope::NoWhere
    };
    match route.destination.0 {
        IpAddr::V4(destination) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(destination, route.destination.1)
                .protocol(RouteProtocol::Other(PROTOCOL))
                .scope(scope);
            if let Some(IpAddr::V4(via)) = route.via {
                builder = builder.gateway(via);
            }
            if let Some(IpAddr::V4(source)) = route.source {
                builder = builder.pref_source(source);
            }
            if let Some(index) = index {
                builder = builder.output_interface(index);
            }
            builder.build()
        }
        IpAddr::V6(destination) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(destination, route.destination.1)
                .protocol(RouteProtocol::Other(PROTOCOL));
            if let Some(IpAddr::V6(via)) = route.via {
                builder = builder.gateway(via);
            }
            if let Some(IpAddr::V6(source)) = route.source {
                builder = builder.pref_source(source);
            }
            if let Some(index) = index {
                builder = builder.output_interface(index);
            }
            builder.build()
        }
    }
}
