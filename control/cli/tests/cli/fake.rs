//! The `Cluster` service over TLS on loopback, in a thread of its own.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use proto::v1;
use proto::v1::cluster_server::{Cluster, ClusterServer};
use proto::v1::exec_input::Input;
use proto::v1::exec_output::Output;
use proto::v1::watch_event::Type;
use serde_json::Value;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::pki;
use crate::store::{Change, Store, kind_of};

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A control plane that lives as long as this.
pub(crate) struct Control {
    pub(crate) store: Arc<Mutex<Store>>,
    /// Deletions that were asked for.
    pub(crate) deletions: Arc<Mutex<Vec<v1::DeleteRequest>>>,
    pub(crate) logs: Arc<Mutex<Vec<v1::LogsRequest>>>,
    pub(crate) address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone)]
struct Service {
    store: Arc<Mutex<Store>>,
    deletions: Arc<Mutex<Vec<v1::DeleteRequest>>>,
    logs: Arc<Mutex<Vec<v1::LogsRequest>>>,
}

impl Control {
    /// Serves with this identity, to clients that this authority signed.
    pub(crate) fn start(server: &pki::Identity, clients: &pki::Authority) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let service = Service {
            store: Arc::new(Mutex::new(Store::new())),
            deletions: Arc::default(),
            logs: Arc::default(),
        };
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(&server.certificate, &server.key))
            .client_ca_root(Certificate::from_pem(clients.pem()));
        let cluster = ClusterServer::new(service.clone());
        runtime.spawn(async move {
            let server = Server::builder()
                .tls_config(tls)
                .unwrap()
                .add_service(cluster);
            server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            store: service.store,
            deletions: service.deletions,
            logs: service.logs,
            address,
            _runtime: runtime,
        }
    }
}

fn object(value: &Value) -> v1::Object {
    v1::Object {
        json: serde_json::to_vec(value).unwrap(),
    }
}

