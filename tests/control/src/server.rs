//! A server in this process, on an embedded store in a temporary folder, with an operator's
//! client.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use control_server::start::Running;
use control_server::token::{Scope, Tokens};
use control_server::{Config, StartError, start};
use jiff::Timestamp;
use proto::Message as _;
use proto::v1;
use proto::v1::cluster_client::ClusterClient;
use proto::v1::node_client::NodeClient;
use serde_json::Value;
use tonic::Status;
use tonic::transport::{Channel, Identity};

use crate::agent::{Agent, Options};
use crate::dial::{admin, join, node_client};
use crate::wait::eventually;

/// A server, its folder, and an operator's client.
pub struct Server {
    /// The store, the CA, `admin.conf`.
    pub folder: tempfile::TempDir,
    /// `None` while it is stopped.
    pub running: Option<Running>,
    /// May do everything.
    pub client: ClusterClient<Channel>,
    /// More lines of configuration.
    extra: String,
    /// Of the nodes that have joined.
    identities: tokio::sync::Mutex<BTreeMap<String, Identity>>,
}

/// Starts a server.
pub async fn server() -> Server {
    server_with("").await
}

/// Starts a server with more lines of configuration.
pub async fn server_with(extra: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), ANY_PORT, extra);
    let running = start(&config).await.unwrap();
    let client = admin(&running).await;
    Server {
        folder,
        running: Some(running),
        client,
        extra: extra.to_owned(),
        identities: tokio::sync::Mutex::default(),
    }
}

/// A free port of the system's choice.
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn config(folder: &Path, listen: SocketAddr, extra: &str) -> Config {
    let text = format!(
        "listen = \"{listen}\"\ndata = {folder:?}\nnames = [\"localhost\", \"127.0.0.1\"]\n{extra}"
    );
    Config::parse(&text).unwrap()
}

/// group, version and kind of a word such as "pods".
pub fn kind(word: &str) -> Option<v1::KindRef> {
    let kind = control_api::by_word(word).unwrap();
    let (group, version, kind) = (kind.group.into(), kind.version.into(), kind.kind.into());
    Some(v1::KindRef {
        group,
        version,
        kind,
    })
}

/// Reason and fields of a refused request.
pub fn detail(status: &Status) -> (String, Vec<String>) {
    let bytes = status
        .metadata()
        .get_bin("hydrofoil-status-bin")
        .unwrap()
        .to_bytes()
        .unwrap();
    let detail = v1::StatusDetail::decode(bytes).unwrap();
    (
        detail.reason,
        detail.causes.into_iter().map(|c| c.field).collect(),
    )
}

impl Server {
    /// It must not be stopped.
    pub fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Ends the server without a goodbye, and starts another on the same folder.
    pub async fn restart(&mut self) {
        self.running.take().unwrap().stop().await.unwrap();
        self.run_again(ANY_PORT).await;
    }

    /// Ends the server, and starts another on the same folder with this configuration
    /// instead of that which it had.
    pub async fn restart_with(&mut self, extra: &str) {
        self.running.take().unwrap().stop().await.unwrap();
        self.run_with(extra).await;
    }

    /// Ends the server; says why one with this configuration does not start on its folder.
    pub async fn refused_with(&mut self, extra: &str) -> String {
        self.running.take().unwrap().stop().await.unwrap();
        let config = config(self.folder.path(), ANY_PORT, extra);
        // The store is closed when the last request lets go of it.
        eventually("a start that is refused", async || {
            match start(&config).await {
                Err(error @ StartError::Store(_)) => Err(error.to_string()),
                Err(refused) => Ok(refused.to_string()),
                Ok(_) => panic!("started with {extra:?}"),
            }
        })
        .await
    }

    /// Starts a server on the folder and at the address of one whose runtime has ended, which
    /// is as close to a killed process as one process can have it.
    pub async fn start_at(&mut self, address: SocketAddr) {
        self.running = None;
        self.run_again(address).await;
    }

    /// Starts a server on the folder of one that ended, with more configuration.
    pub async fn run_with(&mut self, extra: &str) {
        self.extra = extra.to_owned();
        self.run_again(ANY_PORT).await;
    }

    async fn run_again(&mut self, listen: SocketAddr) {
        // The store is closed when the last request lets go of it.
        let config = config(self.folder.path(), listen, &self.extra);
        let running = eventually("a server", async || {
            start(&config).await.map_err(|error| error.to_string())
        })
        .await;
        self.client = admin(&running).await;
        self.running = Some(running);
    }

    /// Applies an object as the field manager "test".
    pub async fn try_apply(&mut self, value: &Value) -> Result<v1::ApplyResponse, Status> {
        let request = v1::ApplyRequest {
            json: value.to_string().into_bytes(),
            field_manager: "test".to_owned(),
            ..v1::ApplyRequest::default()
        };
        Ok(self.client.apply(request).await?.into_inner())
    }

