//! A real registry (Debian's docker-registry) inside the wire's namespace.
//!
//! Not the images: those are built and pushed by `image`. Called by `cluster`.

use crate::topology::WIRE_IP;
use crate::{NetNs, Process, wait_until};
use std::path::Path;

/// Port on the wire's address, plain HTTP.
pub const PORT: u16 = 5000;

/// Starts it with its storage and log below `root`, and waits until it answers.
///
/// # Panics
/// If `docker-registry` is not installed or does not come up.
pub fn start(wire: &NetNs, root: &Path) -> Process {
    let storage = root.join("registry");
    std::fs::create_dir_all(&storage).expect("folder of the registry");
    let config = root.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  \
         delete: {{enabled: true}}\nhttp: {{addr: \"{WIRE_IP}:{PORT}\"}}\n",
        storage.display()
    );
    std::fs::write(&config, text).expect("config of the registry");
    let mut command = wire.command("docker-registry");
    command.arg("serve").arg(&config);
    let mut process = Process::spawn("docker-registry", &mut command, &root.join("registry.log"));
    wait_until("registry", || {
        assert!(
            process.is_running(),
            "registry ended:\n{}",
            process.tail(20)
        );
        let reached = wire.enter(|| std::net::TcpStream::connect((WIRE_IP, PORT)));
        reached.map(drop).map_err(|error| error.to_string())
    });
    process
}

/// `172.31.0.1:5000`
pub fn address() -> String {
    format!("{WIRE_IP}:{PORT}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;
    use crate::{image, process};

    #[test]
    fn an_image_that_was_pushed_can_be_inspected() {
        let topology = Topology::create(&crate::unique_name(), 0);
        let folder = tempfile::tempdir().expect("a folder");
        let registry = start(topology.wire(), folder.path());
        let layout = image::busybox_layout(folder.path());
        let reference = format!("{}/library/busybox:latest", address());
        image::push(topology.wire(), &layout, &reference);
        let mut skopeo = topology.wire().command("skopeo");
        skopeo
            .args(["inspect", "--tls-verify=false"])
            .arg(format!("docker://{reference}"));
        let seen = process::run(&mut skopeo).success();
        assert!(seen.contains("\"Layers\""), "{seen}");
        drop(registry);
    }
}
