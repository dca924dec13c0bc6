//! Small machines: QEMU without KVM, which machines that run tests often lack, and Debian's
//! kernels. Both are unpacked below `target/tools/machine`, and not installed.
//!
//! Called by `kernels`.

use crate::archive::Archive;
use crate::command;
use crate::packages::program;
use anyhow::{Context as _, bail};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// QEMU 7.2 of Debian 12 itself corrupts the guest's flags now and then.
const QEMU_SUITES: [&str; 2] = ["bookworm", "bookworm-backports"];
/// Where kernels are looked for.
const KERNEL_SUITES: [&str; 5] = [
    "bookworm",
    "bookworm-backports",
    "trixie",
    "trixie-backports",
    "sid",
];
/// The flavour of Debian's kernels without drivers for hardware.
const FLAVOUR: &str = "-cloud-amd64";
/// Of QEMU, when the guest writes 0x10 to the exit device.
const PASSED: i32 = 33;
/// Longer than all tests of a tier take without KVM on a busy machine, seconds.
const PATIENCE: &str = "1800";

/// Why there can be no small machine here.
pub(crate) fn missing() -> Option<&'static str> {
    if std::env::consts::ARCH != "x86_64" {
        return Some("small machines are made on x86_64 only");
    }
    let is_debian = program("apt-get").is_some() && program("dpkg").is_some();
    (!is_debian).then_some("small machines are made of Debian packages, and there is no apt-get")
}

/// A kernel that was unpacked.
pub(crate) struct Kernel {
    /// `6.12`.
    pub(crate) version: String,
    pub(crate) image: PathBuf,
    /// `/lib/modules/RELEASE` of it.
    pub(crate) modules: PathBuf,
}

/// Where everything of this file is.
pub(crate) fn folder(root: &Path) -> PathBuf {
    root.join("target/tools/machine")
}

/// Downloads QEMU and these kernels (`6.12`), unless they are there.
pub(crate) fn prepare(root: &Path, versions: &[String]) -> anyhow::Result<Vec<Kernel>> {
    let machine = folder(root);
    let qemu = machine.join("qemu");
    if !is_complete(&qemu) {
        eprintln!("Unpacking QEMU into {} (once).", qemu.display());
        let archive = Archive::open(&machine.join("apt"), &QEMU_SUITES)?;
        archive.unpack(&archive.with_dependencies("qemu-system-x86")?, &qemu)?;
        archive.close()?;
        complete(&qemu)?;
    }
    let mut archive = None;
    for version in versions {
        let folder = machine.join(format!("linux-{version}"));
        if is_complete(&folder) {
            continue;
        }
        let archive = match &archive {
            Some(archive) => archive,
            None => archive.insert(Archive::open(&machine.join("apt"), &KERNEL_SUITES)?),
        };
        let names = archive.names("linux-image-")?;
        let Some(package) = newest(&names, version) else {
            bail!(
                "Debian has no kernel {version}; it has {}",
                versions_of(&names).join(" ")
            );
        };
        eprintln!("Unpacking {package} into {} (once).", folder.display());
        // From 7.0 on the image and the modules are packages of their own.
        let mut packages: Vec<String> = archive
            .depends(package)?
            .into_iter()
            .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"))
            .collect();
        packages.push(package.to_owned());
        archive.unpack(&packages, &folder)?;
        complete(&folder)?;
    }
    if let Some(archive) = archive {
        archive.close()?;
    }
    versions
        .iter()
        .map(|version| kernel(&machine.join(format!("linux-{version}")), version))
        .collect()
}

fn is_complete(folder: &Path) -> bool {
    folder.join("complete").exists()
}

fn complete(folder: &Path) -> anyhow::Result<()> {
    fs::write(folder.join("complete"), "").context("mark what was unpacked as complete")
}

/// `6.12.95` of `linux-image-6.12.95+deb12-cloud-amd64`, if it is of our flavour.
fn release_of(package: &str) -> Option<&str> {
    let rest = package.strip_prefix("linux-image-")?;
    let rest = rest.strip_suffix(FLAVOUR)?;
    rest.starts_with(|c: char| c.is_ascii_digit())
        .then_some(rest)
}

/// The numbers of a release, in the order in which releases are compared.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// The newest package of a version, which is the first two numbers of a release.
fn newest<'a>(names: &'a [String], version: &str) -> Option<&'a str> {
    let of = |name: &&String| {
        release_of(name).is_some_and(|release| numbers(release).starts_with(&numbers(version)))
    };
    let newest = names
        .iter()
        .filter(of)
        .max_by_key(|name| release_of(name).map(numbers));
    newest.map(String::as_str)
}

