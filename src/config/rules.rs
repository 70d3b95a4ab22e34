//! What each key may hold: one table, used for files, environment and command line alike.

use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use ipnet::IpNet;
use sqlx::postgres::PgConnectOptions;
use toml::Value;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

use crate::secrets::PublicKey;

/// What a key may hold.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// A whole number, both ends included.
    Whole(i64, i64),
    /// A number with or without a fraction, both ends included.
    Number(f64, f64),
    /// True or false.
    Flag,
    /// Any text.
    Text,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// `EnvFilter` directives.
    Filter,
    /// host:port, "off" or nothing.
    Listen,
    /// A PostgreSQL URL or nothing; never shown.
    DatabaseUrl,
    /// A list of networks in CIDR notation.
    Networks,
    /// A list of names of environment variables.
    VariableNames,
    /// A list of files.
    Files,
    /// A list of absolute paths of folders.
    Folders,
    /// An absolute path that ssh takes as it stands, or nothing.
    Path,
    /// The public half of a key or nothing.
    PublicKey,
}

/// The levels a word can name.
pub(super) const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// Every key there is. A test holds it against `default.toml`.
#[rustfmt::skip]
pub(super) const RULES: &[(&str, Rule)] = &[
    ("database.url", Rule::DatabaseUrl),
    ("database.password_file", Rule::Text),
    ("database.max_connections", Rule::Whole(1, 1000)),
    ("database.connect_timeout_seconds", Rule::Number(0.1, 600.0)),
    ("database.statement_timeout_seconds", Rule::Number(0.0, 86_400.0)),
    ("database.answer_timeout_seconds", Rule::Number(0.2, 600.0)),
    ("state.dir", Rule::Text),
    ("embedded.bin_dir", Rule::Text),
    ("embedded.user", Rule::Text),
    ("engine.poll_seconds", Rule::Number(0.05, 60.0)),
    ("engine.workers", Rule::Whole(1, 100_000)),
    ("engine.job_threads", Rule::Whole(0, 1024)),
    ("engine.max_abandoned", Rule::Whole(0, 100_000)),
    ("engine.claim_batch", Rule::Whole(1, 10_000)),
    ("engine.alone_processes", Rule::Whole(0, 64)),
    ("engine.lease_seconds", Rule::Number(0.5, 3600.0)),
    ("engine.heartbeat_seconds", Rule::Number(0.05, 1200.0)),
    ("engine.cancel_grace_seconds", Rule::Number(0.0, 3600.0)),
    ("engine.drain_seconds", Rule::Number(0.0, 86_400.0)),
    ("engine.result_max_bytes", Rule::Whole(1, 104_857_600)),
    ("engine.retry_max_seconds", Rule::Number(1.0, 31_536_000.0)),
    ("engine.archive_after_hours", Rule::Number(0.1, 87_600.0)),
    ("engine.retention_every_seconds", Rule::Number(0.05, 86_400.0)),
    ("schedule.missed_grace_seconds", Rule::Number(0.0, 86_400.0)),
    ("schedule.missed_max", Rule::Whole(1, 100_000)),
    ("log.format", Rule::OneOf(&["classic", "json", "journald"])),
    ("log.level", Rule::Filter),
    ("log.database_level", Rule::OneOf(LEVELS)),
    ("log.database_queue", Rule::Whole(1, 1_000_000)),
    ("http.listen", Rule::Listen),
    ("sources.allow_private", Rule::Networks),
    ("sources.response_max_bytes", Rule::Whole(1, 1_073_741_824)),
    ("sources.decompression_max_ratio", Rule::Whole(1, 1_000_000)),
    ("sources.connect_timeout_seconds", Rule::Number(0.1, 600.0)),
    ("sources.idle_timeout_seconds", Rule::Number(0.1, 86_400.0)),
    ("sources.request_timeout_seconds", Rule::Number(0.1, 86_400.0)),
    ("secrets.keys", Rule::Files),
    ("secrets.public_key", Rule::PublicKey),
    ("secrets.allow_plaintext", Rule::Flag),
    ("sources.retries", Rule::Whole(0, 20)),
    ("sources.retry_base_seconds", Rule::Number(0.001, 600.0)),
    ("sources.retry_max_seconds", Rule::Number(0.001, 3600.0)),
    ("sources.retry_total_seconds", Rule::Number(0.0, 86_400.0)),
    ("sources.ca_dir", Rule::Text),
    ("sources.folders", Rule::Folders),
    ("openscap.content", Rule::Folders),
    ("openscap.oscap", Rule::Path),
    ("openscap.ssh", Rule::Path),
    ("openscap.ssh_identity_file", Rule::Path),
    ("openscap.ssh_known_hosts_file", Rule::Path),
    ("commands.dir", Rule::Text),
    ("commands.output_max_bytes", Rule::Whole(1, 104_857_600)),
    ("commands.env", Rule::VariableNames),
    ("sql_job.allow_own_database", Rule::Flag),
    ("sql_job.max_rows", Rule::Whole(1, 100_000)),
];

