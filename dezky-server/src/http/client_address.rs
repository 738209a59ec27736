//! The client's address behind trusted proxies.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use axum::http::HeaderMap;
use dezky_core::written_address;

/// A network, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "must be an address or a network, such as 10.0.0.0/8 or ::1";
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address = address.parse::<IpAddr>().map_err(|_| EXPECTED)?.to_canonical();
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), |p| p.parse().map_err(|_| EXPECTED))?;
        if prefix > bits {
            return Err(EXPECTED);
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    /// Whether `address` lies in it; a v4-mapped address counts as v4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let different = u32::from(network) ^ u32::from(address);
                u32::from(self.prefix) <= different.leading_zeros()
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let different = u128::from(network) ^ u128::from(address);
                u32::from(self.prefix) <= different.leading_zeros()
            }
            _ => false,
        }
    }
}

/// The client's address, from the peer's and the headers; see [`client_ip`].
pub(crate) fn client_address(
    peer: SocketAddr,
    headers: &HeaderMap,
    trusted_proxies: &[Network],
) -> IpAddr {
    let values = headers.get_all("x-forwarded-for").iter();
    let values: Vec<_> = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    client_ip(peer.ip(), values.iter().map(|value| &**value), trusted_proxies)
}

/// The client's address: the peer's, or, where the peer is a trusted proxy, the first
/// untrusted address of `forwarded` from the right. `forwarded` holds the values of
/// X-Forwarded-For in their order.
///
/// Entries left of the result are ignored, because the client can forge them. Empty
/// entries are skipped, as RFC 9110 section 5.6.1 asks of lists; an entry that is not
/// an address ends the scan.
pub fn client_ip<'a>(
    peer: IpAddr,
    forwarded: impl DoubleEndedIterator<Item = &'a str>,
    trusted: &[Network],
) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    let hops = forwarded.rev().flat_map(|value| value.rsplit(',')).map(str::trim);
    for hop in hops.filter(|hop| !hop.is_empty()) {
        if !is_trusted(client) {
            break;
        }
        let Some(address) = written_address(hop) else { break };
        client = address.to_canonical();
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let trusted: Vec<Network> = trusted.iter().map(|text| text.parse().unwrap()).collect();
        client_ip(peer.parse().unwrap(), forwarded.iter().copied(), &trusted).to_string()
    }

    #[test]
    fn the_header_of_an_untrusted_peer_is_not_believed() {
        assert_eq!(client("203.0.113.7", &["1.2.3.4"], &[]), "203.0.113.7");
        assert_eq!(client("203.0.113.7", &["1.2.3.4"], &["10.0.0.0/8"]), "203.0.113.7");
    }

    #[test]
    fn the_walk_goes_from_the_right_past_trusted_proxies() {
        let trusted = ["10.0.0.0/8", "::1"];
        assert_eq!(client("10.0.0.1", &["6.6.6.6, 203.0.113.7"], &trusted), "203.0.113.7");
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6, 203.0.113.7, 10.9.9.9"], &trusted),
            "203.0.113.7"
        );
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6", "203.0.113.7", "10.2.2.2"], &trusted),
            "203.0.113.7"
        );
        assert_eq!(client("::ffff:10.0.0.1", &["[2001:db8::7]:443"], &trusted), "2001:db8::7");
        assert_eq!(client("::1", &["203.0.113.7:55555"], &trusted), "203.0.113.7");
        assert_eq!(client("10.0.0.1", &["6.6.6.6, unknown"], &trusted), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &[], &trusted), "10.0.0.1");
    }

    #[test]
    fn empty_entries_are_skipped_and_brackets_need_no_port() {
        for value in ["203.0.113.7,", "203.0.113.7 , ,", "6.6.6.6,203.0.113.7,,10.1.1.1,"] {
            assert_eq!(client("10.0.0.1", &[value], &["10.0.0.0/8"]), "203.0.113.7", "{value}");
        }
        assert_eq!(client("10.0.0.1", &["203.0.113.7", ""], &["10.0.0.0/8"]), "203.0.113.7");
        assert_eq!(client("10.0.0.1", &[",", " "], &["10.0.0.0/8"]), "10.0.0.1");
        for value in ["[2001:db8::7]", "2001:db8::7", "[2001:db8::7]:443"] {
            assert_eq!(client("::1", &[value], &["::1"]), "2001:db8::7", "{value}");
        }
        for value in ["[2001:db8::7", "2001:db8::7]", "[203.0.113.7]:x", "203.0.113.7:99999"] {
            assert_eq!(client("::1", &[value], &["::1"]), "::1", "{value} is not an address");
        }
    }

    #[test]
    fn networks_are_parsed_within_their_bounds() {
        for bad in ["", "10.0.0.0/33", "10.0.0.0/-1", "::/129", "example.com"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
        assert!("0.0.0.0/0".parse::<Network>().unwrap().contains("9.9.9.9".parse().unwrap()));
        assert!(!"0.0.0.0/0".parse::<Network>().unwrap().contains("::1".parse().unwrap()));
    }
}
