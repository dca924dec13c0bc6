//! `cargo xtask kernels`: tiers of tests in small machines with Debian's kernels, where cgroup
//! version 2 is alone.
//!
//! The datapath tier and, of the node tier, what depends on control groups. Passed means: the
//! guest said DONE, left by the exit device, and its kernel did not complain.

use crate::build::{self, Profile, SELECTION};
use crate::initramfs::Initramfs;
use crate::machine::{self, Kernel};
use crate::modules::Modules;
use crate::packages::program;
use crate::programs::{self, Program};
use crate::setup::{self, For};
use crate::steps::{Kind, Steps};
use anyhow::{Context as _, bail};
use clap::ValueEnum;
use std::fs;
use std::path::Path;

#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Kernel of Debian, by version: 6.12; all that are supported by default
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<String>,
    /// Tier; both by default
    #[arg(long = "tier", value_enum)]
    tiers: Vec<Tier>,
    /// Tests whose name contains one of these
    filters: Vec<String>,
}

impl Options {
    /// All kernels and tiers, and tests by a part of their name.
    pub(crate) fn filtered(filter: Option<&str>) -> Self {
        Self {
            filters: filter.into_iter().map(str::to_owned).collect(),
            ..Self::default()
        }
    }
}

/// A tier that runs in a small machine.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// The BPF programs
    Datapath,
    /// What groups, containers, their rights and volumes need
    Node,
}

impl Tier {
    fn folder(self) -> &'static str {
        match self {
            Self::Datapath => "tests/datapath",
            Self::Node => "tests/node",
        }
    }

    /// Tests that run if none is named; all if this is empty.
    fn filters(self) -> &'static [&'static str] {
        match self {
            Self::Datapath => &[],
            Self::Node => &[
                "cgroup::",
                "container::",
                "exec::",
                "security::",
                "volume::",
            ],
        }
    }
}

/// A kernel that is tested by default.
struct Tested {
    version: &'static str,
    /// What it has not: the data plane refuses it by these names, and only that is tested.
    lacks: Option<&'static str>,
}

/// Debian 12, its backports, the kernel that we develop on, and the newest one. The table of the
/// verifier's counts, `tests/verify.txt`, has a column for each that is supported.
const KERNELS: [Tested; 4] = [
    Tested {
        version: "6.1",
        lacks: Some("tcx links (6.6)"),
    },
    Tested {
        version: "6.12",
        lacks: None,
    },
    Tested {
        version: "6.18",
        lacks: None,
    },
    Tested {
        version: "7.3",
        lacks: None,
    },
];

/// The test of the message about a kernel that lacks something.
const REFUSAL: &str = "kernel::";
/// Modules that tests need, where the kernel does not have them built in.
const MODULES: [&str; 8] = [
    "overlay",
    "veth",
    "bridge",
    "nf_tables",
    "nft_compat",
    "nf_conntrack",
    "xt_conntrack",
    "sch_ingress",
];
/// Programs of this machine that tests start.
const PROGRAMS: [&str; 4] = ["bpftool", "ip", "iptables", "nsenter"];
/// Extensions that iptables loads.
const XTABLES: [&str; 2] = ["libxt_conntrack.so", "libxt_standard.so"];
const APPLETS: [&str; 6] = ["cat", "cp", "md5sum", "sh", "sleep", "true"];
/// Files of the workspace that tests read.
const TABLES: [&str; 2] = ["tests/abi.txt", "tests/verify.txt"];

