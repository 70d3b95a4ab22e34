//! Peers of rosterd on PostgreSQL, measured as rosterd is: `rosterd-peers PEER drain|idle`, with the database in
//! `DATABASE_URL` and another of the same server in `ADMIN_URL`. Prints a line of JSON for each figure.
//!
//! Each has the settings that drained fastest of those tried; they stand in the name of each figure.

mod apalis_postgres;
mod graphile_worker;
mod harness;
mod underway;

use anyhow::{Result, bail};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [peer, what] = arguments.as_slice() else { bail!("give a peer, and drain or idle") };
    match peer.as_str() {
        "graphile_worker" => harness::measure::<graphile_worker::Peer>(what).await,
        "apalis" => harness::measure::<apalis_postgres::Peer>(what).await,
        "underway" => harness::measure::<underway::Peer>(what).await,
        _ => bail!("there is no peer {peer}"),
    }
}
