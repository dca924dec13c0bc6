//! Fake registries on loopback: what is sent to them, and what is taken from them.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::image::manifest::Descriptor;
use crate::image::{ImageStore, tests};

#[path = "pulls_tests.rs"]
mod pulls;

#[test]
fn a_named_registry_is_asked_only_at_its_endpoints() {
    let endpoints = [
        ("docker.io", "http://a:1"),
        ("ghcr.io", "https://b"),
        ("docker.io", "https://c"),
    ]
    .map(|(host, url)| Endpoint {
        host: host.to_owned(),
        url: url.to_owned(),
    });
    for (registry, expected) in [
        ("docker.io", vec!["http://a:1", "https://c"]),
        ("ghcr.io", vec!["https://b"]),
        ("quay.io", vec!["https://quay.io"]),
        ("127.0.0.1:5000", vec!["http://127.0.0.1:5000"]),
        ("localhost:5000", vec!["http://localhost:5000"]),
        ("localhost.example", vec!["https://localhost.example"]),
    ] {
        assert_eq!(urls(registry, &endpoints), expected, "{registry}");
    }
    assert_eq!(urls("docker.io", &[]), ["https://index.docker.io"]);
}

#[test]
fn secrets_are_found_by_the_host_that_is_asked() {
    let secret = |registry: &str| PullSecret {
        registry: registry.to_owned(),
        username: "u".to_owned(),
        password: "p".to_owned(),
    };
    for (asked, written, found) in [
        ("index.docker.io", "https://index.docker.io/v1/", true),
        ("registry-1.docker.io", "docker.io", true),
        ("mirror.example", "https://index.docker.io/v1/", false),
        ("mirror.example", "mirror.example", true),
        ("r.example:5000", "r.example:5000", true),
        ("r.example", "https://r.example/v2/", true),
        ("r.example", "r.example:5000", false),
        ("r.example", "index.docker.io", false),
    ] {
        let auth = credentials(asked, &[secret(written)]);
        assert_eq!(auth != Credentials::Anonymous, found, "{asked} {written}");
    }
}

#[test]
fn clients_are_bounded_by_age_and_count() {
    let clients = Clients::default();
    let basic = |user: &str| Credentials::Basic {
        username: user.to_owned(),
        password: "p".to_owned(),
    };
    let get = |user: &str, now| {
        let made = clients.get("http://a:1", basic(user), now);
        made.map(drop).unwrap();
        clients.0.lock().unwrap().len()
    };
    let begin = Instant::now();
    assert_eq!((get("a", begin), get("a", begin)), (1, 1));
    assert_eq!(get("b", begin), 2, "other credentials, another client");
    assert_eq!(get("b", begin + CLIENT_AGE), 1, "both were too old");
    for number in 0..2 * MOST_CLIENTS {
        let now = begin + CLIENT_AGE + Duration::from_millis(number as u64);
        assert!(get(&number.to_string(), now) <= MOST_CLIENTS);
    }
    let kept = clients.0.lock().unwrap();
    let newest = ("http://a:1".to_owned(), key_of(&basic("63")));
    assert!(kept.contains_key(&newest), "the oldest make way");
    assert!(kept.keys().all(|(_, key)| key.len() == 64));
}

/// With a policy of Always a pod may use an image that is here only if the registry
/// lets it, by digest too.
#[tokio::test]
async fn an_image_that_is_here_by_digest_is_asked_for() {
    let registry = hostile_registry().await;
    let host = &registry.host;
    let dir = tempfile::tempdir().unwrap();
    let (name, layout) = (format!("{host}/private/app:1"), dir.path().join("in"));
    let digest = tests::layout(&layout, &tests::two_layers(), Some(&name));
    let store = ImageStore::open(&dir.path().join("store")).unwrap();
    store.import(&layout, None).await.unwrap();
    let reference = Reference::parse(&format!("{host}/private/app@{digest}")).unwrap();
    assert!(store.get(&reference).unwrap().is_some(), "it is here");
    let refused = store.pull(&reference, &[], &[]).await.unwrap_err();
    assert!(matches!(*refused, ImageError::NotFound { .. }), "{refused}");
    let heard = registry.heard();
    assert!(heard.contains(&format!("/manifests/{digest}")), "{heard}");
}

