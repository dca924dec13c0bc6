//! Cluster DNS, as programs in pods, host-network processes and `dig` see it.

use crate::fixture::web_and_client;
use crate::limits;
use crate::objects;
use crate::scene::Scene;
use crate::traffic;
use crate::upstream::{KNOWN, LARGE, LARGE_BYTES, Upstream};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use tests_harness::topology::WIRE_IP;
use tests_harness::{Cluster, process, wait_until};

/// Where nodes answer.
const ADDRESS: &str = "10.96.0.10";

/// `dig` by a process of a node: the short answer, a line a record.
fn dig(cluster: &Cluster, node: usize, args: &[&str]) -> Vec<String> {
    short(cluster.node_netns(node).command("dig"), args)
}

/// `dig` with a pod's network, without the control plane that `foil exec` needs.
fn dig_in_pod(cluster: &Cluster, pod: &objects::Pod, args: &[&str]) -> Vec<String> {
    let netns = cluster.root().join(&pod.node).join("run/ns");
    let netns = netns.join(&pod.uid).join("net");
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display())).arg("dig");
    short(command, args)
}

fn short(mut dig: Command, args: &[&str]) -> Vec<String> {
    dig.arg(format!("@{ADDRESS}"));
    dig.args(["+short", "+tries=2", "+time=3"]).args(args);
    let out = process::run(&mut dig).stdout;
    let mut lines: Vec<String> = out.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// `nslookup` of busybox in the pod `client`, which asks what its resolv.conf names.
fn nslookup(scene: &Scene<'_>, kind: &str, name: &str) -> String {
    let kind = format!("-type={kind}");
    let out = scene
        .cluster
        .foil(&["exec", "client", "--", "nslookup", &kind, name]);
    out.stdout + &out.stderr
}

/// Waits until every node gives this answer.
fn told(scene: &Scene<'_>, args: &[&str], expected: &[&str]) {
    let mut expected: Vec<&str> = expected.to_vec();
    expected.sort_unstable();
    for node in 0..2 {
        wait_until("the answer of cluster DNS", || {
            let lines = dig(scene.cluster, node, args);
            if lines == expected {
                Ok(())
            } else {
                Err(format!(
                    "node {node}: {args:?}: {lines:?}, not {expected:?}"
                ))
            }
        });
    }
}

/// Names by musl's resolver in the pod `client`, where there is a compiler for it.
fn musl(scene: &mut Scene<'_>, names: &[&str], address: &str) {
    let compiler = Path::new("/usr/bin/musl-gcc");
    if !compiler.exists() {
        scene.say("musl's resolver is not tried: there is no musl-gcc (Debian: musl-tools)");
        return;
    }
    let client = objects::ready(scene.cluster, "client");
    let pid = limits::init_pid(scene.cluster, &client);
    let program = format!("/proc/{pid}/root/lookup");
    let mut compile = Command::new(compiler);
    compile.args(["-static", "-o", &program]);
    compile.arg(tests_harness::workspace().join("tests/cluster/src/lookup.c"));
    process::run(&mut compile).success();
    for name in names {
        let found = scene.foil(&["exec", "client", "--", "/lookup", name]);
        assert_eq!(found.trim(), address, "{name}");
    }
    let out = scene.foil_may_fail(&["exec", "client", "--", "/lookup", "nothing"]);
    scene.check(
        "musl resolves the same names, and not others",
        out.code == 1,
        out.stderr,
    );
}

const DB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec:\n  clusterIP: None\n  \
    selector: {app: db}\n  ports: [{name: sql, port: 8080}]\n";

fn db(index: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: db-{index}, labels: {{app: db}}}}\nspec:\n  \
         hostname: db-{index}\n  subdomain: db\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {{name: app, image: 'foil/app:1', command: [app], args: [serve]}}\n"
    )
}

fn external(name: &str, target: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: ExternalName\n  \
         externalName: {target}\n"
    )
}

