//! Flows as rules of the usual firewalls. The output can be pasted; what has to be filled in is in capitals.

use std::fmt::Write;
use std::net::IpAddr;

use super::{Direction, Flow, Needs, Protocol, Remote};

/// A firewall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// nftables, on the gateway
    Nftables,
    /// iptables and ip6tables, on the gateway
    Iptables,
    /// ufw, on the gateway
    Ufw,
    /// firewalld, on the gateway
    Firewalld,
    /// pf, on a router in front
    Pf,
    /// A security group of AWS
    Aws,
    /// Firewall rules of Google Cloud
    Gcp,
    /// A network security group of Azure
    Azure,
}

/// The first priority of rules in Azure.
const AZURE_FIRST: usize = 1000;

/// The rules, one per line; nothing for [`Format::Table`], which is not made of rules.
#[must_use]
pub fn rules(needs: &Needs, format: Format) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match format {
        Format::Table => Ok(()),
        Format::Nftables => nftables(&mut text, needs),
        Format::Iptables => iptables(&mut text, needs),
        Format::Ufw => ufw(&mut text, needs),
        Format::Firewalld => firewalld(&mut text, needs),
        Format::Pf => pf(&mut text, needs),
        Format::Aws => aws(&mut text, needs),
        Format::Gcp => gcp(&mut text, needs),
        Format::Azure => azure(&mut text, needs),
    };
    text
}

/// The address for a rule. A name's addresses may change, so its rule has none.
fn address(remote: &Remote) -> Option<IpAddr> {
    match remote {
        Remote::Address(address) | Remote::Router(address) => Some(*address),
        Remote::Any | Remote::Name(_) => None,
    }
}

/// The flows that pass a router in front. Those to the router itself end there, and the one of a cloud maps no ports.
fn beyond_the_router(needs: &Needs) -> impl Iterator<Item = &Flow> {
    needs.flows.iter().filter(|flow| !matches!(flow.remote, Remote::Router(_)))
}

/// What a rule is for, with the remote's name if the rule itself cannot have it.
fn comment(flow: &Flow) -> String {
    let name = if let Remote::Name(name) = &flow.remote { format!(" ({name})") } else { String::new() };
    // Peers' names come from a file: nothing in them may end a quotation or a line, or have more bytes than characters.
    let text = format!("{}{name}", flow.why);
    let plain = |c: char| c.is_ascii() && !c.is_ascii_control() && !matches!(c, '"' | '\\' | '\'' | '`' | '$' | '!');
    text.chars().map(|c| if plain(c) { c } else { '_' }).collect()
}

fn nftables(out: &mut String, needs: &Needs) -> std::fmt::Result {
    let Needs { lan, tunnel, .. } = needs;
    writeln!(out, "# Into the chains of your own table. Each rule comes before those that are there.")?;
    for (direction, chain) in [(Direction::In, "input"), (Direction::Out, "output")] {
        for flow in needs.flows.iter().filter(|flow| flow.direction == direction) {
            write!(out, "insert rule inet filter {chain} ")?;
            let side = if direction == Direction::In { "saddr" } else { "daddr" };
            if let Some(address) = address(&flow.remote) {
                write!(out, "{} {side} {address} ", if address.is_ipv4() { "ip" } else { "ip6" })?;
            }
            let protocol = flow.protocol;
            let (source, destination) = ports(flow);
            if source.is_none() && destination.is_none() {
                write!(out, "meta l4proto {protocol} ")?;
            }
            source.map_or(Ok(()), |port| write!(out, "{protocol} sport {port} "))?;
            destination.map_or(Ok(()), |port| write!(out, "{protocol} dport {port} "))?;
            writeln!(out, "accept comment \"{:.100}\"", comment(flow))?;
        }
    }
    for lan in lan {
        writeln!(out, "insert rule inet filter forward iifname \"{lan}\" oifname \"{tunnel}\" accept")?;
        writeln!(out, "insert rule inet filter forward iifname \"{tunnel}\" oifname \"{lan}\" accept")?;
    }
    Ok(())
}

/// The first packet's source and destination port.
fn ports(flow: &Flow) -> (Option<u16>, Option<u16>) {
    match flow.direction {
        Direction::In => (flow.remote_port, flow.local_port),
        Direction::Out => (flow.local_port, flow.remote_port),
    }
}

