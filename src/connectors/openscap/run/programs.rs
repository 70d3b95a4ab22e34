//! The two programs, with every argument they get.

use super::super::payload::RunPayload;
use crate::config::OpenScapSection;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::io::copy;
use tokio::process::ChildStdin;

/// What runs on a host, with a profile and the size of the content as its arguments. It needs `oscap` and nothing else there,
/// reads the content from its input and writes the result to its output. When its input ends, whoever asked is gone, and
/// `oscap` is stopped. One line, without
/// single quotes and with `!` before blanks alone, because the login shell of the user may be any.
const SCRIPT: &str = concat!(
    r#"umask 077; d=$(mktemp -d) || exit 1; clean() { rm -rf "$d"; }; trap clean EXIT; trap "exit 129" HUP; "#,
    r#"trap "exit 143" INT TERM; "#,
    r#"command -v oscap >/dev/null || { echo "there is no oscap in $PATH" >&2; exit 127; }; "#,
    r#"head -c "$2" > "$d/content.xml" || exit 1; exec 3<&0; "#,
    r#"oscap xccdf eval --profile "$1" --results "$d/results.xml" "$d/content.xml" </dev/null >/dev/null 3<&- & p=$! ; "#,
    r#"( read -r x <&3; kill "$p" ) >/dev/null 2>&1 & w=$! ; "#,
    r#"wait "$p"; c=$?; kill "$w" 2>/dev/null; "#,
    r#"if [ -f "$d/results.xml" ]; then cat "$d/results.xml"; fi; exit "$c""#
);

/// `oscap` about this host.
pub(super) fn oscap(programs: &OpenScapSection, run: &RunPayload, result: &Path, content: &Path) -> Command {
    let mut oscap = Command::new(&programs.oscap);
    oscap.args(["xccdf", "eval", "--profile", &run.profile, "--results"]).arg(result).arg(content);
    alone(&mut oscap);
    oscap
}

/// `ssh` to a host at the address it was reached at, and the script there. None of its own files is read but these two.
pub(super) fn ssh(
    programs: &OpenScapSection,
    run: &RunPayload,
    host: &str,
    address: IpAddr,
    connect_timeout: Duration,
    content_bytes: u64,
) -> Command {
    // As ssh itself looks a host up that was not given by its address.
    let known_as = if run.port == 22 { host.to_owned() } else { format!("[{host}]:{}", run.port) };
    let options = [
        "BatchMode=yes".to_owned(),
        "StrictHostKeyChecking=yes".to_owned(),
        format!("UserKnownHostsFile={}", programs.ssh_known_hosts_file.display()),
        "GlobalKnownHostsFile=/dev/null".to_owned(),
        format!("HostKeyAlias={known_as}"),
        "CheckHostIP=no".to_owned(),
        "UpdateHostKeys=no".to_owned(),
        "VerifyHostKeyDNS=no".to_owned(),
        format!("IdentityFile={}", programs.ssh_identity_file.display()),
        "IdentitiesOnly=yes".to_owned(),
        "IdentityAgent=none".to_owned(),
        "PreferredAuthentications=publickey".to_owned(),
        format!("ConnectTimeout={}", connect_timeout.as_secs().max(1)),
        "ServerAliveInterval=15".to_owned(),
        "ServerAliveCountMax=4".to_owned(),
        "ClearAllForwardings=yes".to_owned(),
        "ControlMaster=no".to_owned(),
        "ControlPath=none".to_owned(),
        "PermitLocalCommand=no".to_owned(),
        "ProxyCommand=none".to_owned(),
        "EscapeChar=none".to_owned(),
    ];
    let mut ssh = Command::new(&programs.ssh);
    ssh.args(["-F", "none", "-T", "-a", "-x"]);
    for option in options {
        ssh.arg("-o").arg(option);
    }
    ssh.args(["-l", &run.user, "-p", &run.port.to_string(), "--", &address.to_string()]);
    ssh.arg(format!(
        "exec sh -c {} rosterd {} {}",
        quoted(SCRIPT),
        quoted(&run.profile),
        quoted(&content_bytes.to_string())
    ));
    alone(&mut ssh);
    ssh
}

/// In a process group of its own, and nothing of our environment.
fn alone(command: &mut Command) {
    command.process_group(0).current_dir("/").env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Gives the content to a program, which may end before it has read it. Its input stays open until this is dropped.
pub(super) async fn feed(content: File, mut stdin: ChildStdin) {
    // What was wrong the program says, or its result, which then does not come.
    let _ = copy(&mut tokio::fs::File::from_std(content), &mut stdin).await;
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_a_word_in_every_shell() {
        assert!(!SCRIPT.replace("$! ", "").contains(['\'', '!', '\n', '\\']));
        let evil = "a'b $(touch x) `y` \"z\" \\";
        let said = Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(evil))).output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), evil);
    }

    #[test]
    fn ssh_gets_no_argument_that_somebody_could_make_an_option() {
        let programs = crate::config::Config::built_in().openscap;
        let run = RunPayload {
            over: super::super::Over::Ssh,
            profile: "standard".to_owned(),
            content: "/content/ds.xml".into(),
            timeout_seconds: 1,
            user: "scan".to_owned(),
            port: 2222,
            parallel: 1,
        };
        let address = "192.0.2.1".parse().unwrap();
        let ssh = ssh(&programs, &run, "web-01", address, Duration::from_secs(5), 7);
        let arguments: Vec<String> = ssh.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        assert_eq!(arguments[..5], ["-F", "none", "-T", "-a", "-x"]);
        assert!(arguments.contains(&"HostKeyAlias=[web-01]:2222".to_owned()));
        let rest = arguments.iter().position(|arg| arg == "--").unwrap();
        assert_eq!(arguments[rest - 4..=rest + 1], ["-l", "scan", "-p", "2222", "--", "192.0.2.1"]);
        assert_eq!(arguments.len(), rest + 3);
        assert!(arguments[rest + 2].ends_with(" rosterd 'standard' '7'"));
    }
}
