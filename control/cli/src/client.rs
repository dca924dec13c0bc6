//! Calls of the control plane, with errors that a person can read.
//!
//! One thin function per call that commands make; no decisions. Objects are JSON
//! values here: types belong to the printers.

use std::time::Duration;

use proto::v1;
use proto::v1::cluster_client::ClusterClient;
use serde_json::Value;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::config::Access;
use crate::kinds::Kind;
use crate::reach::{Obstacle, Unreachable, ask_again, obstacle};
use crate::status;

/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Objects in a page of a list.
const PAGE: u32 = 500;
/// Largest answer, in bytes: a page of large objects.
const LARGEST: usize = 256 << 20;
/// Owner of the fields that `foil apply` sets.
const MANAGER: &str = "foil";
/// What the server knows this program as.
const AGENT: &str = concat!("foil/", env!("CARGO_PKG_VERSION"));

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Unreachable(#[from] Box<Unreachable>),
    #[error("Error from server ({reason}): {message}")]
    Refused {
        code: Code,
        reason: String,
        message: String,
        causes: Vec<v1::Cause>,
    },
    #[error("the control plane sent an object that is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl CallError {
    /// Is it that there is no such object?
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: Code::NotFound,
                ..
            }
        )
    }

    /// What is wrong, line by line, without "Error from server".
    pub(crate) fn lines(&self) -> Vec<String> {
        match self {
            Self::Refused {
                message, causes, ..
            } if causes.is_empty() => vec![message.clone()],
            Self::Refused { causes, .. } => causes.iter().map(cause_text).collect(),
            Self::Unreachable(_) | Self::Json(_) => vec![self.to_string()],
        }
    }
}

fn cause_text(cause: &v1::Cause) -> String {
    if cause.field.is_empty() {
        cause.message.clone()
    } else {
        format!("{}: {}", cause.field, cause.message)
    }
}

/// A connection to the control plane.
#[derive(Clone)]
pub(crate) struct Client {
    cluster: ClusterClient<Channel>,
    access: std::rc::Rc<Access>,
}

/// Which objects of a kind are wanted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Selection {
    /// Empty: of all namespaces.
    pub(crate) namespace: String,
    pub(crate) labels: String,
    pub(crate) fields: String,
}

/// A list, and where to watch from.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) items: Vec<Value>,
    pub(crate) resource_version: String,
}

/// Options of a deletion.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deletion {
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) propagation_policy: String,
    pub(crate) uid: String,
    pub(crate) dry_run: bool,
}