/// All versions among some packages.
fn versions_of(names: &[String]) -> Vec<String> {
    let releases = names.iter().filter_map(|name| release_of(name));
    let mut versions: Vec<Vec<u64>> = releases
        .map(|release| numbers(release).into_iter().take(2).collect())
        .collect();
    versions.sort();
    versions.dedup();
    let text = |version: Vec<u64>| {
        let numbers: Vec<String> = version.iter().map(u64::to_string).collect();
        numbers.join(".")
    };
    versions.into_iter().map(text).collect()
}

/// Finds the image and the modules of a kernel.
fn kernel(folder: &Path, version: &str) -> anyhow::Result<Kernel> {
    for parent in ["usr/lib/modules", "lib/modules"] {
        let Ok(mut entries) = fs::read_dir(folder.join(parent)) else {
            continue;
        };
        let Some(Ok(modules)) = entries.next() else {
            continue;
        };
        let boot = format!("vmlinuz-{}", modules.file_name().to_string_lossy());
        let modules = modules.path();
        let images = [folder.join("boot").join(boot), modules.join("vmlinuz")];
        if let Some(image) = images.into_iter().find(|image| image.exists()) {
            return Ok(Kernel {
                version: version.to_owned(),
                image,
                modules,
            });
        }
    }
    bail!("no kernel in {}", folder.display())
}

/// Runs a machine to its end, and passes its console on; true if it passed.
pub(crate) fn boot(machine: &Path, kernel: &Kernel, archive: &Path) -> anyhow::Result<bool> {
    let usr = machine.join("qemu/usr");
    let libraries = format!(
        "{}:{}",
        usr.join("lib/x86_64-linux-gnu").display(),
        machine.join("qemu/lib/x86_64-linux-gnu").display()
    );
    let mut qemu = Command::new("timeout");
    qemu.arg(PATIENCE).arg(usr.join("bin/qemu-system-x86_64"));
    for folder in ["share/qemu", "share/seabios"] {
        qemu.arg("-L").arg(usr.join(folder));
    }
    let fixed = "-accel tcg,thread=multi -cpu max -machine q35 -m 3072 -smp 1 -nographic -no-reboot \
                 -nodefaults -serial stdio -monitor none -device isa-debug-exit,iobase=0xf4,iosize=0x04";
    qemu.args(fixed.split_whitespace());
    qemu.arg("-kernel").arg(&kernel.image);
    qemu.arg("-initrd").arg(archive);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1"]);
    qemu.env("LD_LIBRARY_PATH", libraries)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    eprintln!("$ {}", command::line_of(&qemu));
    let mut guest = qemu.spawn().context("start QEMU")?;
    let output = guest.stdout.take().context("QEMU's output")?;
    let mut lines = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("read the guest's console")?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        println!("{line}");
        lines.push(line);
    }
    let status = guest.wait().context("wait for QEMU")?.code();
    Ok(verdict(status, &lines))
}

/// A guest that panics ends QEMU with 0, and QEMU itself ends with 1.
fn verdict(status: Option<i32>, lines: &[String]) -> bool {
    let complaint = lines.iter().find(|line| {
        ["BUG:", "Oops", "Call Trace"]
            .iter()
            .any(|word| line.contains(word))
    });
    if let Some(line) = complaint {
        println!("the guest's kernel complains: {line}");
    }
    status == Some(PASSED) && complaint.is_none() && lines.iter().any(|line| line == "DONE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_run_passes() {
        let lines = |text: &[&str]| {
            text.iter()
                .map(|line| (*line).to_owned())
                .collect::<Vec<_>>()
        };
        // (status of QEMU, what the guest said, passed)
        let rows: [(Option<i32>, &[&str], bool); 6] = [
            (Some(33), &["test a ... ok", "DONE"], true),
            (Some(33), &["test a ... ok"], false),
            (Some(35), &["DONE"], false),
            (Some(0), &["DONE"], false),
            (None, &["DONE"], false),
            (
                Some(33),
                &["[ 1.0] BUG: scheduling while atomic", "DONE"],
                false,
            ),
        ];
        for (status, said, passed) in rows {
            assert_eq!(verdict(status, &lines(said)), passed, "{status:?} {said:?}");
        }
    }

    #[test]
    fn the_newest_package_of_a_version() {
        let names = [
            "linux-image-6.1.0-47-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.12.95+deb12-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.110+deb13-amd64",
            "linux-image-6.12.120+deb13-cloud-amd64-unsigned",
            "linux-image-cloud-amd64",
        ]
        .map(str::to_owned);
        // (version, package)
        let rows = [
            ("6.1", Some("linux-image-6.1.0-50-cloud-amd64")),
            ("6.12", Some("linux-image-6.12.107+deb13-cloud-amd64")),
            ("6.12.95", Some("linux-image-6.12.95+deb12-cloud-amd64")),
            ("6.18", None),
        ];
        for (version, package) in rows {
            assert_eq!(newest(&names, version), package, "{version}");
        }
        assert_eq!(versions_of(&names), ["6.1", "6.12"]);
    }
}
