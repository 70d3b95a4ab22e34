//! Which fields of `AuthInfo` belong together, and what is said of those that do not.

use crate::config_rows::AuthInfo;

/// A way to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Basic,
    Bearer,
    OAuth1,
    OAuth2,
    Aws,
}

struct Fields {
    kind: Kind,
    name: &'static str,
    /// Any of them says that this way is meant.
    telling: &'static [&'static str],
    required: &'static [&'static str],
    optional: &'static [&'static str],
}

const KINDS: [Fields; 5] = [
    Fields {
        kind: Kind::Basic,
        name: "basic authentication",
        telling: &["Username", "Password"],
        required: &["Username"],
        optional: &["Password"],
    },
    Fields {
        kind: Kind::Bearer,
        name: "a bearer token",
        telling: &["Token"],
        required: &["Token"],
        optional: &[],
    },
    Fields {
        kind: Kind::OAuth1,
        name: "OAuth 1",
        telling: &["ConsumerKey", "AccessToken", "PrivateKey"],
        required: &["ConsumerKey", "AccessToken", "PrivateKey"],
        optional: &[],
    },
    Fields {
        kind: Kind::OAuth2,
        name: "OAuth 2",
        telling: &["TokenUrl", "ClientSecret"],
        required: &["TokenUrl", "ClientID", "ClientSecret"],
        optional: &["Scope", "Audience", "TokenAuth"],
    },
    Fields {
        kind: Kind::Aws,
        name: "AWS Signature 4",
        telling: &["AccessKeyID", "SecretAccessKey"],
        required: &["AccessKeyID", "SecretAccessKey", "Region", "Service"],
        optional: &["SessionToken"],
    },
];

/// Beside any way to log in.
const API_KEY: [&str; 2] = ["Header", "Key"];

/// Fields with another meaning, of connectors or of the limiter.
const OTHERS: [&str; 9] = [
    "Delay",
    "Concurrency",
    "Host",
    "Port",
    "Database",
    "TenantID",
    "VerifyTLS",
    "Retries",
    "CacheTTLSeconds",
];

/// The way the fields say; `None` where they say none. An error finishes "this source: ".
pub(super) fn kind(auth: &AuthInfo) -> Result<Option<Kind>, String> {
    check_names(auth)?;
    let has = |field: &&&str| auth.text(field).is_some();
    let meant: Vec<(&Fields, &str)> = KINDS
        .iter()
        .filter_map(|fields| fields.telling.iter().find(has).map(|field| (fields, *field)))
        .collect();
    for pair in [API_KEY, [API_KEY[1], API_KEY[0]]] {
        if auth.text(pair[0]).is_some() && auth.text(pair[1]).is_none() {
            return Err(format!("its AuthInfo has {} but no {}; an API key takes both", pair[0], pair[1]));
        }
    }
    match meant[..] {
        [] => Ok(None),
        [(fields, found)] => {
            if let Some(missing) = fields.required.iter().find(|field| auth.text(field).is_none()) {
                let all = fields.required.join(", ");
                return Err(format!(
                    "its AuthInfo has {found} but no {missing}; {} takes {all}",
                    fields.name
                ));
            }
            Ok(Some(fields.kind))
        }
        [(first, one), (second, two), ..] => Err(format!(
            "its AuthInfo has {one} ({}) and {two} ({}); give the fields of one way to log in",
            first.name, second.name
        )),
    }
}

/// Every name this file knows.
fn known() -> impl Iterator<Item = &'static str> {
    KINDS.iter().flat_map(|fields| [fields.required, fields.optional].concat()).chain(API_KEY).chain(OTHERS)
}

