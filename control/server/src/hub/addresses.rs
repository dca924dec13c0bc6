//! What a node says of itself, and that no two connected nodes have one address.
//!
//! Judged and taken under the hub's lock, so that of two nodes at once one gets it.

use proto::v1;

use super::{Inner, Session};

/// What a node said of itself last.
#[derive(Clone, Debug, Default)]
pub struct Reported {
    /// Addresses, capacity, conditions; within bounds.
    pub status: v1::NodeStatus,
    /// Version of its agent.
    pub version: String,
}

/// Why a node's session does not begin, or ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Another session of the node began after this one.
    #[error("a newer stream of this node took over")]
    Replaced,
    /// The address belongs to another node that is connected.
    #[error("address {address:?} is that of node {other:?}")]
    Address {
        /// As the node reported it.
        address: String,
        /// The node that has it.
        other: String,
    },
}

impl Inner {
    /// Gives a node these addresses in place of those that it had, or none of them.
    pub(super) fn take_addresses(
        &mut self,
        node: &str,
        addresses: &[String],
    ) -> Result<(), Rejected> {
        for address in addresses {
            let owner = self.addresses.get(address);
            if let Some(other) = owner.filter(|other| *other != node) {
                return Err(Rejected::Address {
                    address: address.clone(),
                    other: other.clone(),
                });
            }
        }
        self.release_addresses(node);
        for address in addresses {
            self.addresses.insert(address.clone(), node.to_owned());
        }
        Ok(())
    }

    fn release_addresses(&mut self, node: &str) {
        let reported = self.views.get(node).and_then(|v| v.reported.as_ref());
        for address in reported.iter().flat_map(|(r, _)| &r.status.addresses) {
            if self.addresses.get(address).is_some_and(|n| n == node) {
                self.addresses.remove(address);
            }
        }
    }

    /// Takes the node's session out; its addresses are free for others.
    pub(super) fn end_session(&mut self, node: &str) -> Option<Session> {
        self.release_addresses(node);
        self.views.get_mut(node)?.session.take()
    }
}
