//! Modules of a kernel that was unpacked and not installed, in the order in which they load.
//!
//! `modules.dep` is made by depmod at installation, so the modules themselves are asked: the
//! section `.modinfo` has a line `depends=`. Called by `kernels`.

use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The modules of one kernel, by name.
pub(crate) struct Modules(BTreeMap<String, PathBuf>);

impl Modules {
    /// All modules below `/lib/modules/RELEASE`.
    pub(crate) fn find(folder: &Path) -> anyhow::Result<Self> {
        let mut found = BTreeMap::new();
        let mut folders = vec![folder.join("kernel")];
        while let Some(folder) = folders.pop() {
            let list = || format!("list {}", folder.display());
            for entry in fs::read_dir(&folder).with_context(list)? {
                let path = entry.with_context(list)?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(name) = name_of(&path) {
                    found.insert(name, path);
                }
            }
        }
        Ok(Self(found))
    }

    /// These modules and those that they need, each after those it needs. A module that is not there is
    /// built into the kernel, or the kernel has no such feature.
    pub(crate) fn with_needed(&self, names: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let mut loaded = Vec::new();
        for name in names {
            self.add(name, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn add(&self, name: &str, loaded: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
        let name = name.replace('-', "_");
        let Some(path) = self.0.get(&name) else {
            return Ok(());
        };
        if loaded.iter().any(|(there, _)| *there == name) {
            return Ok(());
        }
        let bytes = unpacked(path)?;
        for needed in needs(&bytes) {
            self.add(&needed, loaded)?;
        }
        loaded.push((name, bytes));
        Ok(())
    }
}

/// `nf_tables` of `nf_tables.ko.xz`.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, ending) = file.split_once(".ko")?;
    ["", ".xz", ".zst"]
        .contains(&ending)
        .then(|| name.replace('-', "_"))
}

fn unpacked(path: &Path) -> anyhow::Result<Vec<u8>> {
    let program = match path.extension().and_then(|ending| ending.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("read {}", path.display())),
    };
    let mut unpack = Command::new(program);
    let out = unpack.arg("-dc").arg(path).output();
    let out = out.with_context(|| format!("start {program}"))?;
    if !out.status.success() {
        bail!("{program} -dc {}: {}", path.display(), out.status);
    }
    Ok(out.stdout)
}

/// Modules that one names as needed: a string `depends=a,b` that ends with a zero byte.
fn needs(bytes: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = bytes.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &bytes[at + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_module_comes_after_what_it_needs() {
        let folder = std::env::temp_dir().join(format!("foil-modules-{}", std::process::id()));
        let kernel = folder.join("kernel/net");
        fs::create_dir_all(&kernel).expect("make a folder");
        for (name, needs) in [("bridge", "stp,llc"), ("stp", "llc"), ("llc", "")] {
            let text = format!("ELF\0license=GPL\0depends={needs}\0name={name}\0");
            fs::write(kernel.join(format!("{name}.ko")), text).expect("write a module");
        }
        let modules = Modules::find(&folder).expect("modules");
        let order = modules.with_needed(&["bridge", "built_in", "stp"]);
        fs::remove_dir_all(&folder).expect("remove the folder");
        let names: Vec<String> = order
            .expect("an order")
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["llc", "stp", "bridge"]);
    }
}
