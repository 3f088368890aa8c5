//! A hostile stranger and a hostile member against the program itself: an honest gateway gets in within [`IN_TIME`],
//! and the program's memory stays below [`MEMORY`].
//!
//! Each attack speaks the real protocol, from addresses of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use penstock_coordinator::admission::limits::{FAILURE_BURST, HANDSHAKES, MESSAGE_BURST, RECONNECT_BURST};
use penstock_proto::coordination::{CoordinatorMessage, Fingerprint, GatewayMessage, prove};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::client::{Connection, Failure, Gateway, HOST, challenge, encrypt, upgrade};
use crate::program::{Program, enrolment_key};
use crate::running;
use crate::scale::enrolled;

/// How long it may take until an honest gateway is connected during a flood.
const IN_TIME: Duration = Duration::from_secs(5);
/// The most memory that the program may take during a flood: 1,536 places of 50 kB, and what it takes without them.
const MEMORY: usize = 120 << 20;

/// A coordinator with honest sites that enrolled, and are gone again.
struct Target {
    program: Program,
    address: SocketAddr,
    pin: Fingerprint,
    sites: Vec<Gateway>,
    _directory: tempfile::TempDir,
}

impl Target {
    async fn start(sites: usize) -> Self {
        Self::start_among(sites, 0).await
    }

    /// With this many other members, which everybody is told of.
    async fn start_among(sites: usize, members: usize) -> Self {
        let directory = running::directory();
        let members: Vec<Gateway> = (0..members).map(|number| Gateway::new(&format!("member-{number}"), &[])).collect();
        if !members.is_empty() {
            enrolled(directory.path(), &members).await;
        }
        let program = Program::start(directory.path());
        let address = program.address();
        let key = enrolment_key(directory.path(), &["--uses", &sites.to_string()]);
        let pin = key.fingerprint().unwrap();
        let mut enrolled = Vec::new();
        for number in 0..sites {
            let site = Gateway::new(&format!("s{number}"), &[]).with_key(&key);
            connect("127.9.9.9", &site, address, pin).await.unwrap();
            enrolled.push(Gateway { enrolment: None, ..site });
        }
        Self { program, address, pin, sites: enrolled, _directory: directory }
    }

    /// A site connects from there as a gateway does, trying again a second after each failure. Returns how long it
    /// took.
    async fn connects(&self, source: &str, site: &Gateway) -> Duration {
        let start = Instant::now();
        while start.elapsed() < 4 * IN_TIME {
            let outcome = timeout(IN_TIME, connect(source, site, self.address, self.pin)).await;
            if matches!(outcome, Ok(Ok(_))) {
                return start.elapsed();
            }
            sleep(Duration::from_secs(1)).await;
        }
        start.elapsed()
    }
}

/// A TCP connection from that address; an error if it is not taken.
async fn tcp(source: &str, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0))?;
    // A client that does not read is to hold up the coordinator, not the kernel.
    socket.set_recv_buffer_size(16 << 10)?;
    socket.connect(address).await
}

async fn challenged(
    source: &str,
    address: SocketAddr,
    pin: Fingerprint,
) -> Result<(Connection, penstock_proto::coordination::Challenge), Failure> {
    let stream = tcp(source, address).await.map_err(|error| Failure::Before(error.to_string()))?;
    challenge(upgrade(encrypt(stream, pin, 0).await?, HOST).await?).await
}

async fn connect(source: &str, site: &Gateway, address: SocketAddr, pin: Fingerprint) -> Result<Connection, Failure> {
    let (mut connection, challenge) = challenged(source, address, pin).await?;
    let proof = prove(&site.private, &challenge, HOST).unwrap();
    connection.send(&GatewayMessage::Hello(site.hello(proof))).await;
    connection.next().await?;
    Ok(connection)
}

