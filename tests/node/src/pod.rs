//! A pod of busybox containers in folders, namespaces and groups of its own.
//!
//! Called by the tests of this crate and by the container benchmark.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agent_plan::world::ImageFacts;
use agent_plan::{create, simulate};
use agent_sys::cgroup::{Groups, Version};
use agent_sys::netns;
use agent_sys::process::Pidfd;
use agent_sys::shim::{self, Client, ShimError};
use agent_sys::state::Layout;
use proto::v1::shim_container::State;
use proto::v1::{self, ShimContainer, ShimCreate, ShimExec, ShimMount, ShimResources};
use tests_harness::{binary, unique_name, wait_until};
use tokio::runtime::{Builder, Runtime};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Debian's busybox-static.
const BUSYBOX: &str = "/bin/busybox";

/// A running shim with all a pod has. Removed when dropped.
pub struct Pod {
    pub uid: String,
    pub layout: Layout,
    pub groups: Groups,
    pub parent: String,
    folder: PathBuf,
    runtime: Runtime,
    client: Option<Client>,
    pub shim_pid: u32,
}

impl Pod {
    /// A pod without containers.
    pub fn new() -> Self {
        let name = unique_name();
        let folder = PathBuf::from("/tmp").join(&name);
        let layout = Layout::new(folder.join("lib"), folder.join("run"));
        let parent = format!("/{name}");
        // First, so that it is dropped when a later step fails.
        let mut pod = Self {
            uid: "00000000-1111-2222-3333-444444444444".to_owned(),
            groups: Groups::open(&parent).expect("cgroups"),
            runtime: Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime"),
            layout,
            parent,
            folder,
            client: None,
            shim_pid: 0,
        };
        pod.layout.create().expect("folders");
        pod.groups
            .create(&pod.uid, &ShimResources::default())
            .expect("pod's group");
        netns::create(&pod.layout.namespace(&pod.uid), "web-0").expect("pod's namespaces");
        install_busybox(&pod.rootfs());
        shim::spawn(&pod.layout, &binary("foil-shim"), &pod.uid).expect("shim");
        pod.connect();
        pod
    }

    /// A new connection in place of the one before: what an agent that restarts does.
    pub fn connect(&mut self) {
        self.client = Some(self.client());
        self.shim_pid = self.list().1;
    }

    /// A connection beside the pod's own.
    pub fn client(&self) -> Client {
        self.wait(Client::connect(&self.layout, &self.uid))
            .expect("connection")
    }

