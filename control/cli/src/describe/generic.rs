//! Any kind: the object as YAML.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::text::Text;
use super::{Described, Describer};

pub(crate) const DESCRIBER: Describer = Describer {
    related: None,
    text: describe,
};

fn describe(text: &mut Text, object: &Value, _: &[Value], _: Timestamp) -> Described {
    let mut object = object.clone();
    crate::output::hide_owners(&mut object);
    let yaml = crate::yaml::print(&crate::output::presentable(&object));
    for line in yaml.lines() {
        text.line(0, line);
    }
    Ok(())
}