/// What a server sends after the head of its answer.
enum Body {
    Whole(&'static str),
    /// Nothing more, of 100 bytes that it promised.
    Held(&'static str),
    /// All, once the value is true.
    After(tokio::sync::watch::Receiver<bool>, &'static str),
    /// A byte now and then, without end.
    Drip,
    /// As fast as it is read; ends at [`MOST`] bytes.
    Flood,
}

/// Far more than any document may have.
const MOST: usize = 64 << 20;

/// A server whose answers are chosen by the head of the request. Counts the answers that the
/// client cut off before their end.
struct Server {
    host: String,
    heard: Arc<Mutex<Vec<String>>>,
    cut: Arc<AtomicUsize>,
}

impl Server {
    async fn new(answer: impl Fn(&str, &str) -> (String, Body) + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            host: listener.local_addr().unwrap().to_string(),
            heard: Arc::default(),
            cut: Arc::default(),
        };
        let (host, answer) = (server.host.clone(), Arc::new(answer));
        let (heard, cut) = (server.heard.clone(), server.cut.clone());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (host, answer) = (host.clone(), answer.clone());
                let (heard, cut) = (heard.clone(), cut.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let head = String::from_utf8(head).unwrap();
                    let (status, body) = answer(&head, &host);
                    heard.lock().unwrap().push(head);
                    if send(&mut stream, &status, body).await.is_err() {
                        cut.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        server
    }

    fn url(&self) -> String {
        format!("http://{}", self.host)
    }

    fn heard(&self) -> String {
        self.heard.lock().unwrap().join("\n")
    }
}

async fn send(stream: &mut TcpStream, status: &str, body: Body) -> std::io::Result<()> {
    let length = match &body {
        Body::Whole(body) | Body::After(_, body) => format!("Content-Length: {}\r\n", body.len()),
        Body::Held(_) => "Content-Length: 100\r\n".to_owned(),
        Body::Drip | Body::Flood => String::new(),
    };
    let head = format!("HTTP/1.1 {status}\r\n{length}Connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    match body {
        Body::Whole(body) => stream.write_all(body.as_bytes()).await,
        Body::After(mut condition, body) => {
            let mut gone = [0];
            tokio::select! {
                met = condition.wait_for(|met| *met) => drop(met.unwrap()),
                _ = stream.read(&mut gone) => return Err(std::io::ErrorKind::BrokenPipe.into()),
            }
            stream.write_all(body.as_bytes()).await
        }
        Body::Held(begin) => {
            stream.write_all(begin.as_bytes()).await?;
            // Until the client goes.
            match stream.read_u8().await {
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            }
        }
        Body::Drip => loop {
            stream.write_all(b"x").await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        },
        Body::Flood => {
            let chunk = vec![b' '; 64 << 10];
            for _ in 0..MOST / chunk.len() {
                stream.write_all(&chunk).await?;
            }
            Ok(())
        }
    }
}

/// A registry that has nothing and asks for credentials.
async fn hostile_registry() -> Server {
    Server::new(|head, host| {
        let (status, body) = if head.starts_with("GET /token") {
            ("200 OK".to_owned(), "{\"token\":\"t\"}")
        } else if head.to_ascii_lowercase().contains("authorization: bearer") {
            ("404 Not Found".to_owned(), "")
        } else {
            (unauthorized(host), "")
        };
        (status, Body::Whole(body))
    })
    .await
}

fn unauthorized(host: &str) -> String {
    format!(
        "401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\""
    )
}

/// A registry that begins to send a blob, as `body` says.
async fn slow_registry(body: fn() -> Body) -> Server {
    Server::new(move |_, _| ("200 OK".to_owned(), body())).await
}

fn hundred_bytes() -> Descriptor {
    Descriptor {
        digest: crate::image::store::sha256("y".repeat(100).as_bytes()),
        size: 100,
        ..Descriptor::default()
    }
}

fn source(server: &Server, clients: &Clients) -> Source {
    let reference = Reference::parse(&format!("{}/app:1", server.host)).unwrap();
    Source::new(clients, &reference, &server.url(), &[]).unwrap()
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(60);
    let done = tokio::time::timeout(limit, future).await;
    done.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The agent's threads for work that blocks are few, and all else needs them too.
#[test]
fn no_thread_waits_for_a_registry() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let registry = slow_registry(|| Body::Held("x")).await;
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let source = source(&registry, &Clients::default());
        let tmp = store.tmp_path().unwrap();
        let tmp = tmp.parent().unwrap().to_owned();
        let files = || std::fs::read_dir(&tmp).unwrap().count();
        let before = files();
        let begun = store.clone();
        let pull = tokio::spawn(async move { begun.fetch_blob(&source, &hundred_bytes()).await });
        until("its unfinished file", || files() > before).await;
        within("a free thread", async {
            for _ in 0..10 {
                tokio::task::spawn_blocking(|| ()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        // Who gives it up leaves nothing: no request, no file.
        pull.abort();
        assert!(pull.await.unwrap_err().is_cancelled());
        let cut = registry.cut.clone();
        until("the end of the request", || {
            cut.load(Ordering::Relaxed) == 1
        })
        .await;
        until("the end of the file", || files() == before).await;
    });
}

/// Of each kind of answer.
#[tokio::test]
async fn a_flood_is_not_read_to_its_end() {
    // (what, the registry, its token server, is a blob)
    type Registry = fn(&str, &str) -> (String, Body);
    let rows: [(&str, Registry, bool); 5] = [
        ("manifest", |_, _| ("200 OK".to_owned(), Body::Flood), false),
        ("refusal", |_, _| ("500 Oh".to_owned(), Body::Flood), false),
        (
            "token",
            |head, host| {
                if head.starts_with("GET /token") {
                    ("200 OK".to_owned(), Body::Flood)
                } else {
                    (unauthorized(host), Body::Whole(""))
                }
            },
            false,
        ),
        (
            "refusal of a token",
            |head, host| {
                if head.starts_with("GET /token") {
                    ("403 No".to_owned(), Body::Flood)
                } else {
                    (unauthorized(host), Body::Whole(""))
                }
            },
            false,
        ),
        ("blob", |_, _| ("200 OK".to_owned(), Body::Flood), true),
    ];
    for (what, answer, blob) in rows {
        let registry = Server::new(answer).await;
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let source = source(&registry, &Clients::default());
        let error = if blob {
            let fetched = store.fetch_blob(&source, &hundred_bytes()).await;
            fetched.err().map(Arc::new)
        } else {
            let reference = Reference::parse(&source.wanted).unwrap();
            store.pull(&reference, &[], &[]).await.err()
        };
        let error = error.unwrap_or_else(|| panic!("{what}: taken"));
        assert!(error.to_string().len() < 1024, "{what}: {error}");
        let cut = registry.cut.clone();
        until(what, || cut.load(Ordering::Relaxed) == 1).await;
    }
}

#[tokio::test]
async fn a_blob_that_drips_is_given_up() {
    let registry = slow_registry(|| Body::Drip).await;
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let mut client = Client::new(&registry.url(), Credentials::Anonymous).unwrap();
    client.pace.within = Duration::from_millis(500);
    let source = Source {
        client: Arc::new(client),
        ..source(&registry, &Clients::default())
    };
    let large = Descriptor {
        size: 1 << 30,
        ..hundred_bytes()
    };
    let pulled = within("the end of the drip", store.fetch_blob(&source, &large)).await;
    let error = pulled.unwrap_err();
    assert!(error.to_string().contains("bytes arrived in"), "{error}");
}

/// A hostile manifest may name the layers of others, from a registry that never sends them.
#[tokio::test]
async fn a_slow_registry_holds_no_layer_against_another() {
    let slow = slow_registry(|| Body::Held("y")).await;
    let body = || Body::Whole(Box::leak("y".repeat(100).into_boxed_str()));
    let good = slow_registry(body).await;
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let clients = Clients::default();
    let held = (store.clone(), source(&slow, &clients));
    let held = tokio::spawn(async move { held.0.fetch_blob(&held.1, &hundred_bytes()).await });
    until("the request to the slow one", || !slow.heard().is_empty()).await;
    let (source, blob) = (source(&good, &clients), hundred_bytes());
    let pulled = within("the other's blob", store.fetch_blob(&source, &blob)).await;
    pulled.unwrap();
    assert!(store.has_blob(&blob.digest));
    assert!(!held.is_finished(), "the slow one still has it to send");
    held.abort();
}

/// Text of any server that a registry leads to is not shown to who made the pod.
#[tokio::test]
async fn only_a_registrys_own_errors_are_shown() {
    let registry = Server::new(|head, host| {
        if head.starts_with("GET /token") {
            (
                "403 Forbidden".to_owned(),
                Body::Whole("secret of the node"),
            )
        } else {
            (unauthorized(host), Body::Whole(""))
        }
    })
    .await;
    let quoted = Server::new(|head, host| {
        if head.starts_with("GET /token") {
            ("200 OK".to_owned(), Body::Whole("\"secret of the node\""))
        } else {
            (unauthorized(host), Body::Whole(""))
        }
    })
    .await;
    let denied = r#"{"errors":[{"code":"DENIED","message":"pay\nfirst"}]}"#;
    let other = Server::new(|_, _| ("429 Slow".to_owned(), Body::Whole(denied))).await;
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    for (server, wanted) in [
        (&registry, "authorization failed: 403 Forbidden"),
        (
            &other,
            "authorization failed: 429 Too Many Requests: DENIED: payfirst",
        ),
    ] {
        let reference = Reference::parse(&format!("{}/app:1", server.host)).unwrap();
        let error = store.pull(&reference, &[], &[]).await.unwrap_err();
        assert!(matches!(*error, ImageError::Unauthorized { .. }), "{error}");
        let text = error.to_string();
        assert_eq!(text, format!("{reference} at {}: {wanted}", server.url()));
    }
    let reference = Reference::parse(&format!("{}/app:1", quoted.host)).unwrap();
    let error = store.pull(&reference, &[], &[]).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("value of another type at line 1"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_mirror_never_gets_the_registrys_credentials() {
    let (origin_server, mirror_server) = (hostile_registry().await, hostile_registry().await);
    let (origin, mirror) = (&origin_server.host, &mirror_server.host);
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let reference = Reference::parse(&format!("{origin}/library/secret:1")).unwrap();
    let endpoints = [mirror, origin].map(|host| Endpoint {
        host: origin.clone(),
        url: format!("http://{host}"),
    });
    let secret = |registry: &str, password: &str| PullSecret {
        registry: registry.to_owned(),
        username: "someone".to_owned(),
        password: password.to_owned(),
    };
    // `base64("someone:opensesame")`
    let (secrets, header) = (
        [secret(origin, "opensesame")],
        "basic c29tzw9uztpvcgvuc2vzyw1l",
    );
    let sent = |server: &Server| {
        let all = server.heard().to_ascii_lowercase();
        assert!(!all.is_empty(), "it was asked");
        (all.contains(header), all.contains("authorization: basic"))
    };
    store
        .pull(&reference, &endpoints, &secrets)
        .await
        .unwrap_err();
    assert_eq!(sent(&mirror_server), (false, false));
    assert_eq!(sent(&origin_server), (true, true));
    // A mirror with a secret of its own gets that one.
    let secrets = [secret(origin, "opensesame"), secret(mirror, "another")];
    store
        .pull(&reference, &endpoints, &secrets)
        .await
        .unwrap_err();
    assert_eq!(sent(&mirror_server), (false, true));
}
