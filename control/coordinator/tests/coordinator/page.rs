//! The page as a browser, and as an attacker, meets it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use penstock_coordinator::admin::{Answer, Request};
use penstock_coordinator::config::Document;
use penstock_coordinator::page::config::PageDocument;
use penstock_coordinator::policy::Policy;
use penstock_coordinator::store::AuditEntry;
use penstock_proto::coordination::{GatewayMessage, PathKind, PathReport, Paths};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Connection, Gateway, PATIENCE};
use crate::running::{Running, directory, document};

/// A coordinator with a page at a free port.
pub async fn with_page() -> Running {
    let directory = directory();
    let page = PageDocument { listen: Some("127.0.0.1:0".parse().unwrap()), ..PageDocument::default() };
    let document = Document { page: Some(page), ..document(directory.path()) };
    Running::start_with(directory, document).await
}

impl Running {
    pub fn page(&self) -> SocketAddr {
        self.coordinator.page_address().unwrap()
    }

    /// The secret of a new link, which is checked to lead to the page.
    pub async fn link(&self) -> String {
        let Answer::Done(link) = self.ask(Request::PageLogin).await else { panic!("no link") };
        link.strip_prefix(&format!("http://{}/login?link=", self.page())).unwrap().to_owned()
    }

    pub async fn audit(&self) -> Vec<AuditEntry> {
        let Answer::Audit(entries) = self.ask(Request::Audit { last: 100 }).await else { panic!("no audit") };
        entries
    }
}

/// What these tests need of a browser: its cookies, and the token of the page that it saw last.
pub struct Browser {
    pub address: SocketAddr,
    pub cookies: BTreeMap<String, String>,
    token: String,
}

pub struct Reply {
    pub status: u16,
    headers: BTreeMap<String, String>,
    pub body: String,
}

impl Browser {
    pub fn new(running: &Running) -> Self {
        Self { address: running.page(), cookies: BTreeMap::new(), token: String::new() }
    }

    async fn logged_in(running: &Running) -> Self {
        let mut browser = Self::new(running);
        let reply = browser.post("/login", &[("link", &running.link().await)]).await;
        assert_eq!((reply.status, reply.header("location")), (303, "/"), "{}", reply.body);
        browser.get("/").await;
        browser
    }

