//! What every command shares: the global options, the context, the connection.
//!
//! Nothing is read or connected before a command asks for it, so that `--help`,
//! `bpf` and `image` work without a context file.

use std::path::PathBuf;

use serde_json::Value;
use serde_json::json;

use crate::client::{CallError, Client, Selection};
use crate::config::{Access, ConfigFile};
use crate::error::CommandError;
use crate::kinds::{self, Kind, Target, TargetError};
use crate::manifest;
use crate::options::Global;
use crate::select::{self, Object, Request, Selected};

/// The options that hold for all commands.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    global: Global,
}

impl Session {
    pub(crate) fn new(global: Global) -> Self {
        Self { global }
    }

    /// Path of the context file, whether it is there or not.
    pub(crate) fn config_path(&self) -> Result<PathBuf, CommandError> {
        // An empty FOIL_CONFIG is none.
        let named = self.global.config.as_ref();
        match named.filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => Ok(path.clone()),
            None => Ok(std::env::home_dir()
                .ok_or(CommandError::NoHome)?
                .join(".foil/config")),
        }
    }

    /// `-n`, if it was given.
    pub(crate) fn namespace_option(&self) -> Option<String> {
        self.global.namespace.clone()
    }

    fn access(&self) -> Result<Access, CommandError> {
        let file = ConfigFile::read(&self.config_path()?)?;
        Ok(file.access(self.global.context.as_deref())?)
    }

    /// Connects to the context's control plane.
    pub(crate) async fn connect(&self) -> Result<Client, CommandError> {
        Ok(Client::connect(self.access()?).await?)
    }

    /// `-n`, or the context's namespace.
    pub(crate) fn namespace(&self, client: &Client) -> String {
        self.global
            .namespace
            .clone()
            .unwrap_or_else(|| client.namespace().to_string())
    }

    /// Where an object is to be: `-n` if it was given (the server refuses an object
    /// that says otherwise), else what the object says, else the context's.
    pub(crate) fn namespace_for(&self, client: &Client, object: &Value) -> String {
        match (&self.global.namespace, namespace_of(object)) {
            (Some(asked), _) => asked.clone(),
            (None, "") => client.namespace().to_string(),
            (None, own) => own.to_string(),
        }
    }

    /// The namespace for work without a connection: a context is not needed for it.
    pub(crate) fn namespace_offline(&self) -> String {
        let of_context = || self.access().map(|access| access.namespace).ok();
        self.global
            .namespace
            .clone()
            .or_else(of_context)
            .unwrap_or_else(|| "default".into())
    }

    /// What a command line means. Mistakes in it are told before anything is connected, so
    /// the connection is made here.
    pub(crate) async fn select(
        &self,
        request: &Request<'_>,
    ) -> Result<(Client, Vec<Selected>), CommandError> {
        request.check(self.global.namespace.as_deref())?;
        let documents = manifest::read(request.files, request.recursive)?;
        let mut client = self.connect().await?;
        let namespace = self.namespace(&client);
        if request.files.is_empty() {
            let targets = self.targets(&mut client, request.words).await?;
            return Ok((client, request.plan(targets, &namespace)?));
        }
        let mut found = Vec::new();
        for document in documents {
            let place = document.place.to_string();
            let objects = document
                .objects
                .map_err(|error| crate::error::RequestError::Field {
                    what: place,
                    message: error.to_string(),
                })?;
            for object in &objects {
                let kind = self.kind_of(&mut client, object).await?;
                let asked = self.global.namespace.as_deref();
                let object = select::of_document(kind, object, asked, client.namespace())?;
                found.push(Selected::One(object));
            }
        }
        Ok((client, found))
    }

    /// [`Self::select`], with those that match listed.
    pub(crate) async fn objects(
        &self,
        request: &Request<'_>,
    ) -> Result<(Client, Vec<Object>), CommandError> {
        let (mut client, selected) = self.select(request).await?;
        let mut found = Vec::new();
        for selected in selected {
            match selected {
                Selected::One(object) => found.push(object),
                Selected::Matching(kind, selection) => {
                    let listed = client.list(&kind, &selection).await?;
                    found.extend(listed.items.iter().map(|object| Object {
                        kind: kind.clone(),
                        namespace: namespace_of(object).to_owned(),
                        name: control_api::meta::name(object).to_owned(),
                    }));
                }
            }
        }
        Ok((client, found))
    }

    /// The one object that the words name.
    pub(crate) async fn object(&self, words: &[String]) -> Result<(Client, Object), CommandError> {
        let request = Request {
            words,
            ..Request::default()
        };
        let (client, mut found) = self.objects(&request).await?;
        match (found.pop(), found.is_empty()) {
            (Some(object), true) => Ok((client, object)),
            _ => Err(crate::error::RequestError::OneObject.into()),
        }
    }

    /// Kind and name that a word such as `deploy/web` names.
    pub(crate) async fn named(
        &self,
        client: &mut Client,
        word: &str,
    ) -> Result<(Kind, String), CommandError> {
        let mut found = self.targets(client, &[word.to_owned()]).await?;
        match (found.pop(), found.is_empty()) {
            (
                Some(Target {
                    kind,
                    name: Some(name),
                }),
                true,
            ) => Ok((kind, name)),
            _ => Err(crate::error::RequestError::OneObject.into()),
        }
    }

    /// The control plane is asked for kinds that we do not know.
    async fn targets(
        &self,
        client: &mut Client,
        words: &[String],
    ) -> Result<Vec<Target>, CommandError> {
        match kinds::targets(&kinds::known(), words) {
            Err(TargetError::UnknownKind { .. }) => {
                Ok(kinds::targets(&client.kinds().await?, words)?)
            }
            other => Ok(other?),
        }
    }

    /// The kind of an object that was read or received.
    pub(crate) async fn kind_of(
        &self,
        client: &mut Client,
        object: &Value,
    ) -> Result<Kind, CommandError> {
        let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if let Some(known) = kinds::of_object(&kinds::known(), api_version, kind) {
            return Ok(known);
        }
        let unknown = || TargetError::UnknownKind {
            word: format!("{api_version} {kind}"),
        };
        Ok(kinds::of_object(&client.kinds().await?, api_version, kind).ok_or_else(unknown)?)
    }
}