/// A hostile stranger: this many TCP connections from each of the addresses, silent, opened again when they end.
fn silent(address: SocketAddr, sources: impl Iterator<Item = String>, each: usize) -> (JoinSet<()>, Arc<AtomicUsize>) {
    let (mut tasks, open) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for source in sources {
        for _ in 0..each {
            let (source, open) = (source.clone(), open.clone());
            tasks.spawn(async move {
                loop {
                    if let Ok(mut stream) = tcp(&source, address).await {
                        open.fetch_add(1, Ordering::Relaxed);
                        let _ = stream.read(&mut [0]).await;
                        open.fetch_sub(1, Ordering::Relaxed);
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            });
        }
    }
    (tasks, open)
}

/// Waits until an attack is under way.
async fn until(is_under_way: impl Fn() -> bool) {
    let under_way = async {
        while !is_under_way() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(4 * IN_TIME, under_way).await.expect("the attack gets under way");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_no_gateway_out() {
    let target = Target::start(3).await;
    // 48 addresses of as many networks, with 32 connections each.
    let (_attack, open) = silent(target.address, (0..48).map(|net| format!("127.2.{net}.1")), 32);
    until(|| open.load(Ordering::Relaxed) >= 1024).await;
    for (number, site) in target.sites.iter().enumerate() {
        let took = target.connects(&format!("127.3.{number}.1"), site).await;
        assert!(took < IN_TIME, "{took:?}, with {} silent connections", open.load(Ordering::Relaxed));
    }
    let memory = target.program.resident();
    println!("{} silent connections: {} MB", open.load(Ordering::Relaxed), memory >> 20);
    assert!(memory < MEMORY, "{memory}");
}

/// A neighbour of a site, behind the same public address, who sends one wrong proof after the other: nearly as many
/// connections as the address may make, without waiting for an answer to any.
fn wrong_proofs(target: &Target, source: &'static str) -> (JoinSet<()>, Arc<AtomicUsize>) {
    let (victim, address, pin) = (target.sites[0].key, target.address, target.pin);
    let thief = Arc::new(Gateway { key: victim, ..Gateway::new("x", &[]) });
    let (mut task, answered) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    let count = answered.clone();
    task.spawn(async move {
        let mut ticks = interval(HANDSHAKES.interval * 5 / 4);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = JoinSet::new();
        loop {
            ticks.tick().await;
            while open.try_join_next().is_some() {}
            let (thief, count) = (thief.clone(), count.clone());
            open.spawn(async move {
                let outcome = connect(source, &thief, address, pin).await;
                count.fetch_add(usize::from(matches!(outcome, Err(Failure::Refused(_)))), Ordering::Relaxed);
            });
        }
    });
    (task, answered)
}

/// With 34 addresses that hold all places at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn who_shares_its_address_with_one_who_fails_gets_in() {
    let target = Target::start(2).await;
    let source = "127.4.0.1";
    let (_wrong, answered) = wrong_proofs(&target, source);
    // More than any client is allowed.
    until(|| answered.load(Ordering::Relaxed) >= 2 * FAILURE_BURST as usize).await;
    let took = target.connects(source, &target.sites[0]).await;
    assert!(took < IN_TIME, "{took:?}");
    let (_silent, open) = silent(target.address, (0..34).map(|net| format!("127.11.{net}.1")), 32);
    until(|| open.load(Ordering::Relaxed) >= 1024).await;
    for (source, site) in [(source, 0), ("127.4.1.1", 1), (source, 0)] {
        let took = target.connects(source, &target.sites[site]).await;
        assert!(took < IN_TIME, "{took:?} from {source}");
    }
    let (memory, answered) = (target.program.resident(), answered.load(Ordering::Relaxed));
    println!(
        "{} silent connections, {answered} wrong proofs answered: {} MB",
        open.load(Ordering::Relaxed),
        memory >> 20
    );
    assert!(memory < MEMORY, "{memory}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_reconnects_and_never_reads_costs_little() {
    // A map of this many is 600 kB.
    let target = Target::start_among(1, 4000).await;
    let before = target.program.resident();
    let (private, key) = (target.sites[0].private.clone(), target.sites[0].key);
    let site = Arc::new(Gateway { private, key, ..Gateway::new("s0", &[]) });
    let mut attack = JoinSet::new();
    for task in 0..30 {
        let (site, address, pin) = (site.clone(), target.address, target.pin);
        attack.spawn(async move {
            let mut kept = Vec::new();
            let mut taken = 0;
            for number in 0..20 {
                // From many addresses, so that nothing but the site itself is counted.
                let source = format!("127.5.{task}.{}", 1 + number);
                let Ok((mut connection, challenge)) = challenged(&source, address, pin).await else { continue };
                let proof = prove(&site.private, &challenge, HOST).unwrap();
                connection.send(&GatewayMessage::Hello(site.hello(proof))).await;
                taken += 1;
                // Kept open, and never read.
                kept.push(connection);
            }
            (kept, taken)
        });
    }
    let kept = attack.join_all().await;
    let memory = target.program.resident();
    let taken: usize = kept.iter().map(|(_, taken)| taken).sum();
    let mut admitted = 0;
    for mut connection in kept.into_iter().flat_map(|(kept, _)| kept) {
        admitted += u32::from(matches!(connection.next().await, Ok(CoordinatorMessage::Registration(_))));
    }
    println!("{taken} proofs in a row, {admitted} admitted: {} MB before, {} MB after", before >> 20, memory >> 20);
    assert!(memory < MEMORY, "{memory} after {before}");
    // And some more as time passes.
    assert!(admitted <= RECONNECT_BURST + 10, "{admitted} connections of one site");
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_of_one_source_are_bounded_and_so_is_the_log() {
    let target = Target::start(1).await;
    let (address, pin) = (target.address, target.pin);
    let begun = Arc::new(AtomicUsize::new(0));
    let end = Instant::now() + Duration::from_secs(3);
    let mut attack = JoinSet::new();
    for _ in 0..16 {
        let begun = begun.clone();
        attack.spawn(async move {
            while Instant::now() < end {
                // Complete with TLS, and then a message that is refused with a line in the log.
                let Ok((mut connection, _)) = challenged("127.6.0.1", address, pin).await else { continue };
                begun.fetch_add(1, Ordering::Relaxed);
                connection.say_text("{}").await;
            }
        });
    }
    let took = target.connects("127.7.0.1", &target.sites[0]).await;
    assert!(took < IN_TIME, "{took:?}");
    attack.join_all().await;
    let lines = target.program.lines().iter().filter(|line| line.contains("127.6.0.1")).count();
    println!("{} handshakes in 3 s, {lines} lines", begun.load(Ordering::Relaxed));
    // The burst, and 50 a second.
    assert!(begun.load(Ordering::Relaxed) <= 300);
    assert!(lines <= 5, "{lines} lines about one source");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_changes_its_subnets_all_the_time_is_slowed() {
    let target = Target::start(2).await;
    let (address, pin) = (target.address, target.pin);
    let (mut changed, start) = (0, Instant::now());
    let (private, key) = (target.sites[0].private.clone(), target.sites[0].key);
    for number in 0..60 {
        let subnets = vec![format!("10.{number}.0.0/16").parse().unwrap()];
        let site = Gateway { private: private.clone(), key, subnets, ..Gateway::new("s0", &[]) };
        changed += usize::from(connect(&format!("127.8.{number}.1"), &site, address, pin).await.is_ok());
    }
    println!("{changed} changes of 60 in {:?}", start.elapsed());
    assert!(changed <= 15, "{changed} changes");
    assert!(target.connects("127.8.0.2", &target.sites[1]).await < IN_TIME);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_announces_without_end_is_slowed() {
    const RATE: u32 = 259;
    const WHILE: Duration = Duration::from_secs(3);
    const FIRST_PORT: u32 = 1000;
    let target = Target::start(3).await;
    let (address, pin) = (target.address, target.pin);
    let (private, key) = (target.sites[0].private.clone(), target.sites[0].key);
    let mut watching = connect("127.10.0.1", &target.sites[1], address, pin).await.unwrap();
    let attack = tokio::spawn(async move {
        let member = Gateway { private, key, ..Gateway::new("s0", &[]) };
        let (end, mut announced) = (Instant::now() + WHILE, 0);
        while Instant::now() < end {
            if let Ok(mut connection) = connect("127.10.0.2", &member, address, pin).await {
                // It goes on, whether it is sent away or not, until it finds that the connection has ended.
                for port in FIRST_PORT.. {
                    if connection.next_now().await.is_err() || Instant::now() >= end {
                        break;
                    }
                    connection.say_address(&format!("198.51.100.1:{port}")).await;
                    announced += 1;
                    sleep(Duration::from_secs(1) / RATE).await;
                }
            } else {
                sleep(Duration::from_millis(50)).await;
            }
        }
        announced
    });
    let took = target.connects("127.10.0.3", &target.sites[2]).await;
    assert!(took < IN_TIME, "{took:?}");
    let announced = attack.await.unwrap();
    let mut highest = 0;
    while let Ok(said) = timeout(Duration::from_millis(600), watching.next()).await {
        said.unwrap();
        let ports = watching.addresses(&key).into_iter().filter_map(|address| address.rsplit(':').next()?.parse().ok());
        highest = ports.max().unwrap_or(0).max(highest);
    }
    println!("{announced} announcements, of which {} in a row were passed on", highest + 1 - FIRST_PORT);
    assert!(announced > MESSAGE_BURST, "{announced} is no flood");
    assert!((FIRST_PORT..FIRST_PORT + MESSAGE_BURST + 3).contains(&highest), "{highest}");
    assert!(target.program.resident() < MEMORY, "{}", target.program.resident());
}
