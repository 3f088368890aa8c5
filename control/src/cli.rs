//! The command line: one clear sentence on standard error and exit code 1 for whatever fails.

mod bugreport;
mod config;
mod doctor;
mod enrol;
mod firewall;
mod guard;
mod import;
mod keys;
mod netcheck;
mod run;
mod service;
mod table;
mod top;
mod wireguard;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Arg, ArgGroup, CommandFactory, FromArgMatches, Parser, Subcommand, value_parser};
use ipnet::IpNet;
use penstock_connect::CoordinatorUrl;

use self::netcheck::StunServer;
use crate::control_socket::{self, Answer, AskError, Lock};
use crate::firewall::rules::Format;
use crate::gateway::Absent;
use crate::ground::{Interest, Linux, Network};
use crate::memory;
use crate::netcheck::Silences;
use crate::profile::{DEFAULT_PATH, EditError, Environment, Name, Prefix, ProfileError, check_assignment, read_name};

/// Where every command's help lists the options that all commands have.
const GLOBAL: &str = "Global options";

/// A site-to-site WireGuard gateway with an AF_XDP data plane.
#[derive(Debug, Parser)]
#[command(name = "penstock", version, max_term_width = 100)]
#[command(after_help = "Every field of the profile can be overridden by an environment variable: \
    Wan.Mode by PENSTOCK_WAN_MODE. Sockets, locks and logs are in /run/penstock, or in \
    the directory named by PENSTOCK_RUNTIME_DIR.")]
