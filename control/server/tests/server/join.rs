//! Who becomes which node, for how long, and what a node may say.

use std::sync::Arc;

use control_server::pki::Signed;
use control_server::start::Running;
use control_server::token::Scope;
use proto::v1::node_client::NodeClient;
use proto::v1::{self, node_up};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::transport::Identity;

use crate::harness::*;

fn key() -> rcgen::KeyPair {
    rcgen::KeyPair::generate().unwrap()
}

/// Opens a session; the code with which it is refused, if it is.
async fn session(server: &Server, node: &str, identity: Identity) -> Result<(), Code> {
    let mut client = node_client(server.running(), identity).await;
    let hello = v1::Hello {
        node_name: node.to_owned(),
        ..v1::Hello::default()
    };
    let hello = tokio_stream::iter([up(node_up::Up::Hello(hello))]);
    let opened = client.session(hello.chain(tokio_stream::pending())).await;
    opened.map(drop).map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_does_not_take_a_name_over() {
    let mut server = server().await;
    let (first, second) = (key(), key());
    let ask = async |server: &Server, node: &str, token: &str, key: &rcgen::KeyPair| {
        let joined = join(server.running(), node, "system:nodes", token, key).await;
        joined.map_err(|status| status.code())
    };
    let (once, named) = (
        server.token(&Scope::Once),
        server.token(&Scope::Node("n1".to_owned())),
    );
    let original = ask(&server, "n1", &once, &first).await.unwrap();
    // The answer may be lost: the same machine asks again.
    ask(&server, "n1", &once, &first).await.unwrap();
    let denied = Some(Code::PermissionDenied);
    // Used, by another machine, for another name.
    assert_eq!(ask(&server, "n2", &once, &second).await.err(), denied);
    // A good token, but the name is taken: also before the node ever had a session.
    assert_eq!(ask(&server, "n1", &named, &second).await.err(), denied);
    let fresh = server.token(&Scope::Once);
    assert_eq!(ask(&server, "n1", &fresh, &second).await.err(), denied);
    // That did not cost the token.
    ask(&server, "n2", &fresh, &second).await.unwrap();
    // The machine itself may come back with its key, say without its certificate.
    ask(&server, "n1", &named, &first).await.unwrap();
    session(&server, "n1", original.clone()).await.unwrap();

    // Once the object is deleted the name is free, and the old key is a stranger's:
    // by its certificate, by the tokens that it has used, and after the name's next
    // owner has come.
    server.delete("node", "n1").await;
    assert_eq!(session(&server, "n1", original.clone()).await.err(), denied);
    for token in [&once, &named] {
        assert_eq!(ask(&server, "n1", token, &first).await.err(), denied);
    }
    assert!(server.get("node", "n1").await.is_err());
    // The machine may have made itself a new key.
    let third = key();
    for token in [&once, &named] {
        assert_eq!(ask(&server, "n1", token, &third).await.err(), denied);
    }
    assert!(server.get("node", "n1").await.is_err());
    let fresh = server.token(&Scope::Node("n1".to_owned()));
    let new = ask(&server, "n1", &fresh, &third).await.unwrap();
    assert_eq!(session(&server, "n1", original).await.err(), denied);
    session(&server, "n1", new).await.unwrap();
}

/// As with kubelet, a Node object that an operator made waits for its machine; unlike
/// there, it does not let a machine back in that was taken out.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_object_that_an_operator_made_is_for_a_machine_with_a_token() {
    let mut server = server().await;
    let (first, second) = (key(), key());
    let ask = async |server: &Server, token: &str, key: &rcgen::KeyPair| {
        let joined = join(server.running(), "n1", "system:nodes", token, key).await;
        joined.map_err(|status| status.code())
    };
    let node = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n1", "labels": {"rack": "7"}}});
    server.apply(&node).await;
    let token = server.token(&Scope::Once);
    let original = ask(&server, &token, &first).await.unwrap();
    session(&server, "n1", original.clone()).await.unwrap();
    let stored = server.get("node", "n1").await.unwrap();
    assert_eq!(stored["metadata"]["labels"]["rack"], "7");
    let known = text(&stored, "/metadata/annotations/hydrofoil.dev~1node-key").to_owned();
    assert!(known.starts_with("sha256:"), "{stored:#}");

    // Removed, and made again by an operator: the old machine stays out.
    server.delete("node", "n1").await;
    server.apply(&node).await;
    let denied = Some(Code::PermissionDenied);
    assert_eq!(session(&server, "n1", original.clone()).await.err(), denied);
    assert_eq!(ask(&server, &token, &first).await.err(), denied);
    // A new token lets it in, or the operator who names its key.
    let fresh = server.token(&Scope::Node("n1".to_owned()));
    ask(&server, &fresh, &first).await.unwrap();
    session(&server, "n1", original.clone()).await.unwrap();
    assert_eq!(ask(&server, &fresh, &second).await.err(), denied);
    server.delete("node", "n1").await;
    let mut named = node.clone();
    named["metadata"]["annotations"] = json!({"hydrofoil.dev/node-key": known});
    server.apply(&named).await;
    session(&server, "n1", original).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_asks_too_often_is_refused_before_its_token_is_looked_at() {
    let server = server().await;
    let channel = endpoint(server.running(), trusting(server.running()));
    let mut client = NodeClient::new(channel.connect().await.unwrap());
    let request = v1::JoinRequest {
        token: "abcdef.00".to_owned(),
        csr_pem: csr("n1", "system:nodes", &key()),
        node_name: "n1".to_owned(),
    };
    let mut looked_at = 0;
    loop {
        let refused = client.join(request.clone()).await.unwrap_err();
        if refused.code() == Code::ResourceExhausted {
            break;
        }
        assert_eq!(refused.code(), Code::PermissionDenied);
        looked_at += 1;
        assert!(looked_at < 2000);
    }
    assert!(looked_at >= 50, "{looked_at}");
}

/// Connections without a handshake are closed when there are many of one source; others are
/// served beside them.
#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_of_one_machine_shut_out_no_other() {
    let server = server().await;
    let address = server.running().address;
    let connect = async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        socket.connect(address).await.unwrap()
    };
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(connect().await);
    }
    let mut last = connect().await;
    // All of them are closed in the end; this one at once.
    let (mut first, mut other) = ([0], [0]);
    tokio::select! {
        biased;
        closed = last.read(&mut other) => assert_eq!(closed.unwrap_or(0), 0),
        _ = silent[0].read(&mut first) => panic!("the first is closed before the last"),
    }
    let mut client = admin(server.running()).await;
    client.version(v1::VersionRequest {}).await.unwrap();
}

