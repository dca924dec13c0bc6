//! How much a pod is resolved to. Objects have a largest size, but a pod may name one of
//! them, or a variable, any number of times: what is made is counted while it is made.
//! Called by `pod`, and by what makes its parts.

use std::cell::Cell;

use super::expand::expand;

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

    /// What was taken is not kept after all.
    pub fn give_back(&self, bytes: usize) {
        self.left.set(self.left.get().map(|left| left + bytes));
    }

    /// As [`expand`]; takes the length of the result.
    pub fn expand(
        &self,
        text: &str,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<String, String> {
        let most = self.left.get().unwrap_or_default();
        let Some(expanded) = expand(text, lookup, most) else {
            self.left.set(None);
            return Err(self.error());
        };
        self.take(expanded.len())?;
        Ok(expanded)
    }

    /// For the users of a pod that is too long.
    pub fn error(&self) -> String {
        format!(
            "the pod is too long with its environment, arguments and volumes: at most {} bytes are allowed",
            self.most
        )
    }
}
