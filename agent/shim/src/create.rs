//! Making a container and a process in one: descriptors here, libcontainer in a worker.
//!
//! Called by `request.rs`. What becomes of them is `container.rs` and `session.rs`.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use agent_cgroup::{Group, Setup};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{Pid, pipe2};
use proto::error::chain;
use proto::socket::short_path;
use proto::v1::shim_error::Kind;
use proto::v1::{ShimCreate, ShimExec, ShimResize};

use crate::capability::CapabilitySet;
use crate::executor::{COMMAND_ERROR, Launch};
use crate::legacy::{self, View};
use crate::seccomp::Filter;
use crate::session::winsize;
use crate::spec::{self, Surroundings};
use crate::worker::{Outcome, Worker};
use crate::{device, home};

/// Where things lie; from the command line.
#[derive(Debug)]
pub(crate) struct Folders {
    /// libcontainer's state, a folder per container.
    pub(crate) state: PathBuf,
    /// Compiled seccomp filters.
    pub(crate) seccomp: PathBuf,
}

/// A process that is being made, and our ends of its descriptors.
#[derive(Debug)]
pub(crate) struct Making {
    pub(crate) worker: Worker,
    pub(crate) ends: Ends,
    console: Option<Console>,
}

/// Where the process sends its terminal; gone with this value.
#[derive(Debug)]
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Console {
    fn drop(&mut self) {
        // A stale one is in nobody's way: names are unique in this shim.
        fs::remove_file(&self.path).ok();
    }
}

/// Our ends of a process' descriptors. All non-blocking.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<File>,
    /// Standard output, or the terminal.
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
    /// Ends when the program was executed; else says why not.
    pub(crate) report: Option<File>,
}

impl Making {
    /// Takes the terminal once the worker is done: the process has sent it by then.
    pub(crate) fn finish(mut self) -> io::Result<Ends> {
        if let Some(console) = self.console {
            let (stream, _) = console.listener.accept()?;
            let terminal = File::from(receive(&stream)?);
            non_blocking(&terminal)?;
            self.ends.stdin = Some(terminal.try_clone()?);
            self.ends.stdout = Some(terminal);
        }
        Ok(self.ends)
    }
}

/// Begins a container.
pub(crate) fn container(
    folders: &Folders,
    create: &ShimCreate,
    group: &Group,
) -> io::Result<Making> {
    let console_path = folders.state.join(format!("{}.console", create.id));
    let stdio = Stdio::new(create.tty, create.stdin)?;
    let console = create.tty.then(|| listen(&console_path)).transpose()?;
    let (report, report_end) = pipe()?;
    let mut keep = stdio.theirs.raw();
    keep.push(report_end.as_raw_fd());
    let mut ends = stdio.ours;
    ends.report = Some(report);
    let theirs = stdio.theirs;
    let view = spec::mounts_groups(create, group.hierarchies().setup()).then_some(View {
        read_only: !create.privileged,
    });
    let worker = Worker::start(&keep, || {
        let launch = |filter, capabilities| Launch {
            filter,
            capabilities,
            report: Some(report_end.as_raw_fd()),
            window: None,
            groups: view,
        };
        let path = create.tty.then_some(console_path.as_path());
        outcome(build_container(
            folders, create, group, theirs, path, launch,
        ))
    })?;
    Ok(Making {
        worker,
        ends,
        console,
    })
}

/// Begins a further process in a container. `number` is unique in this shim.
pub(crate) fn process(
    folders: &Folders,
    create: &ShimCreate,
    group: &Group,
    exec: &ShimExec,
    number: u64,
) -> io::Result<Making> {
    let console_path = folders
        .state
        .join(format!("{}.{number}.console", create.id));
    let stdio = Stdio::new(exec.tty, exec.stdin)?;
    let console = exec.tty.then(|| listen(&console_path)).transpose()?;
    let keep = stdio.theirs.raw();
    let theirs = stdio.theirs;
    let worker = Worker::start(&keep, || {
        let path = exec.tty.then_some(console_path.as_path());
        outcome(build_process(
            folders, create, group, exec, number, theirs, path,
        ))
    })?;
    Ok(Making {
        worker,
        ends: stdio.ours,
        console,
    })
}

