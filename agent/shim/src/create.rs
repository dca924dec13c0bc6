//! Making a container and a process in one: descriptors here, libcontainer in a worker.
//!
//! Called by `request.rs`. What becomes of them is `container.rs` and `session.rs`.

use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use agent_cgroup::{Group, Setup};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::unistd::Pid;
use proto::error::chain;
use proto::v1::shim_error::Kind;
use proto::v1::{ShimCreate, ShimError, ShimExec, ShimResize};

use crate::capability::CapabilitySet;
use crate::console::{Console, winsize};
use crate::device;
use crate::ends::{Ends, Stdio, TheirEnds, pipe};
use crate::executor::Launch;
use crate::legacy;
use crate::seccomp::Filter;
use crate::spec::{self, Surroundings};
use crate::worker::{Outcome, Worker};

/// Where things lie; from the command line.
#[derive(Debug)]
pub(crate) struct Folders {
    /// libcontainer's state and bundle of each container. On a tmpfs: both hold the
    /// environment.
    pub(crate) state: PathBuf,
    /// Compiled seccomp filters.
    pub(crate) seccomp: PathBuf,
}

impl Folders {
    /// A container's folder, which libcontainer makes.
    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.state.join(id)
    }

    /// Where a container's config.json lies until the container is deleted.
    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.state.join(format!("{id}.bundle"))
    }
}

/// A process that is being made, and our ends of its descriptors.
#[derive(Debug)]
pub(crate) struct Making {
    pub(crate) worker: Worker,
    pub(crate) ends: Ends,
    console: Option<Console>,
}

impl Making {
    /// Takes the terminal once the worker is done: the process has sent it by then.
    pub(crate) fn finish(mut self) -> io::Result<Ends> {
        if let Some(console) = self.console {
            let terminal = console.terminal()?;
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
    let console = folders.state.join(format!("{}.console", create.id));
    let made = Made {
        folders,
        create,
        group,
    };
    begin(create.tty, create.stdin, &console, |theirs| {
        made.container(theirs)
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
    let console = format!("{}.{number}.console", create.id);
    let console = folders.state.join(console);
    let made = Made {
        folders,
        create,
        group,
    };
    begin(exec.tty, exec.stdin, &console, |theirs| {
        made.process(exec, number, theirs)
    })
}

/// What a worker gives to the process that it makes.
struct Theirs<'a> {
    stdio: TheirEnds,
    /// Where to send a terminal, if there is to be one.
    console: Option<&'a Path>,
    /// Where to say why the program was not executed.
    report: RawFd,
}

/// Makes the descriptors and has a worker do the rest.
fn begin(
    tty: bool,
    stdin: bool,
    console: &Path,
    build: impl FnOnce(Theirs<'_>) -> Result<(Pid, Vec<String>), Failure>,
) -> io::Result<Making> {
    let Stdio { mut ours, theirs } = Stdio::new(tty, stdin)?;
    let listener = tty.then(|| Console::listen(console)).transpose()?;
    let (report, report_end) = pipe()?;
    ours.report = Some(report);
    let mut keep = theirs.raw();
    keep.push(report_end.as_raw_fd());
    let worker = Worker::start(&keep, || {
        let theirs = Theirs {
            stdio: theirs,
            console: tty.then_some(console),
            report: report_end.as_raw_fd(),
        };
        match build(theirs) {
            Ok((pid, warnings)) => Outcome::Made { pid, warnings },
            Err(e) => Outcome::Failed(ShimError {
                kind: Kind::Runtime as i32,
                message: chain(&*e),
            }),
        }
    })?;
    Ok(Making {
        worker,
        ends: ours,
        console: listener,
    })
}

type Failure = Box<dyn Error>;

/// What a worker makes from.
struct Made<'a> {
    folders: &'a Folders,
    create: &'a ShimCreate,
    group: &'a Group,
}

impl Made<'_> {
    fn container(&self, theirs: Theirs<'_>) -> Result<(Pid, Vec<String>), Failure> {
        let (create, setup) = (self.create, self.group.hierarchies().setup());
        let surroundings = surroundings(setup);
        let spec = spec::container(create, &surroundings)?;
        let capabilities = spec::capabilities(create, surroundings.bounding)?;
        let launch = Launch {
            filter: filter(self.folders, create, capabilities)?,
            capabilities,
            report: theirs.report,
            window: None,
            groups: spec::group_view(create, setup),
        };
        let bundle = self.folders.bundle(&create.id);
        // Not its parents: a state folder that is gone was on a tmpfs, and would be made
        // anew on the disk below.
        match fs::DirBuilder::new().mode(0o700).create(&bundle) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e.into()),
            Ok(()) | Err(_) => {}
        }
        spec.save(bundle.join("config.json"))?;
        let warnings = set_oom_score(create.oom_score_adj).into_iter().collect();
        self.group
            .create_new(&create.resources.unwrap_or_default())?;
        if !create.all_devices {
            device::limit(self.group)?;
        }
        self.enter_groups(setup)?;
        let container = self
            .builder(theirs.stdio, theirs.console)?
            .with_executor(launch)
            .as_init(bundle)
            .with_systemd(false)
            .with_detach(true)
            // A child of the shim, not of this worker.
            .as_sibling(true)
            .build()?;
        let pid = container.pid().ok_or("container without a process")?;
        Ok((Pid::from_raw(pid.as_raw()), warnings))
    }

