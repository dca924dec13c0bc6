//! `get -w`: rows as they come, also from a control plane that was killed in between.

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};

use crate::run::Bench;

fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": value}})
}

#[test]
fn a_watch_goes_on_after_a_restart_of_the_control_plane() {
    let mut bench = Bench::new();
    bench.put(&config_map("a", "1"));
    let words = [
        "get",
        "cm",
        "-w",
        "-o",
        "custom-columns=NAME:.metadata.name,V:.data.v",
        "--no-headers",
    ];
    let mut child = bench.spawn(&words);
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(|line| {
            line.unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        });
    assert_eq!(lines.next().unwrap(), "a 1");
    bench.put(&config_map("b", "1"));
    assert_eq!(lines.next().unwrap(), "b 1");
    let address = bench.kill();
    bench.start(address);
    // Nothing is printed twice, and what came while nothing was connected is not lost.
    bench.put(&config_map("c", "1"));
    assert_eq!(lines.next().unwrap(), "c 1");
    bench.put(&config_map("a", "2"));
    assert_eq!(lines.next().unwrap(), "a 2");
    child.kill().unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    child.wait().unwrap();
    assert_eq!(
        said,
        "Warning: lost the connection to the control plane, connecting again\n"
    );
}