    /// Waits for an answer, not for ever.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let limited = async { tokio::time::timeout(PATIENCE, future).await };
        self.runtime.block_on(limited).expect("an answer in time")
    }

    fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut Client) -> Result<T, ShimError>,
    ) -> Result<T, ShimError> {
        let mut client = self.client.take().expect("connection");
        let answer = self.wait(call(&mut client));
        self.client = Some(client);
        answer
    }

    /// The folder of everything of this pod.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Root file system of all its containers.
    pub fn rootfs(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    /// The message for a container of this name that Kubernetes' defaults make.
    pub fn message(&self, name: &str, args: &[&str]) -> ShimCreate {
        self.message_for(name, args, |_spec| {})
    }

    /// The same for a container that asks for more: as the agent's plan makes it.
    pub fn message_for(
        &self,
        name: &str,
        args: &[&str],
        ask: impl FnOnce(&mut v1::ContainerSpec),
    ) -> ShimCreate {
        let namespaces = self.layout.namespace(&self.uid);
        let pin = |kind: &str| namespaces.join(kind).display().to_string();
        let mut container = v1::ContainerSpec {
            name: name.into(),
            command: args.iter().map(|a| (*a).to_owned()).collect(),
            ..Default::default()
        };
        ask(&mut container);
        let pod = v1::PodSpec {
            uid: self.uid.clone(),
            hostname: "web-0".into(),
            ..Default::default()
        };
        let settings = simulate::settings();
        let image = ImageFacts::default();
        let planned = create::create(&pod, &container, 0, &image, &settings);
        let mut message = planned.expect("a container that can be asked for");
        create::set_home(&mut message, "/root");
        // The pod has no volumes here: its shared memory is the container's own.
        message.mounts.push(ShimMount {
            source: "shm".into(),
            destination: "/dev/shm".into(),
            r#type: "tmpfs".into(),
            options: ["nosuid", "nodev", "mode=1777", "size=65536k"]
                .map(str::to_owned)
                .into(),
        });
        ShimCreate {
            rootfs: self.rootfs().display().to_string(),
            cgroup: self.group(name),
            net_ns: pin("net"),
            ipc_ns: pin("ipc"),
            uts_ns: pin("uts"),
            resources: None,
            oom_score_adj: 0,
            log_path: self.log_path(name).display().to_string(),
            ..message
        }
    }

    pub fn log_path(&self, name: &str) -> PathBuf {
        self.layout.log("default", "web-0", &self.uid, name, 0)
    }

    pub fn create(&mut self, create: ShimCreate) -> Result<Vec<String>, ShimError> {
        self.call(async move |client| client.create(create).await)
    }

    pub fn start(&mut self, id: &str) -> Result<(), ShimError> {
        self.call(async |client| client.start(id).await)
    }

    pub fn kill(&mut self, id: &str, signal: i32, all: bool) -> Result<(), ShimError> {
        self.call(async |client| client.kill(id, signal, all).await)
    }

    pub fn delete(&mut self, id: &str) -> Result<(), ShimError> {
        self.call(async |client| client.delete(id).await)
    }

    pub fn shutdown(&mut self) -> Result<(), ShimError> {
        self.call(async |client| client.shutdown().await)
    }

    pub fn list(&mut self) -> (Vec<ShimContainer>, u32) {
        self.call(async |client| client.list().await).expect("list")
    }

    /// Creates and starts; the container's id.
    pub fn run(&mut self, create: ShimCreate) -> String {
        let id = create.id.clone();
        self.create(create).expect("create");
        self.start(&id).expect("start");
        id
    }

    /// Waits until a container has ended.
    pub fn exited(&self, id: &str) -> ShimContainer {
        let client = self.client();
        self.wait(async {
            let mut watch = client.watch().await.expect("watch");
            loop {
                let state = watch.next().await.expect("event").expect("a living shim");
                if state.id == id && state.state() == State::Exited {
                    return state;
                }
            }
        })
    }

    /// Creates, starts, waits and deletes; how it ended, and its log without times.
    pub fn finish(&mut self, create: ShimCreate) -> (ShimContainer, Vec<String>) {
        let path = PathBuf::from(&create.log_path);
        let id = self.run(create);
        let end = self.exited(&id);
        self.delete(&id).expect("delete");
        (end, log_lines(&path))
    }

    /// Runs a process in a container to its end: its exit code and output.
    pub fn exec(&self, id: &str, args: &[&str]) -> Result<(i32, String), ShimError> {
        let exec = ShimExec {
            id: id.into(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            ..ShimExec::default()
        };
        let client = self.client();
        self.wait(async {
            let (code, output) = client.exec(exec).await?.collect(1 << 20).await?;
            Ok((code, String::from_utf8(output).expect("text")))
        })
    }

    /// Path of the group of a container's first attempt.
    pub fn group(&self, name: &str) -> String {
        let path = self.groups.container_path(&self.uid, name, 0);
        path.expect("a name").to_string()
    }

    /// A file of a container's group, with version 1's controller that it is of.
    pub fn group_file(&self, controller: &str, name: &str, file: &str) -> String {
        let group = self.group(name);
        let hierarchy = match self.groups.version() {
            Version::V1 => controller,
            Version::V2 => "",
        };
        let path = format!("/sys/fs/cgroup/{hierarchy}{group}/{file}");
        fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{path}: {e}"))
            .trim()
            .to_owned()
    }

    /// Ends and removes everything, and says what stayed.
    fn remove(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut note = |what: &str, result: Result<(), String>| {
            if let Err(e) = result {
                problems.push(format!("{what}: {e}"));
            }
        };
        if let Ok(process) = Pidfd::open(self.shim_pid)
            && is_shim(self.shim_pid, &self.layout)
        {
            note(
                "shim",
                process.signal(libc::SIGKILL).map_err(|e| e.to_string()),
            );
            note(
                "shim",
                process.wait(10_000).map(drop).map_err(|e| e.to_string()),
            );
        }
        note(
            "processes",
            self.groups
                .kill(&self.uid)
                .map(drop)
                .map_err(|e| e.to_string()),
        );
        note(
            "group",
            self.groups.remove(&self.uid).map_err(|e| e.to_string()),
        );
        note(
            "parent group",
            self.groups.remove_parent().map_err(|e| e.to_string()),
        );
        let pins = self.layout.namespace(&self.uid);
        note(
            "namespaces",
            netns::remove(&pins).map_err(|e| e.to_string()),
        );
        note(
            "folder",
            agent_sys::state::remove_folder(&self.folder).map_err(|e| e.to_string()),
        );
        problems
    }
}

impl Default for Pod {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let problems = self.remove();
        if !problems.is_empty() && !std::thread::panicking() {
            panic!("{}", problems.join("; "));
        }
    }
}

/// Whether a pid is still that of this pod's shim.
fn is_shim(pid: u32, layout: &Layout) -> bool {
    let run = layout.run().display().to_string();
    fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&run))
}

/// Asks for a privileged container.
pub fn privileged(container: &mut v1::ContainerSpec) {
    container.security = Some(v1::ContainerSecurity {
        privileged: true,
        ..Default::default()
    });
}

/// A root file system with busybox and nothing else.
pub fn install_busybox(rootfs: &Path) {
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "home/app"] {
        fs::create_dir_all(rootfs.join(folder)).expect("rootfs");
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("tmp");
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    )
    .expect("passwd");
    // Copied by another process: a copy that is open for writing in this one would be
    // inherited by a process that another test forks meanwhile, and could not be executed.
    let copied = Command::new("/bin/cp")
        .arg(BUSYBOX)
        .arg(rootfs.join("bin/busybox"))
        .status();
    assert!(copied.expect("cp").success(), "busybox-static is installed");
    let list = Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .expect("busybox runs");
    for applet in String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|a| *a != "busybox")
    {
        symlink("busybox", rootfs.join("bin").join(applet)).expect("applet");
    }
}

/// Waits until a line of the log ends so: what a program has said may still be in the pipe.
pub fn logged(path: &Path, end: &str) {
    wait_until(&format!("a line that ends with {end:?}"), || {
        let lines = log_lines(path);
        if lines.iter().any(|line| line.ends_with(end)) {
            Ok(())
        } else {
            Err(lines.join("\n"))
        }
    });
}

/// Lines of a log in CRI format without their times: "stdout F text".
pub fn log_lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_terminator('\n')
        .map(|l| l.split_once(' ').map_or(l, |(_, rest)| rest).to_owned())
        .collect()
}
