//! Writes the man pages and shell completions of the three programs into a directory, from their own argument
//! parsers. Only `scripts/package` runs it; nothing of it is installed.

use std::fs::{File, create_dir_all};
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;

/// What pages contain besides what the parsers know.
const MORE: [(&str, &str); 2] = [
    ("penstock.1", include_str!("penstock.roff")),
    ("penstock-coordinator.1", include_str!("penstock-coordinator.roff")),
];

fn main() -> Result<()> {
    let directory = PathBuf::from(std::env::args_os().nth(1).context("which directory?")?);
    let pages = directory.join("man");
    for command in [penstock::cli::command(), penstock_coordinator::cli::command(), penstock_bench::cli::command()] {
        write(command, &pages, &directory.join("completions"))?;
    }
    for (page, more) in MORE {
        File::options().append(true).open(pages.join(page))?.write_all(more.as_bytes())?;
    }
    Ok(())
}

/// A page for the program and each of its commands, and a file for each shell.
fn write(mut command: Command, pages: &PathBuf, completions: &PathBuf) -> Result<()> {
    create_dir_all(pages)?;
    create_dir_all(completions)?;
    let name = command.get_name().to_owned();
    let documented = without_help(command.clone());
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, &name, completions)?;
    }
    // The page of a hidden command would reveal it.
    clap_mangen::generate_to(documented, pages)?;
    Ok(())
}

/// The command without the subcommands `help`, which nobody looks up in the manual.
fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    use penstock::profile::{self, FIELDS, Profile};
    use penstock_coordinator::config;
    use serde::de::DeserializeOwned;

    /// Both pages are written by hand, so a new field is easily forgotten.
    fn has_all(page: &str, fields: impl IntoIterator<Item = String>) {
        let missing: Vec<String> =
            fields.into_iter().filter(|name| !page.contains(&format!(".TP\n.B {name}\n"))).collect();
        assert!(missing.is_empty(), "{missing:?} are missing");
    }

    /// The fields that an object can have, taken from the error about a field that it cannot have.
    fn fields<T: DeserializeOwned>(with_unknown_field: &str) -> Vec<String> {
        let Err(error) = serde_json::from_str::<T>(with_unknown_field) else {
            panic!("there is a field without a name")
        };
        let error = error.to_string();
        let (_, known) = error.split_once("expected one of ").unwrap_or_else(|| panic!("{error}"));
        known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn pages_lead_to_pages() {
        let directory = tempfile::tempdir().unwrap();
        let pages = directory.path().join("man");
        for command in [penstock::cli::command(), penstock_coordinator::cli::command()] {
            super::write(command, &pages, &directory.path().join("completions")).unwrap();
        }
        for page in std::fs::read_dir(&pages).unwrap() {
            let text = std::fs::read_to_string(page.unwrap().path()).unwrap().replace("\\-", "-");
            for name in text.lines().filter_map(|line| line.strip_suffix("(1)")) {
                assert!(pages.join(format!("{name}.1")).exists(), "there is no page of {name}");
            }
        }
    }

    #[test]
    fn the_page_of_the_profile_has_every_field() {
        let page = include_str!("../../penstock.profile.5");
        has_all(page, FIELDS.iter().map(|field| field.path.join(".")));
        let (_, of_peers) = page.split_once(".SS Fields of a peer").unwrap();
        has_all(of_peers, fields::<profile::Document>(r#"{ "Peers": [{ "": 0 }] }"#));
    }

    /// The profile on the page is the one that is installed. With a key it is valid, and its fields are explained.
    #[test]
    fn the_page_of_the_profile_has_the_example_and_explains_it() {
        const EXAMPLE: &str = include_str!("../../files/Universe.profile");
        let page = include_str!("../../penstock.profile.5");
        let (_, shown) = page.split_once("\n.EX\n").unwrap();
        let (shown, explained) = shown.split_once(".EE\n").unwrap();
        assert_eq!(shown, EXAMPLE);

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("Universe.profile");
        std::fs::write(&path, EXAMPLE).unwrap();
        let load = || Profile::load(&path, &std::iter::empty().collect());
        let error = load().unwrap_err().to_string();
        assert!(error.contains("field PrivateKeyFile: ") && error.contains("amsterdam.key"), "{error}");
        let mut file = std::fs::OpenOptions::new();
        let mut key =
            file.write(true).create_new(true).mode(0o600).open(directory.path().join("amsterdam.key")).unwrap();
        writeln!(key, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
        assert_eq!(load().unwrap().peers.len(), 1);

        let document: serde_json::Map<String, serde_json::Value> = serde_json::from_str(EXAMPLE).unwrap();
        let of_peer = document["Peers"][0].as_object().unwrap().keys().filter(|name| *name != "Name");
        has_all(explained, document.keys().chain(of_peer).cloned());
    }

    #[test]
    fn the_page_of_the_coordinator_has_every_field() {
        let page = include_str!("../../penstock-coordinator.json.5");
        let objects = ["Acme", "Page", "Page.Oidc", "Page.Oidc.Allow"];
        for object in ["", "Acme.", "Page.", "Page.Oidc.", "Page.Oidc.Allow."] {
            let keys = object.split_terminator('.');
            let json = keys.rev().fold(r#"{ "": 0 }"#.to_owned(), |inner, key| format!(r#"{{ "{key}": {inner} }}"#));
            let names = fields::<config::Document>(&json).into_iter().map(|field| format!("{object}{field}"));
            has_all(page, names.filter(|name| !objects.contains(&name.as_str())));
        }
    }
}
