//! The configuration: compiled-in defaults, a file, the environment, the command line.
//!
//! Later counts over earlier: `config/default.toml` (compiled in) < `--config FILE` < `DATABASE_URL` <
//! `ROSTERD__SECTION__KEY` < `RUST_LOG` (for `log.level`) < options. Each layer is checked by itself
//! against one table of rules, so that a complaint can say where the value stands; all complaints of
//! all layers come at once. Variables with a single underscore (`ROSTERD_...`) are left alone, because
//! Kubernetes sets such for a service of our name.

mod error;
mod inspect;
mod rules;
mod sections;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

pub use self::error::{ConfigError, Place, Problem};
pub use self::inspect::{Inspection, Setting};
pub use self::sections::{
    CommandsSection, DatabaseSection, EmbeddedSection, EngineSection, HttpSection, LogFormat, LogSection,
    OpenScapSection, ScheduleSection, SecretsSection, SourcesSection, SqlJobSection, StateSection,
};

/// The text of `config/default.toml`: every key, its unit and meaning.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

const PREFIX: &str = "ROSTERD__";

/// The whole configuration, checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The PostgreSQL to work on.
    pub database: DatabaseSection,
    /// Where things are kept.
    pub state: StateSection,
    /// The private PostgreSQL.
    pub embedded: EmbeddedSection,
    /// What moves the rows.
    pub engine: EngineSection,
    /// What puts rows there.
    pub schedule: ScheduleSection,
    /// What is written where.
    pub log: LogSection,
    /// Health, metrics, dashboard.
    pub http: HttpSection,
    /// Calls to the outside.
    pub sources: SourcesSection,
    /// What `OpenScapRunJob` may run.
    pub openscap: OpenScapSection,
    /// Sealed fields of `AuthInfo`.
    pub secrets: SecretsSection,
    /// What `CommandJob` may do.
    pub commands: CommandsSection,
    /// What `SqlJob` may do.
    pub sql_job: SqlJobSection,
    /// The file given with `--config`.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// Options of the command line that stand over everything else.
#[derive(Clone, Default)]
pub struct Overrides {
    /// `--database-url`
    pub database_url: Option<String>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
}

impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overrides")
            .field("database_url", &self.database_url.as_ref().map(|_| "[REDACTED]"))
            .field("listen", &self.listen)
            .field("state_dir", &self.state_dir)
            .finish()
    }
}

impl Config {
    /// Reads all layers, the environment being that of this process.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        Self::load_with(file, overrides, &environment())
    }

    /// Reads all layers, with an environment given by the caller.
    pub fn load_with(
        file: Option<&Path>,
        overrides: Overrides,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let mut config = Layers::read(file, overrides, environment).finish()?;
        config.file = file.map(Path::to_owned);
        Ok(config)
    }

    /// The compiled-in defaults alone, for tests and as a start for programs of their own.
    ///
    /// # Panics
    /// Never: a test loads `default.toml`.
    pub fn built_in() -> Self {
        match Self::load_with(None, Overrides::default(), &BTreeMap::new()) {
            Ok(config) => config,
            Err(error) => unreachable!("default.toml is part of the program: {error}"),
        }
    }

    /// The folder with the allow-list of `CommandJob`: `commands.dir`, else `commands.d` beside the
    /// configuration file, else `/etc/rosterd/commands.d`.
    pub fn commands_dir(&self) -> PathBuf {
        commands_dir(&self.commands.dir, self.file.as_deref())
    }
}

fn commands_dir(given: &Path, file: Option<&Path>) -> PathBuf {
    let beside = || file.map(|file| file.with_file_name("commands.d"));
    sections::given(given)
        .map(Path::to_owned)
        .or_else(beside)
        .unwrap_or_else(|| PathBuf::from("/etc/rosterd/commands.d"))
}

fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect()
}

/// The layers read so far: checked values for the `config` crate to merge, and where each key was
/// set last.
#[derive(Default)]
struct Layers {
    merged: Vec<Table>,
    places: BTreeMap<String, Place>,
    problems: Vec<Problem>,
}

impl Layers {
    fn read(file: Option<&Path>, overrides: Overrides, environment: &BTreeMap<String, String>) -> Self {
        let mut layers = Self::default();
        layers.add_toml(DEFAULT_TOML, |_| Place::BuiltIn);
        if let Some(file) = file {
            layers.add_file(file);
        }
        layers.add_environment(environment);
        layers.add_overrides(overrides);
        layers
    }

    fn add_file(&mut self, file: &Path) {
        match std::fs::read_to_string(file) {
            Ok(text) => {
                let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
                self.add_toml(text, |line| Place::File { file: file.to_owned(), line });
            }
            Err(error) => self.problems.push(Problem::Unreadable {
                key: "--config",
                file: file.to_owned(),
                reason: error.to_string(),
            }),
        }
    }

