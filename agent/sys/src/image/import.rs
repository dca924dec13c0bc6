//! Images from files: OCI layouts (folder or tar) and docker archives.
//!
//! An archive is unpacked into the store's `tmp/` like a layer (so it cannot
//! write elsewhere either), its blobs are verified into the store, and from
//! there on it is an image like a pulled one.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::blob::BlobWriter;
use super::manifest::{
    self, CONTAINERD_NAME, Descriptor, Document, Index, MAX_DOCUMENT_BYTES, MAX_INDEX_DEPTH,
    Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, REF_NAME,
};
use super::reference::checked_digest;
use super::store::{ImageStore, blocking, choose, sha256, too_deep};
use super::{Image, ImageError, Reference, unpack};
use crate::beneath::{Beneath, Links};

/// An image whose blobs are in the store, without a name yet.
struct Found {
    top: Descriptor,
    names: Vec<String>,
}

/// One image of a docker archive's manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    /// Takes in the images of an OCI layout (folder or tar) or a docker
    /// archive (`docker save`), compressed or not. With `name`, the archive must
    /// hold one image, which gets this name. A layout that knows a tag only
    /// gets its file's name for a repository.
    ///
    /// # Errors
    /// [`ImageError::InvalidArchive`] and others. Nothing half-made is kept.
    pub async fn import(
        &self,
        path: &Path,
        name: Option<&Reference>,
    ) -> Result<Vec<Image>, ImageError> {
        let adding = Arc::new(self.adding().await?);
        let (store, source, name) = (self.clone(), path.to_owned(), name.cloned());
        let found = blocking("import", move || store.take_in(&source, name.as_ref())).await?;
        let mut images = Vec::new();
        for Found { top, names } in found {
            let (_, manifest, config) = self
                .resolve(&top.digest)?
                .ok_or_else(|| invalid(path, format!("{} is not all there", top.digest)))?;
            self.unpack_layers(&manifest, &config, &adding).await?;
            images.push(self.name(&top, &names)?);
        }
        Ok(images)
    }

    fn take_in(&self, path: &Path, name: Option<&Reference>) -> Result<Vec<Found>, ImageError> {
        if path.is_dir() {
            return self.take_in_folder(path, path, name);
        }
        let file = std::fs::File::open(path).map_err(ImageError::io("open", path))?;
        let tmp = self.tmp_path()?;
        std::fs::create_dir(&tmp).map_err(ImageError::io("make", &tmp))?;
        let found = unpack::unpack(file, &tmp, &[])
            .map_err(|error| {
                if error.is_disk_full() {
                    ImageError::DiskFull { path: tmp.clone() }
                } else {
                    invalid(path, error.to_string())
                }
            })
            .and_then(|_| self.take_in_folder(&tmp, path, name));
        self.discard(&tmp)?;
        found
    }

    fn take_in_folder(
        &self,
        dir: &Path,
        path: &Path,
        name: Option<&Reference>,
    ) -> Result<Vec<Found>, ImageError> {
        let files = Beneath::open(dir).map_err(ImageError::io("open", dir))?;
        // Docker's newer archives are layouts too; their manifest.json has the better names.
        let docker = read(&files, "manifest.json", path)?;
        let layout = read(&files, "index.json", path)?;
        let mut found = match (docker, layout) {
            (Some(bytes), _) => self.take_in_docker(&files, &bytes, path)?,
            (None, Some(bytes)) => self.take_in_layout(&files, &bytes, path)?,
            (None, None) => {
                return Err(invalid(
                    path,
                    "no index.json and no manifest.json in it".to_owned(),
                ));
            }
        };
        match (found.as_mut_slice(), name) {
            ([], _) => return Err(invalid(path, "no image in it".to_owned())),
            ([one], Some(name)) => one.names = vec![name.to_string()],
            (several @ [_, _, ..], Some(_)) => {
                return Err(ImageError::SeveralImages {
                    path: path.to_owned(),
                    count: several.len(),
                });
            }
            (_, None) => {}
        }
        if let Some(nameless) = found.iter().find(|image| image.names.is_empty()) {
            return Err(ImageError::NoName {
                path: path.to_owned(),
                digest: nameless.top.digest.to_string(),
            });
        }
        Ok(found)
    }

    fn take_in_layout(
        &self,
        files: &Beneath,
        index: &[u8],
        path: &Path,
    ) -> Result<Vec<Found>, ImageError> {
        let index: Index =
            serde_json::from_slice(index).map_err(|error| invalid(path, error.to_string()))?;
        let mut found: Vec<Found> = Vec::new();
        for entry in &index.manifests {
            let names = layout_name(entry, path)?;
            match found
                .iter_mut()
                .find(|image| image.top.digest == entry.digest)
            {
                Some(image) => image.names.extend(names),
                None => {
                    self.take_in_manifest(files, entry, path)?;
                    let top = Descriptor {
                        platform: None,
                        annotations: None,
                        ..entry.clone()
                    };
                    found.push(Found {
                        top,
                        names: names.into_iter().collect(),
                    });
                }
            }
        }
        Ok(found)
    }

    fn take_in_manifest(
        &self,
        files: &Beneath,
        top: &Descriptor,
        path: &Path,
    ) -> Result<(), ImageError> {
        let mut entry = top.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            self.take_in_blob(files, &entry, path)?;
            let bytes = self.read_blob(&entry.digest)?.unwrap_or_default();
            match manifest::parse_document(&entry.digest, &bytes)? {
                Document::Index(index) => entry = choose(&index, &entry.digest)?.clone(),
                Document::Manifest(manifest) => {
                    for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
                        self.take_in_blob(files, blob, path)?;
                    }
                    return Ok(());
                }
            }
        }
        Err(too_deep(&top.digest))
    }

    fn take_in_blob(
        &self,
        files: &Beneath,
        blob: &Descriptor,
        path: &Path,
    ) -> Result<(), ImageError> {
        let digest = checked_digest(&blob.digest)?;
        if self.has_blob(digest) {
            return Ok(());
        }
        let file = format!("blobs/{}", digest.replace(':', "/"));
        self.copy_in(files, &file, Some((digest, blob.size)), path)
            .map(drop)
    }

    fn take_in_docker(
        &self,
        files: &Beneath,
        manifest: &[u8],
        path: &Path,
    ) -> Result<Vec<Found>, ImageError> {
        let images: Vec<DockerImage> =
            serde_json::from_slice(manifest).map_err(|error| invalid(path, error.to_string()))?;
        let mut found = Vec::new();
        for image in images {
            let config = self.copy_in(files, &image.config, None, path)?;
            let mut layers = Vec::new();
            for layer in &image.layers {
                let mut descriptor = self.copy_in(files, layer, None, path)?;
                // What it is compressed with is seen when it is unpacked.
                descriptor.media_type = OCI_LAYER.to_owned();
                layers.push(descriptor);
            }
            let manifest = Manifest {
                schema_version: 2,
                media_type: OCI_MANIFEST.to_owned(),
                config: Descriptor {
                    media_type: OCI_CONFIG.to_owned(),
                    ..config
                },
                layers,
            };
            let bytes = serde_json::to_vec(&manifest).map_err(|e| invalid(path, e.to_string()))?;
            let digest = sha256(&bytes);
            let size = bytes.len() as u64;
            let mut writer = BlobWriter::create(self)?;
            writer.write(&bytes)?;
            writer.finish(self, Some((&digest, size)))?;
            let names = image.repo_tags.unwrap_or_default();
            found.push(Found {
                top: Descriptor {
                    media_type: OCI_MANIFEST.to_owned(),
                    digest,
                    size,
                    ..Descriptor::default()
                },
                names: names
                    .iter()
                    .map(|name| whole(name))
                    .collect::<Result<_, _>>()?,
            });
        }
        Ok(found)
    }

    /// Copies a file of the archive into the store as a blob.
    fn copy_in(
        &self,
        files: &Beneath,
        file: &str,
        expected: Option<(&str, u64)>,
        path: &Path,
    ) -> Result<Descriptor, ImageError> {
        let missing = |error: std::io::Error| invalid(path, format!("{file}: {error}"));
        let mut from = files
            .read(Path::new(file), Links::Inside)
            .map_err(missing)?;
        let mut writer = BlobWriter::create(self)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match from.read(&mut buffer).map_err(missing)? {
                0 => break,
                count => writer.write(&buffer[..count])?,
            }
        }
        let size = writer.written();
        let digest = writer.finish(self, expected)?;
        Ok(Descriptor {
            digest,
            size,
            ..Descriptor::default()
        })
    }
}

/// The name that a layout gives an image, if any.
fn layout_name(entry: &Descriptor, path: &Path) -> Result<Option<String>, ImageError> {
    if let Some(name) = entry.annotation(CONTAINERD_NAME) {
        return whole(name).map(Some);
    }
    let Some(name) = entry.annotation(REF_NAME) else {
        return Ok(None);
    };
    if name.contains(['/', ':', '@']) {
        return whole(name).map(Some);
    }
    // The specification wants a tag here, and tools write one.
    let stem = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    whole(&format!("{stem}:{name}")).map(Some)
}

fn whole(name: &str) -> Result<String, ImageError> {
    Reference::parse(name).map(|reference| reference.to_string())
}

/// A document of the archive; none if it is not in it.
fn read(files: &Beneath, name: &str, path: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    let file = match files.read(Path::new(name), Links::Inside) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(|error| invalid(path, format!("{name}: {error}")))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| invalid(path, format!("{name}: {error}")))?;
    Ok(Some(bytes))
}

fn invalid(path: &Path, why: String) -> ImageError {
    ImageError::InvalidArchive {
        path: path.to_owned(),
        why,
    }
}
