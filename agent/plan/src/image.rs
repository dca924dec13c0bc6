//! Pull policy and back-off: what to do about the image of a container's next
//! instance.
//!
//! No registry is asked here. Called by `container.rs`.

use crate::settings::Settings;
use crate::time::Monotonic;
use crate::world::{Image, ImageReason};

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Look into the node's store.
    Find,
    /// Ask the registry.
    Pull,
    /// It is not here and may not be pulled: ErrImageNeverPull.
    Refuse,
    /// Somebody is at it.
    Wait,
    /// Nothing before that.
    WaitUntil(Monotonic),
    /// It is here.
    Go,
}

/// What to do about an image under a pull policy ("Always", "IfNotPresent", "Never").
pub fn next(image: &Image, policy: &str, now: Monotonic) -> Next {
    match image {
        Image::Unknown if policy == "Always" => Next::Pull,
        Image::Unknown => Next::Find,
        Image::Missing if policy == "Never" => Next::Refuse,
        Image::Missing => Next::Pull,
        Image::Looking | Image::Pulling => Next::Wait,
        Image::Ready(_) => Next::Go,
        Image::Failed { at, delay_ms, .. } if now < *at + *delay_ms => {
            Next::WaitUntil(*at + *delay_ms)
        }
        // Somebody may have brought it meanwhile (`foil image import`).
        Image::Failed { .. } if policy == "Always" => Next::Pull,
        Image::Failed { .. } => Next::Find,
    }
}

/// Delay after a failure: the base, then twice the one before, up to the maximum.
pub fn delay_ms(before_ms: i64, settings: &Settings) -> i64 {
    if before_ms == 0 {
        return settings.image_backoff_base_ms;
    }
    before_ms
        .saturating_mul(2)
        .min(settings.image_backoff_max_ms)
}

/// The delay to remember when a new try begins.
pub fn failed_delay_ms(image: &Image, before_ms: i64) -> i64 {
    match image {
        Image::Failed { delay_ms, .. } => *delay_ms,
        Image::Unknown | Image::Looking | Image::Missing | Image::Pulling | Image::Ready(_) => {
            before_ms
        }
    }
}

/// The reason a container waits with, after a failed pull: first the failure
/// itself, then, for the rest of the delay, that the node is holding back.
pub fn waiting_reason(
    reason: ImageReason,
    failed: Monotonic,
    delay_ms: i64,
    now: Monotonic,
) -> ImageReason {
    if reason == ImageReason::Pull && now >= backoff(failed, delay_ms) {
        return ImageReason::BackOff;
    }
    reason
}

/// When the reason turns from ErrImagePull to ImagePullBackOff.
pub fn backoff(failed: Monotonic, delay_ms: i64) -> Monotonic {
    failed + (delay_ms / 4).min(2_500)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::settings;

    fn at(ms: i64) -> Monotonic {
        Monotonic::from_ms(ms)
    }

    #[test]
    fn policies() {
        let failed = Image::Failed {
            reason: ImageReason::Pull,
            message: String::new(),
            at: at(10),
            delay_ms: 5,
        };
        // (image, policy, now, what)
        let rows = [
            (&Image::Unknown, "Always", 0, Next::Pull),
            (&Image::Unknown, "IfNotPresent", 0, Next::Find),
            (&Image::Unknown, "Never", 0, Next::Find),
            (&Image::Missing, "IfNotPresent", 0, Next::Pull),
            (&Image::Missing, "Never", 0, Next::Refuse),
            (&Image::Pulling, "Always", 0, Next::Wait),
            (&failed, "IfNotPresent", 14, Next::WaitUntil(at(15))),
            (&failed, "IfNotPresent", 15, Next::Find),
            (&failed, "Always", 15, Next::Pull),
        ];
        for (image, policy, now, expected) in rows {
            assert_eq!(
                next(image, policy, at(now)),
                expected,
                "{image:?} {policy} {now}"
            );
        }
    }

    #[test]
    fn delays_double_up_to_five_minutes() {
        let settings = settings();
        let mut delays = vec![0];
        for _ in 0..7 {
            delays.push(delay_ms(delays[delays.len() - 1], &settings));
        }
        assert_eq!(
            delays[1..],
            [10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000]
        );
    }

    #[test]
    fn first_the_error_then_the_back_off() {
        assert_eq!(
            waiting_reason(ImageReason::Pull, at(1_000), 10_000, at(3_499)),
            ImageReason::Pull
        );
        assert_eq!(
            waiting_reason(ImageReason::Pull, at(1_000), 10_000, at(3_500)),
            ImageReason::BackOff
        );
        assert_eq!(
            waiting_reason(ImageReason::NeverPull, at(0), 10, at(99)),
            ImageReason::NeverPull
        );
    }
}
