//! Objects in the store: read, created, changed and deleted, each by compare
//! and swap, with admission before and the claims that go with it.
//!
//! Not who may (auth.rs), not the wire (serve/). Called by rpcs, by node
//! sessions, and by the controllers' writes.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use control_api::kind::Kind;
use control_api::{Invalid, Warning, admit, equality, meta};
use control_plan::claim::{Claim, ClaimKey, ClaimWrite};
use control_plan::ipam::{self, Claims, ServiceProblem};
use control_plan::{Settings, gc};
use control_store::{Condition, Entry, ListRequest, Store, StoreError, Txn};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use crate::refusal::Refusal;

/// Times that a write is tried again on what somebody else wrote meanwhile.
const ATTEMPTS: usize = 16;

/// The store, as objects.
pub struct Objects {
    store: Arc<dyn Store>,
    settings: Settings,
    /// Claims as the controllers last saw them: where to look for a free
    /// address. The store decides whether it is.
    claims: Mutex<Claims>,
}

/// An object, and the revision of its last change.
#[derive(Clone, Debug)]
pub struct Stored {
    /// With its resourceVersion.
    pub value: Value,
    /// The same as a number.
    pub revision: u64,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds; `None`: the object's own.
    pub grace_seconds: Option<i64>,
    /// "Background", "Foreground" or "Orphan".
    pub propagation: Propagation,
    /// Only the object with this uid; "": any.
    pub uid: String,
    /// Only say what would be.
    pub dry_run: bool,
}

/// What becomes of the dependents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// They go after the object.
    #[default]
    Background,
    /// They go before the object.
    Foreground,
    /// They stay.
    Orphan,
}

/// What becomes of an object that is to be changed.
pub enum Change {
    /// Store this.
    To(Value),
    /// Leave it as it is.
    Nothing,
}

impl Objects {
    /// Over this store.
    pub fn new(store: Arc<dyn Store>, settings: Settings) -> Self {
        Self {
            store,
            settings,
            claims: Mutex::new(Claims::new()),
        }
    }

    /// The store beneath.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        // A panic elsewhere leaves a map that is a hint anyway.
        self.claims
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A claim changed in the store.
    pub fn note_claim(&self, key: ClaimKey, claim: Option<Claim>) {
        let mut claims = self.claims();
        match claim {
            Some(claim) => drop(claims.insert(key, claim)),
            None => drop(claims.remove(&key)),
        }
    }