    /// The same, with the object as it is stored.
    pub async fn apply(&mut self, value: &Value) -> Value {
        let response = self.try_apply(value).await.unwrap();
        serde_json::from_slice(&response.object.unwrap().json).unwrap()
    }

    /// An object of the namespace "default" or of none; the kind by a word such as "pods".
    pub async fn get(&mut self, word: &str, name: &str) -> Result<Value, Status> {
        let name = name.to_owned();
        let request = v1::GetRequest {
            kind: kind(word),
            name,
            ..v1::GetRequest::default()
        };
        let object = self.client.get(request).await?.into_inner();
        Ok(serde_json::from_slice(&object.json).unwrap())
    }

    /// All objects of a kind with these labels.
    pub async fn list(&mut self, word: &str, labels: &str) -> Vec<Value> {
        let request = v1::ListRequest {
            kind: kind(word),
            label_selector: labels.to_owned(),
            ..v1::ListRequest::default()
        };
        let list = self.client.list(request).await.unwrap().into_inner();
        list.items
            .iter()
            .map(|o| serde_json::from_slice(&o.json).unwrap())
            .collect()
    }

    /// Sets the replicas of a deployment.
    pub async fn scale(&mut self, name: &str, replicas: i32) -> Value {
        let request = v1::ScaleRequest {
            kind: kind("deployment"),
            name: name.to_owned(),
            replicas,
            ..v1::ScaleRequest::default()
        };
        let object = self.client.scale(request).await.unwrap().into_inner();
        serde_json::from_slice(&object.json).unwrap()
    }

    /// Merges a patch into an object.
    pub async fn patch(&mut self, word: &str, name: &str, patch: Value) -> Value {
        let request = v1::PatchRequest {
            kind: kind(word),
            name: name.to_owned(),
            merge_patch: patch.to_string().into_bytes(),
            ..v1::PatchRequest::default()
        };
        let object = self.client.patch(request).await.unwrap().into_inner();
        serde_json::from_slice(&object.json).unwrap()
    }
    /// Deletes by the object's own grace period.
    pub async fn delete(&mut self, word: &str, name: &str) -> v1::DeleteResponse {
        let name = name.to_owned();
        let request = v1::DeleteRequest {
            kind: kind(word),
            name,
            ..v1::DeleteRequest::default()
        };
        self.client.delete(request).await.unwrap().into_inner()
    }

    /// Waits until a list satisfies a condition.
    pub async fn until(
        &mut self,
        word: &str,
        labels: &str,
        what: &str,
        met: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        eventually(what, async || {
            let items = self.list(word, labels).await;
            if met(&items) {
                Ok(items)
            } else {
                Err(fmt::from_fn(move |f| write!(f, "{items:#?}")))
            }
        })
        .await
    }

    /// Waits until one object satisfies a condition. The server reads this object alone, where
    /// a list with a selector has it read all of the kind.
    pub async fn until_one(
        &mut self,
        word: &str,
        name: &str,
        what: &str,
        met: impl Fn(&Value) -> bool,
    ) -> Value {
        eventually(what, async || {
            let object = self.get(word, name).await.unwrap();
            if met(&object) {
                Ok(object)
            } else {
                Err(fmt::from_fn(move |f| write!(f, "{object:#}")))
            }
        })
        .await
    }

    /// An agent of this name, which joins now if it has not yet.
    pub async fn agent(&self, name: &str) -> Agent {
        self.agent_with(name, Options::default()).await
    }

    /// An agent that does what the options say.
    pub async fn agent_with(&self, name: &str, options: Options) -> Agent {
        let client = self.node_client(name).await;
        Agent::start(client, name, options).await
    }

    /// A join token.
    pub fn token(&self, scope: &Scope) -> String {
        let tokens = Tokens::new(self.running().pki.folder());
        let hour = jiff::SignedDuration::from_hours(1);
        tokens.make(scope, hour, Timestamp::now()).unwrap()
    }

    /// What a node has in its folder once it has joined, which it does now if need be.
    pub async fn identity(&self, node: &str) -> Identity {
        let mut known = self.identities.lock().await;
        if let Some(identity) = known.get(node) {
            return identity.clone();
        }
        let token = self.token(&Scope::Once);
        let key = rcgen::KeyPair::generate().unwrap();
        let joined = join(self.running(), node, "system:nodes", &token, &key).await;
        let identity = joined.unwrap();
        known.insert(node.to_owned(), identity.clone());
        identity
    }

    /// The node's folder is emptied: it joins anew, with another key.
    pub async fn forget_identity(&self, node: &str) {
        self.identities.lock().await.remove(node);
    }

    /// A client with the certificate of this node.
    pub async fn node_client(&self, node: &str) -> NodeClient<Channel> {
        node_client(self.running(), self.identity(node).await).await
    }
}
