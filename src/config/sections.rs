//! The sections of the configuration. Units are in the field names; the methods give types.
//!
//! Meanings, ranges and defaults of the keys stand in `config/default.toml`, once.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::available_parallelism;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};
use sqlx::postgres::PgConnectOptions;
use tracing::level_filters::LevelFilter;

use super::error::{ConfigError, Place, Problem};
use super::rules;
use crate::postgres::connect::Limits;

/// `[database]`: the PostgreSQL to work on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // Each key is explained in default.toml.
pub struct DatabaseSection {
    pub url: SecretString,
    pub password_file: PathBuf,
    pub max_connections: u32,
    pub connect_timeout_seconds: f64,
    pub statement_timeout_seconds: f64,
    pub answer_timeout_seconds: f64,
}

impl DatabaseSection {
    /// How to connect, with the password file read now; `None` without a URL, which means the
    /// embedded server. No error repeats the URL or the password.
    pub fn connect_options(&self) -> Result<Option<PgConnectOptions>, ConfigError> {
        let url = self.url.expose_secret();
        if url.is_empty() {
            return Ok(None);
        }
        let options = PgConnectOptions::from_str(url).map_err(|_| Problem::BadValue {
            key: "database.url".to_owned(),
            value: "not understood (kept secret here)".to_owned(),
            wish: "postgres://user:password@host:5432/name".to_owned(),
            place: Place::Program,
        })?;
        Ok(Some(match self.password()? {
            Some(password) => options.password(password.expose_secret()),
            None => options,
        }))
    }

    /// The password in `password_file` without its line end; `None` where no file is configured.
    /// The error names the file. Read anew each time, because secrets get rotated.
    pub fn password(&self) -> Result<Option<SecretString>, ConfigError> {
        if self.password_file.as_os_str().is_empty() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&self.password_file).map_err(|error| Problem::Unreadable {
            key: "database.password_file",
            file: self.password_file.clone(),
            reason: error.to_string(),
        })?;
        Ok(Some(SecretString::from(text.trim_end_matches(['\r', '\n']))))
    }

    /// Whether there is a URL; without one the embedded server is used.
    pub fn has_url(&self) -> bool {
        !self.url.expose_secret().is_empty()
    }

    /// How long to wait for a connection.
    pub fn connect_timeout(&self) -> Duration {
        seconds(self.connect_timeout_seconds)
    }

    /// When the server ends a statement; zero is never, as for PostgreSQL itself.
    pub fn statement_timeout(&self) -> Duration {
        seconds(self.statement_timeout_seconds)
    }

    /// How long the answer to a statement that costs nothing may take.
    pub fn answer_timeout(&self) -> Duration {
        seconds(self.answer_timeout_seconds)
    }

    /// All of these together.
    pub fn limits(&self) -> Limits {
        Limits {
            connect: self.connect_timeout(),
            statement: self.statement_timeout(),
            answer: self.answer_timeout(),
        }
    }
}

/// `[state]`: where things are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct StateSection {
    pub dir: PathBuf,
}

impl StateSection {
    /// The folder that was configured; `None` means the usual one of this machine.
    pub fn dir(&self) -> Option<&Path> {
        given(&self.dir)
    }
}

/// `[embedded]`: the private PostgreSQL.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EmbeddedSection {
    pub bin_dir: PathBuf,
    pub user: String,
}

impl EmbeddedSection {
    /// The folder of the server programs; `None` means that they are searched for.
    pub fn bin_dir(&self) -> Option<&Path> {
        given(&self.bin_dir)
    }

    /// The user that runs the server when we are root; `None` means that one is chosen.
    pub fn user(&self) -> Option<&str> {
        (!self.user.is_empty()).then_some(self.user.as_str())
    }
}

/// `[engine]`: what moves the rows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EngineSection {
    pub poll_seconds: f64,
    pub workers: usize,
    pub job_threads: usize,
    pub max_abandoned: usize,
    pub claim_batch: usize,
    pub alone_processes: usize,
    pub lease_seconds: f64,
    pub heartbeat_seconds: f64,
    pub cancel_grace_seconds: f64,
    pub drain_seconds: f64,
    pub result_max_bytes: usize,
    pub retry_max_seconds: f64,
    pub archive_after_hours: f64,
    pub retention_every_seconds: f64,
}

impl EngineSection {
    /// Between two looks at the queue.
    pub fn poll(&self) -> Duration {
        seconds(self.poll_seconds)
    }

    /// Without a sign of life for this long, a runner is taken for dead.
    pub fn lease(&self) -> Duration {
        seconds(self.lease_seconds)
    }

    /// Between two signs of life.
    pub fn heartbeat(&self) -> Duration {
        seconds(self.heartbeat_seconds)
    }

    /// What a cancelled job has to end by itself.
    pub fn cancel_grace(&self) -> Duration {
        seconds(self.cancel_grace_seconds)
    }

    /// What running jobs have after SIGTERM.
    pub fn drain(&self) -> Duration {
        seconds(self.drain_seconds)
    }

    /// Between two attempts at most.
    pub fn retry_max(&self) -> Duration {
        seconds(self.retry_max_seconds)
    }