struct Cli {
    /// The gateway's profile
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE", env = "PENSTOCK_PROFILE",
          default_value = DEFAULT_PATH)]
    profile: PathBuf,
    /// What to log, such as "debug" or "penstock::netlink=trace,info"; RUST_LOG is the default
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILTER", value_parser = log_filter)]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway in the foreground until SIGTERM or SIGINT
    ///
    /// Exits with 78 if the profile is not valid, so that systemd does not try again.
    Run {
        /// Leave the terminal's session, as `start` wants it
        #[arg(long, hide = true)]
        detached: bool,
    },
    /// Start the gateway in the background and wait until it is up
    ///
    /// A profile in /etc/penstock/profiles is started by systemd, if systemd is running and has the unit
    /// penstock@.service, and no PENSTOCK_ variable overrides the profile. Otherwise the gateway becomes
    /// a process of its own and logs to NAME.log beside its socket.
    Start,
    /// Stop the gateway and wait until it is gone
    ///
    /// Succeeds too if it is not running. The remote prefixes stay blocked, so that nothing for them leaves in the
    /// clear, until `penstock release` or the next start.
    Stop {
        /// Lift the guard as well: packets to the other sites then leave as the routing table says
        #[arg(long)]
        release: bool,
    },
    /// Have the running gateway read its profile again
    ///
    /// Only what differs is changed, and all other peers keep their sessions. An invalid profile changes nothing.
    /// Fails if part of the profile cannot be put in force, and names that part. SIGHUP does the same.
    Reload,
    /// Write what `wg set` changed on the running gateway into its profile
    ///
    /// This covers peers, their keys, endpoints and allowed IPs, the listen port, the firewall mark and the private
    /// key. The rest of the file stays as it was written.
    Save,
    /// Lift the guard: let packets to these remote prefixes leave as the routing table says
    ///
    /// A remote prefix is blocked wherever it does not lead into the tunnel, from before the first packet until it
    /// is released here or its peer is removed from the profile. While the gateway runs, prefixes that lead to a peer
    /// stay guarded.
    #[command(group = ArgGroup::new("what").required(true).args(["prefixes", "all"]))]
    Release {
        /// The prefixes
        #[arg(value_name = "PREFIX", value_parser = prefix)]
        prefixes: Vec<IpNet>,
        /// All prefixes; while the gateway runs, those that lead to no peer
        #[arg(long)]
        all: bool,
    },
    /// Block the remote prefixes of a gateway that is not running yet, as at boot before the network comes up
    Guard,
    /// Show the gateway: its ports, peers, counters and problems
    ///
    /// Exits with 0 if all is well, with 1 if there are problems, with 3 if it is not running, with 4 if the profile
    /// cannot be read.
    Status {
        /// Print nothing, and fail only when nothing is forwarded, as keepalived's track_script needs
        #[arg(long, conflicts_with = "json")]
        check: bool,
        /// As JSON, whose fields are a contract: /usr/share/doc/penstock/commands.md
        #[arg(long)]
        json: bool,
    },
    /// Watch the gateway: traffic, peers and their paths, drops, load and problems, once a second
    ///
    /// The traffic of the last minutes and hours is shown at once, because the gateway remembers it. Quit with q, Esc
    /// or Ctrl-C.
    Top {
        /// The gateway's name, if not that of the profile
        #[arg(value_parser = |text: &str| Name::try_from(text.to_owned()))]
        name: Option<Name>,
    },
    /// Find out what the network lets this gateway do, and what to change on the firewall
    ///
    /// Asks STUN servers how the NAT maps and filters, asks the router whether it maps ports, and tells which peers
    /// can be reached directly. A running gateway with a coordinator is asked what it knows of the tunnel's own
    /// port, and how its peers are reached now.
    Netcheck {
        /// As JSON, whose fields are a contract: /usr/share/doc/penstock/nat.md
        #[arg(long)]
        json: bool,
        /// Ask this STUN server, by address or name, instead of those that the coordinator named last; a server
        /// with two addresses tells more. Only while the gateway is stopped
        #[arg(long, value_name = "ADDR")]
        stun: Vec<StunServer>,
        /// Try TCP to this coordinator instead of the profile's, through HTTPS_PROXY if it is set. Only
        /// while the gateway is stopped
        #[arg(long, value_name = "URL")]
        coordinator: Option<CoordinatorUrl>,
        /// Also measure whether the NAT keeps a mapping through silences of this many seconds. Takes as long as the
        /// shortest silence that is too long; without values at most five minutes
        #[arg(long, value_name = "SECONDS,…", num_args = 0..=1, require_equals = true,
              default_missing_value = Silences::DEFAULT)]
        lifetime: Option<Silences>,
    },
    /// Find out what on this machine stands in the gateway's way, and print the command that fixes it
    ///
    /// Looks at the kernel, interfaces, offloads, queues, routing rules, firewall, files and the clock, and changes
    /// nothing. Lists what could not be seen, for instance without root. Exits with 0 if nothing is wrong, with 1 if
    /// there are warnings, with 2 if there are errors.
    Doctor {
        /// The gateway's profile, if not that of --profile
        #[arg(value_name = "PROFILE")]
        of: Option<PathBuf>,
        /// As JSON, whose fields are a contract: /usr/share/doc/penstock/doctor.md
        #[arg(long)]
        json: bool,
    },
    /// Put everything that is needed to look for a fault into one archive, without any key
    ///
    /// It contains status, history, log, profile, map, routes, rules, packet filter, kernel settings, drivers and
    /// offloads. Nothing is changed or sent anywhere. /usr/share/doc/penstock/bugreport.md says what each file is.
    Bugreport(bugreport::Arguments),
    /// Print what a firewall has to let through for this gateway
    ///
    /// Which ports, in which direction, to whom, and why: as a table, or as rules to paste.
    Firewall {
        /// For which firewall
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
        /// As JSON, whose fields are a contract: /usr/share/doc/penstock/firewall.md
        #[arg(long, conflicts_with = "format")]
        json: bool,
    },
    /// Print a new private key
    Genkey,
    /// Read a private key from standard input and print its public key
    Pubkey,
    /// Enrol this site at a coordinator with an enrolment key, and write the coordinator into the profile
    ///
    /// The private key is created if its file does not exist, and never leaves this machine. Exits with 3 if the
    /// coordinator refuses, with 4 if it cannot be reached, with 5 if the approval does not come in time.
    Enrol(enrol::Arguments),
    /// Make a profile from a wg-quick file
    ///
    /// Keys go into files beside the profile; nothing is overwritten. What a profile cannot take over is listed, with
    /// what to do instead.
    Import(import::Import),
    /// Print a wg-quick file for a peer that runs plain WireGuard
    Export(import::Export),
    /// Make a WireGuard device without a profile, for wg-quick
    ///
    /// `WG_QUICK_USERSPACE_IMPLEMENTATION=penstock-wireguard wg-quick up NAME` makes the device in this way, and wg-quick
    /// does the rest: keys, peers, addresses, routes. It runs until the device is deleted, or until SIGTERM or SIGINT.
    Wireguard {
        /// Stay in the foreground
        #[arg(short, long)]
        foreground: bool,
        /// Leave the terminal's session, and stay in the process
        #[arg(long, hide = true)]
        detached: bool,
        /// The device's name
        #[arg(value_parser = |text: &str| Name::try_from(text.to_owned()))]
        name: Name,
    },
    /// Print the profile in force as JSON: with defaults and overrides, without secrets
    ListConfig,
    /// Change fields in the profile's file, provided that the result is a valid profile
    ///
    /// Keys are those of the profile: LocalPort=47100, Wan.Mode=udp, Lan.Subnets=10.1.0.0/24,10.2.0.0/24,
    /// Peers.berlin.Endpoint=192.0.2.2:47100. An empty value removes the field. A running gateway is
    /// reloaded.
    SetConfig {
        /// Fields and their new values
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = assignment)]
        assignments: Vec<String>,
    },
}

