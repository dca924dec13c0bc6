//! The configuration file: TOML to `Config`, once, at the start.
//!
//! Nothing else reads the environment or a file for settings. Parsing takes the
//! text, so that it is tested without files. Defaults are in one table, [`DEFAULTS`].

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use agent_sys::cgroup::Parent;
use agent_sys::image;
use serde::Deserialize;

use crate::limits::{Pressure, Reserved, section};

/// Every default, as it would be written in the file.
///
/// | key | default | what it is |
/// | --- | --- | --- |
/// | `node_name` | none | name of the node, unique in the cluster |
/// | `control` | none | `https://HOST:PORT` of the control plane |
/// | `root` | `/var/lib/hydrofoil` | images, pods, logs, state; survives a reboot |
/// | `run` | `/run/hydrofoil` | sockets, pinned namespaces, environments and secrets of pods: on a tmpfs |
/// | `bpffs` | `/sys/fs/bpf/hydrofoil` | folder of the pinned maps and links |
/// | `cgroup` | `/hydrofoil` | parent group of the pods' cgroups |
/// | `connect_translation` | `true` | TCP connections of pods to services get their backend at `connect`; `false`: packet by packet, as all others. Needs cgroup v2, mounted beside v1 or alone |
/// | `uplinks` | `["eth0"]` | devices that lead to other nodes; the first carries the routes to them |
/// | `node_ip` | first IPv4 address of the first uplink | address of the node |
/// | `shim` | `foil-shim` beside `foil-agent` | the shim's program |
/// | `bpf_object` | `hydrofoil.bpf.o` beside `foil-agent` | the programs |
/// | `resolv_conf` | `/etc/resolv.conf` | the node's DNS servers: cluster DNS asks them for other names, and pods with `dnsPolicy: Default` get them; with systemd-resolved `/run/systemd/resolve/resolv.conf` |
/// | `max_pods` | 110 | pods that the scheduler may put here |
/// | `flow_entries` | 1000000, or as many as take 1/32 of the memory | size of the flow map, two for each connection, 144 bytes each; a change is in force after a reboot |
/// | `log_max_bytes` | 10485760 | container logs are rotated at this size, one earlier file is kept, and the logs of one ended instance; 0: never rotated |
/// | `pod_pids_limit` | 4096 | processes and threads that a pod may have; 0: as many as the node |
/// | `swap_behavior` | `NoSwap` | or `LimitedSwap`: Burstable containers get swap by their memory request (cgroup v2) |
/// | `restart_backoff_base_ms` | 10000 | first delay of CrashLoopBackOff |
/// | `restart_backoff_max_ms` | 300000 | longest delay of CrashLoopBackOff |
/// | `image_backoff_base_ms` | 10000 | first delay of ImagePullBackOff |
/// | `image_backoff_max_ms` | 300000 | longest delay of ImagePullBackOff |
/// | `[reserved] cpu` | `100m` | CPU time that is kept from pods, for the system and the agent: `2` or `100m` |
/// | `[reserved] memory` | `256Mi` | memory that is kept from pods: bytes, `256Mi`, or `5%` |
/// | `[pressure] memory_available` | `100Mi` | below it MemoryPressure holds; it is kept from pods too |
/// | `[pressure] disk_available` | `10%` | of the file system of `root`; below it DiskPressure holds |
/// | `[pressure] disk_inodes` | `5%` | free inodes of it |
/// | `[pressure] images_available` | `15%` | of the file system of the images |
/// | `[pressure] images_inodes` | `5%` | free inodes of it |
/// | `[pressure] pids_available` | `5%` | of the process numbers; below it PIDPressure holds (kubelet has no default) |
/// | `[pressure] transition_s` | 300 | seconds a condition persists after the value has recovered |
/// | `[join] token` | none | needed until the node has a certificate |
/// | `[join] ca_hash` | none | `sha256:HEX` over the CA's public key |
/// | `[[registry]] host, endpoint` | none | where to ask for a registry's images |
pub(crate) const DEFAULTS: &str = r#"
root = "/var/lib/hydrofoil"
run = "/run/hydrofoil"
bpffs = "/sys/fs/bpf/hydrofoil"
cgroup = "/hydrofoil"
connect_translation = true
uplinks = ["eth0"]
resolv_conf = "/etc/resolv.conf"
max_pods = 110
log_max_bytes = 10485760
pod_pids_limit = 4096
swap_behavior = "NoSwap"
restart_backoff_base_ms = 10000
restart_backoff_max_ms = 300000
image_backoff_base_ms = 10000
image_backoff_max_ms = 300000

[reserved]
cpu = "100m"
memory = "256Mi"

