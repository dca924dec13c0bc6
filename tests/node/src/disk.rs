//! A full disk: the agent starts on it, and ends the pod that fills it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use proto::v1::change::Change;
use tests_harness::{process, wait_until};

use crate::node::{Node, pod, ready, stopped};

/// Detached when dropped, with what is mounted below.
struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.display());
        }
    }
}

impl Disk {
    /// Puts the folder on a small file system, with what is in it.
    fn below(folder: &Path) -> Self {
        let before = folder.with_extension("before");
        fs::rename(folder, &before).expect("rename");
        fs::create_dir(folder).expect("folder");
        let (none, options) = (MsFlags::empty(), Some("size=32m"));
        mount(Some("foil"), folder, Some("tmpfs"), none, options).expect("tmpfs");
        let disk = Self(folder.to_owned());
        let mut copy = std::process::Command::new("cp");
        let copied = process::run(copy.arg("-a").arg(before.join(".")).arg(folder));
        assert_eq!(copied.code, 0, "{}", copied.stderr);
        fs::remove_dir_all(before).expect("remove the first folder");
        disk
    }

    fn free(&self) -> u64 {
        let found = statvfs(&self.0).expect("statvfs");
        found.blocks_available() * found.fragment_size()
    }
}

#[test]
fn an_agent_starts_on_a_full_disk_and_ends_the_pod_that_fills_it() {
    let mut node = Node::new();
    let disk = Disk::below(&node.folder.join("lib"));
    node.start();
    node.push_config();
    let script = "dd if=/dev/zero of=/ballast bs=64k || true; while :; do sleep 0.1; done";
    let spec = pod("fills", 5, script);
    node.control.push(vec![Change::Pod(spec.clone())]);
    node.control.status("fills", ready);
    wait_until("a full disk", || match disk.free() {
        0..4096 => Ok(()),
        free => Err(format!("{free} bytes are free")),
    });
    node.kill();

    node.start();
    let hello = node.control.hello(2);
    let conditions = hello.status.expect("a status").conditions;
    let pressure = conditions.iter().find(|c| c.r#type == "DiskPressure");
    assert_eq!(
        pressure.map(|c| c.status.as_str()),
        Some("True"),
        "{conditions:#?}"
    );
    node.control.push(vec![stopped(spec, 0)]);
    node.control.gone("fills");
    node.control.push(vec![Change::PodRemoved("fills".into())]);
    wait_until("space", || match disk.free() {
        0..4_000_000 => Err(format!("{} bytes are free", disk.free())),
        _ => Ok(()),
    });
    // The same agent goes on.
    let after = pod("after", 6, "while :; do sleep 0.1; done");
    node.control.push(vec![Change::Pod(after.clone())]);
    node.control.status("after", ready);
    node.control.push(vec![stopped(after, 0)]);
    node.control.gone("after");
    node.control.push(vec![Change::PodRemoved("after".into())]);
    node.kill();
}
