//! Events: what happened, to what, and when last.

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::{Printer, narrow, wide};
use crate::output::age;

pub(crate) const PRINTER: Printer = Printer {
    columns: &[
        narrow("LAST SEEN"),
        narrow("TYPE"),
        narrow("REASON"),
        narrow("OBJECT"),
        wide("SUBOBJECT"),
        wide("SOURCE"),
        narrow("MESSAGE"),
        wide("FIRST SEEN"),
        wide("COUNT"),
        wide("NAME"),
    ],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Result<Vec<String>, serde_json::Error> {
    let event = Event::deserialize(object)?;
    Ok(vec![
        age::since(last_seen(&event).as_ref(), now),
        event.type_.clone().unwrap_or_default(),
        event.reason.clone().unwrap_or_default(),
        about(&event),
        event.involved_object.field_path.clone().unwrap_or_default(),
        source(&event),
        event
            .message
            .as_deref()
            .unwrap_or_default()
            .trim()
            .to_string(),
        age::since(first_seen(&event).as_ref(), now),
        count(&event).to_string(),
        event.metadata.name.unwrap_or_default(),
    ])
}

/// "pod/busybox"
fn about(event: &Event) -> String {
    let object = &event.involved_object;
    format!(
        "{}/{}",
        object.kind.as_deref().unwrap_or_default().to_lowercase(),
        object.name.as_deref().unwrap_or_default()
    )
}

/// "foil-agent, node-1"
pub(crate) fn source(event: &Event) -> String {
    let source = event.source.clone().unwrap_or_default();
    let component = source
        .component
        .or(event.reporting_component.clone())
        .unwrap_or_default();
    let parts = [component, source.host.unwrap_or_default()];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}

/// When it happened last. Events come in two dialects, with and without a series.
pub(crate) fn last_seen(event: &Event) -> Option<Time> {
    let of_series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    of_series
        .map(|time| Time(time.0))
        .or_else(|| event.last_timestamp.clone())
        .or_else(|| first_seen(event))
}

/// For the order of events: when it happened last as finely as the event says, then its
/// revision. `lastTimestamp` has whole seconds, `eventTime` is that of the first time.
pub(crate) fn order(event: &Event) -> (Option<Timestamp>, u64) {
    let last = last_seen(event).map(|time| time.0);
    let series = event.series.as_ref();
    let fine = [
        series.and_then(|series| series.last_observed_time.as_ref()),
        event.event_time.as_ref(),
    ];
    let same_second = |time: &Timestamp| Some(time.as_second()) == last.map(Timestamp::as_second);
    let mut fine = fine.into_iter().flatten().map(|time| time.0);
    let revision = event.metadata.resource_version.as_deref();
    (
        fine.find(same_second).or(last),
        revision.and_then(|text| text.parse().ok()).unwrap_or(0),
    )
}

/// When it happened first.
pub(crate) fn first_seen(event: &Event) -> Option<Time> {
    event
        .first_timestamp
        .clone()
        .or_else(|| event.event_time.as_ref().map(|time| Time(time.0)))
        .or_else(|| event.metadata.creation_timestamp.clone())
}

/// How often it happened.
pub(crate) fn count(event: &Event) -> i32 {
    event
        .series
        .as_ref()
        .and_then(|series| series.count)
        .or(event.count)
        .unwrap_or(1)
        .max(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rows::line;
    use super::*;

    #[test]
    fn rows() {
        for (object, want) in [
            (
                json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "busybox", "fieldPath": "spec.containers{busybox}"},
                    "type": "Warning", "reason": "BackOff", "message": "Back-off restarting\n", "count": 4,
                    "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:09:30Z", "source": {"component": "foil-agent", "host": "n1"}}),
                "30s|Warning|BackOff|pod/busybox|spec.containers{busybox}|foil-agent, n1|Back-off restarting|10m|4|e",
            ),
            (
                json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Node", "name": "n1"}, "type": "Normal", "reason": "Joined",
                    "eventTime": "2026-01-01T00:09:00.000000Z", "reportingComponent": "foil-control"}),
                "60s|Normal|Joined|node/n1||foil-control||60s|1|e",
            ),
        ] {
            assert_eq!(line(&PRINTER, &object), want);
        }
    }
}