    fn process(
        &self,
        exec: &ShimExec,
        number: u64,
        theirs: Theirs<'_>,
    ) -> Result<(Pid, Vec<String>), Failure> {
        let (create, setup) = (self.create, self.group.hierarchies().setup());
        let surroundings = surroundings(setup);
        let process = spec::exec(create, exec, &surroundings)?;
        let capabilities = spec::capabilities(create, surroundings.bounding)?;
        let path = format!("{}.{number}.json", create.id);
        let path = self.folders.state.join(path);
        fs::write(&path, serde_json::to_vec(&process)?)?;
        let warnings = set_oom_score(create.oom_score_adj).into_iter().collect();
        self.enter_groups(setup)?;
        let window = ShimResize {
            columns: exec.columns,
            rows: exec.rows,
        };
        let launch = Launch {
            filter: filter(self.folders, create, capabilities)?,
            capabilities,
            report: theirs.report,
            window: winsize(window).filter(|_| exec.tty),
            groups: None,
        };
        let built = self
            .builder(theirs.stdio, theirs.console)?
            .with_executor(launch)
            .as_tenant()
            .with_process(Some(&path))
            .with_detach(true)
            .as_sibling(true)
            .build();
        fs::remove_file(&path)?;
        Ok((Pid::from_raw(built?.as_raw()), warnings))
    }

    /// What libcontainer starts from here is in the container's groups of version 1 by
    /// inheritance.
    fn enter_groups(&self, setup: Setup) -> Result<(), Failure> {
        if setup == Setup::Hybrid {
            self.group.join_version_1()?;
            legacy::show_unified()?;
        }
        Ok(())
    }

    fn builder(
        &self,
        stdio: TheirEnds,
        console: Option<&Path>,
    ) -> Result<ContainerBuilder, Failure> {
        let id = self.create.id.clone();
        let mut builder = ContainerBuilder::new(id, SyscallType::default())
            .with_root_path(&self.folders.state)?
            .validate_id()?
            .with_console_socket(console);
        builder.stdin = stdio.stdin;
        builder.stdout = stdio.stdout;
        builder.stderr = stdio.stderr;
        Ok(builder)
    }
}

fn surroundings(setup: Setup) -> Surroundings {
    let bounding = CapabilitySet::bounding();
    Surroundings { bounding, setup }
}

fn filter(
    folders: &Folders,
    create: &ShimCreate,
    capabilities: CapabilitySet,
) -> Result<Option<Filter>, Failure> {
    Ok(create
        .seccomp
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
