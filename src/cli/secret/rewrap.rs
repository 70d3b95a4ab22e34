//! `rosterd secret rewrap`: secrets sealed anew, for another key or another address. Needs the private keys.
//!
//! Each source is one UPDATE that names the AuthInfo it was read with, so an edit made meanwhile is never lost: the
//! source is read again. Those done already are passed over, so it may be stopped and started at will.

use super::{no_public_key, public_key};
use crate::cli::output::{count, remark, say};
use crate::cli::{Database, Failure, block_on};
use crate::config::Config;
use crate::secrets::{Holder, Keyring, PublicKey, Sealed, is_plain_secret, place_of};
use secrecy::SecretString;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use std::path::PathBuf;
use uuid::Uuid;

/// Somebody who changes one source more often than this while it is rewrapped does so by a program.
const TRIES: u32 = 10;

/// Options of `rosterd secret rewrap`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Rewrap {
    /// The key to seal for; otherwise `secrets.public_key`. With --new-address the key may stay as it is.
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
    /// File with a private key that opens them, besides those of `secrets.keys`; may be given several times.
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// This source alone (SourceConfig.ID).
    #[arg(long, value_name = "ID")]
    source: Option<Uuid>,
    /// Seal secrets that stand in plaintext too.
    #[arg(long)]
    seal_plaintext: bool,
    /// Give the source this Address, and seal its secrets for it.
    #[arg(long, value_name = "ADDRESS", requires = "source")]
    new_address: Option<String>,
}

struct Work {
    keys: Keyring,
    public: Option<PublicKey>,
    seal_plaintext: bool,
    new_address: Option<String>,
}

/// What was done.
#[derive(Debug, Default)]
struct Done {
    sources: i64,
    sealed_anew: i64,
    from_plaintext: i64,
    as_they_were: i64,
    still_plain: i64,
    /// What could not be done, a sentence each.
    problems: Vec<String>,
}

pub(super) fn run(settings: &Config, args: &Rewrap) -> Result<(), Failure> {
    let public = public_key(args.public_key.as_deref(), settings)?;
    if public.is_none() && (args.new_address.is_none() || args.seal_plaintext) {
        return Err(no_public_key());
    }
    let mut secrets = settings.secrets.clone();
    secrets.keys.extend(args.key.iter().cloned());
    let keys = Keyring::load(&secrets).map_err(Failure::usage)?;
    if let Some(address) = &args.new_address {
        place_of(address).map_err(|problem| Failure::usage(format!("with --new-address, {problem}")))?;
    }
    let work =
        Work { keys, public, seal_plaintext: args.seal_plaintext, new_address: args.new_address.clone() };
    let database = Database::open(settings)?;
    block_on(async {
        let mut db = database.session().await?;
        let sources: Vec<Uuid> = sqlx::query_scalar!(
            "select ID from SourceConfig where $1::uuid is null or ID = $1 order by ID",
            args.source,
        )
        .fetch_all(&mut db)
        .await?;
        if let (Some(source), true) = (args.source, sources.is_empty()) {
            return Err(Failure::usage(format!("there is no SourceConfig {source}")));
        }
        let mut done = Done::default();
        for source in sources {
            work.rewrap(&mut db, source, &mut done).await?;
        }
        done.tell(&work)
    })
}

/// Fields of one source that change, and how many of which kind.
#[derive(Debug, Default)]
struct Plan {
    fields: Map<String, Value>,
    sealed_anew: i64,
    from_plaintext: i64,
    as_they_were: i64,
    still_plain: i64,
    problems: Vec<String>,
}