pub(crate) fn services_and_pods_have_names(scene: &mut Scene<'_>) {
    let (_, target) = web_and_client(scene);
    let namespace = scene.cluster.namespace().to_owned();
    let ip = target.trim_end_matches(":80").to_owned();
    let domain = format!("{namespace}.svc.cluster.local");
    let resolv = scene.foil(&["exec", "client", "--", "cat", "/etc/resolv.conf"]);
    let search = format!("search {domain} svc.cluster.local cluster.local");
    let lines = [search.as_str(), "nameserver 10.96.0.10", "options ndots:5"];
    let named = resolv.lines().filter(|line| lines.contains(line)).count() == 3;
    scene.check("the pod's resolv.conf names cluster DNS", named, &resolv);
    let services = scene.foil(&["get", "services", "-n", "kube-system"]);
    scene.check(
        "kube-dns is a service",
        services.contains(ADDRESS),
        &services,
    );

    // glibc's resolver, which `app` is linked with.
    for name in [
        "web",
        &format!("web.{namespace}"),
        &format!("web.{domain}."),
    ] {
        let calls = traffic::call_from_pod(scene.cluster, "client", &format!("{name}:80"), 5);
        assert_eq!((calls.ok, calls.failed), (5, 0), "{name}: {calls:?}");
    }
    scene.check("glibc resolves short and whole names", true, "");
    let names = [
        "web",
        &format!("web.{namespace}"),
        &format!("web.{domain}."),
    ];
    musl(scene, &names, &ip);
    let found = nslookup(scene, "a", &format!("web.{domain}"));
    assert!(found.contains(&ip), "{found}");
    let found = nslookup(scene, "a", &format!("nothing.{domain}"));
    assert!(found.contains("NXDOMAIN"), "{found}");

    told(scene, &["A", &format!("web.{domain}")], &[&ip]);
    told(scene, &["AAAA", &format!("web.{domain}")], &[]);
    let srv = format!("0 100 80 web.{domain}.");
    told(
        scene,
        &["SRV", &format!("_http._tcp.web.{domain}")],
        &[&srv],
    );
    told(scene, &["-x", &ip], &[&format!("web.{domain}.")]);
    told(scene, &["TXT", "dns-version.cluster.local"], &["\"1.1.0\""]);
    told(scene, &["+tcp", "A", &format!("WEB.{domain}")], &[&ip]);

    scene.apply_text(DB, "a headless Service").success();
    for index in 0..2 {
        scene
            .apply_text(&db(index), "a Pod with hostname and subdomain")
            .success();
    }
    let pods = ["db-0", "db-1"].map(|name| objects::ready(scene.cluster, name));
    let ips = pods.each_ref().map(|pod| pod.ip.as_str());
    told(scene, &["A", &format!("db.{domain}")], &ips);
    told(scene, &["A", &format!("db-1.db.{domain}")], &ips[1..]);
    let srv = [0, 1].map(|n| format!("0 50 8080 db-{n}.db.{domain}."));
    let srv = srv.each_ref().map(String::as_str);
    told(scene, &["SRV", &format!("_sql._tcp.db.{domain}")], &srv);
    told(scene, &["-x", ips[0]], &[&format!("db-0.db.{domain}.")]);
    let dashed = ips[0].replace('.', "-");
    told(
        scene,
        &["A", &format!("{dashed}.{namespace}.pod.cluster.local")],
        &ips[..1],
    );
    let calls = traffic::call_from_pod(scene.cluster, "client", "db-0.db:8080", 3);
    assert_eq!((calls.ok, calls.failed), (3, 0), "{calls:?}");
    let hosts = scene.foil(&["exec", "db-0", "--", "cat", "/etc/hosts"]);
    let line = format!("{}\tdb-0.db.{domain}\tdb-0", ips[0]);
    scene.check(
        "the pod knows its whole name",
        hosts.contains(&line),
        &hosts,
    );

    // A name for a name of the cluster, one after the other.
    scene
        .apply_text(
            &external("alias", &format!("web.{domain}")),
            "an ExternalName",
        )
        .success();
    told(
        scene,
        &["CNAME", &format!("alias.{domain}")],
        &[&format!("web.{domain}.")],
    );
    let calls = traffic::call_from_pod(scene.cluster, "client", "alias:80", 3);
    assert_eq!((calls.ok, calls.failed), (3, 0), "{calls:?}");

    scene.foil(&["delete", "pod", "db-1", "--grace-period", "1"]);
    told(scene, &["A", &format!("db.{domain}")], &ips[..1]);
    scene.foil(&["delete", "pod", "db-0", "--grace-period", "1"]);
    told(scene, &["A", &format!("db.{domain}")], &[]);
    scene.foil(&["delete", "service", "db", "alias"]);
    let out = scene.foil_may_fail(&["delete", "service", "kube-dns", "-n", "kube-system"]);
    scene.check("kube-dns stays", out.code == 1, &out.stderr);
}

