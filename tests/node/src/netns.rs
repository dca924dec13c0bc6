//! Pinned namespaces: made without a process, entered, removed.

use std::fs;
use std::os::unix::fs::MetadataExt;

use agent_sys::netns;
use agent_sys::state::Layout;
use tests_harness::unique_name;

struct Folder(Layout);

impl Folder {
    fn new() -> Self {
        let folder = std::path::PathBuf::from("/tmp").join(unique_name());
        let layout = Layout::new(folder.join("lib"), folder.join("run"));
        layout.create().unwrap();
        Self(layout)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for uid in netns::list(&self.0.namespaces()).unwrap() {
            netns::remove(&self.0.namespace(&uid)).unwrap();
        }
        agent_sys::state::remove_folder(self.0.root().parent().unwrap()).unwrap();
    }
}

fn own(kind: &str) -> u64 {
    fs::metadata(format!("/proc/thread-self/ns/{kind}"))
        .unwrap()
        .ino()
}

#[test]
fn namespaces_are_pinned_entered_and_removed() {
    let folder = Folder::new();
    let pins = folder.0.namespace("pod-1");
    assert!(!netns::exists(&pins));
    netns::create(&pins, "web-0").unwrap();
    assert!(netns::exists(&pins));
    assert_eq!(netns::list(&folder.0.namespaces()).unwrap(), ["pod-1"]);
    for kind in netns::KINDS {
        assert_ne!(netns::inode(&pins.join(kind)).unwrap(), own(kind), "{kind}");
    }
    let before = own("net");
    let (inside, flags) = netns::enter(&pins.join("net"), || {
        (
            own("net"),
            fs::read_to_string("/proc/thread-self/net/dev").unwrap(),
        )
    })
    .unwrap();
    assert_eq!(inside, netns::inode(&pins.join("net")).unwrap());
    assert!(
        flags.contains("lo:") && flags.lines().count() == 3,
        "{flags}"
    );
    assert_eq!(own("net"), before, "the caller stays where it is");

    let up = netns::enter(&pins.join("net"), || {
        std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.send_to(b"x", "127.0.0.1:9"))
    });
    up.unwrap().expect("lo is up");

    netns::remove(&pins).unwrap();
    assert!(!pins.exists());
    netns::remove(&pins).expect("again is no error");
}

#[test]
fn half_made_ones_are_seen_and_mended() {
    let folder = Folder::new();
    let pins = folder.0.namespace("pod-1");
    netns::create(&pins, "web-0").unwrap();
    nix::mount::umount(&pins.join("uts")).unwrap();
    assert!(!netns::exists(&pins));
    assert_eq!(netns::list(&folder.0.namespaces()).unwrap(), ["pod-1"]);
    netns::remove(&pins).unwrap();
    netns::create(&pins, "web-0").unwrap();
    assert!(netns::exists(&pins));
}

#[test]
fn a_folder_with_something_mounted_is_not_emptied() {
    let folder = Folder::new();
    let pins = folder.0.namespace("pod-1");
    netns::create(&pins, "web-0").unwrap();
    let error = agent_sys::state::remove_folder(&pins).unwrap_err();
    assert!(error.to_string().contains("still mounted"), "{error}");
    assert!(netns::exists(&pins));
}

#[test]
fn a_hostname_that_is_too_long_leaves_nothing() {
    let folder = Folder::new();
    let pins = folder.0.namespace("pod-1");
    netns::create(&pins, &"x".repeat(100)).unwrap_err();
    assert!(!pins.exists());
    let missing = netns::enter(&pins.join("net"), || ());
    assert!(matches!(missing, Err(netns::NetnsError::Enter { .. })));
}