/// The arguments' parser, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    // Hidden where it means nothing, but accepted as everywhere.
    let hidden = || Arg::new("profile").long("profile").value_parser(value_parser!(PathBuf)).hide(true);
    let without = ["genkey", "pubkey", "wireguard"];
    without.iter().fold(Cli::command(), |command, name| command.mut_subcommand(name, |sub| sub.arg(hidden())))
}

/// Does what the arguments say.
#[must_use]
pub fn main() -> ExitCode {
    let matches = command().get_matches_from(arguments(std::env::args_os().collect()));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    for (variable, meant) in environment(&cli.profile).misspelt() {
        eprintln!("penstock: {variable} overrides no field of the profile; did you mean {meant}?");
    }
    // Before any key is read into memory.
    if let Err(error) = memory::keep_private() {
        eprintln!("penstock: keys cannot be kept out of core dumps: {error}");
        return ExitCode::FAILURE;
    }
    let profile = cli.profile.as_path();
    let outcome = match cli.command {
        Command::Run { detached } => run::run(profile, cli.log.as_deref(), detached),
        Command::Start => service::start(profile, cli.log.as_deref()),
        Command::Stop { release } => service::stop(profile, release),
        Command::Reload => config::reload(profile),
        Command::Save => config::save(profile),
        Command::Release { prefixes, all } => guard::release(profile, prefixes, all),
        Command::Guard => guard::guard(profile),
        Command::Status { json, check } => return table::status(profile, json, check),
        Command::Top { name } => top::top(profile, name),
        Command::Netcheck { json, stun, coordinator, lifetime } => {
            netcheck::netcheck(profile, json, &stun, coordinator, lifetime.as_ref())
        }
        Command::Doctor { of, json } => return doctor::doctor(of.as_deref().unwrap_or(profile), json),
        Command::Bugreport(arguments) => bugreport::bugreport(profile, arguments),
        Command::Firewall { format, json } => firewall::firewall(profile, format, json),
        Command::Genkey => keys::genkey(),
        Command::Pubkey => keys::pubkey(),
        Command::Enrol(arguments) => enrol::enrol(profile, cli.log.as_deref(), arguments),
        Command::Import(arguments) => import::import(profile, arguments),
        Command::Export(arguments) => import::export(profile, arguments),
        Command::Wireguard { name, foreground, detached } if foreground || detached => {
            wireguard::foreground(&name, cli.log.as_deref(), detached)
        }
        Command::Wireguard { name, .. } => wireguard::background(&name, cli.log.as_deref()),
        Command::ListConfig => config::list(profile),
        Command::SetConfig { assignments } => config::set(profile, &assignments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The reader of our output may have closed the pipe.
            let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
            if !error.downcast_ref().is_some_and(broken) {
                penstock_messages::print_fatal("penstock", format_args!("{error:#}"));
            }
            error.downcast_ref::<Failure>().map_or(ExitCode::FAILURE, |failure| failure.code.into())
        }
    }
}

/// The arguments, with the command that the program's own name stands for.
fn arguments(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let program = arguments.first().and_then(|program| Path::new(program).file_name());
    if program.is_some_and(|program| program == wireguard::PROGRAM) {
        // The usage begins with the first argument.
        arguments.splice(..1, ["penstock".into(), "wireguard".into()]);
    }
    arguments
}

/// Checks that a text is a log filter.
fn log_filter(text: &str) -> anyhow::Result<String> {
    penstock_messages::log_filter(text).map(|_| text.to_owned())
}

/// `KEY=VALUE`, with a key of the profile.
fn assignment(text: &str) -> Result<String, EditError> {
    check_assignment(text).map(|()| text.to_owned())
}

/// A prefix without host bits, or an address, as in the profile.
fn prefix(text: &str) -> Result<IpNet, String> {
    Prefix::try_from(text.to_owned()).map(|prefix| prefix.0)
}

