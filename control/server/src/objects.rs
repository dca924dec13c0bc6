//! Objects in the store: read, created, changed and deleted, each by compare
//! and swap, with admission before and the claims that go with it.
//!
//! Not who may (auth.rs), not the wire (serve/). Called by rpcs, by node
//! sessions, and by the controllers' writes.

use std::sync::Arc;

use control_api::kind::Kind;
use control_api::managed::{self, Operation};
use control_api::namespace::BUILTIN;
use control_api::unknown::Seen;
use control_api::{Invalid, Warning, admit, equality, meta};
use control_plan::claim::{Claim, ClaimKey, ClaimWrite};
use control_plan::service_problem::ServiceProblem;
use control_plan::{Settings, ipam};
use control_store::{Condition, ListRequest, Store, StoreError, Txn};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use crate::claims::{ClaimCache, Picked};
use crate::refusal::Refusal;
use crate::stored::{
    Stored, encode, encode_bounded, exists, namespaces, not_found, read, typed, unencodable,
    with_claims,
};
use crate::writing::{CONTROLLERS, Change, Writing};

/// How often a write is tried again when another writer was faster.
pub(crate) const ATTEMPTS: usize = 16;

/// The store, as objects.
pub struct Objects {
    store: Arc<dyn Store>,
    settings: Settings,
    claims: ClaimCache,
}

impl Objects {
    /// Over this store.
    pub fn new(store: Arc<dyn Store>, settings: Settings) -> Self {
        let claims = ClaimCache::new(&settings);
        Self {
            store,
            settings,
            claims,
        }
    }