/// By RFC 7386; with lists merged whose items have keys; or operations (RFC 6902).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patch<'a> {
    Merge(&'a Value),
    Strategic(&'a Value),
    Json(&'a Value),
}

impl Client {
    /// Connects, with both sides' certificates checked.
    pub(crate) async fn connect(access: Access) -> Result<Self, CallError> {
        let failed = |obstacle| CallError::from(Box::new(Unreachable::new(&access, obstacle)));
        if !access.server.starts_with("https://") {
            return Err(failed(Obstacle::Address(
                "it does not begin with https://".into(),
            )));
        }
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&access.ca))
            .identity(Identity::from_pem(&access.certificate, &access.key));
        if let Some(name) = &access.server_name {
            tls = tls.domain_name(name);
        }
        let endpoint = Endpoint::from_shared(access.server.clone())
            .map_err(|error| failed(Obstacle::Address(error.to_string())))?
            .user_agent(AGENT)
            .map_err(|error| failed(Obstacle::Address(error.to_string())))?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .tcp_nodelay(true)
            .tls_config(tls)
            .map_err(|error| failed(Obstacle::Identity(obstacle(&error).what())))?;
        let channel = endpoint.connect().await.map_err(|error| {
            let host = endpoint.uri().host().unwrap_or_default();
            let found = obstacle(&error);
            // The resolver's errors have no kind of their own.
            if matches!(&found, Obstacle::Other(why) if why.contains("lookup address")) {
                return failed(Obstacle::UnknownHost(host.to_string()));
            }
            failed(found)
        })?;
        let cluster = ClusterClient::new(channel)
            .max_decoding_message_size(LARGEST)
            .max_encoding_message_size(LARGEST);
        Ok(Self {
            cluster,
            access: std::rc::Rc::new(access),
        })
    }

    /// The context's namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.access.namespace
    }

    /// Where we are connected to.
    pub(crate) fn server(&self) -> &str {
        &self.access.server
    }

    /// What a status means: a broken connection, or an answer.
    pub(crate) fn refused(&self, status: Status) -> CallError {
        if let Some(source) = std::error::Error::source(&status) {
            let obstacle = ask_again(&self.access, obstacle(source));
            return Box::new(Unreachable::new(&self.access, obstacle)).into();
        }
        let detail = status::detail(&status);
        CallError::Refused {
            code: status.code(),
            reason: detail.reason,
            message: status.message().to_string(),
            causes: detail.causes,
        }
    }

    pub(crate) async fn apply(
        &mut self,
        object: &Value,
        namespace: &str,
        force: bool,
        dry_run: bool,
    ) -> Result<v1::ApplyResponse, CallError> {
        let request = v1::ApplyRequest {
            json: serde_json::to_vec(object)?,
            field_manager: MANAGER.into(),
            force,
            dry_run,
            namespace: namespace.into(),
        };
        self.cluster
            .apply(request)
            .await
            .map(tonic::Response::into_inner)
            .map_err(|status| self.refused(status))
    }

    /// `manager` owns the object's fields; so for `patch` and `scale`.
    pub(crate) async fn create(
        &mut self,
        object: &Value,
        namespace: &str,
        manager: &str,
        dry_run: bool,
    ) -> Result<Value, CallError> {
        let request = v1::CreateRequest {
            json: serde_json::to_vec(object)?,
            dry_run,
            namespace: namespace.into(),
            field_manager: manager.into(),
        };
        let answer = self
            .cluster
            .create(request)
            .await
            .map_err(|status| self.refused(status))?;
        value_of(Some(answer.into_inner()))
    }

    pub(crate) async fn get(
        &mut self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Value, CallError> {
        let request = v1::GetRequest {
            kind: Some(kind.reference()),
            namespace: scope(kind, namespace),
            name: name.into(),
            ..v1::GetRequest::default()
        };
        let answer = self
            .cluster
            .get(request)
            .await
            .map_err(|status| self.refused(status))?;
        value_of(Some(answer.into_inner()))
    }

    /// All pages.
    pub(crate) async fn list(
        &mut self,
        kind: &Kind,
        selection: &Selection,
    ) -> Result<Listed, CallError> {
        let mut listed = Listed {
            items: Vec::new(),
            resource_version: String::new(),
        };
        let mut continue_token = String::new();
        loop {
            let request = v1::ListRequest {
                kind: Some(kind.reference()),
                namespace: scope(kind, &selection.namespace),
                label_selector: selection.labels.clone(),
                field_selector: selection.fields.clone(),
                limit: PAGE,
                continue_token,
                ..v1::ListRequest::default()
            };
            let page = self
                .cluster
                .list(request)
                .await
                .map_err(|status| self.refused(status))?
                .into_inner();
            for object in page.items {
                listed.items.push(value_of(Some(object))?);
            }
            listed.resource_version = page.resource_version;
            if page.continue_token.is_empty() {
                return Ok(listed);
            }
            continue_token = page.continue_token;
        }
    }

    /// Changes after `resource_version`; from the beginning when it is empty.
    pub(crate) async fn watch(
        &mut self,
        kind: &Kind,
        selection: &Selection,
        resource_version: &str,
    ) -> Result<Watch, CallError> {
        let request = v1::WatchRequest {
            kind: Some(kind.reference()),
            namespace: scope(kind, &selection.namespace),
            label_selector: selection.labels.clone(),
            field_selector: selection.fields.clone(),
            resource_version: resource_version.into(),
        };
        let stream = self
            .cluster
            .watch(request)
            .await
            .map_err(|status| self.refused(status))?
            .into_inner();
        Ok(Watch {
            stream,
            client: self.clone(),
        })
    }

    pub(crate) async fn patch(
        &mut self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        patch: Patch<'_>,
        manager: &str,
        dry_run: bool,
    ) -> Result<Value, CallError> {
        let mut request = v1::PatchRequest {
            kind: Some(kind.reference()),
            namespace: scope(kind, namespace),
            name: name.into(),
            dry_run,
            field_manager: manager.into(),
            ..v1::PatchRequest::default()
        };
        match patch {
            Patch::Merge(patch) => request.merge_patch = serde_json::to_vec(patch)?,
            Patch::Strategic(patch) => request.strategic_patch = serde_json::to_vec(patch)?,
            Patch::Json(patch) => request.json_patch = serde_json::to_vec(patch)?,
        }
        let answer = self
            .cluster
            .patch(request)
            .await
            .map_err(|status| self.refused(status))?;
        value_of(Some(answer.into_inner()))
    }

    /// The object as it was last seen, and whether it is gone already.
    pub(crate) async fn delete(
        &mut self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        deletion: &Deletion,
    ) -> Result<(Option<Value>, bool), CallError> {
        let request = v1::DeleteRequest {
            kind: Some(kind.reference()),
            namespace: scope(kind, namespace),
            name: name.into(),
            grace_period_seconds: deletion.grace_period_seconds,
            propagation_policy: deletion.propagation_policy.clone(),
            uid: deletion.uid.clone(),
            dry_run: deletion.dry_run,
        };
        let answer = self
            .cluster
            .delete(request)
            .await
            .map_err(|status| self.refused(status))?
            .into_inner();
        let object = answer
            .object
            .filter(|object| !object.json.is_empty())
            .map(Some)
            .map(value_of)
            .transpose()?;
        Ok((object, answer.gone))
    }

    pub(crate) async fn scale(
        &mut self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        replicas: i32,
        manager: &str,
    ) -> Result<Value, CallError> {
        let request = v1::ScaleRequest {
            kind: Some(kind.reference()),
            namespace: scope(kind, namespace),
            name: name.into(),
            replicas,
            field_manager: manager.into(),
        };
        let answer = self
            .cluster
            .scale(request)
            .await
            .map_err(|status| self.refused(status))?;
        value_of(Some(answer.into_inner()))
    }

    pub(crate) async fn kinds(&mut self) -> Result<Vec<Kind>, CallError> {
        let answer = self
            .cluster
            .kinds(v1::KindsRequest {})
            .await
            .map_err(|status| self.refused(status))?;
        Ok(answer
            .into_inner()
            .kinds
            .into_iter()
            .map(Kind::from)
            .collect())
    }

    pub(crate) async fn version(&mut self) -> Result<v1::VersionResponse, CallError> {
        let answer = self
            .cluster
            .version(v1::VersionRequest {})
            .await
            .map_err(|status| self.refused(status))?;
        Ok(answer.into_inner())
    }

    pub(crate) async fn logs(
        &mut self,
        request: v1::LogsRequest,
    ) -> Result<tonic::Streaming<v1::LogsChunk>, CallError> {
        let answer = self
            .cluster
            .logs(request)
            .await
            .map_err(|status| self.refused(status))?;
        Ok(answer.into_inner())
    }

    pub(crate) async fn exec(
        &mut self,
        input: impl tokio_stream::Stream<Item = v1::ExecInput> + Send + 'static,
    ) -> Result<tonic::Streaming<v1::ExecOutput>, CallError> {
        let answer = self
            .cluster
            .exec(input)
            .await
            .map_err(|status| self.refused(status))?;
        Ok(answer.into_inner())
    }
}

