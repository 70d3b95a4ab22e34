//! The configuration as an operator checks it: every value that counts, where it was set, and all problems.

use super::{Config, ConfigError, Layers, Overrides, Place};
use sqlx::postgres::PgConnectOptions;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use toml::Value;

/// One key with the value that counts.
#[derive(Debug, Clone)]
pub struct Setting {
    /// `section.key`.
    pub key: String,
    /// Where it was set last.
    pub place: Place,
    value: Value,
}

impl Setting {
    /// The value as TOML, a secret masked.
    pub fn shown(&self) -> String {
        match &self.value {
            Value::String(url) if self.key == "database.url" => Value::String(masked(url)).to_string(),
            other => other.to_string(),
        }
    }
}

/// What [`Config::inspect`] found.
#[derive(Debug)]
pub struct Inspection {
    /// The configuration, or everything that is wrong with it.
    pub outcome: Result<Config, ConfigError>,
    /// Every key with an acceptable value, sorted by section as in `default.toml`.
    pub settings: Vec<Setting>,
    file: Option<PathBuf>,
}

impl Inspection {
    /// As [`Config::commands_dir`], also where other keys are wrong.
    pub fn commands_dir(&self) -> PathBuf {
        let dir = self.settings.iter().find(|setting| setting.key == "commands.dir");
        let dir = dir.and_then(|setting| setting.value.as_str()).unwrap_or_default();
        super::commands_dir(Path::new(dir), self.file.as_deref())
    }

    /// Whether somebody set this key to something.
    pub fn is_set(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| {
            setting.key == key && setting.place != Place::BuiltIn && setting.value.as_str() != Some("")
        })
    }
}

impl Config {
    /// Reads all layers like [`Config::load`] and tells what it read, problems or not.
    pub fn inspect(file: Option<&Path>, overrides: Overrides) -> Inspection {
        let layers = Layers::read(file, overrides, &super::environment());
        let settings = settings(&layers);
        let outcome = layers.finish().map(|config| Self { file: file.map(Path::to_owned), ..config });
        Inspection { outcome, settings, file: file.map(Path::to_owned) }
    }
}

fn settings(layers: &Layers) -> Vec<Setting> {
    let value_of = |key: &str| {
        let (section, key) = key.split_once('.')?;
        layers.merged.iter().rev().find_map(|layer| layer.get(section)?.get(key)).cloned()
    };
    super::rules::RULES
        .iter()
        .filter_map(|(key, _)| {
            let place = layers.places.get(*key)?.clone();
            Some(Setting { key: (*key).to_owned(), place, value: value_of(key)? })
        })
        .collect()
}

/// What a URL connects to, made anew from what was understood, so that nothing else of it can slip through.
fn masked(url: &str) -> String {
    let Ok(options) = PgConnectOptions::from_str(url) else { return String::new() };
    let host = options
        .get_socket()
        .map_or_else(|| options.get_host().to_owned(), |socket| socket.display().to_string());
    let user = options.get_username();
    let port = options.get_port();
    let database = options.get_database().unwrap_or(user);
    let secret = has_password(url);
    if host.starts_with('/') {
        let password = if secret { "&password=***" } else { "" };
        format!("postgres:///{database}?host={host}&port={port}&user={user}{password}")
    } else {
        let password = if secret { ":***" } else { "" };
        format!("postgres://{user}{password}@{host}:{port}/{database}")
    }
}

fn has_password(url: &str) -> bool {
    url::Url::parse(url)
        .is_ok_and(|url| url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_keeps_everything_but_the_password() {
        for (url, shown) in [
            ("postgres://u:canary@h:1/d", "postgres://u:***@h:1/d"),
            ("postgres://u@h:1/d?password=canary", "postgres://u:***@h:1/d"),
            ("postgres://u@h:1/d", "postgres://u@h:1/d"),
            (
                "postgres:///d?host=/run/x&port=7&user=u&password=canary",
                "postgres:///d?host=/run/x&port=7&user=u&password=***",
            ),
        ] {
            assert_eq!(masked(url), shown);
        }
    }
}
