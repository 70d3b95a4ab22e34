//! The command line: one file for each subcommand.

mod cancel;
mod check_config;
mod demo;
mod doctor;
mod enqueue;
mod job;
mod migrate;
mod output;
mod psql;
mod rerun;
mod run;
mod runner;
mod schedule;
mod secret;
mod source;
mod status;

use crate::config::{Config, ConfigError, Overrides};
use crate::postgres::connect::{self, DatabaseError, Limits, Speaker};
use crate::postgres::embedded::{self, EmbeddedError, EmbeddedOptions, EmbeddedPostgres};
use crate::postgres::migrate::{self as schema, SchemaError};
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
    /// Bring the schema of the database to this program's version.
    Migrate(migrate::Migrate),
    /// Check the configuration and the commands of `CommandJob`, without a database.
    CheckConfig(check_config::CheckConfig),
    /// Check the server, the schema, the daemons and the queue, and say what to do about each problem.
    Doctor(doctor::Doctor),
    /// Show the daemons, the rows that run, the rows that wait and why, and what is due next.
    Status(status::Status),
    /// Start psql on the database.
    Psql(psql::Psql),
    /// Put a row on the queue, and wait for its end if asked to.
    Enqueue(enqueue::Enqueue),
    /// Cancel rows, and say what each is now.
    Cancel(cancel::Cancel),
    /// Put a fresh row on the queue, made from a finished one.
    Rerun(rerun::Rerun),
    /// Show schedules and when they fire.
    #[command(subcommand)]
    Schedule(schedule::Schedule),
    /// Show the sources and their limits.
    #[command(subcommand)]
    Source(source::Source),
    /// Make keys, seal secrets of sources, and see which are sealed.
    #[command(subcommand)]
    Secret(secret::Secret),
    /// Show and drain runners, the daemons of this database.
    #[command(subcommand)]
    Runner(runner::Runner),
    /// Show the jobs of this program, without a database.
    #[command(subcommand)]
    Job(job::Job),
}

impl Command {
    /// How it is called, and which login it needs, where logins may not do everything (docs/security.md, Roles).
    fn needs(&self) -> (&'static str, &'static str) {
        const READER: &str = "a login of rosterd_operator or rosterd_viewer; the owner of the tables gives it: grant \
                              rosterd_viewer to ... (docs/security.md, Roles)";
        const OPERATOR: &str = "a login of rosterd_operator, one of rosterd_viewer only reads; the owner of the tables \
                                gives it: grant rosterd_operator to ... (docs/security.md, Roles)";
        const CREDENTIALS: &str = "a login that reads AuthInfo of every organization, such as one of rosterd_owner; an \
                                   operator writes single secrets by `rosterd secret seal --write`";
        match self {
            Self::Enqueue(_) => ("`rosterd enqueue`", OPERATOR),
            Self::Cancel(_) => ("`rosterd cancel`", OPERATOR),
            Self::Rerun(_) => ("`rosterd rerun`", OPERATOR),
            Self::Runner(runner::Runner::Drain { .. }) => (
                "`rosterd runner drain`",
                "a login of rosterd_owner, because a runner works for every organization; ask whoever runs the daemons, \
                 or stop it where it runs: SIGTERM drains it too",
            ),
            Self::Secret(secret::Secret::Seal(_)) => ("`rosterd secret seal`", OPERATOR),
            Self::Secret(secret::Secret::Rewrap(_)) => ("`rosterd secret rewrap`", CREDENTIALS),
            Self::Secret(_) => ("`rosterd secret status`", CREDENTIALS),
            Self::Migrate(args) if args.roles => (
                "`rosterd migrate --roles`",
                "a superuser, or the owner of the tables with CREATEROLE; on PostgreSQL 16 and newer also with ADMIN on \
                 the four roles where somebody else made them: grant rosterd_owner, rosterd_runner, rosterd_operator, \
                 rosterd_viewer to ... with admin true",
            ),
            Self::Migrate(_) => (
                "`rosterd migrate`",
                "the login that owns the tables, or one of rosterd_owner; for a new schema the right to create one: grant \
                 create on database ... to ...",
            ),
            Self::Run => (
                "`rosterd run`",
                "the login that owns the tables, or one of rosterd_runner: grant rosterd_runner to ... \
                 (docs/security.md, Roles)",
            ),
            _ => ("this command", READER),
        }
    }
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
    let outcome = registry.check().map_err(Failure::from).and_then(|()| obey(&cli, registry));
    let outcome = outcome.map_err(|failure| failure.of(&cli.command));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                output::remark(&format!("rosterd: {}", failure.message));
            }
            ExitCode::from(failure.code)
        }
    }
}

