//! `rosterd secret seal`: needs the public key only, so anybody may do it, anywhere.

use super::{no_public_key, public_key, typed};
use crate::cli::output::{remark, say};
use crate::cli::{Database, Failure, block_on};
use crate::config::Config;
use crate::secrets::{ALWAYS_READABLE, Binding, PublicKey, Sealed, host_of};
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
    /// Its Address, of which the host counts. With an Organization.ID beside it no database is needed.
    #[arg(long, value_name = "ADDRESS", requires = "organization")]
    address: Option<String>,
    /// The key to seal for; otherwise `secrets.public_key`.
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
    /// Write it into AuthInfo of the source instead of printing it.
    #[arg(long, conflicts_with_all = ["organization", "address"])]
    write: bool,
}

/// What a secret is bound to, besides its field.
struct Place {
    name: String,
    organization: Uuid,
    address: String,
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
    // Without a database, where all is said.
    if let (Some(organization), Some(address)) = (&args.organization, &args.address)
        && let Ok(organization) = organization.parse()
    {
        let place = Place { name: args.source.to_string(), organization, address: address.clone() };
        return print(args, &seal(args, &place, &key)?);
    }
    let database = Database::open(settings)?;
    block_on(async {
        let mut db = database.session().await?;
        let place = match (&args.organization, &args.address) {
            (Some(code), Some(address)) => Place {
                name: args.source.to_string(),
                organization: organization_of(&mut db, code).await?,
                address: address.clone(),
            },
            _ => place_of(&mut db, args.source).await?,
        };
        let sealed = seal(args, &place, &key)?;
        if !args.write {
            return print(args, &sealed);
        }
        // By a function, because operators may write AuthInfo and not read it, and the other fields stay.
        sqlx::query!(
            "select vm.seal_source($1, $2, $3, $4)",
            args.source,
            args.field,
            sealed.to_json(),
            place.address,
        )
        .execute(&mut db)
        .await?;
        say(&format!("{} of {} is sealed for key {}", args.field, place.name, key.id()))
    })
}

fn seal(args: &Seal, place: &Place, key: &PublicKey) -> Result<Sealed, Failure> {
    let host =
        host_of(&place.address).map_err(|problem| Failure::usage(format!("{}: {problem}", place.name)))?;
    let binding =
        Binding { organization: place.organization, source: args.source, field: &args.field, host: &host };
    let secret = typed::read(&format!("{} of {}", args.field, place.name))?;
    Ok(Sealed::seal(&secret, key, &binding)?)
}

fn print(args: &Seal, sealed: &Sealed) -> Result<(), Failure> {
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

async fn place_of(db: &mut PgConnection, source: Uuid) -> Result<Place, Failure> {
    sqlx::query!(
        "select Source as source, OrganizationID as organization, Address as address
         from SourceConfig where ID = $1",
        source,
    )
    .fetch_optional(db)
        .await?
        .map(|row| Place {
            name: format!("source {} ({source})", row.source),
            organization: row.organization,
            address: row.address,
        })
        .ok_or_else(|| {
            Failure::usage(format!(
                "there is no SourceConfig {source}; for one that is yet to be inserted give --organization and --address"
            ))
        })
}
