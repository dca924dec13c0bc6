//! Looking for images and pulling them: each a task that ends with one event.
//!
//! Called by `apply.rs`; the store is `agent-sys`'s.

use std::sync::{Arc, PoisonError};

use agent_plan::action::Instance;
use agent_plan::outcome::{ImageFailure, Outcome};
use agent_plan::world::{ImageFacts, ImageReason};
use agent_sys::clock;
use agent_sys::image::{Image, ImageError, Reason, Reference};
use proto::v1;

use crate::startup::Sys;

fn failure(error: &ImageError) -> ImageFailure {
    ImageFailure {
        reason: match error.reason() {
            Reason::Pull => ImageReason::Pull,
            Reason::NeverPull => ImageReason::NeverPull,
            Reason::InvalidName => ImageReason::InvalidName,
        },
        message: error.to_string(),
    }
}

/// What plans need to know; the image itself is kept for its root's mount.
fn facts(sys: &Sys, image: Image) -> Arc<ImageFacts> {
    let config = image.config.clone();
    let facts = ImageFacts {
        image_id: image.image_id(),
        digest: image.digest.clone(),
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        working_dir: config.working_dir,
        user: config.user,
        stop_signal: signal(&config.stop_signal),
    };
    let mut found = sys.found.lock().unwrap_or_else(PoisonError::into_inner);
    found.insert(image.digest.clone(), Arc::new(image));
    Arc::new(facts)
}

/// The image behind a digest that was found before.
pub(crate) fn found(sys: &Sys, digest: &str) -> Option<Arc<Image>> {
    let found = sys.found.lock().unwrap_or_else(PoisonError::into_inner);
    found.get(digest).cloned()
}

/// "SIGTERM", "TERM" or "15" as a number; 0 when it is none that is known.
fn signal(text: &str) -> i32 {
    let names = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("TERM", 15),
        ("WINCH", 28),
        ("PWR", 30),
    ];
    let name = text.strip_prefix("SIG").unwrap_or(text);
    match names.iter().find(|(n, _)| *n == name) {
        Some((_, number)) => *number,
        None => text
            .parse()
            .ok()
            .filter(|n| (1..=64).contains(n))
            .unwrap_or(0),
    }
}

/// Looks into the store.
pub(crate) fn find(sys: &Arc<Sys>, instance: &Instance, image: &str) {
    let (sys, instance, image) = (sys.clone(), instance.clone(), image.to_owned());
    tokio::spawn(async move {
        let named = image.clone();
        let looked = sys.blocking(move |sys| {
            let found = Reference::parse(&named).and_then(|reference| sys.images.get(&reference));
            Ok(found
                .map(|image| image.map(|i| facts(sys, i)))
                .map_err(|e| failure(&e)))
        });
        let result = match looked.await {
            Ok(result) => result,
            Err(message) => Err(ImageFailure {
                reason: ImageReason::Pull,
                message,
            }),
        };
        sys.tell(Outcome::ImageFound {
            instance,
            image,
            result,
        })
        .await;
    });
}

/// Asks the registry.
pub(crate) fn pull(sys: &Arc<Sys>, instance: &Instance, image: &str, secrets: Vec<v1::PullSecret>) {
    let (sys, instance, image) = (sys.clone(), instance.clone(), image.to_owned());
    tokio::spawn(async move {
        let began = clock::now();
        let pulled = match Reference::parse(&image) {
            Ok(reference) => sys.images.pull(&reference, &sys.endpoints, &secrets).await,
            Err(error) => Err(error),
        };
        let took_ms = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
        let result = pulled.map(|i| facts(&sys, i)).map_err(|e| failure(&e));
        sys.tell(Outcome::ImagePulled {
            instance,
            image,
            took_ms,
            result,
        })
        .await;
    });
}

#[cfg(test)]
mod tests {
    use super::signal;

    #[test]
    fn signals() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("QUIT", 3),
            ("9", 9),
            ("", 0),
            ("SIGNONE", 0),
            ("99", 0),
        ] {
            assert_eq!(signal(text), number, "{text}");
        }
    }
}
