//! One connection of one loop: opened when needed, dropped after any error or missed deadline.

use super::state::EngineState;
use crate::postgres::cluster::{self, Cluster};
use crate::postgres::connect::{self, DatabaseError, Speaker};
use sqlx::PgConnection;
use std::sync::Arc;

struct Open {
    db: PgConnection,
    cluster: Cluster,
    /// `Lifeline::cuts` when it was opened: what was open when the link was found dead is of no use any more.
    cuts: u64,
}

/// A loop's own connection. The control loops share no pool: one that waits cannot make another wait.
pub(crate) struct Link {
    name: &'static str,
    connection: Option<Open>,
    state: Arc<EngineState>,
}

impl Link {
    pub(crate) fn new(state: &Arc<EngineState>, name: &'static str) -> Self {
        Self { name, connection: None, state: Arc::clone(state) }
    }

    /// The connection, opened within the time limit if there is none, or if the link was cut or the cluster replaced
    /// since.
    pub(crate) async fn get(&mut self) -> Result<&mut PgConnection, DatabaseError> {
        let state = &self.state;
        let connection = match self.connection.take() {
            Some(open) if state.is_current(open.cluster) && open.cuts == state.lifeline.cuts() => open,
            _ => {
                let cuts = state.lifeline.cuts();
                let mut db =
                    connect::connect(&state.options, self.name, Speaker::Runner, state.limits).await?;
                let cluster = cluster::identify(&mut db, state.limits.connect).await?;
                state.saw_cluster(cluster)?;
                Open { db, cluster, cuts }
            }
        };
        Ok(&mut self.connection.insert(connection).db)
    }

    /// After an error: what state the session is in, or whether the statement runs on, is not known, so it is
    /// never used again.
    pub(crate) fn close(&mut self) {
        self.connection = None;
    }
}
