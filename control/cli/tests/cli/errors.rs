//! What is said when nothing works: connections, certificates, files, words.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tests_control::Pki;

use crate::run::{Bench, Workdir, authority, context_of};

/// When certificates are made that are valid now, five years long.
fn now() -> Timestamp {
    Timestamp::now()
}

/// When certificates were made that have expired.
fn long_ago() -> Timestamp {
    "2015-05-05T00:00:00Z".parse().unwrap()
}

#[test]
fn nothing_listens() {
    let bench = Workdir::new();
    let (_folder, pki) = authority();
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let server = format!("https://127.0.0.1:{port}");
    bench.write("config", &context_of(&server, &pki, &pki, now()));
    let error = bench.foil(&["get", "pods"]).refused();
    assert!(error.starts_with(&format!("error: cannot reach the control plane at https://127.0.0.1:{port}: connection refused\n")), "{error}");
    assert!(
        error.contains("Is foil-control running there") && error.contains("admin@test"),
        "{error}"
    );
}

/// Shakes hands with this certificate, made by this authority at this time, and no more.
fn shake_hands(pki: &Pki, name: &str, made: Timestamp) -> SocketAddr {
    let signed = pki.server(&[name.to_owned()], made).unwrap();
    let chain = CertificateDer::pem_slice_iter(signed.chain_pem.as_bytes());
    let chain: Vec<_> = chain.map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(signed.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut connection = rustls::ServerConnection::new(config.clone()).unwrap();
            while connection.is_handshaking() && connection.complete_io(&mut stream).is_ok() {}
        }
    });
    address
}

#[test]
fn server_certificates_that_do_not_fit() {
    let bench = Workdir::new();
    let ((_ours_at, ours), (_theirs_at, theirs)) = (authority(), authority());
    let later = "2090-05-05T00:00:00Z".parse().unwrap();
    for (server, want) in [
        (
            shake_hands(&theirs, "127.0.0.1", now()),
            "its certificate is not signed by the authority in the context file",
        ),
        (
            shake_hands(&ours, "127.0.0.1", long_ago()),
            "its certificate has expired",
        ),
        (
            shake_hands(&ours, "127.0.0.1", later),
            "its certificate is not valid yet",
        ),
        (
            shake_hands(&ours, "10.9.9.9", now()),
            "its certificate is for other names",
        ),
    ] {
        let server = format!("https://{server}");
        bench.write("config", &context_of(&server, &ours, &ours, now()));
        let error = bench.foil(&["get", "pods"]).refused();
        assert!(error.contains(want), "{want}: {error}");
    }
}

#[test]
fn operator_certificates_that_do_not_fit() {
    let bench = Bench::new();
    let (_folder, theirs) = authority();
    let (server, ours) = bench.with_server(async |server| {
        let running = server.running();
        (format!("https://{}", running.address), running.pki.clone())
    });
    for (user, made, want) in [
        (&theirs, now(), "it refuses our certificate"),
        (&*ours, long_ago(), "it refuses our certificate (expired)"),
    ] {
        bench.write("config", &context_of(&server, &ours, user, made));
        let error = bench.foil(&["get", "pods"]).refused();
        assert!(error.contains(want), "{want}: {error}");
    }
}

#[test]
fn something_else_listens() {
    let bench = Workdir::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            drop(std::io::Write::write_all(
                &mut stream,
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
            ));
        }
    });
    let (_folder, pki) = authority();
    let server = format!("https://{address}");
    bench.write("config", &context_of(&server, &pki, &pki, now()));
    let error = bench.foil(&["version"]).refused();
    assert!(
        error.contains("what listens there does not speak TLS"),
        "{error}"
    );
}

#[test]
fn context_files() {
    let bench = Bench::new();
    let path = bench.folder.path().join("config");
    let path = path.to_str().unwrap();
    let good = std::fs::read_to_string(path).unwrap();
    for (text, want) in [
        ("a: [".to_string(), "line 1, column 4"),
        (
            good.replace("current-context: admin@hydrofoil", "current-context: nope"),
            "there is no context \"nope\"; it has: admin@hydrofoil",
        ),
        (
            good.replace("https://", "http://"),
            "it does not begin with https://",
        ),
        (
            good.replace("client-key-data: ", "client-key-data: '???' #"),
            "user \"admin\": client-key-data is not base64",
        ),
        (
            good.replace("client-key-data: ", "client-key-data: aGVsbG8= #"),
            "the certificate or key in the context file cannot be used",
        ),
    ] {
        bench.write("config", &text);
        let error = bench.foil(&["get", "pods"]).refused();
        assert!(
            error.starts_with("error: ") && error.contains(want),
            "{want}: {error}"
        );
    }
    std::fs::remove_file(path).unwrap();
    assert!(
        bench
            .foil(&["get", "pods"])
            .refused()
            .contains("there is no context file at")
    );
}