/// A failure with an exit code of its own.
#[derive(Debug)]
struct Failure {
    code: u8,
    sentence: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Failure {}

/// Where the units take variables from (`EnvironmentFile=`).
const SERVICE_ENVIRONMENT: &str = "/etc/default/penstock";

/// The environment of the gateway that has this profile: this process's, and what the service is given if systemd would
/// run it.
fn environment(profile: &Path) -> Environment {
    let here = Environment::of_process();
    match service::instance(profile) {
        Some(_) => here.or_of_file(SERVICE_ENVIRONMENT.as_ref()),
        None => here,
    }
}

/// This machine's interfaces, addresses and routes.
fn network() -> anyhow::Result<Network> {
    let mut linux = Linux::open().context("cannot use netlink")?;
    Network::read(&mut linux, Interest::default()).context("the network cannot be read")
}

/// Directory and name of the gateway that a profile describes, without reading its keys.
struct Gateway {
    directory: PathBuf,
    name: Name,
}

impl Gateway {
    /// A running gateway is known by its profile's file too, so that it can still be reached when the file is not valid
    /// any more, or names another.
    fn of(profile: &Path) -> Result<Self, ProfileError> {
        let directory = control_socket::directory();
        let named = read_name(profile, &environment(profile));
        let is_sure = Environment::of_process().overrides_any()
            || named.as_ref().is_ok_and(|name| Lock::is_taken(&directory, name));
        let running = if is_sure { None } else { Lock::running_with(&directory, profile) };
        let name = running.map_or(named, Ok)?;
        Ok(Self { directory, name })
    }

    /// The same; if the profile cannot be read and no gateway runs, the one whose guard it once placed.
    fn known(profile: &Path) -> Result<Self, ProfileError> {
        Self::of(profile).or_else(|error| match Absent::with_guard(profile) {
            Some(absent) => Ok(Self { directory: control_socket::directory(), name: absent.name }),
            None => Err(error),
        })
    }

    /// Asks the running gateway for something to show. Failures are reported in one sentence.
    fn ask(&self, command: control_socket::Command) -> anyhow::Result<Answer> {
        let name = &self.name;
        match control_socket::ask(&self.directory, name, command) {
            Ok(Answer::Error(sentence)) => bail!("{name}: {sentence}"),
            Ok(Answer::Stopping) => bail!("{name} is stopping"),
            Ok(answer) => Ok(answer),
            Err(AskError::NotRunning) if self.is_running() => bail!("{name} is starting or stopping"),
            Err(AskError::NotRunning) => bail!("{name} is not running"),
            Err(error) => bail!("cannot talk to {name}: {error}"),
        }
    }

    fn is_running(&self) -> bool {
        Lock::is_taken(&self.directory, &self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed for these arguments, and the exit code.
    fn refusal(words: &[&str]) -> (String, i32) {
        let error = command().try_get_matches_from(words).expect_err("refused");
        (error.to_string(), error.exit_code())
    }

    #[test]
    fn the_arguments_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn wrong_arguments_exit_with_2_and_are_named() {
        for (words, says) in [
            (&["set-config", "foo"][..], "\"foo\" is not KEY=VALUE"),
            (&["set-config", "=1"], "\"=1\" is not KEY=VALUE"),
            (&["set-config", "Foo=1"], "there is no field Foo; `penstock list-config` shows"),
            (&["set-config", "ListenPort=1"], "there is no field ListenPort; did you mean LocalPort?"),
            (&["set-config", "Peers.b.Endpiont=1"], "there is no field Peers.b.Endpiont; did you mean Endpoint?"),
            (&["set-config", "LocalPort=many"], "\"many\" is not a whole number"),
            (&["netcheck", "--stun", "foo:bar"], "not a server such as"),
            (&["--log", "a=b=c", "run"], "\"a=b=c\" is not a log filter"),
            (&["release"], "<PREFIX|--all>"),
        ] {
            let (text, code) = refusal(&[&["penstock"], words].concat());
            assert!(code == 2 && text.contains(says), "{words:?}: {code}: {text}");
        }
    }

    #[test]
    fn the_program_of_wg_quick_shows_a_usage_that_works() {
        let called = |words: &[&str]| arguments(words.iter().map(OsString::from).collect());
        let usage = command().try_get_matches_from(called(&["/usr/bin/penstock-wireguard", "--help"])).unwrap_err();
        assert!(usage.to_string().contains("Usage: penstock wireguard [OPTIONS] <NAME>"), "{usage}");
        assert_eq!(called(&["/usr/bin/penstock-wireguard", "wg0"]), ["penstock", "wireguard", "wg0"]);
        assert_eq!(called(&["/usr/bin/penstock", "status"]), ["/usr/bin/penstock", "status"]);
    }

    #[test]
    fn help_lists_global_options_apart_and_where_they_mean_something() {
        for (name, has_profile) in [("status", true), ("run", true), ("genkey", false), ("wireguard", false)] {
            let (text, code) = refusal(&["penstock", name, "--help"]);
            let (own, global) = text.split_once("Global options:").expect("a heading");
            assert!(!own.contains("--log") && global.contains("--log"), "{text}");
            assert_eq!((code, text.contains("--profile")), (0, has_profile), "{text}");
        }
        let matches = command().try_get_matches_from(["penstock", "genkey", "--profile", "a"]);
        assert!(matches.is_ok_and(|matches| Cli::from_arg_matches(&matches).is_ok()), "accepted all the same");
    }
}
