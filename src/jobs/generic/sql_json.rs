//! SQL values as JSON and back, through the text the server itself reads and writes.

use serde_json::{Map, Value};
use sqlx::postgres::PgRow;
use sqlx::{Column, Row, TypeInfo, ValueRef};

/// A row that came by the simple protocol, whose values are text.
pub(super) fn row_as_json(row: &PgRow) -> Result<Map<String, Value>, sqlx::Error> {
    let mut object = Map::new();
    for (at, column) in row.columns().iter().enumerate() {
        let value = row.try_get_raw(at)?;
        let json = if value.is_null() {
            Value::Null
        } else {
            let text = value.as_str().map_err(sqlx::Error::Decode)?;
            value_as_json(column.type_info().name(), text)
        };
        object.insert(column.name().to_owned(), json);
    }
    Ok(object)
}

/// Numbers that a double holds exactly become numbers, all others stay text: none is changed.
fn value_as_json(type_name: &str, text: &str) -> Value {
    let as_text = || Value::from(text);
    match type_name {
        "BOOL" => Value::Bool(text == "t"),
        "INT2" | "INT4" | "INT8" | "OID" => text.parse::<i64>().map_or_else(|_| as_text(), Value::from),
        "FLOAT4" | "FLOAT8" => {
            let number = text.parse().ok().and_then(serde_json::Number::from_f64);
            number.map_or_else(as_text, Value::Number)
        }
        "NUMERIC" => match text.parse::<i64>() {
            Ok(number) => Value::from(number),
            Err(_) if text.bytes().filter(u8::is_ascii_digit).count() <= 15 => {
                let number = text.parse().ok().and_then(serde_json::Number::from_f64);
                number.map_or_else(as_text, Value::Number)
            }
            Err(_) => as_text(),
        },
        "JSON" | "JSONB" => match serde_json::from_str(text) {
            // `json`, unlike `jsonb`, may hold an escaped NUL, which Result cannot.
            Ok(json) if !text.contains("\\u0000") => json,
            _ => as_text(),
        },
        _ => as_text(),
    }
}

/// A parameter as text for a value of this type.
pub(super) fn parameter_as_text(value: &Value, type_name: &str) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) if !is_json(type_name) => Some(text.clone()),
        Value::Array(items) if type_name.ends_with("[]") => Some(array_as_text(items)),
        _ => Some(value.to_string()),
    }
}

fn is_json(type_name: &str) -> bool {
    type_name == "JSON" || type_name == "JSONB"
}

fn array_as_text(items: &[Value]) -> String {
    let items: Vec<String> = items
        .iter()
        .map(|item| match item {
            Value::Null => "NULL".to_owned(),
            Value::Array(items) => array_as_text(items),
            Value::String(text) => quoted(text),
            other => quoted(&other.to_string()),
        })
        .collect();
    format!("{{{}}}", items.join(","))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_numbers_only_while_a_double_holds_them() {
        assert_eq!(value_as_json("INT8", "-9223372036854775808"), json!(i64::MIN));
        assert_eq!(value_as_json("NUMERIC", "1.50"), json!(1.5));
        assert_eq!(value_as_json("NUMERIC", "12345678901234567890.5"), json!("12345678901234567890.5"));
        assert_eq!(value_as_json("NUMERIC", "NaN"), json!("NaN"));
        assert_eq!(value_as_json("FLOAT8", "Infinity"), json!("Infinity"));
        assert_eq!(value_as_json("BOOL", "t"), json!(true));
        assert_eq!(value_as_json("JSONB", r#"{"a": [1]}"#), json!({"a": [1]}));
        assert_eq!(value_as_json("UUID", "x"), json!("x"));
    }

    #[test]
    fn parameters_become_the_text_of_their_type() {
        assert_eq!(parameter_as_text(&json!(null), "TEXT"), None);
        assert_eq!(parameter_as_text(&json!("a'b"), "TEXT").unwrap(), "a'b");
        assert_eq!(parameter_as_text(&json!("a"), "JSONB").unwrap(), "\"a\"");
        assert_eq!(parameter_as_text(&json!([1, null, "x\"y"]), "TEXT[]").unwrap(), r#"{"1",NULL,"x\"y"}"#);
        assert_eq!(parameter_as_text(&json!([1, 2]), "JSONB").unwrap(), "[1,2]");
    }
}
