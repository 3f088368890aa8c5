//! `firewall`: what has to pass, as a table or as rules.

use std::io::Write;
use std::path::Path;

use anyhow::Result;

use super::Gateway;
use super::table::Table;
use crate::control_socket::{Answer, Command};
use crate::firewall::rules::{Format, rules};
use crate::firewall::{Needs, needs};
use crate::profile::{Environment, LocalPort, Profile};

pub(super) fn firewall(path: &Path, format: Format) -> Result<()> {
    let profile = Profile::load(path, &Environment::of_process())?;
    // While it runs, its port is known even if it is random.
    let port = match Gateway::of(path)?.ask(Command::Status) {
        Ok(Answer::Status(status)) => Some(status.local_port),
        _ => None,
    };
    let needs = needs(&profile, port);
    let text = if format == Format::Table { table(&profile, &needs) } else { rules(&needs, format) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
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
        LocalPort::Random => {
            "The tunnel's port is another one at each start; set LocalPort, such as 47100, to let it in by a rule.\n"
        }
    };
    text + "Answers to what goes out come back in. As rules: penstock firewall --format nftables, ufw, …\n"
}
