//! The first process of a small machine in which `cargo xtask kernels` runs this crate's
//! tests: mounts what a node has, runs them, tells the outcome, switches the machine off.
//!
//! Its root becomes a tmpfs: the initial one is not a file system that containers can
//! change their root from. Arguments for the tests are the lines of /etc/arguments, variables
//! those of /etc/environment.
#![expect(unsafe_code, reason = "I/O ports, which have no safe interface")]

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

const BUSYBOX: &str = "/bin/busybox";
/// The second run of this program, in its new root.
const SECOND: &str = "second";
/// Folders of the initial root that go into the new one.
const KEPT: [&str; 7] = ["bin", "etc", "lib", "lib64", "opt", "sbin", "usr"];
/// Port of QEMU's isa-debug-exit device: writing N ends QEMU with status 2N + 1.
const EXIT_PORT: u16 = 0xf4;
/// Files that a test may open: what systemd allows a service.
const OPEN_FILES: u64 = 524_288;

fn main() {
    let is_second = std::env::args().nth(1).as_deref() == Some(SECOND);
    let done = if is_second { run() } else { change_root() };
    let byte = match done {
        Ok(true) => {
            println!("DONE");
            0x10
        }
        Ok(false) => 0x11,
        Err(error) => {
            println!("guest-init: {error}");
            0x12
        }
    };
    match leave(byte) {
        // QEMU takes a moment.
        Ok(()) => std::thread::sleep(std::time::Duration::from_secs(30)),
        Err(error) => println!("guest-init: exit port: {error}"),
    }
    // Where there is no such device: the end of the first process is a panic of the kernel,
    // after which QEMU ends too.
}

/// Ends QEMU. Debian's kernel has no /dev/port.
fn leave(byte: u8) -> nix::Result<()> {
    // SAFETY: an integer; this process then may use ports.
    nix::errno::Errno::result(unsafe { libc::iopl(3) })?;
    // SAFETY: writes a byte to a port that only the exit device answers to; no memory is
    // touched.
    unsafe { std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") byte) };
    Ok(())
}

fn mounted(kind: &str, at: &str, options: &str) -> io::Result<()> {
    fs::create_dir_all(at)?;
    let flags = MsFlags::MS_NOSUID;
    mount(Some("foil"), at, Some(kind), flags, Some(options))
        .map_err(|e| io::Error::other(format!("mount {kind} at {at}: {e}")))
}

fn change_root() -> io::Result<bool> {
    const NEW: &str = "/new";
    mounted("tmpfs", NEW, "mode=755,size=60%")?;
    for folder in KEPT.map(|name| Path::new("/").join(name)) {
        if folder.exists() {
            busybox(&["cp", "-a", &folder.to_string_lossy(), NEW])?;
            // Busybox is needed for the rest.
            if folder != Path::new("/bin") {
                fs::remove_dir_all(&folder)?;
            }
        }
    }
    fs::copy("/init", Path::new(NEW).join("init"))?;
    std::env::set_current_dir(NEW)?;
    let none = None::<&str>;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")?;
    Err(Command::new("/init").arg(SECOND).exec())
}

fn run() -> io::Result<bool> {
    mounted("proc", "/proc", "")?;
    mounted("sysfs", "/sys", "")?;
    mounted("devtmpfs", "/dev", "")?;
    mounted("devpts", "/dev/pts", "newinstance,ptmxmode=666")?;
    mounted("tmpfs", "/dev/shm", "")?;
    mounted("mqueue", "/dev/mqueue", "")?;
    mounted("cgroup2", "/sys/fs/cgroup", "")?;
    mounted("bpf", "/sys/fs/bpf", "")?;
    mounted("tmpfs", "/tmp", "size=50%")?;
    mounted("tmpfs", "/run", "")?;
    let none = None::<&str>;
    let shared = MsFlags::MS_REC | MsFlags::MS_SHARED;
    mount(none, "/", none, shared, none)?;
    if !Path::new("/dev/fd").exists() {
        symlink("/proc/self/fd", "/dev/fd")?;
    }
    // Numbered, each after what it needs.
    let modules = fs::read_dir("/opt/modules")?.collect::<io::Result<Vec<_>>>()?;
    let mut modules: Vec<_> = modules.iter().map(fs::DirEntry::path).collect();
    modules.sort();
    for module in modules {
        busybox(&["insmod", &module.to_string_lossy()])?;
    }
    busybox(&["ip", "link", "set", "lo", "up"])?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    println!(
        "Linux {}, version 2 alone: {}",
        release.trim(),
        controllers.trim()
    );
    let arguments = fs::read_to_string("/etc/arguments")?;
    // The kernel's own default is too low for tests that hold hundreds of connections.
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)?;
    let environment = fs::read_to_string("/etc/environment")?;
    let tests = Command::new("/opt/foil/tests")
        .args(arguments.lines())
        .envs(environment.lines().filter_map(|line| line.split_once('=')))
        .env("HYDROFOIL_BIN", "/opt/foil")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/tmp")
        .spawn()?;
    // Orphans are ours to reap: shims among them, whose end tests wait for.
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if is(pid, &tests) => return Ok(code == 0),
            Ok(WaitStatus::Signaled(pid, ..)) if is(pid, &tests) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn is(pid: Pid, child: &Child) -> bool {
    u32::try_from(pid.as_raw()) == Ok(child.id())
}

fn busybox(arguments: &[&str]) -> io::Result<()> {
    let status = Command::new(BUSYBOX).args(arguments).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("busybox {arguments:?}: {status}")))
    }
}
