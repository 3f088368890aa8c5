//! Endpoints given by name: resolved at start, and again when a peer is lost.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::key::PublicKey;

/// A name that did not resolve is tried again after this time.
const RETRY: Duration = Duration::from_secs(15);

/// A name that was resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Whose endpoint it is.
    pub peer: PublicKey,
    /// The name that was asked for.
    pub name: String,
    /// The addresses, in the resolver's order of preference; empty if there are none.
    pub addresses: Vec<SocketAddr>,
}

/// Asks for names, one question a peer at a time.
pub struct Resolver {
    asked: HashSet<PublicKey>,
    sender: mpsc::UnboundedSender<Resolved>,
    receiver: mpsc::UnboundedReceiver<Resolved>,
}

impl Default for Resolver {
    fn default() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { asked: HashSet::new(), sender, receiver }
    }
}

impl Resolver {
    /// Asks for an endpoint; the answer comes by [`Resolver::next`]. A question under way is not
    /// repeated, and one without an answer is, a while later.
    pub fn ask(&mut self, peer: PublicKey, name: &str, port: u16, again: bool) {
        if !self.asked.insert(peer) {
            return;
        }
        let (name, sender) = (name.to_owned(), self.sender.clone());
        tokio::spawn(async move {
            if again {
                tokio::time::sleep(RETRY).await;
            }
            let addresses = match tokio::net::lookup_host((name.as_str(), port)).await {
                Ok(addresses) => addresses.collect(),
                Err(e) => {
                    tracing::warn!("endpoint {name} does not resolve: {e}");
                    Vec::new()
                }
            };
            // The gateway may have gone meanwhile.
            let _ = sender.send(Resolved { peer, name, addresses });
        });
    }

    /// The next answer. Cancel safe.
    pub async fn next(&mut self) -> Resolved {
        match self.receiver.recv().await {
            Some(resolved) => {
                self.asked.remove(&resolved.peer);
                resolved
            }
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }
}
