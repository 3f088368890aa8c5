//! `firewall`: what has to pass, as a table or as rules.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::table::Table;
use super::{Gateway, environment};
use crate::control_socket::{Answer, Command};
use crate::firewall::rules::{Format, rules};
use crate::firewall::{Flow, Need, Needs, Remote, needs};
use crate::profile::{LocalPort, Profile};

pub(super) fn firewall(path: &Path, format: Format, json: bool) -> Result<()> {
    let profile = Profile::load_without_secrets(path, &environment(path))?;
    // While the gateway runs, its port is known even if it is random.
    let port = match Gateway::of(path)?.ask(Command::Status) {
        Ok(Answer::Status(status)) => Some(status.local_port),
        _ => None,
    };
    let needs = needs(&profile, port);
    let text = match format {
        _ if json => serde_json::to_string_pretty(&for_programs(&needs))? + "\n",
        Format::Table => table(&profile, &needs),
        format => as_rules(&needs, format, profile.local_port),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// What to do about a port that no rule can name for long.
const RANDOM_PORT: &str =
    "The tunnel's port changes at each start; set LocalPort, for example to 47100, so that a rule can let it in.\n";

fn as_rules(needs: &Needs, format: Format, local_port: LocalPort) -> String {
    let rules = rules(needs, format);
    match local_port {
        LocalPort::Pinned(_) => rules,
        LocalPort::Random => format!("# {RANDOM_PORT}{rules}"),
    }
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

fn table(profile: &Profile, needs: &Needs) -> String {
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
    text += match profile.local_port {
        LocalPort::Pinned(_) => "The tunnel's port is pinned (LocalPort).\n",
        LocalPort::Random => RANDOM_PORT,
    };
    text + "Answers to what goes out come back in. As rules: penstock firewall --format nftables, ufw, …\n"
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::firewall::{Direction, Protocol};

    #[test]
    fn rules_say_that_a_random_port_needs_a_setting() {
        let needs = Needs { flows: Vec::new(), tunnel: "a".into(), lan: Vec::new() };
        for format in Format::value_variants().iter().filter(|format| **format != Format::Table) {
            let text = |port| as_rules(&needs, *format, port);
            assert!(text(LocalPort::Random).starts_with("# The tunnel's port changes at each start; set LocalPort"));
            assert!(!text(LocalPort::Pinned(47100)).contains("set LocalPort"), "{format:?}");
        }
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
        let call = Flow { direction: Direction::In, remote: Remote::Any, need: Need::Better, ..tunnel.clone() };
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
