//! `SqlJob`: one statement on the in-source's database, or on rosterd's own.

use super::sql_json::{parameter_as_text, row_as_json};
use crate::config_rows::SourceConfig;
use crate::connectors::AddressPolicy;
use crate::job::{Job, JobContext, JobError, Outcome};
use crate::postgres::connect::is_outage;
use crate::postgres::database::away;
use crate::postgres::roles;
use crate::secrets::host_of;
use futures_util::TryStreamExt;
use schemars::JsonSchema;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Either, Executor, SqlSafeStr, Statement, TypeInfo};
use std::time::Duration;
use tokio::time::timeout;

/// Executes one SQL statement.
#[derive(Debug, Clone, Copy)]
pub struct SqlJob;

/// What a row of `SqlJob` says.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlPayload {
    /// Exactly one statement; `$1`, `$2`, ... are its parameters.
    statement: String,
    /// Values of the parameters: null, booleans, numbers and texts as the statement's own types; objects as jsonb.
    #[serde(default)]
    parameters: Vec<Value>,
}

impl Job for SqlJob {
    const STRUCT: &'static str = "SqlJob";
    const DESCRIPTION: &'static str =
        "Executes one SQL statement on its in-source or on rosterd's own database";
    type Payload = SqlPayload;

    async fn run(&self, ctx: JobContext, payload: SqlPayload) -> Result<Outcome, JobError> {
        if payload.statement.trim().is_empty() {
            return Err(JobError::fatal_message("Payload field `statement`: it is empty"));
        }
        let source = ctx.config().in_source.as_ref();
        // To rosterd's own database this session is one more of its own: an outage costs no attempt.
        let explain = |error: sqlx::Error| match source {
            None if is_outage(&error) => JobError::from(away(error)),
            _ => explain(&error, source),
        };
        // Held to the end: to the source a statement is a call like any other.
        let mut permit = None;
        let options = match source {
            Some(source) => {
                permit = Some(ctx.limiter().acquire(source, ctx.row().id, ctx.cancellation()).await?);
                source_options(&ctx, source).await?
            }
            None if ctx.settings().sql_job.allow_own_database => ctx.database().connect_options().clone(),
            None => {
                return Err(JobError::fatal_message(format_args!(
                    "JobConfig {} has no DataInSourceConfigID, and statements on rosterd's own database are not \
                     allowed (`sql_job.allow_own_database` is false)",
                    ctx.config().id
                )));
            }
        };
        let wait = Duration::from_secs_f64(ctx.settings().sources.connect_timeout_seconds);
        let session = tokio::select! {
            () = ctx.cancelled() => return Err(stopped()),
            session = timeout(wait, Session::open(&ctx, options)) => session,
        };
        let mut session = session.map_err(|_| slow())?.map_err(explain)?;
        let poses = tokio::select! {
            () = ctx.cancelled() => return Err(stopped()),
            poses = timeout(wait, session.poses_as_runner(&ctx)) => poses,
        };
        if let Some(login) = poses.map_err(|_| slow())?.map_err(explain)? {
            return Err(JobError::fatal_message(poser(&ctx, &login)));
        }
        if let Some(permit) = &mut permit {
            permit.in_doubt(true);
        }
        tokio::select! {
            () = ctx.cancelled() => return Err(stopped()),
            passed = ctx.may_act() => passed?,
        }
        let done = match &permit {
            Some(_) => tokio::select! {
                biased;
                // Others may soon call in its place: dropping the session closes its connection and ends the statement.
                lapsed = ctx.lapsed() => return Err(lapsed.into()),
                done = session.run(&ctx, &payload) => done,
            },
            None => session.run(&ctx, &payload).await,
        };
        if let Some(permit) = &mut permit {
            permit.in_doubt(false);
        }
        match done {
            Ok(result) => Ok(Outcome::with_result(result)),
            Err(_) if ctx.is_cancelled() => Err(stopped()),
            Err(Failure::Sql(error)) => Err(explain(error)),
            Err(Failure::Payload(sentence)) => Err(JobError::fatal_message(sentence)),
        }
    }
}

