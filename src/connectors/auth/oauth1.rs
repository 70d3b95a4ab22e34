//! OAuth 1.0a with RSA-SHA1 (RFC 5849), as JIRA Server takes it from applications that were linked to it.

use crate::config_rows::AuthInfo;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rsa::RsaPrivateKey;
use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::pkcs1v15::SigningKey;
use rsa::pkcs8::DecodePrivateKey;
use rsa::rand_core::OsRng;
use rsa::signature::{RandomizedSigner, SignatureEncoding};
use rsa::traits::PublicKeyParts;
use secrecy::{ExposeSecret, SecretString};
use sha1::Sha1;
use std::fmt;
use std::time::SystemTime;
use url::Url;
use url::form_urlencoded;
use uuid::Uuid;

/// Larger keys take seconds for a signature.
const MOST_BITS: usize = 8192;

/// RFC 5849, section 3.6.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(super) struct OAuth1 {
    consumer: String,
    token: SecretString,
    key: SigningKey<Sha1>,
}

impl fmt::Debug for OAuth1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OAuth1").field("consumer", &self.consumer).finish_non_exhaustive()
    }
}

impl OAuth1 {
    /// From `ConsumerKey`, `AccessToken` and `PrivateKey`, a PEM text as PKCS#8 or PKCS#1.
    pub(super) fn new(auth: &AuthInfo) -> Result<Self, String> {
        let pem = auth.secret("PrivateKey").unwrap_or_default();
        let pem = pem.expose_secret().trim();
        let key = RsaPrivateKey::from_pkcs8_pem(pem)
            .ok()
            .or_else(|| RsaPrivateKey::from_pkcs1_pem(pem).ok())
            .filter(|key| key.size() * 8 <= MOST_BITS)
            // What is wrong with it could repeat a piece of it.
            .ok_or_else(|| {
                format!(
                    "`PrivateKey` in its AuthInfo is no RSA key of at most {MOST_BITS} bits in PEM text (BEGIN PRIVATE \
                     KEY or BEGIN RSA PRIVATE KEY, without a passphrase)"
                )
            })?;
        Ok(Self {
            consumer: auth.text("ConsumerKey").unwrap_or_default().to_owned(),
            token: auth.secret("AccessToken").unwrap_or_default(),
            key: SigningKey::new(key),
        })
    }

    /// The value of `Authorization` for this request.
    pub(super) fn authorization(
        &self,
        request: &http::Request<Bytes>,
        url: &Url,
        now: SystemTime,
    ) -> Result<String, String> {
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let is_form = request.headers().get(CONTENT_TYPE).is_some_and(|kind| {
            kind.as_bytes().to_ascii_lowercase().starts_with(b"application/x-www-form-urlencoded")
        });
        let form = if is_form { request.body().as_ref() } else { &[] };
        let nonce = Uuid::new_v4().simple().to_string();
        self.header(request.method().as_str(), url, form, &seconds.to_string(), &nonce)
    }

