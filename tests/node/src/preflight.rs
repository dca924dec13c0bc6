//! `foil-agent check` on a real node: what it finds, and that it changes nothing.

use std::path::Path;

use tests_harness::{Output, binary, process, wait_until};

use crate::node::Node;

fn check(node: &Node) -> Output {
    let mut command = node.netns.command(binary("foil-agent"));
    let config = node.folder.join("agent.toml");
    process::run(command.arg("--config").arg(config).arg("check"))
}

/// All that the node's folder holds, all links, and our groups and mounts.
fn traces(node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![node.folder.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // The control plane of the test and the agent's log go on.
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.push(path.display().to_string());
        }
    }
    let mut ip = node.netns.command("ip");
    let links = process::run(ip.args(["-o", "link"])).stdout;
    let names = links.lines().filter_map(|line| line.split(": ").nth(1));
    found.extend(names.map(str::to_owned));
    let groups = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_dir(groups).into_iter().flatten().flatten();
    let here = controllers.map(|entry| entry.path().join(&node.name));
    let here = here.chain([groups.join(&node.name)]);
    found.extend(
        here.filter(|path| path.exists())
            .map(|path| path.display().to_string()),
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours = mounts.lines().filter(|line| line.contains(&node.name));
    found.extend(ours.map(str::to_owned));
    found.sort();
    found
}

#[test]
fn a_check_finds_what_is_wrong_and_changes_nothing() {
    let mut node = Node::new();
    let before = traces(&node);
    let good = check(&node);
    assert_eq!(good.code, 0, "{}{}", good.stdout, good.stderr);
    let lines: Vec<&str> = good.stdout.lines().collect();
    assert!(
        lines.iter().all(|line| line.starts_with("ok ")),
        "{lines:#?}"
    );
    for what in [
        "configuration",
        "foil-shim",
        "root",
        "cgroups",
        "uplink eth0",
        "node_ip: 172.31.0.11",
        "kernel",
        "BPF programs",
        "image store",
        "control plane",
    ] {
        let begin = format!("ok      {what}");
        assert!(
            lines.iter().any(|line| line.starts_with(&begin)),
            "{what}: {lines:#?}"
        );
    }
    assert_eq!(traces(&node), before);

    // A firewall that may stop pods is no reason not to start.
    let policy = |policy: &str| {
        let mut iptables = node.netns.command("iptables");
        process::run(iptables.args(["-P", "FORWARD", policy])).success();
    };
    policy("DROP");
    let warned = check(&node);
    assert_eq!(warned.code, 0, "{}{}", warned.stdout, warned.stderr);
    // As nft names it, or, without that, iptables-save.
    let warning = "warning firewall: policy drop in FORWARD of ";
    assert!(warned.stdout.contains(warning), "{}", warned.stdout);
    policy("ACCEPT");

    // Nor are ports that the node's own connections share with the data plane.
    let local_ports = |range: &str| {
        let script = "echo \"$1\" > /proc/sys/net/ipv4/ip_local_port_range";
        let mut shell = node.netns.command("sh");
        process::run(shell.args(["-c", script, "sh", range])).success();
    };
    local_ports("1024 65535");
    let warned = check(&node);
    assert_eq!(warned.code, 0, "{}{}", warned.stdout, warned.stderr);
    let warning = "warning ip_local_port_range: 1024-65535 overlaps with node ports";
    assert!(warned.stdout.contains(warning), "{}", warned.stdout);
    local_ports("32768 60999");

    // Beside a running agent, whose certificate is tried now.
    node.start();
    let hello = node.control.hello(1);
    wait_until("the agent's maps", || {
        let folder = node.folder.join("bpf");
        let maps = std::fs::read_dir(folder).map_err(|error| error.to_string())?;
        if maps.count() > 5 {
            Ok(())
        } else {
            Err("few maps".to_owned())
        }
    });
    let running = check(&node);
    assert_eq!(running.code, 0, "{}{}", running.stdout, running.stderr);
    assert!(
        running.stdout.contains("accepts the node's certificate"),
        "{}",
        running.stdout
    );
    assert!(
        running.stdout.contains("of this version"),
        "{}",
        running.stdout
    );
    assert_eq!(node.control.hellos(), 1, "{hello:?}");
    node.kill();

    node.add_to_config("uplinks = [\"eth7\"]");
    let bad = check(&node);
    assert_eq!(bad.code, 1, "{}", bad.stdout);
    let wrong: Vec<&str> = bad
        .stdout
        .lines()
        .filter(|line| line.starts_with("not ok"))
        .collect();
    assert!(
        matches!(wrong.as_slice(), [line] if line.contains("eth7")),
        "{wrong:?}"
    );
    // Twice the same key: the file itself.
    node.add_to_config("uplinks = [\"eth8\"]");
    let broken = check(&node);
    assert!(
        broken.code == 1 && broken.stdout.starts_with("not ok  configuration"),
        "{}",
        broken.stdout
    );
    node.configure(crate::control::TOKEN, &node.control.ca_hash);
}
