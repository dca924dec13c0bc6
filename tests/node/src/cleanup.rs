//! `foil-agent cleanup` removes what the agent of its configuration made, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent_sys::mounts;
use tests_harness::{NetNs, Output, Process, binary, process, unique_name, wait_until};

use crate::node::Node;

/// Another configuration, with folders of its own.
pub(crate) struct Other {
    pub(crate) folder: PathBuf,
    mounts: Vec<PathBuf>,
}

impl Other {
    fn new() -> Self {
        Self::sharing(&[])
    }

    /// With these keys as another one has them.
    pub(crate) fn sharing(keys: &[(&str, &str)]) -> Self {
        let name = unique_name();
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(&folder).expect("a folder");
        let at = folder.display();
        let value = |key: &str, own: String| {
            let shared = keys.iter().find(|(shared, _)| *shared == key);
            shared.map_or(own, |(_, value)| (*value).to_owned())
        };
        let bpffs = value("bpffs", format!("{at}/bpf"));
        let cgroup = value("cgroup", format!("/{name}"));
        let text = format!(
            "node_name = \"n2\"\ncontrol = \"https://127.0.0.1:1\"\nroot = \"{at}/lib\"\n\
             run = \"{at}/run\"\nbpffs = {bpffs:?}\ncgroup = {cgroup:?}\n\
             shim = {shim:?}\nbpf_object = {object:?}\n",
            shim = binary("foil-shim"),
            object = binary("hydrofoil.bpf.o"),
        );
        fs::write(folder.join("agent.toml"), text).expect("configuration");
        let mounts = Vec::new();
        Self { folder, mounts }
    }

    pub(crate) fn command(&self, netns: &NetNs) -> Command {
        let mut command = netns.command(binary("foil-agent"));
        command.arg("--config").arg(self.folder.join("agent.toml"));
        command
    }

    pub(crate) fn cleanup(&self, netns: &NetNs) -> Output {
        process::run(self.command(netns).arg("cleanup"))
    }

    fn mount(&mut self, kind: &str, at: &str) -> PathBuf {
        let path = self.folder.join(at);
        fs::create_dir_all(&path).expect("a folder");
        let mut mount = Command::new("mount");
        process::run(mount.args(["-t", kind, kind]).arg(&path)).success();
        self.mounts.push(path.clone());
        path
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        for path in self.mounts.iter().rev() {
            process::run(Command::new("umount").arg("--lazy").arg(path));
        }
        let removed = fs::remove_dir_all(&self.folder);
        if !std::thread::panicking() {
            removed.expect("remove the test's folder");
        }
    }
}

#[test]
fn another_agent_in_the_network_namespace_is_left_alone() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let ours = ["10.96.0.0/16 dev foil0", "unreachable 10.244.1.0/24"];
    let there = || {
        let routes = node.netns.ip(&["route", "show"]);
        match ours.iter().all(|route| routes.contains(route)) {
            true => Ok(()),
            false => Err(routes),
        }
    };
    wait_until("routes", there);
    let run = node.folder.join("run").display().to_string();
    let other = Other::new();
    let says = |text: &str, words: &[&str]| {
        let all = words.iter().all(|word| text.contains(word));
        assert!(all, "{words:?} in {text}");
    };
    let words = ["another foil-agent runs in this network namespace", &run];

    let out = other.cleanup(&node.netns);
    assert_eq!(out.code, 1, "{}{}", out.stdout, out.stderr);
    says(&format!("{}{}", out.stdout, out.stderr), &words);
    there().expect("all routes");
    // It would take the first one's links for leftovers.
    let log = other.folder.join("agent.log");
    let mut second = Process::spawn("agent", &mut other.command(&node.netns), &log);
    assert_eq!(second.wait(), 1);
    says(&process::tail(&log, 5), &words);
    there().expect("all routes");
    let own = other.folder.join("run");
    assert_eq!(mounts::at(&own).expect("mounts"), None, "no tmpfs is left");

    // The agent is dead, and what it made is still its own.
    node.kill();
    let there = || {
        let routes = node.netns.ip(&["route", "show"]);
        ours.iter().all(|route| routes.contains(route))
    };
    let out = other.cleanup(&node.netns);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    says(
        &format!("{}{}", out.stdout, out.stderr),
        &["left alone", &run],
    );
    assert!(there());
    // A link that another one changed is still known by its pair; then all of it goes.
    let mut own = node.netns.command(binary("foil-agent"));
    own.arg("--config").arg(node.folder.join("agent.toml"));
    let out = process::run(own.arg("cleanup"));
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    assert!(!there());
    assert!(!node.netns.ip(&["link", "show"]).contains("foil0"));
}

#[test]
fn files_and_mounts_of_the_operator_stay() {
    let netns = NetNs::create("cleanup");
    let mut other = Other::new();
    let root = other.mount("tmpfs", "lib");
    let images = other.mount("tmpfs", "lib/images");
    let pins = other.mount("bpf", "bpf");
    fs::write(root.join("theirs"), "kept").expect("a file");
    fs::create_dir_all(root.join("logs/default_a_b")).expect("a folder");
    fs::write(images.join("blob"), "").expect("a file");
    let theirs = pins.join("theirs");
    let path = theirs.display().to_string();
    let mut bpftool = Command::new("bpftool");
    let create = [
        "map", "create", &path, "type", "array", "key", "4", "value", "4",
    ];
    process::run(
        bpftool
            .args(create)
            .args(["entries", "1", "name", "theirs"]),
    )
    .success();
    for _ in 0..2 {
        let out = other.cleanup(&netns);
        assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
        assert_eq!(fs::read_to_string(root.join("theirs")).unwrap(), "kept");
        assert!(theirs.exists(), "another's pin");
        assert!(!root.join("logs").exists() && !images.join("blob").exists());
        assert!(!other.folder.join("run").exists());
        let mounted = |path: &Path| mounts::at(path).expect("mounts").is_some();
        assert!([&root, &images, &pins].iter().all(|path| mounted(path)));
        let said = format!("{}{}", out.stdout, out.stderr);
        assert!(said.contains("left alone: the mount on"), "{said}");
        assert!(said.contains("something is mounted there"), "{said}");
    }
}