/// Standard input as standard output, until its end.
async fn give_back(
    input: &mut tonic::Streaming<v1::ExecInput>,
    sender: &tokio::sync::mpsc::Sender<Result<v1::ExecOutput, Status>>,
) {
    loop {
        match input
            .message()
            .await
            .ok()
            .flatten()
            .and_then(|message| message.input)
        {
            // Control-D, as a terminal has it.
            Some(Input::Stdin(bytes)) if bytes == [4] => return,
            Some(Input::Stdin(bytes)) => {
                let output = v1::ExecOutput {
                    output: Some(Output::Stdout(bytes)),
                };
                drop(sender.send(Ok(output)).await);
            }
            Some(Input::StdinClosed(_)) | None => return,
            Some(Input::Start(_) | Input::Resize(_)) => {}
        }
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    type WatchStream = Streamed<v1::WatchEvent>;
    type LogsStream = Streamed<v1::LogsChunk>;
    type ExecStream = Streamed<v1::ExecOutput>;

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::ApplyResponse> {
        let request = request.into_inner();
        let namespace = if request.namespace.is_empty() {
            "default"
        } else {
            &request.namespace
        };
        let (stored, outcome, warnings) =
            self.store
                .lock()
                .unwrap()
                .write(&request.json, namespace, false, request.dry_run)?;
        let outcome = outcome.into();
        Ok(Response::new(v1::ApplyResponse {
            object: Some(object(&stored)),
            outcome,
            warnings,
        }))
    }

    async fn create(&self, request: Request<v1::CreateRequest>) -> Answer<v1::Object> {
        let request = request.into_inner();
        let (stored, _, _) = self.store.lock().unwrap().write(
            &request.json,
            &request.namespace,
            true,
            request.dry_run,
        )?;
        Ok(Response::new(object(&stored)))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::Object> {
        let request = request.into_inner();
        let kind = kind_of(request.kind)?;
        let found = self
            .store
            .lock()
            .unwrap()
            .get(kind, &request.namespace, &request.name)?;
        Ok(Response::new(object(&found)))
    }

    /// Two objects in a page, so that pages are met.
    async fn list(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListResponse> {
        let request = request.into_inner();
        let kind = kind_of(request.kind)?;
        let store = self.store.lock().unwrap();
        let all = store.list(
            kind,
            &request.namespace,
            &request.label_selector,
            &request.field_selector,
        )?;
        let from: usize = request.continue_token.parse().unwrap_or(0);
        let items = all.iter().skip(from).take(2).map(object).collect();
        let continue_token = if from + 2 < all.len() {
            (from + 2).to_string()
        } else {
            String::new()
        };
        Ok(Response::new(v1::ListResponse {
            items,
            resource_version: "1".into(),
            continue_token,
        }))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Answer<Self::WatchStream> {
        let request = request.into_inner();
        let kind = kind_of(request.kind)?;
        let store = self.store.lock().unwrap();
        let changes = tokio_stream::wrappers::BroadcastStream::new(store.changes.subscribe());
        let event = |what: Type, value: Option<&Value>| v1::WatchEvent {
            r#type: what.into(),
            object: value.map(object),
            resource_version: "1".into(),
        };
        let mut first = Vec::new();
        if request.resource_version.is_empty() {
            let all = store.list(
                kind,
                &request.namespace,
                &request.label_selector,
                &request.field_selector,
            )?;
            first.extend(all.iter().map(|found| Ok(event(Type::Added, Some(found)))));
            first.push(Ok(event(Type::Bookmark, None)));
        }
        let fields = control_api::selector::FieldSelector::parse(&request.field_selector).unwrap();
        let later = changes.filter_map(move |change| {
            let Change { what, object } = change.ok()?;
            (object["kind"] == kind.kind && fields.matches(&object))
                .then(|| Ok(event(what, Some(&object))))
        });
        Ok(Response::new(Box::pin(
            tokio_stream::iter(first).chain(later),
        )))
    }

    async fn update(&self, _request: Request<v1::UpdateRequest>) -> Answer<v1::Object> {
        Err(Status::unimplemented("foil does not update"))
    }

    async fn patch(&self, request: Request<v1::PatchRequest>) -> Answer<v1::Object> {
        let request = request.into_inner();
        let kind = kind_of(request.kind)?;
        let patch = serde_json::from_slice(&request.merge_patch).unwrap();
        let found =
            self.store
                .lock()
                .unwrap()
                .patch(kind, &request.namespace, &request.name, &patch)?;
        Ok(Response::new(object(&found)))
    }

    /// An object with a finalizer stays for a moment.
    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        let request = request.into_inner();
        let kind = kind_of(request.kind.clone())?;
        self.deletions.lock().unwrap().push(request.clone());
        let found = self
            .store
            .lock()
            .unwrap()
            .get(kind, &request.namespace, &request.name)?;
        let lingers = found["metadata"]["finalizers"].is_array();
        if lingers {
            let store = self.store.clone();
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                store
                    .lock()
                    .unwrap()
                    .delete(kind, &request.namespace, &request.name)
                    .unwrap();
            });
        } else {
            self.store
                .lock()
                .unwrap()
                .delete(kind, &request.namespace, &request.name)?;
        }
        Ok(Response::new(v1::DeleteResponse {
            object: Some(object(&found)),
            gone: !lingers,
        }))
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Answer<v1::Object> {
        let request = request.into_inner();
        let kind = kind_of(request.kind)?;
        let patch = serde_json::json!({"spec": {"replicas": request.replicas}});
        let found =
            self.store
                .lock()
                .unwrap()
                .patch(kind, &request.namespace, &request.name, &patch)?;
        Ok(Response::new(object(&found)))
    }

    /// One kind more than `foil` knows.
    async fn kinds(&self, _request: Request<v1::KindsRequest>) -> Answer<v1::KindsResponse> {
        let known = control_api::kinds().iter().map(|kind| v1::KindInfo {
            kind: Some(v1::KindRef {
                group: kind.group.into(),
                version: kind.version.into(),
                kind: kind.kind.into(),
            }),
            plural: kind.plural.into(),
            singular: kind.singular.into(),
            short_names: kind.short_names.iter().map(ToString::to_string).collect(),
            namespaced: kind.namespaced,
        });
        let newer = v1::KindInfo {
            kind: Some(v1::KindRef {
                group: "example.com".into(),
                version: "v1".into(),
                kind: "Gizmo".into(),
            }),
            plural: "gizmos".into(),
            singular: "gizmo".into(),
            short_names: vec!["gz".into()],
            namespaced: true,
        };
        Ok(Response::new(v1::KindsResponse {
            kinds: known.chain([newer]).collect(),
        }))
    }

    /// Two lines, the second in two pieces.
    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.into_inner();
        let name = format!("{}/{}", request.pod, request.container);
        self.logs.lock().unwrap().push(request);
        let pieces = [format!("{name} one\n{name} t"), "wo\n".to_string()];
        let chunks = pieces.map(|piece| {
            Ok(v1::LogsChunk {
                data: piece.into_bytes(),
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    /// Says what was asked for, gives standard input back, and ends with the
    /// last word of the command as exit code.
    async fn exec(
        &self,
        request: Request<tonic::Streaming<v1::ExecInput>>,
    ) -> Answer<Self::ExecStream> {
        let mut input = request.into_inner();
        let Some(Input::Start(start)) = input.message().await?.and_then(|first| first.input) else {
            return Err(Status::invalid_argument("start comes first"));
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            let send = async |output| {
                sender
                    .send(Ok(v1::ExecOutput {
                        output: Some(output),
                    }))
                    .await
                    .is_ok()
            };
            let screen = start
                .size
                .map(|size| format!(" on {}x{}", size.columns, size.rows));
            let head = format!(
                "{}/{}: {}{}\n",
                start.pod,
                start.container,
                start.command.join(" "),
                screen.unwrap_or_default()
            );
            send(Output::Stderr(head.into_bytes())).await;
            if start.stdin {
                give_back(&mut input, &sender).await;
            }
            let code = start
                .command
                .last()
                .and_then(|word| word.parse().ok())
                .unwrap_or(0);
            send(Output::ExitCode(code)).await;
        });
        Ok(Response::new(Box::pin(
            tokio_stream::wrappers::ReceiverStream::new(receiver),
        )))
    }

    async fn version(&self, _request: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: "1.2.3".into(),
            cluster_id: "c-1".into(),
        }))
    }
}
