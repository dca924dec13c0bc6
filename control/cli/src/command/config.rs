//! `foil config`: the context file, read and changed.

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::config::{ConfigError, ConfigFile};
use crate::error::CommandError;
use crate::output::table::Table;
use crate::output::{self, presentable};
use crate::session::Session;
use crate::yaml;

/// Manage contexts
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
A context is a control plane, who we are to it, and a namespace.

Examples:
  foil config get-contexts
  foil config use-context admin@prod
  foil config set-context --current --namespace=staging
  foil config import admin.conf            add the contexts of another file
  foil config view                         without keys")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print the contexts
    GetContexts {
        /// Output format: name (names only)
        #[arg(short, long, value_name = "FORMAT", value_parser = ["name"])]
        output: Option<String>,
        /// Leave out the line of column names
        #[arg(long)]
        no_headers: bool,
    },
    /// Print the name of the current context
    CurrentContext,
    /// Set the current context
    UseContext { name: String },
    /// Create or change a context
    SetContext {
        #[arg(required_unless_present = "current")]
        name: Option<String>,
        /// Change the current context
        #[arg(long, conflicts_with = "name")]
        current: bool,
        #[arg(long)]
        cluster: Option<String>,
        #[arg(long)]
        user: Option<String>,
    },
    /// Delete a context
    DeleteContext { name: String },
    /// Add the clusters, users and contexts of another file
    Import { file: PathBuf },
    /// Print the file
    View {
        /// Include certificates and keys
        #[arg(long)]
        raw: bool,
        /// Print only what the current context needs
        #[arg(long)]
        minify: bool,
        /// Output format: yaml or json
        #[arg(short, long, default_value = "yaml", value_parser = ["yaml", "json"])]
        output: String,
    },
}

pub(crate) fn run(args: Args, session: &Session, out: &mut dyn Write) -> Result<(), CommandError> {
    let path = session.config_path()?;
    if let What::Import { file } = &args.what {
        return import(&path, file, out);
    }
    let file = ConfigFile::read(&path)?;
    match args.what {
        What::GetContexts { output, no_headers } => {
            get_contexts(&file, output.is_some(), no_headers, out)
        }
        What::CurrentContext => match file.current() {
            "" => Err(ConfigError::NoCurrent { path }.into()),
            name => Ok(writeln!(out, "{name}")?),
        },
        What::UseContext { name } => {
            require_context(&file, &name)?;
            change(&file, |map| {
                drop(map.insert("current-context".into(), json!(name)))
            })?;
            Ok(writeln!(out, "Switched to context \"{name}\".")?)
        }
        What::SetContext {
            name,
            current: _,
            cluster,
            user,
        } => {
            let name = name.unwrap_or_else(|| file.current().to_string());
            if name.is_empty() {
                return Err(ConfigError::NoCurrent { path }.into());
            }
            let existed = file.contexts().iter().any(|context| context.name == name);
            let namespace = session.namespace_option();
            change(&file, |map| {
                set_context(
                    map,
                    &name,
                    [
                        ("cluster", cluster),
                        ("user", user),
                        ("namespace", namespace),
                    ],
                )
            })?;
            let word = if existed { "modified" } else { "created" };
            Ok(writeln!(out, "Context \"{name}\" {word}.")?)
        }
        What::DeleteContext { name } => {
            require_context(&file, &name)?;
            change(&file, |map| {
                if let Some(contexts) = map.get_mut("contexts").and_then(Value::as_array_mut) {
                    contexts.retain(|context| {
                        context.get("name").and_then(Value::as_str) != Some(name.as_str())
                    });
                }
            })?;
            Ok(writeln!(
                out,
                "deleted context {name} from {}",
                path.display()
            )?)
        }
        What::View {
            raw,
            minify,
            output,
        } => view(&file, raw, minify, &output, out),
        What::Import { .. } => Ok(()),
    }
}

fn require_context(file: &ConfigFile, name: &str) -> Result<(), ConfigError> {
    let contexts = file.contexts();
    if contexts.iter().any(|context| context.name == name) {
        return Ok(());
    }
    let has: Vec<String> = contexts.into_iter().map(|context| context.name).collect();
    let has = if has.is_empty() {
        "none".into()
    } else {
        has.join(", ")
    };
    Err(ConfigError::NoSuch {
        path: file.path.clone(),
        what: "context",
        name: name.to_string(),
        has,
    })
}

fn get_contexts(
    file: &ConfigFile,
    names: bool,
    no_headers: bool,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut table = Table::default();
    if !names && !no_headers {
        table.row(
            ["CURRENT", "NAME", "CLUSTER", "AUTHINFO", "NAMESPACE"]
                .map(String::from)
                .to_vec(),
        );
    }
    for context in file.contexts() {
        table.row(if names {
            vec![context.name]
        } else {
            let mark = if context.current { "*" } else { "" };
            vec![
                mark.into(),
                context.name,
                context.cluster,
                context.user,
                context.namespace,
            ]
        });
    }
    Ok(table.flush(out)?)
}

