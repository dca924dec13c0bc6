//! `foil logs`: what containers wrote.
//!
//! Which pod and container is decided here; the bytes come from the pod's node.
//! Several pods or containers are read one after the other, or with `-f` at once.

use std::io::Write;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use proto::v1;

use crate::client::{Client, Selection};
use crate::error::{CommandError, RequestError};
use crate::kinds::{self, Kind};
use crate::session::{Session, list_typed, typed};
use crate::{duration, printer};

/// Says which container is meant when none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Print the logs of containers
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  foil logs busybox
  foil logs -f deploy/web                  one pod of it, and what comes
  foil logs web-5f6d7 -c sidecar
  foil logs --previous web-5f6d7           before its last restart: why did it end?
  foil logs --tail=20 --since=10m busybox
  foil logs -l app=web --prefix            all pods with the label")]
pub(crate) struct Args {
    /// Pod, or KIND/NAME of an object that has pods (deploy/web)
    #[arg(
        value_name = "POD",
        required_unless_present = "selector",
        conflicts_with = "selector"
    )]
    what: Option<String>,
    /// Container of the pod; default: the first one
    #[arg(value_name = "CONTAINER")]
    container_word: Option<String>,
    /// Container of the pod; default: the first one
    #[arg(short, long, value_name = "NAME", conflicts_with = "container_word")]
    container: Option<String>,
    /// Print the logs of all containers of the pod
    #[arg(long, conflicts_with = "container")]
    all_containers: bool,
    /// Continue with new output as it is written
    #[arg(short, long)]
    follow: bool,
    /// Print the log of the previous instance of the container
    #[arg(short, long)]
    previous: bool,
    /// Only logs newer than this duration (5s, 2m, 3h)
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    since: Option<Duration>,
    /// Number of lines from the end; -1: all (default: all, with -l 10)
    #[arg(long, value_name = "LINES", allow_negative_numbers = true)]
    tail: Option<i64>,
    /// Begin each line with its time
    #[arg(long)]
    timestamps: bool,
    /// Begin each line with [pod/NAME/CONTAINER]
    #[arg(long)]
    prefix: bool,
    /// Label selector: a=b,c!=d,e in (f,g),h,!i
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Maximum number of containers to follow at once
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    max_log_requests: usize,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut client = session.connect().await?;
    let namespace = session.namespace(&client);
    let pods = pods(&args, session, &mut client, &namespace).await?;
    let mut sources = Vec::new();
    for pod in &pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        for container in containers(&args, pod, &name)? {
            sources.push((name.clone(), container));
        }
    }
    if args.follow && sources.len() > args.max_log_requests {
        return Err(RequestError::TooManyPods {
            most: args.max_log_requests,
            found: sources.len(),
        }
        .into());
    }
    // As kubectl: the last lines of each pod when several are selected.
    let tail = args
        .tail
        .or_else(|| args.selector.is_some().then_some(10))
        .filter(|lines| *lines >= 0);
    let mut streams = Vec::new();
    // A line must not be torn by one of another container.
    let whole_lines = args.prefix || (args.follow && sources.len() > 1);
    for (pod, container) in sources {
        let request = v1::LogsRequest {
            namespace: namespace.clone(),
            pod: pod.clone(),
            container: container.clone(),
            follow: args.follow,
            previous: args.previous,
            tail_lines: tail,
            since_seconds: args
                .since
                .map(|since| i64::try_from(since.as_secs().max(1)).unwrap_or(i64::MAX)),
            timestamps: args.timestamps,
        };
        let prefix = if args.prefix {
            format!("[pod/{pod}/{container}] ")
        } else {
            String::new()
        };
        let stream = client.logs(request).await?;
        streams.push(Lines {
            stream,
            prefix,
            whole_lines,
            rest: Vec::new(),
        });
    }
    if args.follow && streams.len() > 1 {
        return together(&client, streams, out).await;
    }
    for mut lines in streams {
        while let Some(chunk) = lines
            .stream
            .message()
            .await
            .map_err(|status| client.refused(status))?
        {
            lines.write(&chunk.data, out)?;
            out.flush()?;
        }
        lines.end(out)?;
    }
    Ok(())
}

/// Bytes of one container.
struct Lines {
    stream: tonic::Streaming<v1::LogsChunk>,
    prefix: String,
    whole_lines: bool,
    /// The beginning of a line whose end has not come.
    rest: Vec<u8>,
}

impl Lines {
    fn write(&mut self, data: &[u8], out: &mut dyn Write) -> Result<(), CommandError> {
        if !self.whole_lines {
            return Ok(out.write_all(data)?);
        }
        self.rest.extend_from_slice(data);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(());
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        for line in whole.split_inclusive(|byte| *byte == b'\n') {
            out.write_all(self.prefix.as_bytes())?;
            out.write_all(line)?;
        }
        Ok(())
    }

