//! The command line: one clear sentence on standard error and exit code 1 for whatever fails.

mod acme;
mod authority;
mod duration;
mod list;
mod relay;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use ipnet::IpNet;
use penstock_proto::coordination::Name;
use penstock_proto::trust::LeaseLength;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::{Answer, Request, ask};
use crate::config::{Config, Document};
use crate::page::config::PageDocument;
use crate::policy::{LIMIT, Policy};
use crate::pulse;
use crate::run::Coordinator;
use crate::site::BindingMode;

/// Lets sites of a Penstock overlay find each other.
#[derive(Debug, Parser)]
#[command(name = "penstock-coordinator", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    paths: Paths,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Paths {
    /// The configuration, a JSON file
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The directory for database, certificate and control socket [default: /var/lib/penstock-coordinator]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    state: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the coordinator in the foreground until SIGTERM or SIGINT
    Run {
        /// A TCP address and port to listen on; may be repeated [default: [::]:443]
        #[arg(long, value_name = "ADDRESS", value_parser = socket_address)]
        listen: Vec<SocketAddr>,
        /// A host name or address by which gateways reach it; may be repeated
        #[arg(long, value_name = "HOST")]
        name: Vec<String>,
        /// A certificate chain in PEM; without one, the coordinator makes its own, which gateways pin
        #[arg(long, value_name = "FILE", requires = "certificate_key")]
        certificate: Option<PathBuf>,
        /// The certificate's private key in PEM
        #[arg(long, value_name = "FILE", requires = "certificate")]
        certificate_key: Option<PathBuf>,
        #[command(flatten)]
        acme: Box<acme::AcmeFlags>,
        #[command(flatten)]
        udp: UdpFlags,
        #[command(flatten)]
        metrics: MetricsFlag,
        /// Serve the page for administrators at this address and port; see `page-login`
        #[arg(long, value_name = "ADDRESS", value_parser = socket_address)]
        page: Option<SocketAddr>,
        /// How long gateways keep a site as their peer without hearing from this coordinator, such as 3d, or "never"
        /// for no limit [default: 7d]
        #[arg(long, value_name = "TIME", value_parser = duration::parse_lease)]
        lease: Option<LeaseLength>,
        /// What to log, such as "debug"; RUST_LOG is the default
        #[arg(long, value_name = "FILTER")]
        log: Option<String>,
    },
    /// Run a relay on a machine of its own until SIGTERM or SIGINT; the coordinator's configuration must list it
    ///
    /// penstock-relay.service runs it with the flags in /etc/default/penstock-relay.
    Relay {
        #[command(flatten)]
        flags: Box<relay::RelayFlags>,
        /// What to log, such as "debug"; RUST_LOG is the default
        #[arg(long, value_name = "FILTER")]
        log: Option<String>,
    },
    /// Show the state of the coordinator: sites, relay, STUN
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Manage enrolment keys, which let new sites in
    #[command(subcommand)]
    Key(KeyCommand),
    /// Manage the sites
    #[command(subcommand)]
    Site(SiteCommand),
    /// Manage the authority's key, which vouches for sites
    #[command(subcommand)]
    Authority(authority::AuthorityCommand),
    /// Replace the coordinator's own certificate, which gateways pin
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Show or set the policy: who may talk to whom
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Print a link that logs a browser in to the page; it works once and for five minutes
    PageLogin,
    /// Print who changed what and when, one line of JSON per change, oldest first
    Audit {
        /// How many of the latest changes
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        last: u32,
    },
}

/// The STUN server and the relay, which share their UDP ports.
#[derive(Debug, Args)]
struct UdpFlags {
    /// A UDP address and port for the STUN server and relay; a second one with the same IP version and port lets
    /// STUN determine a NAT's whole behaviour [default: [::]:3478]
    #[arg(long, value_name = "ADDRESS", value_parser = socket_address)]
    udp: Vec<SocketAddr>,
    /// How others reach these addresses, if not directly [default: --udp, or what the names resolve to]
    #[arg(long, value_name = "ADDRESS", value_parser = socket_address)]
    udp_public: Vec<SocketAddr>,
    /// The STUN server's other port [default: 3479]
    #[arg(long, value_name = "PORT")]
    stun_alternate_port: Option<u16>,
    /// Do not run a STUN server
    #[arg(long)]
    no_stun: bool,
    /// Do not run a relay
    #[arg(long)]
    no_relay: bool,
}

