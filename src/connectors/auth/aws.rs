//! AWS Signature Version 4.

use crate::config_rows::AuthInfo;
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use secrecy::ExposeSecret;
use std::time::SystemTime;
use tracing::subscriber::{NoSubscriber, with_default};
use url::Url;

/// Signs with keys that do not change. Its `Debug` output has no secret: that of the credentials hides them.
#[derive(Debug)]
pub(super) struct Aws {
    credentials: Credentials,
    region: String,
    service: String,
}

impl Aws {
    /// From `AccessKeyID`, `SecretAccessKey`, `Region`, `Service`, and where given `SessionToken`.
    pub(super) fn new(auth: &AuthInfo) -> Self {
        let text = |field| auth.text(field).unwrap_or_default().to_owned();
        let secret = auth.secret("SecretAccessKey").unwrap_or_default();
        let session = auth.secret("SessionToken").map(|token| token.expose_secret().to_owned());
        Self {
            credentials: Credentials::new(
                text("AccessKeyID"),
                secret.expose_secret(),
                session,
                None,
                "rosterd",
            ),
            region: text("Region"),
            service: text("Service"),
        }
    }

    /// Adds the headers of the signature. Host, Content-Type and those of AWS are signed: the others may change on the
    /// way.
    pub(super) fn sign(
        &self,
        request: &mut http::Request<Bytes>,
        url: &Url,
        now: SystemTime,
    ) -> Result<(), String> {
        let mut settings = SigningSettings::default();
        if self.service == "s3" {
            // S3 takes paths as they are, and wants to know what is in the body.
            settings.percent_encoding_mode = PercentEncodingMode::Single;
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
            settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        }
        let identity = self.credentials.clone().into();
        let cannot = |error: &dyn std::fmt::Display| format!("its AuthInfo cannot sign for AWS: {error}");
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(&self.service)
            .time(now)
            .settings(settings)
            .build()
            .map_err(|error| cannot(&error))?
            .into();
        let signed = request
            .headers()
            .iter()
            .filter(|(name, _)| *name == CONTENT_TYPE || name.as_str().starts_with("x-amz-"))
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let body = SignableBody::Bytes(request.body());
        let signable = SignableRequest::new(request.method().as_str(), url.as_str(), signed, body)
            .map_err(|error| cannot(&error))?;
        // The crate logs what it signs, with the session token, at level TRACE.
        let (instructions, _) = with_default(NoSubscriber::default(), || sign(signable, &parameters))
            .map_err(|error| cannot(&error))?
            .into_parts();
        let headers: Vec<(String, HeaderValue)> = instructions
            .headers()
            .map(|(name, value)| Ok((name.to_owned(), super::sensitive(value, "SessionToken")?)))
            .collect::<Result<_, String>>()?;
        for (name, value) in headers {
            let name = http::HeaderName::try_from(name).map_err(|error| cannot(&error))?;
            request.headers_mut().insert(name, value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn aws(more: Value) -> Aws {
        let mut fields = json!({
            "AccessKeyID": "AKIDEXAMPLE", "SecretAccessKey": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            "Region": "us-east-1", "Service": "service",
        });
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Aws::new(&AuthInfo::new(fields))
    }

    fn signed(aws: &Aws, mut request: http::Request<Bytes>) -> http::HeaderMap {
        let url = Url::parse(&request.uri().to_string()).unwrap();
        // 20150830T123600Z, the moment of the published test suite.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        aws.sign(&mut request, &url, now).unwrap();
        request.headers().clone()
    }

    fn get(url: &str) -> http::Request<Bytes> {
        http::Request::get(url).body(Bytes::new()).unwrap()
    }

    #[test]
    fn the_published_vectors_come_out_as_published() {
        let headers = signed(&aws(json!({})), get("https://example.amazonaws.com/"));
        assert_eq!(headers["x-amz-date"], "20150830T123600Z");
        assert_eq!(
            headers["authorization"],
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
        // get-vanilla-query-order-key-case
        let headers =
            signed(&aws(json!({})), get("https://example.amazonaws.com/?Param2=value2&Param1=value1"));
        assert!(
            headers["authorization"]
                .to_str()
                .unwrap()
                .ends_with("Signature=b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500")
        );
        // post-x-www-form-urlencoded
        let post = http::Request::post("https://example.amazonaws.com/")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Bytes::from_static(b"Param1=value1"))
            .unwrap();
        let headers = signed(&aws(json!({})), post);
        assert!(headers["authorization"].to_str().unwrap().ends_with(
            "SignedHeaders=content-type;host;x-amz-date, \
                 Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"
        ));
    }

    #[test]
    fn what_is_signed_is_never_printed() {
        let aws = aws(json!({"SessionToken": "canary", "Service": "s3"}));
        let headers = signed(&aws, get("https://bucket.s3.amazonaws.com/a%20b?list-type=2"));
        assert_eq!(headers["x-amz-security-token"], "canary");
        assert!(headers.contains_key("x-amz-content-sha256"));
        let printed = format!("{headers:?} {aws:?}");
        assert!(
            !printed.contains("canary") && !printed.contains("wJalr") && !printed.contains("Signature="),
            "{printed}"
        );
    }
}