    /// A last line without a line end.
    fn end(self, out: &mut dyn Write) -> Result<(), CommandError> {
        if !self.rest.is_empty() {
            out.write_all(self.prefix.as_bytes())?;
            out.write_all(&self.rest)?;
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }
}

/// Several at once, line by line as they come.
async fn together(
    client: &Client,
    sources: Vec<Lines>,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut open = futures::stream::FuturesUnordered::new();
    let next = |mut lines: Lines| async move {
        let chunk = lines.stream.message().await;
        (lines, chunk)
    };
    for lines in sources {
        open.push(next(lines));
    }
    while let Some((mut lines, chunk)) = open.next().await {
        match chunk.map_err(|status| client.refused(status))? {
            Some(chunk) => {
                lines.write(&chunk.data, out)?;
                out.flush()?;
                open.push(next(lines));
            }
            None => lines.end(out)?,
        }
    }
    Ok(())
}

async fn pods(
    args: &Args,
    session: &Session,
    client: &mut Client,
    namespace: &str,
) -> Result<Vec<Pod>, CommandError> {
    let Some(word) = &args.what else {
        let labels = args.selector.clone().unwrap_or_default();
        let found = of_labels(client, namespace, &labels).await?;
        if found.is_empty() {
            return Err(RequestError::NoPods {
                what: format!("the labels {labels} in namespace {namespace}"),
            }
            .into());
        }
        return Ok(found);
    };
    Ok(vec![one(session, client, namespace, word).await?])
}

/// The pod that is meant by `NAME`, `pod/NAME`, or `KIND/NAME` of what has pods.
pub(crate) async fn one(
    session: &Session,
    client: &mut Client,
    namespace: &str,
    word: &str,
) -> Result<Pod, CommandError> {
    let pod_kind = kinds::by_word(&kinds::known(), "pods")?;
    if !word.contains('/') {
        return typed(&client.get(&pod_kind, namespace, word).await?);
    }
    let (kind, name) = session.named(client, word).await?;
    let object = client.get(&kind, namespace, &name).await?;
    if kind == pod_kind {
        return typed(&object);
    }
    let labels = selector_of(&kind, &object)?;
    let mut found = of_labels(client, namespace, &labels).await?;
    // The one that most likely has something to say: ready before not, and the youngest of those.
    found.sort_by_key(|pod| {
        let summary = printer::pod::summary(pod);
        let settled = summary.word == "Running" && summary.ready == summary.total;
        (settled, pod.metadata.creation_timestamp.clone())
    });
    let pod = found.pop().ok_or_else(|| RequestError::NoPods {
        what: kind.object(&name),
    })?;
    if !found.is_empty() {
        eprintln!(
            "Found {} pods, using pod/{}",
            found.len() + 1,
            pod.metadata.name.as_deref().unwrap_or_default()
        );
    }
    Ok(pod)
}

fn selector_of(kind: &Kind, object: &serde_json::Value) -> Result<String, CommandError> {
    let no_pods = || CommandError::NotForKind {
        kind: kind.singular.clone(),
        what: "pods",
    };
    let selector = object.pointer("/spec/selector").ok_or_else(no_pods)?;
    if kind.kind == "Service" {
        let pairs = selector.as_object().ok_or_else(no_pods)?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
        return Ok(printer::pairs(
            pairs.iter().map(|(key, value)| (key, text(value))),
            "=",
        ));
    }
    let selector =
        serde_json::from_value(selector.clone()).map_err(|source| CommandError::Shape {
            object: kind.object(control_api::meta::name(object)),
            source,
        })?;
    Ok(printer::selector(&selector))
}

async fn of_labels(
    client: &mut Client,
    namespace: &str,
    labels: &str,
) -> Result<Vec<Pod>, CommandError> {
    let selection = Selection {
        namespace: namespace.into(),
        labels: labels.into(),
        ..Selection::default()
    };
    list_typed(client, "pods", &selection).await
}

/// Which containers of the pod are meant.
fn containers(args: &Args, pod: &Pod, pod_name: &str) -> Result<Vec<String>, CommandError> {
    let all = container_names(pod);
    if args.all_containers {
        return Ok(all);
    }
    let named = args.container.as_ref().or(args.container_word.as_ref());
    Ok(vec![container(pod, pod_name, named.map(String::as_str))?])
}

/// The container that was named, else the one that the pod says, else the first.
pub(crate) fn container(
    pod: &Pod,
    pod_name: &str,
    named: Option<&str>,
) -> Result<String, RequestError> {
    let all = container_names(pod);
    if let Some(named) = named {
        if all.iter().any(|name| name == named) {
            return Ok(named.to_string());
        }
        let (pod, container) = (pod_name.to_string(), named.to_string());
        return Err(RequestError::NoContainer {
            pod,
            container,
            has: all.join(", "),
        });
    }
    let annotation = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(DEFAULT_CONTAINER));
    if let Some(name) = annotation.filter(|name| all.contains(name)) {
        return Ok(name.clone());
    }
    let spec = pod.spec.as_ref();
    let first = spec
        .and_then(|spec| spec.containers.first())
        .map(|container| container.name.clone())
        .unwrap_or_default();
    if all.len() > 1 {
        eprintln!("Defaulted container \"{first}\" out of: {}", all.join(", "));
    }
    Ok(first)
}

/// Main containers first.
fn container_names(pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|container| container.name.clone())
        .collect()
}