[pressure]
memory_available = "100Mi"
disk_available = "10%"
disk_inodes = "5%"
images_available = "15%"
images_inodes = "5%"
pids_available = "5%"
transition_s = 300
"#;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a wrong type.
    #[error("{0}")]
    Parse(#[from] toml::de::Error),
    /// A value that makes no sense.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// Why.
        reason: String,
    },
}

/// The file as it is written: a missing key is the default's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node_name: Option<String>,
    control: Option<String>,
    root: Option<PathBuf>,
    run: Option<PathBuf>,
    bpffs: Option<PathBuf>,
    cgroup: Option<String>,
    connect_translation: Option<bool>,
    uplinks: Option<Vec<String>>,
    node_ip: Option<Ipv4Addr>,
    shim: Option<PathBuf>,
    bpf_object: Option<PathBuf>,
    resolv_conf: Option<PathBuf>,
    max_pods: Option<u32>,
    flow_entries: Option<u32>,
    manifests: Option<PathBuf>,
    log_max_bytes: Option<u64>,
    pod_pids_limit: Option<u32>,
    swap_behavior: Option<SwapBehavior>,
    restart_backoff_base_ms: Option<u32>,
    restart_backoff_max_ms: Option<u32>,
    image_backoff_base_ms: Option<u32>,
    image_backoff_max_ms: Option<u32>,
    #[serde(default)]
    reserved: toml::Table,
    #[serde(default)]
    pressure: toml::Table,
    join: Option<Join>,
    #[serde(default)]
    registry: Vec<Registry>,
}

/// All settings.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Name of the node.
    pub(crate) node_name: String,
    /// Where the control plane listens.
    pub(crate) control: ControlAddress,
    /// Survives a reboot.
    pub(crate) root: PathBuf,
    /// Gone with a reboot.
    pub(crate) run: PathBuf,
    /// Folder of the pins.
    pub(crate) bpffs: PathBuf,
    /// Parent group, "/hydrofoil".
    pub(crate) cgroup: String,
    /// Whether TCP connections of pods to services are translated at `connect`.
    pub(crate) connect_translation: bool,
    /// Devices that lead to other nodes; at least one.
    pub(crate) uplinks: Vec<String>,
    /// `None`: the first uplink's first IPv4 address.
    pub(crate) node_ip: Option<Ipv4Addr>,
    /// `None`: beside our own program.
    pub(crate) shim: Option<PathBuf>,
    /// `None`: beside our own program.
    pub(crate) bpf_object: Option<PathBuf>,
    /// Which DNS servers the node asks.
    pub(crate) resolv_conf: PathBuf,
    /// Pods that the scheduler may put here.
    pub(crate) max_pods: u32,
    /// Size of the flow map; `None`: by the node's memory.
    pub(crate) flow_entries: Option<u32>,
    /// Bytes; 0: never rotated.
    pub(crate) log_max_bytes: u64,
    /// Processes and threads; 0: no limit.
    pub(crate) pod_pids_limit: u32,
    /// Who may use swap.
    pub(crate) swap_behavior: SwapBehavior,
    /// Milliseconds.
    pub(crate) restart_backoff_base_ms: u32,
    /// Milliseconds.
    pub(crate) restart_backoff_max_ms: u32,
    /// Milliseconds.
    pub(crate) image_backoff_base_ms: u32,
    /// Milliseconds.
    pub(crate) image_backoff_max_ms: u32,
    /// What is kept from pods.
    pub(crate) reserved: Reserved,
    /// What must be available.
    pub(crate) pressure: Pressure,
    /// How to get a certificate.
    pub(crate) join: Option<Join>,
    /// Where to ask for a registry's images.
    pub(crate) registries: Vec<Registry>,
}

/// Who may use the node's swap, in kubelet's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum SwapBehavior {
    /// No container.
    NoSwap,
    /// Burstable containers, in proportion to their memory request.
    LimitedSwap,
}

/// Where the control plane listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControlAddress {
    /// Name or address.
    pub(crate) host: String,
    /// TCP port.
    pub(crate) port: u16,
}

/// What a node needs to be let in.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Join {
    /// The join token.
    pub(crate) token: String,
    /// "sha256:HEX" over the CA's SubjectPublicKeyInfo.
    pub(crate) ca_hash: String,
}

// The token is a secret: it does not belong in a log.
impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join")
            .field("ca_hash", &self.ca_hash)
            .finish_non_exhaustive()
    }
}

/// Where to ask for the images of a registry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Registry {
    /// As images name it: "docker.io".
    pub(crate) host: String,
    /// "http://HOST:PORT" or "https://HOST".
    pub(crate) endpoint: String,
}

