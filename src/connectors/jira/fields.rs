//! Values of fields, as JIRA writes them by the type of the field.

use super::document;
use super::settings::Flavour;
use super::wire::Schema;
use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use serde_json::{Value, json};

/// A summary at most; as Java counts, because JIRA does.
pub(super) const LINE: usize = 255;
/// A longer text at most, unless JIRA's administrators allow more.
pub(super) const TEXT: usize = 32_767;

/// What a field holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// One line.
    Line,
    /// Any number of lines; on Cloud a document.
    Text,
    /// One of many labels.
    Label,
    Date,
    DateTime,
    Number,
    /// One of a list: `{"value": ...}`.
    Choice,
    /// Something else that has a name: a group, a priority, a component.
    Named,
    User,
    Many(Box<Kind>),
}

/// A value of ours.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Given {
    Text(String),
    Number(f64),
    Instant(DateTime<Utc>),
}

impl Kind {
    /// By JIRA's schema; `None`: nothing that can be written here.
    pub(super) fn of(schema: &Schema) -> Option<Self> {
        let custom = schema.custom.as_deref().unwrap_or_default();
        let system = schema.system.as_deref().unwrap_or_default();
        match schema.kind.as_str() {
            "string" if custom.ends_with(":textarea") || ["description", "environment"].contains(&system) => {
                Some(Self::Text)
            }
            "array" if schema.items.as_deref() == Some("string") => Some(Self::Many(Box::new(Self::Label))),
            "array" => Some(Self::Many(Box::new(Self::single(schema.items.as_deref()?)?))),
            kind => Self::single(kind),
        }
    }

    fn single(kind: &str) -> Option<Self> {
        Some(match kind {
            "string" => Self::Line,
            "date" => Self::Date,
            "datetime" => Self::DateTime,
            "number" => Self::Number,
            "option" => Self::Choice,
            "group" | "priority" | "component" | "version" | "securitylevel" | "resolution" => Self::Named,
            "user" => Self::User,
            _ => return None,
        })
    }

    /// A value as this field takes it. An error finishes "the field ".
    pub(super) fn encode(&self, given: &Given, flavour: Flavour) -> Result<Value, String> {
        let text = given.text();
        let refused = |kind: &str| Err(format!("takes {kind}, and {text:?} is none"));
        Ok(match self {
            Self::Line => {
                let bound = if flavour == Flavour::Cloud { LINE } else { TEXT };
                json!(one_line(&text, bound))
            }
            Self::Text => long_text(&text, flavour),
            // A label ends at a space.
            Self::Label => json!(one_line(&text, LINE).replace(' ', "_")),
            Self::Choice => json!({"value": text}),
            Self::Named => json!({"name": text}),
            Self::User => user(&text, flavour),
            Self::Number => match given {
                Given::Number(number) => json!(number),
                _ => match text.trim().parse::<f64>() {
                    Ok(number) if number.is_finite() => json!(number),
                    _ => return refused("numbers"),
                },
            },
            Self::Date => match given {
                Given::Instant(at) => json!(at.date_naive().to_string()),
                _ => match text.parse::<NaiveDate>() {
                    Ok(date) => json!(date.to_string()),
                    Err(_) => return refused("dates"),
                },
            },
            Self::DateTime => match given {
                Given::Instant(at) => json!(time(*at)),
                _ => return refused("times"),
            },
            Self::Many(kind) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                let parts: Result<Vec<Value>, String> =
                    parts.map(|part| kind.encode(&Given::Text(part.to_owned()), flavour)).collect();
                json!(parts?)
            }
        })
    }
}

impl Given {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            // As scores are written: 7.0, 9.8.
            Self::Number(number) => format!("{number:.1}"),
            Self::Instant(at) => at.to_rfc3339_opts(SecondsFormat::Secs, true),
        }
    }
}

/// A time as JIRA writes it.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%S%.3f%z").to_string()
}

/// A user as this JIRA knows them.
pub(super) fn user(name: &str, flavour: Flavour) -> Value {
    match flavour {
        Flavour::Server => json!({ "name": name }),
        Flavour::Cloud => json!({ "accountId": name }),
    }
}

/// A text of many lines, cut where JIRA would refuse it.
pub(super) fn long_text(text: &str, flavour: Flavour) -> Value {
    let text = at_most(text, TEXT);
    match flavour {
        Flavour::Server => json!(text),
        Flavour::Cloud => document::from_text(&text),
    }
}

/// What a value says; `None` where it says nothing.
pub(super) fn text(value: &Value) -> Option<String> {
    let said = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Array(parts) => parts.iter().filter_map(text).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => ["value", "accountId", "name"]
            .iter()
            .find_map(|name| fields.get(*name)?.as_str().map(str::to_owned))
            .or_else(|| document::to_text(value))?,
        Value::Null | Value::Bool(_) => return None,
    };
    let said = said.trim();
    (!said.is_empty()).then(|| said.to_owned())
}

/// The time of a field, or midnight (UTC) of its day.
pub(super) fn instant(value: &Value) -> Option<DateTime<Utc>> {
    let said = value.as_str()?.trim();
    let time = DateTime::parse_from_str(said, "%Y-%m-%dT%H:%M:%S%.f%z");
    match time.or_else(|_| DateTime::parse_from_rfc3339(said)) {
        Ok(at) => Some(at.with_timezone(&Utc)),
        Err(_) => Some(said.parse::<NaiveDate>().ok()?.and_hms_opt(0, 0, 0)?.and_utc()),
    }
}

