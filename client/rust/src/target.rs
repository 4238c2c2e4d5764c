//! Where a server is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::error::{Code, Error};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Tcp {
        /// Without brackets.
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl Target {
    /// "host:port", "[::1]:port", "dns:///host:port", "http://host:port",
    /// "https://host:port", "unix:/path". And whether it says that TLS is used.
    pub(crate) fn parse(text: &str) -> Result<(Self, bool), Error> {
        let wrong = |what: &str| {
            Error::local(
                Code::InvalidArgument,
                format!("target: got {text:?}, {what}"),
            )
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(wrong("wanted a path behind unix:"));
            }
            return Ok((Self::Unix(path.into()), false));
        }
        let mut tls = false;
        let mut address = text;
        for scheme in ["dns:///", "http://", "https://", "dns:"] {
            if let Some(rest) = text.strip_prefix(scheme) {
                tls = scheme == "https://";
                address = rest.strip_suffix('/').unwrap_or(rest);
                break;
            }
        }
        let (host, port) = address
            .rsplit_once(':')
            .ok_or_else(|| wrong("wanted host:port"))?;
        let port = port
            .parse()
            .map_err(|_| wrong("wanted a port in [0, 65535]"))?;
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(host) => host,
            None if host.contains(':') => return Err(wrong("wanted [address]:port for IPv6")),
            None => host,
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~:%".contains(c);
        if host.is_empty() || !host.chars().all(allowed) {
            return Err(wrong("wanted host:port"));
        }
        let host = host.to_owned();
        Ok((Self::Tcp { host, port }, tls))
    }

    /// Whether the target itself says that others can read what is sent to it
    /// without TLS. Of a name only the connection can tell.
    pub(crate) fn is_remote_address(&self) -> bool {
        match self {
            Self::Tcp { host, .. } => host.parse().is_ok_and(|address| !is_loopback(address)),
            Self::Unix(_) => false,
        }
    }

    /// For the header `:authority`.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port } if host.contains(':') => {
                // A zone is no part of an authority.
                let address = host.split('%').next().unwrap_or(host);
                format!("[{address}]:{port}")
            }
            Self::Tcp { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { .. } => f.write_str(&self.authority()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

pub(crate) fn is_loopback(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => Ipv4Addr::is_loopback(&address),
        IpAddr::V6(address) => Ipv6Addr::is_loopback(&address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let tcp = |host: &str, port| Target::Tcp {
            host: host.into(),
            port,
        };
        let good = [
            ("127.0.0.1:50051", tcp("127.0.0.1", 50051), false),
            ("[::1]:1", tcp("::1", 1), false),
            ("dns:///name.example:2", tcp("name.example", 2), false),
            ("http://localhost:3", tcp("localhost", 3), false),
            ("https://localhost:3/", tcp("localhost", 3), true),
            (
                "unix:/run/a.sock",
                Target::Unix("/run/a.sock".into()),
                false,
            ),
            (
                "unix:///run/a.sock",
                Target::Unix("/run/a.sock".into()),
                false,
            ),
            ("unix:relative", Target::Unix("relative".into()), false),
        ];
        for (text, target, tls) in good {
            assert_eq!(Target::parse(text).unwrap(), (target, tls), "{text}");
        }
        for text in [
            "",
            "host",
            "host:",
            "host:70000",
            "::1:50051",
            "unix:",
            ":1",
            "a b:1",
            "a/b:1",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn remote_addresses() {
        for (text, remote) in [
            ("127.0.0.1:1", false),
            ("127.9.9.9:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("192.0.2.1:1", true),
            ("[2001:db8::1]:1", true),
            ("localhost:1", false),
            ("unix:/path", false),
        ] {
            assert_eq!(
                Target::parse(text).unwrap().0.is_remote_address(),
                remote,
                "{text}"
            );
        }
    }
}
