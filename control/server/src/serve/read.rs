//! Get, List, Kinds; and which revision a reader asks for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control_api::selector::{FieldSelector, Selector};
use control_store::{Entry, ListRequest};
use proto::v1;
use serde_json::Value;

use super::{kind_of, namespace_of, sent};
use crate::objects::Objects;
use crate::refusal::Refusal;
use crate::stored;

/// Entries read at once while looking for those that are selected.
const PAGE: usize = 500;

pub(super) async fn get(
    objects: &Objects,
    request: &v1::GetRequest,
) -> Result<v1::Object, Refusal> {
    let kind = kind_of(request.kind.as_ref())?;
    let namespace = namespace_of(kind, &request.namespace);
    version(&request.resource_version)?.reached(objects).await?;
    sent(&objects.get(kind, namespace, &request.name).await?)
}

/// Which state of the store a reader accepts: Kubernetes' "resource versions in
/// API calls".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// The newest; also for "0", "any", as there is no older copy to read from.
    Newest,
    /// This one or a newer one.
    NotOlderThan(u64),
    /// This one.
    Exact(u64),
}

impl Version {
    /// Refuses a revision that the store has not come to.
    async fn reached(self, objects: &Objects) -> Result<(), Refusal> {
        let Version::NotOlderThan(asked) = self else {
            return Ok(());
        };
        let current = objects.store().revision().await?;
        if asked > current {
            return Err(Refusal::TooLarge { asked, current });
        }
        Ok(())
    }
}

/// Reads `resourceVersion` where nothing else is said.
pub(super) fn version(text: &str) -> Result<Version, Refusal> {
    match text {
        "" | "0" => Ok(Version::Newest),
        text => {
            text.parse()
                .map(Version::NotOlderThan)
                .map_err(|_error: std::num::ParseIntError| {
                    Refusal::BadRequest(format!("resourceVersion {text:?} is not a number"))
                })
        }
    }
}

/// Reads `resourceVersion` and `resourceVersionMatch` of a list.
fn list_version(request: &v1::ListRequest) -> Result<Version, Refusal> {
    let bad = |message: &str| Err(Refusal::BadRequest(message.to_owned()));
    let (text, rule) = (&request.resource_version, &request.resource_version_match);
    let asked = version(text)?;
    if !request.continue_token.is_empty() {
        if !rule.is_empty() {
            return bad("resourceVersionMatch is forbidden when continue is provided");
        }
        if asked != Version::Newest {
            return bad("specifying resource version is not allowed when using continue");
        }
    }
    match (rule.as_str(), asked) {
        ("", Version::NotOlderThan(revision)) if request.limit > 0 => Ok(Version::Exact(revision)),
        ("", asked) => Ok(asked),
        ("Exact" | "NotOlderThan", _) if text.is_empty() => {
            bad("resourceVersionMatch is forbidden unless resourceVersion is provided")
        }
        ("NotOlderThan", asked) => Ok(asked),
        ("Exact", Version::NotOlderThan(revision)) => Ok(Version::Exact(revision)),
        ("Exact", Version::Newest | Version::Exact(_)) => {
            bad("resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"")
        }
        (other, _) => Err(Refusal::BadRequest(format!(
            "resourceVersionMatch {other:?}: supported values: \"Exact\", \"NotOlderThan\""
        ))),
    }
}

/// Which objects of a list or a watch are meant.
pub(super) struct Filter {
    labels: Selector,
    fields: FieldSelector,
}

impl Filter {
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Self, Refusal> {
        let bad = |e: control_api::selector::SelectorError| Refusal::BadRequest(e.to_string());
        Ok(Self {
            labels: Selector::parse(labels).map_err(bad)?,
            fields: FieldSelector::parse(fields).map_err(bad)?,
        })
    }

    pub(super) fn selects(&self, object: &Value) -> bool {
        self.labels.matches_object(object) && self.fields.matches(object)
    }

    pub(super) fn selects_entry(&self, entry: &Entry) -> Result<Option<Value>, Refusal> {
        let stored = stored::read(entry)?;
        Ok(self.selects(&stored.value).then_some(stored.value))
    }
}

/// Where the next page begins: the revision of the first one, and a key.
fn continue_token(revision: u64, after: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{revision} {after}"))
}

fn parse_token(token: &str) -> Result<(u64, String), Refusal> {
    let bad = || Refusal::BadRequest("the continue token is not valid".to_owned());
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_error| bad())?;
    let text = String::from_utf8(bytes).map_err(|_error| bad())?;
    let (revision, after) = text.split_once(' ').ok_or_else(bad)?;
    Ok((
        revision
            .parse()
            .map_err(|_error: std::num::ParseIntError| bad())?,
        after.to_owned(),
    ))
}