#[test]
fn contexts_are_chosen_and_changed() {
    let bench = Bench::new();
    assert_eq!(
        bench.foil(&["config", "get-contexts"]).ok(),
        "CURRENT   NAME              CLUSTER     AUTHINFO   NAMESPACE\n*         admin@hydrofoil   hydrofoil   admin\n"
    );
    assert_eq!(
        bench
            .foil(&["config", "set-context", "--current", "-n", "x"])
            .ok(),
        "Context \"admin@hydrofoil\" modified.\n"
    );
    assert!(bench.foil(&["get", "pods"]).err.contains("in x namespace"));
    assert_eq!(
        bench
            .foil(&[
                "config",
                "set-context",
                "two",
                "--cluster=hydrofoil",
                "--user=admin"
            ])
            .ok(),
        "Context \"two\" created.\n"
    );
    assert_eq!(
        bench.foil(&["config", "use-context", "two"]).ok(),
        "Switched to context \"two\".\n"
    );
    assert_eq!(bench.foil(&["config", "current-context"]).ok(), "two\n");
    let version = bench.foil(&["version"]).ok();
    let want = format!("Server Version: v{}", env!("CARGO_PKG_VERSION"));
    assert!(
        version.contains(&want) && version.contains(" at https://127.0.0.1"),
        "{version}"
    );
    let view = bench.foil(&["config", "view"]).ok();
    assert!(
        view.contains("client-key-data: REDACTED") && !view.contains("LS0t"),
        "{view}"
    );
    assert!(
        bench
            .foil(&["config", "use-context", "three"])
            .refused()
            .contains("it has: admin@hydrofoil, two")
    );
    // The file holds a key: only its owner may read it after a change.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(bench.folder.path().join("config"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn usage_errors_end_with_2_and_help_with_0() {
    let bench = Workdir::new();
    for words in [
        vec!["frobnicate"],
        vec!["port-forward", "p", "80"],
        vec!["get", "pods", "-o", "yml"],
        vec!["apply"],
        vec!["wait", "po/a", "--for=x"],
        vec!["logs", "p", "--since=x"],
    ] {
        let ended = bench.foil(&words);
        assert_eq!(
            (ended.code, ended.out.as_str()),
            (2, ""),
            "{words:?}: {ended:?}"
        );
        assert!(ended.err.starts_with("error: "), "{ended:?}");
    }
    let help = bench.foil(&["--help"]).ok();
    for command in [
        "apply",
        "get",
        "describe",
        "delete",
        "scale",
        "cordon",
        "uncordon",
        "drain",
        "rollout",
        "logs",
        "exec",
        "image",
        "bpf",
        "config",
        "completion",
    ] {
        assert!(
            help.contains(&format!("\n  {command}")),
            "{command}: {help}"
        );
        let help = bench.foil(&[command, "--help"]).ok();
        assert!(help.contains("Examples:\n"), "{command}: {help}");
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let bench = Bench::new();
    for number in 0..50 {
        bench.put(&serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{number}")}, "data": {"x": "y".repeat(4000)}}));
    }
    let mut child = bench.spawn(&["get", "cm", "-o", "yaml"]);
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap().as_str()
        ),
        (Some(0), "")
    );
}

#[test]
fn completion_for_each_shell() {
    let bench = Workdir::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            bench.foil(&["completion", shell]).ok().contains("rollout"),
            "{shell}"
        );
    }
}

#[test]
fn bpf_and_image_say_what_is_missing() {
    let bench = Workdir::new();
    let error = bench
        .foil(&["bpf", "--bpffs", "/nonexistent", "service", "list"])
        .refused();
    assert!(
        error.contains("/nonexistent") && error.contains("bpffs"),
        "{error}"
    );
    let error = bench
        .foil(&["image", "list", "--root", "/nonexistent"])
        .refused();
    assert!(error.contains("/nonexistent/images"), "{error}");
}

#[test]
fn an_empty_variable_is_none() {
    let bench = Workdir::new();
    let run = |home: &std::path::Path| {
        let mut foil = std::process::Command::new(env!("CARGO_BIN_EXE_foil"));
        foil.args(["get", "pods"]).env_clear();
        let output = foil
            .env("FOIL_CONFIG", "")
            .env("HOME", home)
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let error = run(bench.folder.path());
    assert!(error.contains("there is no context file at"), "{error}");
    assert!(error.contains(".foil/config"), "{error}");
}
