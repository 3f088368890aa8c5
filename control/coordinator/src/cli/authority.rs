//! `penstock-coordinator authority`, and signing on a machine where no coordinator runs.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use penstock_proto::trust::{Authority, Publication, SigningKey, Validity};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::show;
use crate::admin::{Answer, Request, ask};
use crate::owner;
use crate::secret;
use crate::signer::{self, Export, Keys, Requests, Spare};

/// What the authority has signed, where no coordinator keeps it.
const PUBLICATION: &str = "authority.json";
/// Longest file: the statements of the largest overlay.
const LIMIT: u64 = 64 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum AuthorityCommand {
    /// Show the authority's key, where it is, and how gateways get to pin it
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the authority's private key and what it has signed to a new file, to be taken to another machine
    Export {
        /// The file, which is a secret
        file: PathBuf,
    },
    /// Put an exported authority into --state, on a machine where no coordinator runs
    Import {
        /// The file of `authority export`
        file: PathBuf,
    },
    /// Remove the private key from the coordinator, after it was exported
    Remove {
        /// Yes: the exported file is safe, and was imported elsewhere
        #[arg(long)]
        exported: bool,
    },
    /// Print what waits for the authority's signature, for `site approve --offline`
    Requests,
    /// Put in force what the authority has signed elsewhere
    Add {
        /// What `site approve --offline` has printed, or - for standard input
        file: PathBuf,
    },
    /// Hand over to a new key; gateways follow by themselves
    Rollover,
    /// Make a spare key that can take over when the authority's key is lost
    Spare {
        /// A new file, which is a secret and belongs into a safe
        file: PathBuf,
    },
    /// Have a spare key take over
    Recover {
        /// The file of `authority spare`
        file: PathBuf,
    },
}

pub(super) fn execute(state: &Path, command: AuthorityCommand) -> anyhow::Result<()> {
    match command {
        AuthorityCommand::Show { json } => show(state, &Request::Authority, json),
        AuthorityCommand::Export { file } => export(state, &file),
        AuthorityCommand::Import { file } => import(state, &file),
        AuthorityCommand::Remove { exported } => {
            anyhow::ensure!(exported, "export the key first (`authority export`), and say --exported");
            show(state, &Request::RemoveAuthority, false)
        }
        AuthorityCommand::Requests => show(state, &Request::Requests, true),
        AuthorityCommand::Add { file } => show(state, &Request::AddDocuments(Box::new(read(&file)?)), false),
        AuthorityCommand::Rollover => show(state, &Request::RollOver(None), false),
        AuthorityCommand::Spare { file } => spare(state, &file),
        AuthorityCommand::Recover { file } => show(state, &Request::RollOver(Some(read(&file)?)), false),
    }
}

