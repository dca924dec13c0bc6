//! `cargo xtask kernels`: the node tier in a small machine with a Debian kernel, where
//! cgroup version 2 is alone.
//!
//! QEMU without KVM, which machines that run tests often lack. QEMU and kernel are Debian
//! packages that are unpacked below `target/tools` and not installed; apt's own lists and
//! sources are not touched. Passed means: the guest said DONE, left by the exit device, and
//! its kernel did not complain.

use crate::build::{self, Profile, SELECTION};
use crate::command;
use crate::initramfs::Initramfs;
use crate::packages::program;
use crate::programs::{self, Program};
use crate::setup::{self, For};
use crate::steps::Steps;
use anyhow::{Context as _, bail};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Tests whose name contains one of these; what groups, containers, their rights and
    /// volumes need by default
    filters: Vec<String>,
}

/// What differs between versions of control groups.
const DEFAULT_FILTERS: [&str; 5] = [
    "cgroup::",
    "container::",
    "exec::",
    "security::",
    "volume::",
];
/// QEMU 7.2 of Debian 12 itself corrupts the guest's flags now and then.
const SUITE: &str = "bookworm-backports";
const PACKAGES: [&str; 2] = ["qemu-system-x86", "linux-image-cloud-amd64"];
/// Modules of the kernel that a node needs.
const MODULES: [&str; 2] = ["fs/overlayfs/overlay", "drivers/net/veth"];
/// Programs of this machine that tests start.
const PROGRAMS: [&str; 2] = ["ip", "nsenter"];
const APPLETS: [&str; 6] = ["cat", "cp", "md5sum", "sh", "sleep", "true"];
/// Of QEMU, when the guest writes 0x10 to the exit device.
const PASSED: i32 = 33;
/// Longer than all tests take without KVM on a busy machine, seconds.
const PATIENCE: &str = "900";

/// Why there can be no small machine here.
pub(crate) fn missing() -> Option<&'static str> {
    if std::env::consts::ARCH != "x86_64" {
        return Some("small machines are made on x86_64 only");
    }
    let is_debian = program("apt-get").is_some() && program("dpkg").is_some();
    (!is_debian).then_some("small machines are made of Debian packages, and there is no apt-get")
}

/// Builds and runs them; true if all passed.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<bool> {
    if let Some(why) = missing() {
        bail!("{why}");
    }
    let mut steps = Steps::default();
    let tools = setup::run(root, For::Test, &mut steps)?;
    let bin = build::with(root, &tools, Profile::Dev, &mut steps)?;
    let compiled = programs::compile(root, &SELECTION, &mut steps)?;
    boot_with(root, &bin, &compiled, &options.filters)
}

/// Runs what was built; true if all passed.
pub(crate) fn boot_with(
    root: &Path,
    bin: &Path,
    compiled: &[Program],
    filters: &[String],
) -> anyhow::Result<bool> {
    let machine = root.join("target/tools/machine");
    unpack(&machine)?;
    let tests = compiled.iter().find(|p| p.is_library_of("tests/node"));
    let tests = tests.context("tests/node has no test program")?;
    let (kernel, modules) = kernel(&machine)?;

    let mut files = Initramfs::new();
    files.program("init", &bin.join("guest-init"))?;
    files.program("opt/foil/tests", tests.path())?;
    for name in ["foil-agent", "foil-shim"] {
        files.program(&format!("opt/foil/{name}"), &bin.join(name))?;
    }
    files.file("opt/foil/hydrofoil.bpf.o", &bin.join("hydrofoil.bpf.o"))?;
    files.file("bin/busybox", Path::new("/bin/busybox"))?;
    for applet in APPLETS {
        files.link(&format!("bin/{applet}"), "busybox");
    }
    for name in PROGRAMS {
        let path = program(name).with_context(|| format!("find {name}"))?;
        files.program(&format!("usr/bin/{name}"), &path)?;
    }
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        let packed = modules.join(format!("kernel/{module}.ko.xz"));
        let mut unpack = Command::new("xz");
        let out = unpack
            .arg("-dc")
            .arg(&packed)
            .output()
            .context("start xz")?;
        if !out.status.success() {
            bail!("xz -dc {}: {}", packed.display(), out.status);
        }
        files.bytes(&format!("opt/modules/{name}.ko"), 0o644, out.stdout);
    }
    let text = |text: &str| text.as_bytes().to_vec();
    files.bytes("etc/passwd", 0o644, text("root:x:0:0::/root:/bin/sh\n"));
    files.bytes("etc/group", 0o644, text("root:x:0:\n"));
    files.bytes("etc/hosts", 0o644, text("127.0.0.1 localhost\n"));
    let mut arguments = vec!["--test-threads=2"];
    match filters {
        [] => arguments.extend(DEFAULT_FILTERS),
        filters => arguments.extend(filters.iter().map(String::as_str)),
    }
    files.bytes("etc/arguments", 0o644, text(&arguments.join("\n")));
    let archive = machine.join("initramfs.cpio");
    fs::write(&archive, files.archive()).context("write the initramfs")?;
    let passed = boot(&machine, &kernel, &archive);
    fs::remove_file(&archive).context("remove the initramfs")?;
    passed
}

