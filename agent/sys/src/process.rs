//! Other processes: is it alive, what does it use, end it. By pid, so only for
//! processes that cannot be gone and replaced meanwhile, or where that is harmless.
//! Called by `cgroup.rs`, and by the daemon for its metrics.

use std::fs;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A process held by descriptor: never mistaken for a later one with the same pid.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Fails with ESRCH when there is no such process.
    pub fn open(pid: u32) -> nix::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_too_big| Errno::ESRCH)?;
        // SAFETY: two integers, no memory is passed.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let fd = RawFd::try_from(fd).map_err(|_too_big| Errno::EBADF)?;
        // SAFETY: the kernel made this descriptor for this call, nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal; a process that has ended is not an error.
    pub fn signal(&self, signal: i32) -> nix::Result<()> {
        use std::os::fd::AsRawFd;
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open; a null siginfo is allowed.
        let sent = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                none,
                0,
            )
        });
        match sent {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Waits for its end, up to a limit; true if it has ended.
    pub fn wait(&self, milliseconds: u16) -> nix::Result<bool> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::from(milliseconds)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Resident memory, bytes; `None` when the process is gone.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let number = kilobytes.trim().strip_suffix("kB")?.trim();
    number.parse::<u64>().ok().map(|kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_killed_process_is_seen_to_end() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let process = Pidfd::open(child.id()).unwrap();
        assert!(!process.wait(0).unwrap());
        process.signal(libc::SIGKILL).unwrap();
        assert!(process.wait(10_000).unwrap());
        child.wait().unwrap();
        process.signal(libc::SIGKILL).unwrap();
    }

    #[test]
    fn we_are_resident() {
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
    }
}
