use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Duration;

use secrecy::ExposeSecret;
use tracing::level_filters::LevelFilter;

use super::rules::RULES;
use super::*;

fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load_environment(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load_with(None, Overrides::default(), &environment(variables))
}

/// Loads a file `rosterd.toml`; its folder is cut out of the error.
fn load_file(text: &str) -> Result<Config, String> {
    load_all(text, &[], Overrides::default())
}

fn load_all(text: &str, variables: &[(&str, &str)], overrides: Overrides) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rosterd.toml");
    std::fs::write(&file, text).unwrap();
    Config::load_with(Some(&file), overrides, &environment(variables))
        .map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

#[test]
fn the_built_in_defaults_are_those_of_the_contract() {
    let config = Config::built_in();
    assert_eq!(config.engine.poll(), Duration::from_secs(1));
    assert_eq!(config.engine.workers, 1000);
    assert_eq!(config.engine.lease(), Duration::from_secs(20));
    assert_eq!(config.http.address(), Some("127.0.0.1:9420"));
    assert_eq!(config.log.format, LogFormat::Classic);
    assert_eq!(config.log.database_level, LevelFilter::INFO);
    assert_eq!(config.commands.env, ["PATH", "LANG", "TZ", "HOME"]);
    assert_eq!(config.commands_dir(), Path::new("/etc/rosterd/commands.d"));
    assert!(config.sources.allow_private.is_empty());
    assert!(!config.sql_job.allow_own_database);
    assert!(config.engine.threads() >= 2);
    assert!(
        config.state.dir().is_none()
            && config.embedded.bin_dir().is_none()
            && config.embedded.user().is_none()
    );
    assert!(config.database.connect_options().unwrap().is_none());
}

#[test]
fn default_toml_and_the_table_of_rules_have_the_same_keys() {
    let table: Table = toml::from_str(DEFAULT_TOML).unwrap();
    let keys: BTreeSet<String> = table
        .iter()
        .flat_map(|(section, keys)| {
            keys.as_table().unwrap().keys().map(move |key| format!("{section}.{key}"))
        })
        .collect();
    assert_eq!(keys, RULES.iter().map(|(key, _)| (*key).to_owned()).collect());
}

#[test]
fn every_key_of_default_toml_has_a_comment_of_its_own() {
    let mut before = "";
    for line in DEFAULT_TOML.lines() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(before.starts_with("# "), "no comment above {line}");
        }
        before = line;
    }
}

#[test]
fn the_example_file_loads() {
    let example = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config/rosterd.example.toml"));
    let config = Config::load_with(Some(example), Overrides::default(), &BTreeMap::new()).unwrap();
    assert_eq!(config.engine.workers, 200);
    assert_eq!(config.commands_dir(), example.with_file_name("commands.d"));
}

#[test]
fn a_misspelt_key_in_the_file_names_the_nearest_key_and_its_line() {
    let error = load_file("[engine]\n\nworker = 5\n").unwrap_err();
    assert_eq!(error, "`engine.worker` is not a key, the nearest is `engine.workers` (rosterd.toml line 3)");
}

#[test]
fn a_key_in_the_wrong_section_names_the_right_one() {
    let error = load_file("[database]\nworkers = 5\n").unwrap_err();
    assert_eq!(
        error,
        "`database.workers` is not a key, the nearest is `engine.workers` (rosterd.toml line 2)"
    );
}

#[test]
fn a_misspelt_section_names_the_nearest_section() {
    let error = load_file("[engin]\nworkers = 5\n").unwrap_err();
    assert_eq!(error, "`engin` is not a key, the nearest is `engine` (rosterd.toml line 1)");
}

