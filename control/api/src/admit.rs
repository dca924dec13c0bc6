//! Admission: from what somebody wrote to what is stored. Strict decoding, the
//! table of unsupported fields, system-owned fields, defaults, validation,
//! immutable fields, in this order. Not authorisation, not quota.
//! Called by `control-server` for each write of a person or of a controller.

use serde_json::Value;

use crate::decode;
use crate::invalid::{Cause, Causes, Field, Invalid};
use crate::kind::{Admitted, Kind, Rules, Words};
use crate::{equality, meta, unsupported};

/// Judges `value`, a new object, or the successor of `old`. The result is
/// complete except what only the server knows (uid, creationTimestamp,
/// resourceVersion). Status is never taken from `value`.
pub fn admit(value: &Value, kind: &'static Kind, old: Option<&Value>) -> Result<Admitted, Invalid> {
    (kind.admit)(kind, value, old)
}

/// Judges a write of the status: everything but `status` is taken from `old`.
pub fn admit_status(value: &Value, kind: &'static Kind, old: &Value) -> Result<Admitted, Invalid> {
    (kind.admit_status)(kind, value, Some(old))
}

/// The kind whose type and rules are `T`'s.
pub(crate) const fn kind_of<T: Rules>(words: Words) -> Kind {
    Kind {
        group: T::GROUP,
        version: T::VERSION,
        kind: T::KIND,
        plural: words.plural,
        singular: words.singular,
        short_names: words.short_names,
        namespaced: words.namespaced,
        has_status: words.has_status,
        pod_spec: words.pod_spec,
        name_rule: words.name_rule,
        scalable: T::SCALABLE,
        grace_seconds: T::grace_seconds,
        terminate: T::terminate,
        admit: admit_as::<T>,
        admit_status: admit_status_as::<T>,
        known: known_as::<T>,
    }
}

fn refuse(kind: &Kind, value: &Value, causes: Vec<Cause>) -> Invalid {
    let name = match meta::name(value) {
        "" => meta::generate_name(value),
        name => name,
    };
    Invalid {
        kind: kind.kind.to_owned(),
        name: name.to_owned(),
        causes,
    }
}

fn decode_old<T: Rules>(kind: &Kind, old: &Value) -> Result<T, Invalid> {
    decode::lenient::<T>(old).map_err(|cause| refuse(kind, old, vec![cause]))
}

fn admit_as<T: Rules>(
    kind: &'static Kind,
    value: &Value,
    old: Option<&Value>,
) -> Result<Admitted, Invalid> {
    let mut object: T = decode::strict(value).map_err(|causes| refuse(kind, value, causes))?;
    let before = old.map(|old| decode_old::<T>(kind, old)).transpose()?;

    let mut causes = Causes::default();
    let mut warnings = Vec::new();
    unsupported::check(kind, value, &mut causes, &mut warnings);
    meta::prepare(
        object.metadata_mut(),
        before.as_ref().map(|old| old.metadata()),
        kind,
    );
    object.prepare(before.as_ref());
    object.set_defaults();
    meta::validate(object.metadata(), kind, &mut causes);
    object.validate(&mut causes);
    if let Some(before) = &before {
        meta::validate_update(object.metadata(), before.metadata(), &mut causes);
        object.validate_update(before, &mut causes);
    }
    object.warnings(&mut warnings);
    let causes = causes.into_vec();
    if !causes.is_empty() {
        return Err(refuse(kind, value, causes));
    }

    let mut stored = encode(kind, &object)?;
    let status = match old {
        Some(old) => old.get("status").cloned(),
        None => object.initial_status(),
    };
    set_status(&mut stored, status.filter(|_| kind.has_status));
    let generation = next_generation(&stored, old);
    meta::set_generation(&mut stored, generation);
    Ok((stored, warnings))
}

fn admit_status_as<T: Rules>(
    kind: &'static Kind,
    value: &Value,
    old: Option<&Value>,
) -> Result<Admitted, Invalid> {
    let Some(old) = old else {
        let cause = Cause {
            field: "status".to_owned(),
            message: "there is no object".to_owned(),
        };
        return Err(refuse(kind, value, vec![cause]));
    };
    if !kind.has_status {
        let mut causes = Causes::default();
        causes.forbidden(
            &Field::root("status"),
            format!("a {} has no status", kind.kind),
        );
        return Err(refuse(kind, value, causes.into_vec()));
    }
    let object: T = decode::strict(value).map_err(|causes| refuse(kind, value, causes))?;
    let mut encoded = encode(kind, &object)?;
    let mut stored = old.clone();
    let status = encoded.get_mut("status").map(Value::take);
    set_status(&mut stored, status);
    Ok((stored, Vec::new()))
}

fn known_as<T: Rules>(kind: &Kind, stored: &Value) -> Result<Option<Value>, Invalid> {
    // The common case, and the cheaper one.
    if decode::strict::<T>(stored).is_ok() {
        return Ok(None);
    }
    encode(kind, &decode_old::<T>(kind, stored)?).map(Some)
}

fn encode<T: Rules>(kind: &Kind, object: &T) -> Result<Value, Invalid> {
    serde_json::to_value(object).map_err(|error| {
        Invalid::one(
            kind.kind,
            object.metadata().name.clone().unwrap_or_default(),
            "",
            error.to_string(),
        )
    })
}

fn set_status(object: &mut Value, status: Option<Value>) {
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    match status {
        Some(status) => {
            fields.insert("status".to_owned(), status);
        }
        None => {
            fields.shift_remove("status");
        }
    }
}

/// Goes up when something other than metadata and status changed.
fn next_generation(new: &Value, old: Option<&Value>) -> Option<i64> {
    new.get("spec")?;
    let Some(old) = old else { return Some(1) };
    let generation = meta::generation(old).max(1);
    let same = equality::semantic(new.get("spec"), old.get("spec"));
    Some(if same { generation } else { generation + 1 })
}
