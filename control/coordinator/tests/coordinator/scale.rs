//! The largest overlay that is promised: 10,000 sites and 100,000 links, in the program itself.
//!
//! The usual run, with a tenth of that, changes the policy and looks how long that took and how long everybody had to
//! wait for it. With `PENSTOCK_TEST_LONG=1` it has the full size, and all sites come back at once as well, which is
//! only reported: gateways and coordinator share the machine.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use penstock_coordinator::store::Store;
use penstock_proto::coordination::{Fingerprint, GatewayMessage, prove};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::{ConnectOptions, Connection as _};
use tokio::net::TcpSocket;
use tokio::time::{sleep, timeout};

use crate::client::{Connection, Failure, Gateway, HOST, challenge, encrypt, upgrade};
use crate::program::{Program, enrolment_key, succeeds};
use crate::running;

/// How many sites, and links between them.
fn size() -> (usize, usize) {
    if std::env::var_os("PENSTOCK_TEST_LONG").is_some() { (10_000, 100_000) } else { (1_000, 10_000) }
}

/// A debug build, on cores that other tests want too, is that much slower.
const SLOWER: u32 = if cfg!(debug_assertions) { 20 } else { 1 };

/// Fills a database as if the sites had enrolled.
pub async fn enrolled(state: &Path, sites: &[Gateway]) {
    let path = state.join("coordinator.db");
    Store::open(&path).await.unwrap().close().await.unwrap();
    let mut database = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let mut transaction = database.begin().await.unwrap();
    for (number, site) in sites.iter().enumerate() {
        let insert = "INSERT INTO sites (public_key, name, virtual_address, subnets, in_force, granted, tags, state, \
            created) VALUES (?, ?, ?, ?, ?, ?, '[]', 'approved', 1700000000)";
        let subnets = serde_json::to_string(&site.subnets).unwrap();
        sqlx::query(insert)
            .bind(&site.key.as_bytes()[..])
            .bind(&site.name)
            .bind(0x6440_0001 + number as u32)
            .bind(&subnets)
            .bind(&subnets)
            .bind(&subnets)
            .execute(&mut *transaction)
            .await
            .unwrap();
    }
    transaction.commit().await.unwrap();
    database.close().await.unwrap();
}

fn sites() -> Vec<Gateway> {
    let subnet = |number: usize| format!("10.{}.{}.0/24", number / 250, number % 250);
    (0..size().0).map(|number| Gateway::new(&format!("s{number}"), &[&subnet(number)])).collect()
}

/// Any of the sites with any others.
fn policy(seed: u64) -> String {
    let (sites, links) = size();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut text = String::from("{\"Links\": [");
    for number in 0..links {
        let comma = if number == 0 { "" } else { "," };
        let [one, other] = [(); 2].map(|()| rng.random_range(0..sites));
        write!(text, "{comma}[\"s{one}\",\"s{other}\"]").unwrap();
    }
    text + "]}"
}

fn set_policy(state: &Path, text: &str) -> Duration {
    let file = state.join("policy.json");
    std::fs::write(&file, text).unwrap();
    let start = Instant::now();
    succeeds(state, &["policy", "set", file.to_str().unwrap()]);
    start.elapsed()
}

