//! `penstock-coordinator relay`: a relay on a machine of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use penstock_connect::{CoordinatorUrl, Trust};
use penstock_proto::coordination::Fingerprint;
use penstock_proto::trust::AuthorityKey;

use super::acme::AcmeFlags;
use super::{MetricsFlag, UdpFlags, said, socket_address};
use crate::config::{Config, Document};
use crate::relay::process::{RelayConfig, RelayProcess};

#[derive(Debug, Args)]
pub(super) struct RelayFlags {
    /// The coordinator, https://HOST or https://HOST:PORT
    #[arg(long, value_name = "URL")]
    coordinator: CoordinatorUrl,
    /// The SHA-256 fingerprint of the coordinator's own certificate, which it logs when it starts; repeat it for the
    /// certificate that will replace that one
    #[arg(long, value_name = "HEX")]
    fingerprint: Vec<Fingerprint>,
    /// The certificate authorities that vouch for the coordinator, in PEM
    #[arg(long, value_name = "FILE", conflicts_with = "fingerprint")]
    ca: Option<PathBuf>,
    /// The overlay's authority, as `authority show` prints it. The relay stores what that key has revoked and tells
    /// gateways of it, whatever the coordinator shows later
    #[arg(long, value_name = "KEY")]
    authority: Option<AuthorityKey>,
    /// A TCP address and port to accept TLS connections on; may be repeated [default: [::]:443]
    #[arg(long, value_name = "ADDRESS", value_parser = socket_address)]
    listen: Vec<SocketAddr>,
    /// A host name or address by which gateways reach this relay; may be repeated
    #[arg(long, value_name = "HOST", required = true)]
    name: Vec<String>,
    /// A certificate chain in PEM; without one, the relay makes its own
    #[arg(long, value_name = "FILE", requires = "certificate_key")]
    certificate: Option<PathBuf>,
    /// The certificate's private key in PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    certificate_key: Option<PathBuf>,
    #[command(flatten)]
    acme: AcmeFlags,
    #[command(flatten)]
    udp: UdpFlags,
    #[command(flatten)]
    metrics: MetricsFlag,
}

impl RelayFlags {
    fn config(self, state: PathBuf) -> anyhow::Result<RelayConfig> {
        anyhow::ensure!(!self.udp.no_relay, "without its relay (--no-relay) it has nothing to do");
        let trust = match (self.fingerprint.as_slice(), self.ca) {
            ([], None) => anyhow::bail!("--fingerprint or --ca must say whom to trust"),
            ([], file) => Trust::Authorities(file),
            (&[pin], _) => Trust::Pinned(pin),
            (&[pin, second], _) => Trust::Rolling([pin, second]),
            _ => anyhow::bail!("--fingerprint may be given twice at most"),
        };
        let tls = trust.client_config()?;
        // The same rules as for the coordinator's own.
        let document = Document {
            listen: said(self.listen),
            names: Some(self.name),
            state: Some(state),
            certificate_file: self.certificate,
            certificate_key_file: self.certificate_key,
            acme: self.acme.document(),
            metrics: self.metrics.metrics,
            ..self.udp.document()
        };
        let Config { serving, .. } = document.try_into()?;
        Ok(RelayConfig { serving, coordinator: self.coordinator, tls, authority: self.authority })
    }

    /// Starts the relay, and logs what the coordinator's configuration needs.
    pub async fn start(self, state: PathBuf) -> anyhow::Result<RelayProcess> {
        let pinned = self.authority.is_some();
        let process = RelayProcess::start(self.config(state)?).await?;
        for address in &process.addresses {
            tracing::info!("listening at {address}");
        }
        for address in process.udp.addresses() {
            tracing::info!("STUN or relay at {address} (UDP)");
        }
        if let Some(identity) = &process.identity {
            tracing::info!("the certificate's SHA-256 fingerprint is {}", identity.fingerprint);
        }
        if !pinned {
            tracing::info!("no --authority was given: revocations are passed on as the coordinator shows them");
        }
        tracing::info!("the relay's public key is {}", process.public_key());
        Ok(process)
    }
}
