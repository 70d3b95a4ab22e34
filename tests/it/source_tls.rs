//! Whom the client of sources trusts: the CAs of the source, where it names some, and no others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures)]

use crate::generic_jobs::settings;
use crate::source_client::client_with;
use crate::support::SOON;
use crate::support::api::{Reply, ScriptedApi};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rosterd::config::SourcesSection;
use rosterd::connectors::{Call, ClientError};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server whose certificate is for `name`.
    async fn serve(&self, name: &str, expired: bool) -> ScriptedApi {
        ScriptedApi::start_at("127.0.0.1:0", Some(self.acceptor(name, expired)), |_, _| Reply::status(200))
            .await
    }

    /// What a server with a certificate for `name` takes connections by.
    pub fn acceptor(&self, name: &str, expired: bool) -> TlsAcceptor {
        rosterd::connectors::install_crypto();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

async fn status(api: &ScriptedApi, payload: Value, settings: &SourcesSection) -> Result<u16, ClientError> {
    let client = client_with(&api.address, json!({"Token": "canary"}), payload, settings).await?;
    let answer = timeout(SOON, client.call(Call::get("/x"))).await.expect("the call ends")?;
    Ok(answer.status.as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_a_ca_of_its_own_is_trusted_by_that_ca_alone() {
    let (ca, other, namesake) = (Ca::new("ours"), Ca::new("theirs"), Ca::new("ours"));
    let api = ca.serve("127.0.0.1", false).await;
    let settings = settings().sources;
    let with = async |payload| status(&api, payload, &settings).await;
    assert_eq!(with(json!({"tls_ca_pem": ca.pem})).await.unwrap(), 200);
    assert_eq!(
        with(json!({"tls_ca_pem": format!("{}{}", other.pem, ca.pem)})).await.unwrap(),
        200,
        "one of several"
    );
    for untrusted in [other, namesake] {
        let error = with(json!({"tls_ca_pem": untrusted.pem})).await.unwrap_err();
        let sentence = error.to_string();
        assert!(sentence.contains("signed by no CA that is trusted here"), "{sentence}");
        assert!(matches!(error, ClientError::Tls { .. }) && !error.is_passing());
    }
    // The CAs of the system, if it has any.
    let sentence = with(json!({})).await.unwrap_err().to_string();
    assert!(
        sentence.contains("signed by no CA that is trusted here")
            || sentence.contains("no root certificates"),
        "{sentence}"
    );
    assert_eq!(api.asked().len(), 2, "nothing was sent to a server that was not trusted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_host_or_another_time_is_refused() {
    let ca = Ca::new("ours");
    let settings = settings().sources;
    for (name, expired, word) in
        [("other.example.com", false, "is for another host"), ("127.0.0.1", true, "has expired")]
    {
        let api = ca.serve(name, expired).await;
        let error = status(&api, json!({"tls_ca_pem": ca.pem}), &settings).await.unwrap_err();
        assert!(error.to_string().contains(word) && !error.is_passing(), "{error}");
        assert_eq!(api.asked().len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_can_stand_in_a_file_of_the_configured_folder() {
    let ca = Ca::new("ours");
    let api = ca.serve("127.0.0.1", false).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("corp.pem"), &ca.pem).unwrap();
    let mut settings = settings().sources;
    settings.ca_dir = folder.path().to_owned();
    assert_eq!(status(&api, json!({"tls_ca_file": "corp.pem"}), &settings).await.unwrap(), 200);
    let error = status(&api, json!({"tls_ca_file": "../corp.pem"}), &settings).await.unwrap_err();
    assert!(error.to_string().contains("below `sources.ca_dir`"), "{error}");
}
