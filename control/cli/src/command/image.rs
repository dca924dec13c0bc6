//! `foil image`: the image store of this node.
//!
//! Works on the store's folder, without agent and control plane. Unpacking and
//! verifying is `agent-sys`' work.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use agent_sys::image::{ImageStore, Reference, rootfs};
use agent_sys::state::Layout;
use serde_json::{Value, json};

use crate::error::{CommandError, RequestError};
use crate::output;
use crate::output::table::Table;

/// Import, list and remove images on this node
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Works on the store of the agent on this machine. An image of the store is not
pulled, unless a pod's imagePullPolicy says so.

Examples:
  docker save foil/app:1 | gzip > app.tar.gz; foil image import app.tar.gz
  foil image import ./oci-layout --name foil/app:1
  foil image list
  foil image rm foil/app:1")]
pub(crate) struct Args {
    /// Data directory of the agent (`root` in its configuration)
    #[arg(
        long,
        global = true,
        env = "FOIL_ROOT",
        default_value = "/var/lib/hydrofoil",
        value_name = "FOLDER"
    )]
    root: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Import an OCI layout (folder or archive) or a docker archive
    Import {
        /// Archive or folder
        path: PathBuf,
        /// Name for the image, if the archive holds one
        #[arg(long)]
        name: Option<String>,
    },
    /// Print the images
    #[command(visible_alias = "ls")]
    List {
        /// Output format: table or json
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        output: String,
        /// Leave out the line of column names
        #[arg(long)]
        no_headers: bool,
    },
    /// Remove image names, and content that no other image needs
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(required = true, value_name = "IMAGE")]
        names: Vec<String>,
    },
}

pub(crate) async fn run(args: Args, out: &mut dyn Write) -> Result<(), CommandError> {
    let layout = Layout::new(&args.root, "/run/hydrofoil");
    let images = layout.images();
    // Images in a folder that no agent uses would never be found again.
    if !images.exists() {
        let message = "there is no image store: --root must be the `root` of a foil-agent that has run on this machine".to_string();
        return Err(RequestError::Field {
            what: images.display().to_string(),
            message,
        }
        .into());
    }
    let store = ImageStore::open(&images)?;
    match args.what {
        What::Import { path, name } => {
            let name = name.as_deref().map(Reference::parse).transpose()?;
            for image in store.import(&path, name.as_ref()).await? {
                writeln!(
                    out,
                    "{} imported as {}",
                    path.display(),
                    image.references.join(", ")
                )?;
            }
            Ok(())
        }
        What::List { output, no_headers } => list(&store, &output, no_headers, out),
        What::Rm { names } => {
            let in_use = in_use(&layout.pods());
            let mut missing = false;
            for name in names {
                let reference = Reference::parse(&name)?;
                if store.remove(&reference, &in_use).await? {
                    writeln!(out, "{reference} removed")?;
                } else {
                    eprintln!("error: image {reference} not found");
                    missing = true;
                }
            }
            if missing {
                Err(CommandError::Reported)
            } else {
                Ok(())
            }
        }
    }
}

fn list(
    store: &ImageStore,
    output: &str,
    no_headers: bool,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let images = store.list()?;
    if output == "json" {
        let rows: Vec<Value> = images
            .iter()
            .map(|image| {
                json!({"references": image.references, "digest": image.digest, "id": image.config_digest,
                    "size": image.size, "layers": image.layers.len()})
            })
            .collect();
        return Ok(writeln!(out, "{}", output::pretty(&Value::Array(rows)))?);
    }
    let mut table = Table::default();
    if !no_headers {
        table.row(
            ["IMAGE", "TAG", "IMAGE ID", "SIZE"]
                .map(String::from)
                .to_vec(),
        );
    }
    for image in &images {
        for reference in &image.references {
            let (name, tag) = split_tag(reference);
            let id = image.config_digest.trim_start_matches("sha256:");
            table.row(vec![
                name.into(),
                tag.into(),
                id.get(..13).unwrap_or(id).into(),
                human_size(image.size),
            ]);
        }
    }
    Ok(table.flush(out)?)
}

/// "docker.io/library/busybox" and "latest"; a digest stays with its mark.
fn split_tag(reference: &str) -> (&str, &str) {
    if let Some((name, _)) = reference.split_once('@') {
        return (name, "<none>");
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        Some(_) | None => (reference, "<none>"),
    }
}

/// Bytes as "4.2MB".
fn human_size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    for (unit, size) in UNITS {
        if bytes >= size {
            let tenths = bytes.saturating_mul(10) / size;
            return format!("{}.{}{unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes}B")
}

/// Digests of the images that containers were made from.
fn in_use(pods: &Path) -> BTreeSet<String> {
    let entries = |folder: PathBuf| {
        std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    entries(pods.to_path_buf())
        .flat_map(|pod| entries(pod.join("containers")))
        .filter_map(|bundle| rootfs::image_of(&bundle))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        for (reference, want) in [
            (
                "docker.io/library/busybox:latest",
                ("docker.io/library/busybox", "latest"),
            ),
            ("10.0.0.1:5000/a", ("10.0.0.1:5000/a", "<none>")),
            ("10.0.0.1:5000/a:1", ("10.0.0.1:5000/a", "1")),
            ("a/b@sha256:00", ("a/b", "<none>")),
        ] {
            assert_eq!(split_tag(reference), want);
        }
        for (bytes, want) in [
            (12, "12B"),
            (4200, "4.2kB"),
            (1_990_000, "1.9MB"),
            (2_000_000_000, "2.0GB"),
        ] {
            assert_eq!(human_size(bytes), want);
        }
    }
}