#[test]
fn a_misspelt_key_in_the_environment_names_the_nearest_key_and_the_variable() {
    let error = load_environment(&[("ROSTERD__ENGINE__WORKRES", "5")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "`engine.workres` is not a key, the nearest is `engine.workers` \
         (environment variable ROSTERD__ENGINE__WORKRES)"
    );
}

#[test]
fn a_value_below_its_range_names_key_value_wish_and_place() {
    let error = load_file("[engine]\nworkers = 0\n").unwrap_err();
    assert_eq!(error, "`engine.workers` is 0, give 1 or more (rosterd.toml line 2)");
}

#[test]
fn a_value_above_its_range_names_key_value_wish_and_place() {
    let error = load_environment(&[("ROSTERD__ENGINE__POLL_SECONDS", "61.5")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "`engine.poll_seconds` is 61.5, give 60 or less (environment variable ROSTERD__ENGINE__POLL_SECONDS)"
    );
}

#[test]
fn a_value_of_the_wrong_type_names_the_type_it_wants() {
    let cases = [
        (
            "[engine]\nworkers = \"many\"",
            "`engine.workers` is \"many\", give a whole number from 1 to 100000",
        ),
        ("[engine]\nworkers = 1.5", "`engine.workers` is 1.5, give a whole number from 1 to 100000"),
        ("[engine]\npoll_seconds = nan", "`engine.poll_seconds` is nan, give a number from 0.05 to 60"),
        ("[sql_job]\nallow_own_database = 1", "`sql_job.allow_own_database` is 1, give true or false"),
        ("[state]\n\"dir\" = 7", "`state.dir` is 7, give text in quotes"),
        ("[log]\nformat = \"xml\"", "`log.format` is \"xml\", give \"classic\", \"json\" or \"journald\""),
        ("\nengine = 5", "`engine` is 5, give a section [engine]"),
        ("[engine]\nworkers.most = 7", "`engine.workers` is a section, give a whole number from 1 to 100000"),
        (
            "[http]\nlisten = \"9420\"",
            "`http.listen` is \"9420\", give host:port such as \"127.0.0.1:9420\", or \"off\"",
        ),
    ];
    for (text, sentence) in cases {
        assert_eq!(load_file(text).unwrap_err(), format!("{sentence} (rosterd.toml line 2)"));
    }
}

#[test]
fn an_empty_number_in_the_environment_is_refused_not_ignored() {
    let error = load_environment(&[("ROSTERD__ENGINE__WORKERS", "")]).unwrap_err().to_string();
    assert!(error.starts_with("`engine.workers` is \"\", give a whole number"), "{error}");
}

#[test]
fn all_problems_of_all_layers_come_at_once() {
    let error = load_all(
        "[engine]\nworkers = 0\nfoo = 1\n",
        &[("ROSTERD__LOG__FORMAT", "xml")],
        Overrides::default(),
    );
    assert_eq!(error.unwrap_err().lines().count(), 3);
}

#[test]
fn a_heartbeat_of_a_third_of_the_lease_is_refused() {
    let error = load_file("[engine]\nlease_seconds = 15\n").unwrap_err();
    assert_eq!(
        error,
        "`engine.heartbeat_seconds` is 5, give less than a third of `engine.lease_seconds`, which is 15 \
         (rosterd.toml line 2)"
    );
}

#[test]
fn a_list_comes_from_the_environment_with_commas() {
    let config = load_environment(&[
        ("ROSTERD__SOURCES__ALLOW_PRIVATE", "10.0.0.0/8, 127.0.0.1,fd00::/8"),
        ("ROSTERD__COMMANDS__ENV", "PATH,TZ"),
    ])
    .unwrap();
    let networks: Vec<String> = config.sources.allow_private.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "127.0.0.1/32", "fd00::/8"]);
    assert_eq!(config.commands.env, ["PATH", "TZ"]);
}

#[test]
fn folders_that_sources_may_read_begin_at_the_root() {
    let config = load_environment(&[("ROSTERD__SOURCES__FOLDERS", "/srv/scap, /srv/b")]).unwrap();
    assert_eq!(config.sources.folders, [Path::new("/srv/scap"), Path::new("/srv/b")]);
    let error = load_file("[sources]\nfolders = [\"scap\"]\n").unwrap_err();
    assert!(
        error.starts_with("`sources.folders` is a list with \"scap\", give a list of folders"),
        "{error}"
    );
}

