//! The names and addresses under which others reach this coordinator.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `HOST[:PORT]`; an IPv6 address that has a port stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// A DNS name or an address, without brackets.
    pub host: String,
    /// Not set: the port that the listener has.
    pub port: Option<u16>,
}

/// What is no `HOST[:PORT]`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` cannot be advertised: expected HOST or HOST:PORT, such as mesh.example.org:7443 or [2001:db8::1]:7443"
)]
pub struct AdvertiseError(String);

impl FromStr for Advertise {
    type Err = AdvertiseError;

    fn from_str(text: &str) -> Result<Self, AdvertiseError> {
        let wrong = || AdvertiseError(text.to_owned());
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<Ipv6Addr>().map_err(|_| wrong())?;
            match rest {
                "" => (host, None),
                _ => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            }
        } else if text.parse::<Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
        };
        let port = port.map(str::parse).transpose().map_err(|_| wrong())?.filter(|port| *port != 0);
        let is_name = host.len() <= 253
            && !host.is_empty()
            && host.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && !label.starts_with('-')
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            });
        if !is_name && host.parse::<IpAddr>().is_err() {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Advertise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let brackets = self.host.contains(':');
        match self.port {
            Some(port) if brackets => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None if brackets => write!(f, "[{}]", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl<'de> Deserialize<'de> for Advertise {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Advertise {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// What is advertised when nothing was named: the address that is listened on when it is a
/// single one, else the host's name and every address of it that others can reach.
pub(super) fn default_for(listen: IpAddr) -> Vec<Advertise> {
    let of = |host: String| Advertise { host, port: None };
    if !listen.is_unspecified() {
        return vec![of(listen.to_string())];
    }
    let mut all: Vec<Advertise> = gethostname::gethostname()
        .to_str()
        .and_then(|name| name.parse().ok())
        .filter(|name: &Advertise| name.port.is_none())
        .into_iter()
        .collect();
    for interface in if_addrs::get_if_addrs().unwrap_or_default() {
        let ip = interface.ip();
        // A link-local IPv6 address means nothing without the name of the reader's interface.
        let local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let served = listen.is_ipv6() || ip.is_ipv4();
        let address = of(ip.to_string());
        if !ip.is_loopback() && !local && served && !all.contains(&address) {
            all.push(address);
        }
    }
    if all.is_empty() {
        all.push(of("127.0.0.1".to_owned()));
    }
    all
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn hosts_with_and_without_ports_are_read_and_shown_alike() {
        for (text, host, port) in [
            ("mesh.example.org", "mesh.example.org", None),
            ("mesh:7443", "mesh", Some(7443)),
            ("10.0.0.1:1", "10.0.0.1", Some(1)),
            ("[2001:db8::1]:7443", "2001:db8::1", Some(7443)),
            ("[::1]", "::1", None),
        ] {
            let read: Advertise = text.parse().unwrap();
            assert_eq!((read.host.as_str(), read.port), (host, port), "{text}");
            assert_eq!(read.to_string(), text);
        }
        assert_eq!("2001:db8::1".parse::<Advertise>().unwrap().to_string(), "[2001:db8::1]");
    }

    #[test]
    fn what_no_client_could_dial_is_refused() {
        for text in [
            "",
            ":7443",
            "a b",
            "host:",
            "host:70000",
            "host:x",
            "[::1",
            "[x]:1",
            "https://x",
            "-x",
            "a..b",
            "x:1:2",
        ] {
            assert_eq!(text.parse::<Advertise>(), Err(AdvertiseError(text.into())), "{text}");
        }
    }

    #[test]
    fn something_is_always_advertised() {
        assert_eq!(default_for("127.0.0.1".parse().unwrap()), ["127.0.0.1".parse().unwrap()]);
        assert!(!default_for("0.0.0.0".parse().unwrap()).is_empty());
    }
}
