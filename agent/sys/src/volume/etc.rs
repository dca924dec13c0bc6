//! /etc/hosts, /etc/hostname and /etc/resolv.conf of a pod, which all its
//! containers share.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use proto::v1;

use super::VolumeError;
use crate::beneath::{Beneath, Links};

/// Paths to bind over the container's /etc/hosts, /etc/hostname, /etc/resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcFiles {
    pub hosts: PathBuf,
    pub hostname: PathBuf,
    pub resolv_conf: PathBuf,
}

/// Writes the three files into `pod_dir/etc`. They are written in place:
/// running containers have them bound.
///
/// # Errors
/// [`VolumeError::Io`].
pub fn write(pod_dir: &Path, pod: &v1::PodSpec) -> Result<EtcFiles, VolumeError> {
    let files = paths(pod_dir);
    let dir = fs::create_dir_all(pod_dir)
        .and_then(|()| Beneath::open(pod_dir))
        .and_then(|pod| pod.make_dirs(Path::new("etc"), Links::Refused, |_, _| Ok(())))
        .map(Beneath::from)
        .map_err(VolumeError::io("make etc in", pod_dir))?;
    let node_file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let hosts = if pod.host_network {
        hosts_of_node(&node_file("/etc/hosts"), pod)
    } else {
        hosts(pod)
    };
    let dns = pod.dns.clone().unwrap_or_default();
    let resolv_conf = resolv_conf(&dns, &node_file("/etc/resolv.conf"));
    for (path, text) in [
        (&files.hosts, hosts),
        (&files.hostname, format!("{}\n", pod.hostname)),
        (&files.resolv_conf, resolv_conf),
    ] {
        update(&dir, path, &text).map_err(VolumeError::io("write", path))?;
    }
    Ok(files)
}

/// In place, as a container may have it bound; and may have written to it: it can be of
/// any size.
fn update(dir: &Beneath, path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default();
    let mut file = match dir.open_held(name, OFlag::O_RDWR | OFlag::O_NONBLOCK) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => dir.create(name)?,
        opened => {
            let file = File::from(opened?);
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            if metadata.len() == text.len() as u64 {
                let mut old = Vec::with_capacity(text.len());
                (&file).take(metadata.len()).read_to_end(&mut old)?;
                if old == text.as_bytes() {
                    return Ok(());
                }
            }
            file
        }
    };
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o644))
}

/// Where [`write`] puts the files.
pub fn paths(pod_dir: &Path) -> EtcFiles {
    let dir = pod_dir.join("etc");
    EtcFiles {
        hosts: dir.join("hosts"),
        hostname: dir.join("hostname"),
        resolv_conf: dir.join("resolv.conf"),
    }
}

fn hosts(pod: &v1::PodSpec) -> String {
    let mut text = "# Written by Hydrofoil.\n\
        127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\n\
        fe00::0\tip6-mcastprefix\n\
        fe00::1\tip6-allnodes\n\
        fe00::2\tip6-allrouters\n"
        .to_owned();
    for ip in &pod.ips {
        line(&mut text, ip, std::slice::from_ref(&pod.hostname));
    }
    aliases(&mut text, pod);
    text
}

fn hosts_of_node(node: &str, pod: &v1::PodSpec) -> String {
    let mut text = node.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    aliases(&mut text, pod);
    text
}

fn aliases(text: &mut String, pod: &v1::PodSpec) {
    if !pod.host_aliases.is_empty() {
        text.push_str("\n# From the pod's hostAliases.\n");
    }
    for alias in &pod.host_aliases {
        line(text, &alias.ip, &alias.hostnames);
    }
}

fn line(text: &mut String, ip: &str, names: &[String]) {
    text.push_str(&format!("{ip}\t{}\n", names.join("\t")));
}

fn resolv_conf(dns: &v1::Dns, node: &str) -> String {
    let mut text = if dns.from_node {
        node.to_owned()
    } else {
        String::new()
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.nameservers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_files_say_what_the_pod_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let pod = v1::PodSpec {
            hostname: "web-0".to_owned(),
            ips: vec!["10.244.1.7".to_owned()],
            host_aliases: vec![v1::HostAlias {
                ip: "10.0.0.9".to_owned(),
                hostnames: vec!["db".to_owned(), "db.local".to_owned()],
            }],
            dns: Some(v1::Dns {
                nameservers: vec!["10.96.0.10".to_owned()],
                searches: vec![
                    "default.svc.cluster.local".to_owned(),
                    "svc.cluster.local".to_owned(),
                ],
                options: vec!["ndots:5".to_owned()],
                from_node: false,
            }),
            ..v1::PodSpec::default()
        };
        let files = write(dir.path(), &pod).unwrap();
        let hosts = fs::read_to_string(&files.hosts).unwrap();
        for line in [
            "127.0.0.1\tlocalhost",
            "10.244.1.7\tweb-0",
            "10.0.0.9\tdb\tdb.local",
        ] {
            assert!(
                hosts.lines().any(|found| found == line),
                "{line} in {hosts}"
            );
        }
        assert_eq!(fs::read_to_string(&files.hostname).unwrap(), "web-0\n");
        assert_eq!(
            fs::read_to_string(&files.resolv_conf).unwrap(),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(
            resolv_conf(
                &v1::Dns {
                    from_node: true,
                    ..v1::Dns::default()
                },
                "nameserver 1.1.1.1"
            ),
            "nameserver 1.1.1.1\n"
        );
    }
}
