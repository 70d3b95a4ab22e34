//! Whether a host is there. Found out by a connection of our own, before ssh is started: what ssh fails at afterwards is
//! never that the host is gone, whatever it or the host says, so nobody can make a host look gone by what is printed.

use crate::connectors::AddressPolicy;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Whether a host answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// At this address.
    At(IpAddr),
    /// It has no name, or nothing answered at any of its addresses; what was seen of that.
    Unreachable(String),
}

/// Tries the addresses of the host, those that the configuration allows.
pub(super) async fn reach(
    policy: &AddressPolicy,
    host: &str,
    port: u16,
    wait: Duration,
) -> Result<Reach, String> {
    if !is_host(host) {
        return Err("that is no name or address of a host, so ssh is not started with it".to_owned());
    }
    let addresses = match policy.resolve(host, port).await {
        Ok(addresses) => addresses,
        Err(error) if has_no_name(&error) => return Ok(Reach::Unreachable(error.to_string())),
        Err(error) => return Err(format!("its address cannot be found: {error}")),
    };
    let (mut silent, mut untold) = (None, None);
    for address in addresses {
        let tried = timeout(wait, TcpStream::connect(address)).await;
        let Err(error) = tried.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) else {
            return Ok(Reach::At(address.ip()));
        };
        let said = format!("no connection to {address}: {error}");
        match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::TimedOut | ErrorKind::HostUnreachable => {
                silent = Some(said);
            }
            // Of our own network: it says nothing of the host.
            _ => untold = Some(said),
        }
    }
    match (silent, untold) {
        (Some(said), _) => Ok(Reach::Unreachable(said)),
        (None, said) => Err(said.unwrap_or_else(|| "it has no address".to_owned())),
    }
}

/// That the resolver knows no such name, and not that there is no resolver.
fn has_no_name(error: &io::Error) -> bool {
    let said = error.to_string();
    let known = ["Name or service not known", "No address associated with hostname", "Name does not resolve"];
    known.iter().any(|known| said.contains(known))
}

/// A name or an address, that no program takes for anything else.
pub(super) fn is_host(text: &str) -> bool {
    if text.contains(':') {
        return text.parse::<IpAddr>().is_ok();
    }
    (1..=240).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_host_never_gets_near_a_program() {
        for host in ["web-01", "web-01.example.org", "192.0.2.1", "2001:db8::1", "WEB_01"] {
            assert!(is_host(host), "{host}");
        }
        let long = "a".repeat(241);
        for host in [
            "",
            "-oProxyCommand=x",
            ".hidden",
            "a b",
            "a;b",
            "a@b",
            "../x",
            "a/b",
            "[::1]",
            "::1%lo",
            "a\n",
            "\u{e9}",
            &long,
        ] {
            assert!(!is_host(host), "{host:?}");
        }
    }

    #[tokio::test]
    async fn only_the_host_s_own_silence_makes_it_unreachable() {
        let lists = |networks: &[&str]| {
            AddressPolicy::new(networks.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>())
        };
        let wait = Duration::from_secs(5);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let loopback = lists(&["127.0.0.0/8"]);
        assert_eq!(
            reach(&loopback, "127.0.0.1", port, wait).await,
            Ok(Reach::At("127.0.0.1".parse().unwrap()))
        );
        let refused = reach(&AddressPolicy::default(), "127.0.0.1", port, wait).await.unwrap_err();
        assert!(refused.contains("sources.allow_private"), "{refused}");
        drop(listener);
        let Ok(Reach::Unreachable(said)) = reach(&loopback, "127.0.0.1", port, wait).await else { panic!() };
        assert!(said.contains("refused"), "{said}");
        assert!(reach(&loopback, "-v", port, wait).await.is_err());
    }

    #[test]
    fn a_resolver_that_is_away_says_nothing_of_the_host() {
        let said = |said: &str| {
            has_no_name(&io::Error::other(format!("failed to lookup address information: {said}")))
        };
        assert!(said("Name or service not known"));
        assert!(!said("Temporary failure in name resolution"));
    }
}
