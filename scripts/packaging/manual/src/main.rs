//! Writes the man pages and shell completions of the three programs into a directory: from their own argument parsers,
//! and from the pages of section 5, which are written by hand. Only `scripts/package` runs it; nothing of it is
//! installed.

mod page;

use std::fs::{File, create_dir_all, write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;

/// The pages of section 5.
const BY_HAND: [(&str, &str); 2] = [
    ("penstock.profile.5", include_str!("../../penstock.profile.5")),
    ("penstock-coordinator.json.5", include_str!("../../penstock-coordinator.json.5")),
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().context("which directory?")?);
    let date = arguments.next().context("the date of the pages?")?;
    write_all(&directory, &date)
}

fn write_all(directory: &Path, date: &str) -> Result<()> {
    let (pages, completions) = (directory.join("man"), directory.join("completions"));
    create_dir_all(&pages)?;
    create_dir_all(&completions)?;
    for mut command in commands() {
        let name = command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command.clone(), &name, &completions)?;
        }
        command = without_help(command);
        command.build();
        write_pages(&command, &[], date, &pages)?;
    }
    for (page, text) in BY_HAND {
        write(pages.join(page), with_footer(text, date))?;
    }
    Ok(())
}

/// The programs' arguments.
fn commands() -> [Command; 3] {
    [penstock::cli::command(), penstock_coordinator::cli::command(), penstock_bench::cli::command()]
}

/// The command without the subcommands `help`, which nobody looks up in the manual.
fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

/// A page for the command and each of its subcommands, except for hidden ones.
fn write_pages(command: &Command, above: &[&str], date: &str, pages: &Path) -> Result<()> {
    let name = page::name(command);
    page::write(command, above, date, &mut File::create(pages.join(format!("{name}.1")))?)?;
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        write_pages(subcommand, &[above, &[name]].concat(), date, pages)?;
    }
    Ok(())
}