/// Two machines that were given one address, at the same moment.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_with_one_address_one_is_refused_by_name() {
    let server = server().await;
    for round in 0..5 {
        let open = async |node: String| {
            let mut client = server.node_client(&node).await;
            let hello = v1::Hello {
                node_name: node,
                status: Some(v1::NodeStatus {
                    addresses: vec![format!("192.0.2.{round}")],
                    ..v1::NodeStatus::default()
                }),
                ..v1::Hello::default()
            };
            let stream = tokio_stream::iter([up(node_up::Up::Hello(hello))]);
            client.session(stream.chain(tokio_stream::pending())).await
        };
        let names = ["a", "b"].map(|n| format!("{n}{round}"));
        for name in &names {
            server.identity(name).await;
        }
        let [a, b] = names.clone();
        let (a, b) = tokio::join!(open(a), open(b));
        let (other, refused) = match (&a, &b) {
            (Ok(_), Err(refused)) => (&names[0], refused),
            (Err(refused), Ok(_)) => (&names[1], refused),
            (Ok(_), Ok(_)) | (Err(_), Err(_)) => panic!("{round}: {a:?} {b:?}"),
        };
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(other.as_str()), "{refused}");
    }
}

fn renewal(csr_pem: String) -> v1::RenewRequest {
    v1::RenewRequest { csr_pem }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_for_its_own_name_and_key() {
    let server = server().await;
    let (own, other) = (key(), key());
    let token = server.token(&Scope::Once);
    let first = join(server.running(), "n1", "system:nodes", &token, &own).await;
    let mut identity = first.unwrap();
    let mut client = node_client(server.running(), identity.clone()).await;
    for csr_pem in [
        csr("n1", "system:nodes", &other),
        csr("n2", "system:nodes", &own),
        csr("n1", "system:masters", &own),
    ] {
        let refused = client.renew(renewal(csr_pem)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    // Each by the one before.
    for _ in 0..3 {
        let mut client = node_client(server.running(), identity).await;
        let answer = client.renew(renewal(csr("n1", "system:nodes", &own))).await;
        let pem = answer.unwrap().into_inner().certificate_pem;
        identity = Identity::from_pem(pem, own.serialize_pem());
    }
    session(&server, "n1", identity).await.unwrap();
    // A node that asks again and again is refused, and no other is.
    let mut renewed = 0;
    let refused = loop {
        match client.renew(renewal(csr("n1", "system:nodes", &own))).await {
            Ok(_) => renewed += 1,
            Err(refused) => break refused,
        }
        assert!(renewed < 1000);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let token = server.token(&Scope::Once);
    let second = join(server.running(), "n2", "system:nodes", &token, &other).await;
    let mut client = node_client(server.running(), second.unwrap()).await;
    let renewed = client
        .renew(renewal(csr("n2", "system:nodes", &other)))
        .await;
    renewed.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_certificate() {
    // On a slow machine a certificate may end before its session begins.
    for seconds in [3, 10, 60] {
        let server = server_with(&format!("node_certificate_seconds = {seconds}")).await;
        let own = key();
        let token = server.token(&Scope::Once);
        let identity = join(server.running(), "n1", "system:nodes", &token, &own).await;
        let tls = trusting(server.running()).identity(identity.unwrap());
        let mut client = NodeClient::new(endpoint(server.running(), tls).connect_lazy());
        let hello = v1::Hello {
            node_name: "n1".to_owned(),
            ..v1::Hello::default()
        };
        let hello = tokio_stream::iter([up(node_up::Up::Hello(hello))]);
        let opened = client.session(hello.chain(tokio_stream::pending())).await;
        let Ok(opened) = opened else { continue };
        let mut down = opened.into_inner();
        let mut goodbye = None;
        while let Some(Ok(message)) = down.next().await {
            if let Some(v1::node_down::Down::Goodbye(said)) = message.down {
                goodbye = Some(said.reason);
            }
        }
        assert_eq!(goodbye.as_deref(), Some("its certificate has ended"));
        let late = client.renew(renewal(csr("n1", "system:nodes", &own))).await;
        assert_eq!(late.unwrap_err().code(), Code::PermissionDenied);
        return;
    }
    panic!("no session within the life of a certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_say_which_addresses_it_and_its_pods_have() {
    let mut server = server().await;
    let (n1, n2) = (server.agent("n1").await, server.agent("n2").await);
    let mut fixed = pod("p");
    fixed["spec"]["nodeName"] = json!("n1");
    server.apply(&fixed).await;
    let mut host = pod("host");
    host["spec"]["nodeName"] = json!("n1");
    host["spec"]["hostNetwork"] = json!(true);
    server.apply(&host).await;
    let ready = |pods: &[Value]| pods.len() == 2 && pods.iter().all(is_ready);
    let pods = server.until("pods", "", "2 ready pods", ready).await;
    let of = |pods: &[Value], name: &str| {
        let found = pods.iter().find(|p| text(p, "/metadata/name") == name);
        found.unwrap().clone()
    };
    let (p, host) = (of(&pods, "p"), of(&pods, "host"));
    let given = text(&p, "/status/podIP").to_owned();
    assert!(given.starts_with("10.244."), "{p:#}");
    assert_eq!(text(&host, "/status/podIP"), "172.31.0.11");
    let lie = |pod: &Value, message: &str| {
        let status = v1::PodStatus {
            uid: text(pod, "/metadata/uid").to_owned(),
            namespace: "default".to_owned(),
            name: text(pod, "/metadata/name").to_owned(),
            phase: "Running".to_owned(),
            message: message.to_owned(),
            pod_ips: vec!["10.96.0.1".to_owned()],
            host_ip: "10.96.0.1".to_owned(),
            containers: vec![v1::ContainerStatus {
                name: "no such".to_owned(),
                ..v1::ContainerStatus::default()
            }],
            ..v1::PodStatus::default()
        };
        up(node_up::Up::PodStatus(status))
    };
    for pod in [&p, &host] {
        n1.up.send(lie(pod, "mark")).await.unwrap();
    }
    let marked = |pods: &[Value]| pods.iter().all(|p| text(p, "/status/message") == "mark");
    let pods = server.until("pods", "", "the new status", marked).await;
    for (name, address) in [("p", given.as_str()), ("host", "172.31.0.11")] {
        let pod = of(&pods, name);
        assert_eq!(text(&pod, "/status/podIP"), address);
        assert_eq!(text(&pod, "/status/podIPs/0/ip"), address);
        assert_eq!(text(&pod, "/status/hostIP"), "172.31.0.11");
        assert!(pod.pointer("/status/containerStatuses/0").is_none());
    }

    // Events: of the node's own pods, under any name; not of others'.
    let event = |pod: &Value, reason: &str| {
        up(node_up::Up::Event(v1::NodeEvent {
            kind: "Pod".to_owned(),
            uid: text(pod, "/metadata/uid").to_owned(),
            namespace: "kube-system".to_owned(),
            name: "another".to_owned(),
            reason: reason.to_owned(),
            message: "é".repeat(4096),
            ..v1::NodeEvent::default()
        }))
    };
    n2.up.send(event(&p, "Lie")).await.unwrap();
    n1.up.send(event(&p, "True")).await.unwrap();
    let mine = v1::NodeEvent {
        kind: "Node".to_owned(),
        name: "n1".to_owned(),
        reason: "Mark".to_owned(),
        ..v1::NodeEvent::default()
    };
    n2.up.send(up(node_up::Up::Event(mine))).await.unwrap();
    let events = server
        .until("events", "", "both", |all| {
            let has = |reason| all.iter().any(|e| text(e, "/reason") == reason);
            has("True") && has("Mark")
        })
        .await;
    let of = |reason: &str| events.iter().find(|e| text(e, "/reason") == reason);
    assert!(of("Lie").is_none());
    let told = of("True").unwrap();
    assert_eq!(text(told, "/involvedObject/name"), "p");
    assert_eq!(text(told, "/involvedObject/namespace"), "default");
    assert_eq!(text(told, "/message").len(), 1024);
    assert_eq!(text(of("Mark").unwrap(), "/involvedObject/name"), "n2");

    // An address of another node, or one that is no node's, ends the session.
    for (node, address) in [("n3", "172.31.0.11"), ("n4", "10.244.0.7")] {
        let mut client = server.node_client(node).await;
        let hello = v1::Hello {
            node_name: node.to_owned(),
            status: Some(v1::NodeStatus {
                addresses: vec![address.to_owned()],
                ..v1::NodeStatus::default()
            }),
            ..v1::Hello::default()
        };
        let stream = tokio_stream::iter([up(node_up::Up::Hello(hello))]);
        assert!(client.session(stream).await.is_err(), "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_fill_the_store_with_events() {
    let mut server = server().await;
    let n1 = server.agent("n1").await;
    let event = |n: usize, reason: &str| {
        up(node_up::Up::Event(v1::NodeEvent {
            kind: "Node".to_owned(),
            reason: reason.to_owned(),
            message: format!("message {n}"),
            ..v1::NodeEvent::default()
        }))
    };
    for n in 0..500 {
        n1.up.send(event(n, "Flood")).await.unwrap();
    }
    // What comes after the flood in the stream is judged after it.
    server.apply(&pod("p")).await;
    let ready = |pods: &[Value]| pods.len() == 1 && pods.iter().all(is_ready);
    server.until("pods", "", "a ready pod", ready).await;
    let floods = |all: &[Value]| {
        let mine = all.iter().filter(|e| text(e, "/reason") == "Flood");
        mine.filter_map(|e| e["count"].as_i64()).collect::<Vec<_>>()
    };
    let events = server
        .until("events", "", "25 of them", |all| {
            floods(all).iter().sum::<i64>() >= 25
        })
        .await;
    let counts = floods(&events);
    assert_eq!(counts.iter().sum::<i64>(), 25, "{counts:?}");
    assert_eq!(counts.len(), 11, "{counts:?}");
}

/// What the server says to a client with this certificate, after its handshake: the first
/// byte of HTTP/2, or a TLS alert. As the client sends nothing, an alert is never lost.
async fn first_word(running: &Running, signed: &Signed) -> Result<usize, rustls::Error> {
    let certificates = |pem: &str| -> Vec<CertificateDer<'static>> {
        let all = CertificateDer::pem_slice_iter(pem.as_bytes());
        all.map(Result::unwrap).collect()
    };
    let mut roots = rustls::RootCertStore::empty();
    for ca in certificates(running.pki.ca_pem()) {
        roots.add(ca).unwrap();
    }
    let key = PrivateKeyDer::from_pem_slice(signed.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&signed.chain_pem), key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = tokio::net::TcpStream::connect(running.address)
        .await
        .unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let asked = async {
        let mut tls = connector.connect(name, tcp).await?;
        tls.read(&mut [0]).await
    };
    asked.await.map_err(|error| {
        let tls = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        tls.unwrap_or_else(|| panic!("{error:?}")).clone()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_s_context_can_be_made_again() {
    let server = server().await;
    let running = server.running();
    let now = jiff::Timestamp::now();
    let hour = jiff::SignedDuration::from_hours(1);
    let made = |at| running.pki.operator("ops", hour, at).unwrap();
    assert_eq!(first_word(running, &made(now)).await, Ok(1));
    let signed = made(now);
    let identity = Identity::from_pem(signed.chain_pem, signed.key_pem);
    let tls = trusting(running).identity(identity);
    let channel = endpoint(running, tls).connect().await.unwrap();
    let mut client = proto::v1::cluster_client::ClusterClient::new(channel);
    client.version(v1::VersionRequest {}).await.unwrap();
    // Valid for as long as it was made for.
    let expired = rustls::AlertDescription::CertificateExpired;
    assert_eq!(
        first_word(running, &made(now - hour * 2)).await,
        Err(rustls::Error::AlertReceived(expired))
    );
    let signed = running.pki.operator("ops", hour, now).unwrap();
    let context = running
        .pki
        .context("https://192.0.2.1:7443", "ops", &signed);
    assert!(
        context.contains("current-context: ops@hydrofoil"),
        "{context}"
    );
    assert!(
        context.contains("server: https://192.0.2.1:7443"),
        "{context}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_is_written_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = server().await;
    let folder = tempfile::tempdir().unwrap();
    let (config, output) = (
        folder.path().join("control.toml"),
        folder.path().join("config"),
    );
    let text = format!(
        "data = {:?}\nnames = [\"192.0.2.1\"]\n",
        server.folder.path()
    );
    std::fs::write(&config, text).unwrap();
    let run = |output: &std::path::Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_foil-control"));
        command.arg("--config").arg(&config).arg("admin-config");
        command.arg("--output").arg(output).output().unwrap()
    };
    let made = run(&output);
    assert!(made.status.success() && made.stdout.is_empty(), "{made:?}");
    let context = std::fs::read_to_string(&output).unwrap();
    assert!(
        context.contains("server: https://192.0.2.1:7443"),
        "{context}"
    );
    let mode = std::fs::metadata(&output).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let refused = run(&folder.path().join("missing/config"));
    assert!(!refused.status.success());
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("missing/config"), "{error}");
}
