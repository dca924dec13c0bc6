//! The mounts that every container has, and the paths of the kernel that it does not
//! see or cannot write: what container runtimes agree on.
//!
//! Called by `create.rs`; the pod's own mounts are `volume.rs`'s.

use proto::v1;

use crate::volume::Mount;

/// Hidden from containers that are not privileged; Kubernetes' list.
const MASKED: [&str; 13] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
];

/// Read-only in containers that are not privileged.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// Paths that a container does not see.
pub fn masked(privileged: bool) -> Vec<String> {
    owned(if privileged { &[] } else { &MASKED })
}

/// Paths that a container cannot write.
pub fn read_only(privileged: bool) -> Vec<String> {
    owned(if privileged { &[] } else { &READ_ONLY })
}

/// The usual mounts, in their order, but for places where the pod mounts something.
pub fn usual(privileged: bool, pods: &[Mount]) -> Vec<v1::ShimMount> {
    let access = if privileged { "rw" } else { "ro" };
    let usual: [(&str, &str, &str, &[&str]); 6] = [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        (
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        (
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        (
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", access],
        ),
        (
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ];
    let free = |destination: &str| !pods.iter().any(|m| m.destination == destination);
    usual
        .into_iter()
        .filter(|(destination, ..)| free(destination))
        .map(|(destination, typ, source, options)| v1::ShimMount {
            source: source.into(),
            destination: destination.into(),
            r#type: typ.into(),
            options: owned(options),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Source;

    #[test]
    fn a_mount_of_the_pod_takes_the_place_of_the_usual_one() {
        let places = |pods: &[Mount]| -> Vec<String> {
            let usual = usual(false, pods).into_iter();
            usual.map(|m| m.destination).collect()
        };
        let all = [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup",
        ];
        assert_eq!(places(&[]), all);
        let queues = Mount {
            source: Source::TerminationLog,
            destination: "/dev/mqueue".into(),
            options: Vec::new(),
        };
        let rest: Vec<&str> = all.into_iter().filter(|p| *p != "/dev/mqueue").collect();
        assert_eq!(places(&[queues]), rest);
    }

    #[test]
    fn only_privileged_containers_see_and_write_all() {
        for (privileged, access) in [(false, "ro"), (true, "rw")] {
            for mount in usual(privileged, &[]) {
                if mount.destination.starts_with("/sys") {
                    assert!(mount.options.contains(&access.to_owned()), "{mount:?}");
                }
            }
            assert_eq!(masked(privileged).is_empty(), privileged);
            assert_eq!(read_only(privileged).is_empty(), privileged);
        }
    }
}
