//! docs/start.md, followed to the letter: its code blocks are typed into a shell on each of two sites.
//!
//! The installation and `systemctl` are left to the tests of the packages. Interfaces have other names here. Each shell
//! sees its own site's files only, since both sites use the same names.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::support::*;

/// The directories of a site's files.
const PLACES: [&str; 4] = ["/etc/penstock", "/var/lib/penstock", "/run/penstock", "/run/wireguard"];
const END: &str = "== end ";

/// A root shell at a site.
struct Shell {
    namespace: Namespace,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn of(site: &Site) -> Self {
        let mut command: Command = site.gateway.command("sh");
        let binary = penstock_binary().expect("checked by ready()");
        let directory = binary.canonicalize().expect("it is there").parent().expect("a directory").to_owned();
        let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap_or_default());
        command.env("PATH", path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a shell");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let output = BufReader::new(output);
        let mut shell = Self { namespace: site.gateway.clone(), child, input, output };
        // Visible only to this shell and its processes; gone with them.
        for place in PLACES {
            std::fs::create_dir_all(place).expect("a directory to mount at");
            shell.must(&format!("mount -t tmpfs -o mode=755 tmpfs {place}"));
        }
        // A systemd on this machine must not be involved.
        shell.must("[ ! -d /run/systemd ] || mount -t tmpfs tmpfs /run/systemd");
        shell
    }

    /// Types lines; returns their output, and whether the last one succeeded.
    fn r#type(&mut self, lines: &str) -> (String, bool) {
        writeln!(self.input, "{{ {lines}\n}} 2>&1 </dev/null; echo \"{END}$?\"").expect("the shell reads");
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).expect("UTF-8") > 0, "the shell has ended: {printed}");
            match line.strip_prefix(END) {
                Some(code) => return (printed, code.trim() == "0"),
                None => printed += &line,
            }
        }
    }

    fn must(&mut self, lines: &str) -> String {
        let (printed, succeeded) = self.r#type(lines);
        assert!(succeeded, "{lines}\n{printed}");
        printed
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Everything it has started is in its namespace, and nothing else is.
        let output = Command::new("ip").args(["netns", "pids", self.namespace.name()]).output();
        let pids = output.iter().flat_map(|pids| pids.stdout.split(u8::is_ascii_whitespace));
        for pid in pids.filter(|pid| !pid.is_empty()) {
            let _ = Command::new("kill").args(["-KILL", &String::from_utf8_lossy(pid)]).status();
        }
        let _ = self.child.wait();
    }
}

/// The page's code blocks: their languages and lines.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let page = include_str!("../../../docs/start.md");
    let mut blocks = page.split("\n```");
    let mut found = Vec::new();
    while let (Some(_text), Some(block)) = (blocks.next(), blocks.next()) {
        found.extend(block.split_once('\n'));
    }
    found
}

#[test]
fn the_first_tunnel_is_there_in_five_minutes() {
    if !ready(&["sh", "mount"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let mut amsterdam = Shell::of(&topology.a);
    let mut berlin = Shell::of(&topology.b);
    let mut keys = Vec::new();
    let (mut profiles, mut typed) = (0, Vec::new());
    for (language, lines) in blocks() {
        match language {
            "sh" if lines.starts_with("apt ") || lines.starts_with("systemctl ") => {}
            "sh" if lines.contains("genkey") => {
                for shell in [&mut amsterdam, &mut berlin] {
                    keys.push(shell.must(lines).trim().to_owned());
                }
            }
            "json" => {
                let profile = lines.replace("eth0", "wan0").replace("eth1", "lan0");
                let profile = profile.replace("AMSTERDAM'S PUBLIC KEY", &keys[0]);
                let profile = profile.replace("BERLIN'S PUBLIC KEY", &keys[1]);
                let shell = if profiles == 0 { &mut amsterdam } else { &mut berlin };
                shell.must(&format!("cat >Universe.profile <<'END'\n{profile}\nEND"));
                profiles += 1;
            }
            "sh" if lines.contains("ping ") => {
                // A first handshake may need a retry.
                let mut printed = String::new();
                let reached = holds_within(PATIENCE, || {
                    let (said, succeeded) = amsterdam.r#type(lines);
                    printed = said;
                    succeeded && printed.contains(" 0% packet loss")
                });
                assert!(reached, "{printed}");
                assert!(printed.contains("berlin  direct"), "{printed}");
            }
            "sh" => {
                for shell in [&mut amsterdam, &mut berlin] {
                    shell.must(lines);
                }
            }
            _ => {}
        }
        if language == "sh" {
            typed.push(lines.lines().next().unwrap_or_default());
        }
    }
    assert_eq!((profiles, typed.len()), (2, 5), "{typed:?}");
    await_traffic_of_hosts(&topology);
    for shell in [&mut amsterdam, &mut berlin] {
        shell.must("penstock stop --release");
    }
}

/// The page uses one IP version only.
fn await_traffic_of_hosts(topology: &Topology) {
    let target = topology.b.hosts()[0];
    eventually(PATIENCE, "a host of Berlin answers one of Amsterdam", || {
        ping(&topology.a.host, target, &["-c", "1"]).all_answered()
    });
}
