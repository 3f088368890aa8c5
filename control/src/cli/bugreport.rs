//! `bugreport`: everything that is needed to find a fault, in an archive.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::Args;
use penstock_proto::trust::UnixTime;
use rand::TryRngCore;

use super::{Gateway, environment};
use crate::bugreport::{self, Anonymiser, Entry, Secrets};
use crate::control_socket::{self, Answer, Command};
use crate::profile::{Name, Profile};
use crate::status::Status;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Replace addresses, names, host names, public keys and fingerprints consistently in all files
    #[arg(long, visible_alias = "anonymize")]
    anonymise: bool,
    /// Where to write it [default: penstock-NAME-TIME.tar.gz, here]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn bugreport(path: &Path, arguments: Arguments) -> Result<()> {
    let environment = environment(path);
    let profile = Profile::load_without_secrets(path, &environment).map_err(|error| error.to_string());
    let gateway = Gateway::known(path).or_else(|error| {
        // Before its first start, a gateway whose profile cannot be read is known by the file's name at most.
        let stem = path.file_stem().and_then(|stem| Name::try_from(stem.to_str()?.to_owned()).ok());
        stem.map(|name| Gateway { directory: control_socket::directory(), name }).ok_or(error)
    })?;
    // Without a valid profile there are no keys to remove, and nothing has read one.
    let secrets = profile.as_ref().map_or_else(|_| Secrets::default(), Secrets::of);
    let mut entries = bugreport::gather(path, &gateway.name, &profile, &environment);
    entries.iter_mut().for_each(|entry| entry.text = secrets.take_out(&entry.text));
    let mut title = gateway.name.to_string();
    if arguments.anonymise {
        let anonymiser = anonymiser(&gateway, &profile, &entries)?;
        entries.iter_mut().for_each(|entry| entry.text = anonymiser.apply(&entry.text));
        title = anonymiser.apply(&title);
    }
    entries.insert(0, bugreport::contents(&entries, arguments.anonymise));

    let seconds = UnixTime::from(SystemTime::now()).0;
    let directory = format!("penstock-{title}-{seconds}");
    let output = arguments.output.unwrap_or_else(|| format!("{directory}.tar.gz").into());
    // It tells more about a network than others should read.
    let file = File::options().write(true).create_new(true).mode(0o600).open(&output);
    let file = file.with_context(|| output.display().to_string())?;
    if let Err(error) = bugreport::write(file, &directory, &entries) {
        let _ = std::fs::remove_file(&output);
        return Err(error).with_context(|| output.display().to_string());
    }
    writeln!(std::io::stdout(), "{}", output.display())?;
    Ok(())
}

/// What replaces the names that gateway and profile know.
fn anonymiser(gateway: &Gateway, profile: &Result<Profile, String>, entries: &[Entry]) -> Result<Anonymiser> {
    let mut secret = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut secret).context("no random numbers")?;
    let mut anonymiser = Anonymiser::new(secret);
    anonymiser.add("site", gateway.name.as_str());
    if let Ok(Answer::Status(status)) = gateway.ask(Command::Status) {
        add_names(&mut anonymiser, &status);
    }
    if let Ok(profile) = profile {
        profile.peers.iter().for_each(|peer| anonymiser.add("site", &peer.name));
    }
    let hosts = entries.iter().filter(|entry| entry.name.ends_with(".json")).flat_map(|entry| hosts(&entry.text));
    hosts.for_each(|host| anonymiser.add("host", host));
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    anonymiser.add("host", hostname.trim());
    Ok(anonymiser)
}

fn add_names(anonymiser: &mut Anonymiser, status: &Status) {
    let sites = status
        .coordinator
        .iter()
        .flat_map(|coordinator| coordinator.site.iter().chain(coordinator.refused.iter().map(|refused| &refused.name)));
    sites.chain(status.peers.iter().map(|peer| &peer.name)).for_each(|name| anonymiser.add("site", name));
    status.relays.iter().for_each(|relay| anonymiser.add("relay", &relay.name));
}

/// The host names of URLs and endpoints in a JSON text.
fn hosts(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').filter_map(|value| {
        let authority = match value.split_once("://") {
            Some((_, after)) => after.split('/').next()?,
            None => value.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok())?.0,
        };
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let is_name = host.contains('.') && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
        is_name.then_some(host)
    })
}

#[cfg(test)]
mod tests {
    use super::hosts;

    #[test]
    fn hosts_of_urls_and_endpoints_are_found() {
        let json = r#"{"Url": "https://c.example.net:8443/x", "Endpoint": "gw.example.org:47100", "Reason": "at: 5",
                       "Other": "https://d.example.net", "Key": "a.key", "Address": "[2001:db8::1]:5"}"#;
        assert_eq!(hosts(json).collect::<Vec<_>>(), ["c.example.net", "gw.example.org", "d.example.net"]);
    }
}
