//! Where an upstream is and how it is spoken to, as people write it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use axum::http::uri::{Authority, PathAndQuery};
use rustls_pki_types::ServerName;

/// Port of DNS over UDP and TCP (RFC 1035).
const DNS_PORT: u16 = 53;
/// Port of DNS over TLS (RFC 7858).
const TLS_PORT: u16 = 853;
/// Port of DNS over HTTPS (RFC 8484).
const HTTPS_PORT: u16 = 443;
/// Where public resolvers answer over HTTPS, unless the address says otherwise.
const HTTPS_PATH: &str = "/dns-query";

/// A recursive DNS server: `10.1.0.53`, `10.1.0.53:5353`, `tls://1.1.1.1#cloudflare-dns.com` or
/// `https://1.1.1.1/dns-query#cloudflare-dns.com`. What follows `#` is the name its certificate must bear; without one
/// it must bear the address. Servers are never named in DNS: nobody could look that name up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address and port.
    pub address: SocketAddr,
    /// How it is spoken to.
    pub transport: Transport,
}

/// How an upstream is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// UDP, and TCP for what does not fit.
    Plain,
    /// DNS over TLS.
    Tls {
        /// What the certificate must be for: a DNS name or an address.
        server_name: String,
    },
    /// DNS over HTTPS (HTTP/2, POST).
    Https {
        /// As above; also the host in the request.
        server_name: String,
        /// Begins with a slash.
        path: String,
    },
}

/// A text that names no upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not an address.
    #[error("{0:?} is not the address of a DNS server")]
    Address(String),
    /// Not a way to ask.
    #[error("{0:?} names no way to ask that is known here")]
    Scheme(String),
    /// No certificate can bear this.
    #[error("{0:?} is no name a certificate could bear")]
    ServerName(String),
    /// DNS over HTTPS sends the name as the host of a URL.
    #[error("{0:?} cannot be the host of a URL")]
    Host(String),
    /// Not the path of a URL.
    #[error("{0:?} is not the path of a URL")]
    Path(String),
}

impl EndpointError {
    /// What would be right.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Address(_) => {
                "write IP:port or IP, for example 10.1.0.53:53, tls://1.1.1.1:853#cloudflare-dns.com or \
                 https://1.1.1.1/dns-query#cloudflare-dns.com"
            }
            Self::Scheme(_) => {
                "write IP:port for UDP and TCP, tls://IP:port#name for DNS over TLS or https://IP:port/path#name for \
                 DNS over HTTPS"
            }
            Self::ServerName(_) => {
                "write the name in the server's certificate behind the #, or leave both out"
            }
            Self::Host(_) => "write the DNS name in the server's certificate behind the #",
            Self::Path(_) => "write it as in https://1.1.1.1/dns-query, without a template",
        }
    }
}

impl Endpoint {
    /// True when what is asked and answered cannot be read or changed on the way.
    pub fn is_encrypted(&self) -> bool {
        self.transport != Transport::Plain
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { address, transport: Transport::Plain }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(address(text, DNS_PORT)?.into());
        };
        let (place, name) = match rest.split_once('#') {
            Some((place, name)) => (place, Some(name)),
            None => (rest, None),
        };
        match scheme {
            "tls" => {
                let address = address(place, TLS_PORT)?;
                let transport = Transport::Tls { server_name: server_name(name, address.ip())? };
                Ok(Self { address, transport })
            }
            "https" => {
                let (authority, path) =
                    place.find('/').map_or((place, HTTPS_PATH), |slash| place.split_at(slash));
                let address = address(authority, HTTPS_PORT)?;
                if path.contains(['{', '}']) || PathAndQuery::try_from(path).is_err() {
                    return Err(EndpointError::Path(path.to_owned()));
                }
                let server_name = server_name(name, address.ip())?;
                if Authority::try_from(server_name.as_str()).is_err() {
                    return Err(EndpointError::Host(server_name));
                }
                Ok(Self { address, transport: Transport::Https { server_name, path: path.to_owned() } })
            }
            _ => Err(EndpointError::Scheme(text.to_owned())),
        }
    }
}

/// How the upstream is named in the replicated state, logs and metrics: without the name in its certificate.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Plain => self.address.fmt(f),
            Transport::Tls { .. } => write!(f, "tls://{}", self.address),
            Transport::Https { path, .. } => write!(f, "https://{}{path}", self.address),
        }
    }
}

fn address(text: &str, default_port: u16) -> Result<SocketAddr, EndpointError> {
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let bare = || bracketed.unwrap_or(text).parse().map(|ip: IpAddr| SocketAddr::new(ip, default_port));
    let address = text.parse::<SocketAddr>().or_else(|_| bare());
    address.ok().filter(|address| address.port() != 0).ok_or_else(|| EndpointError::Address(text.to_owned()))
}

fn server_name(given: Option<&str>, ip: IpAddr) -> Result<String, EndpointError> {
    let name = given.map_or_else(|| ip.to_string(), str::to_owned);
    match ServerName::try_from(name.as_str()) {
        Ok(_) => Ok(name),
        Err(_) => Err(EndpointError::ServerName(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_named_by_its_transport_address_and_path() {
        for (text, named) in [
            ("10.1.0.53", "10.1.0.53:53"),
            ("10.1.0.53:5353", "10.1.0.53:5353"),
            ("fd00::53", "[fd00::53]:53"),
            ("[fd00::53]", "[fd00::53]:53"),
            ("[fd00::53]:5353", "[fd00::53]:5353"),
            ("tls://1.1.1.1", "tls://1.1.1.1:853"),
            ("tls://1.1.1.1:8853#one.example", "tls://1.1.1.1:8853"),
            ("tls://[fd00::53]#one.example", "tls://[fd00::53]:853"),
            ("https://1.1.1.1", "https://1.1.1.1:443/dns-query"),
            ("https://1.1.1.1:8443/a/b#one.example", "https://1.1.1.1:8443/a/b"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(endpoint.to_string(), named, "{text}");
        }
    }

    #[test]
    fn a_certificate_bears_the_given_name_or_else_the_address() {
        let name = |text: &str| match text.parse::<Endpoint>().expect("an upstream").transport {
            Transport::Tls { server_name } | Transport::Https { server_name, .. } => server_name,
            Transport::Plain => String::new(),
        };
        assert_eq!(name("tls://1.1.1.1#one.example"), "one.example");
        assert_eq!(name("tls://[fd00::53]:853"), "fd00::53");
        assert_eq!(name("https://1.1.1.1/dns-query"), "1.1.1.1");
    }

    #[test]
    fn what_names_no_upstream_is_refused_with_what_would_be_right() {
        for (text, remedy) in [
            ("", "IP:port"),
            ("dns.example", "IP:port"),
            ("10.1.0.53:0", "IP:port"),
            ("tls://dns.example", "tls://1.1.1.1:853#"),
            ("quic://1.1.1.1", "tls://IP:port#name"),
            ("tls://1.1.1.1#", "certificate"),
            ("tls://1.1.1.1#not a name", "certificate"),
            ("https://[fd00::53]/dns-query", "DNS name"),
            ("https://1.1.1.1/dns-query{?dns}", "without a template"),
            ("https://1.1.1.1/a b", "https://1.1.1.1/dns-query"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text);
            assert!(error.remedy().contains(remedy), "{text}: {error}; {}", error.remedy());
        }
    }
}
