//! Writes the man pages and shell completions of the three programs into a directory, from their own argument
//! parsers. Only `scripts/package` runs it; nothing of it is installed.

use std::fs::create_dir_all;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;

fn main() -> Result<()> {
    let directory = PathBuf::from(std::env::args_os().nth(1).context("which directory?")?);
    for command in [penstock::cli::command(), penstock_coordinator::cli::command(), penstock_bench::cli::command()] {
        write(command, &directory.join("man"), &directory.join("completions"))?;
    }
    Ok(())
}

/// A page for the program and each of its commands, and a file for each shell.
fn write(mut command: Command, pages: &PathBuf, completions: &PathBuf) -> Result<()> {
    create_dir_all(pages)?;
    create_dir_all(completions)?;
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, &name, completions)?;
    }
    // The page of a hidden command would tell what is hidden.
    clap_mangen::generate_to(command, pages)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use penstock::profile::FIELDS;

    /// The page is written by hand, so a new field is easily forgotten.
    #[test]
    fn the_page_of_the_profile_has_every_field() {
        let page = include_str!("../../penstock.profile.5");
        let missing: Vec<String> = FIELDS
            .iter()
            .map(|field| field.path.join("."))
            .filter(|name| !page.contains(&format!(".TP\n.B {name}\n")))
            .collect();
        assert!(missing.is_empty(), "{missing:?} are missing");
    }
}
