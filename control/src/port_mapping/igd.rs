//! UPnP Internet Gateway Device: just enough of it to map a UDP port (WANIPConnection:1, section 2.4).
//!
//! ```text
//!   M-SEARCH (UDP 1900) ─► LOCATION ─► description (XML): service, control URL ─► actions (SOAP)
//! ```
//! This is our own code because it must ask only the router, follow no URL to another host, and read no more than it
//! needs. HTTP/1.0 keeps bodies in one piece: such a request is never answered in chunks (RFC 9112, section 7.1).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use penstock_connect::{bind_udp, connect_tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// SSDP (UPnP Device Architecture 1.1, section 1).
const SSDP_PORT: u16 = 1900;
/// Time limit of the whole search, whose answer may come a second late (MX), and of the description.
const SEARCH_LIMIT: Duration = Duration::from_secs(2);
/// The search is sent twice, since it may be lost.
const REPETITION: Duration = Duration::from_millis(500);
/// Time limit of one action.
const ACTION_LIMIT: Duration = Duration::from_secs(2);
/// Longest SSDP answer, in bytes: a datagram of one frame.
const DATAGRAM_LIMIT: usize = 1500;
/// Longest HTTP answer, in bytes; routers' descriptions have 4 to 40 kB.
const DOCUMENT_LIMIT: u64 = 128 * 1024;
/// Services that map ports, the best first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// ConflictInMappingEntry: the external port belongs to somebody else.
const CONFLICT: u16 = 718;
/// OnlyPermanentLeasesSupported.
const PERMANENT_ONLY: u16 = 725;
/// What a router's web page shows with the mapping.
const DESCRIPTION: &str = "Penstock";

/// An action that was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum IgdError {
    /// There was no answer.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The device refused it, with this error code.
    #[error("the router refuses with UPnP error {0}")]
    Refused(u16),
    /// The answer makes no sense.
    #[error("the router's answer is empty")]
    Unreadable,
}

/// A URL on the router's HTTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// The server.
    pub address: SocketAddr,
    /// Begins with a slash.
    pub path: String,
}

impl Url {
    fn parse(text: &str, router: IpAddr) -> Option<Self> {
        let rest = text.strip_prefix("http://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let address = authority.parse().or_else(|_| authority.parse().map(|ip| SocketAddr::new(ip, 80))).ok()?;
        (address.ip() == router).then(|| absolute(path)).flatten().map(|path| Self { address, path })
    }
}

/// A router that maps ports.
#[derive(Clone, Debug)]
pub struct Igd {
    control: Url,
    service: &'static str,
    /// The firewall mark of our sockets.
    mark: u32,
}

impl Igd {
    /// Asks `router` from our address `local`, with this firewall mark.
    pub async fn find(router: IpAddr, local: IpAddr, mark: u32) -> Option<Self> {
        let deadline = Instant::now() + SEARCH_LIMIT;
        let url = timeout_at(deadline, search(router, local, mark)).await.ok()?.ok()?;
        let request = format!("GET {} HTTP/1.0\r\nHost: {}\r\n\r\n", url.path, url.address);
        let (_, body) = exchange(url.address, mark, &request, deadline).await.ok()?;
        let (service, control) = service(&body, &url)?;
        Some(Self { control, service, mark })
    }

    /// The router's external address.
    pub async fn external_address(&self) -> Result<IpAddr, IgdError> {
        let body = self.act("GetExternalIPAddress", &[]).await?;
        let text = text_of(&body, "NewExternalIPAddress").ok_or(IgdError::Unreadable)?;
        text.trim().parse().map_err(|_| IgdError::Unreadable)
    }

    /// Maps a UDP port to `local`. Returns whether the mapping is permanent, because the router knows no other kind.
    pub async fn map(&self, external: u16, local: SocketAddr, lifetime: Duration) -> Result<bool, IgdError> {
        match self.add(external, local, lifetime.as_secs()).await {
            Err(IgdError::Refused(PERMANENT_ONLY)) => self.add(external, local, 0).await.map(|()| true),
            outcome => outcome.map(|()| false),
        }
    }

