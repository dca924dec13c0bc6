//! Connections to a server under test: an operator's, a node's, and how a node joins.

use control_server::start::Running;
use jiff::Timestamp;
use proto::v1;
use proto::v1::cluster_client::ClusterClient;
use proto::v1::node_client::NodeClient;
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// The server's address; connects when it is asked to.
pub fn endpoint(running: &Running, tls: ClientTlsConfig) -> Endpoint {
    let tls = tls.domain_name("localhost");
    let uri = format!("https://{}", running.address);
    Endpoint::from_shared(uri).unwrap().tls_config(tls).unwrap()
}

/// A client without a certificate that trusts the server's CA.
pub fn trusting(running: &Running) -> ClientTlsConfig {
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(running.pki.ca_pem()))
}

/// A client that may do everything.
pub async fn admin(running: &Running) -> ClusterClient<Channel> {
    let admin = running.pki.admin(Timestamp::now()).unwrap();
    let tls = trusting(running).identity(Identity::from_pem(admin.chain_pem, admin.key_pem));
    ClusterClient::new(endpoint(running, tls).connect().await.unwrap())
}

/// A node's certificate request, PEM.
pub fn csr(node: &str, group: &str, key: &rcgen::KeyPair) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, group);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// Joins as a fresh node does: without certificate, with this token.
pub async fn join(
    running: &Running,
    node: &str,
    group: &str,
    token: &str,
    key: &rcgen::KeyPair,
) -> Result<Identity, Status> {
    let channel = endpoint(running, trusting(running))
        .connect()
        .await
        .unwrap();
    let request = v1::JoinRequest {
        token: token.to_owned(),
        csr_pem: csr(node, group, key),
        node_name: node.to_owned(),
    };
    let response = NodeClient::new(channel).join(request).await?.into_inner();
    assert_eq!(response.ca_pem, running.pki.ca_pem());
    Ok(Identity::from_pem(
        response.certificate_pem,
        key.serialize_pem(),
    ))
}

/// A client with this node's certificate.
pub async fn node_client(running: &Running, identity: Identity) -> NodeClient<Channel> {
    let tls = trusting(running).identity(identity);
    NodeClient::new(endpoint(running, tls).connect().await.unwrap())
}
