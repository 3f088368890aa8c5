//! Against the real `wg`, which looks only into /var/run/wireguard, and against misbehaving clients.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::*;
use crate::key::{PresharedKey, PrivateKey};
use crate::uapi::{Change, Device, PeerState, SetDevice};

/// A device that shows what it was given and remembers what it was asked.
struct Fake {
    directory: std::path::PathBuf,
    name: Name,
    asked: Arc<Mutex<Vec<SetDevice>>>,
    // Ends the service when dropped.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fake {
    fn start(directory: &Path, name: &str, device: Device, outcome: Result<(), Errno>) -> Self {
        let name = Name::try_from(name.to_owned()).unwrap();
        let (stop, mut stopped) = oneshot::channel::<()>();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (directory, name, asked) = (directory.to_owned(), name.clone(), Arc::clone(&asked));
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut service = serve_in(&directory, &name).unwrap();
                    ready.send(()).unwrap();
                    loop {
                        tokio::select! {
                            _ = &mut stopped => return,
                            Some(request) = service.requests.recv() => match request {
                                Request::Get { reply } => reply.send(Ok(device.clone())).unwrap(),
                                Request::Set { change, reply } => {
                                    asked.lock().unwrap().push(change);
                                    reply.send(outcome).unwrap();
                                }
                            },
                        }
                    }
                });
            }
        });
        is_ready.recv().unwrap();
        Self { directory: directory.to_owned(), name, asked, stop: Some(stop), thread: Some(thread) }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.join(format!("{}.sock", self.name))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        let outcome = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            outcome.unwrap();
        }
    }
}

fn device() -> Device {
    let private = PrivateKey::from_bytes([7; 32]);
    Device {
        listen_port: 47100,
        fwmark: 0x1f,
        peers: vec![PeerState {
            public_key: PrivateKey::from_bytes([9; 32]).public_key(),
            preshared_key: PresharedKey::from_bytes([5; 32]),
            endpoint: Some("[2001:db8::1]:5".parse().unwrap()),
            last_handshake: Some(Duration::new(1_700_000_000, 5)),
            rx_bytes: u64::MAX,
            tx_bytes: 1024,
            persistent_keepalive: Some(Duration::from_secs(25)),
            allowed_ips: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/64".parse().unwrap()],
        }],
        private_key: Some(private),
    }
}

fn wg(arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("wg")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    (
        output.status.success(),
        String::from_utf8(if output.status.success() { output.stdout } else { output.stderr }).unwrap(),
    )
}

/// A fake where `wg` looks, or `None` with a message saying why not.
fn for_wg(role: &str, outcome: Result<(), Errno>) -> Option<Fake> {
    let root = rustix::process::geteuid().is_root();
    let there = Command::new("wg").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !root || !there {
        let _ = writeln!(std::io::stderr(), "skipped: this needs root and wg");
        return None;
    }
    let name = format!("pu{}{role}", std::process::id());
    Some(Fake::start(Path::new(DIRECTORY), &name, device(), outcome))
}

#[test]
fn wg_shows_the_device() {
    let Some(fake) = for_wg("s", Ok(())) else {
        return;
    };
    let (success, text) = wg(&["show", fake.name.as_str(), "dump"], "");
    assert!(success, "{text}");
    let device = device();
    let peer = &device.peers[0];
    let private = device.private_key.as_ref().unwrap();
    let expected = format!(
        "{}\t{}\t47100\t0x1f\n{}\t{}\t[2001:db8::1]:5\t10.0.0.0/8,fd00::/64\t1700000000\t18446744073709551615\t1024\t25\n",
        *private.to_base64(),
        private.public_key(),
        peer.public_key,
        "BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=",
    );
    assert_eq!(text, expected);
}

