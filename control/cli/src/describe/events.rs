//! Events: the end of every description.

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;

use super::text::Text;
use crate::output::age;
use crate::printer::event;

pub(crate) fn describe(text: &mut Text, events: &[Event], now: Timestamp) {
    if events.is_empty() {
        return text.pair(0, "Events", crate::printer::NONE);
    }
    text.section(0, "Events");
    let mut rows = vec![
        ["Type", "Reason", "Age", "From", "Message"]
            .map(String::from)
            .to_vec(),
        ["----", "------", "----", "----", "-------"]
            .map(String::from)
            .to_vec(),
    ];
    for event in events {
        let last = age::since(event::last_seen(event).as_ref(), now);
        let count = event::count(event);
        let age = if count > 1 {
            format!(
                "{last} (x{count} over {})",
                age::since(event::first_seen(event).as_ref(), now)
            )
        } else {
            last
        };
        let message = event
            .message
            .as_deref()
            .unwrap_or_default()
            .trim()
            .replace('\n', " ");
        rows.push(vec![
            event.type_.clone().unwrap_or_default(),
            event.reason.clone().unwrap_or_default(),
            age,
            event::source(event)
                .split(',')
                .next()
                .unwrap_or_default()
                .to_string(),
            message,
        ]);
    }
    text.table(1, rows);
}