    /// The object, if there is one.
    pub async fn find(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Stored>, Refusal> {
        let found = self.store.get(&kind.key(namespace, name)).await?;
        found.entry.map(|entry| read(&entry)).transpose()
    }

    /// The object; `NotFound` if there is none.
    pub async fn get(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Stored, Refusal> {
        self.find(kind, namespace, name)
            .await?
            .ok_or_else(|| not_found(kind, name))
    }

    /// Stores a new object. `value` is what somebody wrote.
    pub async fn create(
        &self,
        kind: &'static Kind,
        value: &Value,
        claims: &[ClaimWrite],
        dry_run: bool,
    ) -> Result<(Stored, Vec<Warning>), Refusal> {
        let (mut stored, warnings) = admit(value, kind, None)?;
        let now = Timestamp::now();
        for _ in 0..ATTEMPTS {
            let generated = meta::name(value).is_empty();
            if generated {
                let prefix = meta::generate_name(value);
                meta::set_name(&mut stored, &meta::generated_name(prefix, rand::random()));
            }
            meta::stamp_created(&mut stored, &uuid::Uuid::new_v4().to_string(), now);
            let mut txn = self.in_namespace(kind, &stored, Txn::default()).await?;
            let mut claims = claims.to_vec();
            if is_service(kind) {
                claims.extend(self.address_service(&mut stored, None)?);
            }
            let key = kind.key(meta::namespace(&stored), meta::name(&stored));
            txn = txn.put(key.clone(), encode(&stored)?, Condition::Absent);
            txn = with_claims(txn, &claims);
            if dry_run {
                self.refresh_claims("", &claims).await?;
                return match self.store.get(&key).await?.entry {
                    Some(_) => Err(exists(kind, &stored)),
                    None => Ok((
                        Stored {
                            value: stored,
                            revision: 0,
                        },
                        warnings,
                    )),
                };
            }
            match self.store.txn(txn).await {
                Ok(revision) => {
                    meta::set_resource_version(&mut stored, revision);
                    return Ok((
                        Stored {
                            value: stored,
                            revision,
                        },
                        warnings,
                    ));
                }
                Err(StoreError::Conflict { key: at, .. }) => {
                    self.refresh_claims(&at, &claims).await?;
                    if at == key && !generated {
                        return Err(exists(kind, &stored));
                    }
                    // A claim or the namespace moved: another one, or another look.
                    if is_service(kind) {
                        stored = admit(value, kind, None)?.0;
                    }
                }
                Err(error) => {
                    self.refresh_claims("", &claims).await?;
                    return Err(error.into());
                }
            }
        }
        Err(Refusal::Unavailable("too many writers at once".to_owned()))
    }

    /// The namespace must be there, and not on its way out.
    async fn in_namespace(&self, kind: &Kind, value: &Value, txn: Txn) -> Result<Txn, Refusal> {
        if !kind.namespaced {
            return Ok(txn);
        }
        let name = meta::namespace(value);
        let namespaces = namespaces()?;
        let key = namespaces.key("", name);
        let Some(entry) = self.store.get(&key).await?.entry else {
            return Err(not_found(namespaces, name));
        };
        let namespace = read(&entry)?;
        if meta::is_terminating(&namespace.value) && kind.kind != "Event" {
            let message = format!(
                "{} {:?} is forbidden: unable to create new content in namespace {name} because \
                 it is being terminated",
                kind.resource(),
                meta::name(value),
            );
            return Err(Refusal::Forbidden(message));
        }
        Ok(txn.check(key, Condition::Revision(entry.revision)))
    }

    /// Looks again at claims that were picked and not taken, and at the one
    /// that was not as the controllers had seen it.
    async fn refresh_claims(&self, at: &str, claims: &[ClaimWrite]) -> Result<(), Refusal> {
        let at = ClaimKey::parse(at);
        for claim in claims.iter().map(|c| &c.key).chain(at.as_ref()) {
            let entry = self.store.get(&claim.to_string()).await?.entry;
            self.note_claim(claim.clone(), entry.as_ref().map(read_claim));
        }
        Ok(())
    }

    fn address_service(
        &self,
        value: &mut Value,
        old: Option<&Value>,
    ) -> Result<Vec<ClaimWrite>, Refusal> {
        let mut service: Service = typed(value)?;
        let before = old.map(typed::<Service>).transpose()?;
        let range = &self.settings.service_cidr;
        let mut known = self.claims();
        let claims = ipam::service(&known, range, &mut service, before.as_ref())
            .map_err(|problem| service_problem(&problem, value, range))?;
        // The next one picks others, before the store has these.
        for claim in &claims {
            let (owner, revision) = (claim.owner.clone(), claim.revision);
            known.insert(claim.key.clone(), Claim { owner, revision });
        }
        drop(known);
        *value = serde_json::to_value(&service).map_err(unencodable)?;
        Ok(claims)
    }

    /// Changes an object: `change` makes the successor of what is there, and is
    /// asked again when somebody else was faster. `admitted` says whether the
    /// successor goes through admission (people) or not (the system).
    pub async fn change(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        admitted: bool,
        dry_run: bool,
        mut change: impl FnMut(&Stored) -> Result<Change, Refusal>,
    ) -> Result<(Stored, Vec<Warning>, bool), Refusal> {
        for _ in 0..ATTEMPTS {
            let old = self.get(kind, namespace, name).await?;
            let Change::To(next) = change(&old)? else {
                return Ok((old, Vec::new(), false));
            };
            let (mut next, warnings) = if admitted {
                admit(&next, kind, Some(&old.value))?
            } else {
                (next, Vec::new())
            };
            let mut claims = Vec::new();
            if is_service(kind) && admitted {
                claims = self.address_service(&mut next, Some(&old.value))?;
            }
            if equality::unchanged(&next, &old.value) {
                return Ok((old, warnings, false));
            }
            if dry_run {
                self.refresh_claims("", &claims).await?;
                return Ok((
                    Stored {
                        value: next,
                        revision: old.revision,
                    },
                    warnings,
                    true,
                ));
            }
            let key = kind.key(namespace, name);
            let txn = Txn::default().put(key, encode(&next)?, Condition::Revision(old.revision));
            match self.store.txn(with_claims(txn, &claims)).await {
                Ok(revision) => {
                    meta::set_resource_version(&mut next, revision);
                    return Ok((
                        Stored {
                            value: next,
                            revision,
                        },
                        warnings,
                        true,
                    ));
                }
                Err(StoreError::Conflict { key: at, .. }) => {
                    self.refresh_claims(&at, &claims).await?;
                }
                Err(error) => {
                    self.refresh_claims("", &claims).await?;
                    return Err(error.into());
                }
            }
        }
        Err(Refusal::Unavailable("too many writers at once".to_owned()))
    }

    /// Replaces an object at the revision that a controller saw, with claims.
    pub async fn replace(
        &self,
        kind: &'static Kind,
        mut value: Value,
        old_revision: u64,
        claims: &[ClaimWrite],
    ) -> Result<u64, Refusal> {
        meta::clear_resource_version(&mut value);
        let key = kind.key(meta::namespace(&value), meta::name(&value));
        let entry = self.store.get(&key).await?.entry;
        let Some(entry) = entry.filter(|e| e.revision == old_revision) else {
            let message = format!("{} {:?} has changed", kind.resource(), meta::name(&value));
            return Err(Refusal::Conflict {
                message,
                causes: Vec::new(),
            });
        };
        let old = read(&entry)?;
        if !equality::semantic(value.get("spec"), old.value.get("spec")) {
            let generation = meta::generation(&old.value).max(1) + 1;
            meta::set_generation(&mut value, Some(generation));
        }
        let txn = Txn::default().put(key, encode(&value)?, Condition::Revision(old_revision));
        Ok(self.store.txn(with_claims(txn, claims)).await?)
    }

    /// Takes or releases claims alone.
    pub async fn write_claims(&self, claims: &[ClaimWrite]) -> Result<u64, Refusal> {
        Ok(self.store.txn(with_claims(Txn::default(), claims)).await?)
    }

    /// Takes an object out of the store, at this revision.
    pub async fn remove(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        revision: u64,
    ) -> Result<u64, Refusal> {
        let key = kind.key(namespace, name);
        Ok(self
            .store
            .delete(key, Condition::Revision(revision))
            .await?)
    }

    /// Deletes: at once, or marked until whoever cleans up has done so. The
    /// object as it was last seen, whether it is gone, and the revision.
    pub async fn delete(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(Stored, bool), Refusal> {
        for _ in 0..ATTEMPTS {
            let old = self.get(kind, namespace, name).await?;
            if !options.uid.is_empty() && options.uid != meta::uid(&old.value) {
                let message = format!(
                    "the uid in the precondition ({}) is not the object's ({})",
                    options.uid,
                    meta::uid(&old.value)
                );
                return Err(Refusal::Conflict {
                    message,
                    causes: Vec::new(),
                });
            }
            let now = Timestamp::now();
            let (mut next, gone) = deleted(kind, &old.value, options, now);
            if options.dry_run {
                return Ok((
                    Stored {
                        value: next,
                        revision: old.revision,
                    },
                    gone,
                ));
            }
            if !gone && equality::unchanged(&next, &old.value) {
                return Ok((old, false));
            }
            let key = kind.key(namespace, name);
            let condition = Condition::Revision(old.revision);
            let done = if gone {
                self.store.delete(key, condition).await
            } else {
                self.store.put(key, encode(&next)?, condition).await
            };
            match done {
                Ok(revision) => {
                    meta::set_resource_version(&mut next, revision);
                    return Ok((
                        Stored {
                            value: next,
                            revision,
                        },
                        gone,
                    ));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refusal::Unavailable("too many writers at once".to_owned()))
    }

    /// Makes the namespaces that are always there.
    pub async fn make_builtin(&self) -> Result<(), Refusal> {
        for name in ["default", "kube-system"] {
            let value = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
            });
            match self.create(namespaces()?, &value, &[], false).await {
                Ok(_) | Err(Refusal::AlreadyExists { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A page of the store's keys.
    pub async fn list(&self, request: ListRequest) -> Result<control_store::Listing, Refusal> {
        Ok(self.store.list(request).await?)
    }
}

/// The object after a delete, and whether it is gone with it.
fn deleted(kind: &Kind, old: &Value, options: &DeleteOptions, now: Timestamp) -> (Value, bool) {
    let mut next = old.clone();
    let mut finalizers: Vec<String> = meta::finalizers(old).map(str::to_owned).collect();
    if !meta::is_terminating(old) {
        let wanted = match options.propagation {
            Propagation::Background => None,
            Propagation::Foreground => Some(gc::FOREGROUND),
            Propagation::Orphan => Some(gc::ORPHAN),
        };
        if let Some(wanted) = wanted.filter(|w| !finalizers.iter().any(|f| f == w)) {
            finalizers.push(wanted.to_owned());
            meta::set(&mut next, "finalizers", Some(json!(finalizers)));
        }
    }
    let grace = if kind.kind == "Pod" {
        pod_grace(old, options.grace_seconds)
    } else {
        0
    };
    if grace == 0 && finalizers.is_empty() && kind.kind != "Namespace" {
        return (next, true);
    }
    meta::stamp_deleted(&mut next, grace, now);
    if kind.kind == "Namespace"
        && let Some(fields) = next.as_object_mut()
    {
        let status = fields.entry("status").or_insert_with(|| json!({}));
        status["phase"] = json!("Terminating");
    }
    (next, false)
}

/// Seconds that a pod has to stop: none when no node has it, or when it has
/// come to its end by itself.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let text = |at: &str| pod.pointer(at).and_then(Value::as_str).unwrap_or("");
    let finished = matches!(text("/status/phase"), "Succeeded" | "Failed");
    if text("/spec/nodeName").is_empty() || finished {
        return 0;
    }
    let own = pod
        .pointer("/spec/terminationGracePeriodSeconds")
        .and_then(Value::as_i64);
    asked.or(own).unwrap_or(30).max(0)
}

fn with_claims(mut txn: Txn, claims: &[ClaimWrite]) -> Txn {
    for claim in claims {
        let condition = match claim.revision {
            0 => Condition::Absent,
            revision => Condition::Revision(revision),
        };
        txn = txn.put(
            claim.key.to_string(),
            claim.owner.clone().into_bytes(),
            condition,
        );
    }
    txn
}

fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Service"
}

fn namespaces() -> Result<&'static Kind, Refusal> {
    known("", "v1", "Namespace")
}

/// The kind of this name.
pub fn known(group: &str, version: &str, kind: &str) -> Result<&'static Kind, Refusal> {
    control_api::find(group, version, kind).ok_or_else(|| Refusal::UnknownKind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
    })
}

fn not_found(kind: &Kind, name: &str) -> Refusal {
    Refusal::NotFound {
        resource: kind.resource(),
        name: name.to_owned(),
    }
}

fn exists(kind: &Kind, value: &Value) -> Refusal {
    Refusal::AlreadyExists {
        resource: kind.resource(),
        name: meta::name(value).to_owned(),
    }
}

fn service_problem(problem: &ServiceProblem, value: &Value, range: &ipnet::IpNet) -> Refusal {
    let name = meta::name(value);
    match problem {
        ServiceProblem::OutOfRange { index, address } => {
            let message = format!(
                "Invalid value: {address:?}: must be an address to be given out of {range}"
            );
            Invalid::one(
                "Service",
                name,
                format!("spec.clusterIPs[{index}]"),
                message,
            )
            .into()
        }
        ServiceProblem::Taken { index, address } => {
            let message = format!("Invalid value: {address:?}: provided IP is already allocated");
            Invalid::one(
                "Service",
                name,
                format!("spec.clusterIPs[{index}]"),
                message,
            )
            .into()
        }
        ServiceProblem::UsedUp { what } => {
            Refusal::Unavailable(format!("there are no {what} left for services"))
        }
    }
}

/// An entry of the store as an object with its resourceVersion.
pub fn read(entry: &Entry) -> Result<Stored, Refusal> {
    Ok(Stored {
        value: decode(&entry.key, &entry.value, entry.revision)?,
        revision: entry.revision,
    })
}

/// Bytes of the store as an object with its resourceVersion.
pub fn decode(key: &str, bytes: &[u8], revision: u64) -> Result<Value, Refusal> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| {
        let reason = error.to_string();
        Refusal::Store(StoreError::Corrupt {
            path: key.to_owned(),
            reason,
        })
    })?;
    meta::set_resource_version(&mut value, revision);
    Ok(value)
}

/// A claim's record.
pub fn read_claim(entry: &Entry) -> Claim {
    Claim {
        owner: String::from_utf8_lossy(&entry.value).into_owned(),
        revision: entry.revision,
    }
}

/// As it is stored: without resourceVersion.
fn encode(value: &Value) -> Result<Bytes, Refusal> {
    let bytes = if meta::resource_version(value).is_empty() {
        serde_json::to_vec(value)
    } else {
        let mut copy = value.clone();
        meta::clear_resource_version(&mut copy);
        serde_json::to_vec(&copy)
    };
    bytes.map(Bytes::from).map_err(unencodable)
}

/// A value as one of k8s-openapi's types.
pub fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, Refusal> {
    serde::Deserialize::deserialize(value)
        .map_err(|error: serde_json::Error| Refusal::BadRequest(error.to_string()))
}

fn unencodable(error: serde_json::Error) -> Refusal {
    Refusal::BadRequest(format!("the object cannot be encoded: {error}"))
}