/// A pod with this policy. It listens at a port of its own, for those in the host network.
fn policed(name: &str, port: u16, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n{spec}  containers:\n  - {{name: app, image: \
         'foil/app:1', command: [app], args: [serve, --port, '{port}']}}\n"
    )
}

pub(crate) fn pods_ask_whom_their_policy_names(scene: &mut Scene<'_>) {
    web_and_client(scene);
    let namespace = scene.cluster.namespace().to_owned();
    let whole = format!("web.{namespace}.svc.cluster.local");
    let search = format!("search {namespace}.svc.cluster.local svc.cluster.local cluster.local");
    let own = format!("search {namespace}.svc.cluster.local");
    let cluster = format!("nameserver {ADDRESS}");
    let node = format!("nameserver {WIRE_IP}");
    let config = format!(
        "  dnsPolicy: None\n  dnsConfig: {{nameservers: [{ADDRESS}], searches: \
         [{namespace}.svc.cluster.local], options: [{{name: ndots, value: '1'}}, {{name: edns0}}]}}\n"
    );
    let more = "  dnsConfig: {searches: [corp.example], options: [{name: ndots, value: '2'}]}\n";
    let both = format!("{search} corp.example");
    // (pod, fields, lines of its resolv.conf, a name that it can resolve)
    let rows = [
        (
            "host-net-first",
            "  hostNetwork: true\n  dnsPolicy: ClusterFirstWithHostNet\n",
            vec![search.as_str(), &cluster, "options ndots:5"],
            Some("web"),
        ),
        (
            "none",
            &config,
            vec![&own, &cluster, "options ndots:1 edns0"],
            Some("web"),
        ),
        (
            "first-and-more",
            more,
            vec![&both, &cluster, "options ndots:2"],
            Some(whole.as_str()),
        ),
        ("host-net", "  hostNetwork: true\n", vec![&node], None),
        ("default", "  dnsPolicy: Default\n", vec![&node], None),
    ];
    for (port, (name, spec, _, _)) in (18_080..).zip(&rows) {
        let manifest = policed(name, port, spec);
        scene
            .apply_text(&manifest, &format!("Pod {name}"))
            .success();
    }
    for (name, _, expected, resolved) in &rows {
        objects::ready(scene.cluster, name);
        let resolv = scene.foil(&["exec", name, "--", "cat", "/etc/resolv.conf"]);
        let lines: Vec<&str> = resolv.lines().filter(|l| !l.is_empty()).collect();
        let (mut lines, mut expected) = (lines, expected.clone());
        lines.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lines, expected, "{name}");
        if let Some(target) = resolved {
            let calls = traffic::call_from_pod(scene.cluster, name, &format!("{target}:80"), 3);
            assert_eq!((calls.ok, calls.failed), (3, 0), "{name}: {calls:?}");
        }
        scene.foil(&["delete", "pod", name, "--grace-period", "1"]);
    }
    let nobody = policed("nobody", 18_099, "  dnsPolicy: None\n");
    let out = scene.apply_text(&nobody, "dnsPolicy None without servers");
    let words = "must provide at least one DNS nameserver when `dnsPolicy` is None";
    scene.check(
        "None needs a server",
        out.code == 1 && out.stderr.contains(words),
        &out.stderr,
    );
}

