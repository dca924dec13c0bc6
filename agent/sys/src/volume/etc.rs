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
/// running containers have them bound. `node_resolv_conf` is the node's resolv.conf;
/// `hostname` is what the pod's host is called, with hostNetwork the node's name.
///
/// # Errors
/// [`VolumeError::Io`].
pub fn write(
    pod_dir: &Path,
    pod: &v1::PodSpec,
    hostname: &str,
    node_resolv_conf: &Path,
) -> Result<EtcFiles, VolumeError> {
    let files = paths(pod_dir);
    let dir = fs::create_dir_all(pod_dir)
        .and_then(|()| Beneath::open(pod_dir))
        .and_then(|pod| pod.make_dirs(Path::new("etc"), Links::Refused, |_, _| Ok(())))
        .map(Beneath::from)
        .map_err(VolumeError::io("make etc in", pod_dir))?;
    let node_file = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let hosts = if pod.host_network {
        hosts_of_node(&node_file(Path::new("/etc/hosts")), pod)
    } else {
        hosts(pod)
    };
    let dns = pod.dns.clone().unwrap_or_default();
    let resolv_conf = resolv_conf(&dns, &node_file(node_resolv_conf));
    for (path, text) in [
        (&files.hosts, hosts),
        (&files.hostname, format!("{hostname}\n")),
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
    let mut names = vec![pod.hostname.clone()];
    if !pod.fqdn.is_empty() {
        // The pod's hostname is the short one, or by its manifest the whole name.
        if pod.hostname == pod.fqdn {
            let short = pod.fqdn.split('.').next().unwrap_or_default();
            names = vec![short.to_owned()];
        }
        names.insert(0, pod.fqdn.clone());
    }
    for ip in &pod.ips {
        line(&mut text, ip, &names);
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

/// Name servers that resolvers read of one file (MAXNS of resolv.h).
const SERVERS: usize = 3;
/// Search domains (kubelet's MaxDNSSearchPaths).
const SEARCHES: usize = 32;

/// What a resolv.conf(5) says.
#[derive(Debug, Default)]
struct Resolv {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolv {
    fn parse(text: &str) -> Resolv {
        let mut found = Resolv::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let keyword = words.next().unwrap_or_default();
            let rest = words.map(str::to_owned);
            match keyword {
                "nameserver" => found.servers.extend(rest.take(1)),
                // The last one counts.
                "search" | "domain" => found.searches = rest.collect(),
                "options" => found.options.extend(rest),
                _comment => {}
            }
        }
        found
    }
}

/// Adds what is not there yet.
fn extend(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn resolv_conf(dns: &v1::Dns, node: &str) -> String {
    let node = Resolv::parse(node);
    let mut found = Resolv::default();
    let searches = node.searches.clone();
    if dns.from_node {
        found = node;
    }
    extend(&mut found.servers, &dns.nameservers);
    extend(&mut found.searches, &dns.searches);
    if dns.node_searches {
        extend(&mut found.searches, &searches);
    }
    let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
    for option in &dns.options {
        found.options.retain(|there| name(there) != name(option));
        found.options.push(option.clone());
    }
    found.servers.truncate(SERVERS);
    found.searches.truncate(SEARCHES);
    let mut text = String::new();
    if !found.searches.is_empty() {
        text.push_str(&format!("search {}\n", found.searches.join(" ")));
    }
    for server in &found.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !found.options.is_empty() {
        text.push_str(&format!("options {}\n", found.options.join(" ")));
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
                ..v1::Dns::default()
            }),
            ..v1::PodSpec::default()
        };
        let files = write(dir.path(), &pod, "web-0", Path::new("/nowhere")).unwrap();
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
    }

    #[test]
    fn the_nodes_resolv_conf_is_merged() {
        let node = "# node\nsearch old\nsearch corp.example lab\nnameserver 192.0.2.1\noptions timeout:1\n";
        let texts = |list: &[&str]| list.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        let dns = |servers: &[&str], searches: &[&str], options: &[&str]| v1::Dns {
            nameservers: texts(servers),
            searches: texts(searches),
            options: texts(options),
            ..v1::Dns::default()
        };
        let from_node = v1::Dns {
            from_node: true,
            ..dns(&["192.0.2.9"], &["lab", "x"], &["timeout:3", "edns0"])
        };
        let cluster = v1::Dns {
            node_searches: true,
            ..dns(&["10.96.0.10"], &["svc.cluster.local"], &["ndots:5"])
        };
        let rows = [
            (
                from_node,
                "search corp.example lab x\nnameserver 192.0.2.1\nnameserver 192.0.2.9\noptions timeout:3 edns0\n",
            ),
            (
                cluster,
                "search svc.cluster.local corp.example lab\nnameserver 10.96.0.10\noptions ndots:5\n",
            ),
            (dns(&["1.1.1.1"], &[], &[]), "nameserver 1.1.1.1\n"),
        ];
        for (dns, expected) in rows {
            assert_eq!(resolv_conf(&dns, node), expected);
        }
    }

    #[test]
    fn a_pod_with_a_subdomain_knows_its_whole_name() {
        let rows = [
            ("web-0", "10.0.0.7\tweb-0.db.team.svc.cluster.local\tweb-0"),
            (
                "web-0.db.team.svc.cluster.local",
                "10.0.0.7\tweb-0.db.team.svc.cluster.local\tweb-0",
            ),
        ];
        for (hostname, expected) in rows {
            let pod = v1::PodSpec {
                hostname: hostname.to_owned(),
                fqdn: "web-0.db.team.svc.cluster.local".to_owned(),
                ips: vec!["10.0.0.7".to_owned()],
                ..v1::PodSpec::default()
            };
            let text = hosts(&pod);
            assert!(text.lines().any(|line| line == expected), "{text}");
        }
    }
}
