//! The shim as a process: started, detached from us, and ended when it does not
//! answer.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use proto::socket::short_path;

use super::{SOCKET, ShimError};
use crate::process::Pidfd;
use crate::state::{self, Layout};

/// For a shim's program to be ready to serve.
const SPAWN: Duration = Duration::from_secs(20);

/// Starts the shim of a pod, in a session of its own and not as our child:
/// it survives the caller's death. Blocks until it serves (some milliseconds).
/// The socket of a dead shim is replaced; do not call while one lives.
pub fn spawn(layout: &Layout, program: &Path, uid: &str) -> Result<(), ShimError> {
    let folder = layout.shim(uid);
    let state_folder = folder.join("state");
    state::create_folder(&state_folder)?;
    let prepare = |source| ShimError::Prepare {
        uid: uid.into(),
        source,
    };
    let log = folder.join("log");
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log)
        .map_err(prepare)?;
    // The listener is made here, so that a connection succeeds as soon as we return.
    let listener = listen(&folder).map_err(prepare)?;
    let started = Command::new(program)
        .arg("--pod")
        .arg(uid)
        .arg("--state")
        .arg(&state_folder)
        .arg("--seccomp")
        .arg(layout.seccomp_cache())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::from(output.try_clone().map_err(prepare)?))
        .stderr(Stdio::from(output))
        .spawn();
    let failed = |source| ShimError::Spawn {
        program: program.into(),
        source,
    };
    let status = detached(started.map_err(failed)?, failed)?;
    if !status.success() {
        return Err(ShimError::Ended {
            program: program.into(),
            status,
            log,
        });
    }
    Ok(())
}

/// Waits until the program has detached its own child, and ended.
fn detached(
    mut child: Child,
    failed: impl Fn(io::Error) -> ShimError,
) -> Result<ExitStatus, ShimError> {
    let process = Pidfd::open(child.id()).map_err(|e| failed(e.into()))?;
    let milliseconds = u16::try_from(SPAWN.as_millis()).unwrap_or(u16::MAX);
    let ended = process.wait(milliseconds).map_err(|e| failed(e.into()))?;
    if !ended {
        child.kill().map_err(&failed)?;
    }
    let status = child.wait().map_err(&failed)?;
    if ended {
        Ok(status)
    } else {
        Err(ShimError::Timeout {
            call: "its start",
            seconds: SPAWN.as_secs(),
        })
    }
}

/// Ends the shim of a pod by SIGKILL, one that does not answer among them, and waits
/// for its end; how many processes there were. It is found by its arguments: a pid
/// that was noted earlier may be another process by now.
pub fn kill(layout: &Layout, uid: &str) -> io::Result<usize> {
    let state_folder = layout.shim(uid).join("state");
    let is_shim = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut arguments = line.split(|b| *b == 0).skip(1);
        let wanted = ["--pod", uid, "--state"].map(str::as_bytes);
        wanted.iter().all(|w| arguments.next() == Some(w))
            && arguments.next() == Some(state_folder.as_os_str().as_bytes())
    };
    let mut killed = 0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if !is_shim(pid) {
            continue;
        }
        // Looked at again once it is held: the number may have changed hands before.
        if let Ok(process) = Pidfd::open(pid)
            && is_shim(pid)
        {
            process.signal(libc::SIGKILL)?;
            process.wait(u16::MAX)?;
            killed += 1;
        }
    }
    Ok(killed)
}

fn listen(folder: &Path) -> io::Result<UnixListener> {
    let directory = File::open(folder)?;
    let path = short_path(&directory, SOCKET);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path)
}
