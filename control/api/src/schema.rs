//! How lists and maps merge: which lists are keyed, by what, and which are
//! replaced as a whole. As the merge markers of Kubernetes' types have it. Not
//! the merging: see `apply`.

use serde_json::Value;

/// How a field behaves when two parties write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Fields of their own: structs and plain maps.
    Granular,
    /// One value: scalars, and lists and maps that make sense only as a whole.
    Atomic,
    /// Items are told apart by these fields (with the values of absent ones).
    Keyed(&'static [(&'static str, Option<&'static str>)]),
    /// Items are told apart by their value.
    Set,
}

const NAME: Shape = Shape::Keyed(&[("name", None)]);

/// Field name, the field that holds it ("" for any), shape. The first that fits.
const SHAPES: &[(&str, &str, Shape)] = &[
    ("containers", "", NAME),
    ("initContainers", "", NAME),
    ("ephemeralContainers", "", NAME),
    ("volumes", "", NAME),
    ("env", "", NAME),
    ("imagePullSecrets", "", NAME),
    ("volumeMounts", "", Shape::Keyed(&[("mountPath", None)])),
    ("volumeDevices", "", Shape::Keyed(&[("devicePath", None)])),
    ("hostAliases", "", Shape::Keyed(&[("ip", None)])),
    (
        "ports",
        "containers",
        Shape::Keyed(&[("containerPort", None), ("protocol", Some("TCP"))]),
    ),
    (
        "ports",
        "initContainers",
        Shape::Keyed(&[("containerPort", None), ("protocol", Some("TCP"))]),
    ),
    (
        "ports",
        "spec",
        Shape::Keyed(&[("port", None), ("protocol", Some("TCP"))]),
    ),
    ("conditions", "status", Shape::Keyed(&[("type", None)])),
    (
        "ownerReferences",
        "metadata",
        Shape::Keyed(&[("uid", None)]),
    ),
    ("finalizers", "", Shape::Set),
    ("selector", "", Shape::Atomic),
    ("nodeSelector", "", Shape::Atomic),
    ("configMapKeyRef", "", Shape::Atomic),
    ("secretKeyRef", "", Shape::Atomic),
    ("fieldRef", "", Shape::Atomic),
    ("resourceFieldRef", "", Shape::Atomic),
    ("involvedObject", "", Shape::Atomic),
    ("targetRef", "", Shape::Atomic),
];

/// Fields that are maps of people's own keys, and not structs.
const MAPS: &[&str] = &[
    "annotations",
    "binaryData",
    "data",
    "labels",
    "limits",
    "matchLabels",
    "requests",
    "stringData",
];

/// Whether the granular field `name` is a map: nothing in it is a default.
pub fn is_map(name: &str) -> bool {
    MAPS.contains(&name)
}

/// Shape of the field `name`, which stands in the field `parent` (list indices
/// do not count: the parent of a container's `ports` is `containers`).
pub fn shape(parent: &str, name: &str, value: &Value) -> Shape {
    let known = SHAPES
        .iter()
        .find(|(n, p, _)| *n == name && (p.is_empty() || *p == parent));
    match (value, known) {
        // What should be a list and is none is taken over as it is, and refused.
        (Value::Object(_), Some((_, _, Shape::Keyed(_) | Shape::Set))) => Shape::Atomic,
        (Value::Object(_) | Value::Array(_), Some((_, _, shape))) => *shape,
        (Value::Object(_), None) => Shape::Granular,
        (Value::Array(_), None) => Shape::Atomic,
        (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_), _) => Shape::Atomic,
    }
}