    async fn send(&mut self, head: &str, body: &str) -> Reply {
        let cookies: String = self.cookies.iter().map(|(name, value)| format!("Cookie: {name}={value}\r\n")).collect();
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{head}{cookies}{length}Connection: close\r\n\r\n{body}");
        // A refusal may come before all is written.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {head}: {answer:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = BTreeMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            if name == "set-cookie" {
                let (name, value) = value.split(';').next().unwrap().split_once('=').unwrap();
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
            headers.insert(name.to_owned(), value.to_owned());
        }
        if let Some((_, rest)) = body.split_once("name=\"token\" value=\"") {
            self.token = rest.split('"').next().unwrap().to_owned();
        }
        Reply { status, headers, body: body.to_owned() }
    }

    /// A page, once it is as it should be.
    async fn until(&mut self, path: &str, is_so: impl Fn(&str) -> bool) -> String {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let page = self.get(path).await.body;
            if is_so(&page) {
                return page;
            }
            assert!(std::time::Instant::now() < deadline, "{page}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    pub async fn get(&mut self, path: &str) -> Reply {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        self.send(&head, "").await
    }

    async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Reply {
        let origin = format!("Origin: http://{}\r\n", self.address);
        self.post_with(path, &origin, fields).await
    }

    async fn post_with(&mut self, path: &str, headers: &str, fields: &[(&str, &str)]) -> Reply {
        let body: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\n{headers}Content-Type: application/x-www-form-urlencoded\r\n",
            self.address
        );
        self.send(&head, &body).await
    }

    /// Submits a form of the page that was seen last; returns the page that follows.
    async fn act(&mut self, path: &str, fields: &[(&str, &str)]) -> String {
        let token = self.token.clone();
        let reply = self.post(path, &[&[("token", &token[..])], fields].concat()).await;
        assert_eq!((reply.status, reply.header("location")), (303, path), "{}", reply.body);
        self.get(path).await.body
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// Says how a gateway reaches another.
pub async fn tell(connection: &mut Connection, to: &Gateway, path: PathKind, rate: u64, reason: &str) {
    let relay = (path == PathKind::Relay).then(|| "frankfurt".parse().unwrap());
    let reason = reason.to_owned();
    let round_trip = (path != PathKind::None).then_some(8_300);
    let path = PathReport { peer: to.key, path, relay, reason, round_trip, received: rate, sent: 0 };
    connection.send(&GatewayMessage::Paths(Paths { paths: vec![path] })).await;
}

#[tokio::test]
async fn without_a_login_there_is_nothing_to_see() {
    let running = with_page().await;
    let _site = running.site("amsterdam", &[], &[]).await;
    let mut stranger = Browser::new(&running);
    for path in ["/", "/sites", "/keys", "/policy", "/audit", "/?q=amsterdam"] {
        let reply = stranger.get(path).await;
        assert_eq!((reply.status, reply.header("location")), (303, "/login"), "{path}");
        assert!(!reply.body.contains("amsterdam"));
    }
    assert_eq!(stranger.get("/live").await.status, 401);
    for path in ["/sites", "/keys", "/policy", "/logout"] {
        assert_eq!(stranger.post(path, &[("token", "")]).await.header("location"), "/login", "{path}");
    }
    assert_eq!(stranger.get("/v1/connect").await.status, 404);
    // No cookie of its own choosing becomes a session.
    stranger.cookies.insert("penstock".into(), "chosen-by-an-attacker".into());
    assert_eq!(stranger.get("/").await.header("location"), "/login");
    let reply = stranger.post("/login", &[("link", &running.link().await)]).await;
    assert_eq!(reply.status, 303);
    assert!(!reply.header("set-cookie").contains("chosen-by-an-attacker"), "{}", reply.header("set-cookie"));
    assert_eq!(stranger.get("/").await.status, 200);
}

#[tokio::test]
async fn a_link_logs_in_once_and_is_not_used_up_by_looking_at_it() {
    let running = with_page().await;
    let link = running.link().await;
    let mut browser = Browser::new(&running);
    for _ in 0..2 {
        let reply = browser.get(&format!("/login?link={link}")).await;
        assert!(reply.status == 200 && reply.header("set-cookie").is_empty());
    }
    let reply = browser.post("/login", &[("link", &link)]).await;
    let cookie = reply.header("set-cookie").to_owned();
    assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Strict"), "{cookie}");
    assert_eq!(browser.get("/").await.status, 200);
    let mut second = Browser::new(&running);
    assert_eq!(second.post("/login", &[("link", &link)]).await.status, 403);
    assert_eq!(second.get("/").await.header("location"), "/login");

    let entry = running.audit().await.pop().unwrap();
    let uid = rustix::process::geteuid().as_raw();
    assert_eq!((&entry.who[..], &entry.what[..]), (&format!("page user {uid}")[..], "page login"));
    let token = browser.token.clone();
    assert_eq!(browser.post("/logout", &[("token", &token)]).await.header("location"), "/login");
    let ended = cookie.split([';', '=']).nth(1).unwrap();
    browser.cookies.insert("penstock".into(), ended.to_owned());
    assert_eq!(browser.get("/").await.header("location"), "/login", "the cookie of an ended session");
}

#[tokio::test]
async fn whoever_guesses_links_has_to_wait() {
    let running = with_page().await;
    let mut browser = Browser::new(&running);
    let mut last = 0;
    for _ in 0..20 {
        last = browser.post("/login", &[("link", "guessed")]).await.status;
    }
    assert_eq!(last, 429);
}

#[tokio::test]
async fn a_change_comes_from_a_page_of_the_session_or_not_at_all() {
    let running = with_page().await;
    let _site = running.site("amsterdam", &[], &[]).await;
    let mut browser = Browser::logged_in(&running).await;
    let token = browser.token.clone();
    let ours = format!("Origin: http://{}\r\n", browser.address);
    let other = Browser::logged_in(&running).await.token;
    assert_ne!(other, token);
    for (headers, token) in [
        (ours.as_str(), ""),
        (&ours, "wrong"),
        (&ours, &other),
        ("", &token),
        ("Origin: null\r\n", &token),
        ("Origin: https://evil.example.net\r\n", &token),
        (&format!("{ours}{ours}"), &token),
    ] {
        let fields = [("token", token), ("action", "revoke"), ("site", "amsterdam")];
        let reply = browser.post_with("/sites", headers, &fields).await;
        assert_eq!(reply.status, 403, "{headers:?} {token:?}");
    }
    let head = format!("POST /sites HTTP/1.1\r\nHost: evil.example.net\r\n{ours}");
    assert_eq!(browser.send(&head, "").await.status, 421);
    let head = format!("POST /sites HTTP/1.1\r\nHost: {}\r\n{ours}Content-Type: text/plain\r\n", browser.address);
    assert_eq!(browser.send(&head, &format!("token={token}")).await.status, 415);
    assert_eq!(running.sites().await[0].site.state.as_str(), "approved");
    let page = browser.act("/sites", &[("action", "revoke"), ("site", "amsterdam")]).await;
    assert!(page.contains("amsterdam is revoked"), "{page}");
    assert_eq!(running.sites().await[0].site.state.as_str(), "revoked");
}

#[tokio::test]
async fn large_requests_are_refused() {
    let running = with_page().await;
    let mut browser = Browser::logged_in(&running).await;
    let token = browser.token.clone();
    let large = "x".repeat(100 << 10);
    assert_eq!(browser.post("/keys", &[("token", &token), ("tags", &large)]).await.status, 413);
    let reply = browser.post("/policy", &[("token", &token), ("policy", &large)]).await;
    assert!(reply.status == 200 && reply.body.contains("This policy is not valid"), "{}", reply.status);
    let larger = "x".repeat(4 << 20);
    assert_eq!(browser.post("/policy", &[("token", &token), ("policy", &larger)]).await.status, 413);
    let head = format!("GET /?q={large} HTTP/1.1\r\nHost: {}\r\n", browser.address);
    assert!((400..500).contains(&browser.send(&head, "").await.status));
}

#[tokio::test]
async fn every_answer_keeps_strangers_scripts_out() {
    let running = with_page().await;
    let mut browser = Browser::logged_in(&running).await;
    for path in ["/", "/sites", "/keys", "/policy", "/audit", "/live", "/login", "/page.css", "/page.js", "/nothing"] {
        let reply = browser.get(path).await;
        let policy = reply.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{path}: {policy}");
        assert!(!policy.contains("unsafe"), "{path}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(reply.header("x-frame-options"), "DENY", "{path}");
        for inline in [" style=", " onclick=", "<style", "<script>", "http://", "https://"] {
            assert!(!reply.body.contains(inline), "{path} has {inline}");
        }
    }
    let reply = browser.get("/?q=%3Cscript%3Ealert(1)%3C/script%3E%22").await;
    assert!(reply.status == 200 && !reply.body.contains("<script>"), "{}", reply.body);
}

#[tokio::test]
async fn by_tls_it_serves_its_own_names_and_a_cookie_for_this_host_alone() {
    let directory = directory();
    let page = PageDocument { listen: Some("0.0.0.0:0".parse().unwrap()), ..PageDocument::default() };
    let document = Document { page: Some(page), ..document(directory.path()) };
    let running = Running::start_with(directory, document).await;
    let address = SocketAddr::from(([127, 0, 0, 1], running.page().port()));
    let Answer::Done(link) = running.ask(Request::PageLogin).await else { panic!("no link") };
    let origin = format!("https://{}:{}", crate::client::HOST, address.port());
    let secret = link.strip_prefix(&format!("{origin}/login?link=")).unwrap();
    for (host, status) in [(origin.strip_prefix("https://").unwrap(), "303"), ("evil.example.net", "421")] {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = crate::client::encrypt(stream, running.pin, 0).await.unwrap();
        let body = format!("link={secret}");
        let head = format!(
            "POST /login HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nConnection: close\r\n\
            Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
        let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap_or_default();
        assert_eq!(cookie.starts_with("__Host-penstock=") && cookie.ends_with("; Secure"), status == "303", "{cookie}");
    }
}

#[tokio::test]
async fn the_overview_tells_of_links_as_gateways_do() {
    let running = with_page().await;
    let (amsterdam, mut a) = running.site("amsterdam", &["10.1.0.0/16"], &["hub"]).await;
    let (berlin, mut b) = running.site("berlin", &[], &[]).await;
    let (cadiz, _c) = running.site("cadiz", &[], &[]).await;
    a.until_peers(&["berlin", "cadiz"]).await;
    let asked = |text: &String| text.contains("\"Reports\"");
    assert_eq!(a.texts.iter().filter(|text| asked(text)).count(), 1, "it is asked once");
    tell(&mut a, &berlin, PathKind::Direct, 1_250_000, "the peer answers directly").await;
    // If the two reports differ, the worse one is shown.
    tell(&mut b, &amsterdam, PathKind::Relay, 0, "no UDP <gets> out here").await;
    let mut browser = Browser::logged_in(&running).await;
    let page = browser.until("/", |page| page.contains("relayed, by frankfurt, 10.0 Mbit/s, 8.3 ms")).await;
    assert!(
        page.contains("amsterdam – berlin") && page.contains("no UDP &lt;gets&gt; out here; by frankfurt"),
        "{page}"
    );
    assert!(page.contains("1 relayed") && page.contains("2 unknown"), "{page}");
    let filtered = browser.get("/?q=cad").await.body;
    assert!(filtered.contains("berlin – cadiz") && !filtered.contains("amsterdam – berlin"), "{filtered}");
    let by_tag = browser.get("/?q=hub").await.body;
    assert!(by_tag.contains("amsterdam – berlin") && !by_tag.contains("berlin – cadiz"), "{by_tag}");
    // What a gateway said is forgotten when it goes.
    drop((a, b));
    browser.until("/", |page| !page.contains("by frankfurt")).await;
    let _ = (amsterdam, cadiz);
}

#[tokio::test]
async fn requests_are_approved_keys_made_and_all_is_in_the_audit() {
    let running = with_page().await;
    let mut browser = Browser::logged_in(&running).await;
    let token = browser.token.clone();
    let fields = [("uses", "2"), ("hours", "24"), ("tags", "branch lab"), ("manually", "yes"), ("action", "create")];
    let reply = browser.post("/keys", &[&[("token", &token[..])], &fields[..]].concat()).await;
    assert_eq!(reply.status, 200);
    let key = reply.body.split("<pre>").nth(1).unwrap().split('<').next().unwrap().parse().unwrap();
    let page = browser.get("/keys").await.body;
    assert!(page.contains("branch, lab") && !page.contains("penstock1-"), "{page}");
    for (name, value) in [("uses", "0"), ("hours", "x"), ("tags", "a/b"), ("subnets", "10.0.0.0/33")] {
        let wrong = [&[(name, value), ("token", &token)], &fields[..]].concat();
        assert_eq!(browser.post("/keys", &wrong).await.header("location"), "/keys");
        assert!(browser.get("/keys").await.body.contains("notice error"), "{name}");
    }

    let site = Gateway::new("berlin", &["10.2.0.0/16", "203.0.113.0/24"]).with_key(&key);
    let mut connection = running.connect(&site).await.unwrap();
    let page = browser.get("/sites").await.body;
    assert!(page.contains("A new site") && page.contains("class=\"badge\""), "{page}");
    let name = site.key.to_string();
    let page = browser.act("/sites", &[("action", "approve"), ("site", &name)]).await;
    assert!(page.contains("berlin is approved; 203.0.113.0/24 still waits"), "{page}");
    connection.until("it is let in", |connection| connection.map.is_some()).await;
    let subnets = ("subnets", "10.2.0.0/16, 203.0.113.0/24");
    let page = browser.act("/sites", &[("action", "approve"), ("site", &name), subnets]).await;
    assert!(page.contains("Nothing waits for an administrator"), "{page}");
    let page = browser.act("/sites", &[("action", "limit"), ("site", &name), ("days", "30")]).await;
    assert!(page.contains("berlin will be revoked in"), "{page}");
    assert!(browser.act("/sites", &[("action", "revoke"), ("site", "paris")]).await.contains("there is no site paris"));
    let id = running.audit().await.iter().find(|entry| entry.what == "key create").unwrap().after["Id"].clone();
    browser.act("/keys", &[("action", "revoke"), ("key", id.as_str().unwrap())]).await;
    browser.act("/sites", &[("action", "remove"), ("site", &name)]).await;

    let page = browser.get("/audit").await.body;
    let entries = running.audit().await;
    for what in ["page login", "key create", "site approve", "site limit", "key revoke", "site remove"] {
        let entry = entries.iter().find(|entry| entry.what == what).unwrap_or_else(|| panic!("no {what}"));
        assert!(entry.who.starts_with("page user "), "{entry:?}");
        assert!(page.contains(what), "{what}");
    }
}

#[tokio::test]
async fn without_the_authoritys_key_the_page_says_how_to_sign() {
    let running = with_page().await;
    let key = running.key_for(1, &[], std::time::Duration::from_secs(60), true).await;
    let _waiting = running.connect(&Gateway::new("berlin", &[]).with_key(&key)).await.unwrap();
    running.done(Request::RemoveAuthority).await;
    let mut browser = Browser::logged_in(&running).await;
    let page = browser.get("/sites").await.body;
    assert!(page.contains("berlin") && page.contains("authority requests"), "{page}");
    assert!(!page.contains("value=\"approve\""), "{page}");
    let page = browser.act("/sites", &[("action", "approve"), ("site", "berlin")]).await;
    assert!(page.contains("notice error"), "{page}");
    assert_eq!(running.sites().await[0].site.state.as_str(), "pending");
}

#[tokio::test]
async fn a_policy_is_previewed_and_not_put_over_somebody_elses() {
    let running = with_page().await;
    let (_, mut a) = running.site("amsterdam", &["10.1.0.0/16"], &["hub"]).await;
    let (berlin, mut b) = running.site("berlin", &["10.2.0.0/16"], &[]).await;
    let _c = running.site("cadiz", &[], &[]).await;
    b.say_address("192.0.2.1:1").await;
    a.until("berlin has spoken", |a| a.addresses(&berlin.key) == ["192.0.2.1:1"]).await;
    let mut browser = Browser::logged_in(&running).await;
    let page = browser.get("/policy").await.body;
    let base = page.split("name=\"base\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let token = browser.token.clone();
    let post = |action, policy| [("token", &token[..]), ("base", &base[..]), ("action", action), ("policy", policy)];

    let reply = browser.post("/policy", &post("preview", "{\n  \"Links\": [[\"a\"]]\n}")).await;
    assert!(reply.body.contains("field Links[0]") && reply.body.contains("at line 2 column"), "{}", reply.body);
    let wanted = r#"{"Links": [["*", "tag:hub"], {"From": "cadiz", "To": "berlin", "Allow": ["icmp"]}],
        "Subnets": {"berlin": []}}"#;
    let reply = browser.post("/policy", &post("preview", wanted)).await.body;
    assert!(reply.contains("other services are allowed: 1") && reply.contains("berlin – cadiz"), "{reply}");
    assert!(reply.contains("Sites whose announced subnets change: 1") && reply.contains("10.2.0.0/16"), "{reply}");
    let too_old = "berlin has no tunnel to cadiz: its gateway is too old";
    assert!(reply.contains("Sites that this policy cuts off: 1") && reply.contains(too_old), "{reply}");
    assert!(!browser.get("/sites").await.body.contains(too_old), "that policy is not in force");
    let reply = browser.post("/policy", &post("preview", r#"{"Links": [["amsterdam", "tag:hub"]]}"#)).await.body;
    assert!(reply.contains("Links that end, with their tunnels: 3"), "{reply}");
    assert_eq!(running.coordinator_policy().await, Policy::default(), "a preview changes nothing");

    running.policy(r#"{"Links": []}"#).await;
    for action in ["preview", "apply"] {
        let reply = browser.post("/policy", &post(action, wanted)).await;
        assert_eq!(reply.header("location"), "/policy", "{action}");
        let page = browser.get("/policy").await.body;
        assert!(page.contains("somebody has changed the policy in the meantime"), "{action}: {page}");
    }
    assert_eq!(running.coordinator_policy().await, Policy::parse(r#"{"Links": []}"#).unwrap());

    let page = browser.get("/policy").await.body;
    let base = page.split("name=\"base\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let reply = browser.post("/policy", &[("token", &token), ("base", &base), ("policy", wanted)]).await.body;
    assert!(reply.contains("New links: 3"), "{reply}");
    let fields = [("base", &base[..]), ("action", "apply"), ("policy", wanted)];
    assert!(browser.act("/policy", &fields).await.contains("the policy is in force"));
    assert_eq!(running.coordinator_policy().await, Policy::parse(wanted).unwrap());
    let entry = running.audit().await.pop().unwrap();
    assert!(entry.what == "policy set" && entry.who.starts_with("page user "), "{entry:?}");
}

impl Running {
    async fn coordinator_policy(&self) -> Policy {
        let Answer::Policy(policy) = self.ask(Request::ShowPolicy).await else { panic!("no policy") };
        policy
    }
}