#[test]
fn wg_changes_the_device() {
    let Some(fake) = for_wg("c", Ok(())) else {
        return;
    };
    let name = fake.name.as_str();
    let key = PrivateKey::from_bytes([9; 32]).public_key().to_string();
    let psk = "BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n";
    let set = |arguments: &[&str], input: &str| {
        let (success, text) = wg(&[&["set", name], arguments].concat(), input);
        assert!(success, "{text}");
        fake.asked.lock().unwrap().pop().unwrap()
    };
    let change = set(
        &[
            "listen-port",
            "7000",
            "fwmark",
            "0x10",
            "peer",
            &key,
            "preshared-key",
            "/dev/stdin",
            "endpoint",
            "[fd00::1]:5",
            "persistent-keepalive",
            "25",
            "allowed-ips",
            "10.0.0.5/24,fd00::/8",
        ],
        psk,
    );
    assert_eq!((change.listen_port, change.fwmark), (Some(7000), Some(16)));
    let [peer] = change.peers.as_slice() else { panic!("one peer") };
    assert_eq!(peer.public_key.to_string(), key);
    assert!(matches!(&peer.preshared_key, Change::To(key) if key.as_bytes() == &[5; 32]));
    assert_eq!(peer.endpoint, Some("[fd00::1]:5".parse().unwrap()));
    assert_eq!(peer.persistent_keepalive, Change::To(Duration::from_secs(25)));
    assert!(peer.replace_allowed_ips && !peer.remove && !peer.update_only);
    let prefixes: Vec<_> = peer.allowed_ips.iter().map(|allowed| allowed.prefix.to_string()).collect();
    assert_eq!(prefixes, ["10.0.0.0/24", "fd00::/8"]);

    let change = set(&["peer", &key, "remove"], "");
    assert!(change.peers[0].remove);

    let change = set(
        &["private-key", "/dev/null", "peer", &key, "persistent-keepalive", "off", "preshared-key", "/dev/null"],
        "",
    );
    assert_eq!(change.private_key, Change::Clear);
    assert_eq!(change.peers[0].preshared_key, Change::Clear);
    assert_eq!(change.peers[0].persistent_keepalive, Change::Clear);

    let change = set(&["private-key", "/dev/stdin"], &PrivateKey::from_bytes([7; 32]).to_base64());
    assert_eq!(change.private_key, Change::To(PrivateKey::from_bytes([7; 32])));
    assert_eq!(change.listen_port, None);
}

#[test]
fn wg_says_what_the_device_refused() {
    let Some(fake) = for_wg("r", Err(Errno::AddressInUse)) else {
        return;
    };
    let (success, text) = wg(&["set", fake.name.as_str(), "listen-port", "1"], "");
    assert!(!success && text.contains("Address already in use"), "{text}");
}

#[test]
fn several_requests_share_a_connection_and_a_wrong_one_does_not_end_it() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start(directory.path(), "several", Device::default(), Ok(()));
    let mut stream = fake.connect();
    stream.write_all(b"get=1\n\nset=1\nlisten_port=x\nmore=lines\n\nset=1\n\nnonsense\n\nget").unwrap();
    let expected = "errno=0\n\nerrno=-22\n\nerrno=0\n\nerrno=-71\n\n";
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), expected);
    stream.write_all(b"=1\n\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "errno=0\n\n");
    assert_eq!(fake.asked.lock().unwrap().len(), 1);
}

#[test]
fn an_endless_line_ends_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start(directory.path(), "endless", Device::default(), Ok(()));
    let mut stream = fake.connect();
    stream.write_all(&[b'a'; BUFFER]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "errno=-90\n\n");
    // Others are served during this and after it.
    let _idle = fake.connect();
    let mut stream = fake.connect();
    stream.write_all(b"get=1\n\n").unwrap();
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"errno=0\n\n");
}

#[test]
fn the_socket_is_gone_with_the_service() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start(directory.path(), "gone", Device::default(), Ok(()));
    assert!(directory.path().join("gone.sock").exists());
    drop(fake);
    assert!(!directory.path().join("gone.sock").exists());
}
