//! The default filter: compiled once per node and set of capabilities, kept in a
//! file as the kernel's BPF instructions, loaded by the container's own process.
//!
//! Compiling takes longer than all the rest of a start; reading 10 kB takes nothing.
//! Called by `create.rs` and `exec.rs` in their workers.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use nix::errno::Errno;

use crate::capability::CapabilitySet;
use crate::profile;

/// No filter could be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("compile the seccomp filter: {0}")]
    Compile(#[from] SeccompError),
    #[error("pipe for the seccomp filter: {0}")]
    Pipe(#[source] io::Error),
    #[error("keep the seccomp filter {path}: {source}")]
    Keep { path: String, source: io::Error },
    #[error("seccomp filter of {0} bytes is not one")]
    Size(usize),
}

/// Instructions as the kernel takes them.
#[derive(Clone)]
pub(crate) struct Filter(Rc<[libc::sock_filter]>);

/// Changes whenever compiled filters of before must not be used any more.
const VERSION: u32 = 2;

/// BPF_MAXINSNS of linux/bpf_common.h.
const MAX_INSTRUCTIONS: usize = 4096;

impl Filter {
    /// The filter for a container with these capabilities: from the folder, or
    /// compiled and put there.
    pub(crate) fn of(capabilities: CapabilitySet, cache: &Path) -> Result<Self, FilterError> {
        // Only what changes the filter makes a file of its own.
        let relevant = profile::WITH_CAPABILITY
            .iter()
            .filter(|(name, _)| capabilities.contains(name))
            .fold(CapabilitySet::default(), |set, (name, _)| {
                set.with(name).unwrap_or(set)
            });
        let path = cache.join(format!("default-{VERSION}-{:x}", relevant.bits()));
        // Unreadable, torn or of another size: compiled again.
        if let Ok(bytes) = fs::read(&path)
            && let Ok(filter) = Self::from_bytes(&bytes)
        {
            return Ok(filter);
        }
        let bytes = compile(relevant)?;
        let filter = Self::from_bytes(&bytes)?;
        proto::file::replace(&path, &bytes, 0o600).map_err(|source| FilterError::Keep {
            path: path.display().to_string(),
            source,
        })?;
        Ok(filter)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, FilterError> {
        let (instructions, rest) = bytes.as_chunks::<8>();
        if instructions.is_empty() || !rest.is_empty() || instructions.len() > MAX_INSTRUCTIONS {
            return Err(FilterError::Size(bytes.len()));
        }
        Ok(Self(
            instructions
                .iter()
                .map(|[c0, c1, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
                    code: u16::from_ne_bytes([*c0, *c1]),
                    jt: *jt,
                    jf: *jf,
                    k: u32::from_ne_bytes([*k0, *k1, *k2, *k3]),
                })
                .collect(),
        ))
    }

    /// Filters this process and all its children from now on. Needs CAP_SYS_ADMIN
    /// or no_new_privs.
    pub(crate) fn load(&self) -> nix::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).map_err(|_too_long| Errno::E2BIG)?,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel copies `len` instructions, which `self` owns beyond the call.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &program,
            )
        })?;
        Ok(())
    }
}

