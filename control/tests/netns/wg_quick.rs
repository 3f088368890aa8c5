//! `penstock wireguard` under Debian's `wg-quick`, against wireguard-go.

use crate::support::*;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

/// What wg-quick sets up from a configuration in site A; removed when dropped.
struct Quick<'a> {
    site: &'a Site,
    name: String,
    file: PathBuf,
    program: PathBuf,
}

impl<'a> Quick<'a> {
    /// A file for wg-quick, and the program under the name by which wg-quick can call it.
    fn new(topology: &'a Topology, config: &GatewayConfig) -> Self {
        let site = &topology.a;
        let program = site.scratch.join("penstock-wireguard");
        symlink(penstock_binary().expect("checked by ready()"), &program).expect("a link to the program");
        let file = site.scratch.join(format!("{}.conf", config.name));
        let address = format!("[Interface]\nAddress = {}/32\n", config.virtual_address);
        write_secret(&file, &config.wg_conf().replacen("[Interface]\n", &address, 1));
        Self { site, name: config.name.clone(), file, program }
    }

    fn run(&self, action: &str) -> (bool, String) {
        let mut command = self.site.gateway.command("wg-quick");
        command.arg(action).arg(&self.file).env("WG_QUICK_USERSPACE_IMPLEMENTATION", &self.program);
        // The directory of the device's log.
        command.env("PENSTOCK_RUNTIME_DIR", &self.site.scratch).stdin(std::process::Stdio::null());
        let output = command.output().expect("wg-quick starts");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &log)
    }

    fn succeed(&self, action: &str) -> String {
        let (success, text) = self.run(action);
        assert!(success, "wg-quick {action}: {text}\n{}", self.log());
        text
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.site.scratch.join(format!("{}.log", self.name))).unwrap_or_default()
    }

    fn show(&self, what: &str) -> String {
        wg(&["show", &self.name, what]).trim().to_owned()
    }

    /// Nothing of the device is left: no interface, no socket, no process.
    fn is_gone(&self) -> bool {
        let (listed, _) = self.site.gateway.attempt(&["ip", "link", "show", "dev", &self.name]);
        !listed && !socket(&self.name).exists() && processes(&self.name) == 0
    }
}

impl Drop for Quick<'_> {
    fn drop(&mut self) {
        let _ = self.site.gateway.attempt(&["ip", "link", "delete", "dev", &self.name]);
        if std::thread::panicking() {
            eprintln!("--- {}\n{}\n---", self.name, self.log());
        }
    }
}

/// How many processes serve the device of this name.
fn processes(name: &str) -> usize {
    let all = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let is_ours = |line: &Vec<u8>| {
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        words.contains(&b"wireguard".as_slice()) && words.contains(&name.as_bytes())
    };
    lines.filter(is_ours).count()
}

/// Whether wg-quick would use the kernel's WireGuard, where there is one.
fn here() -> bool {
    ready(&["wg-quick", "wireguard-go"]) && is_penstock() && !Path::new("/sys/module/wireguard").exists()
}

fn routes(site: &Site) -> String {
    ["-4", "-6"].map(|family| site.gateway.ip_show(&format!("{family} route show table all"))).concat()
        + &site.gateway.ip_show("rule show")
}

/// Up, traffic, changes that sessions survive, save, down, and all of it once more.
#[test]
fn the_whole_life_of_a_device() {
    if !here() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, b) = pair_config(&topology, Kind::SOCKET, Kind::WireguardGo, Outer::V4);
    let quick = Quick::new(&topology, &a);
    let b = Gateway::start(&topology.b, b);
    let before = routes(&topology.a);

    quick.succeed("up");
    await_traffic(&topology);
    assert_eq!(quick.show("public-key"), a.public_key());
    assert_eq!((quick.show("listen-port"), quick.show("fwmark")), (PORT.to_string(), "off".to_owned()));
    assert!(topology.a.gateway.ip_show(&format!("link show dev {}", a.name)).contains("mtu 1420"));
    tcp_both_ways(&topology.a.host, &topology.b.host, topology.b.host4(), 1 << 20);

    // Reading the same file again changes nothing, so the sessions stay.
    let handshake = quick.show("latest-handshakes");
    let stripped = topology.a.scratch.join("stripped.conf");
    write_secret(&stripped, &quick.succeed("strip"));
    wg(&["syncconf", &a.name, stripped.to_str().expect("UTF-8")]);
    await_traffic(&topology);
    assert_eq!(quick.show("latest-handshakes"), handshake, "the session began anew");

    // Another port: the peer follows.
    wg(&["set", &a.name, "listen-port", "47177"]);
    assert_eq!(quick.show("listen-port"), "47177");
    await_traffic(&topology);
    assert_eq!(b.endpoint(&a.public_key()).map(|endpoint| endpoint.port()), Some(47177));

    quick.succeed("save");
    let saved = std::fs::read_to_string(&quick.file).expect("saved");
    for part in ["ListenPort = 47177", &a.private_key, &b.public_key(), &format!("Address = {}/32", a.virtual_address)]
    {
        assert!(saved.contains(part), "{part} is missing in {saved}");
    }

    quick.succeed("down");
    eventually(LIMIT, "the device is gone", || quick.is_gone());
    assert_eq!(routes(&topology.a), before, "routes and rules are as they were");

    quick.succeed("up");
    await_traffic(&topology);
    let (again, text) = quick.run("up");
    assert!(!again && text.contains("already exists"), "{text}");
    quick.succeed("down");
    eventually(LIMIT, "the device is gone", || quick.is_gone());
}

