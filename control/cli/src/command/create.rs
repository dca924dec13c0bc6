//! `foil create`: new objects from manifests, and a few kinds from options.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::apply::{DryRun, Refused};
use crate::client::CallError;
use crate::error::{CommandError, RequestError};
use crate::manifest;
use crate::output::{self, Format};
use crate::session::Session;

/// Create objects; fails if one exists
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "\
Examples:
  foil create -f pod.yaml
  foil create namespace staging
  foil create configmap settings --from-literal=LEVEL=debug --from-file=app.conf
  foil create secret generic credentials --from-literal=username=admin
  foil create deployment web --image=foil/app:1 --replicas=3 --port=8080
  foil create deployment web --image=foil/app:1 --dry-run=client -o yaml > web.yaml"
)]
pub(crate) struct Args {
    #[command(flatten)]
    files: Option<super::apply::Files>,
    #[command(flatten)]
    how: How,
    #[command(subcommand)]
    what: Option<What>,
}

/// Options of every form.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct How {
    /// Check without storing: client (no control plane needed) or server
    #[arg(long, value_name = "WHERE", num_args = 0..=1, default_value = "none", default_missing_value = "client", require_equals = true)]
    dry_run: DryRun,
    /// Output format: name, yaml, json or jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Create a namespace
    #[command(visible_alias = "ns")]
    Namespace {
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// Create a ConfigMap from literals, files and folders
    #[command(visible_alias = "cm")]
    Configmap {
        name: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        how: How,
    },
    /// Create a Secret from literals, files and folders
    Secret {
        #[command(subcommand)]
        kind: SecretKind,
    },
    /// Create a Deployment of one image
    #[command(visible_alias = "deploy")]
    Deployment {
        name: String,
        #[arg(long)]
        image: String,
        #[arg(long, default_value_t = 1)]
        replicas: i32,
        /// Port that the container listens on
        #[arg(long)]
        port: Option<u16>,
        /// Command to run instead of the image's own
        #[arg(last = true)]
        command: Vec<String>,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Debug, clap::Subcommand)]
enum SecretKind {
    /// Create a Secret of type Opaque
    Generic {
        name: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        how: How,
    },
}

/// Where keys and values come from.
#[derive(Debug, clap::Args)]
struct Data {
    /// Key and value: KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    from_literal: Vec<String>,
    /// Keys from files: FILE, KEY=FILE, or a folder
    #[arg(long, value_name = "[KEY=]PATH")]
    from_file: Vec<String>,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let Some(what) = args.what else {
        let files = args.files.ok_or(crate::kinds::TargetError::Nothing)?;
        return from_files(&files, &args.how, session, out).await;
    };
    let (object, how) = match what {
        What::Namespace { name, how } => (
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
            how,
        ),
        What::Configmap { name, data, how } => (config_map(&name, &data)?, how),
        What::Secret {
            kind: SecretKind::Generic { name, data, how },
        } => (secret(&name, &data)?, how),
        What::Deployment {
            name,
            image,
            replicas,
            port,
            command,
            how,
        } => (deployment(&name, &image, replicas, port, &command), how),
    };
    one(&object, &how, session, out).await
}