fn compile(capabilities: CapabilitySet) -> Result<Vec<u8>, FilterError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(libc::EPERM))?;
    if ScmpArch::native() == ScmpArch::X8664 {
        filter.add_arch(ScmpArch::X86)?.add_arch(ScmpArch::X32)?;
    }
    // A binary tree instead of a list, and no_new_privs is libcontainer's affair.
    filter.set_ctl_optimize(2)?.set_ctl_nnp(false)?;
    let mut allow = |name: &str, conditions: &[ScmpArgCompare]| -> Result<(), SeccompError> {
        // Of another architecture, or newer than the library.
        let Ok(call) = ScmpSyscall::from_name(name) else {
            return Ok(());
        };
        if conditions.is_empty() {
            filter.add_rule(ScmpAction::Allow, call)?;
        } else {
            filter.add_rule_conditional(ScmpAction::Allow, call, conditions)?;
        }
        Ok(())
    };
    for name in profile::ALWAYS {
        allow(name, &[])?;
    }
    for (capability, names) in profile::WITH_CAPABILITY {
        if capabilities.contains(capability) {
            for name in *names {
                allow(name, &[])?;
            }
        }
    }
    // The kernel takes an int, and a comparison is of 64 bits: allowed is what differs from
    // the refused family in one of the lower 32.
    for bit in (0..u32::BITS).map(|n| 1_u64 << n) {
        let differs = ScmpCompareOp::MaskedEqual(bit);
        let value = !profile::REFUSED_SOCKET_FAMILY & bit;
        allow("socket", &[ScmpArgCompare::new(0, differs, value)])?;
    }
    for value in profile::PERSONALITIES {
        allow(
            "personality",
            &[ScmpArgCompare::new(0, ScmpCompareOp::Equal, value)],
        )?;
    }
    if !capabilities.contains("CAP_SYS_ADMIN") {
        let no_flags = ScmpCompareOp::MaskedEqual(profile::NAMESPACE_FLAGS);
        allow("clone", &[ScmpArgCompare::new(0, no_flags, 0)])?;
        // Its flags are behind a pointer, out of the filter's sight: libraries fall
        // back to clone(2) when it is not there.
        if let Ok(clone3) = ScmpSyscall::from_name("clone3") {
            filter.add_rule(ScmpAction::Errno(libc::ENOSYS), clone3)?;
        }
    }
    let mut bytes = new_numbers();
    export(&filter, &mut bytes)?;
    Ok(bytes)
}

/// Through a pipe, which holds the largest filter at once.
fn export(filter: &ScmpFilterContext, to: &mut Vec<u8>) -> Result<(), FilterError> {
    let (mut read, write) = io::pipe().map_err(FilterError::Pipe)?;
    filter.export_bpf(&write)?;
    drop(write);
    read.read_to_end(to).map_err(FilterError::Pipe)?;
    Ok(())
}

