//! What is said when nothing works: connections, certificates, files, words.

use crate::fake::Control;
use crate::pki::{Authority, context_file};
use crate::run::Bench;

#[test]
fn nobody_listens() {
    let bench = Bench::new();
    let authority = Authority::new();
    let user = authority.sign("admin", (2020, 2060));
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    bench.write(
        "config",
        &context_file(
            &format!("https://127.0.0.1:{port}"),
            &authority.pem(),
            &user,
        ),
    );
    let error = bench.foil(&["get", "pods"]).refused();
    assert!(error.starts_with(&format!("error: cannot reach the control plane at https://127.0.0.1:{port}: connection refused\n")), "{error}");
    assert!(
        error.contains("Does foil-control run there") && error.contains("admin@test"),
        "{error}"
    );
}

#[test]
fn certificates_that_do_not_fit() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let valid = (2020, 2060);
    let good_user = ours.sign("admin", valid);
    for (server, user, want) in [
        (
            theirs.sign("127.0.0.1", valid),
            &good_user,
            "its certificate is not signed by the authority in the context file",
        ),
        (
            ours.sign("127.0.0.1", (2020, 2021)),
            &good_user,
            "its certificate has expired",
        ),
        (
            ours.sign("127.0.0.1", (2050, 2060)),
            &good_user,
            "its certificate is not valid yet",
        ),
        (
            ours.sign("10.9.9.9", valid),
            &good_user,
            "its certificate is for other names",
        ),
        (
            ours.sign("127.0.0.1", valid),
            &theirs.sign("admin", valid),
            "it refuses our certificate",
        ),
        (
            ours.sign("127.0.0.1", valid),
            &ours.sign("admin", (2020, 2021)),
            "it refuses our certificate (expired)",
        ),
    ] {
        let bench = Bench::new();
        let control = Control::start(&server, &ours);
        bench.write(
            "config",
            &context_file(&format!("https://{}", control.address), &ours.pem(), user),
        );
        let error = bench.foil(&["get", "pods"]).refused();
        assert!(error.contains(want), "{want}: {error}");
    }
}

#[test]
fn something_else_listens() {
    let bench = Bench::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            drop(std::io::Write::write_all(
                &mut stream,
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
            ));
        }
    });
    let authority = Authority::new();
    let user = authority.sign("admin", (2020, 2060));
    bench.write(
        "config",
        &context_file(&format!("https://{address}"), &authority.pem(), &user),
    );
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
            good.replacen("admin@test\n", "nope\n", 1),
            "there is no context \"nope\"; it has: admin@test",
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
        "CURRENT   NAME         CLUSTER   AUTHINFO   NAMESPACE\n*         admin@test   test      admin\n"
    );
    assert_eq!(
        bench
            .foil(&["config", "set-context", "--current", "-n", "x"])
            .ok(),
        "Context \"admin@test\" modified.\n"
    );
    assert!(bench.foil(&["get", "pods"]).err.contains("in x namespace"));
    assert_eq!(
        bench
            .foil(&[
                "config",
                "set-context",
                "two",
                "--cluster=test",
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
    assert!(
        bench
            .foil(&["version"])
            .ok()
            .contains("Server Version: v1.2.3\nCluster: c-1 at https://127.0.0.1")
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
            .contains("it has: admin@test, two")
    );
    // The file holds a key: nobody else may read it after a change.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(bench.folder.path().join("config"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn usage_errors_end_with_2_and_help_with_0() {
    let bench = Bench::new();
    for words in [
        vec!["frobnicate"],
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
        bench.put(serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{number}")}, "data": {"x": "y".repeat(4000)}}));
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
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            bench.foil(&["completion", shell]).ok().contains("rollout"),
            "{shell}"
        );
    }
}

#[test]
fn bpf_and_image_say_what_is_missing() {
    let bench = Bench::new();
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