/// Objects under one heading, as `-o yaml` and `-o json` print several.
pub(crate) fn list_of(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}})
}

/// What is said when nothing was found; "" stands for all namespaces and for none.
pub(crate) fn nothing_in(namespace: &str) -> String {
    if namespace.is_empty() {
        "No resources found".to_owned()
    } else {
        format!("No resources found in {namespace} namespace.")
    }
}

/// An object's place: "" for those that are in no namespace.
pub(crate) fn namespace_of(object: &Value) -> &str {
    control_api::meta::namespace(object)
}

/// Gives an object its type from the wire.
pub(crate) fn typed<T: serde::de::DeserializeOwned>(object: &Value) -> Result<T, CommandError> {
    serde_json::from_value(object.clone()).map_err(|source| CommandError::Shape {
        object: format!(
            "{}/{}",
            object
                .get("kind")
                .and_then(Value::as_str)
                .unwrap_or("object"),
            control_api::meta::name(object)
        ),
        source,
    })
}

/// The objects of the kind that the word names, with their type.
pub(crate) async fn list_typed<T: serde::de::DeserializeOwned>(
    client: &mut Client,
    word: &str,
    selection: &Selection,
) -> Result<Vec<T>, CommandError> {
    let kind = kinds::by_word(&kinds::known(), word)?;
    let listed = client.list(&kind, selection).await?;
    listed.items.iter().map(typed).collect()
}

/// `Ok(None)` when it is not there.
pub(crate) fn absent_is_none<T>(result: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
