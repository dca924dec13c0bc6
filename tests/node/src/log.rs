//! Logs as users and other tools read them.

use std::fs;
use std::path::PathBuf;

use proto::v1::ShimCreate;
use tests_harness::wait_until;

use crate::pod::{Pod, log_lines};

#[test]
fn the_format_is_cris() {
    let mut pod = Pod::new();
    let create = pod.message("web", &["sh", "-c", "echo one; echo two >&2; printf three"]);
    pod.finish(create);
    let text = fs::read_to_string(pod.log_path("web")).unwrap();
    let mut rest = Vec::new();
    for line in text.lines() {
        let (time, after) = line.split_once(' ').unwrap();
        // 2026-01-02T03:04:05.678901234Z
        assert_eq!(time.len(), 30, "{line}");
        for (at, byte) in time.bytes().enumerate() {
            match at {
                4 | 7 => assert_eq!(byte, b'-', "{line}"),
                10 => assert_eq!(byte, b'T', "{line}"),
                13 | 16 => assert_eq!(byte, b':', "{line}"),
                19 => assert_eq!(byte, b'.', "{line}"),
                29 => assert_eq!(byte, b'Z', "{line}"),
                _ => assert!(byte.is_ascii_digit(), "{line}"),
            }
        }
        rest.push(after.to_owned());
    }
    rest.sort();
    assert_eq!(rest, ["stderr F two", "stdout F one", "stdout F three"]);
}

#[test]
fn long_lines_are_partial() {
    let mut pod = Pod::new();
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo short";
    let create = pod.message("web", &["sh", "-c", script]);
    let (_, lines) = pod.finish(create);
    let shape: Vec<_> = lines.iter().map(|l| (&l[..8], l.len() - 9)).collect();
    assert_eq!(
        shape,
        [
            ("stdout P", 16384),
            ("stdout P", 16384),
            ("stdout F", 7232),
            ("stdout F", 5)
        ]
    );
}

#[test]
fn a_full_log_is_rotated_while_the_container_runs() {
    let mut pod = Pod::new();
    let script = "i=100; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done; exec sleep 1000";
    let create = ShimCreate {
        log_max_bytes: 4000,
        ..pod.message("web", &["sh", "-c", script])
    };
    pod.run(create);
    let path = pod.log_path("web");
    wait_until("the last line", || {
        match log_lines(&path).last().map(String::as_str) {
            Some("stdout F line 299") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let before = PathBuf::from(format!("{}.1", path.display()));
    for file in [&path, &before] {
        assert!(
            fs::metadata(file).unwrap().len() <= 4000,
            "{}",
            file.display()
        );
    }
    let all = [log_lines(&before), log_lines(&path)].concat();
    let first = 300 - all.len();
    let expected: Vec<_> = (first..300).map(|n| format!("stdout F line {n}")).collect();
    assert_eq!(all, expected, "no line is lost between the files");
}

#[test]
fn a_great_deal_of_output_arrives_whole() {
    let mut pod = Pod::new();
    let create = pod.message("web", &["seq", "1", "200000"]);
    let (_, lines) = pod.finish(create);
    assert_eq!(lines.len(), 200_000);
    for (line, n) in lines.iter().zip(1..) {
        assert_eq!(line, &format!("stdout F {n}"));
    }
}
