//! Takes secrets out of text that others wrote: answers, errors, URLs. Also in the forms that text gives them.

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{GeneralPurpose, general_purpose::NO_PAD};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};

/// Everything that must not be seen, longest first.
#[derive(Clone, Default)]
pub struct Masker {
    needles: Vec<SecretString>,
}

/// What stays as it is in RFC 3986, in JavaScript's encodeURIComponent and in forms.
const RFC3986: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const COMPONENT: &AsciiSet = &RFC3986.remove(b'!').remove(b'*').remove(b'\'').remove(b'(').remove(b')');
/// What a URL cannot do without, in a query and in a path.
const QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'\'');
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'^');
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'*');

impl Masker {
    /// For these secrets. Empty ones are left out.
    pub fn new(secrets: impl IntoIterator<Item = SecretString>) -> Self {
        let mut needles = Vec::new();
        for secret in secrets {
            let secret = secret.expose_secret();
            forms(secret, &mut needles);
            // A key is a text of many lines; an error may hold one of them.
            for line in secret.lines().map(str::trim).filter(|line| line.len() >= 16 && *line != secret) {
                forms(line, &mut needles);
            }
        }
        needles.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        needles.dedup();
        Self { needles: needles.into_iter().map(SecretString::from).collect() }
    }

    /// `text` with every secret replaced by `***`.
    pub fn mask(&self, text: &str) -> String {
        let mut masked = text.to_owned();
        for needle in &self.needles {
            if masked.contains(needle.expose_secret()) {
                masked = masked.replace(needle.expose_secret(), "***");
            }
        }
        masked
    }
}

/// As it stands, and as URLs, forms, JSON, HTML and base64 write it.
fn forms(secret: &str, into: &mut Vec<String>) {
    if secret.is_empty() {
        return;
    }
    into.push(secret.to_owned());
    for set in [NON_ALPHANUMERIC, RFC3986, COMPONENT, FORM, QUERY, PATH] {
        let encoded = utf8_percent_encode(secret, set).to_string();
        let lower = lower_case_escapes(&encoded);
        for text in [encoded, lower] {
            into.push(text.replace("%20", "+"));
            into.push(text);
        }
    }
    let json = serde_json::Value::from(secret).to_string();
    let json = &json[1..json.len() - 1];
    into.push(json.to_owned());
    into.push(json.replace('/', "\\/"));
    let html = secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    into.push(html.replace('"', "&quot;").replace('\'', "&#39;"));
    into.push(html);
    // Shorter ones are in base64 by chance all the time.
    if secret.len() >= 4 {
        // OAuth 2 encodes it as in a form before it becomes basic authentication.
        let in_form = utf8_percent_encode(secret, FORM).to_string().replace("%20", "+");
        for (alphabet, text) in [(STANDARD, secret), (URL_SAFE, secret), (STANDARD, &in_form)] {
            let engine = GeneralPurpose::new(&alphabet, NO_PAD);
            into.extend((0..3).filter_map(|offset| inner_base64(&engine, text, offset)));
        }
    }
}

/// What base64 makes of the secret behind `offset` other bytes, without the letters that depend on its neighbours:
/// found wherever it stands in a longer text, as the password does in the header of basic authentication.
fn inner_base64(engine: &GeneralPurpose, secret: &str, offset: usize) -> Option<String> {
    let mut bytes = vec![0; offset];
    bytes.extend_from_slice(secret.as_bytes());
    let text = engine.encode(&bytes);
    let begin = (offset * 8).div_ceil(6);
    let end = bytes.len() * 8 / 6;
    text.get(begin..end).filter(|text| text.len() >= 4).map(str::to_owned)
}

fn lower_case_escapes(encoded: &str) -> String {
    let mut left = 0;
    encoded
        .chars()
        .map(|c| {
            left = if c == '%' { 3 } else { usize::saturating_sub(left, 1) };
            if left > 0 { c.to_ascii_lowercase() } else { c }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    use proptest::prelude::*;
    use serde_json::json;

    const CANARY: &str = "cä\"n/ary+ &<pass>=word'";

    fn masker() -> Masker {
        Masker::new([SecretString::from(CANARY)])
    }

    #[test]
    fn a_secret_is_masked_in_every_form_text_gives_it() {
        let url = url::Url::parse_with_params("http://h/", [("key", CANARY)]).unwrap();
        let percent = utf8_percent_encode(CANARY, NON_ALPHANUMERIC).to_string();
        let shown = [
            format!("plain {CANARY}"),
            url.to_string(),
            url::Url::parse(&format!("http://h/{CANARY}/x")).unwrap().to_string(),
            url::Url::parse(&format!("http://h/?{CANARY}")).unwrap().to_string(),
            percent.to_lowercase(),
            percent,
            json!({ "echo": CANARY }).to_string(),
            BASE64_STANDARD.encode(CANARY),
            BASE64_STANDARD.encode(format!("me:{}", url.query().unwrap().trim_start_matches("key="))),
            BASE64_URL_SAFE_NO_PAD.encode(format!("x{CANARY}y")),
            "c\u{e4}&quot;n/ary+ &amp;&lt;pass&gt;=word&#39;".to_owned(),
        ];
        for text in shown {
            let masked = masker().mask(&text);
            assert!(masked.contains("***"), "{text}");
            let plain =
                BASE64_STANDARD.decode(masked.replace("***", "").trim_end_matches('=')).unwrap_or_default();
            let masked = format!("{masked} {}", String::from_utf8_lossy(&plain));
            for piece in ["n/ary", "pass", "word"] {
                assert!(!masked.contains(piece), "{text} -> {masked}");
            }
        }
    }

    #[test]
    fn a_line_of_a_key_is_masked_by_itself() {
        let key = "-----BEGIN PRIVATE KEY-----\nMIICdgIBADANBgkqhkiG9w0B\nshort\n-----END PRIVATE KEY-----\n";
        let masker = Masker::new([SecretString::from(key)]);
        assert_eq!(masker.mask("near MIICdgIBADANBgkqhkiG9w0B: bad"), "near ***: bad");
        assert_eq!(masker.mask("short"), "short");
    }

    proptest! {
        #[test]
        fn base64_of_a_text_around_a_secret_does_not_give_it_away(
            before in "[a-z:]{0,9}", secret in "[A-Za-z0-9]{8,30}", after in "[a-z:]{0,9}"
        ) {
            let masker = Masker::new([SecretString::from(secret.as_str())]);
            let encoded = BASE64_STANDARD.encode(format!("{before}{secret}{after}"));
            let masked = masker.mask(&encoded);
            let left = masked.replace("***", "").trim_end_matches('=').len();
            // The letters of its neighbours, of which the one at each seam has a few bits of the secret.
            let neighbours = (before.len() * 8).div_ceil(6) + (after.len() * 8).div_ceil(6) + 1;
            prop_assert!(left <= neighbours, "{} -> {}", encoded, masked);
        }
    }
}
