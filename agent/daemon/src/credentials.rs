//! The node's certificate while the agent runs: renewed before it ends (`renew.rs`), and asked
//! for once more with the join token when the control plane refuses it, as after the Node
//! object was deleted and an operator made another token.
//!
//! Made by `main.rs`, asked by `watch.rs`.

use std::sync::Arc;

use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::join;
use crate::renew;
use crate::tls::Calls;
use crate::tls::{self, Identity, TlsError};

/// Replaces the certificate that streams are opened with.
pub(crate) struct Credentials {
    config: Config,
    calls: Calls,
    swap: watch::Sender<Arc<ClientConfig>>,
    renewing: JoinHandle<()>,
    /// The token was not tried yet in this process.
    fresh: bool,
}

impl Credentials {
    /// Renews this certificate from now on. `joined`: the token was used for it just now.
    pub(crate) fn new(
        config: Config,
        identity: Identity,
        joined: bool,
        calls: Calls,
    ) -> Result<(Self, watch::Receiver<Arc<ClientConfig>>), TlsError> {
        let (swap, tls) = watch::channel(tls::mutual(&identity)?);
        let node = config.node_name.clone();
        let renewing = tokio::spawn(renew::run(identity, node, calls.clone(), swap.clone()));
        let credentials = Self {
            config,
            calls,
            swap,
            renewing,
            fresh: !joined,
        };
        Ok((credentials, tls))
    }

    /// True while the token was neither used nor refused.
    pub(crate) fn may_replace(&self) -> bool {
        self.fresh && self.config.join.is_some()
    }

    /// The certificate was refused: asks for another one with the token, until that was
    /// answered. True: there is another one.
    pub(crate) async fn replace(&mut self) -> bool {
        if !self.may_replace() {
            return false;
        }
        let joined = join::join(&self.config).await;
        let joined = joined.and_then(|identity| Ok((tls::mutual(&identity)?, identity)));
        match joined {
            Ok((tls, identity)) => {
                tracing::info!("the certificate was refused: joined again with the token");
                self.fresh = false;
                self.renewing.abort();
                let node = self.config.node_name.clone();
                let (calls, swap) = (self.calls.clone(), self.swap.clone());
                self.renewing = tokio::spawn(renew::run(identity, node, calls, swap));
                self.swap.send_replace(tls);
                true
            }
            // With the next refusal.
            Err(error) if error.is_temporary() => false,
            Err(error) => {
                tracing::warn!("the certificate was refused, and the join token is: {error}");
                self.fresh = false;
                false
            }
        }
    }
}
