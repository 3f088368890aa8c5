//! Offloads of interfaces that are switched off while AF_XDP drives them, since it would take what they yield for
//! something else, and are switched on again afterwards.

use anyhow::{Context, Result, ensure};
use penstock_dataplane::steer::XdpMode;

use crate::netlink::{Generic, Interface, Netlink};

/// The offloads that strip VLAN tags: those of IEEE 802.1Q and of 802.1ad.
const STRIPPING: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];
/// The offloads by which a device is given tags beside its frames. Without them the kernel puts them into the frames.
const INSERTING: [&str; 2] = ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert"];
/// The offloads by which a veth is given several datagrams as one by its other end. A native program switches them off
/// itself. Generic XDP would take them for one datagram, which may be no longer than the link's MTU.
const UNCUT: [&str; 2] = ["tx-udp-segmentation", "tx-gso-list"];

/// Offloads that were switched off. Dropping this switches them on again.
#[derive(Debug, Default)]
pub struct SwitchedOff(Vec<(u32, &'static str)>);

impl SwitchedOff {
    /// Makes an interface leave VLAN tags in its frames. A card that strips tags reports them to the kernel, but not to
    /// XDP, which would mistake frames of any VLAN for the interface's own. So does a veth whose other end is given frames
    /// with the tag beside them, by a bridge or a VLAN device.
    ///
    /// # Errors
    /// In one sentence: the driver refuses.
    pub fn keep_tags(&mut self, interface: &Interface) -> Result<()> {
        let Interface { name, index, .. } = interface;
        let before = self.0.len();
        self.switch_off(*index, STRIPPING).with_context(|| {
            format!("{name} strips VLAN tags before XDP sees them, and this cannot be switched off")
        })?;
        if let Some(other) = other_end(interface)? {
            self.switch_off(other, INSERTING)
                .with_context(|| format!("the other end of {name} cannot be told to leave VLAN tags in its frames"))?;
        }
        self.tell(before, name, "VLAN tags");
        Ok(())
    }

    /// Makes the other end of a veth send datagrams one by one, where a program runs in this mode. If that end is out of
    /// reach, this mode will do only where AF_XDP is `required`; then it is a problem.
    ///
    /// # Errors
    /// In one sentence: the driver refuses, or it cannot be told.
    pub fn keep_apart(&mut self, interface: &Interface, mode: XdpMode, required: bool) -> Result<()> {
        if mode == XdpMode::Native {
            return Ok(());
        }
        let Interface { name, .. } = interface;
        ensure!(required || !may_come_uncut(interface), uncut(name));
        let before = self.0.len();
        if let Some(other) = other_end(interface)? {
            self.switch_off(other, UNCUT)
                .with_context(|| format!("the other end of {name} cannot be told to send datagrams one by one"))?;
        }
        self.tell(before, name, "datagrams one by one");
        Ok(())
    }

    fn tell(&self, before: usize, name: &str, what: &str) {
        let names: Vec<_> = self.0[before..].iter().map(|(_, offload)| *offload).collect();
        if !names.is_empty() {
            tracing::info!("{name}: {} switched off, so that AF_XDP sees {what}", names.join(" and "));
        }
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
        for offload in &active {
            if !self.0.contains(&(interface, offload)) {
                self.0.push((interface, offload));
            }
        }
        generic.switch_offloads(interface, active, false)?;
        let still = generic.offloads(interface)?.active;
        ensure!(offloads.iter().all(|offload| !still.contains(*offload)), "the driver refuses");
        Ok(())
    }
}

/// Whether generic XDP may see several datagrams as one on an interface, and nothing here could change that.
pub fn may_come_uncut(interface: &Interface) -> bool {
    interface.kind.as_deref() == Some("veth") && other_end(interface).is_ok_and(|other| other.is_none())
}

/// What is wrong with generic XDP there.
pub fn uncut(name: &str) -> String {
    format!(
        "the other end of {name} is in another network namespace and may send several datagrams as one, which generic XDP \
         cannot tell apart"
    )
}

/// The other end of a veth, if it is in this network namespace.
fn other_end(interface: &Interface) -> Result<Option<u32>> {
    match interface.kind.as_deref() {
        Some("veth") => Ok(Netlink::open()?.other_end(interface.index)?),
        _ => Ok(None),
    }
}

impl Drop for SwitchedOff {
    fn drop(&mut self) {
        for (interface, offload) in &self.0 {
            let on = Generic::open().and_then(|mut generic| generic.switch_offloads(*interface, [*offload], true));
            if let Err(e) = on {
                // The interface may be gone.
                tracing::debug!("{offload} cannot be switched on again: {e}");
            }
        }
    }
}
