//! `enrol`: an enrolment key of the coordinator's lets this site in.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use penstock_connect::{CoordinatorUrl, Outbound};
use penstock_proto::coordination::{Enrolment, EnrolmentKey, Registration, RegistrationState, Waiting};
use zeroize::Zeroizing;

use super::{Failure, Gateway, config, environment};
use crate::coordinator::{self, Cached, Config, EnrolError, seen};
use crate::key::{KeyFileError, PrivateKey, read_key_file};
use crate::profile::{Profile, edit};
use crate::sealed;

/// Longest file or input with an enrolment key: its 150 characters with plenty of white space.
const KEY_LIMIT: u64 = 1024;
/// What enrolment keys begin with; anything else names a file.
const KEY_PREFIXES: [&str; 2] = ["penstock1-", "penstock2-"];

/// The arguments of `enrol`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The enrolment key, a file that holds it, or - for standard input
    ///
    /// Arguments show up in the list of processes, so use a file or - where others have accounts.
    #[arg(value_name = "KEY")]
    key: KeySource,
    /// Where the coordinator is, such as https://coordinator.example.net; the profile's by default
    #[arg(long, value_name = "URL")]
    coordinator: Option<CoordinatorUrl>,
    /// Certificate authorities in PEM that vouch for the coordinator; the system's by default, unless the key
    /// pins the coordinator's own certificate
    #[arg(long, value_name = "FILE", requires = "coordinator")]
    ca_file: Option<PathBuf>,
    /// The name of this site; the profile's Name by default
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Wait up to this many seconds for an administrator's approval
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u32,
    /// The directory of the cached map and the signed documents [default: /var/lib/penstock]
    #[arg(long, value_name = "DIRECTORY")]
    state: Option<PathBuf>,
}

/// Where an enrolment key comes from. Never shown.
#[derive(Clone)]
struct KeySource(Zeroizing<String>);

/// The coordinator refuses; trying again unchanged will not help.
const REFUSED: u8 = 3;
/// The coordinator cannot be reached, or is not available at the moment; try again later.
const UNREACHABLE: u8 = 4;
/// It still has to be approved.
const PENDING: u8 = 5;

const NO_COORDINATOR: &str = "--coordinator must say where the coordinator is, such as https://coordinator.example.net";

