//! `rosterd check-config`: every problem of all layers and of `commands.d`, without a database.

use super::output::{remark, say};
use super::{Failure, Global, overrides};
use crate::config::Config;
use crate::jobs::generic::check_allow_list;
use crate::secrets::Keyring;

/// Options of `rosterd check-config`.
#[derive(Debug, clap::Args)]
pub(super) struct CheckConfig {
    /// Print every key with the value that counts and where it was set; secrets are masked.
    #[arg(long)]
    show: bool,
}

pub(super) fn run(global: &Global, args: &CheckConfig) -> Result<(), Failure> {
    let found = Config::inspect(global.config.as_deref(), overrides(global));
    let mut problems = Vec::new();
    match &found.outcome {
        Ok(config) => {
            problems.extend(config.database.password().err().map(|error| error.to_string()));
            problems.extend(Keyring::load(&config.secrets).err().map(|error| error.to_string()));
        }
        Err(error) => problems.extend(error.problems.iter().map(ToString::to_string)),
    }
    let folder = found.commands_dir();
    let commands = check_allow_list(&folder);
    problems.extend(commands.problems);
    if found.is_set("commands.dir") && !folder.is_dir() {
        problems.push(format!("`commands.dir` is {}, give a folder that can be read", folder.display()));
    }

    if args.show {
        let mut section = "";
        for setting in &found.settings {
            let (its_section, key) = setting.key.split_once('.').unwrap_or(("", &setting.key));
            if its_section != section {
                say(&format!("{}[{its_section}]", if section.is_empty() { "" } else { "\n" }))?;
                section = its_section;
            }
            say(&format!("{key} = {}  # {}", setting.shown(), setting.place))?;
        }
        say("")?;
    }
    for remarked in &commands.remarks {
        remark(&format!("rosterd: {remarked}"));
    }
    if !problems.is_empty() {
        return Err(Failure::usage(problems.join("\n")));
    }
    if commands.usable > 0 {
        say(&format!("{}: {} usable", folder.display(), super::output::count(commands.usable, "command")))?;
    }
    say("configuration is fine")
}
