//! What the service manager hears of `foil-control` (sd_notify(3)).

use std::process::{Child, Command};
use std::time::Duration;

use tokio::net::UnixDatagram;

/// Ended when the test ends, however it does.
struct Control(Child);

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

async fn told(manager: &UnixDatagram) -> String {
    let mut bytes = [0; 256];
    let received = tokio::time::timeout(Duration::from_secs(60), manager.recv(&mut bytes));
    let length = received.await.expect("a message").unwrap();
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

#[tokio::test]
async fn the_service_manager_hears_when_it_serves_and_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (config, data) = (
        folder.path().join("control.toml"),
        folder.path().join("data"),
    );
    let text = format!("data = {data:?}\nlisten = \"127.0.0.1:0\"\nnames = [\"127.0.0.1\"]\n");
    std::fs::write(&config, text).unwrap();
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_foil-control"));
    command.arg("--config").arg(&config);
    let mut control = Control(command.env("NOTIFY_SOCKET", &socket).spawn().unwrap());
    assert_eq!(told(&manager).await, "READY=1\n");
    // At the address in the context that is written for the operator.
    let context = std::fs::read_to_string(data.join("admin.conf")).unwrap();
    let url = context.split("https://").nth(1).unwrap();
    let address = url.lines().next().unwrap().trim_end_matches(['"', '/']);
    std::net::TcpStream::connect(address).unwrap();

    let pid = control.0.id().to_string();
    let signalled = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(signalled.unwrap().success());
    assert_eq!(told(&manager).await, "STOPPING=1\n");
    assert!(control.0.wait().unwrap().success());
}