pub(crate) fn other_names_are_forwarded_and_kept(scene: &mut Scene<'_>) {
    web_and_client(scene);
    let upstream = Upstream::start(scene.cluster);
    let node = objects::node_index(scene.cluster, &objects::ready(scene.cluster, "client").node);
    let address = Ipv4Addr::from(KNOWN.1).to_string();
    let counted = |text: &str| upstream.asked().iter().filter(|line| *line == text).count();

    for _ in 0..5 {
        let found = nslookup(scene, "a", KNOWN.0);
        assert!(found.contains(&address), "{found}");
    }
    let question = format!("udp {} A", KNOWN.0);
    scene.check(
        "asked upstream once",
        counted(&question) == 1,
        format!("{:?}", upstream.asked()),
    );

    let absent = ["A", "nothing.example.com."];
    for _ in 0..3 {
        assert!(dig(scene.cluster, node, &absent).is_empty());
    }
    let asked = counted("udp nothing.example.com. A");
    scene.check("that there is no such name is kept too", asked == 1, asked);

    // `dig` asks again over TCP by itself.
    let large = dig(scene.cluster, node, &["TXT", LARGE]).concat();
    assert!(large.len() >= LARGE_BYTES, "{} bytes", large.len());
    assert_eq!(
        counted(&format!("tcp {LARGE} TXT")),
        1,
        "{:?}",
        upstream.asked()
    );
    let cut = dig(scene.cluster, node, &["+ignore", "TXT", LARGE]).concat();
    assert!(cut.is_empty(), "does not fit into UDP: {cut}");

    scene
        .apply_text(
            &external("ext", KNOWN.0),
            "an ExternalName of another domain",
        )
        .success();
    let name = format!("ext.{}.svc.cluster.local", scene.cluster.namespace());
    told(scene, &["A", &name], &[KNOWN.0, &address]);
    let own: Vec<String> = upstream.asked();
    let ours = own
        .iter()
        .filter(|line| line.contains("cluster.local"))
        .count();
    scene.check(
        "names of the cluster are never asked for elsewhere",
        ours == 0,
        format!("{own:?}"),
    );
    scene.foil(&["delete", "service", "ext"]);
}

pub(crate) fn answers_without_control_plane_and_over_agent_restarts(scene: &mut Scene<'_>) {
    let (_, target) = web_and_client(scene);
    let ip = target.trim_end_matches(":80").to_owned();
    let name = format!("web.{}.svc.cluster.local", scene.cluster.namespace());
    let client = objects::ready(scene.cluster, "client");
    told(scene, &["A", &name], &[&ip]);
    scene.cluster.kill_control();
    assert_eq!(
        dig_in_pod(scene.cluster, &client, &["A", &name]),
        [ip.as_str()]
    );
    for node in 0..2 {
        scene.cluster.kill_agent(node);
        scene.cluster.start_agent(node);
    }
    // What was pushed is on the nodes' disks.
    told(scene, &["A", &name], &[&ip]);
    assert_eq!(
        dig_in_pod(scene.cluster, &client, &["A", &name]),
        [ip.as_str()]
    );
    scene.cluster.start_control();
    scene.cluster.wait_nodes_ready();
    scene.apply_text(DB, "a headless Service").success();
    scene
        .apply_text(&db(0), "a Pod with hostname and subdomain")
        .success();
    let pod = objects::ready(scene.cluster, "db-0");
    let name = format!("db-0.db.{}.svc.cluster.local", scene.cluster.namespace());
    told(scene, &["A", &name], &[&pod.ip]);
    scene.foil(&["delete", "pod", "db-0", "--grace-period", "1"]);
    scene.foil(&["delete", "service", "db"]);
}
