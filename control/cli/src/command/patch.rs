//! `foil patch`: part of an object, by a strategic or JSON merge patch, or a JSON patch.

use std::io::Write;

use crate::client::Patch;
use crate::error::{CommandError, RequestError};
use crate::output::{self, Format};
use crate::select::Object;
use crate::session::Session;
use crate::yaml;

/// Update fields of an object
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
The patch is JSON or YAML. What it names is replaced, null removes. With --type=strategic,
the default, items of lists such as containers, env, ports and volumes are merged by their
name or number; with --type=merge lists are replaced as a whole (RFC 7386). With --type=json
the patch is a list of operations (RFC 6902): add, remove, replace, move, copy and test.

Examples:
  foil patch deploy web -p '{\"spec\":{\"paused\":true}}'
  foil patch pod web -p 'spec: {containers: [{name: main, image: \"nginx:1.27\"}]}'
  foil patch svc web -p 'spec: {publishNotReadyAddresses: true}'
  foil patch deploy web --type=json -p '[{\"op\":\"remove\",\"path\":\"/spec/paused\"}]'")]
pub(crate) struct Args {
    /// Object: KIND NAME or KIND/NAME
    #[arg(value_name = "WHAT", required = true)]
    words: Vec<String>,
    /// The patch, as JSON or YAML
    #[arg(short, long, value_name = "PATCH")]
    patch: String,
    /// Type of the patch
    #[arg(long = "type", value_enum, default_value_t = Type::Strategic)]
    kind: Type,
    /// Output format: name, yaml, json or jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

/// How a patch is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Type {
    Strategic,
    Merge,
    Json,
}

pub(crate) async fn run(
    args: Args,
    session: &Session,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let patch = yaml::parse(&args.patch).map_err(|error| RequestError::Field {
        what: "--patch".into(),
        message: error.to_string(),
    })?;
    let (mut client, object) = session.object(&args.words).await?;
    let Object {
        kind,
        namespace,
        name,
    } = object;
    let before = client.get(&kind, &namespace, &name).await?;
    let patch = match args.kind {
        Type::Strategic => Patch::Strategic(&patch),
        Type::Merge => Patch::Merge(&patch),
        Type::Json => Patch::Json(&patch),
    };
    let after = client
        .patch(&kind, &namespace, &name, patch, "foil-patch", false)
        .await?;
    let same =
        control_api::meta::resource_version(&before) == control_api::meta::resource_version(&after);
    let outcome = if same {
        "patched (no change)"
    } else {
        "patched"
    };
    Ok(output::report(
        out,
        args.output.as_ref(),
        &kind,
        &after,
        outcome,
    )?)
}
