//! The documentation, as far as a program can check it: every link leads somewhere, every page is in the book, and the
//! programs accept every command in a code block.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// The folder of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").canonicalize().expect("the repository")
}

/// The pages of a folder, by their paths relative to the repository's.
fn pages_in(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).expect("a folder").flatten();
    let paths = entries.map(|entry| Path::new(folder).join(entry.file_name()));
    let mut pages: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    pages.sort();
    pages
}

fn pages() -> Vec<PathBuf> {
    ["", "bench", "docs"].into_iter().flat_map(pages_in).collect()
}

/// The checked parts of a page.
#[derive(Default)]
struct Page {
    /// The anchors of headings, as GitHub and mdBook name them.
    anchors: BTreeSet<String>,
    links: Vec<String>,
    /// Lines of code blocks.
    code: Vec<String>,
}

fn read(path: &Path) -> Page {
    let text = std::fs::read_to_string(root().join(path)).expect("a page");
    let mut page = Page::default();
    let (mut heading, mut code) = (None::<String>, None::<String>);
    for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => page.anchors.extend(heading.take().map(|text| anchor(&text))),
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => page.links.push(dest_url.into()),
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) if matches!(&*language, "" | "sh") => {
                code = Some(String::new());
            }
            Event::End(TagEnd::CodeBlock) => {
                let whole_lines = code.take().unwrap_or_default().replace("\\\n", " ");
                page.code.extend(whole_lines.lines().map(str::to_owned));
            }
            Event::Text(text) | Event::Code(text) => {
                heading.as_mut().into_iter().chain(code.as_mut()).for_each(|found| found.push_str(&text));
            }
            _ => {}
        }
    }
    page
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_leads_somewhere() {
    let pages: BTreeMap<PathBuf, Page> = pages().into_iter().map(|path| (path.clone(), read(&path))).collect();
    let mut dead = Vec::new();
    for (path, page) in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => root().join(path),
                _ => root().join(path.parent().expect("a folder")).join(file),
            };
            let Ok(target) = target.canonicalize() else {
                dead.push(format!("{}: {link}", path.display()));
                continue;
            };
            let known = target.strip_prefix(root()).ok().and_then(|target| pages.get(target));
            if !anchor.is_empty() && !known.is_some_and(|page| page.anchors.contains(anchor)) {
                dead.push(format!("{}: {link} (no such heading)", path.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}

#[test]
fn every_page_is_in_the_book() {
    let summary = read(Path::new("docs/SUMMARY.md"));
    let link = |page: &Path| match page.strip_prefix("docs") {
        Ok(page) => page.display().to_string(),
        Err(_) => format!("../{}", page.display()),
    };
    let missing: Vec<PathBuf> = pages()
        .into_iter()
        .filter(|page| page != Path::new("docs/SUMMARY.md") && !summary.links.contains(&link(page)))
        .collect();
    assert!(missing.is_empty(), "docs/SUMMARY.md lacks {missing:?}");
}

#[test]
fn every_drop_reason_is_explained() {
    let page = std::fs::read_to_string(root().join("docs/troubleshooting.md")).expect("a page");
    let missing: Vec<String> =
        penstock::gateway::drop_reasons().filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/troubleshooting.md lacks {missing:?}");
}

/// Where the pages that name tests do so: below these headings.
const NAMING_TESTS: [(&str, &str); 2] = [("docs/guard.md", "## Where each"), ("docs/scenarios.md", "# ")];
/// Where the events of `chaos` are listed.
const CHAOS: &str = "control/tests/netns/chaos/mod.rs";

#[test]
fn every_test_that_a_page_names_is_there() {
    let (tests, chaos) = (tests(), std::fs::read_to_string(root().join(CHAOS)).expect("a source"));
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for (page, heading) in NAMING_TESTS {
        let text = std::fs::read_to_string(root().join(page)).expect("a page");
        let (_, naming) = text.split_once(heading).expect("such a heading");
        let cells = naming.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.rsplit_once(" | "));
        for (of, cell) in cells {
            let pieces: Vec<&str> = cell.split('`').collect();
            let events = pieces.windows(2).filter(|pair| pair[0] == "chaos").filter_map(|pair| pair[1].split_once(')'));
            for event in events.flat_map(|(events, _)| events.trim_start_matches(" (").split(", ")) {
                checked += 1;
                wrong.extend(
                    (!chaos.contains(&format!("Self::{event},"))).then(|| format!("{page}: {of}: event {event}")),
                );
            }
            // A field or command in this column is not the name of a test.
            let is_name = |name: &&str| !name.contains(' ') && name.starts_with(|c: char| c.is_ascii_lowercase());
            for name in pieces.iter().skip(1).step_by(2).copied().filter(is_name) {
                checked += 1;
                let path = root().join(name);
                let found = if name.contains('/') { path.exists() } else { leads_to_a_test(name, &tests) };
                wrong.extend((!found).then(|| format!("{page}: {of}: {name}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 150, "only {checked} names were found");
}

/// Every test of the gateway, by the folders, files and functions that lead to it.
fn tests() -> Vec<Vec<String>> {
    let mut tests = Vec::new();
    let mut folders = Vec::from(["control", "dataplane"].map(|folder| root().join(folder)));
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source");
                let file = path.strip_prefix(root()).expect("a part of it").with_extension("");
                let parts = file.iter().map(|part| part.to_string_lossy().into_owned());
                let module: Vec<String> = parts.filter(|part| is_said(part)).collect();
                tests.extend(test_names(&text).into_iter().map(|name| [&module[..], &[name]].concat()));
            }
        }
    }
    tests
}

/// Names of tests leave out modules that only group them.
fn is_said(part: &str) -> bool {
    !matches!(part, "mod" | "main" | "tests")
}

/// The tests of a source file, including those whose names are given to a macro, one per line.
fn test_names(source: &str) -> Vec<String> {
    let (mut marked, mut in_macro, mut names) = (false, false, Vec::new());
    for line in source.lines().map(str::trim_start) {
        let word = |text: &str| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().map(str::to_owned);
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| marked) {
            names.extend(word(rest));
            marked = false;
        } else if line.ends_with("! {") {
            in_macro = true;
        } else if line == "}" {
            in_macro = false;
        } else if in_macro {
            names.extend(word(line));
        }
    }
    names
}

/// Whether a name like `module::te*t` is that of a test, or of a module that has one.
fn leads_to_a_test(name: &str, tests: &[Vec<String>]) -> bool {
    let parts: Vec<&str> = name.split("::").filter(|part| is_said(part)).collect();
    let same = |place: &[String]| parts.iter().zip(place).all(|(pattern, part)| fits(pattern, part));
    tests.iter().any(|test| test.windows(parts.len()).any(same))
}

/// Whether a text matches a pattern, in which `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, end)) => {
            let rest = text.strip_prefix(start);
            rest.is_some_and(|rest| rest.char_indices().any(|(at, _)| fits(end, &rest[at..])) || fits(end, ""))
        }
    }
}

