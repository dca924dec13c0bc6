//! Volumes on a real file system; those that mount need root, as the agent does.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::mounts;

fn file(path: &str, data: &str, mode: u32) -> v1::File {
    v1::File {
        path: path.to_owned(),
        data: data.as_bytes().to_vec(),
        mode,
    }
}

fn files_volume(files: Vec<v1::File>, tmpfs: bool) -> v1::Volume {
    v1::Volume {
        name: "v".to_owned(),
        source: Some(Source::Files(v1::volume::Files {
            files,
            tmpfs,
            error: String::new(),
        })),
    }
}

fn host_path(path: &Path, kind: &str) -> v1::Volume {
    let host = v1::volume::HostPath {
        path: path.display().to_string(),
        r#type: kind.to_owned(),
    };
    v1::Volume {
        name: "h".to_owned(),
        source: Some(Source::HostPath(host)),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Unmounts what a failed test left, before the folder itself goes.
struct Pod(tempfile::TempDir);

impl Pod {
    fn new() -> Self {
        Self(
            tempfile::Builder::new()
                .prefix("foil-volume")
                .tempdir()
                .unwrap(),
        )
    }
    fn dir(&self) -> PathBuf {
        self.0.path().join("pod")
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(unmount_below(self.0.path()));
    }
}

#[test]
fn files_change_all_at_once() {
    let pod = Pod::new();
    let first = files_volume(vec![file("a", "1", 0o644), file("d/e", "2", 0o400)], false);
    let path = make(&pod.dir(), &first, None).unwrap();
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "1");
    assert_eq!(fs::read_to_string(path.join("d/e")).unwrap(), "2");
    assert_eq!(
        (mode(&path.join("a")), mode(&path.join("d/e"))),
        (0o644, 0o400)
    );
    assert_eq!(
        fs::read_link(path.join("a")).unwrap(),
        Path::new("..data/a")
    );
    let version = fs::read_link(path.join("..data")).unwrap();

    make(&pod.dir(), &first, None).unwrap();
    assert_eq!(
        fs::read_link(path.join("..data")).unwrap(),
        version,
        "no change, no new version"
    );

    let second = files_volume(vec![file("a", "3", 0o600), file("b", "4", 0o644)], false);
    make(&pod.dir(), &second, None).unwrap();
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "3");
    assert_eq!(fs::read_to_string(path.join("b")).unwrap(), "4");
    assert_eq!(mode(&path.join("a")), 0o600);
    let mut names: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(
        (&names[1][..], &names[2][..], &names[3][..]),
        ("..data", "a", "b")
    );

    // Stopped between the steps: a version without a link, a link half made.
    fs::create_dir(path.join("..2001_01_01_00_00_00.000000000")).unwrap();
    symlink("nowhere", path.join("..data_tmp")).unwrap();
    fs::remove_file(path.join("b")).unwrap();
    make(&pod.dir(), &second, None).unwrap();
    assert_eq!(fs::read_to_string(path.join("b")).unwrap(), "4");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 4);
}

#[test]
fn files_stay_inside_the_volume() {
    let pod = Pod::new();
    for path in [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "..data",
        "..",
        "",
        "a/./..",
        "..x/y",
    ] {
        let result = make(
            &pod.dir(),
            &files_volume(vec![file(path, "", 0o644)], false),
            None,
        );
        assert!(
            matches!(result, Err(VolumeError::InvalidFile { .. })),
            "{path:?}: {result:?}"
        );
    }
    for name in ["", "..", "a/b", ".hidden"] {
        let volume = v1::Volume {
            name: name.to_owned(),
            ..files_volume(vec![], false)
        };
        assert!(matches!(
            make(&pod.dir(), &volume, None),
            Err(VolumeError::InvalidName { .. })
        ));
    }
    let failed = v1::volume::Files {
        error: "configmap \"x\" not found".to_owned(),
        ..v1::volume::Files::default()
    };
    let volume = v1::Volume {
        name: "v".to_owned(),
        source: Some(Source::Files(failed)),
    };
    let error = make(&pod.dir(), &volume, None).unwrap_err();
    assert!(
        error.to_string().contains("configmap \"x\" not found"),
        "{error}"
    );
}