fn iptables(out: &mut String, needs: &Needs) -> std::fmt::Result {
    for flow in &needs.flows {
        let address = address(&flow.remote);
        let programs: &[&str] = match address {
            Some(IpAddr::V4(_)) => &["iptables"],
            Some(IpAddr::V6(_)) => &["ip6tables"],
            None => &["iptables", "ip6tables"],
        };
        let (chain, side) = if flow.direction == Direction::In { ("INPUT", "-s") } else { ("OUTPUT", "-d") };
        for program in programs {
            write!(out, "{program} -I {chain} -p {}", flow.protocol)?;
            address.map_or(Ok(()), |address| write!(out, " {side} {address}"))?;
            let (source, destination) = ports(flow);
            source.map_or(Ok(()), |port| write!(out, " --sport {port}"))?;
            destination.map_or(Ok(()), |port| write!(out, " --dport {port}"))?;
            writeln!(out, " -m comment --comment \"{:.200}\" -j ACCEPT", comment(flow))?;
        }
    }
    for lan in &needs.lan {
        for program in ["iptables", "ip6tables"] {
            writeln!(out, "{program} -I FORWARD -i {lan} -o {} -j ACCEPT", needs.tunnel)?;
            writeln!(out, "{program} -I FORWARD -i {} -o {lan} -j ACCEPT", needs.tunnel)?;
        }
    }
    Ok(())
}

fn ufw(out: &mut String, needs: &Needs) -> std::fmt::Result {
    for flow in &needs.flows {
        let remote = address(&flow.remote).map_or_else(|| "any".to_owned(), |address| address.to_string());
        let port = |port: Option<u16>| port.map_or_else(String::new, |port| format!(" port {port}"));
        let (here, there) = (port(flow.local_port), port(flow.remote_port));
        let (direction, protocol) = (flow.direction, flow.protocol);
        let comment = comment(flow);
        match direction {
            Direction::In => writeln!(
                out,
                "ufw prepend allow in proto {protocol} from {remote}{there} to any{here} comment \"{comment}\""
            )?,
            Direction::Out => writeln!(
                out,
                "ufw prepend allow out proto {protocol} from any{here} to {remote}{there} comment \"{comment}\""
            )?,
        }
    }
    for lan in &needs.lan {
        writeln!(out, "ufw route prepend allow in on {lan} out on {}", needs.tunnel)?;
        writeln!(out, "ufw route prepend allow in on {} out on {lan}", needs.tunnel)?;
    }
    Ok(())
}

fn firewalld(out: &mut String, needs: &Needs) -> std::fmt::Result {
    writeln!(out, "# firewalld lets out whatever the gateway sends, unless a policy of yours forbids it.")?;
    for flow in needs.flows.iter().filter(|flow| flow.direction == Direction::In) {
        if let Some(port) = flow.local_port {
            writeln!(out, "firewall-cmd --permanent --add-port={port}/{} # {}", flow.protocol, comment(flow))?;
        }
    }
    if !needs.lan.is_empty() {
        writeln!(
            out,
            "firewall-cmd --permanent --zone=trusted --add-interface={} # the site's own packets",
            needs.tunnel
        )?;
        writeln!(out, "firewall-cmd --permanent --new-policy=penstock")?;
        writeln!(out, "firewall-cmd --permanent --policy=penstock --add-egress-zone=trusted")?;
        for lan in &needs.lan {
            // Without a zone of its own an interface is in the default zone.
            writeln!(
                out,
                "firewall-cmd --permanent --policy=penstock --add-ingress-zone=\"$(firewall-cmd \
                 --get-zone-of-interface={lan} || firewall-cmd --get-default-zone)\""
            )?;
        }
        writeln!(out, "firewall-cmd --permanent --policy=penstock --set-target=ACCEPT")?;
    }
    writeln!(out, "firewall-cmd --reload")
}

