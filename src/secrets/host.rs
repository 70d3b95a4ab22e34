//! The host of `SourceConfig.Address` and of `TokenUrl`: what a secret is bound to, and where calls go. One reading for
//! both, because an address that two readers understand differently would carry a secret to another host.

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
    host(&address_url(address)?).ok_or_else(|| "its Address names no host".to_owned())
}

/// What a secret of a source with this Address is bound to: its host as [`host_of`] gives it, behind `http://` if that
/// is its scheme. Whoever turns https into http would have it sent in the clear. An error finishes "this source: ".
pub fn place_of(address: &str) -> Result<String, String> {
    let address = address.trim();
    let host = host_of(address)?;
    if host.is_empty() || host.starts_with('/') {
        return Ok(host);
    }
    Ok(place(&address_url(address)?, host))
}

/// The same of a `TokenUrl`, which has a scheme. An error finishes "this source: ".
pub fn token_place_of(token_url: &str) -> Result<String, String> {
    let url = Url::parse(token_url.trim())
        .map_err(|e| format!("TokenUrl in its AuthInfo is no URL with http:// or https://: {e}"))?;
    let host = host(&url).ok_or_else(|| "TokenUrl in its AuthInfo names no host".to_owned())?;
    Ok(place(&url, host))
}

fn place(url: &Url, host: String) -> String {
    if url.scheme() == "http" { format!("http://{host}") } else { host }
}

fn host(url: &Url) -> Option<String> {
    let host = url.host_str().filter(|host| !host.is_empty())?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some(bare.to_lowercase())
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
        for (address, place) in [
            ("jira.example.com", "jira.example.com"),
            ("HTTPS://Jira.example.com:8443/x", "jira.example.com"),
            (" HTTP://JIRA.example.com:81\\x", "http://jira.example.com"),
            ("http://[::1]:81", "http://::1"),
            ("", ""),
            ("/run/postgresql", "/run/postgresql"),
        ] {
            assert_eq!(place_of(address).as_deref(), Ok(place), "{address}");
        }
        for (url, place) in [
            ("https://login.example.com/oauth2/token?tenant=x", "login.example.com"),
            (" https:login.example.com", "login.example.com"),
            ("http://LOGIN.example.com/", "http://login.example.com"),
        ] {
            assert_eq!(token_place_of(url).as_deref(), Ok(place), "{url}");
        }
        for bad in ["login.example.com/token", "", "mailto:x", "https://"] {
            assert!(token_place_of(bad).is_err(), "{bad}");
        }
        for other in ["jira.example.com.evil.example", "evil.example/jira.example.com", "jira.example.com."] {
            assert_ne!(host_of(other).unwrap(), "jira.example.com", "{other}");
        }
        for bad in ["https://", "a b", "file:///x", "https://a%00b"] {
            assert!(host_of(bad).is_err(), "{bad}: {:?}", host_of(bad));
        }
    }
}
