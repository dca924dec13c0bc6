//! Security contexts: rules. Not sysctls: see `sysctl`. What is not supported is
//! in `unsupported`.
//! Called by `podspec` and `container`.

use k8s_openapi::api::core::v1::{PodSecurityContext, SeccompProfile, SecurityContext};

use crate::invalid::{Causes, Field};

pub(crate) fn validate_pod(context: &PodSecurityContext, at: &Field, causes: &mut Causes) {
    let ids = [
        ("runAsUser", context.run_as_user),
        ("runAsGroup", context.run_as_group),
        ("fsGroup", context.fs_group),
    ];
    for (field, id) in ids {
        validate_id(id, &at.child(field), causes);
    }
    for (i, group) in context.supplemental_groups.iter().flatten().enumerate() {
        validate_id(
            Some(*group),
            &at.child("supplementalGroups").index(i),
            causes,
        );
    }
    validate_seccomp(
        context.seccomp_profile.as_ref(),
        &at.child("seccompProfile"),
        causes,
    );
}

pub(crate) fn validate_container(context: &SecurityContext, at: &Field, causes: &mut Causes) {
    validate_id(context.run_as_user, &at.child("runAsUser"), causes);
    validate_id(context.run_as_group, &at.child("runAsGroup"), causes);
    validate_seccomp(
        context.seccomp_profile.as_ref(),
        &at.child("seccompProfile"),
        causes,
    );
    if context.allow_privilege_escalation == Some(false) && context.privileged == Some(true) {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        causes.invalid(&at.child("allowPrivilegeEscalation"), false, detail);
    }
    let added = context
        .capabilities
        .as_ref()
        .and_then(|all| all.add.as_ref());
    if context.allow_privilege_escalation == Some(false)
        && added.is_some_and(|added| added.iter().any(|c| c == "CAP_SYS_ADMIN"))
    {
        let detail =
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        causes.invalid(&at.child("allowPrivilegeEscalation"), false, detail);
    }
}

fn validate_id(id: Option<i64>, at: &Field, causes: &mut Causes) {
    if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        causes.invalid(at, id, "must be between 0 and 2147483647, inclusive");
    }
}

fn validate_seccomp(profile: Option<&SeccompProfile>, at: &Field, causes: &mut Causes) {
    let Some(profile) = profile else { return };
    let known = ["Localhost", "RuntimeDefault", "Unconfined"];
    if profile.type_.is_empty() {
        causes.required(
            &at.child("type"),
            "type is required when seccompProfile is set",
        );
    } else if !known.contains(&profile.type_.as_str()) {
        causes.unsupported(&at.child("type"), &profile.type_, &known);
    }
}