fn obey(cli: &Cli, registry: Registry) -> Result<(), Failure> {
    let settings = || load_config(&cli.global);
    match &cli.command {
        Command::Run => run::run(&Arc::new(settings()?), registry),
        Command::Demo => demo::run(&settings()?),
        Command::Migrate(args) => migrate::run(&settings()?, args),
        Command::CheckConfig(args) => check_config::run(&cli.global, args),
        Command::Doctor(args) => doctor::run(&settings()?, &registry, args),
        Command::Status(args) => status::run(&settings()?, args),
        Command::Psql(args) => psql::run(&settings()?, args),
        Command::Enqueue(args) => enqueue::run(&settings()?, &registry, args),
        Command::Cancel(args) => cancel::run(&settings()?, args),
        Command::Rerun(args) => rerun::run(&settings()?, args),
        Command::Schedule(command) => schedule::run(&cli.global, command),
        Command::Source(command) => source::run(&settings()?, command),
        Command::Secret(command) => secret::run(&cli.global, command),
        Command::Runner(command) => runner::run(&settings()?, command),
        Command::Job(command) => job::run(&registry, command),
    }
}

/// Why a command ends without having done its work.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) message: String,
    /// The login may not do it; then the message is the database's own, and [`Failure::of`] makes a sentence of it.
    pub(crate) denied: bool,
}

// By value, so that `map_err(Failure::usage)` works.
#[allow(clippy::needless_pass_by_value)]
impl Failure {
    const USAGE: u8 = 64;
    const DATABASE: u8 = 69;
    const BUG: u8 = 70;
    /// As the database says it.
    const INSUFFICIENT_PRIVILEGE: &str = "42501";

    /// The operator can mend it on the command line or in the configuration.
    pub(crate) fn usage(message: impl ToString) -> Self {
        Self { code: Self::USAGE, message: message.to_string(), denied: false }
    }

    /// The database is away, or not one rosterd can use.
    pub(crate) fn database(message: impl ToString) -> Self {
        Self { code: Self::DATABASE, message: message.to_string(), denied: false }
    }

    /// This exit code, with everything said already.
    pub(crate) fn exit(code: u8) -> Self {
        Self { code, message: String::new(), denied: false }
    }

    /// What this command would need, where the login may not do it.
    fn of(self, command: &Command) -> Self {
        if !self.denied {
            return self;
        }
        let (what, needs) = command.needs();
        let message = format!("this login may not do that: {}\n  {what} needs {needs}", self.message);
        Self { message, ..self }
    }

    /// We are at fault.
    pub(crate) fn bug(message: impl ToString) -> Self {
        Self { code: Self::BUG, message: message.to_string(), denied: false }
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
        match error {
            SchemaError::Database(error) if is_denied(&error) => error.into(),
            error => Self::database(error),
        }
    }
}

fn is_denied(error: &DatabaseError) -> bool {
    let DatabaseError::Sql(sqlx::Error::Database(said)) = error else { return false };
    said.code().as_deref() == Some(Failure::INSUFFICIENT_PRIVILEGE)
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Sql(error) => error.into(),
            unheard => Self::database(unheard),
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
        // Class 23: the guard or a constraint refused what the operator asked for. 22: a value is not understood.
        if said.code().starts_with("23") || said.code().starts_with("22") {
            Self::usage(message)
        } else {
            let denied = said.code() == Self::INSUFFICIENT_PRIVILEGE;
            Self { denied, ..Self::database(message) }
        }
    }
}

fn load_config(global: &Global) -> Result<Config, ConfigError> {
    Config::load(global.config.as_deref(), overrides(global))
}

fn overrides(global: &Global) -> Overrides {
    Overrides {
        database_url: global.database_url.clone(),
        listen: global.listen.clone(),
        state_dir: global.state_dir.clone(),
    }
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
        let limits = settings.database.limits();
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

    /// The same for commands that work on our tables: the schema must be the one this program knows.
    pub(crate) async fn session(&self) -> Result<PgConnection, Failure> {
        let mut db = self.connect().await?;
        let known = schema::known_version();
        match schema::version(&mut db).await? {
            Some(found) if found == known => Ok(db),
            Some(found) if found > known => Err(SchemaError::Newer { found, known }.into()),
            Some(found) => Err(Failure::database(format!(
                "the schema is at version {found}, this rosterd needs version {known}: run `rosterd migrate`"
            ))),
            None => {
                Err(Failure::database("this database has no schema of rosterd yet: run `rosterd migrate`"))
            }
        }
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