async fn from_files(
    files: &super::apply::Files,
    how: &How,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut documents = manifest::read(&files.files, files.recursive)?;
    manifest::refuse_duplicates(&mut documents, &session.namespace_offline());
    let mut refused = Refused::default();
    for document in documents {
        let Some((place, objects)) = refused.unless_broken(document) else {
            continue;
        };
        let mut lines = Vec::new();
        for object in &objects {
            match one(object, how, session, out).await {
                Ok(()) => {}
                Err(CommandError::Call(error @ CallError::Refused { .. })) => {
                    lines.extend(
                        error
                            .lines()
                            .iter()
                            .map(|line| format!("{}: {line}", manifest::label(object))),
                    );
                }
                Err(CommandError::Target(error)) => {
                    lines.push(format!("{}: {error}", manifest::label(object)))
                }
                Err(CommandError::Request(error)) => lines.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        if lines.is_empty() {
            refused.applied.push(place)
        } else {
            refused.report(place, lines)
        }
    }
    refused.end()
}

async fn one(
    object: &Value,
    how: &How,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let outcome = format!("created{}", how.dry_run.suffix());
    if how.dry_run == DryRun::Client {
        let invalid = |invalid: control_api::Invalid| RequestError::Field {
            what: manifest::label(object),
            message: invalid
                .causes
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; "),
        };
        let kind = control_api::find_for(object).map_err(invalid)?;
        manifest::judge(object, &session.namespace_offline()).map_err(invalid)?;
        output::report(out, how.output.as_ref(), &kind.into(), object, &outcome)?;
        return Ok(());
    }
    let mut client = session.connect().await?;
    let kind = session.kind_of(&mut client, object).await?;
    let namespace = session.namespace_for(&client, object);
    let created = client
        .create(
            object,
            &namespace,
            "foil-create",
            how.dry_run == DryRun::Server,
        )
        .await?;
    Ok(output::report(
        out,
        how.output.as_ref(),
        &kind,
        &created,
        &outcome,
    )?)
}

/// Keys and bytes, in the order in which they were given.
fn entries(data: &Data) -> Result<Vec<(String, Vec<u8>)>, CommandError> {
    let mut found = Vec::new();
    for literal in &data.from_literal {
        let (key, value) = literal.split_once('=').ok_or_else(|| RequestError::Pair {
            word: literal.clone(),
        })?;
        found.push((key.to_string(), value.as_bytes().to_vec()));
    }
    for word in &data.from_file {
        let (key, path) = match word.split_once('=') {
            Some((key, path)) => (Some(key.to_string()), path),
            None => (None, word.as_str()),
        };
        let failed = |source| manifest::SourceError::Read {
            path: path.into(),
            source,
        };
        let mut paths = vec![std::path::PathBuf::from(path)];
        if std::fs::metadata(path).map_err(failed)?.is_dir() {
            let entries = std::fs::read_dir(path).map_err(failed)?;
            paths = entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()
                .map_err(failed)?;
            paths.retain(|path| path.is_file());
            paths.sort();
        }
        for path in paths {
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            found.push((
                key.clone().unwrap_or(name),
                std::fs::read(&path).map_err(failed)?,
            ));
        }
    }
    Ok(found)
}

fn config_map(name: &str, data: &Data) -> Result<Value, CommandError> {
    let (mut text, mut binary) = (Map::new(), Map::new());
    for (key, bytes) in entries(data)? {
        match String::from_utf8(bytes) {
            Ok(value) => drop(text.insert(key, value.into())),
            Err(error) => drop(binary.insert(key, base64(error.as_bytes()).into())),
        }
    }
    let mut object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": text});
    if let (false, Some(map)) = (binary.is_empty(), object.as_object_mut()) {
        map.insert("binaryData".into(), binary.into());
    }
    Ok(object)
}

fn secret(name: &str, data: &Data) -> Result<Value, CommandError> {
    let data: Map<String, Value> = entries(data)?
        .into_iter()
        .map(|(key, bytes)| (key, base64(&bytes).into()))
        .collect();
    Ok(
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "Opaque", "data": data}),
    )
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn deployment(
    name: &str,
    image: &str,
    replicas: i32,
    port: Option<u16>,
    command: &[String],
) -> Value {
    let base = image.rsplit('/').next().unwrap_or(image);
    let container_name = base.split([':', '@']).next().unwrap_or(base);
    let mut container = json!({"name": container_name, "image": image});
    if let Some(map) = container.as_object_mut() {
        if let Some(port) = port {
            map.insert("ports".into(), json!([{"containerPort": port}]));
        }
        if !command.is_empty() {
            map.insert("command".into(), json!(command));
        }
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}},
        },
    })
}
