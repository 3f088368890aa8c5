//! The page in a real browser: headless Chromium, driven by its DevTools protocol.
//!
//! `PENSTOCK_TEST_PICTURES=DIRECTORY` leaves pictures of the pages there, as docs/pictures has them.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use penstock_coordinator::admin::{Answer, Request};
use penstock_coordinator::registry::HISTORY_EVERY;
use penstock_proto::coordination::{Dependence, GatewayMessage, NatType, PathKind, Reachability};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::client::Gateway;
use crate::page::{tell, with_page};
use crate::running::Running;

/// A browser on a busy machine may take its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one tab.
struct Browser {
    child: Child,
    // Holds its files while it runs.
    _profile: tempfile::TempDir,
    socket: WebSocketStream<TcpStream>,
    session: Option<String>,
    asked: u64,
    /// Violations of the content security policy, failed requests, exceptions.
    complaints: Vec<String>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Browser {
    /// None where there is no Chromium.
    async fn start() -> Option<Self> {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new("chromium");
        // Its sandbox does not work for root. The only pages it sees are ours.
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-extensions"]);
        command.args(["--disable-sync", "--hide-scrollbars", "--no-proxy-server", "--remote-debugging-port=0"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        let child = command.env("HOME", profile.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let Ok(mut child) = child else {
            assert!(std::env::var_os("PENSTOCK_TEST_REQUIRED").is_none(), "there is no chromium");
            eprintln!("skipped: the page in a browser: chromium (a Debian package) is not there");
            return None;
        };
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let url = lines.find_map(|line| line.strip_prefix("DevTools listening on ").map(str::to_owned));
        let url = url.expect("chromium tells where it listens");
        // It stops if nobody reads its output.
        std::thread::spawn(move || lines.for_each(drop));
        let address = url.strip_prefix("ws://").unwrap().split('/').next().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(&url, stream).await.unwrap();
        let (session, complaints) = (None, Vec::new());
        let mut browser = Self { child, _profile: profile, socket, session, asked: 0, complaints };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.ask("Target.attachToTarget", attach).await;
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.ask(domain, json!({})).await;
        }
        Some(browser)
    }

    async fn ask(&mut self, method: &str, parameters: Value) -> Value {
        let answer = self.answer(method, parameters).await;
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    async fn answer(&mut self, method: &str, parameters: Value) -> Value {
        self.asked += 1;
        let mut question = json!({"id": self.asked, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            question["sessionId"] = session.as_str().into();
        }
        self.socket.send(Message::text(question.to_string())).await.unwrap();
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.expect("chromium answers").unwrap().unwrap();
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            match message["method"].as_str() {
                Some("Log.entryAdded" | "Runtime.exceptionThrown") => {
                    self.complaints.push(message["params"].to_string())
                }
                _ if message["id"] == self.asked => return message,
                _ => {}
            }
        }
    }

    /// The value of an expression in the page; null while the page is being left.
    async fn evaluate(&mut self, expression: &str) -> Value {
        let answer = self.answer("Runtime.evaluate", json!({"expression": expression, "returnByValue": true})).await;
        answer["result"]["result"]["value"].clone()
    }

    async fn until(&mut self, condition: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.evaluate(&format!("Boolean({condition})")).await != true {
            let text = self.evaluate("location.href + ' ' + document.body.innerText").await;
            assert!(Instant::now() < deadline, "{condition} does not come: {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn go(&mut self, url: &str) {
        self.ask("Page.navigate", json!({"url": url})).await;
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'").await;
    }

    /// Clicks the button with these words.
    async fn click(&mut self, words: &str) {
        let found = format!("[...document.querySelectorAll('button')].find(b => b.textContent === {words:?})");
        self.until(&found).await;
        self.evaluate(&format!("{found}.click()")).await;
    }

    async fn colours(&mut self, scheme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.ask("Emulation.setEmulatedMedia", json!({"features": [feature]})).await;
    }

    /// A picture of the page, for the book, if somebody wants one.
    async fn picture(&mut self, name: &str, height: u32) {
        let size = json!({"width": 1180, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.ask("Emulation.setDeviceMetricsOverride", size).await;
        let picture = self.ask("Page.captureScreenshot", json!({"format": "png"})).await;
        let picture = STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        assert!(picture.starts_with(b"\x89PNG"));
        if let Some(directory) = pictures() {
            std::fs::write(PathBuf::from(directory).join(name), picture).unwrap();
        }
    }
}

/// Where pictures for the book are to be left.
fn pictures() -> Option<OsString> {
    std::env::var_os("PENSTOCK_TEST_PICTURES")
}

fn nat(mapping: Dependence, filtering: Dependence) -> GatewayMessage {
    let nat_type = Some(NatType { mapping: Some(mapping), filtering: Some(filtering), udp_blocked: false });
    GatewayMessage::Reachability(Reachability { nat_type, ..Reachability::default() })
}

const POLICY: &str = r#"{
  "Links": [
    ["tag:branch", "tag:hub"],
    ["berlin", "cadiz"],
    { "From": "dublin", "To": "espoo", "Allow": ["tcp/443", "icmp"] }
  ],
  "Subnets": { "faro": ["10.0.0.0/8"] }
}"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_sees_approves_and_changes_the_policy_in_chromium() {
    let Some(mut browser) = Browser::start().await else { return };
    let running = with_page().await;
    running.policy(r#"{"Links": [["*", "tag:hub"], ["cadiz", "dublin"]]}"#).await;
    use Dependence::{AddressAndPortDependent, EndpointIndependent};
    let (hub, mut at_hub) = running.site("amsterdam", &["10.1.0.0/16"], &["hub"]).await;
    at_hub.send(&nat(EndpointIndependent, EndpointIndependent)).await;
    let direct = (PathKind::Direct, 41_000_000, "the peer answers directly");
    let relayed = (PathKind::Relay, 900_000, "both NATs map endpoint-dependently");
    let mut connections = Vec::new();
    let told = [
        ("berlin", direct, EndpointIndependent),
        ("cadiz", relayed, AddressAndPortDependent),
        ("dublin", (PathKind::Direct, 240_000, "the peer answers directly"), EndpointIndependent),
        ("espoo", (PathKind::Direct, 0, "the peer answers directly"), EndpointIndependent),
    ];
    for (number, (name, (path, rate, reason), mapping)) in told.into_iter().enumerate() {
        let subnet = format!("10.{}.0.0/16", number + 2);
        let (_, mut connection) = running.site(name, &[&subnet], &["branch"]).await;
        connection.send(&nat(mapping, AddressAndPortDependent)).await;
        tell(&mut connection, &hub, path, rate, reason).await;
        connections.push(connection);
    }
    let key = running.key_for(1, &["branch"], Duration::from_secs(3600), true).await;
    let waiting = Gateway::new("faro", &["10.6.0.0/16", "203.0.113.0/28"]).with_key(&key);
    let _waiting = running.connect(&waiting).await.unwrap();

    let Answer::Done(link) = running.ask(Request::PageLogin).await else { panic!("no link") };
    browser.colours("light").await;
    browser.go(&link).await;
    browser.click("Log in").await;
    browser.until("location.pathname === '/' && document.querySelectorAll('.picture .site > text').length === 5").await;
    browser.until("document.querySelector('.picture .link.relayed')").await;
    if pictures().is_some() {
        // Makes some history to see.
        for round in 0..30 {
            for (number, connection) in connections.iter_mut().enumerate() {
                let swing = 1.0 + (f64::from(round) * 0.4 + number as f64 * 2.0).sin() * 0.6;
                let (path, rate, reason) = told[number].1;
                tell(connection, &hub, path, (rate as f64 * swing) as u64, reason).await;
            }
            tokio::time::sleep(HISTORY_EVERY).await;
        }
    }
    browser.until("document.querySelector('.sparkline polyline')").await;
    browser.picture("page-overview.png", 1330).await;
    browser.colours("dark").await;
    browser.picture("page-overview-dark.png", 1060).await;
    browser.colours("light").await;

    // The page refreshes itself, and what it shows then is what the gateway says now.
    tell(&mut connections[1], &hub, PathKind::None, 0, "no UDP gets out here").await;
    browser
        .until("document.querySelector('.picture .link.down') && document.getElementById('live').dataset.refreshed")
        .await;

    let page = format!("http://{}", running.page());
    browser.go(&format!("{page}/sites")).await;
    browser.picture("page-sites.png", 760).await;
    browser.click("Approve exactly these subnets").await;
    browser.until("document.querySelector('.notice')?.innerText.includes('faro is approved')").await;
    let sites = running.sites().await;
    assert!(sites.iter().any(|status| status.site.name.as_str() == "faro" && status.site.in_force.len() == 2));

    browser.go(&format!("{page}/policy")).await;
    browser.evaluate(&format!("document.querySelector('textarea').value = {POLICY:?}")).await;
    browser.click("Show what would change").await;
    browser.until("document.body.innerText.includes('What would change')").await;
    browser.picture("page-policy.png", 900).await;
    browser.click("Put this policy in force").await;
    browser.until("document.querySelector('.notice')?.innerText.includes('in force')").await;
    assert_eq!(running.audit().await.pop().unwrap().what, "policy set");

    // A line that is not level: the rate of the link that has gone down.
    browser.go(&page).await;
    let lines = "[...document.querySelectorAll('.sparkline polyline')]";
    browser.until(&format!("{lines}.some(line => line.getBoundingClientRect().height > 10)")).await;

    for path in ["/keys", "/audit"] {
        browser.go(&format!("{page}{path}")).await;
        browser.until("document.querySelector('table')").await;
    }
    browser.ask("Emulation.setScriptExecutionDisabled", json!({"value": true})).await;
    browser.go(&page).await;
    browser.until("document.querySelectorAll('.picture .site > text').length === 6").await;
    browser.ask("Emulation.setScriptExecutionDisabled", json!({"value": false})).await;

    browser.click("Log out").await;
    browser.until("location.pathname === '/login'").await;
    browser.go(&page).await;
    browser.until("location.pathname === '/login'").await;
    let complaints: Vec<_> = browser.complaints.iter().filter(|text| !text.contains("favicon")).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

/// Two hundred sites, for whoever wants to see whether that can be read.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sites_are_drawn() {
    if std::env::var_os("PENSTOCK_TEST_LONG").is_none() {
        return eprintln!("skipped: two hundred sites in a browser: PENSTOCK_TEST_LONG is not set");
    }
    let Some(mut browser) = Browser::start().await else { return };
    let running: Running = with_page().await;
    running.policy(r#"{"Links": [["*", "tag:hub"]]}"#).await;
    let (hub, _at_hub) = running.site("amsterdam", &[], &["hub"]).await;
    let mut connections = Vec::new();
    for number in 1..200 {
        let (_, mut connection) = running.site(&format!("branch-{number:03}"), &[], &["branch"]).await;
        let path = match number % 20 {
            0 => PathKind::None,
            1..4 => PathKind::Relay,
            _ => PathKind::Direct,
        };
        tell(&mut connection, &hub, path, number * 100_000, "the peer answers directly").await;
        connections.push(connection);
    }
    let Answer::Done(link) = running.ask(Request::PageLogin).await else { panic!("no link") };
    browser.go(&link).await;
    browser.click("Log in").await;
    browser.until("document.querySelectorAll('.picture .site > text').length === 200").await;
    browser.picture("page-two-hundred.png", 1000).await;
}
