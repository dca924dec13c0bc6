//! The device files that a container may make and open: one table, for the controller of
//! version 1 and as a BPF program for version 2.
//!
//! By us and not by libcontainer, whose filter needs libbpf and libelf in each shim.
//! Called by `create.rs` in its worker, before anything is in the group.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use agent_cgroup::Group;
use nix::errno::Errno;

/// A container's devices could not be limited, so it must not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("neither version 1's devices controller nor version 2 is mounted")]
    NoController,
    #[error("write {value:?} to {path}: {source}")]
    Write {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    #[error("open group {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("load the device filter: {0}")]
    Load(Errno),
    #[error("attach the device filter to {path}: {source}")]
    Attach { path: PathBuf, source: Errno },
}

/// As struct bpf_cgroup_dev_ctx has it: BPF_DEVCG_DEV_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block = 1,
    Char = 2,
}

/// BPF_DEVCG_ACC_*.
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MAKE | READ | WRITE;

/// Devices, and what may be done with them.
#[derive(Debug, Clone, Copy)]
struct Rule {
    kind: Kind,
    /// `None`: any.
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

const fn any(kind: Kind, access: u32) -> Rule {
    Rule {
        kind,
        major: None,
        minor: None,
        access,
    }
}

const fn char(major: u32, minor: Option<u32>) -> Rule {
    Rule {
        kind: Kind::Char,
        major: Some(major),
        minor,
        access: ALL,
    }
}

/// What the OCI runtime specification lists as default devices (config-linux.md), with
/// pseudo-terminals; and making device files, without opening them, as runc has it. The
/// container's console is a pseudo-terminal: 5:1 would be the node's.
const RULES: [Rule; 10] = [
    any(Kind::Char, MAKE),
    any(Kind::Block, MAKE),
    // null, zero, full, random, urandom
    char(1, Some(3)),
    char(1, Some(5)),
    char(1, Some(7)),
    char(1, Some(8)),
    char(1, Some(9)),
    // tty, ptmx, pts/*
    char(5, Some(0)),
    char(5, Some(2)),
    char(136, None),
];

/// A line of devices.allow.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Block => 'b',
            Kind::Char => 'c',
        };
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        for (bit, letter) in [(READ, "r"), (WRITE, "w"), (MAKE, "m")] {
            if self.access & bit != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// Refuses a group every device that is not in the table. No process must be in it yet:
/// what is open stays open.
pub(crate) fn limit(group: &Group) -> Result<(), DeviceError> {
    if let Some(folder) = group.version_1_folder("devices") {
        let write = |file, value: String| {
            let path = folder.join(file);
            fs::write(&path, &value).map_err(|source| DeviceError::Write {
                path,
                value,
                source,
            })
        };
        write("devices.deny", "a".to_owned())?;
        for rule in RULES {
            write("devices.allow", rule.to_string())?;
        }
        return Ok(());
    }
    let path = group.version_2_folder().ok_or(DeviceError::NoController)?;
    let folder = File::open(&path).map_err(|source| DeviceError::Open {
        path: path.clone(),
        source,
    })?;
    let filter = load(&program(&RULES)).map_err(DeviceError::Load)?;
    attach(&filter, folder.as_raw_fd()).map_err(|source| DeviceError::Attach { path, source })
}

/// struct bpf_insn of linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half (little endian machines).
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Codes of linux/bpf.h and linux/bpf_common.h: class, operation, operand.
mod code {
    /// BPF_LDX | BPF_MEM | BPF_W
    pub(super) const LOAD_WORD: u8 = 0x61;
    /// BPF_ALU64 | BPF_MOV | BPF_K
    pub(super) const SET: u8 = 0xb7;
    /// BPF_ALU64 | BPF_MOV | BPF_X
    pub(super) const COPY: u8 = 0xbf;
    /// BPF_ALU64 | BPF_AND | BPF_K
    pub(super) const AND: u8 = 0x57;
    /// BPF_ALU64 | BPF_RSH | BPF_K
    pub(super) const SHIFT_RIGHT: u8 = 0x77;
    /// BPF_JMP | BPF_JNE | BPF_K
    pub(super) const JUMP_UNLESS: u8 = 0x55;
    /// BPF_JMP | BPF_EXIT
    pub(super) const EXIT: u8 = 0x95;
}

/// The answer, and scratch before.
const RESULT: u8 = 0;
/// struct bpf_cgroup_dev_ctx.
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

/// Numbers above are all small; a larger one would compare with nothing.
fn number(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(-1)
}

/// Answers 1 when a rule allows all that is asked for, else 0.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut all = vec![
        // u32 access_type: the kind in its lower half, the access in its upper one.
        instruction(code::LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(code::COPY, ACCESS, KIND, 0, 0),
        instruction(code::SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(code::AND, KIND, 0, 0, 0xffff),
        // u32 major, u32 minor
        instruction(code::LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(code::LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        let mut tests = vec![
            instruction(code::JUMP_UNLESS, KIND, 0, 0, rule.kind as i32),
            instruction(code::COPY, RESULT, ACCESS, 0, 0),
            instruction(code::AND, RESULT, 0, 0, number(ALL & !rule.access)),
            instruction(code::JUMP_UNLESS, RESULT, 0, 0, 0),
        ];
        for (register, value) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(value) = value {
                tests.push(instruction(
                    code::JUMP_UNLESS,
                    register,
                    0,
                    0,
                    number(value),
                ));
            }
        }
        tests.push(instruction(code::SET, RESULT, 0, 0, 1));
        tests.push(instruction(code::EXIT, 0, 0, 0, 0));
        // A test that fails goes to the next rule.
        let length = tests.len();
        for (at, test) in tests.iter_mut().enumerate() {
            if test.code == code::JUMP_UNLESS {
                test.offset = i16::try_from(length - at - 1).unwrap_or(0);
            }
        }
        all.extend(tests);
    }
    all.push(instruction(code::SET, RESULT, 0, 0, 0));
    all.push(instruction(code::EXIT, 0, 0, 0, 0));
    all
}

/// BPF_PROG_LOAD's part of union bpf_attr, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// BPF_PROG_ATTACH's part of union bpf_attr.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// Most calls to load the program.
const LOAD_ATTEMPTS: u32 = 32;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// The service manager may have filters of its own on groups above.
const BPF_F_ALLOW_MULTI: u32 = 2;

fn load(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let attributes = LoadAttributes {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(|_too_long| Errno::E2BIG)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    let once = || {
        // SAFETY: the kernel reads the attributes and what they point to, all alive during
        // the call; the size is theirs.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_LOAD,
                &raw const attributes,
                mem::size_of::<LoadAttributes>(),
            )
        })
    };
    // Interrupted by a signal, the verifier says EAGAIN.
    let mut result = once();
    for _ in 1..LOAD_ATTEMPTS {
        if result != Err(Errno::EAGAIN) {
            break;
        }
        result = once();
    }
    let fd = result?;
    let fd = RawFd::try_from(fd).map_err(|_too_big| Errno::EBADF)?;
    // SAFETY: the kernel made this descriptor for this call, nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The group keeps the program, also when our descriptor is closed.
fn attach(program: &OwnedFd, group: RawFd) -> Result<(), Errno> {
    let descriptor = |fd: RawFd| u32::try_from(fd).map_err(|_negative| Errno::EBADF);
    let attributes = AttachAttributes {
        target: descriptor(group)?,
        program: descriptor(program.as_raw_fd())?,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the kernel reads the attributes, whose size is given.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attributes,
            mem::size_of::<AttachAttributes>(),
        )
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_version_1() {
        let lines: Vec<String> = RULES.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "c *:* m",
                "b *:* m",
                "c 1:3 rwm",
                "c 1:5 rwm",
                "c 1:7 rwm",
                "c 1:8 rwm",
                "c 1:9 rwm",
                "c 5:0 rwm",
                "c 5:2 rwm",
                "c 136:* rwm",
            ]
        );
    }

    /// What the program answers: an interpreter of the codes that it uses.
    fn answer(program: &[Instruction], kind: Kind, major: u32, minor: u32, access: u32) -> u64 {
        let context = [access << 16 | kind as u32, major, minor];
        let mut registers = [0_u64; 6];
        let mut at = 0_usize;
        loop {
            let Instruction {
                code,
                registers: both,
                offset,
                immediate,
            } = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            let immediate = i64::from(immediate) as u64;
            at += 1;
            match code {
                code::LOAD_WORD => {
                    registers[to] = context[usize::try_from(offset).unwrap() / 4].into();
                }
                code::SET => registers[to] = immediate,
                code::COPY => registers[to] = registers[from],
                code::AND => registers[to] &= immediate,
                code::SHIFT_RIGHT => registers[to] >>= immediate,
                code::JUMP_UNLESS if registers[to] != immediate => {
                    at += usize::try_from(offset).unwrap();
                }
                code::JUMP_UNLESS => {}
                code::EXIT => return registers[usize::from(RESULT)],
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_allows_what_the_table_allows() {
        let program = program(&RULES);
        // (kind, major, minor, access, allowed)
        let rows = [
            (Kind::Char, 1, 3, READ | WRITE, 1),
            (Kind::Char, 1, 3, ALL, 1),
            (Kind::Char, 1, 1, READ, 0),
            (Kind::Char, 1, 1, MAKE, 1),
            (Kind::Char, 1, 1, MAKE | READ, 0),
            (Kind::Char, 5, 1, WRITE, 0),
            (Kind::Char, 136, 77, READ | WRITE, 1),
            (Kind::Char, 10, 200, READ, 0),
            (Kind::Block, 8, 0, READ, 0),
            (Kind::Block, 8, 0, MAKE, 1),
            (Kind::Block, 1, 3, READ, 0),
            (Kind::Block, 136, 0, WRITE, 0),
        ];
        for (kind, major, minor, access, allowed) in rows {
            let found = answer(&program, kind, major, minor, access);
            assert_eq!(found, allowed, "{kind:?} {major}:{minor} {access}");
        }
    }
}
