//! Variables and references, by rows.

use std::collections::BTreeMap;

use proto::v1;

use super::{MOST, resolve};

type Port = (&'static str, &'static str, u32);

fn service(namespace: &str, name: &str, ips: &[&str], ports: &[Port]) -> v1::Service {
    let ports = ports.iter().map(|(name, protocol, port)| v1::ServicePort {
        name: (*name).into(),
        protocol: (*protocol).into(),
        port: *port,
        ..v1::ServicePort::default()
    });
    v1::Service {
        namespace: namespace.into(),
        name: name.into(),
        cluster_ips: ips.iter().map(|ip| (*ip).into()).collect(),
        ports: ports.collect(),
        ..v1::Service::default()
    }
}

/// By "namespace/name".
fn by_name(list: impl IntoIterator<Item = v1::Service>) -> BTreeMap<String, v1::Service> {
    let named = |s: v1::Service| (format!("{}/{}", s.namespace, s.name), s);
    list.into_iter().map(named).collect()
}

fn pod(links: bool) -> v1::PodSpec {
    v1::PodSpec {
        namespace: "team".into(),
        enable_service_links: links,
        ..v1::PodSpec::default()
    }
}

fn variable(name: &str, value: &str, expand: bool) -> v1::EnvVar {
    v1::EnvVar {
        name: name.into(),
        value: value.into(),
        expand,
    }
}

fn texts(env: &[v1::EnvVar]) -> Vec<String> {
    let text = |e: &v1::EnvVar| format!("{}={}", e.name, e.value);
    env.iter().map(text).collect()
}

/// Of a container that has none of its own.
fn links(links: bool, services: impl IntoIterator<Item = v1::Service>) -> Vec<String> {
    let container = v1::ContainerSpec::default();
    let made = resolve(&pod(links), &container, &by_name(services)).unwrap();
    texts(&made.env)
}

#[test]
fn a_service_is_named_as_kubernetes_names_it() {
    let rows: [(&str, v1::Service, &[&str]); 7] = [
        (
            "two named ports, and a name with a dash",
            service(
                "team",
                "my-db",
                &["10.96.0.5", "fd00::5"],
                &[("sql", "TCP", 5432), ("dns-u", "UDP", 53)],
            ),
            &[
                "MY_DB_SERVICE_HOST=10.96.0.5",
                "MY_DB_SERVICE_PORT=5432",
                "MY_DB_SERVICE_PORT_SQL=5432",
                "MY_DB_SERVICE_PORT_DNS_U=53",
                "MY_DB_PORT=tcp://10.96.0.5:5432",
                "MY_DB_PORT_5432_TCP=tcp://10.96.0.5:5432",
                "MY_DB_PORT_5432_TCP_PROTO=tcp",
                "MY_DB_PORT_5432_TCP_PORT=5432",
                "MY_DB_PORT_5432_TCP_ADDR=10.96.0.5",
                "MY_DB_PORT_53_UDP=udp://10.96.0.5:53",
                "MY_DB_PORT_53_UDP_PROTO=udp",
                "MY_DB_PORT_53_UDP_PORT=53",
                "MY_DB_PORT_53_UDP_ADDR=10.96.0.5",
            ],
        ),
        (
            "a port without a name and a protocol, and IPv6",
            service("team", "web", &["fd00::1"], &[("", "", 80)]),
            &[
                "WEB_SERVICE_HOST=fd00::1",
                "WEB_SERVICE_PORT=80",
                "WEB_PORT=tcp://[fd00::1]:80",
                "WEB_PORT_80_TCP=tcp://[fd00::1]:80",
                "WEB_PORT_80_TCP_PROTO=tcp",
                "WEB_PORT_80_TCP_PORT=80",
                "WEB_PORT_80_TCP_ADDR=fd00::1",
            ],
        ),
        (
            "headless",
            service("team", "h", &[], &[("", "TCP", 1)]),
            &[],
        ),
        (
            "no address",
            service("team", "p", &[""], &[("", "TCP", 1)]),
            &[],
        ),
        ("no port", service("team", "n", &["10.96.0.6"], &[]), &[]),
        (
            "it stands for another name",
            v1::Service {
                external_name: "example.com".into(),
                ..service("team", "e", &[], &[])
            },
            &[],
        ),
        (
            "of a namespace that begins like the pod's",
            service("team-b", "web", &["10.96.0.7"], &[("", "TCP", 80)]),
            &[],
        ),
    ];
    for (row, service, expected) in rows {
        assert_eq!(links(true, [service.clone()]), expected, "{row}");
        assert!(links(false, [service]).is_empty(), "{row}");
    }
}