#[test]
fn secrets_are_in_memory_and_belong_to_the_group() {
    let pod = Pod::new();
    let volume = files_volume(vec![file("token", "s", 0o400)], true);
    let path = make(&pod.dir(), &volume, Some(4242)).unwrap();
    make(&pod.dir(), &volume, Some(4242)).unwrap();
    let mounts = mounts::list(&path).unwrap();
    assert_eq!(mounts.len(), 1, "mounted once: {mounts:?}");
    assert_eq!(mounts[0].fs_type, "tmpfs");
    let token = fs::metadata(path.join("token")).unwrap();
    assert_eq!((token.gid(), token.mode() & 0o7777), (4242, 0o440));
    assert_eq!(list(&pod.dir()), ["v"]);
    remove_pod_dir(&pod.dir()).unwrap();
    assert!(!pod.dir().exists());
    remove_pod_dir(&pod.dir()).unwrap();
}

#[test]
fn empty_dirs_are_writable_and_bounded() {
    let pod = Pod::new();
    for (memory, group, expected) in [
        (false, None, 0o777),
        (false, Some(7), 0o2777),
        (true, Some(7), 0o2777),
    ] {
        let empty = v1::volume::EmptyDir {
            memory,
            size_limit_bytes: 1 << 20,
        };
        let volume = v1::Volume {
            name: format!("e{memory}{}", group.is_some()),
            source: Some(Source::EmptyDir(empty)),
        };
        let path = make(&pod.dir(), &volume, group).unwrap();
        assert_eq!(mode(&path), expected);
        assert_eq!(fs::metadata(&path).unwrap().gid(), group.unwrap_or(0));
        fs::write(path.join("kept"), "data").unwrap();
        make(&pod.dir(), &volume, group).unwrap();
        assert_eq!(fs::read_to_string(path.join("kept")).unwrap(), "data");
        if memory {
            let error = fs::write(path.join("large"), vec![0; 2 << 20]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }
    remove_pod_dir(&pod.dir()).unwrap();
    assert!(!pod.dir().exists());
}

#[test]
fn host_paths_are_checked_by_type() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, plain) = (dir.path().join("folder"), dir.path().join("file"));
    fs::create_dir(&folder).unwrap();
    fs::write(&plain, "x").unwrap();
    let socket = dir.path().join("socket");
    let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let absent = dir.path().join("absent");
    for (path, kind, fine) in [
        (&folder, "Directory", true),
        (&folder, "DirectoryOrCreate", true),
        (&folder, "File", false),
        (&folder, "", true),
        (&plain, "File", true),
        (&plain, "FileOrCreate", true),
        (&plain, "Directory", false),
        (&plain, "DirectoryOrCreate", false),
        (&plain, "Nonsense", false),
        (&socket, "Socket", true),
        (&socket, "BlockDevice", false),
        (&PathBuf::from("/dev/null"), "CharDevice", true),
        (&absent, "Directory", false),
        (&absent, "File", false),
        (&dir.path().join("made"), "DirectoryOrCreate", true),
        (&dir.path().join("made-file"), "FileOrCreate", true),
        (&dir.path().join("folder/../file"), "File", false),
    ] {
        let result = make(dir.path(), &host_path(path, kind), Some(1));
        assert_eq!(result.is_ok(), fine, "{path:?} {kind:?}: {result:?}");
    }
    assert!(!absent.exists());
    assert_eq!(mode(&dir.path().join("made")), 0o755);
    assert_eq!(mode(&dir.path().join("made-file")), 0o644);
    assert_eq!(
        fs::metadata(&folder).unwrap().gid(),
        0,
        "fsGroup leaves the host's files alone"
    );
}

#[test]
fn sub_paths_do_not_leave_the_volume() {
    let pod = Pod::new();
    let volume = pod.0.path().join("volume");
    fs::create_dir_all(volume.join("in")).unwrap();
    fs::write(volume.join("in/file"), "mine").unwrap();
    fs::write(pod.0.path().join("secret"), "host's").unwrap();
    symlink("in", volume.join("inside")).unwrap();
    symlink("../secret", volume.join("up")).unwrap();
    symlink("/etc", volume.join("absolute")).unwrap();
    let bind = |sub_path: &str, index| {
        let part = sub_path::find(&volume, sub_path)?;
        sub_path::bind(&pod.dir(), "v", &part, "c", index)
    };
    for escape in [
        "../secret",
        "/etc",
        "up",
        "absolute/passwd",
        "in/../../secret",
        "absolute",
    ] {
        assert!(
            matches!(bind(escape, 0), Err(VolumeError::Escapes { .. })),
            "{escape}"
        );
    }
    let path = bind("inside/file", 0).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    // Again: a container that is started anew.
    let path = bind("inside", 0).unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "mine");
    let made = bind("new/folder", 1).unwrap();
    fs::write(made.join("x"), "").unwrap();
    assert!(volume.join("new/folder/x").exists());

    remove_pod_dir(&pod.dir()).unwrap();
    assert!(
        volume.join("in/file").exists(),
        "what was bound is not removed"
    );
}
