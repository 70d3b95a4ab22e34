//! Whether rows that may not start slow down those that may.

use super::beside::{Place, compare};
use crate::figures::Results;
use crate::world::{World, config_of, insert_rows, scenery, wait};
use anyhow::Result;
use sqlx::PgConnection;
use uuid::Uuid;

const PARKED: i64 = 100_000;

pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let mut places = Vec::new();
    let kinds = [
        ("parked_none", "nothing parked"),
        ("parked_full", "100,000 behind a saturated configuration"),
        ("parked_source", "100,000 behind an inactive source"),
        ("parked_organization", "100,000 of an inactive organization"),
    ];
    for (database, title) in kinds {
        let mut db = world.database(database).await?;
        match database {
            "parked_full" => {
                let config = config_of(&mut db, "SleepJob").await?;
                sqlx::query("update JobConfig set MaxInstances = 1 where ID = $1")
                    .bind(config)
                    .execute(&mut db)
                    .await?;
                insert_rows(&mut db, config, 1).await?;
                scenery(world, database, config, PARKED, false).await?;
            }
            "parked_source" => {
                let config = behind(
                    &mut db,
                    "with source as (
                       insert into SourceConfig (Source, OrganizationID, Address, Active)
                       select 'HTTP', ID, 'https://example.com', false from Organization returning ID, OrganizationID)
                     insert into JobConfig (JobID, OrganizationID, MaxInstances, DataInSourceConfigID)
                     select j.ID, s.OrganizationID, 0, s.ID from Job j, source s where Struct = 'NoopJob' returning ID",
                )
                .await?;
                scenery(world, database, config, PARKED, false).await?;
            }
            "parked_organization" => {
                let config = behind(
                    &mut db,
                    "with tenant as (insert into Organization (Code, Active) values ('IDLE', false) returning ID)
                     insert into JobConfig (JobID, OrganizationID, MaxInstances)
                     select j.ID, t.ID, 0 from Job j, tenant t where Struct = 'NoopJob' returning ID",
                )
                .await?;
                scenery(world, database, config, PARKED, false).await?;
            }
            _ => {}
        }
        let mut place = Place::open(world, database, title, db).await?;
        if database == "parked_full" {
            wait(place.session(), "select sum(Open) = 1 from Claim").await?;
        }
        places.push(place);
    }
    compare("parked", world, &mut places, 0, results).await?;
    drop(places);
    for (database, _) in kinds {
        world.drop_database(database).await?;
    }
    Ok(())
}

async fn behind(db: &mut PgConnection, statement: &'static str) -> Result<Uuid> {
    Ok(sqlx::query_scalar(statement).fetch_one(db).await?)
}
