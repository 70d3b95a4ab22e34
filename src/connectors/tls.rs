//! Whom a connection to a source trusts, and what it says when it does not.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use serde_json::Value;
use std::path::{Component, Path};
use std::sync::{Arc, LazyLock, Once};

/// The TLS implementation every connection of this process uses. Safe to call any number of times.
pub fn install_crypto() {
    static ONCE: Once = Once::new();
    // An error only means that the program has installed one already.
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}

/// TLS 1.2 or 1.3 that trusts the CAs of the source's `Payload` and no others, or, where it names none, those of
/// the system. Without `needed` (a source with `http://`) it trusts nobody, and a machine without root certificates
/// is good enough. An error finishes "this source: ".
pub(super) fn client_config(payload: &Value, ca_dir: &Path, needed: bool) -> Result<ClientConfig, String> {
    install_crypto();
    let roots = match (own_bundle(payload, ca_dir)?, needed) {
        (Some((pem, place)), _) => Arc::new(roots_of(&pem, &place)?),
        (None, true) => SYSTEM.clone()?,
        (None, false) => Arc::new(RootCertStore::empty()),
    };
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// Read once: the file of the system is large, and clients are made for every run.
static SYSTEM: LazyLock<Result<Arc<RootCertStore>, String>> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        return Err(format!(
            "this machine has no root certificates{why}; install the package ca-certificates, or give tls_ca_pem or \
             tls_ca_file in Payload"
        ));
    }
    Ok(Arc::new(roots))
});

/// The PEM text of `tls_ca_pem` or of the file that `tls_ca_file` names, and which of the two.
fn own_bundle(payload: &Value, ca_dir: &Path) -> Result<Option<(Vec<u8>, String)>, String> {
    let text = |field: &str| match payload.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("`{field}` in its Payload must be a text")),
    };
    match (text("tls_ca_pem")?, text("tls_ca_file")?) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            Err("its Payload holds tls_ca_pem and tls_ca_file; give one of the two".to_owned())
        }
        (Some(pem), None) => Ok(Some((pem.as_bytes().to_vec(), "`tls_ca_pem` in its Payload".to_owned()))),
        (None, Some(name)) => {
            let pem = read_file(ca_dir, name).map_err(|e| format!("`tls_ca_file` in its Payload: {e}"))?;
            Ok(Some((pem, format!("the file {name} that `tls_ca_file` in its Payload names"))))
        }
    }
}

/// A file below the folder of the configuration, never one beside it: whoever may write SourceConfig must not get to
/// know what other files there are.
fn read_file(ca_dir: &Path, name: &str) -> Result<Vec<u8>, String> {
    if ca_dir.as_os_str().is_empty() {
        return Err("no folder for such files is configured; set `sources.ca_dir`".to_owned());
    }
    let relative = Path::new(name);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !plain {
        return Err(format!("{name:?} must name a file below `sources.ca_dir`"));
    }
    let folder = ca_dir
        .canonicalize()
        .map_err(|error| format!("`sources.ca_dir` is {}: {error}", ca_dir.display()))?;
    let file = folder.join(relative).canonicalize().map_err(|error| format!("{name}: {error}"))?;
    if !file.starts_with(&folder) {
        return Err(format!("{name:?} leads out of `sources.ca_dir`"));
    }
    std::fs::read(&file).map_err(|error| format!("{name}: {error}"))
}

fn roots_of(pem: &[u8], place: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("{place} is no PEM text: {error}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("{place} holds a certificate that is none of a CA: {error}"))?;
    }
    if roots.is_empty() {
        return Err(format!("{place} holds no certificate; give PEM text with BEGIN CERTIFICATE"));
    }
    Ok(roots)
}

/// What an operator can do about it.
pub(super) fn explain(error: &rustls::Error) -> String {
    use CertificateError as Bad;
    let rustls::Error::InvalidCertificate(bad) = error else {
        return format!("TLS failed: {error}");
    };
    match bad {
        // A CA of the same name with another key counts as unknown.
        Bad::UnknownIssuer | Bad::BadSignature => {
            "its certificate is signed by no CA that is trusted here; give its CA in Payload of the \
             SourceConfig (tls_ca_pem or tls_ca_file), or have the system trust it"
                .to_owned()
        }
        Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
            format!("its certificate is for another host ({error})")
        }
        Bad::Expired | Bad::ExpiredContext { .. } => format!("its certificate has expired ({error})"),
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
            format!("its certificate is not valid yet ({error})")
        }
        _ => format!("its certificate is not acceptable ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problem(payload: Value, ca_dir: &Path) -> String {
        client_config(&payload, ca_dir, true).unwrap_err()
    }

    #[test]
    fn a_bundle_that_holds_no_ca_is_refused_with_its_place() {
        for pem in ["", "hello", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            let sentence = problem(json!({"tls_ca_pem": pem}), Path::new(""));
            assert!(sentence.contains("`tls_ca_pem` in its Payload"), "{sentence}");
        }
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(problem(json!({"tls_ca_pem": broken}), Path::new("")).contains("none of a CA"));
        assert!(problem(json!({"tls_ca_pem": 5}), Path::new("")).contains("must be a text"));
        assert!(
            problem(json!({"tls_ca_pem": "", "tls_ca_file": "x"}), Path::new("")).contains("one of the two")
        );
    }

    #[test]
    fn a_file_is_read_only_below_the_folder_of_the_configuration() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("cas");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(outside.path().join("secret.pem"), "canary").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret.pem"), folder.join("link.pem")).unwrap();
        let file = |name: &str| problem(json!({ "tls_ca_file": name }), &folder);
        for name in ["../secret.pem", "/etc/hostname", "", "a/../../secret.pem", "./x"] {
            assert!(file(name).contains("must name a file below `sources.ca_dir`"), "{}", file(name));
        }
        assert!(file("link.pem").contains("leads out of"), "{}", file("link.pem"));
        assert!(file("missing.pem").contains("No such file"), "{}", file("missing.pem"));
        let unset = problem(json!({"tls_ca_file": "x.pem"}), Path::new(""));
        assert!(unset.contains("set `sources.ca_dir`"), "{unset}");
    }

    #[test]
    fn a_source_that_speaks_plain_http_needs_no_root_certificates() {
        assert!(client_config(&json!({}), Path::new(""), false).is_ok());
    }
}
