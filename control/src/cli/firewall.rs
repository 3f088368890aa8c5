//! `firewall`: what has to pass, as a table or as rules.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::table::Table;
use super::{Gateway, environment, network};
use crate::control_socket::{Answer, Command};
use crate::firewall::rules::{Format, rules};
use crate::firewall::{Flow, Need, Needs, Remote, Surroundings, needs};
use crate::profile::{LocalPort, Profile};

pub(super) fn firewall(path: &Path, format: Format, json: bool) -> Result<()> {
    let environment = environment(path);
    let profile = Profile::load_without_secrets(path, &environment)?;
    // While the gateway runs, its port is known even if it is random.
    let port = match Gateway::of(path)?.ask(Command::Status) {
        Ok(Answer::Status(status)) => Some(status.local_port),
        _ => None,
    };
    let network = network()?;
    let router = network.named(&profile.wan.interface).and_then(|wan| network.router(wan.index));
    let surroundings = Surroundings { port, proxy: &environment.proxy(), router };
    let needs = needs(&profile, &surroundings)?;
    let text = match format {
        _ if json => serde_json::to_string_pretty(&for_programs(&needs))? + "\n",
        Format::Table => table(&needs, &hints(&profile, &surroundings)),
        format => as_rules(&needs, format, &hints(&profile, &surroundings)),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// What to know about flows that are missing.
fn hints(profile: &Profile, surroundings: &Surroundings<'_>) -> Vec<String> {
    let mut hints = Vec::new();
    if profile.local_port == LocalPort::Random {
        hints.push(
            "The tunnel's port changes at each start; set LocalPort, for example to 47100, so that a rule can let it in."
                .to_owned(),
        );
    }
    if profile.coordinator.is_some() && profile.port_mapping && surroundings.router.is_none() {
        hints.push(format!(
            "No default route leads out of {} now; if there will be one, PortMapping needs UDP 5351, UDP 1900 and TCP \
             to its router.",
            profile.wan.interface
        ));
    }
    hints
}

fn as_rules(needs: &Needs, format: Format, hints: &[String]) -> String {
    hints.iter().map(|hint| format!("# {hint}\n")).collect::<String>() + &rules(needs, format)
}

fn for_programs(needs: &Needs) -> Value {
    let flow = |flow: &Flow| {
        json!({
            "Direction": flow.direction.to_string(),
            "Protocol": flow.protocol.to_string(),
            "LocalPort": flow.local_port,
            "Remote": (flow.remote != Remote::Any).then(|| flow.remote.to_string()),
            "RemotePort": flow.remote_port,
            "Required": flow.need == Need::Required,
            "Why": flow.why,
        })
    };
    json!({
        "Flows": needs.flows.iter().map(flow).collect::<Vec<_>>(),
        "Forward": needs.lan.iter().map(|lan| json!([lan, needs.tunnel])).collect::<Vec<_>>(),
    })
}

fn table(needs: &Needs, hints: &[String]) -> String {
    let mut table = Table::new(&["WAY", "PROTOCOL", "PORT HERE", "TO OR FROM", "PORT THERE", "NEEDED", "WHAT FOR"]);
    let port = |port: Option<u16>| port.map_or_else(|| "any".to_owned(), |port| port.to_string());
    for flow in &needs.flows {
        table.row([
            flow.direction.to_string(),
            flow.protocol.to_string(),
            port(flow.local_port),
            flow.remote.to_string(),
            port(flow.remote_port),
            flow.need.to_string(),
            flow.why.clone(),
        ]);
    }
    let mut text = table.to_string();
    for lan in &needs.lan {
        text += &format!("Forwarded both ways between {lan} and {}: this site's packets.\n", needs.tunnel);
    }
    text += &hints.iter().map(|hint| format!("{hint}\n")).collect::<String>();
    text + "Answers to what goes out come back in. As rules: penstock firewall --format nftables, ufw, …\n"
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use penstock_connect::Proxy;

    use super::*;
    use crate::firewall::{Direction, Protocol};
    use crate::profile::Environment;

    fn profile(fields: &str) -> Profile {
        let text = format!(
            r#"{{"Name": "amsterdam", "PrivateKeyFile": "k", "Wan": {{"Interface": "eth0"}},
                "Lan": {{"Interfaces": ["eth1"]}}, "Coordinator": {{"Url": "https://coordinator.example.net"}}{fields}}}"#
        );
        let mut key = |_: &Path| Ok("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".to_owned().into());
        let profile = Profile::parse(text.as_bytes(), Path::new("/p"), &Environment::default(), &mut key);
        profile.unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn rules_say_which_are_missing() {
        let proxy = Proxy::none();
        for format in Format::value_variants().iter().filter(|format| **format != Format::Table) {
            let text = |fields, router: Option<&str>| {
                let (profile, router) = (profile(fields), router.map(|router| router.parse().expect("an address")));
                let surroundings = Surroundings { port: None, proxy: &proxy, router };
                as_rules(&needs(&profile, &surroundings).expect("no proxy"), *format, &hints(&profile, &surroundings))
            };
            let (port, route) = ("# The tunnel's port changes at each start; set LocalPort", "# No default route");
            let none = text("", None);
            assert!(none.starts_with(port) && none.contains(route), "{format:?}: {none}");
            let both = text(r#", "LocalPort": 47100"#, Some("192.168.1.1"));
            assert!(!both.contains(port) && !both.contains(route), "{format:?}: {both}");
            let unasked = text(r#", "PortMapping": false"#, None);
            assert!(unasked.contains(port) && !unasked.contains(route), "{format:?}: {unasked}");
        }
    }

    /// The example of docs/firewall.md.
    #[test]
    fn the_page_shows_what_is_printed() {
        let page = include_str!("../../../docs/firewall.md");
        let (_, example) = page.split_once("$ penstock firewall\n").expect("an example");
        let (example, _) = example.split_once("```").expect("its end");
        let profile = profile(r#", "LocalPort": 47100"#);
        let router = Some("192.168.1.1".parse().expect("an address"));
        let surroundings = Surroundings { port: None, proxy: &Proxy::none(), router };
        let needs = needs(&profile, &surroundings).expect("no proxy");
        assert_eq!(table(&needs, &hints(&profile, &surroundings)), example);
    }

    #[test]
    fn programs_get_each_flow() {
        let tunnel = Flow {
            direction: Direction::Out,
            protocol: Protocol::Udp,
            local_port: Some(47100),
            remote: Remote::Name("gw.example.net".into()),
            remote_port: None,
            need: Need::Required,
            why: "the tunnel".into(),
        };
        let call = Flow { direction: Direction::In, remote: Remote::Any, need: Need::Recommended, ..tunnel.clone() };
        let needs = Needs { flows: vec![tunnel, call], tunnel: "a".into(), lan: vec!["eth1".into()] };
        let json = for_programs(&needs);
        let expected = json!({
            "Direction": "out", "Protocol": "udp", "LocalPort": 47100, "Remote": "gw.example.net", "RemotePort": null,
            "Required": true, "Why": "the tunnel",
        });
        assert_eq!((&json["Flows"][0], &json["Forward"]), (&expected, &json!([["eth1", "a"]])));
        let call = &json["Flows"][1];
        assert_eq!(
            (&call["Direction"], &call["Remote"], &call["Required"]),
            (&json!("in"), &Value::Null, &json!(false))
        );
    }
}