    /// How long finished rows stay beside the live ones.
    pub fn archive_after(&self) -> Duration {
        seconds(self.archive_after_hours * 3600.0)
    }

    /// Between two turns of the archive.
    pub fn retention_every(&self) -> Duration {
        seconds(self.retention_every_seconds)
    }

    /// The threads that run jobs, with 0 resolved: the cores of this machine, at least 2.
    pub fn threads(&self) -> usize {
        match self.job_threads {
            0 => available_parallelism().map_or(2, usize::from).max(2),
            threads => threads,
        }
    }

    /// With more abandoned runs than this the daemon gives up: `max_abandoned`, or one thread less than there are,
    /// because a runner whose every thread is held starts jobs that never move. `None`: it never gives up.
    pub fn most_abandoned(&self) -> Option<usize> {
        (self.max_abandoned > 0).then(|| self.max_abandoned.min(self.threads() - 1))
    }
}

/// `[schedule]`: what puts rows there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ScheduleSection {
    pub missed_grace_seconds: f64,
    pub missed_max: usize,
}

impl ScheduleSection {
    /// How late a due time still counts as on time.
    pub fn missed_grace(&self) -> Duration {
        seconds(self.missed_grace_seconds)
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `2020-04-21 17:18:30 | [INFO] [TicketingJob:NORTON:<JobHistory ID>] - ...`
    Classic,
    /// One JSON object a line.
    Json,
    /// Straight to the systemd journal.
    Journald,
}

/// `[log]`: what is written where.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LogSection {
    pub format: LogFormat,
    pub level: String,
    #[serde(deserialize_with = "level")]
    pub database_level: LevelFilter,
    pub database_queue: usize,
}

/// `[http]`: health, metrics, dashboard.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct HttpSection {
    pub listen: String,
}

impl HttpSection {
    /// The address, host:port, or `None` where there is to be no server.
    pub fn address(&self) -> Option<&str> {
        (!self.listen.is_empty() && self.listen != "off").then_some(self.listen.as_str())
    }
}

/// `[sources]`: calls to the outside.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SourcesSection {
    #[serde(deserialize_with = "networks")]
    pub allow_private: Vec<IpNet>,
    pub response_max_bytes: usize,
    pub decompression_max_ratio: usize,
    pub connect_timeout_seconds: f64,
    pub idle_timeout_seconds: f64,
    pub request_timeout_seconds: f64,
    pub retries: u32,
    pub retry_base_seconds: f64,
    pub retry_max_seconds: f64,
    pub retry_total_seconds: f64,
    pub ca_dir: PathBuf,
    pub folders: Vec<PathBuf>,
}

impl SourcesSection {
    /// How long to wait for a connection.
    pub fn connect_timeout(&self) -> Duration {
        seconds(self.connect_timeout_seconds)
    }

    /// How long an answer may stand still once it has begun.
    pub fn idle_timeout(&self) -> Duration {
        seconds(self.idle_timeout_seconds)
    }

    /// How long the first back-off is at most.
    pub fn retry_base(&self) -> Duration {
        seconds(self.retry_base_seconds)
    }

    /// How long a back-off is at most.
    pub fn retry_max(&self) -> Duration {
        seconds(self.retry_max_seconds)
    }

    /// How long after the first start another try may begin.
    pub fn retry_total(&self) -> Duration {
        seconds(self.retry_total_seconds)
    }

    /// How long one try may take in all.
    pub fn request_timeout(&self) -> Duration {
        seconds(self.request_timeout_seconds)
    }
}

/// `[openscap]`: what `OpenScapRunJob` may run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct OpenScapSection {
    pub content: Vec<PathBuf>,
    pub oscap: PathBuf,
    pub ssh: PathBuf,
    pub ssh_identity_file: PathBuf,
    pub ssh_known_hosts_file: PathBuf,
}

/// `[secrets]`: sealed fields of `AuthInfo`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SecretsSection {
    pub keys: Vec<PathBuf>,
    pub public_key: String,
    pub allow_plaintext: bool,
}

/// `[commands]`: what `CommandJob` may do. The folder is [`super::Config::commands_dir`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct CommandsSection {
    pub dir: PathBuf,
    pub output_max_bytes: usize,
    pub env: Vec<String>,
}

/// `[sql_job]`: what `SqlJob` may do.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SqlJobSection {
    pub allow_own_database: bool,
    pub max_rows: usize,
}

/// Never panics: a value that somebody set by hand to nonsense counts as zero.
fn seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number).unwrap_or_default()
}

pub(super) fn given(path: &Path) -> Option<&Path> {
    (!path.as_os_str().is_empty()).then_some(path)
}

fn level<'de, D: Deserializer<'de>>(from: D) -> Result<LevelFilter, D::Error> {
    String::deserialize(from)?.parse().map_err(de::Error::custom)
}

fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    let network = |text: &String| {
        rules::parse_network(text).ok_or_else(|| de::Error::custom(format!("{text} is not a network")))
    };
    Vec::<String>::deserialize(from)?.iter().map(network).collect()
}
