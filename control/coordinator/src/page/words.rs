//! Numbers and kinds in words for people.

use penstock_proto::coordination::{Dependence, NatType, PathKind};

use crate::time::{now, rough};

/// A list, or a dash.
pub(super) fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "–".into() } else { items.join(", ") }
}

/// A time in seconds since 1970, relative to now.
pub(super) fn from_now(time: u64) -> String {
    let now = now();
    if time > now { format!("in {}", rough(time - now)) } else { format!("{} ago", rough(now - time)) }
}

/// Bytes per second, shown in bits.
pub(super) fn rate(bytes: u64) -> String {
    let bits = bytes as f64 * 8.0;
    match bits {
        ..1e3 => format!("{bits:.0} bit/s"),
        ..1e6 => format!("{:.0} kbit/s", bits / 1e3),
        ..1e9 => format!("{:.1} Mbit/s", bits / 1e6),
        _ => format!("{:.2} Gbit/s", bits / 1e9),
    }
}

/// Microseconds.
pub(super) fn round_trip(micros: u32) -> String {
    let millis = f64::from(micros) / 1e3;
    if millis < 10.0 { format!("{millis:.1} ms") } else { format!("{millis:.0} ms") }
}

/// A kind of path as a word, which is also the CSS class of its symbol.
pub(super) fn path(path: Option<PathKind>) -> &'static str {
    match path {
        Some(PathKind::Direct) => "direct",
        Some(PathKind::Relay) => "relayed",
        Some(PathKind::None) => "down",
        None => "unknown",
    }
}

/// The usual names of NATs (RFC 3489, section 5).
pub(super) fn nat(nat: Option<NatType>) -> &'static str {
    use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    let Some(NatType { mapping, filtering, udp_blocked }) = nat else { return "–" };
    match (udp_blocked, mapping, filtering) {
        (true, ..) => "UDP blocked",
        (_, Some(AddressDependent | AddressAndPortDependent), _) => "symmetric",
        (_, Some(EndpointIndependent), Some(EndpointIndependent)) => "none, or full cone",
        (_, Some(EndpointIndependent), Some(AddressDependent)) => "address-restricted",
        (_, Some(EndpointIndependent), Some(AddressAndPortDependent)) => "port-restricted",
        _ => "not known yet",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_have_the_unit_that_fits() {
        let rates = [0, 100, 125_000, 12_500_000, 1_250_000_000].map(super::rate);
        assert_eq!(rates, ["0 bit/s", "800 bit/s", "1.0 Mbit/s", "100.0 Mbit/s", "10.00 Gbit/s"]);
        assert_eq!([800, 12_345].map(super::round_trip), ["0.8 ms", "12 ms"]);
    }
}
