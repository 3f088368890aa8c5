//! How long the NAT keeps an idle mapping, measured from sockets of its own: the NAT treats all alike, so a gateway
//! that is running is not disturbed.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use penstock_connect::bind_udp;
use penstock_proto::stun::lifetime::{MAX_SILENCE, MAX_SILENCES, OVERHEAD};
use penstock_proto::stun::message::MAX_LENGTH;
use penstock_proto::stun::{Bracket, Lifetime, LifetimeError};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::gather::{ServerRoute, ServerRoutes};
use super::{Family, GatherError, NatClass, Report};

/// How long an idle mapping lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MappingLifetime {
    /// Seconds of the longest silence that it survived, 0 for none; null if there is a problem.
    pub from: Option<u64>,
    /// Seconds of the shortest silence that it did not survive; null if there was none, or if there is a problem.
    pub to: Option<u64>,
    /// Why it was not measured.
    pub problem: Option<LifetimeProblem>,
}

/// Why there is no lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LifetimeProblem {
    /// Nothing is translated or filtered, so there is no mapping.
    NoMapping,
    /// UDP does not pass.
    UdpBlocked,
    /// No STUN server answers to another port, or the NAT has several addresses.
    Unsupported,
    /// Answers that had come before failed to come.
    Unsteady,
    /// No STUN server is known, or none can be reached.
    NoServer,
}

impl From<Result<Bracket, LifetimeError>> for MappingLifetime {
    fn from(outcome: Result<Bracket, LifetimeError>) -> Self {
        match outcome {
            Ok(Bracket { from, to }) => {
                Self { from: Some(from.as_secs()), to: to.map(|to| to.as_secs()), problem: None }
            }
            Err(LifetimeError::Blocked) => LifetimeProblem::UdpBlocked.into(),
            Err(LifetimeError::Unsupported) => LifetimeProblem::Unsupported.into(),
            Err(LifetimeError::Unsteady) => LifetimeProblem::Unsteady.into(),
        }
    }
}

impl From<LifetimeProblem> for MappingLifetime {
    fn from(problem: LifetimeProblem) -> Self {
        Self { from: None, to: None, problem: Some(problem) }
    }
}

/// The silences to try, in seconds: `15,30,60`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silences(Vec<NonZeroU16>);

impl Silences {
    /// RFC 4787, section 4.3 (REQ-5) allows no less than 120 s and recommends 300 s; NATs give as little as 30 s.
    pub const DEFAULT: &str = "15,30,60,120,300";

    fn durations(&self) -> Vec<Duration> {
        self.0.iter().map(|seconds| Duration::from_secs(seconds.get().into())).collect()
    }

    fn longest(&self) -> Duration {
        self.durations().into_iter().max().unwrap_or_default()
    }
}

/// The text is not one to [`MAX_SILENCES`] numbers of 1 to [`MAX_SILENCE`] seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not 1 to {} numbers of seconds from 1 to {}, such as {}",
    MAX_SILENCES,
    MAX_SILENCE.as_secs(),
    Silences::DEFAULT
)]
pub struct SilencesError;

impl FromStr for Silences {
    type Err = SilencesError;

    fn from_str(text: &str) -> Result<Self, SilencesError> {
        let of_text =
            |text: &str| text.parse().ok().filter(|&at: &NonZeroU16| u64::from(at.get()) <= MAX_SILENCE.as_secs());
        let silences: Option<Vec<NonZeroU16>> = text.split(',').map(of_text).take(MAX_SILENCES + 1).collect();
        silences.filter(|silences| silences.len() <= MAX_SILENCES).map(Self).ok_or(SilencesError)
    }
}

/// What is reported while the measurement runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It takes up to this long.
    Begun(Duration),
    /// A mapping was still there after this silence.
    Survived(Duration),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun(longest) => {
                write!(f, "measuring how long the NAT keeps a silent mapping takes up to {} s", longest.as_secs())
            }
            Self::Survived(silence) => write!(f, "a mapping is still there after {} s", silence.as_secs()),
        }
    }
}

/// Measures where the report says that there is something to measure, and adds the result to it. `mark` is that of the
/// sockets.
///
/// # Errors
/// The kernel reports nothing about routes.
pub async fn add_lifetimes(
    report: &mut Report,
    servers: &[SocketAddr],
    silences: &Silences,
    mark: u32,
    progress: impl Fn(&str, Progress),
) -> Result<(), GatherError> {
    let routes = ServerRoutes::of(servers)?;
    let of = async |family: Option<Family>, route: &ServerRoute, title: &str| {
        let family = family?;
        Some(match family.nat_type {
            NatClass::None => LifetimeProblem::NoMapping.into(),
            NatClass::UdpBlocked => LifetimeProblem::UdpBlocked.into(),
            _ => measure(route, silences, mark, |what| progress(title, what)).await,
        })
    };
    let lifetimes = tokio::join!(of(report.ipv4, &routes.ipv4, "IPv4"), of(report.ipv6, &routes.ipv6, "IPv6"));
    for (family, lifetime) in [(&mut report.ipv4, lifetimes.0), (&mut report.ipv6, lifetimes.1)] {
        if let Some(family) = family {
            family.mapping_lifetime = lifetime;
        }
    }
    report.advise();
    Ok(())
}

