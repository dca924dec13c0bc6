//! Volumes: defaults and rules. Sources that we do not have are in
//! `unsupported`. Called by `podspec`.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Volume};

use crate::invalid::{Causes, Field, Warning};
use crate::{fieldref, name, resources};

/// Mode of files unless one is given: 0644.
const DEFAULT_MODE: i32 = 0o644;

/// What `fieldRef` in a volume may name.
const VOLUME_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

const HOST_PATH_TYPES: &[&str] = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

pub(crate) fn set_defaults(v: &mut Volume) {
    if let Some(source) = &mut v.config_map {
        source.default_mode.get_or_insert(DEFAULT_MODE);
    }
    if let Some(source) = &mut v.secret {
        source.default_mode.get_or_insert(DEFAULT_MODE);
    }
    if let Some(source) = &mut v.downward_api {
        source.default_mode.get_or_insert(DEFAULT_MODE);
        set_downward_defaults(source.items.as_deref_mut().unwrap_or_default());
    }
    if let Some(source) = &mut v.projected {
        source.default_mode.get_or_insert(DEFAULT_MODE);
        for projection in source.sources.iter_mut().flatten() {
            let items = projection
                .downward_api
                .as_mut()
                .and_then(|d| d.items.as_deref_mut());
            set_downward_defaults(items.unwrap_or_default());
        }
    }
    if let Some(source) = &mut v.host_path {
        source.type_.get_or_insert_default();
    }
    if let Some(limit) = v.empty_dir.as_mut().and_then(|dir| dir.size_limit.as_mut()) {
        crate::quantity::canonicalise(limit);
    }
    if sources(v) == 0 {
        v.empty_dir = Some(Default::default());
    }
}

fn set_downward_defaults(items: &mut [DownwardAPIVolumeFile]) {
    for field in items.iter_mut().filter_map(|item| item.field_ref.as_mut()) {
        field.api_version.get_or_insert_with(|| "v1".to_owned());
    }
}

/// How many sources the volume names, of any type.
fn sources(v: &Volume) -> usize {
    let known = serde_json::to_value(v)
        .ok()
        .and_then(|v| v.as_object().map(|fields| fields.len()));
    known.unwrap_or(1).saturating_sub(1)
}

pub(crate) fn validate(v: &Volume, at: &Field, causes: &mut Causes) {
    if sources(v) > 1 {
        causes.forbidden(at, "may not specify more than 1 volume type");
    }
    if let Some(dir) = &v.empty_dir {
        let limit = dir.size_limit.as_ref();
        let medium = dir.medium.as_deref().unwrap_or_default();
        let at = at.child("emptyDir");
        if !matches!(medium, "" | "Memory") {
            causes.invalid(
                &at.child("medium"),
                medium,
                "not supported by Hydrofoil yet",
            );
        }
        let bad = |text: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
            crate::quantity::Quantity::of(text).is_none_or(|q| q.is_negative())
        };
        if let Some(limit) = limit.filter(|limit| bad(limit)) {
            let detail = "SizeLimit field must be a valid resource quantity";
            causes.forbidden(&at.child("sizeLimit"), format!("{detail}: {}", limit.0));
        }
    }
    if let Some(host) = &v.host_path {
        let at = at.child("hostPath");
        if host.path.is_empty() {
            causes.required(&at.child("path"), "");
        } else if host.path.split('/').any(|step| step == "..") {
            causes.invalid(&at.child("path"), &host.path, "must not contain '..'");
        }
        let kind = host.type_.as_deref().unwrap_or_default();
        if !HOST_PATH_TYPES.contains(&kind) {
            causes.unsupported(&at.child("type"), kind, HOST_PATH_TYPES);
        }
    }
    if let Some(source) = &v.config_map {
        let at = at.child("configMap");
        if source.name.is_empty() {
            causes.required(&at.child("name"), "");
        }
        validate_mode(source.default_mode, &at.child("defaultMode"), causes);
        validate_items(source.items.as_deref(), &at.child("items"), causes);
    }
    if let Some(source) = &v.secret {
        let at = at.child("secret");
        if source.secret_name.as_deref().unwrap_or_default().is_empty() {
            causes.required(&at.child("secretName"), "");
        }
        validate_mode(source.default_mode, &at.child("defaultMode"), causes);
        validate_items(source.items.as_deref(), &at.child("items"), causes);
    }
    if let Some(source) = &v.downward_api {
        let at = at.child("downwardAPI");
        validate_mode(source.default_mode, &at.child("defaultMode"), causes);
        validate_downward(source.items.as_deref(), &at.child("items"), causes);
    }
    if let Some(source) = &v.projected {
        validate_projected(source, &at.child("projected"), causes);
    }
}

