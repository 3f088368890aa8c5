//! Where connections go, for whoever sets the routes: a gateway must not lead them into its own tunnel.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;

/// The most hosts remembered at a time.
const HOSTS_LIMIT: usize = 256;

/// The addresses to which the hosts that were connected to last resolved, known before the first packet to them.
/// Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Destinations(Arc<watch::Sender<BTreeMap<String, Vec<IpAddr>>>>);

/// Tells when the addresses have changed.
#[derive(Debug)]
pub struct Changes(watch::Receiver<BTreeMap<String, Vec<IpAddr>>>);

impl Destinations {
    /// Notes the addresses of a host in place of earlier ones.
    pub(crate) fn note(&self, host: &str, addresses: &[IpAddr]) {
        self.0.send_if_modified(|hosts| {
            let differs = hosts.get(host).is_none_or(|known| known != addresses);
            if differs {
                if hosts.len() >= HOSTS_LIMIT && !hosts.contains_key(host) {
                    hosts.pop_first();
                }
                hosts.insert(host.to_owned(), addresses.to_vec());
            }
            differs
        });
    }

    /// All addresses, each with its host.
    #[must_use]
    pub fn addresses(&self) -> Vec<(String, IpAddr)> {
        let hosts = self.0.borrow();
        hosts.iter().flat_map(|(host, addresses)| addresses.iter().map(|at| (host.clone(), *at))).collect()
    }

    /// Follows changes from now on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes(self.0.subscribe())
    }
}

impl Changes {
    /// Waits for the next change. Nothing is lost if this is cancelled.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody is left who could change anything.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_answer_for_each_host_counts_and_hosts_are_bounded() {
        let destinations = Destinations::default();
        let mut changes = destinations.changes();
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        destinations.note("coordinator.example", &[address(1), address(2)]);
        changes.next().await;
        destinations.note("coordinator.example", &[address(3)]);
        changes.next().await;
        assert_eq!(destinations.addresses(), [("coordinator.example".to_owned(), address(3))]);
        destinations.note("coordinator.example", &[address(3)]);
        assert!(!changes.0.has_changed().unwrap(), "it is the same");
        for n in 0..2 * HOSTS_LIMIT {
            destinations.note(&format!("{n}.example"), &[address(4)]);
        }
        assert_eq!(destinations.addresses().len(), HOSTS_LIMIT);
    }
}