fn slow() -> JobError {
    JobError::retry_message(
        "failed to connect to the database: time ran out (`sources.connect_timeout_seconds`)",
    )
}

/// Why a statement is not sent as `login`, and what helps.
fn poser(ctx: &JobContext, login: &str) -> String {
    let place = match &ctx.config().in_source {
        Some(source) => format!("give source {} ({})", source.source, source.id),
        None => format!("give JobConfig {} a DataInSourceConfigID with", ctx.config().id),
    };
    format!(
        "the statement would run as {login}, which may act as a runner and read every AuthInfo; where \
         `rosterd migrate --roles` was run no payload may do that; {place} the login of an operator \
         (docs/generic-jobs.md)"
    )
}

fn stopped() -> JobError {
    JobError::stopped_because("the statement was stopped because the run was cancelled or ran out of time")
}

enum Failure {
    Sql(sqlx::Error),
    Payload(String),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

/// A connection for one statement. Dropped before the statement ended, it has the server end it.
struct Session {
    connection: Option<PgConnection>,
    options: PgConnectOptions,
    backend: i32,
    busy: bool,
}

impl Session {
    /// The client's patience with a server that was told to stop.
    const STOP_WAIT: Duration = Duration::from_secs(2);

    async fn open(ctx: &JobContext, options: PgConnectOptions) -> Result<Self, sqlx::Error> {
        crate::connectors::install_crypto();
        let options = options.application_name("rosterd SqlJob").disable_statement_logging();
        let mut connection = PgConnection::connect_with(&options).await?;
        let limit = ctx.config().time_limit.map_or(0, |limit| limit.as_millis());
        // An actor would let the statement move rows of JobHistory as only a runner may; an operator has none.
        let backend = sqlx::query_scalar::<_, i32>(
            "select pg_backend_pid() from (select set_config('statement_timeout', $1, false),
               set_config('lock_timeout', '0', false), set_config('rosterd.actor', '', false)) as settings",
        )
        .bind(limit.to_string())
        .fetch_one(&mut connection)
        .await?;
        // The server notices by itself that a killed runner is gone. Not known before PostgreSQL 14.
        let _ = connection.execute("set client_connection_check_interval = '2s'").await;
        Ok(Self { connection: Some(connection), options, backend, busy: false })
    }

    /// The login, if the statement could act as a runner of this rosterd: a setting is all that such a login lacks, and
    /// a statement can make that itself, as it can undo `set role`. Only a login of its own holds it back.
    async fn poses_as_runner(&mut self, ctx: &JobContext) -> Result<Option<String>, sqlx::Error> {
        let Some(connection) = self.connection.as_mut() else { return Ok(None) };
        let member = "select session_user::text from pg_roles
                      where rolname = 'rosterd_runner' and pg_has_role(session_user, oid, 'member')";
        let login: Option<String> = match sqlx::query_scalar(member).fetch_optional(&mut *connection).await {
            // Something that speaks like PostgreSQL and has no such roles.
            Err(sqlx::Error::Database(_)) | Ok(None) => return Ok(None),
            login => login?,
        };
        // Where our own database has no roles, or that is another server, it is none of our business. Who may not ask
        // which server it is, is taken to be on ours.
        let server = "select system_identifier from pg_control_system()";
        let theirs: Option<i64> = sqlx::query_scalar(server).fetch_one(&mut *connection).await.ok();
        let ours: Option<i64> = sqlx::query_scalar(server).fetch_one(ctx.database()).await.ok();
        let elsewhere = theirs.zip(ours).is_some_and(|(theirs, ours)| theirs != ours);
        Ok(if elsewhere || !roles::in_place(ctx.database()).await? { None } else { login })
    }

