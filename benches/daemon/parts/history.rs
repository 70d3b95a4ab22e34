//! Whether a claim costs the same beside a hundred rows and ten million finished ones.

use super::beside::{Place, compare};
use crate::figures::{Curve, Results};
use crate::world::{World, config_of, scenery};
use anyhow::Result;
use std::time::Instant;

const BURST: i64 = 5000;
const SIZES: &[(i64, &str)] =
    &[(0, "no finished rows"), (1_000_000, "1 M finished rows"), (10_000_000, "10 M finished rows")];
/// Only with `--100m`: fifty gigabytes and a quarter of an hour.
const HUGE: (i64, &str) = (100_000_000, "100 M finished rows");

pub(super) async fn measure(world: &World, results: &mut Results) -> Result<()> {
    let mut sizes = SIZES.to_vec();
    if world.quick {
        sizes.pop();
    }
    if std::env::args().any(|argument| argument == "--100m") {
        sizes.push(HUGE);
    }
    let mut places = Vec::new();
    for (rows, title) in &sizes {
        let database = format!("history_{rows}");
        let mut db = world.database(&database).await?;
        let began = Instant::now();
        if *rows > 0 {
            let config = config_of(&mut db, "NoopJob").await?;
            scenery(world, &database, config, *rows, true).await?;
        }
        println!("  {title}, made in {:.0} s", began.elapsed().as_secs_f64());
        places.push(Place::open(world, &database, title, db).await?);
    }
    compare("history", world, &mut places, BURST, results).await?;
    let mut curves = Vec::new();
    let mut curve = |name: &str, of: fn(&Place) -> f64| {
        let mut points = Vec::new();
        for ((rows, _), place) in sizes.iter().zip(&places) {
            points.push((f64::from(i32::try_from(*rows)?), of(place)));
        }
        curves.push(Curve { name: name.to_owned(), points });
        anyhow::Ok(())
    };
    curve("500 rows, p50", Place::batch_p50)?;
    curve("one row, p99", Place::single_p99)?;
    curve("one row, p50", Place::single_p50)?;
    results.curves.insert("claim-by-history".to_owned(), curves);
    drop(places);
    for (rows, _) in sizes {
        world.drop_database(&format!("history_{rows}")).await?;
    }
    Ok(())
}