async fn measure(route: &ServerRoute, silences: &Silences, mark: u32, progress: impl Fn(Progress)) -> MappingLifetime {
    let lifetime = Lifetime::new(Instant::now(), &route.servers, &silences.durations(), StdRng::from_os_rng());
    let sockets = bind(route.local, lifetime.sockets(), mark).filter(|_| !route.servers.is_empty());
    let Some(sockets) = sockets else { return LifetimeProblem::NoServer.into() };
    let limit = silences.longest() + OVERHEAD;
    progress(Progress::Begun(limit));
    run(lifetime, &sockets, Instant::now() + limit, progress).await
}

fn bind(local: Option<IpAddr>, count: usize, mark: u32) -> Option<Vec<UdpSocket>> {
    let address = SocketAddr::new(local?, 0);
    (0..count).map(|_| bind_udp(address, mark).ok()).collect()
}

async fn run(
    mut lifetime: Lifetime,
    sockets: &[UdpSocket],
    end: Instant,
    progress: impl Fn(Progress),
) -> MappingLifetime {
    let (mut datagram, mut told) = ([0; MAX_LENGTH], None);
    loop {
        while let Some((socket, query)) = lifetime.poll_transmit(Instant::now()) {
            // What the kernel refuses counts as lost.
            let _ = sockets[socket].send_to(&query.bytes, query.to).await;
        }
        if let Some(outcome) = lifetime.poll_outcome() {
            return outcome.into();
        }
        if let Some(silence) = lifetime.survived().filter(|survived| told.replace(*survived) != Some(*survived)) {
            progress(Progress::Survived(silence));
        }
        let Some(at) = lifetime.poll_timeout().filter(|_| Instant::now() < end) else {
            return LifetimeProblem::Unsteady.into();
        };
        let received = std::future::poll_fn(|context| poll_any(sockets, context, &mut datagram));
        tokio::select! {
            (socket, length) = received => {
                if let Ok(length) = length {
                    lifetime.handle_datagram(Instant::now(), socket, &datagram[..length]);
                }
            }
            () = tokio::time::sleep_until(at.min(end).into()) => {}
        }
    }
}

/// The first socket that has something, which may be an error, mostly about an earlier datagram.
fn poll_any(sockets: &[UdpSocket], context: &mut Context<'_>, datagram: &mut [u8]) -> Poll<(usize, io::Result<usize>)> {
    for (number, socket) in sockets.iter().enumerate() {
        let mut buffer = ReadBuf::new(datagram);
        if let Poll::Ready(received) = socket.poll_recv_from(context, &mut buffer) {
            return Poll::Ready((number, received.map(|_| buffer.filled().len())));
        }
    }
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silences_are_a_bounded_list_of_seconds() {
        let read = |text: &str| text.parse::<Silences>();
        let defaults: Vec<u64> = read(Silences::DEFAULT).unwrap().durations().iter().map(Duration::as_secs).collect();
        assert_eq!(defaults, [15, 30, 60, 120, 300]);
        assert_eq!(read("600").unwrap().longest(), MAX_SILENCE);
        assert!(read(&["1"; MAX_SILENCES].join(",")).is_ok());
        for wrong in ["", "0", "601", "1,,2", "1.5", "-1", " 1", &["1"; MAX_SILENCES + 1].join(",")] {
            assert_eq!(read(wrong), Err(SilencesError), "{wrong:?}");
        }
    }

    #[test]
    fn an_outcome_is_told_in_seconds_or_as_a_problem() {
        let seconds = Duration::from_secs;
        let told = MappingLifetime::from(Ok(Bracket { from: seconds(30), to: Some(seconds(60)) }));
        let json = serde_json::to_value(told).unwrap();
        assert_eq!(json, serde_json::json!({ "From": 30, "To": 60, "Problem": null }));
        let told = MappingLifetime::from(Err(LifetimeError::Unsupported));
        let json = serde_json::to_value(told).unwrap();
        assert_eq!(json, serde_json::json!({ "From": null, "To": null, "Problem": "Unsupported" }));
    }
}
