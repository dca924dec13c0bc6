//! How objects of each kind are shown, in one table: the columns of `get`, the text of
//! `describe`, and what else that text needs.
//!
//! Columns are in `printer/`, texts in `describe/`. A kind without a line is printed by name
//! and age, and described as YAML.

use crate::describe::{self, Describer};
use crate::kinds::Kind;
use crate::printer::{self, Printer};

/// How one kind is shown.
pub(crate) struct View {
    /// "" for core objects.
    group: &'static str,
    kind: &'static str,
    pub(crate) printer: &'static Printer,
    pub(crate) describer: Describer,
}

const fn view(
    group: &'static str,
    kind: &'static str,
    printer: &'static Printer,
    describer: Describer,
) -> View {
    View {
        group,
        kind,
        printer,
        describer,
    }
}

static VIEWS: [View; 10] = [
    view("", "Pod", &printer::pod::PRINTER, describe::pod::DESCRIBER),
    view(
        "",
        "Service",
        &printer::service::PRINTER,
        describe::service::DESCRIBER,
    ),
    view(
        "",
        "ConfigMap",
        &printer::configmap::PRINTER,
        describe::keys::CONFIG_MAP,
    ),
    view(
        "",
        "Secret",
        &printer::secret::PRINTER,
        describe::keys::SECRET,
    ),
    view(
        "",
        "Namespace",
        &printer::namespace::PRINTER,
        describe::generic::DESCRIBER,
    ),
    view(
        "",
        "Node",
        &printer::node::PRINTER,
        describe::node::DESCRIBER,
    ),
    view(
        "",
        "Event",
        &printer::event::PRINTER,
        describe::generic::DESCRIBER,
    ),
    view(
        "apps",
        "Deployment",
        &printer::deployment::PRINTER,
        describe::deployment::DESCRIBER,
    ),
    view(
        "apps",
        "ReplicaSet",
        &printer::replicaset::PRINTER,
        describe::replicaset::DESCRIBER,
    ),
    view(
        "discovery.k8s.io",
        "EndpointSlice",
        &printer::endpointslice::PRINTER,
        describe::generic::DESCRIBER,
    ),
];

static GENERIC: View = view(
    "",
    "",
    &printer::generic::PRINTER,
    describe::generic::DESCRIBER,
);

/// The view of a kind.
pub(crate) fn of(kind: &Kind) -> &'static View {
    let found = VIEWS
        .iter()
        .find(|view| view.group == kind.group && view.kind == kind.kind);
    found.unwrap_or(&GENERIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn every_kind_of_the_control_plane_has_a_view() {
        for kind in kinds::known() {
            assert_eq!(of(&kind).kind, kind.kind, "{}", kind.resource());
        }
        assert_eq!(VIEWS.len(), kinds::known().len());
    }
}