/// The day of a field.
pub(super) fn date(value: &Value) -> Option<NaiveDate> {
    value.as_str()?.trim().get(..10)?.parse().ok()
}

/// On one line, and cut.
pub(super) fn one_line(text: &str, bound: usize) -> String {
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    at_most(&words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "), bound)
}

/// Cut to this many UTF-16 units, with a mark that it was.
pub(super) fn at_most(text: &str, bound: usize) -> String {
    if text.encode_utf16().count() <= bound {
        return text.to_owned();
    }
    let mut units = 1;
    let kept = text.chars().take_while(|c| {
        units += c.len_utf16();
        units <= bound
    });
    kept.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(kind: &str, items: Option<&str>, custom: &str) -> Option<Kind> {
        Kind::of(&Schema {
            kind: kind.to_owned(),
            items: items.map(str::to_owned),
            custom: Some(custom.to_owned()),
            system: None,
        })
    }

    #[test]
    fn a_value_is_written_by_the_type_of_its_field() {
        let text = |text: &str| Given::Text(text.to_owned());
        let at = "2026-11-30T09:24:57.5Z".parse::<DateTime<Utc>>().unwrap();
        for (kind, given, server, cloud) in [
            (kind("string", None, "x:textfield"), text("a\nb"), json!("a b"), json!("a b")),
            (kind("number", None, ""), Given::Number(9.8), json!(9.8), json!(9.8)),
            (kind("number", None, ""), text("7"), json!(7.0), json!(7.0)),
            (kind("string", None, ""), Given::Number(7.0), json!("7.0"), json!("7.0")),
            (kind("option", None, ""), text("High"), json!({"value": "High"}), json!({"value": "High"})),
            (kind("group", None, ""), text("ops"), json!({"name": "ops"}), json!({"name": "ops"})),
            (kind("priority", None, ""), text("High"), json!({"name": "High"}), json!({"name": "High"})),
            (kind("user", None, ""), text("ada"), json!({"name": "ada"}), json!({"accountId": "ada"})),
            (
                kind("array", Some("option"), ""),
                text("a, b"),
                json!([{"value": "a"}, {"value": "b"}]),
                json!([{"value": "a"}, {"value": "b"}]),
            ),
            (kind("array", Some("string"), ""), text("a b,c"), json!(["a_b", "c"]), json!(["a_b", "c"])),
            (
                kind("datetime", None, ""),
                Given::Instant(at),
                json!("2026-11-30T09:24:57.500+0000"),
                json!("2026-11-30T09:24:57.500+0000"),
            ),
            (kind("date", None, ""), Given::Instant(at), json!("2026-11-30"), json!("2026-11-30")),
            (kind("string", None, "x:textarea"), text("a\nb"), json!("a\nb"), document::from_text("a\nb")),
        ] {
            let kind = kind.unwrap();
            assert_eq!(kind.encode(&given, Flavour::Server).unwrap(), server, "{kind:?}");
            assert_eq!(kind.encode(&given, Flavour::Cloud).unwrap(), cloud, "{kind:?}");
        }
        assert_eq!(kind("option-with-child", None, ""), None);
        assert!(Kind::Number.encode(&text("x"), Flavour::Server).unwrap_err().contains("takes numbers"));
        assert!(Kind::DateTime.encode(&text("x"), Flavour::Server).is_err());
    }

    #[test]
    fn a_value_is_read_whatever_its_shape() {
        for (value, said) in [
            (json!("x"), Some("x")),
            (json!({"value": "High", "id": "1"}), Some("High")),
            (json!({"name": "ops"}), Some("ops")),
            (json!({"accountId": "5b1", "displayName": "Ada"}), Some("5b1")),
            (json!([{"value": "a"}, {"value": "b"}]), Some("a, b")),
            (json!(9.8), Some("9.8")),
            (document::from_text("deep"), Some("deep")),
            (json!(" "), None),
            (Value::Null, None),
            (json!([]), None),
        ] {
            assert_eq!(text(&value).as_deref(), said, "{value}");
        }
        let at = |text: &str| instant(&json!(text)).map(|at| at.to_rfc3339());
        assert_eq!(at("2026-11-30T10:24:57.123+0100").unwrap(), "2026-11-30T09:24:57.123+00:00");
        assert_eq!(at("2026-11-30T10:24:57Z").unwrap(), "2026-11-30T10:24:57+00:00");
        assert_eq!(at("2026-11-30").unwrap(), "2026-11-30T00:00:00+00:00");
        assert_eq!(at("soon"), None);
        assert_eq!(date(&json!("2026-11-30T23:00:00.000+0000")).unwrap().to_string(), "2026-11-30");
    }

    #[test]
    fn a_text_is_cut_as_java_counts() {
        assert_eq!(at_most("abc", 3), "abc");
        assert_eq!(at_most("abcd", 3), "ab…");
        assert_eq!(at_most("😀😀", 4), "😀😀");
        assert_eq!(at_most("😀😀😀", 4), "😀…");
        assert_eq!(one_line(" a\r\n\tb \u{0} c", 255), "a b c");
    }
}
