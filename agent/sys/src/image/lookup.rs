//! Names of registries, looked up by the system's resolver. Used by `distribution.rs`.

use std::net::ToSocketAddrs;
use std::thread;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::{Semaphore, oneshot};

/// Lookups at a time; others wait.
const LOOKUPS: usize = 8;
static PERMITS: Semaphore = Semaphore::const_new(LOOKUPS);

/// getaddrinfo waits for a silent name server and cannot be cancelled, so it gets none of the
/// runtime's threads, which are few and which all of the node's work needs.
pub(super) struct Lookup;

impl Resolve for Lookup {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let permit = PERMITS.acquire().await?;
            let (tell, told) = oneshot::channel();
            let look_up = move || {
                let found = (name.as_str(), 0).to_socket_addrs();
                drop(permit);
                // Who asked may be gone.
                drop(tell.send(found));
            };
            thread::Builder::new()
                .name("lookup".to_owned())
                .spawn(look_up)?;
            let addresses: Addrs = Box::new(told.await??);
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn no_thread_of_the_runtime_looks_names_up() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (end, ended) = mpsc::channel::<()>();
        runtime.block_on(async {
            let busy = tokio::task::spawn_blocking(move || ended.recv());
            let found = Lookup.resolve("localhost".parse().unwrap()).await.unwrap();
            assert!(found.into_iter().all(|address| address.ip().is_loopback()));
            drop(end);
            busy.await.unwrap().unwrap_err();
        });
    }
}
