//! `penstock-coordinator authority`, and signing on a machine where no coordinator runs.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use ipnet::IpNet;
use penstock_proto::trust::{
    Authority, Elsewhere, Offer, Publication, SigningKey, SiteGrant, Subnets, SubnetsError, Validity, WaitReason,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::show;
use crate::admin::{Answer, Request, ask};
use crate::owner;
use crate::secret;
use crate::signer::{self, Export, Keys, Requests, Spare};

/// The file with what the authority has signed, where no coordinator keeps it.
const PUBLICATION: &str = "authority.json";
/// Longest file: the statements of the largest overlay.
const LIMIT: u64 = 64 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum AuthorityCommand {
    /// Show the authority's key, where it is, and how to pin it on gateways
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
        /// The file from `authority export`
        file: PathBuf,
    },
    /// Remove the private key from the coordinator, after it was exported
    Remove {
        /// Confirm that the exported file is in a safe place and was imported elsewhere
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
    /// Hand over to a new key; gateways follow automatically. On a machine with an imported authority, this prints what
    /// to bring back, for `authority add`
    Rollover,
    /// Make a spare key that can take over when the authority's key is lost, on the machine that has that key
    Spare {
        /// The new file, which is a secret: keep it in a safe
        file: PathBuf,
    },
    /// Have a spare key take over
    Recover {
        /// The file from `authority spare`
        file: PathBuf,
    },
}

pub(super) fn execute(state: &Path, command: AuthorityCommand) -> anyhow::Result<()> {
    match command {
        AuthorityCommand::Show { json } => show(state, &Request::Authority, json),
        AuthorityCommand::Export { file } => export(state, &file),
        AuthorityCommand::Import { file } => import(state, &file),
        AuthorityCommand::Remove { exported } => {
            anyhow::ensure!(exported, "export the key first (`authority export`), and pass --exported");
            show(state, &Request::RemoveAuthority, false)
        }
        AuthorityCommand::Requests => show(state, &Request::Requests, true),
        AuthorityCommand::Add { file } => show(state, &Request::AddDocuments(Box::new(read(&file)?)), false),
        AuthorityCommand::Rollover if Offline::is_in(state) => Offline::open(state)?.roll_over(),
        AuthorityCommand::Rollover => show(state, &Request::RollOver(None), false),
        AuthorityCommand::Spare { file } => spare(state, &file),
        AuthorityCommand::Recover { file } => show(state, &Request::RollOver(Some(read(&file)?)), false),
    }
}

/// An authority on a machine where no coordinator runs.
struct Offline {
    file: PathBuf,
    keys: Keys,
    authority: Authority,
}

impl Offline {
    fn is_in(state: &Path) -> bool {
        state.join(PUBLICATION).exists()
    }

    fn open(state: &Path) -> anyhow::Result<Self> {
        let (file, keys) = (state.join(PUBLICATION), Keys::of(state));
        let publication: Publication = read(&file).with_context(|| "no authority was imported here")?;
        let key = keys.authority(publication.authority())?;
        let key = key.with_context(|| format!("the authority's key is not in {}", state.display()))?;
        Ok(Self { file, keys, authority: Authority::resume(key, publication)? })
    }

    fn roll_over(self) -> anyhow::Result<()> {
        let key = SigningKey::generate(&mut rand::rng());
        self.keys.prepare(&key)?;
        let copy = SigningKey::from_seed(key.seed().clone());
        let (authority, _) = self.authority.roll_over(signer::now(), copy)?;
        let after = Self { authority, ..self };
        after.publish()?;
        after.keys.replace_authority(&key)?;
        eprintln!("{} is the overlay's authority once this is brought back: make a new spare", key.authority());
        Ok(())
    }

    /// Prints everything in force. It is written to this disk first: what is forgotten here cannot be revoked.
    fn publish(&self) -> anyhow::Result<()> {
        write(&self.file, self.authority.publication(), false)?;
        let text = serde_json::to_string_pretty(self.authority.publication())?;
        Ok(writeln!(io::stdout().lock(), "{text}")?)
    }
}

/// Signs what was requested, for one site or for all, and prints everything that is then in force. The coordinator
/// requests whatever a site offers: subnets that nobody has granted are signed only if they need no grant, unless
/// `subnets` says what the one site may offer.
pub(super) fn sign(state: &Path, file: &Path, only: Option<&str>, subnets: Option<Vec<IpNet>>) -> anyhow::Result<()> {
    let requests: Requests = read(file)?;
    let mut offline = Offline::open(state)?;
    let authority = &mut offline.authority;
    let asked = requests.authority;
    let ours = authority.publication().authority();
    anyhow::ensure!(
        asked == ours,
        "the requests are for the authority {asked}, and the one here is {ours}: after a rollover, add its result to \
        the coordinator first (`authority add`)"
    );
    let now = signer::now();
    let mut found = false;
    let mut wanted = |name: &str, key: &str| {
        let wanted = only.is_none_or(|only| only == name || only == key);
        found |= wanted;
        wanted
    };
    // Removals come first, since a name or a subnet may move from one site to another.
    for subject in requests.revoke {
        let name = authority.publication().site(&subject).map(|site| site.grant.name.to_string()).unwrap_or_default();
        if authority.publication().statement(&subject).is_some() && wanted(&name, &subject.to_string()) {
            authority.revoke(now, [subject])?;
            eprintln!("revoked: {name} {subject}");
        }
    }
    for grant in requests.sites {
        if wanted(grant.name.as_str(), &grant.public_key.to_string()) {
            let (may, waiting) = match &subnets {
                Some(subnets) => (Subnets::new(subnets.iter().copied())?, Vec::new()),
                None => without_a_grant(authority.publication(), &grant)?,
            };
            let shown: Vec<String> = may.iter().map(ToString::to_string).collect();
            eprintln!("approved: {} {}, may offer {}", grant.name, grant.public_key, shown.join(" "));
            for (subnet, why) in waiting {
                eprintln!("  not {subnet}: {why} (by --subnets, which says all that the site may offer)");
            }
            authority.approve(now, SiteGrant { subnets: may, ..grant })?;
        }
    }
    for (relay, name) in requests.relays {
        if wanted(name.as_str(), &relay.to_string()) {
            eprintln!("approved: the relay {name} {relay}");
            authority.approve_relay(now, relay, name, Validity::default())?;
        }
    }
    // A coordinator's leases admit nobody, so they need no separate confirmation.
    if let (Some(key), Some(length), true) = (requests.lease_key, requests.lease, only.is_none()) {
        eprintln!("certified: the coordinator's leases, of at most {length}");
        authority.certify(now, key, length)?;
        found = true;
    }
    anyhow::ensure!(
        found || only.is_none(),
        "{}: there is no request for {}",
        file.display(),
        only.unwrap_or_default()
    );
    offline.publish()
}

/// What a site may offer without a new grant: what it may already, and what needs no grant. Also returns the rest, with
/// the reasons.
fn without_a_grant(
    publication: &Publication,
    asked: &SiteGrant,
) -> Result<(Subnets, Vec<(IpNet, WaitReason)>), SubnetsError> {
    let has = publication.site(&asked.public_key).map(|statement| statement.grant.subnets.clone()).unwrap_or_default();
    let new: Vec<IpNet> = asked.subnets.iter().filter(|subnet| !has.contain(subnet)).copied().collect();
    let others =
        publication.sites().map(|statement| &statement.grant).filter(|site| site.public_key != asked.public_key);
    let others = others.flat_map(|site| site.subnets.iter().map(|subnet| (*subnet, site.name.clone())));
    let decision = Elsewhere::new(others, []).decide(Offer { subnets: &new, in_force: &[], granted: None });
    Ok((Subnets::new(has.iter().copied().chain(decision.in_force))?, decision.waiting))
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
    let rollover = if Offline::is_in(state) {
        Offline::open(state)?.authority.spare(key.authority())
    } else {
        match ask(state, &Request::MakeSpare(key.authority()))? {
            Answer::Document(rollover) => rollover,
            Answer::Error(sentence) => anyhow::bail!(sentence),
            _ => anyhow::bail!("the coordinator does not understand"),
        }
    };
    write(file, &Spare { key: key.seed().clone(), rollover }, true)?;
    Ok(writeln!(io::stdout().lock(), "{} is a secret: keep it in a safe", file.display())?)
}

fn read<T: DeserializeOwned>(file: &Path) -> anyhow::Result<T> {
    let context = || file.display().to_string();
    // Allocated in advance, since some of these are secrets: a growing buffer would leave copies behind.
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

/// Writes a file for its owner only, completely or not at all.
fn write(file: &Path, content: &impl Serialize, new: bool) -> anyhow::Result<()> {
    anyhow::ensure!(!new || fs::symlink_metadata(file).is_err(), "{} exists already", file.display());
    let text = Zeroizing::new(serde_json::to_string_pretty(content)?);
    secret::write_private(file, text.as_bytes()).with_context(|| file.display().to_string())
}
