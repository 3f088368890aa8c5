//! Many gateways at one coordinator: the program's memory, and how long it takes them all to come back.
//!
//! Some dozens in the usual run; 1,000 with `PENSTOCK_TEST_LONG=1`, in a full mesh. The figures are of
//! coordinator and gateways together on the same cores.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use penstock_proto::coordination::{Fingerprint, GatewayMessage, prove};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::client::{Connection, Failure, Gateway, HOST, challenge, encrypt, from, upgrade};
use crate::program::{Program, enrolment_key};
use crate::running;

/// How many gateways connect at the same moment.
const AT_ONCE: usize = 64;
/// Longer than it takes until one more gateway knows everything, on slow cores too.
const SETTLED: Duration = Duration::from_secs(120);

struct Fleet {
    members: Vec<Member>,
}

/// A gateway whose task reads all the time, as a real one does.
struct Member {
    /// The port of the addresses to announce. When this is dropped, the gateway disconnects.
    speak: mpsc::Sender<u16>,
    seen: watch::Receiver<Seen>,
    task: JoinHandle<Gateway>,
}

/// What a gateway knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    peers: usize,
    /// Peers with an address of the port.
    reachable: usize,
    port: u16,
    wholes: usize,
}

impl Member {
    async fn connect(number: usize, site: Gateway, address: SocketAddr, pin: Fingerprint, port: u16) -> Self {
        let mut connection = connect(number, &site, address, pin).await;
        let (speak, mut spoken) = mpsc::channel::<u16>(1);
        let (sender, seen) = watch::channel(look(&connection, port));
        let task = tokio::spawn(async move {
            let mut port = port;
            loop {
                tokio::select! {
                    said = connection.next() => match said {
                        Ok(_) | Err(Failure::Silence) => connection.texts.clear(),
                        Err(failure) => panic!("{number}: {failure:?}"),
                    },
                    spoken = spoken.recv() => match spoken {
                        Some(new) => {
                            port = new;
                            let host = number % 250 + 1;
                            connection.say_address(&format!("198.51.{}.{host}:{port}", number / 250)).await;
                        }
                        None => return Gateway { map: connection.map, ..site },
                    },
                }
                sender.send_replace(look(&connection, port));
            }
        });
        Self { speak, seen, task }
    }
}

fn look(connection: &Connection, port: u16) -> Seen {
    let peers = || connection.map.iter().flat_map(|map| map.peers.values());
    let candidates = peers().filter_map(|peer| peer.reachability.as_ref()).flat_map(|it| &it.candidates);
    let reachable = candidates.filter(|candidate| candidate.address.port() == port).count();
    Seen { peers: peers().count(), reachable, port, wholes: connection.maps }
}

/// A gateway with an address of its own, that tries again until it is let in.
async fn connect(number: usize, site: &Gateway, address: SocketAddr, pin: Fingerprint) -> Connection {
    let source = format!("127.1.{}.{}", number / 250, number % 250 + 1);
    for attempt in 0_u64.. {
        let outcome: Result<Connection, Failure> = async {
            let stream = from(&source, address).await;
            let socket = upgrade(encrypt(stream, pin, 0).await?, HOST).await?;
            let (mut connection, challenge) = challenge(socket).await?;
            let proof = prove(&site.private, &challenge, HOST).unwrap();
            connection.map = site.map.clone();
            connection.send(&GatewayMessage::Hello(site.hello(proof))).await;
            while connection.maps + connection.updates == 0 {
                match connection.next().await {
                    // It is busy with the others.
                    Ok(_) | Err(Failure::Silence) => {}
                    Err(failure) => return Err(failure),
                }
            }
            connection.texts.clear();
            Ok(connection)
        }
        .await;
        match outcome {
            Ok(connection) => return connection,
            Err(failure) if attempt == 20 => panic!("{failure:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50 * attempt)).await,
        }
    }
    unreachable!("it returns or panics");
}

impl Fleet {
    async fn connect(sites: Vec<Gateway>, address: SocketAddr, pin: Fingerprint, port: u16) -> Self {
        let members = stream::iter(sites.into_iter().enumerate())
            .map(|(number, site)| tokio::spawn(Member::connect(number, site, address, pin, port)))
            .buffered(AT_ONCE)
            .map(Result::unwrap)
            .collect()
            .await;
        Self { members }
    }

    /// Waits until each knows this many peers, and of this many an address with the port.
    async fn until(&mut self, peers: usize, reachable: usize, port: u16) {
        for member in &mut self.members {
            let there =
                member.seen.wait_for(|seen| seen.peers == peers && seen.reachable >= reachable && seen.port == port);
            if timeout(SETTLED, there).await.map(|outcome| outcome.is_ok()).is_ok_and(|there| there) {
                continue;
            }
            panic!("after {SETTLED:?} one knows {:?}", *member.seen.borrow());
        }
    }

    async fn say_addresses(&self, port: u16) {
        for member in &self.members {
            member.speak.send(port).await.unwrap();
        }
    }

    /// Disconnects all. They keep their maps, or nothing.
    async fn disconnect(self, keep_maps: bool) -> Vec<Gateway> {
        let mut sites = Vec::new();
        for Member { speak, task, .. } in self.members {
            drop(speak);
            let site = task.await.unwrap();
            sites.push(Gateway { map: site.map.filter(|_| keep_maps), ..site });
        }
        sites
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_gateways_come_back_at_once() {
    let long = std::env::var_os("PENSTOCK_TEST_LONG").is_some();
    let count = if long { 1000 } else { 40 };
    let directory = running::directory();
    let program = Program::start(directory.path());
    let address = program.address();
    program.keep_addresses(directory.path(), address);
    let key = enrolment_key(directory.path(), &["--uses", &count.to_string()]);
    let pin = key.fingerprint().unwrap();
    println!("{count} gateways; empty coordinator: {} MB", program.resident() >> 20);

    let sites = (0..count)
        .map(|number| {
            Gateway::new(&format!("s{number}"), &[&format!("10.{}.{}.0/24", number / 250, number % 250)]).with_key(&key)
        })
        .collect();
    let peers = count - 1;
    let measure = |what: &str, start: Instant, program: &Program| {
        println!("{what} after {:.1} s: {} MB", start.elapsed().as_secs_f64(), program.resident() >> 20);
    };
    let start = Instant::now();
    let mut fleet = Fleet::connect(sites, address, pin, 1).await;
    fleet.until(peers, 0, 1).await;
    measure("all enrolled and know all", start, &program);
    let start = Instant::now();
    fleet.say_addresses(1).await;
    fleet.until(peers, peers, 1).await;
    measure("all said where they are and know where all are", start, &program);

    for (what, keep_maps) in [("back with their maps", true), ("back without maps", false)] {
        let sites = fleet.disconnect(keep_maps).await;
        let start = Instant::now();
        fleet = Fleet::connect(sites, address, pin, 1).await;
        fleet.until(peers, peers, 1).await;
        measure(what, start, &program);
        assert!(fleet.members.iter().all(|member| member.seen.borrow().wholes == usize::from(!keep_maps)));
    }

    let sites = fleet.disconnect(true).await;
    drop(program);
    let program = Program::start(directory.path());
    let address = program.address();
    let start = Instant::now();
    let mut fleet = Fleet::connect(sites, address, pin, 1).await;
    measure("back after a crash of the coordinator", start, &program);
    assert!(fleet.members.iter().all(|member| member.seen.borrow().wholes == 0), "their maps were right");
    let start = Instant::now();
    fleet.say_addresses(2).await;
    fleet.until(peers, peers, 2).await;
    measure("all said where they are now and know where all are", start, &program);
}