/// Reads and checks the file.
pub(crate) fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&text)
}

/// Checks a configuration's text.
pub(crate) fn parse(text: &str) -> Result<Config, ConfigError> {
    let given: File = toml::from_str(text)?;
    let defaults: File = toml::from_str(DEFAULTS)?;
    if given.manifests.is_some() {
        return Err(value("manifests", "static pods are not supported yet"));
    }
    let missing = |key: &'static str| move || value(key, "is missing");
    let config = Config {
        node_name: given.node_name.ok_or_else(missing("node_name"))?,
        control: control(&given.control.ok_or_else(missing("control"))?)?,
        root: given.root.or(defaults.root).ok_or_else(missing("root"))?,
        run: given.run.or(defaults.run).ok_or_else(missing("run"))?,
        bpffs: given
            .bpffs
            .or(defaults.bpffs)
            .ok_or_else(missing("bpffs"))?,
        cgroup: given
            .cgroup
            .or(defaults.cgroup)
            .ok_or_else(missing("cgroup"))?,
        connect_translation: given
            .connect_translation
            .or(defaults.connect_translation)
            .ok_or_else(missing("connect_translation"))?,
        uplinks: given
            .uplinks
            .or(defaults.uplinks)
            .ok_or_else(missing("uplinks"))?,
        node_ip: given.node_ip,
        shim: given.shim,
        bpf_object: given.bpf_object,
        resolv_conf: given
            .resolv_conf
            .or(defaults.resolv_conf)
            .ok_or_else(missing("resolv_conf"))?,
        max_pods: given
            .max_pods
            .or(defaults.max_pods)
            .ok_or_else(missing("max_pods"))?,
        flow_entries: given.flow_entries,
        log_max_bytes: given
            .log_max_bytes
            .or(defaults.log_max_bytes)
            .ok_or_else(missing("log_max_bytes"))?,
        pod_pids_limit: given
            .pod_pids_limit
            .or(defaults.pod_pids_limit)
            .ok_or_else(missing("pod_pids_limit"))?,
        swap_behavior: given
            .swap_behavior
            .or(defaults.swap_behavior)
            .ok_or_else(missing("swap_behavior"))?,
        restart_backoff_base_ms: given
            .restart_backoff_base_ms
            .or(defaults.restart_backoff_base_ms)
            .ok_or_else(missing("restart_backoff_base_ms"))?,
        restart_backoff_max_ms: given
            .restart_backoff_max_ms
            .or(defaults.restart_backoff_max_ms)
            .ok_or_else(missing("restart_backoff_max_ms"))?,
        image_backoff_base_ms: given
            .image_backoff_base_ms
            .or(defaults.image_backoff_base_ms)
            .ok_or_else(missing("image_backoff_base_ms"))?,
        image_backoff_max_ms: given
            .image_backoff_max_ms
            .or(defaults.image_backoff_max_ms)
            .ok_or_else(missing("image_backoff_max_ms"))?,
        reserved: section(given.reserved, defaults.reserved)
            .map_err(|e| value("reserved", e.message()))?,
        pressure: section(given.pressure, defaults.pressure)
            .map_err(|e| value("pressure", e.message()))?,
        join: given.join,
        registries: given.registry,
    };
    check(&config)?;
    Ok(config)
}

fn value(key: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        key,
        reason: reason.into(),
    }
}

fn check(config: &Config) -> Result<(), ConfigError> {
    let label = |text: &str| {
        !text.is_empty()
            && text.len() <= 253
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    if !label(&config.node_name) {
        return Err(value(
            "node_name",
            "must be of lower case letters, digits, '-' and '.'",
        ));
    }
    for (key, path) in [
        ("root", &config.root),
        ("run", &config.run),
        ("bpffs", &config.bpffs),
    ] {
        if !path.is_absolute() || path.parent().is_none() {
            return Err(value(key, "must be an absolute path, not the root folder"));
        }
    }
    if !config.resolv_conf.is_absolute() {
        return Err(value("resolv_conf", "must be an absolute path"));
    }
    if let Err(error) = Parent::parse(&config.cgroup) {
        return Err(value("cgroup", error.to_string()));
    }
    if let Some(entries) = config.flow_entries
        && !(1 << 10..=1 << 24).contains(&entries)
    {
        return Err(value("flow_entries", "must be from 1024 to 16777216"));
    }
    if config.uplinks.is_empty() {
        return Err(value("uplinks", "names no device"));
    }
    for registry in &config.registries {
        if let Err(error) = image::Endpoint::check(&registry.endpoint) {
            return Err(value("registry", error.to_string()));
        }
    }
    if let Some(join) = &config.join {
        let hex = join.ca_hash.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(value(
                "join.ca_hash",
                "must be sha256: and 64 hexadecimal digits",
            ));
        }
    }
    Ok(())
}

