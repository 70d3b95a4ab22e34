//! The error that means: rosterd's own database was away.

use std::error::Error;
use std::fmt;
use std::io;

/// Why a call ended without an answer. Its type is private, so that nothing but [`super::Database`] can say it, and
/// nothing said of another database is mistaken for it.
#[derive(Debug)]
struct DatabaseAway {
    said: String,
}

impl fmt::Display for DatabaseAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rosterd's own database was away: {}", self.said)
    }
}

impl Error for DatabaseAway {}

/// An error of sqlx that [`is_away`] knows.
pub(crate) fn away(said: impl fmt::Display) -> sqlx::Error {
    sqlx::Error::Io(io::Error::other(DatabaseAway { said: said.to_string() }))
}

/// Whether rosterd's own database was away, anywhere in the chain of this error. (The text alone does not tell: a job
/// that turns the error into a string loses it.)
pub fn is_away(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if carried.is_some_and(<dyn Error + Send + Sync>::is::<DatabaseAway>) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_along_the_chain_and_no_other_outage_is_taken_for_it() {
        let error = anyhow::Error::from(away("cut")).context("while counting").context("while working");
        assert!(is_away(error.as_ref()));
        assert!(format!("{error:#}").contains("rosterd's own database was away: cut"));
        let other = anyhow::Error::from(sqlx::Error::Io(io::ErrorKind::ConnectionReset.into())).context("x");
        assert!(!is_away(other.as_ref()));
        assert!(!is_away(&io::Error::other(error.to_string())));
    }
}
