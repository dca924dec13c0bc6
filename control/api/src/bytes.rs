//! Stored objects as bytes, before they are decoded. Called by `control-plan`.

use std::borrow::Cow;

/// As `serde_json` writes the field; quotes in strings are escaped, so that it
/// cannot be part of a value.
const MANAGED_FIELDS: &[u8] = b"\"managedFields\":[";

/// The object without its first `managedFields`, which is that of its metadata.
/// They are half of a pod, and decoding them costs more than all the rest: who
/// does not need them takes them out first. JSON that is not as `serde_json`
/// writes it is left as it is.
pub fn without_managed_fields(json: &[u8]) -> Cow<'_, [u8]> {
    let Some((start, end)) = span(json) else {
        return Cow::Borrowed(json);
    };
    let (before, after) = (&json[..start], &json[end..]);
    // One of the commas around the field goes with it.
    let (before, after) = match (before.strip_suffix(b","), after.strip_prefix(b",")) {
        (_, Some(after)) => (before, after),
        (Some(before), None) => (before, after),
        (None, None) => (before, after),
    };
    Cow::Owned([before, after].concat())
}

/// From the field's name to the end of its list.
fn span(json: &[u8]) -> Option<(usize, usize)> {
    let start = json
        .windows(MANAGED_FIELDS.len())
        .position(|window| window == MANAGED_FIELDS)?;
    let list = start + MANAGED_FIELDS.len() - 1;
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (i, byte) in json.iter().enumerate().skip(list) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some((start, i + 1));
                }
            }
            _other => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn takes_out_the_owners_and_nothing_else() {
        let entries =
            json!([{"manager": "a\"]}\\", "fieldsV1": {"k:{\"name\":\"x\"}": {".": {}}}}, {}]);
        let rows = [
            json!({"metadata": {"name": "a"}, "data": {"managedFields": "x"}}),
            json!({"metadata": {"managedFields": entries}}),
            json!({"metadata": {"managedFields": entries, "name": "a"}, "spec": {}}),
            json!({"metadata": {"name": "a", "managedFields": entries}, "spec": {}}),
            json!({"metadata": {"labels": {"a": "\"managedFields\":["}, "managedFields": [], "uid": "u"}}),
            json!({}),
        ];
        for object in rows {
            let text = object.to_string();
            let cut = without_managed_fields(text.as_bytes());
            let mut expected = object.clone();
            if let Some(metadata) = expected.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.shift_remove("managedFields");
            }
            let got: Value = serde_json::from_slice(&cut).unwrap();
            assert_eq!(got, expected, "{text}");
        }
        for broken in ["", "{\"managedFields\":[", "{\"managedFields\":[\"]"] {
            assert_eq!(
                *without_managed_fields(broken.as_bytes()),
                *broken.as_bytes()
            );
        }
    }
}
