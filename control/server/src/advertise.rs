//! The Service `kubernetes` of the namespace `default`, with the control plane itself as its
//! endpoint: made at the start, and made again when it was deleted or changed.
//!
//! As Kubernetes' pkg/controlplane/controller/kubernetesservice: the control plane, not a
//! controller, knows where it serves. Called by `start.rs`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use control_api::endpointslice::SERVICE_LABEL;
use control_api::kind::Kind;
use control_api::meta;
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::objects::Objects;
use crate::refusal::Refusal;
use crate::stored::known;
use crate::writing::{CONTROLLERS, Change, Writing};

/// Namespace of the service.
const NAMESPACE: &str = "default";
/// Name of the service and of its slice.
const NAME: &str = "kubernetes";
/// Port of the service.
const PORT: u16 = 443;
/// How often it is looked at (Kubernetes: 10 s).
const LOOK: Duration = Duration::from_secs(10);

/// What the service is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Advertised {
    /// The first address of the services' range.
    cluster_ip: IpAddr,
    /// Where nodes and pods reach the control plane.
    endpoint: SocketAddr,
}

impl Advertised {
    /// For a server at `served`; `None` where no address can be reached from elsewhere.
    pub(crate) fn of(config: &Config, served: SocketAddr) -> Option<Self> {
        let address = config.advertise_address.map_or_else(
            || default_address(served.ip(), &config.names),
            |address| Some(IpAddr::V4(address)),
        )?;
        Some(Self {
            cluster_ip: config.service_cidr.hosts().next()?,
            endpoint: SocketAddr::new(address, served.port()),
        })
    }
}

/// The address that it serves at; or the first of its names that is one, or that of the
/// default route.
fn default_address(served: IpAddr, names: &[String]) -> Option<IpAddr> {
    let is_good = |ip: &IpAddr| ip.is_ipv4() && !ip.is_loopback() && !ip.is_unspecified();
    if !served.is_unspecified() {
        return Some(served).filter(is_good);
    }
    let mut named = names.iter().filter_map(|name| name.parse().ok());
    named.find(is_good).or_else(|| {
        // No packet is sent: the address is any that is not ours.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(is_good)
    })
}

/// Makes the service, and sees to it from then on. It is no reason not to serve if a user's
/// service has its address or name.
pub(crate) async fn keep(objects: Arc<Objects>, advertised: Advertised, stop: CancellationToken) {
    let mut told = first_look(&objects, advertised).await;
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let failure = make(&objects, advertised).await.err();
            let failure = failure.map(|error| error.to_string());
            if failure != told {
                tell(failure.as_deref());
                told = failure;
            }
        }
    });
}

async fn first_look(objects: &Objects, advertised: Advertised) -> Option<String> {
    let failure = make(objects, advertised).await.err();
    let failure = failure.map(|error| error.to_string());
    if failure.is_some() {
        tell(failure.as_deref());
    }
    failure
}

fn tell(failure: Option<&str>) {
    match failure {
        Some(error) => tracing::warn!(error, "cannot make the Service {NAMESPACE}/{NAME}"),
        None => tracing::info!("the Service {NAMESPACE}/{NAME} is as it should be"),
    }
}

/// Brings the service and its slice to what they are to be.
async fn make(objects: &Objects, advertised: Advertised) -> Result<(), Refusal> {
    let Advertised {
        cluster_ip,
        endpoint,
    } = advertised;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE,
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip.to_string(),
            "ports": [{
                "name": "https", "port": PORT, "protocol": "TCP", "targetPort": endpoint.port(),
            }],
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE,
            "labels": {SERVICE_LABEL: NAME},
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [endpoint.ip().to_string()],
            "conditions": {"ready": true},
        }],
        "ports": [{"name": "https", "port": endpoint.port(), "protocol": "TCP"}],
    });
    let of_service = ["/spec/ports", "/spec/selector"];
    one(objects, known("", "v1", "Service")?, &service, &of_service).await?;
    let kind = known("discovery.k8s.io", "v1", "EndpointSlice")?;
    let of_slice = ["/endpoints", "/ports", "/metadata/labels"];
    one(objects, kind, &slice, &of_slice).await
}

/// Makes the object, or brings these of its fields to what they are in `wanted`.
async fn one(
    objects: &Objects,
    kind: &'static Kind,
    wanted: &Value,
    fields: &[&str],
) -> Result<(), Refusal> {
    let writing = Writing::system(CONTROLLERS);
    if objects.find(kind, NAMESPACE, NAME).await?.is_none() {
        let made = objects.create(kind, Change::To(wanted.clone()), &[], &writing);
        return match made.await {
            Ok(_) | Err(Refusal::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        };
    }
    let changed = objects.change(kind, NAMESPACE, NAME, &writing, |old| {
        if meta::is_terminating(&old.value) {
            return Ok(Change::Nothing);
        }
        let mut next = old.value.clone();
        for field in fields {
            set(&mut next, field, wanted.pointer(field));
        }
        Ok(Change::To(next))
    });
    match changed.await {
        // It is made again at the next look.
        Ok(_) | Err(Refusal::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sets or removes a field, by its JSON pointer.
fn set(object: &mut Value, pointer: &str, value: Option<&Value>) {
    let (parent, name) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
    let Some(parent) = parent else { return };
    match value {
        Some(value) => drop(parent.insert(name.to_owned(), value.clone())),
        None => drop(parent.shift_remove(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_others_reach() {
        let names = |list: &[&str]| list.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let rows = [
            ("192.0.2.7", names(&["192.0.2.8"]), Some("192.0.2.7")),
            (
                "0.0.0.0",
                names(&["localhost", "127.0.0.1", "192.0.2.8"]),
                Some("192.0.2.8"),
            ),
            ("127.0.0.1", names(&["192.0.2.8"]), None),
        ];
        for (served, names, expected) in rows {
            let got = default_address(served.parse().unwrap(), &names);
            assert_eq!(
                got,
                expected.map(|ip| ip.parse().unwrap()),
                "{served} {names:?}"
            );
        }
    }
}
