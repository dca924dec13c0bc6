//! Apply, Create, Update, Patch, Scale, Delete.

use control_api::kind::Kind;
use control_api::namespace::BUILTIN;
use control_api::{
    Invalid, Warning, apply as server_side, json_patch, managed, meta, patch as merge, strategic,
};
use proto::v1;
use proto::v1::apply_response::Outcome;
use serde_json::{Value, json};
use tonic::Status;

use super::{kind_of, namespace_of, sent};
use crate::builtin;
use crate::delete::{DeleteOptions, Propagation};
use crate::join::Gate;
use crate::objects::Objects;
use crate::refusal::Refusal;
use crate::stored::{Stored, check_size};
use crate::writing::{Change, Writing};

/// Reads an object of a request: its kind, and the object with its namespace set.
fn read(json: &[u8], namespace: &str) -> Result<(&'static Kind, Value), Refusal> {
    check_size(json.len())?;
    let mut value = control_api::unique::from_json(json)
        .map_err(|cause| Refusal::BadRequest(cause.to_string()))?;
    let kind = control_api::find_for(&value)?;
    if !kind.namespaced {
        return Ok((kind, value));
    }
    let own = meta::namespace(&value).to_owned();
    if own.is_empty() {
        meta::set_namespace(&mut value, namespace_of(kind, namespace));
    } else if !namespace.is_empty() && own != namespace {
        let message = format!(
            "the namespace of the object ({own}) does not match the namespace of the request \
             ({namespace})"
        );
        return Err(Refusal::BadRequest(message));
    }
    Ok((kind, value))
}

fn named(kind: &Kind, value: &Value) -> Result<String, Refusal> {
    match meta::name(value) {
        "" => Err(Invalid::one(kind.kind, "", "metadata.name", "Required value").into()),
        name => Ok(name.to_owned()),
    }
}

/// Who owns the fields of a write: the manager that the request names, or the
/// first product in the client's `user-agent`.
pub(super) struct Owner(pub(super) String);

impl Owner {
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        let agent = request.metadata().get("user-agent");
        let agent = agent.and_then(|text| text.to_str().ok()).unwrap_or("");
        let product = agent.split(['/', ' ']).next().unwrap_or("");
        Self(product.chars().take(managed::MAX_MANAGER_BYTES).collect())
    }

    fn named<'a>(&'a self, manager: &'a str) -> Result<&'a str, Refusal> {
        let name = if manager.is_empty() { &self.0 } else { manager };
        managed::check_manager(name).map_err(|detail| {
            Refusal::BadRequest(format!("fieldManager: Invalid value: {name:?}: {detail}"))
        })?;
        Ok(name)
    }
}

pub(super) async fn apply(
    objects: &Objects,
    request: &v1::ApplyRequest,
) -> Result<v1::ApplyResponse, Refusal> {
    let (kind, value) = read(&request.json, &request.namespace)?;
    let name = named(kind, &value)?;
    if request.field_manager.is_empty() {
        return Err(Refusal::BadRequest("fieldManager is required".to_owned()));
    }
    let owner = Owner(request.field_manager.clone());
    let manager = owner.named("")?;
    if value.pointer("/metadata/managedFields").is_some() {
        let message = "metadata.managedFields must be nil".to_owned();
        return Err(Refusal::BadRequest(message));
    }
    let namespace = meta::namespace(&value).to_owned();
    let writing = Writing::client(manager, request.dry_run);
    let merged = |current: Option<&Value>| {
        let (merged, set) = server_side::merge(current, &value, manager);
        let force = request.force;
        Change::Apply { merged, set, force }
    };
    for _ in 0..3 {
        let changed = objects
            .change(kind, &namespace, &name, &writing, |old| {
                same_revision(kind, &value, old)?;
                Ok(merged(Some(&old.value)))
            })
            .await;
        let (stored, warnings, outcome) = match changed {
            Ok((stored, warnings, true)) => (stored, warnings, Outcome::Configured),
            Ok((stored, warnings, false)) => (stored, warnings, Outcome::Unchanged),
            Err(Refusal::NotFound {
                resource,
                name: missing,
            }) if missing == name => {
                if meta::revision(&value).is_some() {
                    let message = format!(
                        "{resource} {name:?} not found, and metadata.resourceVersion should not \
                         be set on objects to be created"
                    );
                    return Err(Refusal::BadRequest(message));
                }
                match objects.create(kind, merged(None), &[], &writing).await {
                    Ok((stored, warnings)) => (stored, warnings, Outcome::Created),
                    // Another writer was faster: then it is a change.
                    Err(Refusal::AlreadyExists { .. }) => continue,
                    Err(refusal) => return Err(refusal),
                }
            }
            Err(refusal) => return Err(refusal),
        };
        return Ok(v1::ApplyResponse {
            object: Some(sent(&stored)?),
            outcome: outcome.into(),
            warnings: warnings.iter().map(Warning::to_string).collect(),
        });
    }
    Err(Refusal::Unavailable(format!(
        "{} {name:?} comes and goes",
        kind.resource()
    )))
}

