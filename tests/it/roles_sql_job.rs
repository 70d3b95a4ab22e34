//! What the statements of `SqlJob` may do where there are roles.

use crate::support::{Daemon, Login, TestDb, config_of, own_jobs_binary, server, with_roles};
use std::process::Command;

/// Everything that would let a statement act as the runner it is not.
const FORGED: [&str; 4] = [
    "with a as (select set_config('rosterd.actor', 'runner', false)) update vm.JobHistory h set StatusID = 2, Attempt = h.Attempt + 1 from a where h.ID = $1::uuid",
    "do $$ begin set role none; set session authorization default; perform set_config('rosterd.actor', 'runner', false); update vm.JobHistory set StatusID = 2, Attempt = Attempt + 1 where StatusID = 1; end $$",
    "select AuthInfo from vm.SourceConfig",
    "update vm.JobHistory set ThreadID = null, Attempt = 9 where ID = $1::uuid",
];

fn daemon(url: &str) -> Daemon {
    let mut command = Command::new(own_jobs_binary());
    command.args(["run", "--listen", "off"]).env("DATABASE_URL", url);
    command.env("ROSTERD__SQL_JOB__ALLOW_OWN_DATABASE", "true");
    let daemon = Daemon::spawn(command);
    daemon.wait_line("rosterd is ready");
    daemon
}

/// The Error of a row of `SqlJob` with this statement, or "" and its Result.
fn outcome(db: &mut TestDb, config: &str, statement: &str, victim: &str) -> (String, String) {
    let parameters = if statement.contains("$1") { format!("[\"{victim}\"]") } else { "[]".to_owned() };
    let id = db.text(&format!(
        "insert into JobHistory (ConfigID, StatusID, Payload) values ('{config}', 1,
           jsonb_build_object('statement', $s${statement}$s$, 'parameters', '{parameters}'::jsonb)) returning ID"
    ));
    db.wait_for(
        &format!("select StatusID in (3, 4) from JobHistory where ID = '{id}'"),
        "t",
        crate::support::SOON,
    );
    (db.column(&id, "Error"), db.column(&id, "Result"))
}

/// A row that nobody runs, to forge.
fn victim(db: &mut TestDb) -> String {
    let config = config_of(db, "A", "NobodyKnowsJob", "", "");
    db.insert(&config, "{}")
}

#[test]
fn no_statement_runs_on_rosterds_own_database_with_the_login_of_a_runner_whatever_the_key_says() {
    let mut db = with_roles();
    let runner = Login::new(&mut db, "rosterd_runner", &[]);
    let (own, victim) = (config_of(&mut db, "A", "SqlJob", "", ""), victim(&mut db));
    for url in [runner.url().to_owned(), db.url()] {
        let _daemon = daemon(&url);
        for statement in FORGED.iter().chain(&["select 1"]) {
            let (error, _) = outcome(&mut db, &own, statement, &victim);
            for word in ["may act as a runner", "a DataInSourceConfigID with the login of an operator"] {
                assert!(error.contains(word), "{statement}: {error}");
            }
        }
    }
    assert_eq!((db.status(&victim), db.column(&victim, "Attempt")), ("1".to_owned(), "0".to_owned()));
}

#[test]
fn a_statement_with_an_operators_login_does_what_that_operator_may_and_one_with_a_runners_is_refused() {
    let mut db = with_roles();
    let runner = Login::new(&mut db, "rosterd_runner", &[]);
    let operator = Login::new(&mut db, "rosterd_operator", &["A"]);
    let victim = victim(&mut db);
    let config_with = |db: &mut TestDb, login: &str, database: &str| {
        let source = db.text(&format!(
            r#"insert into SourceConfig (Source, OrganizationID, Address, Port, AuthInfo)
               select 'PostgreSQL', ID, '{}', {}, '{{"Username": "{login}", "Password": "{}", "Database": "{database}"}}'
               from Organization where Code = 'A' returning ID"#,
            server().socket_dir().display(),
            server().connect_options().get_port(),
            Login::PASSWORD,
        ));
        config_of(db, "A", "SqlJob", ", DataInSourceConfigID", &format!(", '{source}'"))
    };
    let name = db.name.clone();
    let _daemon = daemon(runner.url());
    let ours = config_with(&mut db, &operator.name, &name);
    let (error, result) = outcome(&mut db, &ours, "select Code from vm.Organization", &victim);
    assert!(error.is_empty() && result.contains("\"A\"") && !result.contains("\"B\""), "{error} {result}");
    for statement in FORGED {
        let (error, _) = outcome(&mut db, &ours, statement, &victim);
        assert!(["42501", "by hand"].iter().any(|word| error.contains(word)), "{statement}: {error}");
    }
    // The daemon's own login, a superuser, and either by the way of another database of the server.
    let superuser = db.options.get_username().to_owned();
    for (login, database) in [(&runner.name, &*name), (&superuser, &*name), (&superuser, "postgres")] {
        let theirs = config_with(&mut db, login, database);
        let (error, _) = outcome(&mut db, &theirs, "select 1", &victim);
        assert!(error.contains(&format!("would run as {login}, which may act as a runner")), "{error}");
    }
    assert_eq!((db.status(&victim), db.column(&victim, "Attempt")), ("1".to_owned(), "0".to_owned()));
}
