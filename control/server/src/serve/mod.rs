//! The cluster service: one method per rpc, each of them: who asks, then what.
//!
//! Reads are in `read.rs`, watches in `watch.rs`, writes in `mutate.rs`, logs
//! and exec in `attached.rs`. All is for operators only.

mod attached;
mod mutate;
mod read;
mod watch;

use std::pin::Pin;
use std::sync::Arc;

use control_api::kind::Kind;
use control_api::namespace;
use proto::v1::{self, cluster_server};
use serde_json::Value;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::attach::Attachments;
use crate::auth;
use crate::hub::Hub;
use crate::join::Gate;
use crate::objects::Objects;
use crate::refusal::Refusal;
use crate::stored::{Stored, known};

/// Serves operators.
pub struct ClusterService {
    /// The store.
    pub objects: Arc<Objects>,
    /// To reach nodes.
    pub hub: Arc<Hub>,
    /// Who waits for streams.
    pub attachments: Arc<Attachments>,
    /// Tokens of nodes.
    pub gate: Arc<Gate>,
}

type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl cluster_server::Cluster for ClusterService {
    type WatchStream = Sent<v1::WatchEvent>;
    type LogsStream = Sent<v1::LogsChunk>;
    type ExecStream = Sent<v1::ExecOutput>;

    async fn apply(
        &self,
        request: Request<v1::ApplyRequest>,
    ) -> Result<Response<v1::ApplyResponse>, Status> {
        auth::admin(&request, "apply")?;
        Ok(Response::new(
            mutate::apply(&self.objects, &request.into_inner()).await?,
        ))
    }

    async fn create(
        &self,
        request: Request<v1::CreateRequest>,
    ) -> Result<Response<v1::Object>, Status> {
        auth::admin(&request, "create")?;
        let owner = mutate::Owner::of(&request);
        Ok(Response::new(
            mutate::create(&self.objects, &request.into_inner(), &owner).await?,
        ))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::Object>, Status> {
        auth::admin(&request, "get")?;
        Ok(Response::new(
            read::get(&self.objects, &request.into_inner()).await?,
        ))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        auth::admin(&request, "list")?;
        Ok(Response::new(
            read::list(&self.objects, &request.into_inner()).await?,
        ))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        auth::admin(&request, "watch")?;
        let stream = watch::watch(self.objects.clone(), request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn update(
        &self,
        request: Request<v1::UpdateRequest>,
    ) -> Result<Response<v1::Object>, Status> {
        auth::admin(&request, "update")?;
        let owner = mutate::Owner::of(&request);
        Ok(Response::new(
            mutate::update(&self.objects, &request.into_inner(), &owner).await?,
        ))
    }

    async fn patch(
        &self,
        request: Request<v1::PatchRequest>,
    ) -> Result<Response<v1::Object>, Status> {
        auth::admin(&request, "patch")?;
        let owner = mutate::Owner::of(&request);
        Ok(Response::new(
            mutate::patch(&self.objects, &request.into_inner(), &owner).await?,
        ))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        auth::admin(&request, "delete")?;
        Ok(Response::new(
            mutate::delete(&self.objects, &self.gate, &request.into_inner()).await?,
        ))
    }

    async fn scale(
        &self,
        request: Request<v1::ScaleRequest>,
    ) -> Result<Response<v1::Object>, Status> {
        auth::admin(&request, "scale")?;
        let owner = mutate::Owner::of(&request);
        Ok(Response::new(
            mutate::scale(&self.objects, &request.into_inner(), &owner).await?,
        ))
    }

    async fn kinds(
        &self,
        request: Request<v1::KindsRequest>,
    ) -> Result<Response<v1::KindsResponse>, Status> {
        auth::admin(&request, "list kinds")?;
        Ok(Response::new(read::kinds()))
    }

    async fn logs(
        &self,
        request: Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        auth::admin(&request, "read logs")?;
        let stream = attached::logs(self, request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn exec(
        &self,
        request: Request<Streaming<v1::ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        auth::admin(&request, "exec")?;
        let stream = attached::exec(self, request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn version(
        &self,
        request: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionResponse>, Status> {
        auth::admin(&request, "ask for the version")?;
        let version = env!("HYDROFOIL_VERSION").to_owned();
        let cluster_id = self.hub.cluster_id().to_owned();
        Ok(Response::new(v1::VersionResponse {
            version,
            cluster_id,
        }))
    }
}

/// The kind that a request names.
fn kind_of(kind: Option<&v1::KindRef>) -> Result<&'static Kind, Refusal> {
    let Some(kind) = kind else {
        return Err(Refusal::BadRequest("the request names no kind".to_owned()));
    };
    known(&kind.group, &kind.version, &kind.kind)
}

/// The namespace to look in: "default" where the kind has one and none is named.
fn namespace_of<'a>(kind: &Kind, namespace: &'a str) -> &'a str {
    match (kind.namespaced, namespace) {
        (false, _) => "",
        (true, "") => namespace::DEFAULT,
        (true, named) => named,
    }
}

/// An object as it goes out.
fn sent(stored: &Stored) -> Result<v1::Object, Refusal> {
    encode(&stored.value)
}

fn encode(value: &Value) -> Result<v1::Object, Refusal> {
    let json = serde_json::to_vec(value);
    let json =
        json.map_err(|e| Refusal::BadRequest(format!("the object cannot be encoded: {e}")))?;
    Ok(v1::Object { json })
}