type Failure = Box<dyn Error>;

fn build_container(
    folders: &Folders,
    create: &ShimCreate,
    group: &Group,
    stdio: TheirEnds,
    console: Option<&Path>,
    launch: impl FnOnce(Option<Filter>, CapabilitySet) -> Launch,
) -> Result<(Pid, Vec<String>), Failure> {
    let surroundings = surroundings(create, group.hierarchies().setup());
    let spec = spec::container(create, &surroundings)?;
    let capabilities = spec::capabilities(create, surroundings.bounding)?;
    let filter = filter(folders, create, capabilities)?;
    let bundle = Path::new(&create.bundle);
    fs::create_dir_all(bundle)?;
    spec.save(bundle.join("config.json"))?;
    let warnings = set_oom_score(create.oom_score_adj).into_iter().collect();
    group.create_new(&create.resources.unwrap_or_default())?;
    if !create.privileged {
        device::limit(group)?;
    }
    if surroundings.setup == Setup::Hybrid {
        enter_legacy(group)?;
    }
    let container = builder(folders, create, stdio, console)?
        .with_executor(launch(filter, capabilities))
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        // A child of the shim, not of this worker.
        .as_sibling(true)
        .build()?;
    let pid = container.pid().ok_or("container without a process")?;
    Ok((Pid::from_raw(pid.as_raw()), warnings))
}

fn build_process(
    folders: &Folders,
    create: &ShimCreate,
    group: &Group,
    exec: &ShimExec,
    number: u64,
    stdio: TheirEnds,
    console: Option<&Path>,
) -> Result<(Pid, Vec<String>), Failure> {
    let surroundings = surroundings(create, group.hierarchies().setup());
    let process = spec::exec(create, exec, &surroundings)?;
    let capabilities = spec::capabilities(create, surroundings.bounding)?;
    let filter = filter(folders, create, capabilities)?;
    let path = folders.state.join(format!("{}.{number}.json", create.id));
    fs::write(&path, serde_json::to_vec(&process)?)?;
    let warnings = set_oom_score(create.oom_score_adj).into_iter().collect();
    if surroundings.setup == Setup::Hybrid {
        enter_legacy(group)?;
    }
    let window = ShimResize {
        columns: exec.columns,
        rows: exec.rows,
    };
    let window = winsize(window).filter(|_| exec.tty);
    let launch = Launch {
        filter,
        capabilities,
        report: None,
        window,
        groups: None,
    };
    let built = builder(folders, create, stdio, console)?
        .with_executor(launch)
        .as_tenant()
        .with_process(Some(&path))
        .with_detach(true)
        .as_sibling(true)
        .build();
    fs::remove_file(&path)?;
    Ok((Pid::from_raw(built?.as_raw()), warnings))
}

/// What libcontainer starts from here is in the container's groups by inheritance.
fn enter_legacy(group: &Group) -> Result<(), Failure> {
    group.join_version_1()?;
    Ok(legacy::show_unified()?)
}

fn builder(
    folders: &Folders,
    create: &ShimCreate,
    stdio: TheirEnds,
    console: Option<&Path>,
) -> Result<ContainerBuilder, Failure> {
    let mut builder = ContainerBuilder::new(create.id.clone(), SyscallType::default())
        .with_root_path(&folders.state)?
        .validate_id()?
        .with_console_socket(console);
    builder.stdin = stdio.stdin;
    builder.stdout = stdio.stdout;
    builder.stderr = stdio.stderr;
    Ok(builder)
}