    async fn run(&mut self, ctx: &JobContext, payload: &SqlPayload) -> Result<Value, Failure> {
        let Some(mut connection) = self.connection.take() else {
            return Err(Failure::Sql(sqlx::Error::WorkerCrashed));
        };
        self.busy = true;
        let settings = ctx.settings();
        let done = {
            let work = execute(
                &mut connection,
                payload,
                settings.sql_job.max_rows,
                settings.engine.result_max_bytes / 2,
            );
            tokio::pin!(work);
            tokio::select! {
                done = &mut work => Some(done),
                () = ctx.cancelled() => {
                    stop(&self.options, self.backend, Stop::Statement).await;
                    timeout(Self::STOP_WAIT, &mut work).await.ok()
                }
            }
        };
        let done = done.unwrap_or(Err(Failure::Sql(sqlx::Error::PoolTimedOut)));
        // Still busy only if the server did not even end the statement: Drop sees to that.
        self.busy = matches!(done, Err(Failure::Sql(sqlx::Error::PoolTimedOut)));
        if !self.busy {
            let _ = timeout(Self::STOP_WAIT, connection.close()).await;
        }
        done
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let (true, Ok(runtime)) = (self.busy, tokio::runtime::Handle::try_current()) {
            let (options, backend) = (self.options.clone(), self.backend);
            runtime.spawn(async move { stop(&options, backend, Stop::Connection).await });
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Stop {
    Statement,
    Connection,
}

async fn stop(options: &PgConnectOptions, backend: i32, what: Stop) {
    let ask = async {
        let mut connection = PgConnection::connect_with(options).await?;
        let function = match what {
            Stop::Statement => "select pg_cancel_backend($1)",
            Stop::Connection => "select pg_terminate_backend($1)",
        };
        sqlx::query(function).bind(backend).execute(&mut connection).await?;
        connection.close().await
    };
    match timeout(Duration::from_secs(5), ask).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "failed to stop a statement on the server"),
        Err(_) => tracing::warn!("failed to stop a statement on the server: time ran out"),
    }
}

/// Parsing it alone proves that it is one statement and tells the types of its parameters. It then goes as
/// text, because the server's own text is the only form in which every type can be read.
async fn execute(
    connection: &mut PgConnection,
    payload: &SqlPayload,
    max_rows: usize,
    max_bytes: usize,
) -> Result<Value, Failure> {
    // The statement is the operator's own and meant to run as it stands.
    let statement = AssertSqlSafe(payload.statement.clone()).into_sql_str();
    let parsed = (&mut *connection).prepare(statement.clone()).await?;
    let types: Vec<String> = match parsed.parameters() {
        Some(Either::Left(types)) => types.iter().map(|t| t.name().to_owned()).collect(),
        _ => Vec::new(),
    };
    if types.len() != payload.parameters.len() {
        return Err(Failure::Payload(format!(
            "Payload field `parameters`: {} given, the statement has {}",
            payload.parameters.len(),
            types.len()
        )));
    }
    let statement = if types.is_empty() {
        statement
    } else {
        let texts: Vec<Option<String>> =
            payload.parameters.iter().zip(&types).map(|(value, of)| parameter_as_text(value, of)).collect();
        let prepare = AssertSqlSafe(format!("prepare rosterd_statement as {}", payload.statement));
        sqlx::query(prepare).persistent(false).execute(&mut *connection).await?;
        // The server quotes the values; it then reads each as the type it has found for the parameter.
        let execute: String = sqlx::query_scalar(
            "select 'execute rosterd_statement (' || string_agg(quote_nullable(p.Text), ', ' order by p.n) || ')'
             from unnest($1::text[]) with ordinality as p (Text, n)",
        )
        .bind(texts)
        .fetch_one(&mut *connection)
        .await?;
        AssertSqlSafe(execute).into_sql_str()
    };

    let mut affected = 0;
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut truncated = false;
    let mut answers = sqlx::raw_sql(statement).fetch_many(&mut *connection);
    while let Some(answer) = answers.try_next().await? {
        match answer {
            Either::Left(done) => affected += done.rows_affected(),
            Either::Right(_) if truncated || rows.len() >= max_rows => truncated = true,
            Either::Right(row) => {
                let row = Value::Object(row_as_json(&row)?);
                bytes += row.to_string().len();
                if bytes > max_bytes {
                    truncated = true;
                } else {
                    rows.push(row);
                }
            }
        }
    }
    Ok(json!({ "rows_affected": affected, "rows": rows, "truncated": truncated }))
}

/// Address, Port, `Username`, `Password` and `Database` of `AuthInfo`, and `sslmode` of Payload.
async fn source_options(ctx: &JobContext, source: &SourceConfig) -> Result<PgConnectOptions, JobError> {
    let what = format!("source {} ({})", source.source, source.id);
    let fatal = |problem: String| JobError::fatal_message(source.auth.mask(&format!("{what}: {problem}")));
    let user = source.auth.text("Username").ok_or_else(|| fatal("AuthInfo has no Username".to_owned()))?;
    let mode = source.payload.get("sslmode").and_then(Value::as_str).unwrap_or("prefer");
    let mode: PgSslMode = mode.parse().map_err(|_| {
        fatal(format!(
            "`sslmode` in its Payload is {mode}, give disable, allow, prefer, require, verify-ca or verify-full"
        ))
    })?;
    let port = source.port.unwrap_or(5432);
    // Everything is set, for whatever is not set comes from the daemon's own PG... variables.
    let options = PgConnectOptions::new_without_pgpass()
        .port(port)
        .username(user)
        .password(source.auth.secret("Password").unwrap_or_default().expose_secret())
        .database(source.auth.text("Database").unwrap_or(user))
        .ssl_mode(mode);
    let address = source.address.trim();
    if address.is_empty() {
        return Err(fatal("its Address is empty; give a host or the folder of a Unix socket".to_owned()));
    }
    if address.starts_with('/') {
        return Ok(options.host(address));
    }
    // The same reading as for the host that sealed credentials are bound to; a name that others read differently
    // would carry them elsewhere.
    let host = host_of(address).map_err(fatal)?;
    let bare = address.trim_matches(['[', ']']);
    if address.contains(['/', '\\', '?', '#', '@'])
        || (bare.contains(':') && bare.parse::<std::net::Ipv6Addr>().is_err())
    {
        return Err(fatal(
            "its Address is more than a host; give the host alone, and Port beside it".to_owned(),
        ));
    }
    let policy = AddressPolicy::new(ctx.settings().sources.allow_private.clone());
    let found = policy.resolve(&host, port).await.map_err(|error| {
        let sentence = source.auth.mask(&format!("failed to connect to {host}: {error}"));
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            JobError::fatal_message(sentence)
        } else {
            JobError::retry_message(sentence)
        }
    })?;
    // Connecting to the very address that was checked leaves no room for a name that changes its mind. With
    // verify-full the name is needed, and the certificate vouches for whoever answers to it.
    match found.first() {
        Some(checked) if !matches!(mode, PgSslMode::VerifyFull) => {
            Ok(options.host(&checked.ip().to_string()))
        }
        _ => Ok(options.host(&host)),
    }
}

/// An SQL error as a sentence with its SQLSTATE and hint. Errors of the statement itself end the row.
fn explain(error: &sqlx::Error, source: Option<&SourceConfig>) -> JobError {
    let mask = |text: &str| source.map_or_else(|| text.to_owned(), |source| source.auth.mask(text));
    let Some(database) = error.as_database_error() else {
        return JobError::retry_message(mask(&format!("the connection failed: {error}")));
    };
    let code = database.code().unwrap_or_default();
    let hint = database.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(|error| error.hint());
    let hint = hint.map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
    let sentence = mask(&format!("SQLSTATE {code}: {}{hint}", database.message()));
    let passing = ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class));
    if passing { JobError::retry_message(sentence) } else { JobError::fatal_message(sentence) }
}