#[test]
fn the_control_plane_is_named_to_each_pod() {
    let master = service(
        "default",
        "kubernetes",
        &["10.96.0.1"],
        &[("https", "TCP", 443)],
    );
    let named = [
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "KUBERNETES_SERVICE_PORT=443",
        "KUBERNETES_SERVICE_PORT_HTTPS=443",
        "KUBERNETES_PORT=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP_PROTO=tcp",
        "KUBERNETES_PORT_443_TCP_PORT=443",
        "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
    ];
    let other = service("default", "web", &["10.96.0.2"], &[("", "TCP", 80)]);
    for wants in [true, false] {
        assert_eq!(links(wants, [master.clone(), other.clone()]), named);
    }
    // One of that name in the pod's namespace is the one that is named, if it has an address.
    let own = service("team", "kubernetes", &["10.96.0.9"], &[("", "TCP", 80)]);
    let headless = service("team", "kubernetes", &[], &[("", "TCP", 80)]);
    let host =
        |wants: bool, own: &v1::Service| links(wants, [master.clone(), own.clone()])[0].clone();
    assert_eq!(host(true, &own), "KUBERNETES_SERVICE_HOST=10.96.0.9");
    assert_eq!(links(true, [master.clone(), own.clone()]).len(), 7);
    assert_eq!(host(false, &own), named[0]);
    assert_eq!(host(true, &headless), named[0]);
}

#[test]
fn own_variables_come_before_those_of_services() {
    let services = by_name([service("team", "db", &["10.96.0.5"], &[("", "TCP", 1)])]);
    let container = v1::ContainerSpec {
        env: vec![
            variable("URL", "http://$(DB_SERVICE_HOST)/$(DB_PORT)", true),
            variable("DB_PORT", "mine", false),
            variable("AGAIN", "$(DB_PORT) $$(URL) $(LATER) $(NOPE)", true),
            variable("OBJECT", "$(URL)", false),
            variable("LATER", "x", false),
            variable("SIZE", "9", false),
            variable("SIZE", "$(SIZE)0", true),
        ],
        command: vec!["$(DB_SERVICE_PORT)".into(), "$$(A) $(NOPE)".into()],
        args: vec!["$(DB_PORT)".into(), "$(OBJECT)".into()],
        ..v1::ContainerSpec::default()
    };
    let made = resolve(&pod(true), &container, &services).unwrap();
    assert_eq!(
        texts(&made.env),
        [
            "URL=http://10.96.0.5/tcp://10.96.0.5:1",
            "DB_PORT=mine",
            "AGAIN=mine $(URL) $(LATER) $(NOPE)",
            "OBJECT=$(URL)",
            "LATER=x",
            "SIZE=90",
            "DB_SERVICE_HOST=10.96.0.5",
            "DB_SERVICE_PORT=1",
            "DB_PORT_1_TCP=tcp://10.96.0.5:1",
            "DB_PORT_1_TCP_PROTO=tcp",
            "DB_PORT_1_TCP_PORT=1",
            "DB_PORT_1_TCP_ADDR=10.96.0.5",
        ]
    );
    assert_eq!(made.command, ["1", "$(A) $(NOPE)"]);
    assert_eq!(made.args, ["mine", "$(URL)"]);
    let without = resolve(&pod(false), &container, &services).unwrap();
    assert_eq!(without.command, ["$(DB_SERVICE_PORT)", "$(A) $(NOPE)"]);
}