    fn header(
        &self,
        method: &str,
        url: &Url,
        form: &[u8],
        timestamp: &str,
        nonce: &str,
    ) -> Result<String, String> {
        let own = [
            ("oauth_consumer_key", self.consumer.as_str()),
            ("oauth_nonce", nonce),
            ("oauth_signature_method", "RSA-SHA1"),
            ("oauth_timestamp", timestamp),
            ("oauth_token", self.token.expose_secret()),
            ("oauth_version", "1.0"),
        ];
        let text = base_string(method, url, form, &own);
        // With random blinding, so that the time it takes tells nothing about the key. The signature is the same.
        let signature = self
            .key
            .try_sign_with_rng(&mut OsRng, text.as_bytes())
            .map_err(|_| "`PrivateKey` in its AuthInfo cannot sign".to_owned())?;
        let signature = BASE64_STANDARD.encode(signature.to_bytes());
        let parts: Vec<String> = own
            .iter()
            .copied()
            .chain([("oauth_signature", signature.as_str())])
            .map(|(name, value)| format!("{name}=\"{}\"", encode(value)))
            .collect();
        Ok(format!("OAuth {}", parts.join(", ")))
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// What is signed: method, address and every parameter, wherever it stands (section 3.4.1).
fn base_string(method: &str, url: &Url, form: &[u8], own: &[(&str, &str)]) -> String {
    let mut pairs: Vec<(String, String)> = own
        .iter()
        .map(|(name, value)| (encode(name), encode(value)))
        .chain(url.query_pairs().chain(form_urlencoded::parse(form)).map(|(n, v)| (encode(&n), encode(&v))))
        .collect();
    pairs.sort_unstable();
    let parameters: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut address = url.clone();
    address.set_query(None);
    address.set_fragment(None);
    format!("{method}&{}&{}", encode(address.as_str()), encode(&parameters.join("&")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsa::pkcs1v15::Signature;
    use rsa::signature::{Keypair, Verifier};
    use serde_json::json;

    /// The key of the published example of RSA-SHA1 ("photos.example.net"), known to everybody.
    const PUBLISHED_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIICdgIBADANBgkqhkiG9w0BAQEFAASCAmAwggJcAgEAAoGBALRiMLAh9iimur8V
A7qVvdqxevEuUkW4K+2KdMXmnQbG9Aa7k7eBjK1S+0LYmVjPKlJGNXHDGuy5Fw/d
7rjVJ0BLB+ubPK8iA/Tw3hLQgXMRRGRXXCn8ikfuQfjUS1uZSatdLB81mydBETlJ
hI6GH4twrbDJCR2Bwy/XWXgqgGRzAgMBAAECgYBYWVtleUzavkbrPjy0T5FMou8H
X9u2AC2ry8vD/l7cqedtwMPp9k7TubgNFo+NGvKsl2ynyprOZR1xjQ7WgrgVB+mm
uScOM/5HVceFuGRDhYTCObE+y1kxRloNYXnx3ei1zbeYLPCHdhxRYW7T0qcynNmw
rn05/KO2RLjgQNalsQJBANeA3Q4Nugqy4QBUCEC09SqylT2K9FrrItqL2QKc9v0Z
zO2uwllCbg0dwpVuYPYXYvikNHHg+aCWF+VXsb9rpPsCQQDWR9TT4ORdzoj+Nccn
qkMsDmzt0EfNaAOwHOmVJ2RVBspPcxt5iN4HI7HNeG6U5YsFBb+/GZbgfBT3kpNG
WPTpAkBI+gFhjfJvRw38n3g/+UeAkwMI2TJQS4n8+hid0uus3/zOjDySH3XHCUno
cn1xOJAyZODBo47E+67R4jV1/gzbAkEAklJaspRPXP877NssM5nAZMU0/O/NGCZ+
3jPgDUno6WbJn5cqm8MqWhW1xGkImgRk+fkDBquiq4gPiT898jusgQJAd5Zrr6Q8
AO/0isr/3aa6O6NLQxISLKcPDk2NOccAfS/xOtfOz4sJYM3+Bs4Io9+dZGSDCA54
Lw03eHTNQghS0A==
-----END PRIVATE KEY-----";

    fn oauth1() -> OAuth1 {
        let auth = json!({"ConsumerKey": "dpf43f3p2l4k3l03", "AccessToken": "", "PrivateKey": PUBLISHED_KEY});
        OAuth1::new(&AuthInfo::new(auth)).unwrap()
    }

    #[test]
    fn the_published_example_comes_out_as_published() {
        let url = Url::parse("http://photos.example.net/photos?file=vacaction.jpg&size=original").unwrap();
        // The example has no token.
        let own = [
            ("oauth_consumer_key", "dpf43f3p2l4k3l03"),
            ("oauth_nonce", "13917289812797014437"),
            ("oauth_signature_method", "RSA-SHA1"),
            ("oauth_timestamp", "1196666512"),
            ("oauth_version", "1.0"),
        ];
        let text = base_string("GET", &url, &[], &own);
        assert_eq!(
            text,
            "GET&http%3A%2F%2Fphotos.example.net%2Fphotos&file%3Dvacaction.jpg%26oauth_consumer_key%3Ddpf43f3p2l4k3l03\
             %26oauth_nonce%3D13917289812797014437%26oauth_signature_method%3DRSA-SHA1%26oauth_timestamp%3D1196666512\
             %26oauth_version%3D1.0%26size%3Doriginal"
        );
        let signature = oauth1().key.sign_with_rng(&mut OsRng, text.as_bytes());
        assert_eq!(
            BASE64_STANDARD.encode(signature.to_bytes()),
            "jvTp/wX1TYtByB1m+Pbyo0lnCOLIsyGCH7wke8AUs3BpnwZJtAuEJkvQL2/9n4s5wUmUl4aCI4BwpraNx4RtEXMe5qg5T1LVTGliMRpKas\
             KsW//e+RinhejgCuzoH26dyF8iY2ZZ/5D1ilgeijhV/vBka5twt399mXwaYdCwFYE="
        );
    }

    #[test]
    fn parameters_of_query_and_form_are_signed_in_their_order_and_twice_encoded() {
        // Section 3.4.1.3.1 of the RFC, with its answer in 3.4.1.1.
        let url = Url::parse("http://EXAMPLE.COM:80/request?b5=%3D%253D&a3=a&c%40=&a2=r%20b").unwrap();
        let own = [
            ("oauth_consumer_key", "9djdj82h48djs9d2"),
            ("oauth_token", "kkk9d7dh3k39sjv7"),
            ("oauth_signature_method", "HMAC-SHA1"),
            ("oauth_timestamp", "137131201"),
            ("oauth_nonce", "7d8f3e4a"),
        ];
        assert_eq!(
            base_string("POST", &url, b"c2&a3=2+q", &own),
            "POST&http%3A%2F%2Fexample.com%2Frequest&a2%3Dr%2520b%26a3%3D2%2520q%26a3%3Da%26b5%3D%253D%25253D%26c%2540%3D\
             %26c2%3D%26oauth_consumer_key%3D9djdj82h48djs9d2%26oauth_nonce%3D7d8f3e4a%26oauth_signature_method%3D\
             HMAC-SHA1%26oauth_timestamp%3D137131201%26oauth_token%3Dkkk9d7dh3k39sjv7"
        );
    }

    #[test]
    fn the_header_carries_everything_but_the_key() {
        let url = Url::parse("https://jira.example.com/rest/api/2/search?jql=a%20b").unwrap();
        let header = oauth1().header("GET", &url, &[], "1", "n").unwrap();
        for part in
            ["OAuth oauth_consumer_key=\"dpf43f3p2l4k3l03\", ", "oauth_token=\"\"", "oauth_signature=\""]
        {
            assert!(header.contains(part), "{header}");
        }
        assert!(!format!("{:?}", oauth1()).contains("MIIC"));
    }

    #[test]
    fn a_signature_holds_for_the_request_it_is_on_with_its_form_and_another_nonce_each_time() {
        let url = Url::parse("https://jira.example.com/rest/x?jql=a%20b").unwrap();
        let oauth1 = oauth1();
        let verifier = oauth1.key.verifying_key();
        let mut nonces = std::collections::HashSet::new();
        for (kind, signed) in [
            ("application/x-www-form-urlencoded; charset=utf-8", b"a=1&b=%20".as_slice()),
            ("application/json", b"".as_slice()),
        ] {
            let request = http::Request::post(url.as_str())
                .header(CONTENT_TYPE, kind)
                .body(Bytes::from_static(b"a=1&b=%20"))
                .unwrap();
            let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
            let header = oauth1.authorization(&request, &url, now).unwrap();
            let field = |name: &str| {
                let value = header.split_once(&format!("{name}=\"")).unwrap().1.split_once('"').unwrap().0;
                percent_encoding::percent_decode_str(value).decode_utf8().unwrap().into_owned()
            };
            assert_eq!(field("oauth_timestamp"), "1700000000");
            let nonce = field("oauth_nonce");
            let own = [
                ("oauth_consumer_key", "dpf43f3p2l4k3l03"),
                ("oauth_nonce", nonce.as_str()),
                ("oauth_signature_method", "RSA-SHA1"),
                ("oauth_timestamp", "1700000000"),
                ("oauth_token", ""),
                ("oauth_version", "1.0"),
            ];
            let signature = BASE64_STANDARD.decode(field("oauth_signature")).unwrap();
            let signature = Signature::try_from(signature.as_slice()).unwrap();
            let text = |body: &[u8]| base_string("POST", &url, body, &own);
            verifier.verify(text(signed).as_bytes(), &signature).unwrap();
            assert!(verifier.verify(text(b"a=2").as_bytes(), &signature).is_err());
            assert!(nonces.insert(nonce.clone()));
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused_without_being_repeated() {
        for pem in ["", "canary", "-----BEGIN PRIVATE KEY-----\nY2FuYXJ5\n-----END PRIVATE KEY-----"] {
            let auth = json!({"ConsumerKey": "c", "AccessToken": "t", "PrivateKey": pem});
            let problem = OAuth1::new(&AuthInfo::new(auth)).unwrap_err();
            assert!(problem.contains("`PrivateKey`") && !problem.contains("canary"), "{problem}");
            assert!(!problem.contains("Y2FuYXJ5"), "{problem}");
        }
    }
}