    fn add_toml(&mut self, text: &str, place: impl Fn(usize) -> Place) {
        let line_at = |at: usize| text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        let parsed = DeTable::parse(text).and_then(|lines| Ok((lines, toml::from_str::<Table>(text)?)));
        let (lines, values) = match parsed {
            Ok(both) => both,
            Err(error) => {
                // Only the message: the error's own display repeats the line, which may hold a password.
                let reason = format!("this is not TOML: {}", error.message().replace('\n', ", "));
                let line = error.span().map_or(1, |span| line_at(span.start));
                return self.problems.push(Problem::Syntax { reason, place: place(line) });
            }
        };
        let mut layer = Table::new();
        for (section, value) in values {
            let at = line_of(lines.get_ref(), &section).map_or(1, line_at);
            let known_section = rules::RULES.iter().any(|(key, _)| key.split('.').next() == Some(&section));
            let keys = match value {
                Value::Table(keys) if known_section => keys,
                other if known_section => {
                    self.problems.push(Problem::BadValue {
                        value: rules::show(&other),
                        wish: format!("a section [{section}]"),
                        key: section,
                        place: place(at),
                    });
                    continue;
                }
                _ => {
                    self.unknown(section, place(at));
                    continue;
                }
            };
            let inner = lines.get_ref().get(section.as_str()).and_then(|value| value.get_ref().as_table());
            for (key, value) in keys {
                let line = inner.and_then(|inner| line_of(inner, &key)).map_or(at, line_at);
                self.set(&mut layer, &format!("{section}.{key}"), value, place(line));
            }
        }
        self.merged.push(layer);
    }

    fn add_environment(&mut self, environment: &BTreeMap<String, String>) {
        let mut layer = Table::new();
        let set = |name: &str| environment.get(name).filter(|value| !value.trim().is_empty());
        if let Some(url) = set("DATABASE_URL") {
            self.set_text(&mut layer, "database.url", url, Place::Environment("DATABASE_URL".to_owned()));
        }
        for (name, text) in environment {
            if let Some(rest) = name.strip_prefix(PREFIX) {
                let key = rest.to_lowercase().replace("__", ".");
                self.set_text(&mut layer, &key, text, Place::Environment(name.clone()));
            }
        }
        // Made for one run of any program, RUST_LOG is read as EnvFilter reads it; only what it cannot
        // read is refused.
        if let Some(level) = set("RUST_LOG") {
            let place = Place::Environment("RUST_LOG".to_owned());
            if tracing_subscriber::EnvFilter::builder().parse(level).is_ok() {
                self.put(&mut layer, "log.level", Value::String(level.clone()), place);
            } else {
                self.set_text(&mut layer, "log.level", level, place);
            }
        }
        self.merged.push(layer);
    }

    fn add_overrides(&mut self, overrides: Overrides) {
        let mut layer = Table::new();
        if let Some(url) = overrides.database_url {
            self.set_text(&mut layer, "database.url", &url, Place::Option("--database-url"));
        }
        if let Some(listen) = overrides.listen {
            self.set_text(&mut layer, "http.listen", &listen, Place::Option("--listen"));
        }
        if let Some(dir) = overrides.state_dir {
            self.set_text(&mut layer, "state.dir", &dir.to_string_lossy(), Place::Option("--state-dir"));
        }
        self.merged.push(layer);
    }

    fn set_text(&mut self, layer: &mut Table, key: &str, text: &str, place: Place) {
        match rules::rule_of(key) {
            Some(rule) => self.set(layer, key, rule.value_of_text(text), place),
            None => self.unknown(key.to_owned(), place),
        }
    }

    fn set(&mut self, layer: &mut Table, key: &str, value: Value, place: Place) {
        let Some(rule) = rules::rule_of(key) else {
            return self.unknown(key.to_owned(), place);
        };
        match rule.check(&value) {
            Ok(()) => self.put(layer, key, value, place),
            Err(complaint) => self.problems.push(Problem::BadValue {
                key: key.to_owned(),
                value: complaint.value,
                wish: complaint.wish,
                place,
            }),
        }
    }

    fn put(&mut self, layer: &mut Table, key: &str, value: Value, place: Place) {
        self.places.insert(key.to_owned(), place);
        if let Some((section, key)) = key.split_once('.') {
            let keys = layer.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(keys) = keys {
                keys.insert(key.to_owned(), value);
            }
        }
    }

    fn unknown(&mut self, key: String, place: Place) {
        let nearest = rules::nearest(&key).to_owned();
        self.problems.push(Problem::UnknownKey { key, nearest, place });
    }

    fn finish(mut self) -> Result<Config, ConfigError> {
        if !self.problems.is_empty() {
            return Err(ConfigError { problems: self.problems });
        }
        let config: Config = merge(&self.merged)
            .map_err(|error| Problem::Syntax { reason: error.to_string(), place: Place::BuiltIn })?;
        self.check_heartbeat(&config.engine);
        if self.problems.is_empty() { Ok(config) } else { Err(ConfigError { problems: self.problems }) }
    }

    fn check_heartbeat(&mut self, engine: &EngineSection) {
        if engine.heartbeat_seconds < engine.lease_seconds / 3.0 {
            return;
        }
        let place_of = |key: &str| self.places.get(key).filter(|place| **place != Place::BuiltIn);
        let place = place_of("engine.heartbeat_seconds").or_else(|| place_of("engine.lease_seconds"));
        let place = place.cloned().unwrap_or(Place::BuiltIn);
        self.problems.push(Problem::BadValue {
            key: "engine.heartbeat_seconds".to_owned(),
            value: engine.heartbeat_seconds.to_string(),
            wish: format!("less than a third of `engine.lease_seconds`, which is {}", engine.lease_seconds),
            place,
        });
    }
}

fn merge(layers: &[Table]) -> Result<Config, config::ConfigError> {
    let mut builder = config::Config::builder();
    for layer in layers {
        let text = layer.to_string();
        builder = builder.add_source(config::File::from_str(&text, config::FileFormat::Toml));
    }
    builder.build()?.try_deserialize()
}

/// Where a key begins, in bytes.
fn line_of(table: &DeTable<'_>, key: &str) -> Option<usize> {
    table
        .iter()
        .find(|(name, _)| name.get_ref() == key)
        .map(|(name, _): (_, &Spanned<DeValue<'_>>)| name.span().start)
}