pub(super) fn enrol(path: &Path, filter: Option<&str>, arguments: Arguments) -> Result<()> {
    // A command reports by itself what it does.
    let quiet = std::env::var_os("RUST_LOG").is_none().then_some("warn");
    penstock_messages::log_to_stderr(filter.or(quiet))?;
    let gateway = Gateway::of(path)?;
    if gateway.is_running() {
        bail!("{} is running: stop it first, and start it again when it is enrolled", gateway.name);
    }
    let key = arguments.key.read()?;
    let environment = environment(path);
    let path = path.canonicalize().with_context(|| path.display().to_string())?;
    let text = config::text(&path)?;
    let parse = |text: &str| Profile::parse(text.as_bytes(), &path, &environment, &mut key_made_if_missing());
    if arguments.coordinator.is_none() && parse(&text)?.coordinator.is_none() {
        bail!("{NO_COORDINATOR}");
    }
    let text = with_coordinator(&text, arguments.coordinator.as_ref(), arguments.ca_file.as_deref(), &key)?;
    // Checked before the coordinator is asked, so that mistakes here cost nothing there.
    let profile = parse(&text)?;
    let mut config = Config::of(&profile).context(NO_COORDINATOR)?;
    if let Some(directory) = arguments.state {
        config.cache = directory.join(format!("{}.map", profile.name));
        config.seen = directory.join(format!("{}.seen", profile.name));
    }
    let name = arguments.name.as_deref().unwrap_or(profile.name.as_str());
    let name = name.parse().with_context(|| format!("{name:?} is not a valid site name (--name)"))?;

    let wait = Duration::from_secs(arguments.wait.into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outbound = Outbound::new(environment.proxy(), config.mark);
    let enrolment = Enrolment { key, name };
    let enrolled = runtime.block_on(coordinator::enrol(&config, &outbound, enrolment, wait, |registration| {
        // The reader of our output may have closed the pipe.
        let _ = print_registration(&config.url, registration);
    }));
    let enrolled = enrolled.map_err(|error| match error {
        EnrolError::Refused(refusal) if !refusal.reason.is_passing() => failure(REFUSED, refusal),
        EnrolError::Refused(refusal) => failure(UNREACHABLE, refusal),
        EnrolError::Unreachable(why) => failure(UNREACHABLE, why),
    })?;

    let registration = &enrolled.registration;
    let text = with_address(text, &profile, registration)?;
    config::replace(&path, text.as_bytes()).with_context(|| {
        format!("{} is enrolled, but {} was not changed; enrol again", registration.name, path.display())
    })?;
    if let Some(map) = enrolled.map {
        let cached = Cached { registration: registration.clone(), map };
        if let Err(error) = cached.write(&config.cache, &config.private_key, &config.url) {
            eprintln!("penstock: {}: {error}; the first start will need the coordinator", config.cache.display());
        }
    }
    if let Some(authority) = config.authority
        && let Err(error) = seen::learn(&config.seen, &config.private_key, authority, &enrolled.documents)
    {
        eprintln!("penstock: {}: {error}; the first start will need the coordinator", config.seen.display());
    }
    if registration.state == RegistrationState::Pending && !wait.is_zero() {
        let sentence = format!("{} has not been approved after {} s", registration.name, wait.as_secs());
        return Err(failure(PENDING, sentence));
    }
    Ok(())
}

/// The profile's text with the coordinator, and what the key pins.
fn with_coordinator(
    text: &str,
    url: Option<&CoordinatorUrl>,
    ca_file: Option<&Path>,
    key: &EnrolmentKey,
) -> Result<String> {
    let mut assignments: Vec<String> = url.map(|url| format!("Coordinator.Url={url}")).into_iter().collect();
    match key.fingerprint() {
        Some(_) if ca_file.is_some() => bail!("this key pins the coordinator's certificate, so leave out --ca-file"),
        Some(fingerprint) => {
            assignments.push(format!("Coordinator.Fingerprint={fingerprint}"));
            assignments.push("Coordinator.CaFile=".into());
        }
        // A pin of another certificate; authorities vouch for this one just as well.
        None if url.is_some() => assignments.push("Coordinator.Fingerprint=".into()),
        None => {}
    }
    // A key of an older coordinator has no authority, which is no reason to give up one that is already pinned.
    assignments.extend(key.authority().map(|authority| format!("Coordinator.Authority={authority}")));
    if let Some(file) = ca_file {
        // Relative paths in the profile are relative to the profile; ours are not.
        let file = std::path::absolute(file).with_context(|| file.display().to_string())?;
        assignments.push(format!("Coordinator.CaFile={}", file.display()));
    }
    Ok(edit(text, &assignments)?)
}

/// The profile's text with the address that the coordinator has assigned, if it has none.
fn with_address(text: String, profile: &Profile, registration: &Registration) -> Result<String> {
    let given = registration.virtual_address;
    if profile.virtual_addresses.is_empty() {
        return Ok(edit(&text, &[format!("VirtualAddress={given}")])?);
    }
    if !profile.virtual_addresses.contains(&given.into()) {
        let own: Vec<String> = profile.virtual_addresses.iter().map(ToString::to_string).collect();
        eprintln!(
            "penstock: the profile's VirtualAddress is {}, but the others know this site by {given}: \
            `penstock set-config VirtualAddress={given}`",
            own.join(", ")
        );
    }
    Ok(text)
}

/// Reads the private key's file, and creates it if it is missing. Preshared keys, which are read later, are not
/// created.
fn key_made_if_missing() -> impl FnMut(&Path) -> Result<Zeroizing<String>, KeyFileError> {
    let mut first = true;
    move |path| {
        let private = std::mem::replace(&mut first, false);
        match read_key_file(path) {
            Err(KeyFileError::Unreadable(error)) if private && error.kind() == io::ErrorKind::NotFound => {
                make_key(path).map_err(KeyFileError::Unreadable)?;
                eprintln!("penstock: created the private key {}", path.display());
                read_key_file(path)
            }
            outcome => outcome,
        }
    }
}

fn make_key(path: &Path) -> io::Result<()> {
    let key = PrivateKey::generate()?;
    // The key is the site's identity, so it must be on disk before anybody knows about it.
    let line = Zeroizing::new(format!("{}\n", *key.to_base64()));
    sealed::create(path, line.as_bytes())
}

fn print_registration(url: &CoordinatorUrl, registration: &Registration) -> io::Result<()> {
    let Registration { name, state, virtual_address, subnets, waiting } = registration;
    let mut out = io::stdout().lock();
    match state {
        RegistrationState::Approved => {
            let subnets: Vec<String> = subnets.iter().map(ToString::to_string).collect();
            let subnets = if subnets.is_empty() { "no subnets".to_owned() } else { subnets.join(", ") };
            writeln!(out, "{name} is enrolled at {url} and approved: address {virtual_address}, offers {subnets}")
        }
        RegistrationState::Pending => {
            writeln!(out, "{name} is enrolled at {url} and waits for approval: address {virtual_address}")?;
            writeln!(out, "  an administrator approves it with `penstock-coordinator site approve {name}`")
        }
    }?;
    for Waiting { subnet, reason } in waiting {
        let reason: String = reason.chars().filter(|c| !c.is_control()).collect();
        writeln!(out, "  {subnet} waits for an administrator of the coordinator: {reason}")?;
    }
    Ok(())
}

fn failure(code: u8, sentence: impl ToString) -> anyhow::Error {
    Failure { code, sentence: sentence.to_string() }.into()
}

impl KeySource {
    fn read(&self) -> Result<EnrolmentKey> {
        let text = self.0.trim();
        if KEY_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            return Ok(text.parse()?);
        }
        let (source, what): (Box<dyn Read>, _) = match text {
            "-" => (Box::new(io::stdin()), "the enrolment key on standard input"),
            file => match File::open(file) {
                // Without a slash it may be a mistyped key, so it is not shown.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !file.contains('/') => {
                    bail!("what was given is neither an enrolment key (penstock1-… or penstock2-…) nor a file")
                }
                opened => (Box::new(opened.with_context(|| format!("the enrolment key in {file}"))?), file),
            },
        };
        let mut read = Zeroizing::new(String::with_capacity(KEY_LIMIT as usize + 1));
        source.take(KEY_LIMIT).read_to_string(&mut read).with_context(|| what.to_owned())?;
        read.parse().with_context(|| what.to_owned())
    }
}

impl From<&str> for KeySource {
    fn from(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }
}

impl std::fmt::Debug for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeySource(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_a_key_nor_a_file_is_told_without_showing_it() {
        let error = KeySource::from("penstok1-secret").read().unwrap_err().to_string();
        assert!(error.contains("neither an enrolment key") && !error.contains("secret"), "{error}");
    }
}