#[test]
fn a_path_that_ssh_would_read_otherwise_than_it_stands_is_refused() {
    let config = load_file("[openscap]\nssh_identity_file = \"/etc/rosterd/ssh-key\"\n").unwrap();
    assert_eq!(config.openscap.ssh_identity_file, Path::new("/etc/rosterd/ssh-key"));
    assert!(config.openscap.content.is_empty() && config.openscap.oscap == Path::new("/usr/bin/oscap"));
    for path in ["ssh-key", "/etc/%d/key", "/etc/a key", "~/key"] {
        let error = load_file(&format!("[openscap]\nssh_identity_file = \"{path}\"\n")).unwrap_err();
        assert!(error.contains("give a path from the root without blanks"), "{error}");
    }
}

#[test]
fn keys_of_secrets_are_files_and_whatever_stands_in_the_place_of_a_public_key_is_never_repeated() {
    let config = load_environment(&[("ROSTERD__SECRETS__KEYS", "/etc/a.key, /etc/b.key")]).unwrap();
    assert_eq!(config.secrets.keys, [Path::new("/etc/a.key"), Path::new("/etc/b.key")]);
    assert!(config.secrets.allow_plaintext && config.secrets.public_key.is_empty());
    let error = load_file("[secrets]\nkeys = [\"\"]\n").unwrap_err();
    assert!(error.starts_with("`secrets.keys` is a list with \"\", give a list of files such as"), "{error}");
    let error = load_file("[secrets]\npublic_key = \"rosterd-private-key-1:canary\"\n").unwrap_err();
    let wanted = "`secrets.public_key` is something else (kept secret here), give the public key that \
        `rosterd secret keygen` printed (rosterd.toml line 2)";
    assert_eq!(error, wanted);
}

#[test]
fn an_empty_list_in_the_environment_is_an_empty_list() {
    let config = load_environment(&[("ROSTERD__COMMANDS__ENV", "")]).unwrap();
    assert!(config.commands.env.is_empty());
}

#[test]
fn a_bad_network_in_a_list_is_named() {
    let error =
        load_environment(&[("ROSTERD__SOURCES__ALLOW_PRIVATE", "10.0.0.0/33")]).unwrap_err().to_string();
    assert!(
        error.starts_with("`sources.allow_private` is a list with \"10.0.0.0/33\", give a list of networks"),
        "{error}"
    );
}

#[test]
fn the_environment_counts_over_the_file_and_the_file_over_the_defaults() {
    let text = "[engine]\nworkers = 5\nclaim_batch = 6\n";
    let config = load_all(text, &[("ROSTERD__ENGINE__WORKERS", "7")], Overrides::default()).unwrap();
    assert_eq!((config.engine.workers, config.engine.claim_batch), (7, 6));
    assert_eq!(config.engine.lease(), Duration::from_secs(20));
}

#[test]
fn the_database_url_comes_from_the_nearest_place() {
    let text = "[database]\nurl = \"postgres://file/a\"\n";
    let url = |variables: &[(&str, &str)], option: Option<&str>| {
        let overrides = Overrides { database_url: option.map(str::to_owned), ..Overrides::default() };
        load_all(text, variables, overrides).unwrap().database.url.expose_secret().to_owned()
    };
    let plain = ("DATABASE_URL", "postgres://plain/a");
    let own = ("ROSTERD__DATABASE__URL", "postgres://own/a");
    assert_eq!(url(&[], None), "postgres://file/a");
    assert_eq!(url(&[plain], None), "postgres://plain/a");
    assert_eq!(url(&[plain, own], None), "postgres://own/a");
    assert_eq!(url(&[plain, own], Some("postgres://option/a")), "postgres://option/a");
    assert_eq!(url(&[("DATABASE_URL", "")], None), "postgres://file/a");
}