/// Builds and runs them; true if all passed.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<bool> {
    if let Some(why) = machine::missing() {
        bail!("{why}");
    }
    let mut steps = Steps::default();
    let tools = setup::run(root, For::Test, &mut steps)?;
    let bin = build::with(root, &tools, Profile::Dev, &mut steps)?;
    // Both tiers are libraries.
    let selection = [&SELECTION[..], &["--lib"]].concat();
    let compiled = programs::compile(root, &selection, &mut steps)?;
    let (passed, failed) = boot_all(root, &bin, &compiled, options, &mut steps)?;
    steps.print();
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// Runs what was built, a machine for each kernel and tier; how many passed and failed.
pub(crate) fn boot_all(
    root: &Path,
    bin: &Path,
    compiled: &[Program],
    options: &Options,
    steps: &mut Steps,
) -> anyhow::Result<(u32, u32)> {
    let versions = match options.kernels.as_slice() {
        [] => KERNELS.map(|one| one.version.to_owned()).to_vec(),
        named => named.to_vec(),
    };
    let kernels = steps.time("kernels", Kind::Tools, || machine::prepare(root, &versions))?;
    let (mut passed, mut failed) = (0, 0);
    for kernel in kernels {
        let known = KERNELS.iter().find(|one| one.version == kernel.version);
        let lacks = known.and_then(|one| one.lacks);
        for &tier in Tier::value_variants() {
            let chosen = options.tiers.is_empty() || options.tiers.contains(&tier);
            if !chosen || (lacks.is_some() && tier != Tier::Datapath) {
                continue;
            }
            let program = compiled.iter().find(|p| p.is_library_of(tier.folder()));
            let program =
                program.with_context(|| format!("{} has no test program", tier.folder()))?;
            let filters: Vec<&str> = match (lacks, options.filters.as_slice()) {
                (Some(_), _) => vec![REFUSAL],
                (None, []) => tier.filters().to_vec(),
                (None, named) => named.iter().map(String::as_str).collect(),
            };
            let title = format!("{} on Linux {}", tier.folder(), kernel.version);
            println!("\n== {title}");
            let files = guest(root, bin, program, &kernel, &filters, lacks)?;
            let done = steps.time(&format!("Linux {}", kernel.version), Kind::Tests, || {
                boot(root, &kernel, &files)
            })?;
            println!("== {title}: {}", if done { "passed" } else { "FAILED" });
            if done {
                passed += 1;
            } else {
                failed += 1;
            }
        }
    }
    Ok((passed, failed))
}

fn boot(root: &Path, kernel: &Kernel, files: &Initramfs) -> anyhow::Result<bool> {
    let machine = machine::folder(root);
    let archive = machine.join("initramfs.cpio");
    fs::write(&archive, files.archive()).context("write the initramfs")?;
    let passed = machine::boot(&machine, kernel, &archive);
    fs::remove_file(&archive).context("remove the initramfs")?;
    passed
}

/// The files of a guest.
fn guest(
    root: &Path,
    bin: &Path,
    tests: &Program,
    kernel: &Kernel,
    filters: &[&str],
    lacks: Option<&str>,
) -> anyhow::Result<Initramfs> {
    let mut files = Initramfs::new();
    files.program("init", &bin.join("guest-init"))?;
    files.program("opt/foil/tests", tests.path())?;
    for name in ["foil-agent", "foil-shim"] {
        files.program(&format!("opt/foil/{name}"), &bin.join(name))?;
    }
    files.file("opt/foil/hydrofoil.bpf.o", &bin.join("hydrofoil.bpf.o"))?;
    for name in TABLES {
        files.file(&format!("opt/workspace/{name}"), &root.join(name))?;
    }
    files.file("bin/busybox", Path::new("/bin/busybox"))?;
    for applet in APPLETS {
        files.link(&format!("bin/{applet}"), "busybox");
    }
    for name in PROGRAMS {
        let path = program(name).with_context(|| format!("find {name}"))?;
        files.program(&format!("usr/bin/{name}"), &path)?;
    }
    let libraries = Path::new("/usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    for name in XTABLES {
        let path = libraries.join("xtables").join(name);
        if path.exists() {
            files.file(&path.to_string_lossy()[1..], &path)?;
        }
    }
    let modules = Modules::find(&kernel.modules)?.with_needed(&MODULES)?;
    for (number, (name, bytes)) in modules.into_iter().enumerate() {
        files.bytes(&format!("opt/modules/{number:03}-{name}.ko"), 0o644, bytes);
    }
    let text = |text: &str| text.as_bytes().to_vec();
    files.bytes("etc/passwd", 0o644, text("root:x:0:0::/root:/bin/sh\n"));
    files.bytes("etc/group", 0o644, text("root:x:0:\n"));
    files.bytes("etc/hostname", 0o644, text("guest\n"));
    files.bytes("etc/hosts", 0o644, text("127.0.0.1 localhost\n"));
    let arguments = [&["--test-threads=2"], filters].concat().join("\n");
    files.bytes("etc/arguments", 0o644, text(&arguments));
    let mut environment = "HYDROFOIL_WORKSPACE=/opt/workspace\n".to_owned();
    if let Some(lacks) = lacks {
        environment.push_str(&format!("HYDROFOIL_LACKS={lacks}\n"));
    }
    files.bytes("etc/environment", 0o644, text(&environment));
    Ok(files)
}