#[derive(Debug, Args)]
struct MetricsFlag {
    /// Serve metrics for Prometheus at this address and port, to whoever can reach it
    #[arg(long, value_name = "ADDRESS", value_parser = socket_address)]
    metrics: Option<SocketAddr>,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make an enrolment key and print it; it is not shown again
    Create {
        /// How many sites it lets in
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// How long it is valid, such as 30m, 24h or 7d
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse)]
        expires: Duration,
        /// A tag for these sites; may be repeated
        #[arg(long, value_name = "TAG")]
        tag: Vec<Name>,
        /// Have these sites wait for `site approve`
        #[arg(long)]
        approve_manually: bool,
        /// A prefix inside which these sites may offer any subnets when they enrol; may be repeated. Without it they
        /// may offer private prefixes that overlap nobody else's
        #[arg(long, value_name = "PREFIX", value_parser = prefix)]
        subnet: Vec<IpNet>,
        /// How long these sites are let in, such as 90d [default: without end]
        #[arg(long, value_name = "TIME", value_parser = duration::parse)]
        site_lifetime: Option<Duration>,
    },
    /// Show the enrolment keys, without their secrets
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop an enrolment key from letting in more sites; those that it let in stay
    Revoke {
        /// The key's ID, as `key list` shows it
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum SiteCommand {
    /// Show the sites
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a site in, or let it offer other subnets than before
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["site", "offline"]))]
    Approve {
        /// Its name or public key
        site: Option<String>,
        /// The prefixes that it may offer from now on, including public ones and default routes [default: what it may
        /// offer already, and those of its present offer that need no grant]
        #[arg(long, value_name = "PREFIX", value_delimiter = ',', requires = "site", value_parser = prefix)]
        subnets: Option<Vec<IpNet>>,
        /// With the authority's key in --state, sign what this file from `authority requests` asks for, for one site or
        /// for all, and print what to bring back
        #[arg(long, value_name = "FILE")]
        offline: Option<PathBuf>,
    },
    /// Cut a site off, at once and on its peers too
    Revoke {
        /// Its name or public key
        site: String,
    },
    /// Cut a site off and forget it; its name, address and subnets are free for others
    Remove {
        /// Its name or public key
        site: String,
    },
    /// Set when a site is revoked automatically
    #[command(group = clap::ArgGroup::new("end").required(true))]
    Limit {
        /// Its name or public key
        site: String,
        /// After this time from now, such as 90d
        #[arg(long = "for", value_name = "TIME", group = "end", value_parser = duration::parse)]
        lifetime: Option<Duration>,
        /// Never
        #[arg(long, group = "end")]
        never: bool,
    },
    /// Say whether a site has to prove its key within the TLS connection itself, from its next connection on
    ChannelBinding {
        /// Its name or public key
        site: String,
        mode: BindingMode,
    },
}

#[derive(Debug, Subcommand)]
enum CertificateCommand {
    /// Make the certificate that will replace the present one, and print its fingerprint, for gateways and relays to
    /// pin in addition
    Next,
    /// Replace the present certificate with the next one; the coordinator uses it after a restart
    Switch,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Print the policy in force
    Show,
    /// Put another policy in force
    Set {
        /// A JSON file, or - for standard input
        file: PathBuf,
        /// Only say what it would change
        #[arg(long)]
        dry_run: bool,
    },
}

