//! The Service of cluster DNS, kube-system/kube-dns: nodes answer at its address, so it has
//! no selector and no endpoints. It holds the address against other services.
//!
//! Called by `start.rs`, before anything is served.

use control_api::kind::Kind;
use control_api::{find_for, meta};
use serde_json::{Value, json};

use crate::delete::DeleteOptions;
use crate::objects::Objects;
use crate::refusal::Refusal;
use crate::writing::{CONTROLLERS, Change, Writing};

/// Namespace and name of the service, as other clusters have it.
const DNS: (&str, &str) = ("kube-system", "kube-dns");
/// Set on what is made here, so that what a user made is left alone.
const OURS: (&str, &str) = ("app.kubernetes.io/managed-by", "hydrofoil");

/// What is always there cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuiltinError {
    /// Another service has the address or the name.
    #[error(
        "the Service kube-system/kube-dns cannot have dns_address {address}: {source}. Name \
         another address of service_cidr as dns_address, or \"\" if nodes are not to answer DNS"
    )]
    Dns {
        /// As configured.
        address: String,
        /// Why.
        source: Refusal,
    },
}

fn service(address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": DNS.1, "namespace": DNS.0,
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/name": "CoreDNS",
                OURS.0: OURS.1,
            },
        },
        "spec": {
            "clusterIP": address,
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ],
        },
    })
}

/// True for the service that is made here.
pub(crate) fn is_dns(service: &Value) -> bool {
    let named = (meta::namespace(service), meta::name(service)) == DNS;
    named && meta::label(service, OURS.0) == Some(OURS.1)
}

/// Makes the service of that address; removes ours of another one. "": there is none.
pub(crate) async fn dns_service(objects: &Objects, address: &str) -> Result<(), BuiltinError> {
    let failed = |source| BuiltinError::Dns {
        address: address.to_owned(),
        source,
    };
    make(objects, address).await.map_err(failed)
}

async fn make(objects: &Objects, address: &str) -> Result<(), Refusal> {
    let value = service(address);
    let kind: &'static Kind = match find_for(&value) {
        Ok(kind) => kind,
        Err(error) => return Err(Refusal::BadRequest(error.to_string())),
    };
    if let Some(found) = objects.find(kind, DNS.0, DNS.1).await? {
        let there = found
            .value
            .pointer("/spec/clusterIP")
            .and_then(Value::as_str);
        if there == Some(address) || address.is_empty() && !is_dns(&found.value) {
            return Ok(());
        }
        if !is_dns(&found.value) {
            let there = there.unwrap_or("no address");
            let message = format!("it was made by a user, with {there}");
            return Err(Refusal::BadRequest(message));
        }
        let options = DeleteOptions::default();
        objects.delete(kind, DNS.0, DNS.1, &options).await?;
    }
    if address.is_empty() {
        return Ok(());
    }
    let writing = Writing::system(CONTROLLERS);
    match objects.create(kind, Change::To(value), &[], &writing).await {
        Ok(_) | Err(Refusal::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
