//! Volumes of a pod: where what is in them comes from.

use k8s_openapi::api::core::v1::Volume;

use super::text::Text;

pub(super) fn describe(text: &mut Text, volumes: &[Volume]) {
    if volumes.is_empty() {
        return text.pair(0, "Volumes", crate::printer::NONE);
    }
    text.section(0, "Volumes");
    for volume in volumes {
        text.section(1, &volume.name);
        let optional = |optional: Option<bool>| optional.unwrap_or(false).to_string();
        if let Some(empty) = &volume.empty_dir {
            text.pair(2, "Type", "EmptyDir (lives as long as the pod)");
            text.pair(2, "Medium", empty.medium.as_deref().unwrap_or_default());
            text.pair(
                2,
                "SizeLimit",
                empty
                    .size_limit
                    .as_ref()
                    .map_or("<unset>", |limit| limit.0.as_str()),
            );
        } else if let Some(host) = &volume.host_path {
            text.pair(2, "Type", "HostPath (a folder or file of the node)");
            text.pair(2, "Path", &host.path);
            text.pair(2, "HostPathType", host.type_.as_deref().unwrap_or_default());
        } else if let Some(map) = &volume.config_map {
            text.pair(2, "Type", "ConfigMap (files made of a ConfigMap's keys)");
            text.pair(2, "Name", &map.name);
            text.pair(2, "Optional", optional(map.optional));
        } else if let Some(secret) = &volume.secret {
            text.pair(
                2,
                "Type",
                "Secret (files made of a Secret's keys, in memory)",
            );
            text.pair(
                2,
                "SecretName",
                secret.secret_name.as_deref().unwrap_or_default(),
            );
            text.pair(2, "Optional", optional(secret.optional));
        } else if volume.downward_api.is_some() {
            text.pair(
                2,
                "Type",
                "DownwardAPI (files made of the pod's own fields)",
            );
        } else if volume.projected.is_some() {
            text.pair(2, "Type", "Projected (files of several sources)");
        } else if let Some(claim) = &volume.persistent_volume_claim {
            text.pair(2, "Type", "PersistentVolumeClaim");
            text.pair(2, "ClaimName", &claim.claim_name);
        } else {
            text.pair(2, "Type", "<unknown>");
        }
    }
}
