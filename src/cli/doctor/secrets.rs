//! Secrets of sources: whether they are sealed, and whether they would open.

use super::Check;
use crate::cli::Failure;
use crate::cli::output::count;
use crate::cli::secret::standing;
use crate::config::Config;
use crate::secrets::Keyring;
use sqlx::PgConnection;

pub(super) async fn examine(db: &mut PgConnection, settings: &Config) -> Result<Check, Failure> {
    const NAME: &str = "secrets";
    let (keys, unreadable) = match Keyring::load(&settings.secrets) {
        Ok(keys) => (keys, None),
        Err(problem) => (Keyring::default(), Some(problem.to_string().replace('\n', "; "))),
    };
    let standing = match standing::take(db, &keys).await {
        Ok(standing) => standing,
        Err(failure) if failure.denied => {
            return Ok(Check::ok(NAME, "not looked at: this login may not read AuthInfo"));
        }
        Err(failure) => return Err(failure),
    };
    let sealed: i64 = standing.sealed.values().map(|group| group.secrets).sum();
    let by_key: Vec<String> =
        standing.sealed.iter().map(|(key, group)| format!("{} for key {key}", group.secrets)).collect();
    let by_key = if sealed > 0 { format!(" ({})", by_key.join(", ")) } else { String::new() };
    let plain = standing.plain.secrets;
    let finding = format!("{} sealed{by_key}, {plain} in plaintext", count(sealed, "secret"));
    let missing: Vec<String> =
        standing.sealed.keys().filter(|key| keys.key(**key).is_none()).map(ToString::to_string).collect();
    Ok(if let Some(problem) = unreadable {
        Check::warn(
            NAME,
            format!("{finding}; {problem}"),
            "If this is the daemon's own user, it will not start: mend the file. Else run doctor as that user.",
        )
    } else if let Some(problem) = standing.closed.first() {
        Check::warn(
            NAME,
            format!("{finding}; {} not open: {problem}", standing.closed.len()),
            "Jobs with these sources end as ERROR; `rosterd secret status` shows each.",
        )
    } else if !missing.is_empty() {
        Check::warn(
            NAME,
            format!("{finding}; not here: the private key {}", missing.join(", ")),
            "Where the daemon runs with this configuration, name the key files in `secrets.keys`.",
        )
    } else if plain > 0 {
        let remedy = if settings.secrets.allow_plaintext {
            "Seal them: `rosterd secret rewrap --seal-plaintext` (docs/operating.md)."
        } else {
            "`secrets.allow_plaintext` is false: jobs with these sources end as ERROR. Seal them: `rosterd secret rewrap --seal-plaintext`."
        };
        Check::warn(NAME, finding, remedy)
    } else {
        Check::ok(NAME, finding)
    })
}
