//! The coordinator's page, with what real gateways report about each other.

use crate::support::nat::{Kind, Lab};
use crate::support::overlay::{Coordinator, Pair};
use crate::support::{eventually, ready, tcp_both_ways};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const PAGE: &str = "127.0.0.1:8080";
/// Gateways report every 10 s; before that, a path has to be found, or its end noticed.
const REPORTED: Duration = Duration::from_secs(40);

/// The page as a logged-in browser on the coordinator's machine gets it.
struct Browser<'a> {
    lab: &'a Lab,
    cookie: String,
}

impl<'a> Browser<'a> {
    /// Logs in with the link from the command line.
    fn logged_in(lab: &'a Lab, coordinator: &Coordinator) -> Self {
        let link = coordinator.run(&["page-login"]);
        let link = link.split_whitespace().find(|word| word.starts_with("http://")).expect("a link");
        let path = link.strip_prefix(&format!("http://{PAGE}")).expect("the page's address");
        let mut browser = Self { lab, cookie: String::new() };
        let form = browser.get(path);
        assert!(form.starts_with("HTTP/1.1 200"), "{form}");
        let secret = between(&form, "name=\"link\" value=\"", "\"").expect("the form");
        let body = format!("link={secret}");
        let headers = format!(
            "Origin: http://{PAGE}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
            body.len()
        );
        let reply = browser.ask(&format!("POST /login HTTP/1.1\r\n{headers}"), &body);
        browser.cookie = between(&reply, "set-cookie: ", ";").unwrap_or_else(|| panic!("{reply}")).to_owned();
        browser
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\n"), "")
    }

    fn ask(&self, head: &str, body: &str) -> String {
        let cookie = &self.cookie;
        let request = format!("{head}Host: {PAGE}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n{body}");
        self.lab.internet().enter(|| {
            let mut stream = TcpStream::connect(PAGE).expect("the page listens");
            stream.write_all(request.as_bytes()).expect("sent");
            let mut reply = String::new();
            stream.read_to_string(&mut reply).expect("a reply");
            reply
        })
    }

    /// The cells of the only link's row, once they are as expected.
    fn link(&self, what: &str, is_so: impl Fn(&[String]) -> bool) -> Vec<String> {
        let mut cells = Vec::new();
        eventually(REPORTED, &format!("the page shows {what}"), || {
            cells = self.rows("Links").pop().unwrap_or_default();
            is_so(&cells)
        });
        cells
    }

    /// The rows of the table below a heading: the text of each cell.
    fn rows(&self, heading: &str) -> Vec<Vec<String>> {
        let page = self.get("/live");
        let table = between(&page, &format!("<h2>{heading}</h2>"), "</table>").unwrap_or_else(|| panic!("{page}"));
        let (_, body) = table.split_once("<tbody>").expect("a body");
        body.split("<tr>").skip(1).map(|row| row.split("<td").skip(1).map(text).collect()).collect()
    }
}

/// What a cell shows: everything that is not markup. It begins inside the tag of the cell.
fn text(cell: &str) -> String {
    cell.split('>').skip(1).filter_map(|piece| piece.split('<').next()).collect()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split(after).next()
}

#[test]
fn shows_what_real_gateways_report() {
    if !ready(&["nft", "conntrack"]) {
        return;
    }
    let lab = Lab::new();
    let coordinator = Coordinator::start_with(&lab, &["--page", PAGE]);
    let browser = Browser::logged_in(&lab, &coordinator);
    let mut pair =
        Pair::start(&lab, &coordinator, [Kind::PortRestricted, Kind::FullCone], &json!({ "BirthdayProbing": false }));
    pair.await_both("direct", REPORTED);
    let mut names = [pair.gateway_a.name.clone(), pair.gateway_b.name.clone()];
    names.sort();

    // Some traffic in each of the gateways' ten seconds.
    let beat = pair.heartbeat();
    tcp_both_ways(&pair.a.host, &pair.b.host, pair.b.host_address(), 1 << 20);
    let is_carrying = |cells: &[String]| cells[1] == "direct" && cells[3] != "0 bit/s" && cells[4].ends_with(" ms");
    let cells = browser.link("a direct link that carries traffic", is_carrying);
    let mut ends: Vec<&str> = cells[0].split(" – ").collect();
    ends.sort_unstable();
    assert_eq!(ends, names, "{cells:?}");
    let round_trip: f64 = cells[4].trim_end_matches(" ms").parse().expect("a number");
    assert!(round_trip > 0.0 && round_trip < 1000.0, "{cells:?}");
    let sites = browser.rows("Sites");
    let shown: Vec<[&str; 2]> = sites.iter().map(|site| [site[0].as_str(), &site[1]]).collect();
    assert_eq!(shown, [[names[0].as_str(), "yes"], [names[1].as_str(), "yes"]]);
    let subnets: Vec<&str> = sites.iter().map(|site| site[4].as_str()).collect();
    for subnet in [pair.a.subnet(), pair.b.subnet()] {
        assert!(subnets.contains(&subnet.as_str()), "{subnets:?}");
    }
    assert_eq!(sites.iter().filter(|site| site[2] == "port-restricted").count(), 1, "{sites:?}");
    assert!(browser.get("/live").contains("<line class=\"link direct\""), "the picture");
    beat.stop();

    assert!(pair.gateway_b.process.terminate().success());
    let cells = browser.link("the link as down", |cells| cells[1] == "down");
    assert!(!cells[2].is_empty(), "a reason: {cells:?}");
    let gone = browser.rows("Sites").into_iter().find(|site| site[0] == pair.gateway_b.name).expect("still a site");
    assert!(gone[1].starts_with("no"), "{gone:?}");
}