/// The rule of a key, if there is such a key.
pub(super) fn rule_of(key: &str) -> Option<Rule> {
    RULES.iter().find(|(known, _)| *known == key).map(|(_, rule)| *rule)
}

/// The key, or for a bare word the section, that was probably meant.
pub(super) fn nearest(key: &str) -> &'static str {
    let alike = strsim::normalized_damerau_levenshtein;
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |known: &str| {
        if key.contains('.') {
            // The right key in the wrong section is nearer than its letters say.
            alike(key, known).max(0.95 * alike(&last(key), &last(known)))
        } else {
            alike(key, known)
        }
    };
    let sections = RULES.iter().filter_map(|(known, _)| known.split('.').next());
    let keys = RULES.iter().map(|(known, _)| *known);
    let candidates: Vec<&'static str> =
        if key.contains('.') { keys.collect() } else { sections.chain(keys).collect() };
    candidates.into_iter().max_by(|a, b| score(a).total_cmp(&score(b))).unwrap_or_default()
}

/// A value that breaks its rule: how to show it and what to wish for.
#[derive(Debug)]
pub(super) struct Complaint {
    pub(super) value: String,
    pub(super) wish: String,
}

impl Rule {
    /// Gives text from the environment or the command line the type that the rule wants. What does
    /// not fit stays text, so that [`Rule::check`] complains about it.
    pub(super) fn value_of_text(self, text: &str) -> Value {
        let trimmed = text.trim();
        let typed = match self {
            Self::Whole(..) => trimmed.parse().ok().map(Value::Integer),
            Self::Number(..) => trimmed.parse().ok().map(Value::Float),
            Self::Flag => trimmed.to_lowercase().parse().ok().map(Value::Boolean),
            Self::OneOf(_) => Some(Value::String(trimmed.to_lowercase())),
            Self::Networks | Self::VariableNames | Self::Files | Self::Folders => {
                let items = trimmed.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
            }
            Self::Text | Self::Filter | Self::Listen | Self::DatabaseUrl | Self::PublicKey | Self::Path => {
                None
            }
        };
        typed.unwrap_or_else(|| Value::String(text.to_owned()))
    }

    /// Checks a value.
    pub(super) fn check(self, value: &Value) -> Result<(), Complaint> {
        let wish = match (self, value) {
            (Self::Whole(least, most), Value::Integer(number)) => {
                range_wish(number < &least, number > &most, &least, &most)
            }
            (Self::Whole(least, most), _) => Some(format!("a whole number from {least} to {most}")),
            (Self::Number(least, most), Value::Integer(_) | Value::Float(_)) => {
                let number = number_of(value);
                // NaN is neither too small nor too large.
                if number.is_nan() {
                    Some(format!("a number from {least} to {most}"))
                } else {
                    range_wish(number < least, number > most, &least, &most)
                }
            }
            (Self::Number(least, most), _) => Some(format!("a number from {least} to {most}")),
            (Self::Flag, Value::Boolean(_)) | (Self::Text, Value::String(_)) => None,
            (Self::Flag, _) => Some("true or false".to_owned()),
            (Self::Text, _) => Some("text in quotes".to_owned()),
            (Self::OneOf(words), Value::String(word)) if words.contains(&word.as_str()) => None,
            (Self::OneOf(words), _) => Some(one_of(words)),
            (Self::Filter, Value::String(text)) => filter_wish(text),
            (Self::Filter, _) => Some(one_of(LEVELS)),
            (Self::Listen, Value::String(text)) if is_listen(text) => None,
            (Self::Listen, _) => Some("host:port such as \"127.0.0.1:9420\", or \"off\"".to_owned()),
            (Self::DatabaseUrl, Value::String(text)) if is_database_url(text) => None,
            (Self::DatabaseUrl, _) => Some(DATABASE_URL_WISH.to_owned()),
            (Self::PublicKey, Value::String(text))
                if text.is_empty() || text.parse::<PublicKey>().is_ok() =>
            {
                None
            }
            (Self::PublicKey, _) => Some("the public key that `rosterd secret keygen` printed".to_owned()),
            (Self::Path, Value::String(path)) if is_path(path) => None,
            (Self::Path, _) => {
                Some("a path from the root without blanks, quotes, % and backslashes, or \"\"".to_owned())
            }
            (Self::Networks | Self::VariableNames | Self::Files | Self::Folders, Value::Array(items)) => {
                return items.iter().try_for_each(|item| self.check_item(item));
            }
            (Self::Networks | Self::VariableNames | Self::Files | Self::Folders, _) => {
                Some(self.list_wish().to_owned())
            }
        };
        match wish {
            None => Ok(()),
            Some(wish) => Err(Complaint { value: self.show(value), wish }),
        }
    }