    async fn add(&self, external: u16, local: SocketAddr, seconds: u64) -> Result<(), IgdError> {
        let arguments = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", external.to_string()),
            ("NewProtocol", "UDP".into()),
            ("NewInternalPort", local.port().to_string()),
            ("NewInternalClient", local.ip().to_string()),
            ("NewEnabled", "1".into()),
            ("NewPortMappingDescription", DESCRIPTION.into()),
            ("NewLeaseDuration", seconds.to_string()),
        ];
        self.act("AddPortMapping", &arguments).await.map(drop)
    }

    /// Ends a mapping.
    pub async fn unmap(&self, external: u16) -> Result<(), IgdError> {
        let arguments = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", external.to_string()),
            ("NewProtocol", "UDP".into()),
        ];
        self.act("DeletePortMapping", &arguments).await.map(drop)
    }

    /// `arguments` need no escaping: they are numbers, addresses and our own words.
    async fn act(&self, action: &str, arguments: &[(&str, String)]) -> Result<String, IgdError> {
        let Self { control, service, mark } = self;
        let arguments: String = arguments.iter().map(|(name, value)| format!("<{name}>{value}</{name}>")).collect();
        let body = format!(
            "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{action} xmlns:u=\"{service}\">{arguments}</u:{action}></s:Body></s:Envelope>"
        );
        let request = format!(
            "POST {} HTTP/1.0\r\nHost: {}\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
             SOAPAction: \"{service}#{action}\"\r\nContent-Length: {}\r\n\r\n{body}",
            control.path,
            control.address,
            body.len()
        );
        let (status, body) = exchange(control.address, *mark, &request, Instant::now() + ACTION_LIMIT).await?;
        if status == 200 {
            return Ok(body);
        }
        let code = text_of(&body, "errorCode").and_then(|code| code.trim().parse().ok());
        Err(IgdError::Refused(code.ok_or(IgdError::Unreadable)?))
    }
}

impl IgdError {
    /// Whether another external port may be available.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(CONFLICT))
    }
}

async fn search(router: IpAddr, local: IpAddr, mark: u32) -> io::Result<Url> {
    // Only to the router (UPnP Device Architecture 1.1, section 1.3.2: unicast M-SEARCH).
    let request = format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {router}:{SSDP_PORT}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
         ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    );
    let socket = bind_udp((local, 0).into(), mark)?;
    let mut datagram = [0; DATAGRAM_LIMIT];
    let mut repeat = tokio::time::interval(REPETITION);
    let mut left = 2;
    loop {
        tokio::select! {
            _ = repeat.tick(), if left > 0 => {
                left -= 1;
                socket.send_to(request.as_bytes(), (router, SSDP_PORT)).await?;
            }
            received = socket.recv_from(&mut datagram) => {
                let (length, from) = received?;
                if from.ip() == router && let Some(url) = location(&datagram[..length], router) {
                    return Ok(url);
                }
            }
        }
    }
}

