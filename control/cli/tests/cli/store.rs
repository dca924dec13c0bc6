//! Objects in memory, with the rules of the real control plane where `foil` can see them.

use control_api::{Invalid, Kind, admit, meta};
use k8s_openapi::jiff::Timestamp;
use proto::v1;
use proto::v1::apply_response::Outcome;
use proto::v1::watch_event::Type;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tonic::{Code, Status};

/// A change, for those who watch.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) what: Type,
    pub(crate) object: Value,
}

/// All objects, in the order in which they came.
pub(crate) struct Store {
    pub(crate) objects: Vec<Value>,
    pub(crate) changes: broadcast::Sender<Change>,
    revision: u64,
}

/// What the server says when it refuses.
pub(crate) fn refused(code: Code, reason: &str, message: &str, causes: Vec<v1::Cause>) -> Status {
    use proto::Message as _;
    let detail = v1::StatusDetail {
        reason: reason.into(),
        causes,
    };
    let mut metadata = tonic::metadata::MetadataMap::new();
    let bytes = tonic::metadata::MetadataValue::from_bytes(&detail.encode_to_vec());
    metadata.insert_bin("hydrofoil-status-bin", bytes);
    Status::with_metadata(code, message, metadata)
}

fn invalid(error: &Invalid) -> Status {
    let cause = |cause: &control_api::Cause| v1::Cause {
        field: cause.field.clone(),
        message: cause.message.clone(),
    };
    refused(
        Code::InvalidArgument,
        "Invalid",
        &error.to_string(),
        error.causes.iter().map(cause).collect(),
    )
}

fn not_found(kind: &Kind, name: &str) -> Status {
    refused(
        Code::NotFound,
        "NotFound",
        &format!("{} \"{name}\" not found", kind.resource()),
        Vec::new(),
    )
}

/// The kind that a request names.
pub(crate) fn kind_of(kind: Option<v1::KindRef>) -> Result<&'static Kind, Status> {
    let kind = kind.unwrap_or_default();
    control_api::find(&kind.group, &kind.version, &kind.kind).ok_or_else(|| {
        refused(
            Code::NotFound,
            "NotFound",
            "there is no such kind",
            Vec::new(),
        )
    })
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            objects: Vec::new(),
            changes: broadcast::channel(64).0,
            revision: 0,
        }
    }

    fn position(&self, kind: &Kind, namespace: &str, name: &str) -> Option<usize> {
        self.objects.iter().position(|object| {
            object["kind"] == kind.kind
                && meta::name(object) == name
                && (!kind.namespaced || meta::namespace(object) == namespace)
        })
    }

    /// Puts an object there as it is, status included.
    pub(crate) fn put(&mut self, mut object: Value) {
        self.revision += 1;
        let kind = control_api::find_for(&object).unwrap();
        if kind.namespaced && meta::namespace(&object).is_empty() {
            object["metadata"]["namespace"] = json!("default");
        }
        if meta::uid(&object).is_empty() {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.revision));
        }
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let place = self.position(kind, meta::namespace(&object), meta::name(&object));
        let what = if place.is_some() {
            Type::Modified
        } else {
            Type::Added
        };
        match place {
            Some(at) => self.objects[at] = object.clone(),
            None => self.objects.push(object.clone()),
        }
        drop(self.changes.send(Change { what, object }));
    }

    pub(crate) fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Value, Status> {
        let at = self
            .position(kind, namespace, name)
            .ok_or_else(|| not_found(kind, name))?;
        Ok(self.objects[at].clone())
    }

    pub(crate) fn list(
        &self,
        kind: &Kind,
        namespace: &str,
        labels: &str,
        fields: &str,
    ) -> Result<Vec<Value>, Status> {
        let bad = |error: control_api::selector::SelectorError| {
            Status::invalid_argument(error.to_string())
        };
        let labels = control_api::selector::Selector::parse(labels).map_err(bad)?;
        let fields = control_api::selector::FieldSelector::parse(fields).map_err(bad)?;
        let wanted = |object: &&Value| {
            object["kind"] == kind.kind
                && (namespace.is_empty() || meta::namespace(object) == namespace)
                && labels.matches_object(object)
                && fields.matches(object)
        };
        Ok(self.objects.iter().filter(wanted).cloned().collect())
    }

    /// Judges and stores; `create` refuses what is there already.
    pub(crate) fn write(
        &mut self,
        json: &[u8],
        namespace: &str,
        create: bool,
        dry_run: bool,
    ) -> Result<(Value, Outcome, Vec<String>), Status> {
        let mut object: Value = serde_json::from_slice(json)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let kind = control_api::find_for(&object).map_err(|error| invalid(&error))?;
        if kind.namespaced && meta::namespace(&object).is_empty() {
            object["metadata"]["namespace"] = json!(namespace);
        }
        if kind.namespaced && meta::namespace(&object) != namespace {
            let message = format!(
                "the namespace of the object ({}) does not match the namespace of the request ({namespace})",
                meta::namespace(&object)
            );
            return Err(refused(
                Code::InvalidArgument,
                "BadRequest",
                &message,
                Vec::new(),
            ));
        }
        let place = meta::namespace(&object).to_string();
        let namespaces = control_api::find("", "v1", "Namespace").unwrap();
        if kind.namespaced && place != "default" && self.position(namespaces, "", &place).is_none()
        {
            return Err(not_found(namespaces, &place));
        }
        let old = self
            .position(kind, &place, meta::name(&object))
            .map(|at| self.objects[at].clone());
        if create && old.is_some() {
            let message = format!(
                "{} \"{}\" already exists",
                kind.resource(),
                meta::name(&object)
            );
            return Err(refused(
                Code::AlreadyExists,
                "AlreadyExists",
                &message,
                Vec::new(),
            ));
        }
        let (mut stored, warnings) =
            admit(&object, kind, old.as_ref()).map_err(|error| invalid(&error))?;
        let warnings = warnings.iter().map(ToString::to_string).collect();
        let outcome = match &old {
            None => Outcome::Created,
            Some(old) if same(old, &stored) => Outcome::Unchanged,
            Some(_) => Outcome::Configured,
        };
        if old.is_none() {
            let uid = format!("uid-{}", self.revision);
            meta::stamp_created(&mut stored, &uid, Timestamp::now());
        }
        if !dry_run && outcome != Outcome::Unchanged {
            self.put(stored.clone());
        }
        Ok((stored, outcome, warnings))
    }

    pub(crate) fn patch(
        &mut self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value, Status> {
        let mut object = self.get(kind, namespace, name)?;
        control_api::patch::merge(&mut object, patch);
        self.put(object);
        self.get(kind, namespace, name)
    }

    pub(crate) fn delete(
        &mut self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Value, Status> {
        let at = self
            .position(kind, namespace, name)
            .ok_or_else(|| not_found(kind, name))?;
        let object = self.objects.remove(at);
        drop(self.changes.send(Change {
            what: Type::Deleted,
            object: object.clone(),
        }));
        Ok(object)
    }
}

/// But for what the server itself counts.
fn same(old: &Value, new: &Value) -> bool {
    let bare = |value: &Value| {
        let mut value = value.clone();
        if let Some(metadata) = value["metadata"].as_object_mut() {
            for field in [
                "resourceVersion",
                "uid",
                "creationTimestamp",
                "generation",
                "managedFields",
            ] {
                metadata.shift_remove(field);
            }
        }
        value
    };
    bare(old) == bare(new)
}