#[test]
fn sub_paths_stay_inside_their_volume() {
    // (subPath, subPathExpr, sub path or error)
    let rows: [(&str, &str, Result<&str, &str>); 11] = [
        ("", "", Ok("")),
        ("a/b", "", Ok("a/b")),
        ("$(A)", "", Ok("$(A)")),
        ("", "x/$(A)", Ok("x/1")),
        (
            "",
            "$(NOPE)",
            Err("missing value for NOPE in subPathExpr \"$(NOPE)\""),
        ),
        (
            "",
            "a/$(EMPTY)/$(NOPE)",
            Err("missing value for EMPTY, NOPE in subPathExpr \"a/$(EMPTY)/$(NOPE)\""),
        ),
        ("", "$$(A)", Ok("$(A)")),
        ("", "$(REFERENCE)", Ok("$(Z)")),
        (
            "a/../..",
            "",
            Err("subPath \"a/../..\" must be a relative path without '..'"),
        ),
        (
            "",
            "$(UP)/x",
            Err("subPath \"../x\" must be a relative path without '..'"),
        ),
        (
            "",
            "$(ROOT)",
            Err("subPath \"/etc\" must be a relative path without '..'"),
        ),
    ];
    for (literal, expression, expected) in rows {
        let container = v1::ContainerSpec {
            env: vec![
                variable("A", "1", false),
                variable("UP", "..", false),
                variable("ROOT", "/etc", false),
                variable("EMPTY", "", false),
                variable("REFERENCE", "$(Z)", false),
            ],
            mounts: vec![v1::VolumeMount {
                sub_path: literal.into(),
                sub_path_expr: expression.into(),
                ..v1::VolumeMount::default()
            }],
            ..v1::ContainerSpec::default()
        };
        let made = resolve(&pod(true), &container, &BTreeMap::new());
        let path = made.map(|c| c.mounts[0].sub_path.clone());
        let path = path.map_err(|error| error.0);
        assert_eq!(
            path.as_deref().map_err(String::as_str),
            expected,
            "{literal:?} {expression:?}"
        );
    }
}

/// Containers that take little as they are sent and much when they are made.
#[test]
fn what_is_made_of_references_is_bounded_while_it_is_made() {
    // Each variable is ten times the one before: the last would have 10 TB.
    let mut nested = vec![variable("V0", &"x".repeat(1024), false)];
    for level in 1..=10 {
        let value = format!("$(V{})", level - 1).repeat(10);
        nested.push(variable(&format!("V{level}"), &value, true));
    }
    let large = vec![variable("A", &"x".repeat(1 << 20), false)];
    let words = vec!["$(A)".to_owned(); 100];
    let with = |change: &dyn Fn(&mut v1::ContainerSpec)| {
        let mut container = v1::ContainerSpec {
            env: large.clone(),
            ..v1::ContainerSpec::default()
        };
        change(&mut container);
        container
    };
    let rows = [
        ("nested", with(&|c| c.env = nested.clone()), false),
        ("command", with(&|c| c.command = words.clone()), false),
        ("args", with(&|c| c.args = words.clone()), false),
        (
            "sub path",
            with(&|c| {
                c.mounts = vec![v1::VolumeMount {
                    sub_path_expr: "$(A)".repeat(100),
                    ..v1::VolumeMount::default()
                }];
            }),
            false,
        ),
        ("few", with(&|c| c.args = words[..3].to_vec()), true),
    ];
    for (row, container, fits) in rows {
        let made = resolve(&pod(true), &container, &BTreeMap::new());
        let said = made.map(|_| ()).map_err(|error| error.0);
        let most = format!("at most {MOST} bytes are allowed");
        match said {
            Ok(()) => assert!(fits, "{row}"),
            Err(said) => assert!(!fits && said.contains(&most), "{row}: {said}"),
        }
    }
}