fn longest_hold(state: &Path) -> Duration {
    let status: serde_json::Value = serde_json::from_str(&succeeds(state, &["status", "--json"])).unwrap();
    Duration::from_micros(status["LongestHold"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_for_all_sites_keeps_nobody_waiting() {
    let (count, links) = size();
    let directory = running::directory();
    let (state, sites) = (directory.path(), sites());
    enrolled(state, &sites).await;
    let program = Program::start(state);
    let address = program.address();
    let pin = enrolment_key(state, &[]).fingerprint().unwrap();
    let mut watcher = connect(0, &sites[0], address, pin).await.unwrap();
    // From a full mesh, and from one large policy to another.
    for seed in [1, 2] {
        let took = set_policy(state, &policy(seed));
        let hold = longest_hold(state);
        println!("policy of {links} links for {count} sites: {took:?}, nobody waited longer than {hold:?}");
        assert!(took < Duration::from_secs(2) * SLOWER, "{took:?}");
        assert!(hold < Duration::from_millis(10) * SLOWER, "{hold:?}");
    }
    let few = |connection: &Connection| connection.map.as_ref().is_some_and(|map| map.peers.len() < 100);
    timeout(Duration::from_secs(10), watcher.until("it has few peers", few)).await.unwrap();
}

/// A gateway with an address of its own; done when its map is up to date.
async fn connect(number: usize, site: &Gateway, address: SocketAddr, pin: Fingerprint) -> Result<Connection, Failure> {
    let before = |error: std::io::Error| Failure::Before(error.to_string());
    let socket = TcpSocket::new_v4().map_err(before)?;
    socket.set_reuseaddr(true).map_err(before)?;
    // Four of each /24.
    let source = [127, 10 + (number / 1000) as u8, (number / 4 % 250) as u8, (number % 4) as u8 + 1];
    socket.bind((source, 0).into()).map_err(before)?;
    let stream = socket.connect(address).await.map_err(before)?;
    let (mut connection, challenge) = challenge(upgrade(encrypt(stream, pin, 0).await?, HOST).await?).await?;
    let proof = prove(&site.private, &challenge, HOST).unwrap();
    connection.map = site.map.clone();
    connection.send(&GatewayMessage::Hello(site.hello(proof))).await;
    while connection.maps + connection.updates == 0 {
        connection.next().await?;
    }
    (connection.texts, connection.documents) = (Vec::new(), Vec::new());
    Ok(connection)
}

/// All connect at the same moment, and try again a second after they were turned away, two after that, and so on.
async fn storm(sites: Vec<Gateway>, address: SocketAddr, pin: Fingerprint) -> (Vec<(Gateway, Connection)>, usize) {
    let turned_away = Arc::new(AtomicUsize::new(0));
    let count = sites.len();
    let tasks = sites.into_iter().enumerate().map(|(number, site)| {
        let turned_away = turned_away.clone();
        tokio::spawn(async move {
            for attempt in 1_u64.. {
                match connect(number, &site, address, pin).await {
                    Ok(connection) => return (site, connection),
                    Err(failure) if attempt == 100 => panic!("{failure:?}"),
                    Err(_) => {
                        turned_away.fetch_add(1, Ordering::Relaxed);
                        let pause = 1000 * attempt.min(5) + rand::rng().random_range(0..1000);
                        sleep(Duration::from_millis(pause)).await;
                    }
                }
            }
            unreachable!("it returns or panics")
        })
    });
    let connected = futures_util::stream::iter(tasks).buffered(count).map(Result::unwrap).collect().await;
    (connected, turned_away.load(Ordering::Relaxed))
}

/// A tenth of them says where it is: what that costs the coordinator, including the news for the neighbors.
async fn say_where_they_are(program: &Program, connected: &mut [(Gateway, Connection)]) {
    let (count, before) = (connected.len() / 10, program.busy());
    for (number, (_, connection)) in connected.iter_mut().take(count).enumerate() {
        connection.say_address(&format!("198.51.100.1:{}", number + 1)).await;
    }
    // Longer than it takes until all were told.
    sleep(Duration::from_secs(5)).await;
    let each = (program.busy() - before) / count as u32;
    println!("one says where it is, and its neighbors hear of it: {each:?} of a core");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_sites_come_back_at_once() {
    if std::env::var_os("PENSTOCK_TEST_LONG").is_none() {
        return eprintln!("skipped: it is a measurement of minutes; set PENSTOCK_TEST_LONG=1");
    }
    let directory = running::directory();
    let (state, mut sites) = (directory.path(), sites());
    enrolled(state, &sites).await;
    let mut program = Program::start(state);
    let mut address = program.address();
    program.keep_addresses(state, address);
    let pin = enrolment_key(state, &[]).fingerprint().unwrap();
    set_policy(state, &policy(1));
    println!("{} sites, nobody connected: {} MB", sites.len(), program.resident() >> 20);
    for what in ["without maps", "with their maps", "with their maps, after a crash of the coordinator"] {
        if what.contains("crash") {
            drop(program);
            program = Program::start(state);
            address = program.address();
        }
        let start = Instant::now();
        let (mut connected, turned_away) = storm(sites, address, pin).await;
        let took = start.elapsed();
        println!(
            "all {} connect at once, {what}: {:.1} s, {turned_away} were turned away on the way, {} MB, longest hold {:?}",
            connected.len(),
            took.as_secs_f64(),
            program.resident() >> 20,
            longest_hold(state),
        );
        assert_eq!(connected.len(), size().0);
        assert!(took < Duration::from_secs(300), "{took:?}");
        if what.contains("crash") {
            say_where_they_are(&program, &mut connected).await;
        }
        sites = connected.into_iter().map(|(site, connection)| Gateway { map: connection.map, ..site }).collect();
    }
}
