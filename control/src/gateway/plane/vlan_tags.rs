//! Keeps VLAN tags in the frames of a LAN interface while AF_XDP drives it. A card that strips tags reports them to the
//! kernel, but not to XDP, which would mistake frames of any VLAN for the interface's own. So does a veth whose other
//! end is given frames with the tag beside them, by a bridge or a VLAN device.

use anyhow::{Context, Result, ensure};

use crate::netlink::{Generic, Interface, Netlink};

/// The offloads that strip tags: those of IEEE 802.1Q and of 802.1ad.
const STRIPPING: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];
/// The offloads by which a device is given tags beside its frames. Without them the kernel puts them into the frames.
const INSERTING: [&str; 2] = ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"];

/// Offloads that were switched off. Dropping this switches them on again.
#[derive(Debug, Default)]
pub struct KeptTags(Vec<Switched>);

#[derive(Debug)]
struct Switched {
    interface: u32,
    offloads: Vec<&'static str>,
}

impl KeptTags {
    /// Makes an interface leave tags in its frames.
    ///
    /// # Errors
    /// In one sentence: the driver refuses.
    pub fn on(interface: &Interface) -> Result<Self> {
        let Interface { name, index, kind, .. } = interface;
        let mut kept = Self::default();
        kept.switch_off(*index, STRIPPING).with_context(|| {
            format!("{name} strips VLAN tags before XDP sees them, and this cannot be switched off")
        })?;
        if kind.as_deref() == Some("veth")
            && let Some(other) = Netlink::open()?.other_end(*index)?
        {
            kept.switch_off(other, INSERTING)
                .with_context(|| format!("the other end of {name} cannot be told to leave VLAN tags in its frames"))?;
        }
        let names: Vec<_> = kept.0.iter().flat_map(|switched| &switched.offloads).copied().collect();
        if !names.is_empty() {
            tracing::info!("{name}: {} switched off, so that AF_XDP sees VLAN tags", names.join(" and "));
        }
        Ok(kept)
    }

    /// Switches off those of these offloads that are on.
    fn switch_off(&mut self, interface: u32, offloads: [&'static str; 2]) -> Result<()> {
        let mut generic = Generic::open()?;
        // Kernels before 5.6 do not report offloads.
        let Ok(before) = generic.offloads(interface) else { return Ok(()) };
        let active: Vec<_> = offloads.into_iter().filter(|offload| before.active.contains(*offload)).collect();
        if active.is_empty() {
            return Ok(());
        }
        self.0.push(Switched { interface, offloads: active.clone() });
        generic.switch_offloads(interface, active, false)?;
        let still = generic.offloads(interface)?.active;
        ensure!(offloads.iter().all(|offload| !still.contains(*offload)), "the driver refuses");
        Ok(())
    }
}

impl Drop for KeptTags {
    fn drop(&mut self) {
        for Switched { interface, offloads } in &self.0 {
            let on = Generic::open()
                .and_then(|mut generic| generic.switch_offloads(*interface, offloads.iter().copied(), true));
            if let Err(e) = on {
                // The interface may be gone.
                tracing::debug!("{} cannot be switched on again: {e}", offloads.join(" and "));
            }
        }
    }
}