fn validate_projected(source: &ProjectedVolumeSource, at: &Field, causes: &mut Causes) {
    validate_mode(source.default_mode, &at.child("defaultMode"), causes);
    for (i, projection) in source.sources.iter().flatten().enumerate() {
        let at = at.child("sources").index(i);
        let fields = serde_json::to_value(projection).ok();
        let count = fields
            .and_then(|f| f.as_object().map(|f| f.len()))
            .unwrap_or(1);
        match count {
            0 => causes.required(&at, "must specify at least 1 volume type"),
            1 => {}
            _several => causes.forbidden(&at, "may not specify more than 1 volume type per source"),
        }
        if let Some(map) = &projection.config_map {
            if map.name.is_empty() {
                causes.required(&at.child("configMap.name"), "");
            }
            validate_items(map.items.as_deref(), &at.child("configMap.items"), causes);
        }
        if let Some(secret) = &projection.secret {
            if secret.name.is_empty() {
                causes.required(&at.child("secret.name"), "");
            }
            validate_items(secret.items.as_deref(), &at.child("secret.items"), causes);
        }
        if let Some(downward) = &projection.downward_api {
            validate_downward(
                downward.items.as_deref(),
                &at.child("downwardAPI.items"),
                causes,
            );
        }
    }
}

fn validate_mode(mode: Option<i32>, at: &Field, causes: &mut Causes) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        causes.invalid(at, mode, detail);
    }
}

fn validate_items(items: Option<&[KeyToPath]>, at: &Field, causes: &mut Causes) {
    for (i, item) in items.into_iter().flatten().enumerate() {
        let at = at.index(i);
        if item.key.is_empty() {
            causes.required(&at.child("key"), "");
        } else if let Err(detail) = name::config_key(&item.key) {
            causes.invalid(&at.child("key"), &item.key, detail);
        }
        validate_path(&item.path, &at.child("path"), causes);
        validate_mode(item.mode, &at.child("mode"), causes);
    }
}

fn validate_downward(items: Option<&[DownwardAPIVolumeFile]>, at: &Field, causes: &mut Causes) {
    for (i, item) in items.into_iter().flatten().enumerate() {
        let at = at.index(i);
        validate_path(&item.path, &at.child("path"), causes);
        validate_mode(item.mode, &at.child("mode"), causes);
        match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), None) => {
                fieldref::validate(field, VOLUME_FIELDS, &at.child("fieldRef"), causes);
            }
            (None, Some(resource)) => {
                let at = at.child("resourceFieldRef");
                resources::validate_field_ref(resource, true, &at, causes);
            }
            (Some(_), Some(_)) => {
                causes.invalid(
                    &at,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
            (None, None) => {
                causes.required(&at, "one of fieldRef and resourceFieldRef is required")
            }
        }
    }
}

/// Relative, and never up.
fn validate_path(path: &str, at: &Field, causes: &mut Causes) {
    if path.is_empty() {
        causes.required(at, "");
    } else if path.starts_with('/') {
        causes.invalid(at, path, "must be a relative path");
    } else if path.split('/').any(|step| step == "..") {
        causes.invalid(at, path, "must not contain '..'");
    } else if path.starts_with("..") {
        causes.invalid(at, path, "must not start with '..'");
    }
}

pub(crate) fn warnings(v: &Volume, at: &Field, warnings: &mut Vec<Warning>) {
    let Some(dir) = &v.empty_dir else { return };
    if dir.size_limit.is_some() && dir.medium.as_deref() != Some("Memory") {
        warnings.push(Warning {
            field: at.child("emptyDir.sizeLimit").to_string(),
            message: "not supported by Hydrofoil yet unless the medium is Memory, has no effect"
                .to_owned(),
        });
    }
}