/// The arguments' parser, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the arguments say.
#[must_use]
pub fn main() -> ExitCode {
    match execute(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The reader of our output may have closed the pipe.
            let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
            if !error.downcast_ref().is_some_and(broken) {
                penstock_messages::print_fatal("penstock-coordinator", format_args!("{error:#}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    let file = cli.paths.config.as_deref().map(Document::read).transpose()?.unwrap_or_default();
    let document = Document { state: cli.paths.state, ..Document::default() }.or(file);
    let state = document.state();
    match cli.command {
        Command::Run { listen, name, certificate, certificate_key, acme, udp, metrics, page, lease, log } => {
            let names = if name.is_empty() { None } else { Some(name) };
            let flags = Document {
                listen: said(listen),
                names,
                certificate_file: certificate,
                certificate_key_file: certificate_key,
                acme: acme.document(),
                metrics: metrics.metrics,
                page: page.map(|listen| PageDocument { listen: Some(listen), ..PageDocument::default() }),
                lease,
                ..udp.document()
            };
            let of_file = cli.paths.config.map(|path| match flags == Document::default() {
                true => path.display().to_string(),
                false => format!("{} and the flags", path.display()),
            });
            let config = Config::try_from(flags.or(document));
            let config = match of_file {
                Some(file) => config.context(file)?,
                None => config?,
            };
            run(config, log.as_deref())
        }
        Command::Relay { flags, log } => run_relay(*flags, state, log.as_deref()),
        Command::Status { json } => show(&state, &Request::Status, json),
        Command::Key(KeyCommand::Create { uses, expires: lifetime, tag, approve_manually, subnet, site_lifetime }) => {
            let tags = tag.into_iter().collect();
            let request = Request::CreateKey { uses, lifetime, tags, approve_manually, subnets: subnet, site_lifetime };
            show(&state, &request, false)
        }
        Command::Key(KeyCommand::List { json }) => show(&state, &Request::ListKeys, json),
        Command::Key(KeyCommand::Revoke { id }) => show(&state, &Request::RevokeKey(id), false),
        Command::Site(SiteCommand::List { json }) => show(&state, &Request::ListSites, json),
        Command::Site(SiteCommand::Approve { site, subnets, offline: Some(file) }) => {
            authority::sign(&state, &file, site.as_deref(), subnets)
        }
        Command::Site(SiteCommand::Approve { site, subnets, offline: None }) => {
            show(&state, &Request::Approve { site: site.unwrap_or_default(), subnets }, false)
        }
        Command::Authority(command) => authority::execute(&state, command),
        Command::Certificate(CertificateCommand::Next) => show(&state, &Request::NextCertificate, false),
        Command::Certificate(CertificateCommand::Switch) => show(&state, &Request::SwitchCertificate, false),
        Command::Site(SiteCommand::Revoke { site }) => show(&state, &Request::Revoke(site), false),
        Command::Site(SiteCommand::Remove { site }) => show(&state, &Request::Remove(site), false),
        Command::Site(SiteCommand::Limit { site, lifetime, never: _ }) => {
            show(&state, &Request::Limit { site, lifetime }, false)
        }
        Command::Site(SiteCommand::ChannelBinding { site, mode }) => {
            show(&state, &Request::ChannelBinding { site, mode }, false)
        }
        Command::PageLogin => show(&state, &Request::PageLogin, false),
        Command::Audit { last } => show(&state, &Request::Audit { last }, true),
        Command::Policy(PolicyCommand::Show) => show(&state, &Request::ShowPolicy, true),
        Command::Policy(PolicyCommand::Set { file, dry_run }) => {
            let name = if file == Path::new("-") { "standard input".into() } else { file.display().to_string() };
            let policy = read_policy(&file).context(name)?;
            let request = if dry_run { Request::PreviewPolicy(policy) } else { Request::SetPolicy(policy) };
            show(&state, &request, false)
        }
    }
}

/// An address with a port.
fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "not an address with a port, such as 192.0.2.1:443 or [::]:443".to_owned())
}

/// A prefix, or an address.
fn prefix(text: &str) -> Result<IpNet, String> {
    let prefix = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    prefix.map_err(|_| format!("{text:?} is not a prefix such as 10.0.0.0/8 or fd00:1::/64"))
}

fn said(list: Vec<SocketAddr>) -> Option<Vec<SocketAddr>> {
    if list.is_empty() { None } else { Some(list) }
}

impl UdpFlags {
    fn document(self) -> Document {
        Document {
            udp_listen: said(self.udp),
            udp_public: said(self.udp_public),
            stun_alternate_port: self.stun_alternate_port,
            stun: self.no_stun.then_some(false),
            relay: self.no_relay.then_some(false),
            ..Document::default()
        }
    }
}

fn run_relay(flags: relay::RelayFlags, state: PathBuf, log: Option<&str>) -> anyhow::Result<()> {
    penstock_messages::log_to_stderr(log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let process = flags.start(state).await?;
        pulse::tell(NotifyState::Ready);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            never = process.pulse().beat() => match never {},
        }
        tracing::info!("stopping");
        pulse::tell(NotifyState::Stopping);
        drop(process);
        anyhow::Ok(())
    })
}

