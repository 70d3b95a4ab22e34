//! The host of `SourceConfig.Address`: what a secret is bound to, and where calls go. One reading for both, because
//! an address that two readers understand differently would carry a secret to another host.

use std::net::Ipv6Addr;
use url::Url;

/// An Address as a URL; `https` unless it says otherwise. An error finishes "this source: ".
pub(crate) fn address_url(address: &str) -> Result<Url, String> {
    let address = address.trim();
    if address.starts_with('/') {
        return Err(
            "its Address is a folder, give a host or a URL such as https://jira.example.com".to_owned()
        );
    }
    let text = match (address.contains("://"), address.parse::<Ipv6Addr>().is_ok()) {
        (true, _) => address.to_owned(),
        (false, true) => format!("https://[{address}]"),
        (false, false) => format!("https://{address}"),
    };
    Url::parse(&text).map_err(|e| format!("its Address is not a host or URL: {e}"))
}

/// The host of an Address, in lower case, without scheme, user, port and path; an IP address in its usual form, IPv6
/// without brackets. An empty Address has an empty host; the folder of a Unix socket (`/run/postgresql`) is its own.
/// An error finishes "this source: ".
pub fn host_of(address: &str) -> Result<String, String> {
    let address = address.trim();
    if address.is_empty() || address.starts_with('/') {
        return Ok(address.to_owned());
    }
    let url = address_url(address)?;
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| "its Address names no host".to_owned())?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Ok(bare.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_host_is_one_host() {
        for (host, spellings) in [
            (
                "jira.example.com",
                &[
                    "jira.example.com",
                    " JIRA.Example.com ",
                    "https://jira.example.com",
                    "http://jira.example.com:8080/base/",
                    "jira.example.com:8443/x",
                    "https://u:p@jira.example.com/",
                    "postgres://Jira.Example.com/db",
                    "https:\\\\jira.example.com\\x://evil.example",
                ][..],
            ),
            ("::1", &["::1", "[::1]", "[0:0::1]:81", "https://[0:0:0::1]/x"]),
            ("127.0.0.1", &["127.0.0.1", "127.1", "http://0x7f000001:80/"]),
            ("xn--bcher-kva.example", &["bücher.example", "https://BÜCHER.example/"]),
            ("", &["", "  "]),
            ("/run/postgresql", &["/run/postgresql"]),
        ] {
            for spelling in spellings {
                assert_eq!(host_of(spelling).as_deref(), Ok(host), "{spelling}");
            }
        }
        for other in ["jira.example.com.evil.example", "evil.example/jira.example.com", "jira.example.com."] {
            assert_ne!(host_of(other).unwrap(), "jira.example.com", "{other}");
        }
        for bad in ["https://", "a b", "file:///x", "https://a%00b"] {
            assert!(host_of(bad).is_err(), "{bad}: {:?}", host_of(bad));
        }
    }
}
