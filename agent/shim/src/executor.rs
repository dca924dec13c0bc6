//! The last steps inside a container's process, up to execve: libcontainer's
//! own executor. Runs in the container, in a process forked from the worker.
//!
//! The filter is loaded here because libcontainer would compile it anew for each
//! container, and not load one for further processes at all.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::Uid;
use proto::v1::ShimError;
use proto::v1::shim_error::Kind;

use crate::capability::CapabilitySet;
use crate::legacy::{self, View};
use crate::report;
use crate::seccomp::Filter;

/// An error that is the command's fault, in the words that Kubernetes' users know.
fn command_error(reason: impl std::fmt::Display) -> ShimError {
    ShimError {
        kind: Kind::Command as i32,
        message: format!("unable to start container process: {reason}"),
    }
}

/// An error of the kernel or our own.
fn runtime_error(what: &str, reason: impl std::fmt::Display) -> ShimError {
    ShimError {
        kind: Kind::Runtime as i32,
        message: format!("{what}: {reason}"),
    }
}

/// What the container's process does before its program runs.
#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) filter: Option<Filter>,
    pub(crate) capabilities: CapabilitySet,
    /// Closed by a successful execve; else the reason is written to it.
    pub(crate) report: RawFd,
    /// Size of the terminal, if it has one and somebody looks at it.
    pub(crate) window: Option<libc::winsize>,
    /// To mount the container's version 1 groups.
    pub(crate) groups: Option<View>,
}

impl Executor for Launch {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.prepare(spec).map_err(|failure| {
            self.tell(&failure);
            ExecutorValidationError::ArgValidationError(failure.message)
        })
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let Err(failure) = self.run(spec);
        self.tell(&failure);
        Err(ExecutorError::Other(failure.message))
    }
}

impl Launch {
    fn tell(&self, failure: &ShimError) {
        // SAFETY: the descriptor was inherited for this and is closed only by execve.
        let report = unsafe { BorrowedFd::borrow_raw(self.report) };
        report::write(report, failure);
    }

    /// In the container's namespaces by now, and still capable.
    fn prepare(&self, spec: &Spec) -> Result<(), ShimError> {
        if let Some(view) = self.groups {
            legacy::mount_view(view).map_err(|e| runtime_error("mount cgroups", e))?;
        }
        own_streams(spec).map_err(|e| runtime_error("give the standard streams", e))?;
        let (args, path) = command(spec);
        let name = args.first().ok_or_else(|| command_error("no command"))?;
        find(name, path).map(drop).map_err(command_error)
    }

    fn run(&self, spec: &Spec) -> Result<std::convert::Infallible, ShimError> {
        let (args, path) = command(spec);
        let name = args.first().ok_or_else(|| command_error("no command"))?;
        // Looked up before privileges go: the answer must not differ from validate's.
        let program = find(name, path).map_err(command_error)?;
        let invalid = |e| command_error(format!("exec {name:?}: {e}"));
        let program = CString::new(program.into_os_string().into_encoded_bytes());
        let program = program.map_err(invalid)?;
        let args: Vec<CString> = args
            .iter()
            .map(|a| CString::new(a.as_bytes()))
            .collect::<Result<_, _>>()
            .map_err(invalid)?;
        fresh_signals().map_err(|e| runtime_error("reset signals", e))?;
        if let Some(window) = self.window {
            set_window(window).map_err(|e| runtime_error("size the terminal", e))?;
        }
        if let Some(filter) = &self.filter {
            filter
                .load()
                .map_err(|e| runtime_error("load seccomp filter", e))?;
        }
        self.capabilities
            .keep_only()
            .map_err(|e| runtime_error("drop capabilities", e))?;
        let Err(e) = nix::unistd::execv(&program, &args);
        Err(command_error(format!("exec {name}: {}", sentence(e))))
    }
}