/// Instructions in front: what is to be done with numbers newer than the library.
fn new_numbers() -> Vec<u8> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    /// Calls of the x32 interface have this bit; the compiled part judges them.
    const X32: u32 = 0x4000_0000;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const NOT_THERE: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    let count = profile::NEW_NUMBERS.len() as u8;
    let mut instructions = vec![
        // seccomp_data.nr is at offset 0.
        (LOAD, 0, 0, 0),
        (AT_LEAST, 0, count + 3, profile::FIRST_NEW_NUMBER),
        (AT_LEAST, count + 2, 0, X32),
    ];
    for (number, after) in profile::NEW_NUMBERS.iter().zip((0..count).rev()) {
        instructions.push((EQUAL, after + 1, 0, *number));
    }
    instructions.push((RETURN, 0, 0, NOT_THERE));
    instructions.push((RETURN, 0, 0, ALLOW));
    instructions
        .into_iter()
        .flat_map(|(code, jt, jf, k)| {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&(code as u16).to_ne_bytes());
            bytes[2] = jt;
            bytes[3] = jf;
            bytes[4..].copy_from_slice(&k.to_ne_bytes());
            bytes
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel does, on (number, native architecture, first argument).
    fn verdict(filter: &Filter, number: u32, argument: u64) -> u32 {
        /// AUDIT_ARCH of linux/audit.h.
        const ARCH: u32 = if cfg!(target_arch = "x86_64") {
            0xc000_003e
        } else {
            0xc000_00b7
        };
        let mut data = [0_u8; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&ARCH.to_ne_bytes());
        data[16..24].copy_from_slice(&argument.to_ne_bytes());
        let (mut at, mut a) = (0, 0_u32);
        loop {
            let i = filter.0[at];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
            match u32::from(i.code) {
                0x20 => {
                    let offset = i.k as usize;
                    a = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap());
                }
                0x54 => a &= i.k,
                0x05 => at += i.k as usize,
                0x15 => at += jump(a == i.k),
                0x25 => at += jump(a > i.k),
                0x35 => at += jump(a >= i.k),
                0x06 => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn filter(capabilities: &[&str]) -> Filter {
        let names: Vec<_> = capabilities.iter().map(|c| (*c).to_owned()).collect();
        let set = CapabilitySet::from_names(&names).unwrap();
        Filter::from_bytes(&compile(set).unwrap()).unwrap()
    }

    fn number(name: &str) -> u32 {
        u32::try_from(ScmpSyscall::from_name(name).unwrap().as_raw_syscall()).unwrap()
    }

    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
    const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ABSENT: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    #[test]
    fn verdicts_of_a_plain_container() {
        let plain = filter(&["CAP_CHOWN", "CAP_SYS_CHROOT"]);
        for (name, argument, expected) in [
            ("read", 0, ALLOWED),
            ("execve", 0, ALLOWED),
            ("chroot", 0, ALLOWED),
            ("mount", 0, REFUSED),
            ("bpf", 0, REFUSED),
            ("keyctl", 0, REFUSED),
            ("reboot", 0, REFUSED),
            ("io_uring_setup", 0, REFUSED),
            ("clone3", 0, ABSENT),
            ("clone", libc::SIGCHLD as u64, ALLOWED),
            ("clone", libc::CLONE_NEWUSER as u64, REFUSED),
            ("socket", libc::AF_INET as u64, ALLOWED),
            ("socket", libc::AF_UNIX as u64, ALLOWED),
            ("socket", libc::AF_ALG as u64, ALLOWED),
            ("socket", u64::MAX, ALLOWED),
            ("socket", 40, REFUSED),
            // The kernel takes an int: the upper half is not looked at.
            ("socket", 1 << 32 | 40, REFUSED),
            ("socket", u64::MAX << 32 | 40, REFUSED),
            ("socket", 1 << 32 | libc::AF_INET as u64, ALLOWED),
            ("personality", 8, ALLOWED),
            ("personality", 4, REFUSED),
        ] {
            assert_eq!(
                verdict(&plain, number(name), argument),
                expected,
                "{name}({argument})"
            );
        }
    }

    #[test]
    fn numbers_newer_than_the_library() {
        let plain = filter(&[]);
        for number in profile::NEW_NUMBERS {
            assert_eq!(verdict(&plain, *number, 0), ALLOWED, "{number}");
        }
        for number in [459, 467, 9999] {
            assert_eq!(verdict(&plain, number, 0), ABSENT, "{number}");
        }
        assert_eq!(verdict(&plain, 450, 0), REFUSED);
    }

    #[test]
    fn capabilities_open_their_calls() {
        let admin = filter(&["CAP_SYS_ADMIN"]);
        for name in ["mount", "unshare", "clone3"] {
            assert_eq!(verdict(&admin, number(name), 0), ALLOWED, "{name}");
        }
        assert_eq!(
            verdict(&admin, number("clone"), libc::CLONE_NEWUSER as u64),
            ALLOWED
        );
        assert_eq!(verdict(&admin, number("reboot"), 0), REFUSED);
    }

    #[test]
    fn every_name_is_one() {
        // A misspelt name would be refused in silence. Other architectures' are known too.
        for name in profile::ALWAYS
            .iter()
            .chain(profile::WITH_CAPABILITY.iter().flat_map(|w| w.1))
        {
            let call = ScmpSyscall::from_name(name).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(!call.is_error(), "{name}");
        }
    }

    #[test]
    fn kept_filters_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let set = CapabilitySet::default();
        let compiled = Filter::of(set, folder.path()).unwrap();
        let file = fs::read_dir(folder.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let bytes = fs::read(&file).unwrap();
        assert_eq!(bytes.len(), compiled.0.len() * 8);
        // A torn file is not used.
        fs::write(&file, &bytes[..13]).unwrap();
        assert_eq!(
            Filter::of(set, folder.path()).unwrap().0.len(),
            compiled.0.len()
        );
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }
}