fn pf(out: &mut String, needs: &Needs) -> std::fmt::Result {
    writeln!(
        out,
        "# $wan is the router's interface to the internet, $gateway the address of this gateway, by IPv6 $gateway6."
    )?;
    for flow in beyond_the_router(needs) {
        let remote = address(&flow.remote).map_or_else(|| "any".to_owned(), |address| address.to_string());
        let port = |port: Option<u16>| port.map_or_else(String::new, |port| format!(" port {port}"));
        let (here, there) = (port(flow.local_port), port(flow.remote_port));
        let protocol = flow.protocol;
        writeln!(out, "# {}", comment(flow))?;
        match (flow.direction, flow.local_port) {
            (Direction::In, Some(local)) => {
                writeln!(
                    out,
                    "pass in on $wan proto {protocol} from {remote}{there} to ($wan) port {local} rdr-to $gateway"
                )?;
            }
            (Direction::In, None) => {}
            (Direction::Out, _) => {
                let gateway = if remote.contains(':') { "$gateway6" } else { "$gateway" };
                writeln!(out, "pass out on $wan proto {protocol} from {gateway}{here} to {remote}{there} keep state")?;
            }
        }
    }
    if let Some(port) = needs.flows.iter().find(|flow| flow.direction == Direction::In).and_then(|flow| flow.local_port)
    {
        writeln!(out, "# Keeps the tunnel's port, so that sites behind other NATs find it.")?;
        writeln!(out, "match out on $wan inet proto udp from $gateway port {port} nat-to ($wan) static-port")?;
    }
    Ok(())
}

/// Flows in the clouds' terms: prefixes at the far end, and the destination port of the first packet.
struct Cloud {
    direction: Direction,
    protocol: Protocol,
    port: Option<u16>,
    prefixes: Vec<String>,
    why: String,
}

fn clouds(needs: &Needs) -> impl Iterator<Item = Cloud> + '_ {
    beyond_the_router(needs).map(|flow| Cloud {
        direction: flow.direction,
        protocol: flow.protocol,
        port: ports(flow).1,
        prefixes: match address(&flow.remote) {
            Some(address) => vec![ipnet::IpNet::from(address).to_string()],
            None => vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
        },
        why: comment(flow),
    })
}

fn aws(out: &mut String, needs: &Needs) -> std::fmt::Result {
    for Cloud { direction, protocol, port, prefixes, why } in clouds(needs) {
        let way = if direction == Direction::In { "ingress" } else { "egress" };
        let (from, to) = port.map_or((0, u16::MAX), |port| (port, port));
        for prefix in prefixes {
            let ranges = if prefix.contains(':') {
                format!("Ipv6Ranges=[{{CidrIpv6={prefix}}}]")
            } else {
                format!("IpRanges=[{{CidrIp={prefix}}}]")
            };
            writeln!(
                out,
                "aws ec2 authorize-security-group-{way} --group-id GROUP --ip-permissions \
                 \"IpProtocol={protocol},FromPort={from},ToPort={to},{ranges}\" # {why}"
            )?;
        }
    }
    writeln!(out, "aws ec2 modify-instance-attribute --instance-id INSTANCE --no-source-dest-check # it forwards")
}

fn gcp(out: &mut String, needs: &Needs) -> std::fmt::Result {
    for (at, Cloud { direction, protocol, port, prefixes, why }) in clouds(needs).enumerate() {
        let (way, ranges) = if direction == Direction::In { ("INGRESS", "source") } else { ("EGRESS", "destination") };
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        // A rule has prefixes of one family.
        for (prefix, family) in prefixes.iter().zip(["", "-v6"]) {
            writeln!(
                out,
                "gcloud compute firewall-rules create penstock-{at}{family} --network=NETWORK --direction={way} \
                 --allow={protocol}{port} --{ranges}-ranges={prefix} # {why}"
            )?;
        }
    }
    writeln!(out, "# The instance must have been made with --can-ip-forward, since it forwards.")
}

fn azure(out: &mut String, needs: &Needs) -> std::fmt::Result {
    for (at, Cloud { direction, protocol, port, prefixes, why }) in clouds(needs).enumerate() {
        let (way, far) = if direction == Direction::In { ("Inbound", "source") } else { ("Outbound", "destination") };
        let prefix = if prefixes.len() == 1 { prefixes.concat() } else { "'*'".to_owned() };
        let protocol = if protocol == Protocol::Tcp { "Tcp" } else { "Udp" };
        let port = port.map_or_else(|| "'*'".to_owned(), |port| port.to_string());
        writeln!(
            out,
            "az network nsg rule create --resource-group GROUP --nsg-name NSG --name penstock-{at} --priority {} \
             --direction {way} --access Allow --protocol {protocol} --{far}-address-prefixes {prefix} \
             --destination-port-ranges {port} # {why}",
            AZURE_FIRST + at
        )?;
    }
    writeln!(out, "az network nic update --resource-group GROUP --name NIC --ip-forwarding true # it forwards")
}