/// Downloads and unpacks QEMU and the kernel, once.
fn unpack(machine: &Path) -> anyhow::Result<()> {
    let complete = machine.join("complete");
    if complete.exists() {
        return Ok(());
    }
    eprintln!(
        "Unpacking {} from {SUITE} into target/tools/machine (once).",
        PACKAGES.join(" and ")
    );
    let apt = machine.join("apt");
    let packages = apt.join("packages");
    for folder in [
        apt.join("lists/partial"),
        apt.join("cache/archives/partial"),
        packages.clone(),
    ] {
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    let source = |suite| format!("deb {signed} http://deb.debian.org/debian {suite} main\n");
    let sources = apt.join("sources.list");
    let text = format!("{}{}", source("bookworm"), source(SUITE));
    fs::write(&sources, text).context("write the private list of sources")?;
    let get = |arguments: &[&str]| {
        let mut get = Command::new("apt-get");
        for (key, path) in [
            ("Dir::State::lists", apt.join("lists")),
            ("Dir::Cache", apt.join("cache")),
            ("Dir::Etc::sourcelist", sources.clone()),
            ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
        ] {
            get.arg("-o").arg(format!("{key}={}", path.display()));
        }
        get.args(["-q", "-t", SUITE])
            .args(arguments)
            .current_dir(&packages);
        get
    };
    command::run(&mut get(&["update"]))?;
    let mut plan = vec!["install", "--simulate", "--no-install-recommends"];
    plan.extend(PACKAGES);
    let plan = command::read(&mut get(&plan))?;
    let names = plan
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    let mut download = vec!["download"];
    download.extend(names);
    command::run(&mut get(&download))?;
    let root = machine.join("root");
    for package in fs::read_dir(&packages).context("list the packages")? {
        let package = package.context("list the packages")?.path();
        command::run_quietly(Command::new("dpkg").arg("-x").arg(&package).arg(&root))?;
    }
    fs::remove_dir_all(&apt).context("remove the packages")?;
    fs::write(&complete, "").context("mark the machine as complete")
}

/// The kernel's image, and its modules.
fn kernel(machine: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let boot = machine.join("root/boot");
    for entry in fs::read_dir(&boot).context("list the kernels")? {
        let path = entry.context("list the kernels")?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            let modules = machine.join("root/lib/modules").join(release);
            let usr = machine.join("root/usr/lib/modules").join(release);
            return Ok((path, if usr.exists() { usr } else { modules }));
        }
    }
    bail!("no kernel in {}", boot.display())
}

fn boot(machine: &Path, kernel: &Path, archive: &Path) -> anyhow::Result<bool> {
    let usr = machine.join("root/usr");
    let libraries = format!(
        "{}:{}",
        usr.join("lib/x86_64-linux-gnu").display(),
        machine.join("root/lib/x86_64-linux-gnu").display()
    );
    let mut qemu = Command::new("timeout");
    qemu.arg(PATIENCE).arg(usr.join("bin/qemu-system-x86_64"));
    for folder in ["share/qemu", "share/seabios"] {
        qemu.arg("-L").arg(usr.join(folder));
    }
    let fixed = "-accel tcg,thread=multi -cpu max -machine q35 -m 3072 -smp 1 -nographic -no-reboot \
                 -nodefaults -serial stdio -monitor none -device isa-debug-exit,iobase=0xf4,iosize=0x04";
    qemu.args(fixed.split_whitespace());
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(archive);
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
}
