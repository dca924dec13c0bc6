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

/// Signals from 1 on, except the real-time ones; signal(7), x86 and ARM.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// SIGRTMIN as programs see it: the C library keeps the first two to itself.
const RTMIN: i32 = 34;
/// SIGRTMAX.
const RTMAX: i32 = 64;

/// "SIGTERM", "term", "15" or "SIGRTMIN+3" as a number; 0 when it is none that there is.
fn signal(text: &str) -> i32 {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = SIGNALS.iter().zip(1..).find(|(n, _)| **n == name);
    let offset = |base: i32, text: &str| match text {
        "" => Some(base),
        text if text.starts_with(['+', '-']) => base.checked_add(text.parse().ok()?),
        _ => None,
    };
    let real_time = |number: &i32| (RTMIN..=RTMAX).contains(number);
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => offset(RTMIN, rest).filter(real_time),
        (None, Some(rest)) => offset(RTMAX, rest).filter(real_time),
        (None, None) => match named {
            Some((_, number)) => Some(number),
            None => text.parse().ok().filter(|n| (1..=RTMAX).contains(n)),
        },
    };
    number.unwrap_or_else(|| {
        if !text.is_empty() {
            tracing::warn!(
                signal = text,
                "an image's stop signal is none; SIGTERM is sent"
            );
        }
        0
    })
}

/// Looks into the store.
pub(crate) fn find(sys: &Arc<Sys>, instance: &Instance, image: &str) {
    // The container has another image now.
    sys.pulls.cancel(instance);
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

/// Asks the registry, until it is cancelled.
pub(crate) fn pull(sys: &Arc<Sys>, instance: &Instance, image: &str, secrets: Vec<v1::PullSecret>) {
    let (of, instance, image) = (sys.clone(), instance.clone(), image.to_owned());
    sys.pulls.spawn(instance.clone(), async move {
        let sys = of;
        let began = clock::now();
        let pulled = match Reference::parse(&image) {
            Ok(reference) => sys.images.pull(&reference, &sys.endpoints, &secrets).await,
            Err(error) => Err(Arc::new(error)),
        };
        let took_ms = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
        let result = pulled.map(|i| facts(&sys, i)).map_err(|e| failure(&e));
        sys.pulls.ended(&instance);
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
            ("SIGSEGV", 11),
            ("winch", 28),
            ("sigSys", 31),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMIN+30", 64),
            ("RTMIN+31", 0),
            ("RTMIN-1", 0),
            ("RTMIN3", 0),
            ("RTMIN+", 0),
            ("RTMIN+2147483647", 0),
            ("SIGRTMAX", 64),
            ("SIGRTMAX-2", 62),
            ("64", 64),
            ("0", 0),
            ("-9", 0),
            ("", 0),
            ("SIGNONE", 0),
            ("99", 0),
        ] {
            assert_eq!(signal(text), number, "{text}");
        }
    }
}