    fn check_item(self, item: &Value) -> Result<(), Complaint> {
        let fits = match (self, item) {
            (Self::Networks, Value::String(text)) => parse_network(text).is_some(),
            (Self::VariableNames, Value::String(name)) => {
                !name.is_empty() && !name.contains(['=', '\0']) && !name.contains(char::is_whitespace)
            }
            (Self::Files, Value::String(file)) => !file.trim().is_empty(),
            (Self::Folders, Value::String(folder)) => Path::new(folder).is_absolute(),
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let value = format!("a list with {}", self.show(item));
        Err(Complaint { value, wish: self.list_wish().to_owned() })
    }

    fn list_wish(self) -> &'static str {
        match self {
            Self::Networks => "a list of networks such as [\"10.0.0.0/8\", \"127.0.0.0/8\"]",
            Self::Files => "a list of files such as [\"/etc/rosterd/secret.key\"]",
            Self::Folders => "a list of folders, each from the root, such as [\"/srv/scap\"]",
            _ => "a list of names of environment variables such as [\"PATH\", \"TZ\"]",
        }
    }

    fn show(self, value: &Value) -> String {
        // Somebody may have put the private key here.
        if matches!(self, Self::DatabaseUrl | Self::PublicKey) {
            return "something else (kept secret here)".to_owned();
        }
        show(value)
    }
}

const DATABASE_URL_WISH: &str = "postgres://user:password@host:5432/name, with special characters in the password \
     percent-encoded";

/// A value in short, on one line.
pub(super) fn show(value: &Value) -> String {
    const MOST: usize = 60;
    let text = match value {
        Value::Table(_) => return "a section".to_owned(),
        // Debug quotes it and escapes line ends.
        Value::String(text) => format!("{text:?}"),
        other => other.to_string().replace(['\n', '\r'], " "),
    };
    if text.chars().count() > MOST { text.chars().take(MOST).chain("...".chars()).collect() } else { text }
}

/// Reads a network, or a single address as the network that holds only it.
pub(super) fn parse_network(text: &str) -> Option<IpNet> {
    let text = text.trim();
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[allow(clippy::cast_precision_loss)] // No limit is anywhere near 2^52.
fn number_of(value: &Value) -> f64 {
    match value {
        Value::Integer(number) => *number as f64,
        Value::Float(number) => *number,
        _ => f64::NAN,
    }
}

fn range_wish<T: ToString>(below: bool, above: bool, least: &T, most: &T) -> Option<String> {
    if below {
        Some(format!("{} or more", least.to_string()))
    } else if above {
        Some(format!("{} or less", most.to_string()))
    } else {
        None
    }
}

fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

fn filter_wish(text: &str) -> Option<String> {
    let readable = !text.trim().is_empty() && EnvFilter::builder().parse(text).is_ok();
    // EnvFilter takes any bare word for a module and then shows it alone, so that a misspelt level
    // would silence the daemon. A module is written `module=level` here.
    let has_spans = text.contains('[');
    let word_is_level = |word: &str| word.contains('=') || LevelFilter::from_str(word).is_ok();
    if readable && (has_spans || text.split(',').map(str::trim).all(word_is_level)) {
        return None;
    }
    Some(format!("{}, or directives such as \"info,rosterd=debug\"", one_of(LEVELS)))
}

fn is_listen(text: &str) -> bool {
    if text.is_empty() || text == "off" {
        return true;
    }
    match text.rsplit_once(':') {
        Some((host, port)) => {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            port.parse::<u16>().is_ok()
                && !host.is_empty()
                && (bracketed || !host.contains(':'))
                && !host.contains(char::is_whitespace)
        }
        None => false,
    }
}

/// ssh gives a meaning of its own to what is not taken here.
fn is_path(text: &str) -> bool {
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && !"\"'%\\".contains(c);
    text.is_empty() || (Path::new(text).is_absolute() && text.chars().all(is_plain))
}

fn is_database_url(text: &str) -> bool {
    text.is_empty()
        || ((text.starts_with("postgres://") || text.starts_with("postgresql://"))
            && PgConnectOptions::from_str(text).is_ok())
}
