//! `SourceConfig.Address` and `Port` as a URL, and other addresses operators write.

use url::Url;

/// `Address` and `Port` as a URL; `https` unless the address says otherwise. An error finishes "this source: ".
pub(super) fn base_url(address: &str, port: Option<u16>) -> Result<Url, String> {
    let address = address.trim();
    if address.is_empty() {
        return Err("its Address is empty; give a host or a URL such as https://jira.example.com".to_owned());
    }
    let bare_v6 = address.parse::<std::net::Ipv6Addr>().is_ok();
    let text = match (address.contains("://"), bare_v6) {
        (true, _) => address.to_owned(),
        (false, true) => format!("https://[{address}]"),
        (false, false) => format!("https://{address}"),
    };
    let mut url = check_url(&text).map_err(|problem| format!("its Address {problem}"))?;
    if url.query().is_some() {
        return Err("its Address holds a ?; give a host or a URL with at most a path".to_owned());
    }
    if port.is_some() {
        url.set_port(port).map_err(|()| "its Address takes no Port".to_owned())?;
    }
    Ok(url)
}

/// An absolute URL that may be called. An error finishes "its Address ", and repeats nothing of it but its scheme.
pub(super) fn check_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text.trim()).map_err(|e| format!("is not a host or URL: {e}"))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(format!("begins with {}://, give http:// or https://", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user name or password; put them into fields of AuthInfo".to_owned());
    }
    if url.fragment().is_some() {
        return Err("holds a #; give a URL without it".to_owned());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connectors::AddressPolicy;
    use std::net::IpAddr;

    #[test]
    fn an_address_is_https_unless_it_says_otherwise_and_port_counts() {
        let url = |address, port| base_url(address, port).map(|url| url.to_string());
        assert_eq!(url("jira.example.com", None).unwrap(), "https://jira.example.com/");
        assert_eq!(url("jira.example.com", Some(8443)).unwrap(), "https://jira.example.com:8443/");
        assert_eq!(url("http://h/base/", Some(80)).unwrap(), "http://h/base/");
        assert_eq!(url("::1", Some(81)).unwrap(), "https://[::1]:81/");
        for bad in ["", "ftp://h", "https://user:pw@h", "https://h/?q=1", "https://h/#x", "http://"] {
            assert!(base_url(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_spelling_of_an_ip_address_becomes_the_address_that_is_checked() {
        let spellings = "2130706433 0x7f000001 0177.0.0.1 127.1 0x7f.1 127.0.0.1. 017700000001 [::1] [0:0::1] \
            [::ffff:7f00:1] [::ffff:127.0.0.1] 0 0x0 127.0.1 ①②⑦.0.0.1";
        for spelling in spellings.split_whitespace() {
            let url = base_url(&format!("http://{spelling}/"), None).unwrap();
            let host = url.host_str().unwrap().trim_matches(['[', ']']);
            let address: IpAddr = host.parse().unwrap_or_else(|e| panic!("{spelling} -> {host}: {e}"));
            assert!(AddressPolicy::default().check(address).is_err(), "{spelling}");
        }
    }
}