/// A misspelt field would be a call without credentials. A name that is like none of ours is a connector's own.
fn check_names(auth: &AuthInfo) -> Result<(), String> {
    for (name, is_text) in auth.names() {
        if known().any(|known| known == name) {
            if !is_text && !OTHERS.contains(&name) {
                return Err(format!("`{name}` in its AuthInfo must be a text"));
            }
            continue;
        }
        let bare = |name: &str| name.to_lowercase().replace(['_', '-', ' '], "");
        let meant = known().find(|known| {
            bare(known) == bare(name)
                || (known.len() > 4 && strsim::osa_distance(&bare(known), &bare(name)) <= 1)
        });
        if let Some(meant) = meant {
            return Err(format!("`{name}` in its AuthInfo is no field; write {meant}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(fields: Value) -> Result<Option<Kind>, String> {
        kind(&AuthInfo::new(fields))
    }

    #[test]
    fn the_fields_say_how_to_log_in() {
        assert_eq!(of(json!({"Delay": 5, "Concurrency": 1})), Ok(None));
        assert_eq!(of(json!({"Header": "X-Key", "Key": "k"})), Ok(None));
        assert_eq!(of(json!({"Username": "u", "Header": "X-Key", "Key": "k"})), Ok(Some(Kind::Basic)));
        assert_eq!(of(json!({"Token": "t", "Port": 0, "VerifyTLS": true})), Ok(Some(Kind::Bearer)));
        for fields in &KINDS {
            let all = fields.required.iter().chain(fields.optional);
            let auth: Value =
                all.map(|field| ((*field).to_owned(), json!("x"))).collect::<serde_json::Map<_, _>>().into();
            assert_eq!(of(auth), Ok(Some(fields.kind)));
        }
    }

    #[test]
    fn a_missing_field_is_named_with_those_it_belongs_to() {
        for (auth, sentence) in [
            (json!({"Password": "p"}), "has Password but no Username; basic authentication takes Username"),
            (
                json!({"ConsumerKey": "c", "PrivateKey": "p"}),
                "has ConsumerKey but no AccessToken; OAuth 1 takes ConsumerKey, AccessToken, PrivateKey",
            ),
            (json!({"ClientSecret": "s", "ClientID": "c"}), "has ClientSecret but no TokenUrl"),
            (json!({"AccessKeyID": "a", "SecretAccessKey": "s", "Region": "r"}), "but no Service"),
            (json!({"Key": "k"}), "has Key but no Header"),
            (json!({"Header": "h"}), "has Header but no Key"),
        ] {
            let problem = of(auth).unwrap_err();
            assert!(problem.contains(sentence), "{problem}");
        }
    }

    #[test]
    fn two_ways_to_log_in_are_one_too_many() {
        let problem = of(json!({"Token": "canary", "Username": "u", "Password": "canary"})).unwrap_err();
        assert_eq!(
            problem,
            "its AuthInfo has Username (basic authentication) and Token (a bearer token); give the fields of one way to \
             log in"
        );
    }

    #[test]
    fn the_page_for_operators_names_every_field_of_every_way() {
        let page = include_str!("../../../docs/sources.md");
        for fields in &KINDS {
            let row = page
                .lines()
                .find(|line| {
                    line.starts_with('|') && fields.required.iter().all(|field| line.contains(field))
                })
                .unwrap_or_else(|| panic!("docs/sources.md has no row for {}", fields.name));
            for field in fields.optional {
                assert!(
                    row.contains(&format!("[{field}]")),
                    "docs/sources.md: {} takes {field}",
                    fields.name
                );
            }
        }
    }

    #[test]
    fn a_misspelt_field_is_refused_and_a_strange_one_is_not_ours() {
        for (name, meant) in [
            ("password", "write Password"),
            ("Pasword", "write Password"),
            ("client_secret", "write ClientSecret"),
            ("TokenURL", "write TokenUrl"),
            ("User-Name", "write Username"),
        ] {
            let problem = of(json!({ name: "canary" })).unwrap_err();
            assert!(problem.contains(meant) && !problem.contains("canary"), "{problem}");
        }
        assert_eq!(of(json!({"host_web_app": "https://x", "OrgId": 5, "note": "n"})), Ok(None));
        assert!(of(json!({"Token": 5})).unwrap_err().contains("`Token` in its AuthInfo must be a text"));
    }
}
