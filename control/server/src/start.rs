//! Start: PKI, store, controllers, services, in the order in which each needs
//! the one before. Called by `main.rs` and by tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_plan::{World, ranges};
use control_store::{Embedded, Options, Store, StoreError};
use jiff::{SignedDuration, Timestamp};
use proto::limits::NODE_UP_BYTES;
use proto::v1::cluster_server::ClusterServer;
use proto::v1::node_server::NodeServer;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use crate::advertise::{self, Advertised};
use crate::attach::Attachments;
use crate::auth;
use crate::builtin::{self, BuiltinError};
use crate::config::Config;
use crate::join::Gate;
use crate::join_rate::JoinRate;
use crate::objects::Objects;
use crate::pki::{Pki, PkiError};
use crate::record::Recorder;
use crate::refusal::Refusal;
use crate::report::Reports;
use crate::run::{self, Controllers, RunError};
use crate::serve::ClusterService;
use crate::session::NodeService;
use crate::tls::{self, TlsError};

/// Longest message of an operator that is read (Kubernetes' limit of a request).
const CLUSTER_BYTES: usize = 3 << 20;
/// Revisions kept for watchers that come back.
const HISTORY: u64 = 50_000;
/// The store's page cache.
const CACHE_BYTES: usize = 64 << 20;
/// A connection that does not answer pings for this long is closed.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The control plane cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Keys and certificates.
    #[error("keys and certificates: {0}")]
    Pki(#[from] PkiError),
    /// The store.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// Reading what is stored.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Ranges other than those that addresses were given out of.
    #[error(
        "{key} cannot be changed to what the configuration has: {objects}. Set it to what it \
         was, or to a range that holds all of them"
    )]
    Outside {
        /// Key of the configuration.
        key: &'static str,
        /// Which have what.
        objects: String,
    },
    /// What is always there.
    #[error(transparent)]
    Builtin(#[from] BuiltinError),
    /// The controllers.
    #[error("controllers: {0}")]
    Run(#[from] RunError),
    /// TLS, or the address to listen on.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The server's socket failed.
    #[error("serving: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// A task panicked.
    #[error("a task ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A control plane that serves.
pub struct Running {
    /// Where it serves.
    pub address: SocketAddr,
    /// Its keys.
    pub pki: Arc<Pki>,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    controllers: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Serves until it is stopped, or fails.
    pub async fn wait(&mut self) -> Result<(), StartError> {
        tokio::select! {
            served = &mut self.serving => Ok(served??),
            ended = &mut self.controllers => Ok(ended??),
        }
    }

    /// Ends it: no more requests, open streams are closed.
    pub async fn stop(self) -> Result<(), StartError> {
        self.stop.cancel();
        self.controllers.abort();
        // Streams never end by themselves; half a second for what is under way.
        let ended = tokio::time::timeout(Duration::from_millis(500), self.serving).await;
        match ended {
            Ok(served) => Ok(served??),
            Err(_streams_are_open) => Ok(()),
        }
    }
}

/// Starts everything. Serving when this returns.
pub async fn start(config: &Config) -> Result<Running, StartError> {
    let now = Timestamp::now();
    let pki = Arc::new(Pki::open(&config.data, now)?);
    let signed = pki.server(&config.certificate_names(), now)?;
    let acceptor = tls::acceptor(&signed, pki.ca_pem())?;

    let options = Options {
        history: HISTORY,
        cache_bytes: CACHE_BYTES,
    };
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&config.data.join("store.redb"), options)?);
    let objects = Arc::new(Objects::new(store, config.settings()));
    let recorder = Recorder::start(objects.clone());
    let facts = config.facts();
    let dns_address = facts.dns_address.clone();
    let world = World::new(config.settings());
    let options = run::Options {
        facts,
        lost_after: Duration::from_secs(config.node_lost_after_seconds),
        skip_unreadable: config.skip_unreadable_objects,
    };
    let (controllers, hub) =
        Controllers::load(objects.clone(), recorder.clone(), world, options).await?;
    in_ranges(controllers.world())?;
    // A store that this version must not touch was refused before.
    objects.make_builtin().await?;
    builtin::dns_service(&objects, &dns_address).await?;

    let attachments = Arc::new(Attachments::default());
    let gate = Arc::new(Gate::new(
        objects.clone(),
        pki.clone(),
        SignedDuration::from_secs(i64::from(config.node_certificate_seconds)),
    ));
    let cluster = ClusterService {
        objects: objects.clone(),
        hub: hub.clone(),
        attachments: attachments.clone(),
        gate: gate.clone(),
    };
    let node = NodeService {
        gate,
        ca_pem: pki.ca_pem().to_owned(),
        reports: Arc::new(Reports::new(objects.clone())),
        objects: objects.clone(),
        hub,
        recorder,
        attachments,
    };
    let listener = tls::listen(config.listen).await?;
    let address = listener.local_addr().map_err(|source| TlsError::Listen {
        address: config.listen,
        source,
    })?;
    let stop = CancellationToken::new();
    match Advertised::of(config, address) {
        Some(advertised) => advertise::keep(objects.clone(), advertised, stop.clone()).await,
        None => tracing::warn!(
            %address,
            "nodes cannot reach this address: there is no Service default/kubernetes"
        ),
    }
    let context = pki.write_context(&config.data, &config.url(address.port()), now)?;

    let join_rate = Arc::new(JoinRate::default());
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(InterceptedService::new(
            ClusterServer::new(cluster).max_decoding_message_size(CLUSTER_BYTES),
            auth::known,
        ))
        .add_service(InterceptedService::new(
            NodeServer::new(node).max_decoding_message_size(NODE_UP_BYTES),
            move |request| join_rate.check(request),
        ));
    let incoming = tls::accept(listener, acceptor);
    let stopped = stop.clone().cancelled_owned();
    let serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped));
    let controllers = tokio::spawn(controllers.run());
    tracing::info!(
        %address, context = %context.display(), ca_hash = pki.ca_hash(),
        "serving"
    );
    Ok(Running {
        address,
        pki,
        stop,
        serving,
        controllers,
    })
}

/// Objects that are named when ranges do not hold them.
const NAMED: usize = 5;

/// All that was given out is of the ranges that are configured.
fn in_ranges(world: &World) -> Result<(), StartError> {
    let outside = ranges::outside(world);
    let Some(key) = outside.first().map(|first| first.key) else {
        return Ok(());
    };
    let of_key: Vec<String> = (outside.iter())
        .filter(|object| object.key == key)
        .map(ToString::to_string)
        .collect();
    let mut objects = of_key[..of_key.len().min(NAMED)].join(", ");
    if let Some(more) = of_key.len().checked_sub(NAMED).filter(|more| *more > 0) {
        objects += &format!(" and {more} more");
    }
    Err(StartError::Outside { key, objects })
}
