//! Who the source shall take us for: the fields of `AuthInfo`, and what they put on a request.

#[cfg(feature = "aws")]
mod aws;
mod fields;
mod oauth1;
mod oauth2;

pub(super) use oauth2::{OAuth2, Token};

use crate::config_rows::AuthInfo;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use fields::Kind;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;
use std::time::SystemTime;
use url::Url;

/// How requests to a source are signed.
#[derive(Debug)]
pub(super) struct Credentials {
    /// The same for every request.
    headers: HeaderMap,
    signer: Signer,
}

#[derive(Debug)]
enum Signer {
    /// The headers are all there is.
    Nothing,
    OAuth1(Box<oauth1::OAuth1>),
    OAuth2(Box<OAuth2>),
    #[cfg(feature = "aws")]
    Aws(Box<aws::Aws>),
}

impl Credentials {
    /// From the fields of a source; `source` is its ID. An error finishes "this source: " and repeats no secret.
    pub(super) fn new(auth: &AuthInfo, source: uuid::Uuid) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        let mut signer = Signer::Nothing;
        match fields::kind(auth)? {
            None => {}
            Some(Kind::Basic) => {
                let user = auth.text("Username").unwrap_or_default();
                let password = auth.secret("Password").unwrap_or_default();
                let pair = BASE64_STANDARD.encode(format!("{user}:{}", password.expose_secret()));
                headers.insert(AUTHORIZATION, sensitive(&format!("Basic {pair}"), "Username")?);
            }
            Some(Kind::Bearer) => {
                let token = auth.secret("Token").unwrap_or_default();
                headers.insert(AUTHORIZATION, bearer(token.expose_secret(), "Token")?);
            }
            Some(Kind::OAuth1) => signer = Signer::OAuth1(Box::new(oauth1::OAuth1::new(auth)?)),
            Some(Kind::OAuth2) => signer = Signer::OAuth2(Box::new(OAuth2::new(auth, source)?)),
            #[cfg(feature = "aws")]
            Some(Kind::Aws) => signer = Signer::Aws(Box::new(aws::Aws::new(auth))),
            #[cfg(not(feature = "aws"))]
            Some(Kind::Aws) => {
                return Err(
                    "its AuthInfo wants AWS signatures, and this rosterd was built without them (cargo's \
                     feature `aws`)"
                        .to_owned(),
                );
            }
        }
        if let (Some(header), Some(key)) = (auth.text("Header"), auth.secret("Key")) {
            let name: HeaderName = header
                .parse()
                .map_err(|_| format!("`Header` in its AuthInfo is {header}, no name of a header"))?;
            headers.insert(name, sensitive(key.expose_secret(), "Key")?);
        }
        Ok(Self { headers, signer })
    }

    /// Where tokens come from, if requests need one.
    pub(super) fn oauth2(&self) -> Option<&OAuth2> {
        match &self.signer {
            Signer::OAuth2(oauth2) => Some(oauth2),
            _ => None,
        }
    }

    /// Puts them on a request, last of all, because a signature covers the rest. `token` is that of [`Self::oauth2`].
    pub(super) fn sign(
        &self,
        request: &mut http::Request<Bytes>,
        url: &Url,
        token: Option<&Token>,
        now: SystemTime,
    ) -> Result<(), String> {
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        match &self.signer {
            Signer::Nothing => {}
            Signer::OAuth1(oauth1) => {
                let value = sensitive(&oauth1.authorization(request, url, now)?, "PrivateKey")?;
                request.headers_mut().insert(AUTHORIZATION, value);
            }
            Signer::OAuth2(_) => {
                if let Some(token) = token {
                    let value = bearer(token.value(), "TokenUrl")?;
                    request.headers_mut().insert(AUTHORIZATION, value);
                }
            }
            #[cfg(feature = "aws")]
            Signer::Aws(aws) => aws.sign(request, url, now)?,
        }
        Ok(())
    }
}

fn bearer(token: &str, field: &str) -> Result<HeaderValue, String> {
    sensitive(&format!("Bearer {token}"), field)
}

/// A value that is never printed nor compressed. `field` is named if it cannot be one.
fn sensitive(value: &str, field: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| format!("`{field}` in its AuthInfo does not make a header value"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn headers_for(auth: serde_json::Value) -> Result<HeaderMap, String> {
        let url = Url::parse("https://api.example.com/x").unwrap();
        let mut request = http::Request::get(url.as_str()).body(Bytes::new()).unwrap();
        let credentials = Credentials::new(&AuthInfo::new(auth), uuid::Uuid::nil())?;
        credentials.sign(&mut request, &url, None, SystemTime::UNIX_EPOCH)?;
        Ok(request.headers().clone())
    }

    #[test]
    fn credentials_are_headers_that_are_never_printed() {
        let headers = headers_for(json!({"Username": "svc", "Password": "canary"})).unwrap();
        assert_eq!(headers["authorization"], "Basic c3ZjOmNhbmFyeQ==");
        assert!(!format!("{headers:?}").contains("c3Zj"));
        let headers = headers_for(json!({"Token": "canary", "Header": "X-Key", "Key": "canary"})).unwrap();
        assert_eq!(headers["authorization"], "Bearer canary");
        assert_eq!(headers["x-key"], "canary");
        assert!(!format!("{headers:?}").contains("canary"));
        assert_eq!(
            headers_for(json!({"Username": "key-alone"})).unwrap()["authorization"],
            "Basic a2V5LWFsb25lOg=="
        );
    }

    #[test]
    fn a_secret_that_is_no_header_value_is_refused_without_being_repeated() {
        for (auth, field) in [
            (json!({"Token": "can\nary"}), "`Token`"),
            (json!({"Header": "X-Key", "Key": "can\nary"}), "`Key`"),
        ] {
            let problem = headers_for(auth).unwrap_err();
            assert!(
                problem.contains(field) && !problem.contains("ary\n") && !problem.contains("can"),
                "{problem}"
            );
        }
        assert!(
            headers_for(json!({"Header": "X Key", "Key": "k"})).unwrap_err().contains("no name of a header")
        );
    }
}