/// Signs what was asked for, of one site or of all, and prints all that is in force then.
pub(super) fn sign(state: &Path, file: &Path, only: Option<&str>) -> anyhow::Result<()> {
    let requests: Requests = read(file)?;
    let path = state.join(PUBLICATION);
    let publication: Publication = read(&path).with_context(|| "no authority was imported here")?;
    let key = Keys::of(state).authority(publication.authority())?;
    let key = key.with_context(|| format!("the authority's key is not in {}", state.display()))?;
    let mut authority = Authority::resume(key, publication)?;
    let asked = requests.authority;
    let ours = authority.publication().authority();
    anyhow::ensure!(asked == ours, "the requests are for the authority {asked}, and this is {ours}");
    let now = signer::now();
    let mut found = false;
    let mut wanted = |name: &str, key: &str| {
        let wanted = only.is_none_or(|only| only == name || only == key);
        found |= wanted;
        wanted
    };
    // What ends comes first: a name or a subnet may go from one site to another.
    for subject in requests.revoke {
        let name = authority.publication().site(&subject).map(|site| site.grant.name.to_string()).unwrap_or_default();
        if authority.publication().statement(&subject).is_some() && wanted(&name, &subject.to_string()) {
            authority.revoke(now, [subject])?;
            eprintln!("revoked: {name} {subject}");
        }
    }
    for grant in requests.sites {
        if wanted(grant.name.as_str(), &grant.public_key.to_string()) {
            let subnets: Vec<String> = grant.subnets.iter().map(ToString::to_string).collect();
            eprintln!("approved: {} {}, may offer {}", grant.name, grant.public_key, subnets.join(" "));
            authority.approve(now, grant)?;
        }
    }
    for (relay, name) in requests.relays {
        if wanted(name.as_str(), &relay.to_string()) {
            eprintln!("approved: the relay {name} {relay}");
            authority.approve_relay(now, relay, name, Validity::default())?;
        }
    }
    // A coordinator's leases bring nobody in, so they need no word of their own.
    if let (Some(key), Some(length), true) = (requests.lease_key, requests.lease, only.is_none()) {
        eprintln!("certified: the coordinator's leases, of at most {length}");
        authority.certify(now, key, length)?;
        found = true;
    }
    anyhow::ensure!(found || only.is_none(), "{}: nothing is asked for {}", file.display(), only.unwrap_or_default());
    // First on this disk: what is forgotten here cannot be revoked.
    write(&path, authority.publication(), false)?;
    let text = serde_json::to_string_pretty(authority.publication())?;
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

fn export(state: &Path, file: &Path) -> anyhow::Result<()> {
    let Answer::Publication(publication) = ask(state, &Request::Publication)? else {
        anyhow::bail!("the coordinator does not say what its authority has signed");
    };
    let key = Keys::of(state).authority(publication.authority())?;
    let key = key.context("the authority's key is on another machine already")?;
    write(file, &Export::new(&key, *publication), true)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{} is a secret. On a machine of its own: `authority import {}`", file.display(), file.display())?;
    Ok(writeln!(out, "Then here: `authority remove --exported`")?)
}

fn import(state: &Path, file: &Path) -> anyhow::Result<()> {
    let (key, publication) = read::<Export>(file)?.open()?;
    DirBuilder::new().recursive(true).mode(0o700).create(state).with_context(|| state.display().to_string())?;
    owner::check(state, &state.metadata()?)?;
    let path = state.join(PUBLICATION);
    anyhow::ensure!(!path.exists(), "{} exists: there is an authority already", path.display());
    Keys::of(state).replace_authority(&key)?;
    write(&path, &publication, true)?;
    let authority = publication.authority();
    Ok(writeln!(io::stdout().lock(), "the authority {authority} is in {}", state.display())?)
}

fn spare(state: &Path, file: &Path) -> anyhow::Result<()> {
    let key = SigningKey::generate(&mut rand::rng());
    let rollover = match ask(state, &Request::MakeSpare(key.authority()))? {
        Answer::Document(rollover) => rollover,
        Answer::Error(sentence) => anyhow::bail!(sentence),
        _ => anyhow::bail!("the coordinator does not understand"),
    };
    write(file, &Spare { key: key.seed().clone(), rollover }, true)?;
    Ok(writeln!(io::stdout().lock(), "{} is a secret: put it into a safe", file.display())?)
}

fn read<T: DeserializeOwned>(file: &Path) -> anyhow::Result<T> {
    let context = || file.display().to_string();
    // Reserved at once, since some of these are secrets: a growing buffer would leave copies behind.
    let (source, length): (Box<dyn Read>, u64) = match file == Path::new("-") {
        true => (Box::new(io::stdin()), 0),
        false => {
            let file = File::open(file).with_context(context)?;
            let length = file.metadata().with_context(context)?.len();
            (Box::new(file), length)
        }
    };
    let mut text = Zeroizing::new(String::with_capacity(length.min(LIMIT) as usize + 1));
    source.take(LIMIT).read_to_string(&mut text).with_context(context)?;
    serde_json::from_str(&text).with_context(context)
}

/// Writes a file for its owner alone, whole or not at all.
fn write(file: &Path, content: &impl Serialize, new: bool) -> anyhow::Result<()> {
    anyhow::ensure!(!new || fs::symlink_metadata(file).is_err(), "{} exists already", file.display());
    let text = Zeroizing::new(serde_json::to_string_pretty(content)?);
    secret::write_private(file, text.as_bytes()).with_context(|| file.display().to_string())
}