#[test]
fn every_command_is_one() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for path in pages() {
        for line in read(&path).code {
            for words in commands(&line) {
                let command = match words[0].as_str() {
                    "penstock" => penstock::cli::command(),
                    "penstock-coordinator" => penstock_coordinator::cli::command(),
                    "penstock-bench" => penstock_bench::cli::command(),
                    _ => continue,
                };
                checked += 1;
                if line.contains("[--") {
                    let unknown = unknown_options(&command, &words);
                    wrong.extend(unknown.into_iter().map(|option| format!("{}: {line}: {option}", path.display())));
                } else if let Err(error) = command.try_get_matches_from(&words)
                    // A placeholder, such as HEX, need not be valid.
                    && error.use_stderr() && error.kind() != clap::error::ErrorKind::ValueValidation
                {
                    let said = error.to_string();
                    wrong.push(format!("{}: {line}: {}", path.display(), said.lines().next().unwrap_or_default()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 20, "only {checked} commands were found");
}

/// The options of a synopsis, "penstock status [--json]", that its command does not have.
fn unknown_options(command: &clap::Command, words: &[String]) -> Vec<String> {
    let mut found = command;
    for word in &words[1..] {
        found = found.find_subcommand(word).unwrap_or(found);
    }
    let options = words.iter().filter_map(|word| {
        let name = word.trim_start_matches('[').strip_prefix("--")?;
        Some(name.split(['[', ']', '=']).next().unwrap_or_default().to_owned())
    });
    options.filter(|name| !found.get_arguments().any(|argument| argument.get_long() == Some(name))).collect()
}

/// The commands of a shell line as far as they are simple: variable assignments, commands that run another program and
/// redirections are left out.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let line = line.trim_start_matches("$ ");
    let mut words = line.split_whitespace().map(|word| word.trim_matches(['(', ')', '\'', '"']));
    while let Some(word) = words.next() {
        match word {
            _ if word.starts_with('#') => break,
            "|" | "&&" | "||" | ";" | "&" => commands.push(Vec::new()),
            ">" | "<" | ">>" => drop(words.next()),
            "sudo" if commands.last().is_some_and(Vec::is_empty) => {}
            _ => {
                let (word, ends) = word.strip_suffix(';').map_or((word, false), |word| (word, true));
                commands.last_mut().expect("one").push(word.to_owned());
                if ends {
                    commands.push(Vec::new());
                }
            }
        }
    }
    commands.retain(|words| !words.is_empty());
    commands
}