impl Work {
    async fn rewrap(&self, db: &mut PgConnection, source: Uuid, done: &mut Done) -> Result<(), Failure> {
        for _ in 0..TRIES {
            let row = sqlx::query!(
                r#"select Source as source, OrganizationID as organization, Address as address,
                     AuthInfo as auth, AuthInfo::text as "text!"
                   from SourceConfig where ID = $1"#,
                source,
            )
            .fetch_optional(&mut *db)
            .await?;
            // Deleted since.
            let Some(row) = row else { return Ok(()) };
            let holder = Holder {
                id: source,
                source: &row.source,
                organization: row.organization,
                address: &row.address,
                token_url: row.auth.get("TokenUrl"),
            };
            let plan = self.plan(&holder, &row.auth)?;
            let new_address = self.new_address.as_deref().filter(|address| *address != row.address);
            // A source whose secrets would not open at its new address keeps the old one.
            if !plan.problems.is_empty() && self.new_address.is_some()
                || plan.fields.is_empty() && new_address.is_none()
            {
                done.add(plan, false);
                return Ok(());
            }
            // The column as text says exactly what was read, also of numbers that we would print differently.
            let changed = sqlx::query!(
                "update SourceConfig set AuthInfo = AuthInfo || $5::jsonb, Address = coalesce($6, Address)
                 where ID = $1 and OrganizationID = $2 and Address = $3 and AuthInfo::text = $4",
                source,
                row.organization,
                row.address,
                row.text,
                Value::Object(plan.fields.clone()),
                new_address,
            )
            .execute(&mut *db)
            .await?;
            if changed.rows_affected() > 0 {
                done.add(plan, true);
                return Ok(());
            }
        }
        done.problems.push(format!("SourceConfig {source} is being changed all the time and was left alone"));
        Ok(())
    }

    fn plan(&self, holder: &Holder<'_>, auth: &Value) -> Result<Plan, Failure> {
        let mut plan = Plan::default();
        let address = self.new_address.as_deref().unwrap_or(holder.address);
        let moves = self.new_address.is_some() && place_of(address) != place_of(holder.address);
        for (field, value) in auth.as_object().into_iter().flatten() {
            let mut was_plain = false;
            let (secret, key) = match Sealed::read(value) {
                Some(Err(error)) => {
                    plan.problems.push(holder.problem(field, &error.to_string()));
                    continue;
                }
                Some(Ok(sealed)) => {
                    let is_done = self.public.as_ref().is_none_or(|key| key.id() == sealed.key());
                    if is_done && !moves {
                        plan.as_they_were += 1;
                        continue;
                    }
                    match self.keys.open_field(holder, field, &sealed) {
                        Ok(secret) => (secret, self.keys.key(sealed.key()).map(|key| key.public().clone())),
                        Err(problem) => {
                            plan.problems.push(problem);
                            continue;
                        }
                    }
                }
                None if !is_plain_secret(field, value) => continue,
                None if !self.seal_plaintext => {
                    plan.still_plain += 1;
                    continue;
                }
                None => {
                    was_plain = true;
                    (SecretString::from(value.as_str().unwrap_or_default()), None)
                }
            };
            let key = self.public.clone().or(key).ok_or_else(no_public_key)?;
            match holder.places(field, address) {
                Ok(places) => {
                    let sealed = Sealed::seal(&secret, &key, &holder.binding(field, &places))?;
                    plan.fields.insert(field.clone(), sealed.to_json());
                    plan.sealed_anew += i64::from(!was_plain);
                    plan.from_plaintext += i64::from(was_plain);
                }
                Err(problem) => plan.problems.push(format!("{}: {problem}", holder.name())),
            }
        }
        Ok(plan)
    }
}

impl Done {
    fn add(&mut self, plan: Plan, written: bool) {
        if written {
            self.sources += 1;
            self.sealed_anew += plan.sealed_anew;
            self.from_plaintext += plan.from_plaintext;
        }
        self.as_they_were += plan.as_they_were;
        self.still_plain += plan.still_plain;
        self.problems.extend(plan.problems);
    }

    fn tell(self, work: &Work) -> Result<(), Failure> {
        let key = work.public.as_ref().map(|key| format!(" for key {}", key.id())).unwrap_or_default();
        say(&format!(
            "{} changed: {} sealed anew{key}, {} that stood in plaintext; {} left as they were, {} in plaintext",
            count(self.sources, "source"),
            count(self.sealed_anew, "secret"),
            self.from_plaintext,
            self.as_they_were,
            self.still_plain,
        ))?;
        if self.problems.is_empty() {
            return Ok(());
        }
        for problem in &self.problems {
            remark(&format!("rosterd: {problem}"));
        }
        let many = i64::try_from(self.problems.len()).unwrap_or(i64::MAX);
        Err(Failure::usage(format!("left alone: {}", count(many, "secret"))))
    }
}
