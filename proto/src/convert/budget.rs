//! How much a pod is resolved to. Objects have a largest size, but a pod may name one of
//! them any number of times: what is made is counted while it is made.
//! Called by `pod`, and by what makes its parts.

use std::cell::Cell;

/// What may still be made for one pod.
pub struct Budget {
    /// All of it, in bytes.
    pub most: usize,
    /// In bytes. `None`: more was wanted than there was; it stays so.
    left: Cell<Option<usize>>,
}

impl Budget {
    /// Of so many bytes.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            left: Cell::new(Some(most)),
        }
    }

    /// More was wanted than was allowed.
    pub fn is_exceeded(&self) -> bool {
        self.left.get().is_none()
    }

    /// Before so many bytes are made, or kept. The error says that it is too much.
    pub fn take(&self, bytes: usize) -> Result<(), String> {
        self.left
            .set(self.left.get().and_then(|left| left.checked_sub(bytes)));
        if self.is_exceeded() {
            return Err(self.error());
        }
        Ok(())
    }

    /// For the users of a pod that is too long.
    pub fn error(&self) -> String {
        format!(
            "the pod is too long with its environment, arguments and volumes: at most {} bytes are allowed",
            self.most
        )
    }
}