/// Gives pipes and terminal to the user, as runc does: programs open them by name
/// (/dev/stdout), which asks for permission anew. /dev/null, which may be the node's, keeps
/// its owner.
fn own_streams(spec: &Spec) -> nix::Result<()> {
    let user = spec.process().as_ref().map(|p| p.user().uid());
    let Some(uid) = user.filter(|uid| *uid != 0) else {
        return Ok(());
    };
    let null = nix::sys::stat::stat("/dev/null").ok().map(|s| s.st_rdev);
    for stream in 0..=2 {
        // SAFETY: the container's process has its standard streams open, and nothing here
        // closes them.
        let stream = unsafe { BorrowedFd::borrow_raw(stream) };
        let found = nix::sys::stat::fstat(stream)?;
        let is_device = found.st_mode & libc::S_IFMT == libc::S_IFCHR;
        if is_device && null.is_none_or(|null| null == found.st_rdev) {
            continue;
        }
        nix::unistd::fchown(stream, Some(Uid::from_raw(uid)), None)?;
    }
    Ok(())
}

/// The shim blocks signals and ignores SIGPIPE, and was itself started with who knows
/// what ignored; all that would survive execve.
fn fresh_signals() -> nix::Result<()> {
    /// The kernel's struct sigaction: handler SIG_DFL, no flags, no restorer, empty mask.
    const DEFAULT: [u64; 4] = [0; 4];
    const MASK_SIZE: usize = 8;
    let none = std::ptr::null_mut::<u64>();
    for signal in 1..=64 {
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
            continue;
        }
        // By the system call: the library keeps two signals to itself.
        // SAFETY: the kernel reads one struct; none of our handlers is involved.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                none,
                MASK_SIZE,
            )
        })?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Sizes the terminal, before the program looks.
fn set_window(window: libc::winsize) -> nix::Result<()> {
    // SAFETY: the kernel reads one winsize.
    Errno::result(unsafe { libc::ioctl(0, libc::TIOCSWINSZ, &window) }).map(drop)
}

/// argv, and PATH's value.
fn command(spec: &Spec) -> (&[String], &str) {
    let process = spec.process().as_ref();
    let args = process
        .and_then(|p| p.args().as_deref())
        .unwrap_or_default();
    let path = process
        .and_then(|p| p.env().as_ref())
        .and_then(|env| env.iter().find_map(|e| e.strip_prefix("PATH=")))
        .unwrap_or_default();
    (args, path)
}

/// The program's file, as exec.LookPath of Go finds it; the error in its words.
fn find(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Err(format!("exec: {name:?}: permission denied"))
            }
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
                Err(format!("exec: {name:?}: is a directory"))
            }
            Err(e) => {
                let reason = Errno::from_raw(e.raw_os_error().unwrap_or_default());
                Err(format!("exec: {name:?}: stat {name}: {}", sentence(reason)))
            }
        };
    }
    path.split(':')
        .map(|folder| Path::new(if folder.is_empty() { "." } else { folder }).join(name))
        .find(|candidate| !name.is_empty() && executable(candidate).is_ok())
        .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

fn executable(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

/// The C library's words in lower case, as Go prints them.
fn sentence(error: Errno) -> String {
    error.desc().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(name: &str, path: &str) -> String {
        find(name, path).unwrap_err()
    }

    #[test]
    fn programs_are_found_or_missed_in_gos_words() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::write(at("plain"), "").unwrap();
        fs::write(at("run"), "").unwrap();
        fs::set_permissions(at("run"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(at("folder")).unwrap();
        let path = format!("/nonexistent:{}", folder.path().display());

        assert_eq!(find("run", &path).unwrap(), folder.path().join("run"));
        assert_eq!(find(&at("run"), "").unwrap(), folder.path().join("run"));
        for missing in ["absent", "plain", "folder", ""] {
            assert_eq!(
                error(missing, &path),
                format!("exec: {missing:?}: executable file not found in $PATH")
            );
        }
        let plain = at("plain");
        assert_eq!(
            error(&plain, &path),
            format!("exec: {plain:?}: permission denied")
        );
        let absent = at("absent");
        assert_eq!(
            error(&absent, &path),
            format!("exec: {absent:?}: stat {absent}: no such file or directory")
        );
    }
}
