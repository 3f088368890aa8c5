//! A page of section 1: what clap_mangen makes of a command, a synopsis with the names of the options' values, and the
//! sections that every page ends with.

use std::io::{self, Write};

use clap::builder::ValueRange;
use clap::{Arg, ArgAction, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// What the manual's footers are made of, besides the date.
pub const SOURCE: &str = concat!("Penstock ", env!("CARGO_PKG_VERSION"));

/// The exit codes of every command, unless [`EXIT_STATUS`] has others.
const USUAL: &[(&str, &str)] = &[
    ("0", "Success."),
    ("1", "Failure. A line on standard error says why."),
    ("2", "The arguments are wrong. Standard error says how."),
];

/// The pages of commands with other exit codes.
const EXIT_STATUS: &[(&str, &[(&str, &str)])] = &[
    (
        "penstock-status",
        &[
            ("0", "The gateway runs without problems; with --check: it forwards packets."),
            ("1", "It has problems; with --check: it forwards nothing."),
            ("2", "The arguments are wrong."),
            ("3", "It is not running."),
            ("4", "The profile cannot be read, so it is not known which gateway is meant."),
        ],
    ),
    (
        "penstock-run",
        &[
            ("0", "It was told to stop."),
            ("1", "Failure. A line on standard error says why."),
            ("2", "The arguments are wrong."),
            ("78", "The profile is not valid."),
        ],
    ),
    (
        "penstock-doctor",
        &[
            ("0", "Nothing is wrong, as far as can be seen."),
            ("1", "There are warnings: the gateway works, though slower or less reliably than it could."),
            ("2", "There are errors: the gateway does not start, or does not forward. Or the arguments are wrong."),
        ],
    ),
    (
        "penstock-enrol",
        &[
            ("0", "Enrolled, and approved or waiting for approval."),
            ("1", "Something is wrong on this machine: the profile, its files, or the text of the key."),
            ("2", "The arguments are wrong."),
            ("3", "The coordinator refuses."),
            ("4", "The coordinator cannot be reached or trusted, or is unable to answer at the moment."),
            ("5", "The site was not approved within the time that --wait gives."),
        ],
    ),
    (
        "penstock-bench-report-diff",
        &[
            ("0", "Success."),
            ("1", "Failure. A line on standard error says why."),
            ("2", "The arguments are wrong. Standard error says how."),
            ("3", "With --fail-if-slower: something is slower."),
        ],
    ),
];

/// The chapter of the book about a command, or about a command and its subcommands. The longest name that fits counts.
const CHAPTERS: &[(&str, &str)] = &[
    ("penstock", "penstock/commands.md"),
    ("penstock-bench", "penstock/bench-wire.md"),
    ("penstock-bench-compare", "penstock/bench-compare.md"),
    ("penstock-bench-pipeline", "penstock/bench-pipeline.md"),
    ("penstock-bugreport", "penstock/bugreport.md"),
    ("penstock-coordinator", "penstock-coordinator/coordinator.md"),
    ("penstock-coordinator-authority", "penstock-coordinator/trust.md"),
    ("penstock-coordinator-page-login", "penstock-coordinator/page.md"),
    ("penstock-doctor", "penstock/doctor.md"),
    ("penstock-enrol", "penstock/coordinator.md"),
    ("penstock-export", "penstock/wireguard.md"),
    ("penstock-firewall", "penstock/firewall.md"),
    ("penstock-guard", "penstock/guard.md"),
    ("penstock-import", "penstock/wireguard.md"),
    ("penstock-netcheck", "penstock/nat.md"),
    ("penstock-release", "penstock/guard.md"),
    ("penstock-top", "penstock/monitoring.md"),
    ("penstock-wireguard", "penstock/wireguard.md"),
];

/// Other pages about a program.
const OTHER_PAGES: &[(&str, &[&str])] = &[
    ("penstock", &["penstock.profile(5)", "wg(8)", "wg-quick(8)"]),
    ("penstock-bench", &["penstock(1)"]),
    ("penstock-coordinator", &["penstock-coordinator.json(5)", "penstock(1)"]),
];

/// The sections FILES of programs.
const FILES: &[(&str, &str)] =
    &[("penstock", include_str!("penstock.roff")), ("penstock-coordinator", include_str!("penstock-coordinator.roff"))];

/// Commands that are programs too, under the name of their page.
const PROGRAMS: &[&str] = &["penstock-wireguard"];

/// Writes the page of a command, which must have been built. `above` are the names of the commands that it belongs to,
/// the program's first.
///
/// # Errors
/// The writer's.
pub fn write(command: &Command, above: &[&str], date: &str, out: &mut impl Write) -> io::Result<()> {
    let name = name(command);
    let man = Man::new(command.clone()).date(date).source(SOURCE).manual("User commands");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    let mut sections = Roff::new();
    sections.control("SH", ["SYNOPSIS"]);
    for (i, line) in synopsis(command).into_iter().enumerate() {
        if i > 0 {
            sections.control("br", []);
        }
        sections.text(line);
    }
    page.extend(sections.render().bytes());
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut sections = exit_status(name);
    if let Some(text) = command.get_after_help() {
        sections.control("SH", ["ENVIRONMENT"]);
        sections.text([roman(text.to_string())]);
    }
    page.extend(sections.render().bytes());
    if let Some((_, files)) = FILES.iter().find(|(page, _)| *page == name) {
        page.extend(files.bytes());
    }
    page.extend(see_also(name, above).render().bytes());
    // Each part begins with the same definitions.
    let page = String::from_utf8_lossy(&page);
    let definitions: Vec<&str> = page.lines().take_while(|line| !line.starts_with(".TH")).collect();
    let mut lines = definitions.iter().copied().chain(page.lines().filter(|line| !definitions.contains(line)));
    lines.try_for_each(|line| writeln!(out, "{line}"))
}

/// The name of a command's page.
pub fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

/// What can be typed, with the name of each value: "penstock import \[--name NAME\] FILE". One line, or a line for each
/// form in which the command can be called.
fn synopsis(command: &Command) -> Vec<Vec<Inline>> {
    let called = command.get_bin_name().unwrap_or(command.get_name());
    // Forms that the parser cannot tell.
    let usage = command.get_overridden_usage().map(|usage| usage.to_string()).unwrap_or_default();
    if !usage.is_empty() {
        let forms = usage.lines().map(|form| form.trim().trim_start_matches(called).replace(" [OPTIONS]", ""));
        let is_told = |argument: &Arg| argument.get_long().is_some_and(|long| usage.contains(&format!("--{long}")));
        let more: Vec<Inline> = words(command, is_told);
        return forms
            .map(|form| [vec![bold(called), roman(form.replace(['<', '>'], ""))], more.clone()].concat())
            .collect();
    }
    let programs = [called].into_iter().chain(PROGRAMS.iter().copied().filter(|program| *program == name(command)));
    programs.map(|program| [vec![bold(program)], words(command, |_| false)].concat()).collect()
}

/// A command's arguments, but for those that are told elsewhere.
fn words(command: &Command, is_told: impl Fn(&Arg) -> bool) -> Vec<Inline> {
    let groups: Vec<Vec<&Arg>> = command
        .get_groups()
        .filter(|group| group.is_required_set())
        .map(|group| {
            let members = group.get_args();
            members.filter_map(|id| command.get_arguments().find(|argument| argument.get_id() == id)).collect()
        })
        .collect();
    let alone = |argument: &&Arg| {
        let action = argument.get_action();
        !argument.is_hide_set()
            && !is_told(argument)
            && !matches!(action, ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version)
            && !groups.iter().flatten().any(|member| member.get_id() == argument.get_id())
    };
    let (positionals, mut options): (Vec<&Arg>, Vec<&Arg>) =
        command.get_arguments().filter(alone).partition(|argument| argument.is_positional());
    // What can be left out goes first, and a command's own options before those of the program.
    options.sort_by_key(|option| (option.is_required_set(), option.is_global_set(), option.get_display_order()));

    let mut line = Vec::new();
    let with_brackets = |argument: &Arg| match argument.is_required_set() {
        true => [vec![roman(" ")], written(argument)].concat(),
        false => [vec![roman(" [")], written(argument), vec![roman("]")]].concat(),
    };
    line.extend(options.into_iter().flat_map(with_brackets));
    for members in groups {
        for (i, member) in members.into_iter().enumerate() {
            line.push(roman(if i == 0 { " {" } else { " | " }));
            line.extend(written(member));
        }
        line.push(roman("}"));
    }
    line.extend(positionals.into_iter().flat_map(with_brackets));
    if command.has_subcommands() {
        line.extend([roman(" "), italic("COMMAND")]);
    }
    line
}

/// An argument with its value.
fn written(argument: &Arg) -> Vec<Inline> {
    let names = argument.get_value_names().unwrap_or_default();
    let value = italic(names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let mut text = Vec::new();
    text.extend(argument.get_short().map(|short| bold(format!("-{short}"))));
    text.extend((argument.get_short().is_some() && argument.get_long().is_some()).then(|| roman("|")));
    text.extend(argument.get_long().map(|long| bold(format!("--{long}"))));
    let range = argument.get_num_args().unwrap_or(ValueRange::EMPTY);
    if argument.is_positional() {
        text.push(value);
    } else if range.takes_values() {
        match (argument.is_require_equals_set(), range.min_values()) {
            (false, _) => text.extend([roman(" "), value]),
            (true, 0) => text.extend([roman("[="), value, roman("]")]),
            (true, _) => text.extend([roman("="), value]),
        }
    }
    // "PREFIX,…" says already that there may be several.
    let several = matches!(argument.get_action(), ArgAction::Append) && !names.iter().any(|name| name.ends_with('…'));
    text.extend(several.then(|| roman("...")));
    text
}

fn exit_status(name: &str) -> Roff {
    let mut section = Roff::new();
    section.control("SH", ["EXIT STATUS"]);
    let codes = EXIT_STATUS.iter().find(|(page, _)| *page == name).map_or(USUAL, |(_, codes)| codes);
    for (code, meaning) in codes {
        section.control("TP", []);
        section.text([bold(*code)]);
        section.text([roman(*meaning)]);
    }
    section
}

/// The pages of the commands above, other pages, and the chapter of the book.
fn see_also(name: &str, above: &[&str]) -> Roff {
    let program = above.first().copied().unwrap_or(name);
    let others = OTHER_PAGES.iter().find(|(page, _)| *page == program).map_or(&[][..], |(_, others)| others);
    let above = above.iter().rev().map(|page| format!("{page}(1)"));
    let mut section = Roff::new();
    section.control("SH", ["SEE ALSO"]);
    for page in above.chain(others.iter().map(ToString::to_string)) {
        let (page, number) = page.split_at(page.len() - "(1)".len());
        section.text([bold(page), roman(format!("{number},"))]);
    }
    let is_about = |page: &str| name.strip_prefix(page).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    let chapters = CHAPTERS.iter().filter(|(page, _)| is_about(page));
    if let Some((_, chapter)) = chapters.max_by_key(|(page, _)| page.len()) {
        section.text([italic(format!("/usr/share/doc/{chapter}"))]);
    }
    section
}
