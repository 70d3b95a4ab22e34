//! One connection of one loop: opened when needed, dropped after any error or missed deadline.

use super::state::EngineState;
use crate::postgres::connect::{self, DatabaseError, Limits, Speaker};
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;

/// A loop's own connection. The control loops share no pool: one that waits cannot make another wait.
#[derive(Debug)]
pub(crate) struct Link {
    options: PgConnectOptions,
    name: &'static str,
    limits: Limits,
    connection: Option<PgConnection>,
}

impl Link {
    pub(crate) fn new(state: &EngineState, name: &'static str) -> Self {
        Self { options: state.options.clone(), name, limits: state.limits, connection: None }
    }

    /// The connection, opened within the time limit if there is none.
    pub(crate) async fn get(&mut self) -> Result<&mut PgConnection, DatabaseError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect::connect(&self.options, self.name, Speaker::Runner, self.limits).await?,
        };
        Ok(self.connection.insert(connection))
    }

    /// After an error: what state the session is in, or whether the statement runs on, is not known, so it is
    /// never used again.
    pub(crate) fn close(&mut self) {
        self.connection = None;
    }
}
