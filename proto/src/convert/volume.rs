//! Volumes: sources on the node as they are; ConfigMaps, Secrets and the pod's
//! own fields resolved to files. Called by `pod`.

use std::collections::BTreeMap;

use control_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Secret, Volume,
};

use super::budget::Budget;
use super::field;
use super::input::PodInput;
use crate::v1;
use crate::v1::volume::{EmptyDir, Files, HostPath, Source};

/// One volume. What is missing is in `Files.error`.
pub fn volume(input: &PodInput<'_>, volume: &Volume, budget: &Budget) -> v1::Volume {
    let files = |tmpfs: bool, found: Result<Vec<v1::File>, String>| {
        let (files, error) = match found {
            Ok(files) => (files, String::new()),
            Err(error) => (Vec::new(), error),
        };
        Source::Files(Files {
            files,
            tmpfs,
            error,
        })
    };
    let source = if let Some(dir) = &volume.empty_dir {
        Source::EmptyDir(EmptyDir {
            memory: dir.medium.as_deref() == Some("Memory"),
            size_limit_bytes: dir
                .size_limit
                .as_ref()
                .and_then(Quantity::of)
                .map_or(0, |q| q.units()),
        })
    } else if let Some(host) = &volume.host_path {
        let kind = host.type_.clone().unwrap_or_default();
        Source::HostPath(HostPath {
            path: host.path.clone(),
            r#type: kind,
        })
    } else if let Some(source) = &volume.config_map {
        let wanted = Wanted {
            name: &source.name,
            items: source.items.as_deref(),
            optional: source.optional == Some(true),
            mode: mode(source.default_mode),
            budget,
        };
        files(false, config_map(input, &wanted))
    } else if let Some(source) = &volume.secret {
        let wanted = Wanted {
            name: source.secret_name.as_deref().unwrap_or_default(),
            items: source.items.as_deref(),
            optional: source.optional == Some(true),
            mode: mode(source.default_mode),
            budget,
        };
        files(true, secret(input, &wanted))
    } else if let Some(source) = &volume.downward_api {
        let mode = mode(source.default_mode);
        files(true, downward(input, source.items.as_deref(), mode, budget))
    } else if let Some(source) = &volume.projected {
        files(true, projected(input, source, budget))
    } else {
        files(
            false,
            Err("the volume's source is not supported by Hydrofoil yet".to_owned()),
        )
    };
    v1::Volume {
        name: volume.name.clone(),
        source: Some(source),
    }
}

/// What is wanted of a ConfigMap or a Secret.
struct Wanted<'a> {
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    optional: bool,
    mode: u32,
    budget: &'a Budget,
}

fn mode(mode: Option<i32>) -> u32 {
    u32::try_from(mode.unwrap_or_default()).unwrap_or_default() & 0o7777
}

fn config_map(input: &PodInput<'_>, wanted: &Wanted<'_>) -> Result<Vec<v1::File>, String> {
    let name = wanted.name;
    let Some(map) = (input.config_map)(name) else {
        if wanted.optional {
            return Ok(Vec::new());
        }
        return Err(format!("configmap {name:?} not found"));
    };
    select(&of_config_map(&map), wanted, "config")
}

fn secret(input: &PodInput<'_>, wanted: &Wanted<'_>) -> Result<Vec<v1::File>, String> {
    let name = wanted.name;
    let Some(secret) = (input.secret)(name) else {
        if wanted.optional {
            return Ok(Vec::new());
        }
        return Err(format!("secret {name:?} not found"));
    };
    select(&of_secret(&secret), wanted, "secret")
}

fn of_config_map(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

fn of_secret(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()))
        .collect()
}

fn select(
    data: &BTreeMap<String, Vec<u8>>,
    wanted: &Wanted<'_>,
    word: &str,
) -> Result<Vec<v1::File>, String> {
    let Some(items) = wanted.items.filter(|items| !items.is_empty()) else {
        let all = data.iter().map(|(key, bytes)| {
            wanted.budget.take(bytes.len())?;
            file(key, bytes.clone(), wanted.mode)
        });
        return all.collect();
    };
    let mut files = Vec::new();
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => {
                let mode = item.mode.map_or(wanted.mode, |own| mode(Some(own)));
                wanted.budget.take(bytes.len())?;
                files.push(file(&item.path, bytes.clone(), mode)?);
            }
            None if wanted.optional => {}
            None => return Err(format!("references non-existent {word} key: {}", item.key)),
        }
    }
    Ok(files)
}

/// Never outside of the volume, even if the stored path is wrong.
fn file(path: &str, data: Vec<u8>, mode: u32) -> Result<v1::File, String> {
    let plain = |step: &str| !matches!(step, "" | "." | "..");
    if !path.split('/').all(plain) {
        return Err(format!(
            "path {path:?} must be relative and must not contain '..'"
        ));
    }
    Ok(v1::File {
        path: path.to_owned(),
        data,
        mode,
    })
}

fn downward(
    input: &PodInput<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    default: u32,
    budget: &Budget,
) -> Result<Vec<v1::File>, String> {
    let mut files = Vec::new();
    for item in items.into_iter().flatten() {
        let mode = item.mode.map_or(default, |own| mode(Some(own)));
        let value = if let Some(reference) = &item.field_ref {
            let path = &reference.field_path;
            field::pod_field(input, path).ok_or_else(|| format!("unsupported fieldPath: {path}"))?
        } else if let Some(reference) = &item.resource_field_ref {
            let name = reference.container_name.as_deref().unwrap_or_default();
            let container = input.container(name);
            let container = container.ok_or_else(|| format!("container {name} not found"))?;
            let resource = &reference.resource;
            field::resource_field(input, container, reference)
                .ok_or_else(|| format!("unsupported container resource: {resource}"))?
        } else {
            String::new()
        };
        budget.take(value.len())?;
        files.push(file(&item.path, value.into_bytes(), mode)?);
    }
    Ok(files)
}

/// All sources in one folder; of two files with one path the later wins.
fn projected(
    input: &PodInput<'_>,
    source: &ProjectedVolumeSource,
    budget: &Budget,
) -> Result<Vec<v1::File>, String> {
    let mode = mode(source.default_mode);
    let mut all: BTreeMap<String, v1::File> = BTreeMap::new();
    for projection in source.sources.iter().flatten() {
        let files = if let Some(map) = &projection.config_map {
            let optional = map.optional == Some(true);
            let items = map.items.as_deref();
            config_map(
                input,
                &Wanted {
                    name: &map.name,
                    items,
                    optional,
                    mode,
                    budget,
                },
            )?
        } else if let Some(from) = &projection.secret {
            let optional = from.optional == Some(true);
            let items = from.items.as_deref();
            secret(
                input,
                &Wanted {
                    name: &from.name,
                    items,
                    optional,
                    mode,
                    budget,
                },
            )?
        } else if let Some(from) = &projection.downward_api {
            downward(input, from.items.as_deref(), mode, budget)?
        } else {
            return Err(
                "a source of the projected volume is not supported by Hydrofoil yet".to_owned(),
            );
        };
        all.extend(files.into_iter().map(|file| (file.path.clone(), file)));
    }
    Ok(all.into_values().collect())
}
