//! Interfaces, and the kernel's description of them.

use std::str::FromStr;

use anyhow::Context;
use penstock_netns::Namespace;
use serde::Deserialize;

use super::packet::Mac;

/// An interface on the command line: `eth1`, or `tester:eth1` in the namespace "tester".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceName {
    /// The name of the namespace, if it is not the current one.
    pub namespace: Option<String>,
    /// Name of the interface.
    pub name: String,
}

/// An interface in a network namespace.
#[derive(Debug, Clone)]
pub struct Interface {
    /// The network namespace it is in.
    pub namespace: Namespace,
    /// The interface's name in it.
    pub name: String,
}

/// The output of `ip --json --details link`.
#[derive(Debug, Deserialize)]
pub struct Link {
    address: Option<String>,
    mtu: u32,
    /// Queues that it can receive on.
    pub num_rx_queues: u32,
    num_tx_queues: u32,
}

impl Interface {
    /// Finds an interface named on the command line.
    ///
    /// # Errors
    /// There is no such namespace. Whether the interface exists is found only when it is used.
    pub fn find(interface: &InterfaceName) -> anyhow::Result<Interface> {
        let namespace = match &interface.namespace {
            None => Namespace::own().context("cannot open our network namespace")?,
            Some(name) => {
                Namespace::named(name).with_context(|| format!("there is no network namespace \"{name}\""))?
            }
        };
        Ok(Interface { namespace, name: interface.name.clone() })
    }

    /// The kernel's description.
    ///
    /// # Errors
    /// There is no such interface, or no `ip`.
    pub fn link(&self) -> anyhow::Result<Link> {
        let words = ["ip", "-json", "-details", "link", "show", "dev", &self.name];
        let mut links: Vec<Link> =
            serde_json::from_str(&self.namespace.try_run(&words)?).context("ip prints no JSON")?;
        links.pop().with_context(|| format!("there is no interface \"{}\"", self.name))
    }

    /// Its Ethernet address.
    ///
    /// # Errors
    /// As [`Interface::link`]; or it has none.
    pub fn mac(&self) -> anyhow::Result<Mac> {
        let address = self.link()?.address.unwrap_or_default();
        address.parse().map_err(|_| anyhow::anyhow!("{} has no Ethernet address", self.name))
    }

    /// "mlx5_core 6.18.0, firmware 16.35, bus 0000:01:00.0, queues: 4 to receive, 4 to send, MTU 1500". The driver's
    /// part needs the program `ethtool`.
    ///
    /// # Errors
    /// As [`Interface::link`].
    pub fn describe(&self) -> anyhow::Result<String> {
        let Link { mtu, num_rx_queues, num_tx_queues, .. } = self.link()?;
        let driver =
            self.namespace.try_run(&["ethtool", "-i", &self.name]).map_or("unknown driver".into(), |t| driver(&t));
        Ok(format!("{driver}, queues: {num_rx_queues} to receive, {num_tx_queues} to send, MTU {mtu}"))
    }
}

/// From what `ethtool -i` prints.
fn driver(printed: &str) -> String {
    let fields = [("driver", ""), ("version", " "), ("firmware-version", ", firmware "), ("bus-info", ", bus ")];
    let told = fields.map(|(name, label)| {
        let value = printed.lines().filter_map(|line| line.split_once(": ")).find(|(found, _)| *found == name);
        let value = value.map_or("", |(_, value)| value.trim());
        if value.is_empty() || value == "N/A" { String::new() } else { format!("{label}{value}") }
    });
    told.concat()
}

impl FromStr for InterfaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<InterfaceName, String> {
        let (namespace, name) = match text.split_once(':') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        let is_name = |name: &str| !name.is_empty() && name != ".." && !name.contains(['/', ' ', '\0']);
        if !is_name(name) || !namespace.is_none_or(is_name) {
            return Err(format!("\"{text}\" is neither an interface nor NAMESPACE:INTERFACE"));
        }
        Ok(InterfaceName { namespace: namespace.map(Into::into), name: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_strictly() {
        let read = |text: &str| text.parse::<InterfaceName>().map(|i| (i.namespace, i.name));
        assert_eq!(read("eth1"), Ok((None, "eth1".into())));
        assert_eq!(read("left:eth1"), Ok((Some("left".into()), "eth1".into())));
        for wrong in ["", ":", "a:", ":b", "../x:eth0", "..:eth0", "a b"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_kernel_is_asked() {
        let interface =
            |name: &str| Interface { namespace: Namespace::own().expect("we are in one"), name: name.into() };
        let told = std::fs::read_to_string("/sys/class/net/lo/mtu").expect("every machine has one");
        let described = interface("lo").describe().expect("it is there");
        assert!(described.ends_with(&format!(", MTU {}", told.trim())), "{described}");
        assert!(interface("no-such-device").describe().is_err());
    }

    #[test]
    fn of_a_driver_only_what_is_known_is_told() {
        let printed =
            "driver: ena\nversion: 6.18.0\nfirmware-version: \nexpansion-rom-version: \nbus-info: 0000:00:05.0\n";
        assert_eq!(driver(printed), "ena 6.18.0, bus 0000:00:05.0");
        assert_eq!(driver("driver: veth\nversion: 1.0\nfirmware-version: N/A\n"), "veth 1.0");
    }
}
