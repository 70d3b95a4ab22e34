//! `SourceConfig.Address`, `Port` and `AuthInfo` as HTTP wants them.

use crate::config_rows::AuthInfo;
use crate::secrets::address_url;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;

/// `Address` and `Port` as a URL; `https` unless the address says otherwise. An error finishes "this source: ".
pub(super) fn base_url(address: &str, port: Option<u16>) -> Result<Url, String> {
    let address = address.trim();
    if address.is_empty() {
        return Err("its Address is empty; give a host or a URL such as https://jira.example.com".to_owned());
    }
    let mut url = address_url(address)?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(format!("its Address begins with {}://, give http:// or https://", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("its Address holds a user name or password; put them into AuthInfo".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("its Address holds a ? or #; give a host or a URL with at most a path".to_owned());
    }
    if port.is_some() {
        url.set_port(port).map_err(|()| "its Address takes no Port".to_owned())?;
    }
    Ok(url)
}

/// `Token` as a bearer, else `Username` and `Password` as basic; besides, `Key` in the header `Header` names.
pub(super) fn credentials(auth: &AuthInfo) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let mut put = |name: HeaderName, value: &str, field: &str| {
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("`{field}` in its AuthInfo is no header value"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
        Ok::<_, String>(())
    };
    if let Some(token) = auth.secret("Token") {
        put(AUTHORIZATION, &format!("Bearer {}", token.expose_secret()), "Token")?;
    } else if let Some(user) = auth.text("Username") {
        let password = auth.secret("Password").unwrap_or_default();
        let pair = base64(format!("{user}:{}", password.expose_secret()).as_bytes());
        put(AUTHORIZATION, &format!("Basic {pair}"), "Username")?;
    }
    if let (Some(header), Some(key)) = (auth.text("Header"), auth.secret("Key")) {
        let name = header
            .parse()
            .map_err(|_| format!("`Header` in its AuthInfo is {header}, no name of a header"))?;
        put(name, key.expose_secret(), "Key")?;
    }
    Ok(headers)
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let letter = LETTERS[((bits >> (18 - 6 * place)) & 63) as usize];
            text.push(if place <= three.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connectors::AddressPolicy;
    use serde_json::json;
    use std::net::IpAddr;

    #[test]
    fn an_address_is_https_unless_it_says_otherwise_and_port_counts() {
        let url = |address, port| base_url(address, port).map(|url| url.to_string());
        assert_eq!(url("jira.example.com", None).unwrap(), "https://jira.example.com/");
        assert_eq!(url("jira.example.com", Some(8443)).unwrap(), "https://jira.example.com:8443/");
        assert_eq!(url("http://h/base/", Some(80)).unwrap(), "http://h/base/");
        assert_eq!(url("::1", Some(81)).unwrap(), "https://[::1]:81/");
        for bad in ["", "ftp://h", "https://user:pw@h", "https://h/?q=1", "http://"] {
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

    #[test]
    fn base64_is_as_everybody_writes_it() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("svc:pä", "c3ZjOnDDpA==")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn credentials_are_headers_that_are_never_printed() {
        let of = |auth| credentials(&AuthInfo::new(auth));
        let headers = of(json!({"Username": "svc", "Password": "canary"})).unwrap();
        assert_eq!(headers["authorization"], "Basic c3ZjOmNhbmFyeQ==");
        assert!(!format!("{headers:?}").contains("c3Zj"));
        let headers = of(json!({"Token": "t", "Header": "X-Key", "Key": "k"})).unwrap();
        assert_eq!(headers["authorization"], "Bearer t");
        assert_eq!(headers["x-key"], "k");
        assert_eq!(
            of(json!({"Token": "can\nary"})).unwrap_err(),
            "`Token` in its AuthInfo is no header value"
        );
    }
}