    /// The store beneath.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What the cluster was configured with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A claim changed in the store.
    pub fn note_claim(&self, key: ClaimKey, claim: Option<Claim>) {
        self.claims.note(&key, claim);
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

    /// Stores a new object.
    pub async fn create(
        &self,
        kind: &'static Kind,
        object: Change,
        claims: &[ClaimWrite],
        writing: &Writing<'_>,
    ) -> Result<(Stored, Vec<Warning>), Refusal> {
        let Some((mut value, operation)) = object.parts() else {
            let message = "there is nothing to create".to_owned();
            return Err(Refusal::BadRequest(message));
        };
        let now = Timestamp::now();
        let given = meta::take(&mut value, "managedFields");
        let (mut admitted, warnings) = admit(&value, kind, None)?;
        own(kind, None, &mut admitted, given, writing, &operation, now)?;
        let generated = meta::name(&value).is_empty();
        for _ in 0..ATTEMPTS {
            let mut stored = admitted.clone();
            if generated {
                let prefix = meta::generate_name(&value);
                meta::set_name(&mut stored, &meta::generated_name(prefix, rand::random()));
            }
            meta::stamp_created(&mut stored, &uuid::Uuid::new_v4().to_string(), now);
            let mut txn = self.in_namespace(kind, &stored, Txn::default()).await?;
            let mut claims = claims.to_vec();
            let mut picked = None;
            if is_service(kind) {
                let picked = picked.insert(self.address_service(&mut stored, None)?);
                claims.extend_from_slice(picked.writes());
            }
            let key = kind.key(meta::namespace(&stored), meta::name(&stored));
            txn = txn.put(
                key.clone(),
                encode_bounded(&stored, None)?,
                Condition::Absent,
            );
            txn = with_claims(txn, &claims);
            if writing.dry_run {
                return match self.store.get(&key).await?.entry {
                    Some(_) => Err(exists(kind, &stored)),
                    None => Ok((Stored::dry_run(stored, 0), warnings)),
                };
            }
            match self.store.txn(txn).await {
                Ok(revision) => {
                    picked.into_iter().for_each(|p| p.committed(revision));
                    return Ok((Stored::new(stored, revision), warnings));
                }
                Err(StoreError::Conflict { key: at, .. }) => {
                    self.refresh_claims(&at, &claims).await?;
                    if at == key && !generated {
                        return Err(exists(kind, &stored));
                    }
                    // A claim or the namespace moved: another one, or another look.
                }
                Err(error) => return Err(error.into()),
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
    /// that was not as it was known.
    async fn refresh_claims(&self, at: &str, claims: &[ClaimWrite]) -> Result<(), Refusal> {
        let at = ClaimKey::parse(at);
        let keys = claims.iter().map(|c| &c.key).chain(at.as_ref());
        Ok(self.claims.refresh(self.store.as_ref(), keys).await?)
    }

    fn address_service(
        &self,
        value: &mut Value,
        old: Option<&Value>,
    ) -> Result<Picked<'_>, Refusal> {
        let mut service: Service = typed(value)?;
        let before = old.map(typed::<Service>).transpose()?;
        let settings = &self.settings;
        let picked = self
            .claims
            .pick(|known| ipam::service(known, settings, &mut service, before.as_ref()))
            .map_err(|problem| service_problem(&problem, value, &settings.service_cidr))?;
        *value = serde_json::to_value(&service).map_err(unencodable)?;
        Ok(picked)
    }

    /// Changes an object: `change` makes the successor of what is there, and is
    /// asked again when another writer was faster. The object, and whether it is
    /// another one than before: what changes nothing is not written.
    pub async fn change(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        writing: &Writing<'_>,
        mut change: impl FnMut(&Stored) -> Result<Change, Refusal>,
    ) -> Result<(Stored, Vec<Warning>, bool), Refusal> {
        for _ in 0..ATTEMPTS {
            let old = self.get(kind, namespace, name).await?;
            let Some((mut next, operation)) = change(&old)?.parts() else {
                return Ok((old, Vec::new(), false));
            };
            let given = meta::take(&mut next, "managedFields");
            let mut warnings = Vec::new();
            if writing.admitted {
                let seen = Seen::of(kind, &old.value)?;
                seen.set_aside(&mut next);
                (next, warnings) = admit(&next, kind, Some(seen.known()))?;
                seen.restore(&mut next);
            }
            let before = Some(&old.value);
            let now = Timestamp::now();
            own(kind, before, &mut next, given, writing, &operation, now)?;
            let mut picked = None;
            if is_service(kind) && writing.admitted {
                picked = Some(self.address_service(&mut next, before)?);
            }
            let claims = picked.as_ref().map_or(&[][..], Picked::writes);
            if equality::unchanged(&next, &old.value) {
                return Ok((old, warnings, false));
            }
            if writing.dry_run {
                return Ok((Stored::dry_run(next, old.revision), warnings, true));
            }
            meta::clear_resource_version(&mut next);
            let key = kind.key(namespace, name);
            let bytes = encode_bounded(&next, before)?;
            let txn = Txn::default().put(key, bytes, Condition::Revision(old.revision));
            match self.store.txn(with_claims(txn, claims)).await {
                Ok(revision) => {
                    picked.into_iter().for_each(|p| p.committed(revision));
                    return Ok((Stored::new(next, revision), warnings, true));
                }
                Err(StoreError::Conflict { key: at, .. }) => {
                    self.refresh_claims(&at, claims).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refusal::Unavailable("too many writers at once".to_owned()))
    }

    /// Replaces an object at the revision that a controller saw, with claims. The
    /// revision at which both are there: the old one, if nothing changed.
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
        // The controller's world has what this version's types have.
        Seen::of(kind, &old.value)?.restore(&mut value);
        if !equality::semantic(value.get("spec"), old.value.get("spec")) {
            let generation = meta::generation(&old.value).max(1) + 1;
            meta::set_generation(&mut value, Some(generation));
        }
        let writing = Writing::system(CONTROLLERS);
        let before = Some(&old.value);
        let now = Timestamp::now();
        let given = meta::take(&mut value, "managedFields");
        own(
            kind,
            before,
            &mut value,
            given,
            &writing,
            &Operation::Update,
            now,
        )?;
        let condition = Condition::Revision(old_revision);
        let txn = match equality::unchanged(&value, &old.value) {
            true if claims.is_empty() => return Ok(old_revision),
            true => Txn::default().check(key, condition),
            false => Txn::default().put(key, encode(&value)?, condition),
        };
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

    /// Makes the namespaces that are always there.
    pub async fn make_builtin(&self) -> Result<(), Refusal> {
        for name in BUILTIN {
            let value = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
            });
            let writing = Writing::system(CONTROLLERS);
            match self
                .create(namespaces()?, Change::To(value), &[], &writing)
                .await
            {
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

/// Notes in `next`, the admitted successor of `old`, who owns its fields. `given`
/// are the entries that came with it.
fn own(
    kind: &Kind,
    old: Option<&Value>,
    next: &mut Value,
    given: Option<Value>,
    writing: &Writing<'_>,
    operation: &Operation,
    now: Timestamp,
) -> Result<(), Refusal> {
    let known = old.and_then(|old| old.pointer("/metadata/managedFields"));
    if let Some(given) = given.filter(|given| Some(given) != known) {
        let causes = managed::validate(&given);
        if !causes.is_empty() {
            return Err(Invalid {
                kind: kind.kind.to_owned(),
                name: meta::name(next).to_owned(),
                causes,
            }
            .into());
        }
        meta::set(next, "managedFields", Some(given));
    }
    managed::track(kind, old, next, writing.manager, operation, now).map_err(|conflicts| {
        Refusal::Conflict {
            message: conflicts.to_string(),
            causes: conflicts.0,
        }
    })
}

fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Service"
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
        ServiceProblem::PortOutOfRange { of, port, range } => {
            let message = format!(
                "Invalid value: {port}: provided port is not in the valid range. The range of \
                 valid ports is {range}"
            );
            Invalid::one("Service", name, of.field(), message).into()
        }
        ServiceProblem::PortTaken { of, port } => {
            let message = format!("Invalid value: {port}: provided port is already allocated");
            Invalid::one("Service", name, of.field(), message).into()
        }
        ServiceProblem::UsedUp { what } => {
            Refusal::Unavailable(format!("there are no {what} left for services"))
        }
    }
}

#[cfg(test)]
mod tests {
    use control_store::{Embedded, Options};

    use super::*;
    use crate::stored::known;
    use crate::writing::AGENT;

    /// Objects in a store of a folder.
    fn objects() -> (Objects, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            history: 100,
            cache_bytes: 1 << 20,
        };
        let store = Embedded::open(&folder.path().join("store"), options).unwrap();
        let config = crate::Config::parse("data = \"/d\"").unwrap();
        (Objects::new(Arc::new(store), config.settings()), folder)
    }

    /// A change that gives an address up and is not stored: a dry run, or one that is
    /// refused after the address was looked up.
    #[tokio::test]
    async fn a_change_that_is_not_stored_gives_no_address_to_another() {
        let (objects, _folder) = objects();
        objects.make_builtin().await.unwrap();
        let kind = known("", "v1", "Service").unwrap();
        let service = |name: &str, address: &str| {
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"clusterIP": address, "ports": [{"port": 80}]},
            })
        };
        let writing = Writing::client("test", false);
        let create = async |name: &str| {
            let made = Change::To(service(name, "10.96.0.77"));
            objects.create(kind, made, &[], &writing).await
        };
        create("a").await.unwrap();
        let external = |labels: usize| {
            move |old: &Stored| {
                let mut next = old.value.clone();
                for n in 0..labels {
                    next["metadata"]["labels"][format!("label-{n}")] = json!("x".repeat(60));
                }
                next["spec"] = json!({"type": "ExternalName", "externalName": "example.org"});
                Ok(Change::To(next))
            }
        };
        let refused = objects.change(kind, "default", "a", &writing, external(20_000));
        let refused = refused.await;
        assert!(
            matches!(refused, Err(Refusal::BadRequest(_))),
            "{refused:?}"
        );
        let taken = create("b").await;
        assert!(matches!(taken, Err(Refusal::Invalid(_))), "{taken:?}");
        let dry = Writing::client("test", true);
        let tried = objects.change(kind, "default", "a", &dry, external(1));
        assert!(tried.await.unwrap().2);
        let taken = create("b").await;
        assert!(matches!(taken, Err(Refusal::Invalid(_))), "{taken:?}");
        // Given up in earnest, it is free at once.
        let given_up = objects.change(kind, "default", "a", &writing, external(1));
        given_up.await.unwrap();
        create("b").await.unwrap();
    }

    #[tokio::test]
    async fn a_system_s_write_has_a_largest_size_too() {
        let (objects, _folder) = objects();
        let kind = known("", "v1", "Node").unwrap();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
        let writing = Writing::system(AGENT);
        let created = objects.create(kind, Change::To(node), &[], &writing).await;
        created.unwrap();
        for (kib, good) in [(1024, true), (2048, false), (512, true)] {
            let text = "x".repeat(kib << 10);
            let changed = objects
                .change(kind, "", "n1", &writing, |old| {
                    let mut next = old.value.clone();
                    next["status"]["nodeInfo"]["osImage"] = json!(text);
                    Ok(Change::To(next))
                })
                .await;
            assert_eq!(changed.is_ok(), good, "{kib} KiB");
        }
    }
}
