//! The command line: one file for each subcommand.

mod demo;
mod run;

use crate::config::{Config, ConfigError, Overrides};
use crate::postgres::connect::{self, DatabaseError, Limits, Speaker};
use crate::postgres::embedded::{self, EmbeddedError, EmbeddedOptions, EmbeddedPostgres};
use crate::postgres::migrate::SchemaError;
use crate::registry::{Registry, RegistryError};
use clap::{Parser, Subcommand};
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// The job scheduler you run with SQL.
#[derive(Debug, Parser)]
#[command(name = "rosterd", version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every subcommand.
#[derive(Debug, Clone, clap::Args)]
struct Global {
    /// Configuration file (TOML); what it leaves out keeps the compiled-in default.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// PostgreSQL to work on; without it, `DATABASE_URL` or `database.url`, a private one is started.
    /// A password is better given by `PGPASSFILE` or `database.password_file`: options can be seen by others.
    #[arg(long, global = true, value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,
    /// Address for HTTP, such as 127.0.0.1:9420, or "off".
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Folder of the private PostgreSQL.
    #[arg(long, global = true, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Run,
    /// Show what it does: a private database, a daemon, and an operator at work. Takes about ten seconds.
    Demo,
}

/// The program around a registry of jobs: `fn main() -> ExitCode { rosterd::run(rosterd::jobs::built_in()) }`.
///
/// Exit codes: 0 fine, 64 bad configuration or usage, 69 database unusable, 70 a bug.
pub fn run(registry: Registry) -> ExitCode {
    // One TLS provider for the whole process; a second call finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(Failure::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let outcome = registry.check().map_err(Failure::from).and_then(|()| {
        let settings = Arc::new(load_config(&cli.global)?);
        match cli.command {
            Command::Run => run::run(settings, registry),
            Command::Demo => demo::run(&settings),
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("rosterd: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Why a command ends without having done its work.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl Failure {
    const USAGE: u8 = 64;
    const DATABASE: u8 = 69;
    const BUG: u8 = 70;

    /// The operator can mend it on the command line or in the configuration.
    pub(crate) fn usage(message: impl ToString) -> Self {
        Self { code: Self::USAGE, message: message.to_string() }
    }

    /// The database is away, or not one rosterd can use.
    pub(crate) fn database(message: impl ToString) -> Self {
        Self { code: Self::DATABASE, message: message.to_string() }
    }

    /// We are at fault.
    pub(crate) fn bug(message: impl ToString) -> Self {
        Self { code: Self::BUG, message: message.to_string() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::bug(error)
    }
}

impl From<EmbeddedError> for Failure {
    fn from(error: EmbeddedError) -> Self {
        Self::database(error)
    }
}

impl From<SchemaError> for Failure {
    fn from(error: SchemaError) -> Self {
        Self::database(error)
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Sql(error) => error.into(),
            late @ DatabaseError::Deadline(_) => Self::database(late),
        }
    }
}

/// What the database says to an operator's command is shown as psql would: message and hint.
impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::postgres::PgDatabaseError;
        let Some(said) = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>())
        else {
            return Self::database(format!("failed to use the database: {error}"));
        };
        let hint = said.hint().map(|hint| format!("\n  {hint}")).unwrap_or_default();
        let message = format!("{}{hint}", said.message());
        // Class 23: the guard or a constraint refused what the operator asked for.
        if said.code().starts_with("23") { Self::usage(message) } else { Self::database(message) }
    }
}

fn load_config(global: &Global) -> Result<Config, ConfigError> {
    Config::load(
        global.config.as_deref(),
        Overrides {
            database_url: global.database_url.clone(),
            listen: global.listen.clone(),
            state_dir: global.state_dir.clone(),
        },
    )
}

/// The database a command works on. It stays usable as long as this value lives.
pub(crate) struct Database {
    pub(crate) options: PgConnectOptions,
    pub(crate) limits: Limits,
    pub(crate) embedded: Option<EmbeddedPostgres>,
}

impl Database {
    /// The configured database, or the private one, started if it does not run yet. Blocks while it starts.
    pub(crate) fn open(settings: &Config) -> Result<Self, Failure> {
        let limits = Limits {
            connect: settings.database.connect_timeout(),
            statement: settings.database.statement_timeout(),
        };
        if let Some(options) = settings.database.connect_options()? {
            return Ok(Self { options, limits, embedded: None });
        }
        let state_dir = settings.state.dir().map_or_else(embedded::default_state_dir, PathBuf::from);
        let mut wanted = EmbeddedOptions::new(state_dir);
        wanted.bin_dir = settings.embedded.bin_dir().map(PathBuf::from);
        wanted.user = settings.embedded.user().map(str::to_owned);
        let server = EmbeddedPostgres::start(&wanted)?;
        Ok(Self { options: server.connect_options(), limits, embedded: Some(server) })
    }

    /// A connection as an operator has it: the guard in the database lets it do what an operator may do.
    pub(crate) async fn connect(&self) -> Result<PgConnection, Failure> {
        Ok(connect::connect(&self.options, "command", Speaker::Operator, self.limits).await?)
    }
}

/// A small runtime for commands that talk to the database and end.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::bug(format!("failed to start: {e}")))?
        .block_on(work)
}