/// A write that names a resourceVersion is for that one only.
fn same_revision(kind: &Kind, value: &Value, old: &Stored) -> Result<(), Refusal> {
    let asked = meta::resource_version(value);
    if asked.is_empty() || asked == old.revision.to_string() {
        return Ok(());
    }
    let message = format!(
        "Operation cannot be fulfilled on {} {:?}: the object has been modified; please apply \
         your changes to the latest version and try again",
        kind.resource(),
        meta::name(value),
    );
    Err(Refusal::Conflict {
        message,
        causes: Vec::new(),
    })
}

pub(super) async fn create(
    objects: &Objects,
    request: &v1::CreateRequest,
    owner: &Owner,
) -> Result<v1::Object, Refusal> {
    let (kind, value) = read(&request.json, &request.namespace)?;
    if !meta::resource_version(&value).is_empty() {
        let message = "resourceVersion should not be set on objects to be created".to_owned();
        return Err(Refusal::BadRequest(message));
    }
    let writing = Writing::client(owner.named(&request.field_manager)?, request.dry_run);
    let (stored, _) = objects
        .create(kind, Change::To(value), &[], &writing)
        .await?;
    sent(&stored)
}

pub(super) async fn update(
    objects: &Objects,
    request: &v1::UpdateRequest,
    owner: &Owner,
) -> Result<v1::Object, Refusal> {
    let (kind, value) = read(&request.json, "")?;
    let name = named(kind, &value)?;
    let namespace = meta::namespace(&value).to_owned();
    let status = match request.subresource.as_str() {
        "" => false,
        "status" => true,
        other => {
            return Err(Refusal::BadRequest(format!(
                "there is no subresource {other:?}"
            )));
        }
    };
    let writing = Writing {
        // Judged as a status, below.
        admitted: !status,
        ..Writing::client(owner.named(&request.field_manager)?, request.dry_run)
    };
    let changed = objects
        .change(kind, &namespace, &name, &writing, |old| {
            same_revision(kind, &value, old)?;
            if status {
                let (next, _) = control_api::admit_status(&value, kind, &old.value)?;
                return Ok(Change::To(next));
            }
            Ok(Change::To(value.clone()))
        })
        .await?;
    sent(&changed.0)
}

/// How a patch changes an object.
#[derive(Clone, Copy)]
enum Type {
    Merge,
    Strategic,
    Json,
}

pub(super) async fn patch(
    objects: &Objects,
    request: &v1::PatchRequest,
    owner: &Owner,
) -> Result<v1::Object, Refusal> {
    let kind = kind_of(request.kind.as_ref())?;
    let namespace = namespace_of(kind, &request.namespace);
    let patches = [
        (&request.merge_patch, Type::Merge),
        (&request.strategic_patch, Type::Strategic),
        (&request.json_patch, Type::Json),
    ];
    let mut given = patches.into_iter().filter(|(json, _)| !json.is_empty());
    let (json, form) = match (given.next(), given.next()) {
        (Some(one), None) => one,
        (None, _) => return Err(Refusal::BadRequest("a patch is needed".to_owned())),
        (Some(_), Some(_)) => return Err(Refusal::BadRequest("two patches at once".to_owned())),
    };
    let patch = control_api::unique::from_json(json)
        .map_err(|cause| Refusal::BadRequest(cause.to_string()))?;
    let writing = Writing::client(owner.named(&request.field_manager)?, request.dry_run);
    let change = |object: &mut Value| {
        let refused = |error: &dyn std::error::Error| Refusal::BadRequest(error.to_string());
        match (form, &patch) {
            (Type::Json, patch) => json_patch::apply(object, patch).map_err(|e| refused(&e)),
            (Type::Strategic, Value::Object(fields)) => {
                strategic::merge(object, fields).map_err(|e| refused(&e))
            }
            (Type::Merge, patch @ Value::Object(_)) => {
                merge::merge(object, patch);
                Ok(())
            }
            (Type::Strategic | Type::Merge, _) => {
                Err(Refusal::BadRequest("a patch must be an object".to_owned()))
            }
        }
    };
    merged(objects, kind, namespace, &request.name, change, &writing).await
}