/// A page of section 5 with date and version in its title, which the footer shows.
fn with_footer(page: &str, date: &str) -> String {
    page.replacen(" DATE SOURCE ", &format!(" {date} \"{}\" ", page::SOURCE), 1)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    use clap::Command;
    use clap::error::ErrorKind;
    use penstock::profile::{self, FIELDS, Profile, Shape};
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

    /// All pages by name, as groff would read them but without fonts and escapes.
    fn pages() -> Vec<(String, String)> {
        let directory = tempfile::tempdir().unwrap();
        super::write_all(directory.path(), "2026-01-31").unwrap();
        let pages = std::fs::read_dir(directory.path().join("man")).unwrap().map(|page| {
            let page = page.unwrap();
            let mut text = std::fs::read_to_string(page.path()).unwrap();
            text = text.lines().filter(|line| !line.contains(".ds Aq")).map(|line| format!("{line}\n")).collect();
            for (escaped, plain) in [("\\-", "-"), ("\\fB", ""), ("\\fI", ""), ("\\fR", "")] {
                text = text.replace(escaped, plain);
            }
            (page.file_name().into_string().unwrap(), text)
        });
        pages.collect()
    }

    /// The lines of a section.
    fn section<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
        let (_, section) = text.split_once(&format!("\n.SH {name}\n")).unwrap_or_else(|| panic!("no {name} in {text}"));
        section.lines().take_while(|line| !line.starts_with(".SH")).collect()
    }

    #[test]
    fn every_page_ends_with_exit_codes_others_date_and_version() {
        let pages = pages();
        assert!(pages.len() > 60, "only {} pages", pages.len());
        for (page, text) in &pages {
            let title = text.lines().find(|line| line.starts_with(".TH ")).unwrap();
            let footer = format!(" 2026-01-31 \"Penstock {}\" ", env!("CARGO_PKG_VERSION"));
            assert!(title.contains(&footer), "{page}: {title}");
            let last = text.lines().rfind(|line| line.starts_with(".SH")).unwrap();
            assert_eq!(last, ".SH \"SEE ALSO\"", "{page}");
            if page.ends_with(".1") {
                assert!(section(text, "\"EXIT STATUS\"").contains(&"2"), "{page}");
            }
        }
    }

    #[test]
    fn pages_lead_to_pages_and_chapters() {
        let pages = pages();
        let foreign = ["wg(8)", "wg-quick(8)"];
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs");
        for (page, text) in &pages {
            let subcommands = if text.contains(".SH SUBCOMMANDS") { section(text, "SUBCOMMANDS") } else { Vec::new() };
            let subcommands = subcommands.into_iter().filter(|line| line.ends_with("(1)"));
            for line in section(text, "\"SEE ALSO\"").into_iter().chain(subcommands) {
                // ".BR penstock (1)," in the pages by hand.
                let name =
                    line.trim_start_matches(".BR ").trim_start_matches(".I ").trim_end_matches(',').replace(' ', "");
                let found = match name.strip_prefix("/usr/share/doc/").and_then(|path| path.split_once('/')) {
                    Some((_, chapter)) => docs.join(chapter).exists(),
                    None => {
                        let file = name.replace('(', ".").replace(')', "");
                        foreign.contains(&name.as_str()) || pages.iter().any(|(page, _)| *page == file)
                    }
                };
                assert!(found, "{page} leads to {name}");
            }
        }
    }

    /// What is wrong with a command line, apart from the values, which only have names.
    fn mistake(words: &[&str]) -> Option<String> {
        let commands = super::commands();
        let program = commands.into_iter().find(|command| command.get_name() == words[0]).expect("a program");
        let error = program.try_get_matches_from(words).err()?;
        let text = error.to_string();
        let of_a_value = match error.kind() {
            ErrorKind::ValueValidation => true,
            ErrorKind::InvalidValue => !text.contains("a value is required") && !text.contains("none was supplied"),
            _ => false,
        };
        (!of_a_value).then(|| text.lines().next().unwrap_or_default().to_owned())
    }

    /// The end of the bracket that a text begins with.
    fn end(text: &str) -> usize {
        let mut depth = 0;
        let end = text.find(|c| {
            depth += i32::from(matches!(c, '[' | '{' | '<')) - i32::from(matches!(c, ']' | '}' | '>'));
            depth == 0
        });
        end.unwrap_or_else(|| panic!("{text} has an open bracket"))
    }

    /// The command lines that a synopsis stands for: the shortest, or with alternatives in braces each of them; and each
    /// of these with each option.
    fn lines(synopsis: &str) -> (Vec<String>, Vec<String>) {
        let synopsis = synopsis.replace("...", "");
        let (mut shortest, mut options) = (vec![String::new()], Vec::new());
        let mut rest = synopsis.as_str();
        while let Some(first) = rest.chars().next() {
            let length = if matches!(first, '[' | '{') { end(rest) + 1 } else { first.len_utf8() };
            let (part, after) = rest.split_at(length);
            rest = after;
            if first == '[' {
                // "[--lifetime[=SECONDS]]" and "[-f|--foreground]".
                options.extend(part.replace(['[', ']'], "").split('|').map(str::to_owned));
                continue;
            }
            let alternatives: Vec<&str> = match first {
                '{' => part.trim_matches(['{', '}']).split('|').map(str::trim).collect(),
                _ => vec![part],
            };
            let with =
                |line: &String| -> Vec<String> { alternatives.iter().map(|one| format!("{line}{one}")).collect() };
            shortest = shortest.iter().flat_map(with).collect();
        }
        let longer = shortest.iter().flat_map(|line| options.iter().map(move |option| format!("{line} {option}")));
        let longer = longer.collect();
        (shortest, longer)
    }

    #[test]
    fn a_synopsis_stands_for_these_lines() {
        let (shortest, longer) = lines("a [-f|--force] [--to[=X]] --at Y {C... | --all}");
        let tidy = |lines: Vec<String>| -> Vec<String> {
            lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        assert_eq!(tidy(shortest), ["a --at Y C", "a --at Y --all"]);
        let of_c = ["a --at Y C -f", "a --at Y C --force", "a --at Y C --to=X"];
        let of_all = ["a --at Y --all -f", "a --at Y --all --force", "a --at Y --all --to=X"];
        assert_eq!(tidy(longer), [of_c, of_all].concat());
    }

    /// Checks that each line can be typed with values in place of their names. Returns their number.
    fn can_be_typed(synopsis: &str) -> usize {
        let (shortest, longer) = lines(synopsis);
        for line in &shortest {
            let mistake = mistake(&line.split_whitespace().collect::<Vec<_>>());
            assert_eq!(mistake, None, "{line}, of {synopsis}");
        }
        for line in &longer {
            let mistake = mistake(&line.split_whitespace().collect::<Vec<_>>());
            // An option may exclude or need another.
            let related = ["cannot be used with", "required arguments were not provided"];
            let mistake = mistake.filter(|mistake| !related.iter().any(|words| mistake.contains(words)));
            assert_eq!(mistake, None, "{line}, of {synopsis}");
        }
        shortest.len() + longer.len()
    }

    #[test]
    fn every_synopsis_can_be_typed() {
        let mut checked = 0;
        for (page, text) in pages().iter().filter(|(page, _)| page.ends_with(".1")) {
            let synopses = section(text, "SYNOPSIS");
            let lines = if ["penstock-wireguard.1", "penstock-bench-wire.1"].contains(&page.as_str()) { 3 } else { 1 };
            assert_eq!(synopses.len(), lines, "{page}: {synopses:?}");
            for synopsis in synopses.iter().filter(|line| **line != ".br" && !line.ends_with(" COMMAND")) {
                checked += can_be_typed(&synopsis.replace("penstock-wireguard", "penstock wireguard"));
            }
        }
        assert!(checked > 200, "only {checked} lines");
    }

    /// A line of what `--help` shows, in the form of a synopsis.
    fn usage(line: &str) -> String {
        let line = line.replace("Usage: ", "").replace(" [OPTIONS]", "");
        let (mut synopsis, mut rest) = (String::new(), line.as_str());
        while let Some(start) = rest.find('<') {
            let (before, part) = rest.split_at(start);
            let (part, after) = part.split_at(end(part) + 1);
            let inside = part.replace(['<', '>'], "");
            synopsis += before;
            synopsis += &if inside.contains('|') { format!("{{{inside}}}") } else { inside };
            rest = after;
        }
        synopsis + rest
    }

    #[test]
    fn every_usage_can_be_typed() {
        fn check(command: &mut Command) -> usize {
            if command.has_subcommands() {
                return command.get_subcommands_mut().map(check).sum();
            }
            command.render_usage().to_string().lines().map(|line| can_be_typed(&usage(line))).sum()
        }
        let checked: usize = super::commands()
            .into_iter()
            .map(|command| {
                let mut command = super::without_help(command);
                command.build();
                check(&mut command)
            })
            .sum();
        assert!(checked > 50, "only {checked} lines");
    }

    #[test]
    fn the_page_of_the_profile_has_every_field() {
        let page = include_str!("../../penstock.profile.5");
        has_all(page, FIELDS.iter().map(|field| field.path.join(".")));
        let of = |kind: &str| {
            let (_, rest) = page.split_once(&format!("\n.SS Fields of a {kind}\n")).unwrap();
            rest.split("\n.S").next().unwrap()
        };
        has_all(of("peer"), fields::<profile::Document>(r#"{ "Peers": [{ "": 0 }] }"#));
        has_all(of("rule"), fields::<profile::Document>(r#"{ "Firewall": { "Rules": [{ "": 0 }] } }"#));
        // Each field has a variable, but those that stand for lists of objects have one for all of them.
        for variable in FIELDS.iter().filter(|field| field.shape == Shape::Json).map(|field| field.variable()) {
            assert!(page.contains(&variable), "{variable} is missing");
        }
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
