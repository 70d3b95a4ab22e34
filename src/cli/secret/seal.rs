//! `rosterd secret seal`: needs the public key only, so anybody may do it, anywhere.

use super::{no_public_key, public_key, typed};
use crate::cli::output::{remark, say};
use crate::cli::{Database, Failure, block_on};
use crate::config::Config;
use crate::secrets::{ALWAYS_READABLE, Holder, PublicKey, SENT_TO_TOKEN_URL, Sealed};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

/// Options of `rosterd secret seal`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Seal {
    /// The source it is for (SourceConfig.ID).
    #[arg(long, value_name = "ID")]
    source: Uuid,
    /// The field of AuthInfo, such as Password or Token.
    #[arg(long, value_name = "NAME")]
    field: String,
    /// Its organization (Organization.ID, or Organization.Code, which the database is asked for). Without this and
    /// --address both are read from the database.
    #[arg(long, value_name = "ID or CODE", requires = "address")]
    organization: Option<String>,
    /// Its Address, of which the host counts and whether it is http. With an Organization.ID beside it no database is
    /// needed.
    #[arg(long, value_name = "ADDRESS", requires = "organization")]
    address: Option<String>,
    /// Where its AuthInfo has tokens come from, which a client secret is sealed for too.
    #[arg(long, value_name = "URL", requires = "address")]
    token_url: Option<String>,
    /// The key to seal for; otherwise `secrets.public_key`.
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
    /// Write it into AuthInfo of the source instead of printing it.
    #[arg(long, conflicts_with_all = ["organization", "address", "token_url"])]
    write: bool,
}

/// What a secret is bound to, besides its field.
struct Place {
    name: String,
    organization: Uuid,
    address: String,
    /// Of a field that is sent to `TokenUrl`; without path and query, where the database was asked.
    token_url: Option<String>,
}

pub(super) fn run(settings: &Config, args: &Seal) -> Result<(), Failure> {
    if ALWAYS_READABLE.contains(&args.field.as_str()) {
        return Err(Failure::usage(format!(
            "{} stays readable: operators and the database itself look at it; it is no secret",
            args.field
        )));
    }
    if args.field.is_empty() || args.field.contains('\0') {
        return Err(Failure::usage("--field is the name of a field of AuthInfo, such as Password"));
    }
    let key = public_key(args.public_key.as_deref(), settings)?.ok_or_else(no_public_key)?;
    let is_sent_to_token_url = SENT_TO_TOKEN_URL.contains(&args.field.as_str());
    if args.field == "ClientSecret" && args.address.is_some() && args.token_url.is_none() {
        return Err(Failure::usage("ClientSecret is sealed for the host of TokenUrl too: give --token-url"));
    }
    let token_url = args.token_url.clone().filter(|_| is_sent_to_token_url);
    // Without a database, where all is said.
    if let (Some(organization), Some(address)) = (&args.organization, &args.address)
        && let Ok(organization) = organization.parse()
    {
        let place =
            Place { name: args.source.to_string(), organization, address: address.clone(), token_url };
        let (sealed, places) = seal(args, &place, &key)?;
        return print(args, &sealed, &places);
    }
    let database = Database::open(settings)?;
    block_on(async {
        let mut db = database.session().await?;
        let place = match (&args.organization, &args.address) {
            (Some(code), Some(address)) => Place {
                name: args.source.to_string(),
                organization: organization_of(&mut db, code).await?,
                address: address.clone(),
                token_url,
            },
            _ => place_of(&mut db, args.source, is_sent_to_token_url).await?,
        };
        let (sealed, places) = seal(args, &place, &key)?;
        if !args.write {
            return print(args, &sealed, &places);
        }
        // By a function, because operators may write AuthInfo and not read it, and the other fields stay.
        sqlx::query!(
            "select vm.seal_source($1, $2, $3, $4, $5)",
            args.source,
            args.field,
            sealed.to_json(),
            place.address,
            place.token_url.unwrap_or_default(),
        )
        .execute(&mut db)
        .await?;
        remark(&places);
        say(&format!("{} of {} is sealed for key {}", args.field, place.name, key.id()))
    })
}

/// And a sentence that says where it may go: whoever may write Address or `TokenUrl` may have changed it a moment ago.
fn seal(args: &Seal, place: &Place, key: &PublicKey) -> Result<(Sealed, String), Failure> {
    let wrong = |problem: String| Failure::usage(format!("{}: {problem}", place.name));
    let token_url = place.token_url.as_deref().map(|url| Value::String(url.to_owned()));
    let holder = Holder {
        id: args.source,
        source: &place.name,
        organization: place.organization,
        address: &place.address,
        token_url: token_url.as_ref(),
    };
    let places = holder.places(&args.field, &place.address).map_err(wrong)?;
    let secret = typed::read(&format!("{} of {}", args.field, place.name))?;
    let sealed = Sealed::seal(&secret, key, &holder.binding(&args.field, &places))?;
    Ok((sealed, format!("It opens for {places} alone.")))
}

fn print(args: &Seal, sealed: &Sealed, places: &str) -> Result<(), Failure> {
    remark(places);
    let field = args.field.replace('\'', "''");
    remark(&format!("To be pasted: select vm.seal_source('{}', '{field}', '...');", args.source));
    say(&sealed.to_string())
}

async fn organization_of(db: &mut PgConnection, code: &str) -> Result<Uuid, Failure> {
    sqlx::query_scalar!("select ID from Organization where Code = $1", code)
        .fetch_optional(db)
        .await?
        .ok_or_else(|| Failure::usage(format!("there is no Organization with the Code {code}")))
}

async fn place_of(db: &mut PgConnection, source: Uuid, with_token_url: bool) -> Result<Place, Failure> {
    sqlx::query!(
        "select Source as source, OrganizationID as organization, Address as address,
           case when $2 then vm.token_url_of(ID) end as token_url
         from SourceConfig where ID = $1",
        source,
        with_token_url,
    )
    .fetch_optional(db)
        .await?
        .map(|row| Place {
            name: format!("source {} ({source})", row.source),
            organization: row.organization,
            address: row.address,
            token_url: row.token_url,
        })
        .ok_or_else(|| {
            Failure::usage(format!(
                "there is no SourceConfig {source}; for one that is yet to be inserted give --organization and --address"
            ))
        })
}