fn control(text: &str) -> Result<ControlAddress, ConfigError> {
    let wrong = || {
        value(
            "control",
            format!("{text:?} is not of the form https://HOST:PORT"),
        )
    };
    let rest = text
        .strip_prefix("https://")
        .ok_or_else(wrong)?
        .trim_end_matches('/');
    let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.parse().map_err(|_parse_error| wrong())?;
    if host.is_empty() || host.contains('/') {
        return Err(wrong());
    }
    Ok(ControlAddress {
        host: host.into(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use agent_plan::pressure::Threshold;
    use agent_plan::settings::Resources;

    use super::*;

    const LEAST: &str = "node_name = \"n1\"\ncontrol = \"https://10.77.0.1:7443\"\n";

    #[test]
    fn defaults_fill_what_is_not_written() {
        let config = parse(LEAST).unwrap();
        assert_eq!(
            config.control,
            ControlAddress {
                host: "10.77.0.1".into(),
                port: 7443
            }
        );
        assert_eq!(config.root, Path::new("/var/lib/hydrofoil"));
        assert_eq!(config.uplinks, ["eth0"]);
        assert_eq!(
            (config.max_pods, config.restart_backoff_base_ms),
            (110, 10_000)
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        // (added lines, word in the message)
        let rows = [
            ("colour = 1", "colour"),
            ("max_pods = \"many\"", "max_pods"),
            ("manifests = \"/etc/pods\"", "manifests"),
            ("cgroup = \"/\"", "cgroup"),
            ("cgroup = \"/a/../b\"", "cgroup"),
            ("root = \"relative\"", "root"),
            ("uplinks = []", "uplinks"),
            ("swap_behavior = \"UnlimitedSwap\"", "swap_behavior"),
            ("pod_pids_limit = -1", "pod_pids_limit"),
            ("flow_entries = 100", "flow_entries"),
            ("[join]\ntoken = \"t\"\nca_hash = \"md5:1\"", "ca_hash"),
            (
                "[[registry]]\nhost = \"a\"\nendpoint = \"ftp://b\"",
                "registry",
            ),
            (
                "[[registry]]\nhost = \"a\"\nendpoint = \"https://b/mirror\"",
                "registry",
            ),
            ("[join]\ntoken = \"t\"", "ca_hash"),
            ("[reserved]\ndisk = 1", "disk"),
            ("[reserved]\ncpu = \"1.5\"", "1.5"),
            ("[pressure]\ndisk_available = \"110%\"", "110%"),
            ("[pressure]\nmemory = \"1Gi\"", "memory"),
        ];
        for (lines, word) in rows {
            let error = parse(&format!("{LEAST}{lines}\n")).unwrap_err().to_string();
            assert!(error.contains(word), "{lines}: {error}");
        }
        assert!(
            parse("node_name = \"n1\"")
                .unwrap_err()
                .to_string()
                .contains("control")
        );
        for control in [
            "http://a:1",
            "https://a",
            "https://a:x",
            "https://:1",
            "https://a/b:1",
        ] {
            let text = format!("node_name = \"n\"\ncontrol = {control:?}");
            assert!(
                parse(&text).unwrap_err().to_string().contains("control"),
                "{control}"
            );
        }
    }

    #[test]
    fn a_section_is_laid_over_its_defaults() {
        let text = format!("{LEAST}[reserved]\nmemory = \"10%\"\n[pressure]\ntransition_s = 7\n");
        let config = parse(&text).unwrap();
        let capacity = Resources {
            cpu_millis: 2_000,
            memory_bytes: 4 << 30,
        };
        let reserved = config.reserved.of(capacity);
        assert_eq!(reserved.cpu_millis, 100);
        assert_eq!(reserved.memory_bytes, (4 << 30) / 10);
        let allocatable = config.pressure.allocatable(capacity, reserved);
        assert_eq!(allocatable.cpu_millis, 1_900);
        let left = (4 << 30) - (4 << 30) / 10 - (100 << 20);
        assert_eq!(allocatable.memory_bytes, left);
        let thresholds = config.pressure.thresholds();
        assert_eq!(thresholds.transition_ms, 7_000);
        assert_eq!(thresholds.disk, Threshold::Percent(10));
    }

    #[test]
    fn the_token_is_not_logged() {
        let hash = "0".repeat(64);
        let text = format!("{LEAST}[join]\ntoken = \"very-secret\"\nca_hash = \"sha256:{hash}\"");
        assert!(!format!("{:?}", parse(&text).unwrap()).contains("very-secret"));
    }
}
