//! `exec`: bytes both ways, exit codes.

use serde_json::json;

use crate::run::Bench;

fn bench() -> Bench {
    let bench = Bench::new();
    bench.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "web"}}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}}));
    bench.put(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {}}}));
    bench
}

#[test]
fn the_exit_code_is_passed_on() {
    let bench = bench();
    let ended = bench.foil(&["exec", "p", "-c", "b", "--", "exit", "42"]);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (42, "p/b: exit 42\ncommand terminated with exit code 42\n")
    );
    let ended = bench.foil(&["exec", "deploy/web", "--", "true"]);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (0, "Defaulted container \"a\" out of: a, b\np/a: true\n")
    );
}

#[test]
fn standard_input_reaches_the_process() {
    let bench = bench();
    let ended = bench.foil_with(&["exec", "-i", "p", "-c", "a", "--", "cat"], "one\ntwo\n");
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (0, "one\ntwo\n"),
        "{ended:?}"
    );
}

#[test]
fn refused() {
    let bench = bench();
    assert_eq!(
        bench
            .foil(&["exec", "p", "-c", "zzz", "--", "ls"])
            .refused(),
        "error: container zzz is not in pod p; it has: a, b\n"
    );
    assert_eq!(
        bench.foil(&["exec", "nope", "--", "ls"]).refused(),
        "Error from server (NotFound): pods \"nope\" not found\n"
    );
    assert_eq!(
        bench
            .foil(&["exec", "-t", "p", "-c", "a", "--", "sh"])
            .refused(),
        "error: -t needs a terminal as standard input\n"
    );
    assert_eq!(bench.foil(&["exec", "p"]).code, 2);
}
