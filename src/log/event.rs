//! An event as text: its type, its message, its fields, made harmless.

use std::error::Error;
use std::fmt::{self, Write};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::MAX_LINE_BYTES;

/// The rows of the table `LogType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum LogType {
    /// INFO
    Info = 0,
    /// WARN
    Warn = 1,
    /// ERR
    Error = 2,
    /// CRIT; kept for operators' own lines, rosterd writes none.
    Critical = 3,
    /// FATL; kept for operators' own lines, rosterd writes none.
    Fatal = 4,
    /// DBUG, for DEBUG and TRACE
    Debug = 5,
}

impl LogType {
    /// `LogType.ID`
    pub fn id(self) -> i32 {
        self as i32
    }

    /// `LogType.Type`, as in the classic format
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERR",
            Self::Critical => "CRIT",
            Self::Fatal => "FATL",
            Self::Debug => "DBUG",
        }
    }
}

impl From<Level> for LogType {
    fn from(level: Level) -> Self {
        match level {
            Level::ERROR => Self::Error,
            Level::WARN => Self::Warn,
            Level::INFO => Self::Info,
            Level::DEBUG | Level::TRACE => Self::Debug,
        }
    }
}

/// What an event says. Texts are capped, not yet escaped.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) message: String,
    pub(super) fields: Vec<(&'static str, Value)>,
}

impl Said {
    pub(super) fn by(event: &Event<'_>) -> Self {
        let mut said = Self::default();
        event.record(&mut said);
        said
    }

    /// The message and the fields as `key=value`, without the field `except`, escaped.
    pub(super) fn text(&self, except: Option<&str>) -> String {
        let mut text = escape(&self.message);
        for (name, value) in self.fields.iter().filter(|(name, _)| Some(*name) != except) {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(name);
            text.push('=');
            match value {
                Value::String(value) => push_value(&mut text, value),
                other => text.push_str(&other.to_string()),
            }
        }
        text
    }

    /// The field `error`, escaped.
    pub(super) fn error(&self) -> Option<String> {
        self.fields.iter().find(|(name, _)| *name == "error").map(|(_, value)| match value {
            Value::String(text) => escape(text),
            other => other.to_string(),
        })
    }

    fn put(&mut self, field: &Field, value: Value) {
        // `log.` stands before where a record of the `log` crate came from, which nobody asked for.
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) if !name.starts_with("log.") => self.fields.push((name, value)),
            _ => {}
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::String(capped(format!("{value:?}"))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::String(cap(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut chain = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            // A String takes every write.
            let _ = write!(chain, ": {error}");
            source = error.source();
        }
        self.put(field, Value::String(capped(chain)));
    }
}

/// Writes control characters, line separators and the marks that turn text around as escapes, so that
/// a message stays on its line and looks like what it is. NUL, which PostgreSQL cannot store, goes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\0' => {}
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                escaped.extend(letter.escape_unicode());
            }
            other if other.is_control() => escaped.extend(other.escape_unicode()),
            other => escaped.push(other),
        }
    }
    escaped
}

/// At most [`MAX_LINE_BYTES`] of the text; what is cut is counted at its end.
pub(super) fn cap(text: &str) -> String {
    const NOTE_BYTES: usize = 40;
    if text.len() <= MAX_LINE_BYTES {
        return text.to_owned();
    }
    let kept = &text[..text.floor_char_boundary(MAX_LINE_BYTES - NOTE_BYTES)];
    format!("{kept}... ({} bytes more)", text.len() - kept.len())
}

pub(super) fn capped(text: String) -> String {
    if text.len() <= MAX_LINE_BYTES { text } else { cap(&text) }
}

/// A value with spaces is quoted, unless it looks like a quoted or bracketed one already.
fn push_value(text: &mut String, value: &str) {
    let bare = !value.is_empty() && !value.contains(|letter: char| letter.is_whitespace() || letter == '=');
    if bare || value.starts_with(['"', '[', '{', '(']) {
        text.push_str(&escape(value));
    } else {
        let _ = write!(text, "{value:?}");
    }
}
