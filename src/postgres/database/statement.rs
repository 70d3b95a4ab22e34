//! A statement taken out of whatever query brought it.

use sqlx::postgres::{PgArguments, PgStatement};
use sqlx::{Execute, Postgres, SqlStr};

/// What sqlx needs to run it, without the lifetime and type of the query.
pub(super) struct Statement {
    text: SqlStr,
    prepared: Option<PgStatement>,
    arguments: Option<PgArguments>,
    persistent: bool,
}

impl Statement {
    pub(super) fn of<'q>(mut query: impl Execute<'q, Postgres>) -> Result<Self, sqlx::Error> {
        Ok(Self {
            arguments: query.take_arguments().map_err(sqlx::Error::Encode)?,
            prepared: query.statement().cloned(),
            persistent: query.persistent(),
            text: query.sql(),
        })
    }

    /// Whether its end may leave a transaction open: nothing but BEGIN and START TRANSACTION begins one.
    pub(super) fn may_begin(&self) -> bool {
        let text = self.text.as_str().as_bytes();
        let has = |word: &[u8]| text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
        has(b"begin") || has(b"start")
    }
}

impl Execute<'_, Postgres> for Statement {
    fn sql(self) -> SqlStr {
        self.text
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.prepared.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        Ok(self.arguments.take())
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}