/// Changes as they come.
pub(crate) struct Watch {
    stream: tonic::Streaming<v1::WatchEvent>,
    client: Client,
}

/// One change.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) kind: v1::watch_event::Type,
    /// Absent in a bookmark.
    pub(crate) object: Option<Value>,
    /// Where to watch from after this change.
    pub(crate) resource_version: String,
}

impl Watch {
    /// `None` when the server ends it.
    pub(crate) async fn next(&mut self) -> Result<Option<Change>, CallError> {
        let Some(event) = self
            .stream
            .message()
            .await
            .map_err(|status| self.client.refused(status))?
        else {
            return Ok(None);
        };
        let kind = event.r#type();
        let resource_version = event.resource_version;
        let object = event
            .object
            .filter(|object| !object.json.is_empty())
            .map(Some)
            .map(value_of)
            .transpose()?;
        Ok(Some(Change {
            kind,
            object,
            resource_version,
        }))
    }
}

/// Objects of a cluster-scoped kind have no namespace; the context's is ignored.
fn scope(kind: &Kind, namespace: &str) -> String {
    if kind.namespaced {
        namespace.to_string()
    } else {
        String::new()
    }
}

/// The JSON of an object.
pub(crate) fn value_of(object: Option<v1::Object>) -> Result<Value, CallError> {
    Ok(serde_json::from_slice(&object.unwrap_or_default().json)?)
}