/// One request and its whole answer: status and body.
async fn exchange(server: SocketAddr, mark: u32, request: &str, deadline: Instant) -> io::Result<(u16, String)> {
    let whole = async {
        let mut stream = connect_tcp(server, mark).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(DOCUMENT_LIMIT).read_to_end(&mut answer).await?;
        parse_answer(&answer).ok_or_else(|| io::Error::other("no HTTP answer"))
    };
    timeout_at(deadline, whole).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The location that an SSDP answer names, if it is on `router`.
#[must_use]
pub fn location(answer: &[u8], router: IpAddr) -> Option<Url> {
    let text = str::from_utf8(answer).ok()?;
    let (head, lines) = text.split_once("\r\n")?;
    if !head.starts_with("HTTP/1.1 200") {
        return None;
    }
    let headers = lines.lines().filter_map(|line| line.split_once(':'));
    let mut locations = headers.filter(|(name, _)| name.trim().eq_ignore_ascii_case("location"));
    Url::parse(locations.next()?.1.trim(), router)
}

/// A path that is safe in a request line.
fn absolute(path: &str) -> Option<String> {
    let sound = path.bytes().all(|byte| byte.is_ascii_graphic());
    sound.then(|| if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
}

/// Status and body of an HTTP answer.
#[must_use]
pub fn parse_answer(answer: &[u8]) -> Option<(u16, String)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let status = str::from_utf8(answer.get(..12)?).ok()?.strip_prefix("HTTP/1.")?.get(2..)?.parse().ok()?;
    Some((status, String::from_utf8_lossy(&answer[end + 4..]).into_owned()))
}

/// The best service in a description, and its control URL, if that is on the same router.
#[must_use]
pub fn service(description: &str, at: &Url) -> Option<(&'static str, Url)> {
    let document = roxmltree::Document::parse(description).ok()?;
    let child = |node: roxmltree::Node<'_, '_>, name: &str| {
        let found = node.children().find(|child| child.tag_name().name() == name)?;
        found.text().map(|text| text.trim().to_owned())
    };
    SERVICES.into_iter().find_map(|wanted| {
        let mut services = document.descendants().filter(|node| node.tag_name().name() == "service");
        let node = services.find(|node| child(*node, "serviceType").as_deref() == Some(wanted))?;
        let url = child(node, "controlURL")?;
        let control = if url.starts_with("http://") {
            Url::parse(&url, at.address.ip())?
        } else {
            Url { address: at.address, path: absolute(&url)? }
        };
        Some((wanted, control))
    })
}

/// The text of the first element with that name.
#[must_use]
pub fn text_of(document: &str, name: &str) -> Option<String> {
    let document = roxmltree::Document::parse(document).ok()?;
    let node = document.descendants().find(|node| node.tag_name().name() == name)?;
    node.text().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> IpAddr {
        "192.168.1.1".parse().unwrap()
    }

    fn at(path: &str) -> Url {
        Url { address: SocketAddr::new(router(), 5000), path: path.into() }
    }

    #[test]
    fn only_a_location_on_the_router_is_followed() {
        let answer = |url: &str| format!("HTTP/1.1 200 OK\r\nST: x\r\nLocation: {url}\r\n\r\n");
        let found = |url: &str| location(answer(url).as_bytes(), router());
        assert_eq!(found("http://192.168.1.1:5000/rootDesc.xml"), Some(at("/rootDesc.xml")));
        assert_eq!(found("http://192.168.1.1").map(|url| url.address.port()), Some(80));
        for foreign in [
            "http://192.168.1.2:5000/",
            "https://192.168.1.1/",
            "http://router/",
            "http://192.168.1.1:5000/a b",
            "http://192.168.1.1@evil/",
            "",
            "file:///etc/passwd",
        ] {
            assert_eq!(found(foreign), None, "{foreign}");
        }
        assert_eq!(location(b"NOTIFY * HTTP/1.1\r\nLocation: http://192.168.1.1/\r\n\r\n", router()), None);
    }

    #[test]
    fn the_best_service_is_taken_and_only_on_the_router() {
        let description = |services: &[(&str, &str)]| {
            let services: String = services
                .iter()
                .map(|(kind, url)| {
                    format!("<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>")
                })
                .collect();
            format!("<root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device>{services}</device></root>")
        };
        let url = at("/rootDesc.xml");
        let text = description(&[(SERVICES[2], "/ppp"), ("urn:other", "/o"), (SERVICES[1], " ctl/IPConn ")]);
        assert_eq!(service(&text, &url), Some((SERVICES[1], at("/ctl/IPConn"))));
        let text = description(&[(SERVICES[1], "http://192.168.1.1:5000/c")]);
        assert_eq!(service(&text, &url), Some((SERVICES[1], at("/c"))));
        for wrong in ["http://192.168.1.9/c", "/c\r\nX: y"] {
            assert_eq!(service(&description(&[(SERVICES[1], wrong)]), &url), None, "{wrong:?}");
        }
        assert_eq!(service("<root>", &url), None);
        // No document type, and so no entities that could expand.
        assert_eq!(service("<!DOCTYPE r [<!ENTITY a \"b\">]><r>&a;</r>", &url), None);
    }

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        assert_eq!(parse_answer(b"HTTP/1.1 500 Error\r\nA: b\r\n\r\n<x/>"), Some((500, "<x/>".into())));
        for wrong in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\r\n\r\n"] {
            assert_eq!(parse_answer(wrong), None);
        }
        let fault = "<s:Envelope xmlns:s=\"a\"><e xmlns=\"b\"><errorCode>718</errorCode></e></s:Envelope>";
        assert_eq!(text_of(fault, "errorCode").as_deref(), Some("718"));
    }
}