#[test]
fn options_of_the_command_line_set_listen_and_state_dir() {
    let overrides = Overrides {
        listen: Some("off".to_owned()),
        state_dir: Some(PathBuf::from("/srv/rosterd")),
        ..Overrides::default()
    };
    let config = load_all("", &[("ROSTERD__HTTP__LISTEN", "[::1]:80")], overrides).unwrap();
    assert_eq!(config.http.address(), None);
    assert_eq!(config.state.dir(), Some(Path::new("/srv/rosterd")));
}

#[test]
fn a_misspelt_level_is_refused_rather_than_taken_for_a_module() {
    let error = load_file("[log]\nlevel = \"infoo\"\n").unwrap_err();
    assert!(error.starts_with("`log.level` is \"infoo\", give \"off\", "), "{error}");
    assert!(load_file("[log]\nlevel = \"warn,sqlx=debug,[job{org=NORTON}]=trace\"\n").is_ok());
}

#[test]
fn rust_log_counts_over_every_other_level() {
    let config = load_environment(&[("RUST_LOG", "rosterd"), ("ROSTERD__LOG__LEVEL", "warn")]).unwrap();
    assert_eq!(config.log.level, "rosterd");
    let error = load_environment(&[("RUST_LOG", "a=b=c")]).unwrap_err().to_string();
    assert!(error.ends_with("(environment variable RUST_LOG)"), "{error}");
}

#[test]
fn variables_with_a_single_underscore_are_left_alone() {
    assert!(load_environment(&[("ROSTERD_PORT", "tcp://10.0.0.1:80")]).is_ok());
}

#[test]
fn secrets_stand_in_no_debug_output_and_in_no_error() {
    let good = [("DATABASE_URL", "postgres://me:hunter2@host/db")];
    assert!(!format!("{:?}", load_environment(&good).unwrap()).contains("hunter2"));
    let overrides =
        Overrides { database_url: Some("postgres://hunter2@h/d".to_owned()), ..Overrides::default() };
    assert!(!format!("{overrides:?}").contains("hunter2"));

    let errors = [
        load_environment(&[("DATABASE_URL", "mysql://me:hunter2@host/db")]).unwrap_err().to_string(),
        load_environment(&[("DATABASE_URL", "postgres://me:hunter2#@host:5432/db")]).unwrap_err().to_string(),
        load_environment(&[("ROSTERD__DATABASE__PASSWORD", "hunter2")]).unwrap_err().to_string(),
        load_file("[database]\nurl = \"postgres://me:hunter2@host\n").unwrap_err(),
        load_file("[database]\nurl = hunter2\n").unwrap_err(),
        load_file("[database]\nurl = [\"hunter2\"]\n").unwrap_err(),
    ];
    for error in errors {
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn the_password_file_is_read_at_connect_without_its_line_end() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"hunter2\r\n").unwrap();
    let mut config = load_environment(&[("DATABASE_URL", "postgres://me@host/db")]).unwrap();
    config.database.password_file = file.path().to_owned();
    assert_eq!(config.database.password().unwrap().unwrap().expose_secret(), "hunter2");
    assert!(config.database.connect_options().unwrap().is_some());

    config.database.password_file = PathBuf::from("/nowhere/secret");
    let error = config.database.connect_options().unwrap_err().to_string();
    assert!(
        error.starts_with("`database.password_file` is /nowhere/secret, give a file that can be read"),
        "{error}"
    );
}

#[test]
fn a_configuration_file_that_is_not_there_is_an_error_that_names_it() {
    let error = Config::load_with(Some(Path::new("/nowhere/r.toml")), Overrides::default(), &BTreeMap::new());
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("`--config` is /nowhere/r.toml, give a file that can be read: No such file"),
        "{error}"
    );
}

#[test]
fn text_that_is_not_toml_names_its_line() {
    let error = load_file("[engine]\nworkers = = 5\n").unwrap_err();
    assert!(error.starts_with("this is not TOML: ") && error.ends_with("(rosterd.toml line 2)"), "{error}");
}
