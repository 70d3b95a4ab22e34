//! `rosterd secret keygen`: a fresh key. No database and no configuration is asked.

use crate::cli::Failure;
use crate::cli::output::{remark, say};
use crate::secrets::PrivateKey;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Options of `rosterd secret keygen`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Keygen {
    /// File for the private key; it must not exist yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(args: &Keygen) -> Result<(), Failure> {
    let file = args.out.display();
    let key = PrivateKey::generate();
    let fail = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::usage(format!(
            "{file} is there already, and is left alone: secrets may be sealed for the key in it; give another file"
        )),
        _ => Failure::usage(format!("failed to write {file}: {error}")),
    };
    // Nobody else can read it at any moment, and no file or link that somebody put there is written to.
    let mut out = File::options().write(true).create_new(true).mode(0o600).open(&args.out).map_err(fail)?;
    let written = out.write_all(key.to_file().as_bytes()).and_then(|()| out.sync_all());
    if let Err(error) = written {
        // Half a key is none.
        let _ = std::fs::remove_file(&args.out);
        return Err(fail(error));
    }
    remark(&format!(
        "The private key is in {file}, readable by its owner alone. Keep a copy where backups of the database are not: \
         without it the secrets are lost."
    ));
    say(&format!("Key id:     {}", key.public().id()))?;
    say(&format!("Public key: {}", key.public()))
}
