//! `rosterd secret status`: how many secrets stand in AuthInfo, by key, and those that do not open.

use crate::cli::output::{count, remark, say, say_json, table};
use crate::cli::{Database, Failure, block_on};
use crate::config::Config;
use crate::secrets::{ALWAYS_READABLE, Holder, KeyId, Keyring, NAMES, Sealed};
use serde_json::json;
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Options of `rosterd secret status`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Status {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Secrets that are alike, and the sources they stand in.
#[derive(Debug, Default)]
pub(in crate::cli) struct Group {
    pub(in crate::cli) secrets: i64,
    sources: BTreeSet<Uuid>,
}

/// All secrets there are.
#[derive(Debug, Default)]
pub(in crate::cli) struct Standing {
    pub(in crate::cli) sealed: BTreeMap<KeyId, Group>,
    pub(in crate::cli) plain: Group,
    /// Those sealed for a key that is here and yet do not open, a sentence each.
    pub(in crate::cli) closed: Vec<String>,
}

impl Group {
    fn add(&mut self, source: Uuid) {
        self.secrets += 1;
        self.sources.insert(source);
    }
}

/// Counts the secrets, and tries to open those whose keys are here. No plaintext leaves the database.
pub(in crate::cli) async fn take(db: &mut PgConnection, keys: &Keyring) -> Result<Standing, Failure> {
    let no_secrets: Vec<String> =
        NAMES.iter().chain(&ALWAYS_READABLE).map(|name| (*name).to_owned()).collect();
    let fields = sqlx::query!(
        r#"select s.ID as id, s.Source as source, s.OrganizationID as organization, s.Address as address,
             s.AuthInfo -> 'TokenUrl' as token_url, f.key as "field!", case when jsonb_typeof(f.value) = 'object' then f.value end as object
           from SourceConfig s
           cross join lateral jsonb_each(s.AuthInfo) f
           where jsonb_typeof(f.value) = 'object'
              or jsonb_typeof(f.value) = 'string' and f.value <> '""' and f.key <> all($1)
           order by s.ID, f.key"#,
        &no_secrets,
    )
    .fetch_all(db)
    .await?;
    let mut standing = Standing::default();
    for row in fields {
        let Some(object) = &row.object else {
            standing.plain.add(row.id);
            continue;
        };
        let holder = Holder {
            id: row.id,
            source: &row.source,
            organization: row.organization,
            address: &row.address,
            token_url: row.token_url.as_ref(),
        };
        match Sealed::read(object) {
            None => {}
            Some(Ok(sealed)) => {
                standing.sealed.entry(sealed.key()).or_default().add(row.id);
                if keys.key(sealed.key()).is_some() {
                    standing.closed.extend(keys.open_field(&holder, &row.field, &sealed).err());
                }
            }
            Some(Err(error)) => standing.closed.push(holder.problem(&row.field, &error.to_string())),
        }
    }
    Ok(standing)
}

pub(super) fn run(settings: &Config, args: &Status) -> Result<(), Failure> {
    // Those who may count need not be those who may open.
    let keys = Keyring::load(&settings.secrets).unwrap_or_else(|problem| {
        remark(&format!("rosterd: {problem}"));
        Keyring::default()
    });
    let database = Database::open(settings)?;
    block_on(async {
        let mut db = database.session().await?;
        let standing = take(&mut db, &keys).await?;
        for problem in &standing.closed {
            remark(problem);
        }
        let sealed = standing.sealed.iter();
        if args.json {
            let sealed: Vec<_> = sealed
                .map(|(key, group)| {
                    json!({
                        "key": key.to_string(), "secrets": group.secrets, "sources": group.sources.len(),
                        "private_key_here": keys.key(*key).is_some(),
                    })
                })
                .collect();
            let plain = json!({ "secrets": standing.plain.secrets, "sources": standing.plain.sources.len() });
            return say_json(&json!({ "sealed": sealed, "plaintext": plain, "closed": standing.closed }));
        }
        let rows = sealed.map(|(key, group)| {
            let here = if keys.key(*key).is_some() { "yes" } else { "no" };
            [key.to_string(), group.secrets.to_string(), group.sources.len().to_string(), here.to_owned()]
        });
        let plain = &standing.plain;
        let plain = [
            "plaintext".to_owned(),
            plain.secrets.to_string(),
            plain.sources.len().to_string(),
            "-".to_owned(),
        ];
        say(&table(["KEY", "SECRETS", "SOURCES", "PRIVATE KEY HERE"], rows.chain([plain])))?;
        if !standing.closed.is_empty() {
            say(&format!("{} not open, see above", does(standing.closed.len())))?;
        }
        Ok(())
    })
}

fn does(n: usize) -> String {
    let many = count(i64::try_from(n).unwrap_or(i64::MAX), "secret");
    format!("{many} {}", if n == 1 { "does" } else { "do" })
}
