//! One private PostgreSQL for the whole test run. It dies with the test process.

use rosterd::postgres::embedded::{Durability, EmbeddedOptions, EmbeddedPostgres};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

static SERVER: OnceLock<EmbeddedPostgres> = OnceLock::new();

/// The server, started by the first test that needs it: the newest installed, or that of `ROSTERD_TEST_BIN_DIR`.
pub fn server() -> &'static EmbeddedPostgres {
    SERVER.get_or_init(|| {
        let mut options = EmbeddedOptions::new(state_dir());
        options.durability = Durability::ThrowAway;
        options.bin_dir = std::env::var_os("ROSTERD_TEST_BIN_DIR").map(PathBuf::from);
        options.extra_settings = vec![
            ("max_connections".to_owned(), "400".to_owned()),
            ("shared_buffers".to_owned(), "64MB".to_owned()),
        ];
        EmbeddedPostgres::start(&options).expect("a private PostgreSQL for the tests")
    })
}

/// A folder for this run, under cargo's own folder for tests; those of runs that are over are removed.
fn state_dir() -> PathBuf {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres");
    // The server's user must be able to enter it; below a closed home directory it cannot.
    let base = if open_to_others(&base) { base } else { std::env::temp_dir().join("rosterd-tests") };
    std::fs::create_dir_all(&base).expect("a folder for the private PostgreSQL");
    for old in std::fs::read_dir(&base).expect("the folder just made").flatten() {
        let pid = old.file_name().to_string_lossy().into_owned();
        if !Path::new("/proc").join(&pid).exists() {
            let _ = std::fs::remove_dir_all(old.path());
        }
    }
    base.join(std::process::id().to_string())
}

fn open_to_others(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    folder
        .ancestors()
        .filter_map(|parent| parent.metadata().ok())
        .all(|parent| parent.permissions().mode() & 0o001 != 0)
}