/// A default route: wg-quick marks the tunnel's own packets, which must not go into the tunnel.
#[test]
fn a_default_route_does_not_catch_the_tunnel() {
    if !here() || !ready(&["nft"]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, b) = pair_config(&topology, Kind::SOCKET, Kind::WireguardGo, Outer::V4);
    // An endpoint that only the default route leads to: without the mark its packets would go into the tunnel.
    topology.b.gateway.ip("addr add 203.0.113.9/32 dev lo\n");
    a.peers[0].endpoint = Some(([203, 0, 113, 9], PORT).into());
    a.peers[0].allowed_ips = vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()];
    let quick = Quick::new(&topology, &a);
    let _b = Gateway::start(&topology.b, b);
    let before = routes(&topology.a);
    quick.succeed("up");
    assert_eq!(quick.show("fwmark"), "0xca6c");
    await_traffic(&topology);
    quick.succeed("down");
    eventually(LIMIT, "the device is gone", || quick.is_gone());
    assert_eq!(routes(&topology.a), before, "routes and rules are as they were");
}

/// An imported profile, with a wireguard-go that is configured from what it exports.
#[test]
fn what_is_imported_and_what_is_exported_meet() {
    if !here() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, b) = pair_config(&topology, Kind::SOCKET, Kind::WireguardGo, Outer::V4);
    a.peers[0].preshared_key = Some(genpsk());
    let file = topology.a.scratch.join(format!("{}.conf", a.name));
    let address = format!("[Interface]\nAddress = {}/32\nPostUp = true\n", a.virtual_address);
    write_secret(&file, &a.wg_conf().replacen("[Interface]\n", &address, 1).replace("[Peer]", "[Peer]\n# Name = b"));
    let profile = topology.a.scratch.join("profiles").join("imported.profile");
    let program = penstock_binary().expect("checked by ready()");
    let run = |arguments: &[&str]| {
        let mut command = topology.a.gateway.command(&program);
        let output = command.arg("--profile").arg(&profile).args(arguments).output().expect("penstock starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned(), told)
    };
    let subnets = topology.a.subnets().join(",");
    let path = file.to_str().expect("UTF-8");
    let import = ["import", path, "--lan", "lan0", "--subnets", &subnets];
    let (imported, told, error) = run(&import);
    assert!(imported && told.contains("line 3: PostUp") && told.contains("WAN wan0"), "{told}{error}");
    let (again, _, error) = run(&import);
    assert!(!again && error.contains("exists"), "what is there was overwritten: {error}");

    let key = topology.b.scratch.join("b.key");
    write_secret(&key, &b.private_key);
    let endpoint = topology.a.endpoint(Outer::V4).ip().to_string();
    let key_file = key.to_str().expect("UTF-8");
    let export = ["export", "b", "--private-key-file", key_file, "--endpoint", &endpoint];
    let (exported, conf, error) = run(&export);
    assert!(exported, "{error}");
    let (again, _, error) = run(&["export", "b", "--new", "--allowed-ips", "10.9.0.0/24"]);
    assert!(!again && error.contains("already has a peer b"), "{error}");
    let (refused, _, error) = run(&["export", "b", "--qr"]);
    assert!(!refused && error.contains("private key"), "{error}");
    let conf: Vec<&str> = conf.lines().filter(|line| !line.starts_with("Address")).collect();
    let exported = topology.b.scratch.join("exported.conf");
    write_secret(&exported, &conf.join("\n"));

    let mut command = topology.a.gateway.command(&program);
    command.args(["run", "--profile"]).arg(&profile).env("PENSTOCK_STATE_DIR", &topology.a.scratch);
    let log = topology.a.scratch.join("imported.log");
    let mut process = Process::spawn(command, &log, Some(topology.a.gateway.clone()));
    let b = Gateway::start(&topology.b, b);
    wg(&["setconf", b.name(), exported.to_str().expect("UTF-8")]);
    await_traffic(&topology);
    assert!(process.terminate().success());
}

/// In the foreground it ends on a signal and removes its device. Without a private key it shows none.
#[test]
fn a_device_in_the_foreground_ends_by_a_signal() {
    if !here() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _) = pair_config(&topology, Kind::SOCKET, Kind::WireguardGo, Outer::V4);
    let quick = Quick::new(&topology, &a);
    let program = quick.program.to_str().expect("UTF-8");
    let mut process = topology.a.gateway.spawn(&[program, "-f", &a.name], &topology.a.scratch.join("foreground.log"));
    eventually(LIMIT, "the device is there", || std::os::unix::net::UnixStream::connect(socket(&a.name)).is_ok());
    assert_eq!((quick.show("private-key"), quick.show("peers")), ("(none)".to_owned(), String::new()));

    let (second, text) = topology.a.gateway.attempt(&[program, "-f", &a.name]);
    assert!(!second && text.contains("exists"), "{text}");
    let (second, text) = topology.a.gateway.attempt(&[program, &a.name]);
    assert!(!second && text.contains("already"), "{text}");

    assert!(process.terminate().success(), "{}", process.log());
    eventually(LIMIT, "the device is gone", || quick.is_gone());
}