fn run(config: Config, log: Option<&str>) -> anyhow::Result<()> {
    penstock_messages::log_to_stderr(log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut reload = signal(SignalKind::hangup())?;
        let mut coordinator = Coordinator::start(config).await?;
        for address in coordinator.addresses() {
            tracing::info!("listening at {address}");
        }
        for address in coordinator.udp_addresses() {
            tracing::info!("STUN or relay at {address} (UDP)");
        }
        if let Some(address) = coordinator.page_address() {
            tracing::info!("the page is at {address}");
        }
        if let Some(identity) = coordinator.identity() {
            tracing::info!("the certificate's SHA-256 fingerprint is {}", identity.fingerprint);
        }
        pulse::tell(NotifyState::Ready);
        let mut beats = Box::pin(coordinator.pulse().beat());
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                never = &mut beats => match never {},
                _ = reload.recv() => match coordinator.reload() {
                    Ok(true) => tracing::info!("the certificate was read again"),
                    Ok(false) => tracing::info!("there is no certificate file to read again"),
                    Err(error) => tracing::error!("the certificate in use stays: {error}"),
                },
            }
        }
        tracing::info!("stopping");
        drop(beats);
        pulse::tell(NotifyState::Stopping);
        coordinator.stop().await?;
        anyhow::Ok(())
    })
}

fn read_policy(file: &Path) -> anyhow::Result<Policy> {
    let mut text = String::new();
    let source: Box<dyn Read> =
        if file == Path::new("-") { Box::new(io::stdin()) } else { Box::new(std::fs::File::open(file)?) };
    source.take(LIMIT as u64 + 1).read_to_string(&mut text)?;
    // Editors on Windows put a byte order mark in front.
    Policy::parse(text.trim_start_matches('\u{feff}')).map_err(anyhow::Error::msg)
}

fn show(state: &Path, request: &Request, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match ask(state, request)? {
        Answer::Error(sentence) => anyhow::bail!(sentence),
        Answer::Key(text) | Answer::Done(text) => writeln!(out, "{text}")?,
        Answer::Keys(keys) if json => writeln!(out, "{}", serde_json::to_string_pretty(&keys)?)?,
        Answer::Keys(keys) => list::keys(&mut out, &keys)?,
        Answer::Sites(sites) if json => writeln!(out, "{}", serde_json::to_string_pretty(&sites)?)?,
        Answer::Sites(sites) => list::sites(&mut out, &sites)?,
        Answer::Status(status) if json => writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?,
        Answer::Status(status) => list::status(&mut out, &status)?,
        Answer::Audit(entries) => {
            for entry in entries {
                writeln!(out, "{}", serde_json::to_string(&entry)?)?;
            }
        }
        Answer::Policy(policy) => writeln!(out, "{}", policy.to_text())?,
        Answer::Preview(preview) => list::preview(&mut out, &preview)?,
        Answer::Authority(report) if json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        Answer::Authority(report) => list::authority(&mut out, &report)?,
        Answer::Requests(requests) => writeln!(out, "{}", serde_json::to_string_pretty(&requests)?)?,
        Answer::Publication(publication) => writeln!(out, "{}", serde_json::to_string_pretty(&publication)?)?,
        Answer::Document(document) => writeln!(out, "{document}")?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_arguments_are_sound() {
        super::command().debug_assert();
    }
}