async fn merged(
    objects: &Objects,
    kind: &'static Kind,
    namespace: &str,
    name: &str,
    patch: impl Fn(&mut Value) -> Result<(), Refusal>,
    writing: &Writing<'_>,
) -> Result<v1::Object, Refusal> {
    let changed = objects
        .change(kind, namespace, name, writing, |old| {
            let mut next = old.value.clone();
            patch(&mut next)?;
            same_revision(kind, &next, old)?;
            Ok(Change::To(next))
        })
        .await?;
    sent(&changed.0)
}

pub(super) async fn scale(
    objects: &Objects,
    request: &v1::ScaleRequest,
    owner: &Owner,
) -> Result<v1::Object, Refusal> {
    let kind = kind_of(request.kind.as_ref())?;
    if !kind.scalable {
        let message = format!("a {} cannot be scaled", kind.kind);
        return Err(Refusal::BadRequest(message));
    }
    let namespace = namespace_of(kind, &request.namespace);
    let patch = json!({"spec": {"replicas": request.replicas}});
    let writing = Writing::client(owner.named(&request.field_manager)?, false).through("scale");
    let change = |object: &mut Value| {
        merge::merge(object, &patch);
        Ok(())
    };
    merged(objects, kind, namespace, &request.name, change, &writing).await
}

pub(super) async fn delete(
    objects: &Objects,
    gate: &Gate,
    request: &v1::DeleteRequest,
) -> Result<v1::DeleteResponse, Status> {
    let kind = kind_of(request.kind.as_ref())?;
    let namespace = namespace_of(kind, &request.namespace);
    let options = may_delete(objects, kind, namespace, request).await?;
    let is_node = kind.kind == "Node" && !request.dry_run;
    let _revoked = match is_node && is_meant(objects, kind, request).await? {
        true => Some(gate.revoke(&request.name).await?),
        false => None,
    };
    let (stored, gone) = objects
        .delete(kind, namespace, &request.name, &options)
        .await?;
    Ok(v1::DeleteResponse {
        object: Some(sent(&stored)?),
        gone,
    })
}

/// Whether the cluster's object of this name is the one that the request is for.
async fn is_meant(
    objects: &Objects,
    kind: &'static Kind,
    request: &v1::DeleteRequest,
) -> Result<bool, Refusal> {
    let found = objects.find(kind, "", &request.name).await?;
    let is_meant = |found: Stored| request.uid.is_empty() || request.uid == meta::uid(&found.value);
    Ok(found.is_some_and(is_meant))
}

/// How to delete, if it may be deleted.
async fn may_delete(
    objects: &Objects,
    kind: &'static Kind,
    namespace: &str,
    request: &v1::DeleteRequest,
) -> Result<DeleteOptions, Refusal> {
    let propagation = match request.propagation_policy.as_str() {
        "" | "Background" => Propagation::Background,
        "Foreground" => Propagation::Foreground,
        "Orphan" => Propagation::Orphan,
        other => {
            let message = format!(
                "propagationPolicy {other:?}: supported values: \"Background\", \"Foreground\", \
                 \"Orphan\""
            );
            return Err(Refusal::BadRequest(message));
        }
    };
    if request
        .grace_period_seconds
        .is_some_and(|seconds| seconds < 0)
    {
        return Err(Refusal::BadRequest(
            "gracePeriodSeconds must not be negative".to_owned(),
        ));
    }
    if kind.kind == "Namespace" && BUILTIN.contains(&request.name.as_str()) {
        let message = format!(
            "namespaces {:?} is forbidden: this namespace may not be deleted",
            request.name
        );
        return Err(Refusal::Forbidden(message));
    }
    if kind.kind == "Service"
        && let Some(service) = objects.find(kind, namespace, &request.name).await?
        && builtin::is_dns(&service.value)
    {
        let message = "nodes answer cluster DNS at this service's address; with dns_address = \
                       \"\" in its configuration the control plane removes it";
        return Err(Refusal::Forbidden(message.to_owned()));
    }
    Ok(DeleteOptions {
        grace_seconds: request.grace_period_seconds,
        propagation,
        uid: request.uid.clone(),
        revision: None,
        dry_run: request.dry_run,
    })
}
