//! Logs as users and other tools read them.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proto::v1::ShimCreate;
use tests_harness::wait_until;

use crate::pod::{Pod, log_lines};

#[test]
fn the_format_is_cris() {
    let mut pod = Pod::new();
    let create = pod.message("web", &["sh", "-c", "echo one; echo two >&2; printf three"]);
    pod.finish(create);
    let text = fs::read_to_string(pod.log_path("web")).unwrap();
    let mut rest = Vec::new();
    for line in text.lines() {
        let (time, after) = line.split_once(' ').unwrap();
        // 2026-01-02T03:04:05.678901234Z
        assert_eq!(time.len(), 30, "{line}");
        for (at, byte) in time.bytes().enumerate() {
            match at {
                4 | 7 => assert_eq!(byte, b'-', "{line}"),
                10 => assert_eq!(byte, b'T', "{line}"),
                13 | 16 => assert_eq!(byte, b':', "{line}"),
                19 => assert_eq!(byte, b'.', "{line}"),
                29 => assert_eq!(byte, b'Z', "{line}"),
                _ => assert!(byte.is_ascii_digit(), "{line}"),
            }
        }
        rest.push(after.to_owned());
    }
    rest.sort();
    assert_eq!(rest, ["stderr F two", "stdout F one", "stdout F three"]);
}

#[test]
fn long_lines_are_partial() {
    let mut pod = Pod::new();
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo short";
    let create = pod.message("web", &["sh", "-c", script]);
    let (_, lines) = pod.finish(create);
    let shape: Vec<_> = lines.iter().map(|l| (&l[..8], l.len() - 9)).collect();
    assert_eq!(
        shape,
        [
            ("stdout P", 16384),
            ("stdout P", 16384),
            ("stdout F", 7232),
            ("stdout F", 5)
        ]
    );
}

#[test]
fn a_full_log_is_rotated_while_the_container_runs() {
    let mut pod = Pod::new();
    let script = "i=100; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done; exec sleep 1000";
    let create = ShimCreate {
        log_max_bytes: 4000,
        ..pod.message("web", &["sh", "-c", script])
    };
    pod.run(create);
    let path = pod.log_path("web");
    wait_until("the last line", || {
        match log_lines(&path).last().map(String::as_str) {
            Some("stdout F line 299") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let before = PathBuf::from(format!("{}.1", path.display()));
    for file in [&path, &before] {
        assert!(
            fs::metadata(file).unwrap().len() <= 4000,
            "{}",
            file.display()
        );
    }
    let all = [log_lines(&before), log_lines(&path)].concat();
    let first = 300 - all.len();
    let expected: Vec<_> = (first..300).map(|n| format!("stdout F line {n}")).collect();
    assert_eq!(all, expected, "no line is lost between the files");
}

#[test]
fn a_great_deal_of_output_arrives_whole() {
    let mut pod = Pod::new();
    let create = pod.message("web", &["seq", "1", "200000"]);
    let (_, lines) = pod.finish(create);
    assert_eq!(lines.len(), 200_000);
    for (line, n) in lines.iter().zip(1..) {
        assert_eq!(line, &format!("stdout F {n}"));
    }
}

#[test]
fn a_full_disk_costs_lines_and_not_the_log() {
    let mut pod = Pod::new();
    // A disk of its own, smaller than the log may become.
    let log = pod.log_path("web");
    let folder = log.parent().unwrap().to_owned();
    fs::create_dir_all(&folder).unwrap();
    let options = Some("size=65536");
    let none = MsFlags::empty();
    mount(Some("foil"), &folder, Some("tmpfs"), none, options).unwrap();
    let unmounted = Unmount(folder.clone());
    let ballast = folder.join("ballast");
    let script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done";
    let create = ShimCreate {
        log_max_bytes: 4096,
        ..pod.message("web", &["sh", "-c", script])
    };
    let id = pod.run(create);
    let last = || log_lines(&log).last().cloned().unwrap_or_default();
    let advances = |what: &str| {
        let before = last();
        wait_until(what, || match last() {
            now if now != before && !now.is_empty() => Ok(()),
            now => Err(now),
        });
    };
    advances("a first line");
    // All that is left of the disk goes.
    let mut file = fs::File::create(&ballast).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    let words = pod.layout.shim(&pod.uid).join("log");
    wait_until("a line that was refused", || {
        let said = fs::read_to_string(&words).unwrap();
        match said.contains("No space left on device") {
            true => Ok(()),
            false => Err(said),
        }
    });
    drop(file);
    fs::remove_file(&ballast).unwrap();
    advances("lines after the disk has space again");
    // Rotated as before, and no line is half of one.
    let earlier = PathBuf::from(format!("{}.1", log.display()));
    wait_until("a rotation", || {
        if earlier.exists() {
            Ok(())
        } else {
            Err(last())
        }
    });
    pod.kill(&id, libc::SIGKILL, false).unwrap();
    pod.exited(&id);
    for line in [log_lines(&earlier), log_lines(&log)].concat() {
        let number = line.strip_prefix("stdout F line ").map(str::parse::<u32>);
        assert!(matches!(number, Some(Ok(_))), "{line:?}");
    }
    assert!(fs::exists(format!("/proc/{}", pod.shim_pid)).unwrap());
    pod.delete(&id).unwrap();
    drop(unmounted);
}

/// A mount that goes also when the test fails.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let gone = umount2(&self.0, MntFlags::MNT_DETACH);
        assert!(std::thread::panicking() || gone.is_ok(), "{gone:?}");
    }
}