pub(super) async fn list(
    objects: &Objects,
    request: &v1::ListRequest,
) -> Result<v1::ListResponse, Refusal> {
    let kind = kind_of(request.kind.as_ref())?;
    let filter = Filter::parse(&request.label_selector, &request.field_selector)?;
    let limit = match request.limit {
        0 => usize::MAX,
        limit => usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let namespace = Some(request.namespace.as_str()).filter(|n| !n.is_empty());
    let mut page = ListRequest {
        limit: PAGE,
        ..ListRequest::all(kind.prefix(namespace))
    };
    let version = list_version(request)?;
    version.reached(objects).await?;
    if let Version::Exact(revision) = version {
        page.revision = Some(revision);
    }
    if !request.continue_token.is_empty() {
        let (revision, after) = parse_token(&request.continue_token)?;
        if !after.starts_with(&page.prefix) {
            let message = "the continue token is of another list".to_owned();
            return Err(Refusal::BadRequest(message));
        }
        page = ListRequest {
            revision: Some(revision),
            after: Some(after),
            ..page
        };
    }
    let mut response = v1::ListResponse::default();
    loop {
        let listing = objects.list(page.clone()).await?;
        response.resource_version = listing.revision.to_string();
        for (at, entry) in listing.entries.iter().enumerate() {
            if let Some(value) = filter.selects_entry(entry)? {
                response.items.push(super::encode(&value)?);
            }
            let more = at + 1 < listing.entries.len() || listing.next.is_some();
            if response.items.len() >= limit && more {
                response.continue_token = continue_token(listing.revision, &entry.key);
                return Ok(response);
            }
        }
        let Some(next) = listing.next else {
            return Ok(response);
        };
        page = ListRequest {
            after: Some(next),
            revision: Some(listing.revision),
            ..page
        };
    }
}

pub(super) fn kinds() -> v1::KindsResponse {
    let info = |kind: &&control_api::Kind| v1::KindInfo {
        kind: Some(v1::KindRef {
            group: kind.group.to_owned(),
            version: kind.version.to_owned(),
            kind: kind.kind.to_owned(),
        }),
        plural: kind.plural.to_owned(),
        singular: kind.singular.to_owned(),
        short_names: kind.short_names.iter().map(|n| (*n).to_owned()).collect(),
        namespaced: kind.namespaced,
    };
    v1::KindsResponse {
        kinds: control_api::kinds().iter().map(info).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_versions_mean_what_kubernetes_documents() {
        let ask = |version: &str, rule: &str, limit: u32, continue_token: &str| {
            list_version(&v1::ListRequest {
                resource_version: version.to_owned(),
                resource_version_match: rule.to_owned(),
                limit,
                continue_token: continue_token.to_owned(),
                ..v1::ListRequest::default()
            })
            .ok()
        };
        let rows = [
            (("", "", 0, ""), Some(Version::Newest)),
            (("0", "", 0, ""), Some(Version::Newest)),
            (("7", "", 0, ""), Some(Version::NotOlderThan(7))),
            (("", "", 5, ""), Some(Version::Newest)),
            (("0", "", 5, ""), Some(Version::Newest)),
            (("7", "", 5, ""), Some(Version::Exact(7))),
            (("7", "Exact", 0, ""), Some(Version::Exact(7))),
            (("7", "NotOlderThan", 5, ""), Some(Version::NotOlderThan(7))),
            (("0", "NotOlderThan", 0, ""), Some(Version::Newest)),
            (("0", "Exact", 0, ""), None),
            (("", "Exact", 0, ""), None),
            (("", "NotOlderThan", 0, ""), None),
            (("7", "Newer", 0, ""), None),
            (("", "Newer", 0, ""), None),
            (("x", "", 0, ""), None),
            (("-1", "", 0, ""), None),
            (("", "", 5, "token"), Some(Version::Newest)),
            (("0", "", 5, "token"), Some(Version::Newest)),
            (("7", "", 5, "token"), None),
            (("7", "Exact", 5, "token"), None),
        ];
        for ((version, rule, limit, token), expected) in rows {
            let got = ask(version, rule, limit, token);
            assert_eq!(got, expected, "{version:?} {rule:?} {limit} {token:?}");
        }
    }

    #[test]
    fn tokens_of_others_are_refused() {
        let token = continue_token(7, "pods/default/a b");
        assert_eq!(
            parse_token(&token).unwrap(),
            (7, "pods/default/a b".to_owned())
        );
        for bad in [
            "",
            "!",
            "abc",
            &URL_SAFE_NO_PAD.encode("x y"),
            &URL_SAFE_NO_PAD.encode([255]),
        ] {
            assert!(parse_token(bad).is_err(), "{bad:?}");
        }
    }
}
