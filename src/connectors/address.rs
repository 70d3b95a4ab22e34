//! `SourceConfig.Address` and `Port` as a URL, and other addresses operators write.

use crate::secrets::address_url;
use url::Url;

/// `Address` and `Port` as a URL; `https` unless the address says otherwise. An error finishes "this source: ".
fn base_url(address: &str, port: Option<u16>) -> Result<Url, String> {
    let address = address.trim();
    if address.is_empty() {
        return Err("its Address is empty; give a host or a URL such as https://jira.example.com".to_owned());
    }
    let mut url = acceptable(address_url(address)?).map_err(|problem| format!("its Address {problem}"))?;
    if url.query().is_some() {
        return Err("its Address holds a ?; give a host or a URL with at most a path".to_owned());
    }
    if port.is_some() {
        url.set_port(port).map_err(|()| "its Address takes no Port".to_owned())?;
    }
    Ok(url)
}

/// Where everything of a source is: below its Address, and nowhere else.
#[derive(Debug)]
pub(super) struct Base {
    url: Url,
}

impl Base {
    /// From [`base_url`].
    pub(super) fn new(address: &str, port: Option<u16>) -> Result<Self, String> {
        base_url(address, port).map(|url| Self { url })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The URL of a path, which may carry a query. An error finishes "the path ".
    pub(super) fn join(&self, path: &str, query: &[(String, String)]) -> Result<Url, &'static str> {
        if !path.starts_with('/') {
            return Err("must begin with /");
        }
        let (path, rest) = path.split_once('?').map_or((path, None), |(path, rest)| (path, Some(rest)));
        let mut url = self.url.clone();
        url.set_path(&format!("{}{path}", self.prefix()));
        url.set_query(rest);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        // set_path resolves "..", also percent-encoded.
        if self.holds(&url) { Ok(url) } else { Err("leads out of the source's Address") }
    }

    /// The path and query behind the Address of a URL the source named; `None` if that is somewhere else.
    pub(super) fn path_of(&self, url: &Url) -> Option<String> {
        let path = self.holds(url).then(|| url.path().strip_prefix(self.prefix())).flatten()?;
        Some(url.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}")))
    }

    fn prefix(&self) -> &str {
        self.url.path().trim_end_matches('/')
    }

    fn holds(&self, url: &Url) -> bool {
        url.origin() == self.url.origin()
            && url.username().is_empty()
            && url.password().is_none()
            && url.path().strip_prefix(self.prefix()).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// An absolute URL that may be called. An error finishes "its Address ", and repeats nothing of it but its scheme.
pub(super) fn check_url(text: &str) -> Result<Url, String> {
    acceptable(Url::parse(text.trim()).map_err(|e| format!("is not a host or URL: {e}"))?)
}

fn acceptable(url: Url) -> Result<Url, String> {
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
    fn nothing_leads_out_of_an_address() {
        let base = Base::new("https://h/api", None).unwrap();
        let join =
            |path: &str| base.join(path, &[("q".to_owned(), "a b".to_owned())]).map(|url| url.to_string());
        assert_eq!(join("/x?y=1").unwrap(), "https://h/api/x?y=1&q=a+b");
        assert_eq!(join("//evil/x").unwrap(), "https://h/api//evil/x?q=a+b");
        for path in ["x", "", "/../x", "/%2e%2E/x", "/a/../../x", "\\evil\\x"] {
            assert!(join(path).is_err(), "{path}");
        }
        let path_of = |url: &str| base.path_of(&Url::parse(url).unwrap());
        assert_eq!(path_of("https://h:443/api/x?page=2").unwrap(), "/x?page=2");
        for url in [
            "http://h/api/x",
            "https://h:8443/api/x",
            "https://evil/api/x",
            "https://h/apix",
            "https://u@h/api/x",
        ] {
            assert_eq!(path_of(url), None, "{url}");
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
