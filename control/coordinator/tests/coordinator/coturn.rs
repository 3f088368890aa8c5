//! The STUN server as other people's clients see it: coturn's `turnutils_stunclient` and `turnutils_natdiscovery`.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use penstock_coordinator::admission::limits::LARGER_ANSWERS;
use penstock_coordinator::udp::{self, Listen};
use penstock_proto::stun::message::{Message, decode};
use tokio::net::UdpSocket;

/// A client's output, or nothing where coturn is not installed.
fn run(tool: &str, arguments: &[&str]) -> Option<String> {
    // It has no limit of its own when nothing answers.
    match Command::new("timeout").args(["20", tool]).args(arguments).output() {
        Ok(output) if output.status.code() != Some(127) => {
            let all = [output.stdout, output.stderr].concat();
            Some(String::from_utf8_lossy(&all).into_owned())
        }
        _ => {
            assert!(std::env::var_os("PENSTOCK_TEST_REQUIRED").is_none(), "{tool} is missing");
            eprintln!("skipped: {tool} is missing (scripts/setup --test)");
            None
        }
    }
}

/// A STUN server at these addresses.
fn server(ips: &[&str]) -> (Vec<SocketAddr>, tokio::task::JoinSet<()>) {
    // The same port at all of them, if it and the one beside it are free.
    let bound = (0..100).find_map(|_| {
        let port = std::net::UdpSocket::bind((ips[0], 0)).unwrap().local_addr().unwrap().port();
        let addresses: Vec<SocketAddr> = ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), port)).collect();
        let listen = Listen { addresses: addresses.clone(), public: Vec::new(), alternate_port: Some(port ^ 1) };
        Some((addresses, Arc::new(udp::bind(&[listen]).ok()?)))
    });
    let (addresses, sockets) = bound.expect("two free ports");
    (addresses, udp::serve(&sockets, None))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_client_is_told_its_address() {
    for ip in ["127.0.0.1", "::1"] {
        let (addresses, _tasks) = server(&[ip]);
        let port = addresses[0].port().to_string();
        let Some(told) = run("turnutils_stunclient", &["-p", &port, ip]) else { return };
        assert!(told.contains(&format!("UDP reflexive addr: {ip}:")) || told.contains(&format!("[{ip}]:")), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_padded_discovery_finds_out_the_nat() {
    let (addresses, _tasks) = server(&["127.0.0.1", "127.0.0.2"]);
    let port = addresses[0].port().to_string();
    let Some(told) = run("turnutils_natdiscovery", &["-m", "-f", "-P", "-p", &port, "127.0.0.1"]) else { return };
    assert!(told.contains("NAT with Endpoint Independent Mapping") || told.contains("No NAT"), "{told}");
    assert!(told.contains("NAT with Endpoint Independent Filtering"), "{told}");
}

/// A hostile stranger who forges the source can have only a few answers sent to the victim, whichever addresses of its
/// network are forged.
#[tokio::test]
async fn answers_larger_than_their_question_are_few() {
    let (addresses, _tasks) = server(&["127.0.0.1"]);
    let mut answered = 0;
    for host in 1..=20 {
        let socket = UdpSocket::bind((format!("127.44.0.{host}"), 0)).await.unwrap();
        let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        request.extend([host; 12]);
        for _ in 0..50 {
            socket.send_to(&request, addresses[0]).await.unwrap();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let mut buffer = [0; 100];
        while let Ok((length, _)) = socket.try_recv_from(&mut buffer) {
            assert_eq!(length, 32);
            assert!(matches!(decode(&buffer[..length]), Ok(Message::Success { other: None, .. })));
            answered += 1;
        }
    }
    // The whole /24 has its burst, which is four times that of an address, and what comes back in a second.
    assert!((LARGER_ANSWERS.burst..=4 * LARGER_ANSWERS.burst + 40).contains(&answered), "{answered}");
}