/// Edits the file's value, checks that it is still a context file, and writes it.
fn change(
    file: &ConfigFile,
    edit: impl FnOnce(&mut Map<String, Value>),
) -> Result<(), ConfigError> {
    let mut value = file.value.clone();
    if let Some(map) = value.as_object_mut() {
        edit(map);
    }
    ConfigFile::from_value(&file.path, value)?.write()
}

fn set_context(map: &mut Map<String, Value>, name: &str, fields: [(&str, Option<String>); 3]) {
    let contexts = map.entry("contexts").or_insert_with(|| json!([]));
    let Some(contexts) = contexts.as_array_mut() else {
        return;
    };
    if !contexts
        .iter()
        .any(|context| context.get("name").and_then(Value::as_str) == Some(name))
    {
        contexts.push(json!({"name": name, "context": {"cluster": "", "user": ""}}));
    }
    let found = contexts
        .iter_mut()
        .find(|context| context.get("name").and_then(Value::as_str) == Some(name));
    let Some(context) = found
        .and_then(|found| found.get_mut("context"))
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    for (field, value) in fields {
        if let Some(value) = value {
            context.insert(field.into(), value.into());
        }
    }
}

/// Lists of a context file whose entries have names.
const LISTS: [&str; 3] = ["clusters", "users", "contexts"];

fn import(
    path: &std::path::Path,
    from: &std::path::Path,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let other = ConfigFile::read(from)?;
    let into = match ConfigFile::read(path) {
        Err(ConfigError::Missing { .. }) => {
            ConfigFile::from_value(path, json!({"apiVersion": "v1", "kind": "Config"}))?
        }
        found => found?,
    };
    change(&into, |map| {
        for list in LISTS {
            let entries = map.entry(list).or_insert_with(|| json!([]));
            let Some(entries) = entries.as_array_mut() else {
                continue;
            };
            for entry in other
                .value
                .get(list)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                entries.retain(|known| known.get("name") != entry.get("name"));
                entries.push(entry.clone());
            }
        }
        if !other.current().is_empty() {
            map.insert("current-context".into(), json!(other.current()));
        }
    })?;
    let names: Vec<String> = other
        .contexts()
        .into_iter()
        .map(|context| context.name)
        .collect();
    Ok(writeln!(
        out,
        "{}: added {}; in use: {}",
        path.display(),
        names.join(", "),
        other.current()
    )?)
}

fn view(
    file: &ConfigFile,
    raw: bool,
    minify: bool,
    format: &str,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut value = file.value.clone();
    if minify {
        keep_current(&mut value, file);
    }
    if !raw {
        hide(&mut value);
    }
    let value = presentable(&value);
    if format == "json" {
        return Ok(writeln!(out, "{}", output::pretty(&value))?);
    }
    Ok(out.write_all(yaml::print(&value).as_bytes())?)
}

fn keep_current(value: &mut Value, file: &ConfigFile) {
    let Some(current) = file.contexts().into_iter().find(|context| context.current) else {
        return;
    };
    for (list, name) in LISTS
        .into_iter()
        .zip([current.cluster, current.user, current.name])
    {
        if let Some(entries) = value.get_mut(list).and_then(Value::as_array_mut) {
            entries
                .retain(|entry| entry.get("name").and_then(Value::as_str) == Some(name.as_str()));
        }
    }
}

/// A file that is shown on a screen must not give a key away.
fn hide(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map.iter_mut() {
                match key.as_str() {
                    "client-key-data" | "token" | "password" => *inner = json!("REDACTED"),
                    "certificate-authority-data" | "client-certificate-data" => {
                        *inner = json!("DATA+OMITTED")
                    }
                    _ => hide(inner),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_added_and_changed() {
        let mut value =
            json!({"contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}]});
        let map = value.as_object_mut().unwrap();
        set_context(
            map,
            "a",
            [
                ("cluster", None),
                ("user", None),
                ("namespace", Some("x".into())),
            ],
        );
        set_context(
            map,
            "b",
            [
                ("cluster", Some("d".into())),
                ("user", None),
                ("namespace", None),
            ],
        );
        assert_eq!(
            value,
            json!({"contexts": [
                {"name": "a", "context": {"cluster": "c", "user": "u", "namespace": "x"}},
                {"name": "b", "context": {"cluster": "d", "user": ""}},
            ]})
        );
    }

    #[test]
    fn keys_are_hidden() {
        let mut value = json!({"users": [{"name": "a", "user": {"client-key-data": "secret", "client-certificate-data": "long"}}]});
        hide(&mut value);
        let shown = value.to_string();
        assert!(
            !shown.contains("secret")
                && shown.contains("REDACTED")
                && shown.contains("DATA+OMITTED"),
            "{shown}"
        );
    }
}