fn surroundings(create: &ShimCreate, setup: Setup) -> Surroundings {
    let bounding = CapabilitySet::bounding();
    let home = home::of(create.uid, Path::new(&create.rootfs));
    Surroundings {
        bounding,
        setup,
        home,
    }
}

fn filter(
    folders: &Folders,
    create: &ShimCreate,
    capabilities: CapabilitySet,
) -> Result<Option<Filter>, Failure> {
    let wanted = create.seccomp && !create.privileged;
    Ok(wanted
        .then(|| Filter::of(capabilities, &folders.seccomp))
        .transpose()?)
}

/// Inherited by what this worker starts. Raising is always allowed, lowering needs
/// CAP_SYS_RESOURCE: the container then goes without.
fn set_oom_score(wanted: i32) -> Option<String> {
    fs::write("/proc/self/oom_score_adj", wanted.to_string())
        .err()
        .map(|e| format!("oom_score_adj {wanted} was refused ({e}); the node's own is kept"))
}

fn outcome(result: Result<(Pid, Vec<String>), Failure>) -> Outcome {
    match result {
        Ok((pid, warnings)) => Outcome::Made { pid, warnings },
        Err(e) => failure(&chain(&*e)),
    }
}

/// An error's text and kind: what begins with [`COMMAND_ERROR`] is the user's.
pub(crate) fn failure(text: &str) -> Outcome {
    match text.find(COMMAND_ERROR) {
        Some(at) => Outcome::Failed {
            kind: Kind::Command,
            message: text[at..].to_owned(),
        },
        None => Outcome::Failed {
            kind: Kind::Runtime,
            message: text.to_owned(),
        },
    }
}

struct Stdio {
    ours: Ends,
    theirs: TheirEnds,
}

/// The process' own ends; none when it gets a terminal.
struct TheirEnds {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl TheirEnds {
    fn raw(&self) -> Vec<RawFd> {
        let ends = [&self.stdin, &self.stdout, &self.stderr];
        ends.into_iter().flatten().map(AsRawFd::as_raw_fd).collect()
    }
}

impl Stdio {
    fn new(tty: bool, stdin: bool) -> io::Result<Self> {
        if tty {
            let theirs = TheirEnds {
                stdin: None,
                stdout: None,
                stderr: None,
            };
            return Ok(Self {
                ours: Ends::default(),
                theirs,
            });
        }
        let (input, input_end) = if stdin {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            let write = File::from(write);
            non_blocking(&write)?;
            (Some(write), read)
        } else {
            (
                None,
                OpenOptions::new().read(true).open("/dev/null")?.into(),
            )
        };
        let (output, output_end) = pipe()?;
        let (error, error_end) = pipe()?;
        Ok(Self {
            ours: Ends {
                stdin: input,
                stdout: Some(output),
                stderr: Some(error),
                report: None,
            },
            theirs: TheirEnds {
                stdin: Some(input_end),
                stdout: Some(output_end),
                stderr: Some(error_end),
            },
        })
    }
}

/// A pipe whose reading end, ours, does not block.
fn pipe() -> io::Result<(File, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    let read = File::from(read);
    non_blocking(&read)?;
    Ok((read, write))
}

fn non_blocking(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn listen(path: &Path) -> io::Result<Console> {
    let folder = File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(Console {
        listener: UnixListener::bind(short_path(&folder, name))?,
        path: path.into(),
    })
}

fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut text = [0; 64];
    let mut pieces = [IoSliceMut::new(&mut text)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel made it for this message, nobody else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::Error::other("no terminal came"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_command_are_told_apart() {
        let text = format!("runtime: init: {COMMAND_ERROR}exec: \"x\": not found");
        assert_eq!(
            failure(&text),
            Outcome::Failed {
                kind: Kind::Command,
                message: format!("{COMMAND_ERROR}exec: \"x\": not found")
            }
        );
        assert!(matches!(
            failure("mount: no"),
            Outcome::Failed {
                kind: Kind::Runtime,
                ..
            }
        ));
    }
}
